"""One thread of a process looks, for all who wait, whether what they have read was written.

Invariant: a waiter is looked at whenever a bucket that it has read has another
version than in its own snapshot. So nothing is missed, whoever writes, and
however seldom it is looked; nobody who waits holds a connection or a snapshot.

Looking again and again is enough. Where buckets are quiet it is said in their
rows that somebody waits (`buckets.waiting`, until when): who commits there sees
that under the lock that he holds anyway, and notifies afterwards. That only
makes the next look come sooner.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final

from inmem.engines.postgres.looking import Begins, ServerWaiter, WaitersOfStore
from inmem.errors import ClosedError, InmemError, LimitError

_FIRST_S: Final = 0.002  # between two looks, after something has changed; grows
_IDLE_S: Final = 2.0  # without waiters, before the thread ends


class Poller:
    """The waits of one process for one store.

    No lock is taken by who waits: a signal handler may raise between any two
    steps of his. He appends to a queue; only the thread has the rest.
    """

    def __init__(self, store: Begins) -> None:
        self._store = store
        self._new: deque[ServerWaiter] = deque()
        self._gone: deque[ServerWaiter] = deque()
        self._passed: deque[bytes] = deque()
        self._closed: deque[object] = deque()
        self._threads: dict[int, threading.Thread] = {}  # under 0, the last one that was started
        self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.statements = 0  # that were sent, for measuring
        self.waiting = 0  # how many wait, as of the last look

    def add(self, waiter: ServerWaiter) -> None:
        """Somebody waits.

        Raises:
            LimitError: no thread can be started.
        """
        self._new.append(waiter)
        thread = self._threads.get(0)
        if thread is None or not thread.is_alive():
            thread = self._threads[0] = threading.Thread(target=self._run, name="inmem-waits", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise LimitError(f"no thread can be started to wait: {error}", what="threads") from None
        self._ring()

    def discard(self, waiter: ServerWaiter) -> None:
        """He waits no more."""
        self._gone.append(waiter)

    def pass_on(self, name: bytes) -> None:
        """Wake one more of those who wait by `View.for_one`."""
        self._passed.append(name)
        self._ring()

    def close(self, owner: object) -> None:
        """A handle was closed: its waits end."""
        self._closed.append(owner)
        self._ring()

    def end(self) -> None:
        """The store is closed: nobody waits any more."""
        self._ring()

    def after_fork_in_child(self) -> None:
        """Those who wait are the parent's."""
        for end in self._bell:
            os.close(end)
        self.__init__(self._store)  # type: ignore[misc]

    def __del__(self) -> None:
        for end in self._bell:
            os.close(end)

    def _ring(self) -> None:
        try:
            os.write(self._bell[1], b"!")
        except BlockingIOError:
            return  # it has not been heard yet

    def _run(self) -> None:
        watch = WaitersOfStore(self._store)
        idle_since = math.inf
        pause_s = 0.0
        try:
            while True:
                self._take(watch)
                self.waiting = len(watch.waiters)
                if self._store.connections.is_closed:
                    watch.end_all(ClosedError("the database was closed"))
                if watch.waiters:
                    idle_since = math.inf
                    pause_s = watch.look()
                    self.statements = watch.statements
                else:
                    idle_since = min(idle_since, time.monotonic())
                    if time.monotonic() - idle_since >= _IDLE_S or self._store.connections.is_closed:
                        self._threads.pop(0, None)  # who comes from here on starts another thread
                        if not self._new:
                            return
                        self._threads.setdefault(0, threading.current_thread())
                    pause_s = _IDLE_S
                self._sleep(watch, pause_s)
        except BaseException as error:
            self._threads.pop(0, None)
            self._take(watch)
            watch.end_all(InmemError(f"the thread that waits has failed: {error!r}"))
            raise
        finally:
            watch.close()

    def _take(self, watch: WaitersOfStore) -> None:
        """What has been said since."""
        while self._new:
            watch.add(self._new.popleft())
        while self._gone:  # after those that came: one of them may be gone already
            watch.discard(self._gone.popleft())
        while self._passed:
            watch.pass_on(self._passed.popleft())
        while self._closed:
            owner = self._closed.popleft()
            watch.end_all(ClosedError("the database was closed"), owner)

    def _sleep(self, watch: WaitersOfStore, pause_s: float) -> None:
        """Sleep until it is time to look, somebody comes, or the server says that something has changed."""
        began = time.monotonic()
        polled = select.poll()
        polled.register(self._bell[0], select.POLLIN)
        listened = watch.connection
        if listened is not None and not listened.closed:
            polled.register(listened.fileno(), select.POLLIN)
        left_s = pause_s
        while left_s > 0:
            for number, _ in polled.poll(max(1, math.ceil(left_s * 1000))):
                if number == self._bell[0]:
                    with suppress(BlockingIOError):  # the poller before this one has read it
                        os.read(number, 4096)
                    if self._new or self._closed or self._passed or self._store.connections.is_closed:
                        left_s = min(left_s, _FIRST_S)  # those who come in these look together
                elif watch.was_told():
                    return
            left_s = min(left_s, pause_s - (time.monotonic() - began))
            if left_s <= _FIRST_S:
                time.sleep(max(0.0, left_s))
                return
