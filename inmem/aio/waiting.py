"""Waits of coroutines: one thread sleeps for all of them, and tells their loop.

Invariant: each waiter is looked at after its words were armed, and again
whenever one of them changes; see `inmem.host.waitfile`. A wake that concerns
others costs a comparison of words.

A loop may wait for more words than the kernel sleeps on at once. Then the
thread sleeps on the words of groups, and compares the words themselves when it
wakes. It begins with the first waiter, and ends a while after the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import os
import threading
import time
from collections import deque
from itertools import islice
from typing import Final

from inmem.aio.session import check_loop, copy_of
from inmem.client.attachment import Attachment
from inmem.client.waiting import Watched, timed_out
from inmem.errors import ClosedError, ForkError, InmemError, LimitError
from inmem.host import futex
from inmem.host.waitfile import EVERYTHING, GROUPS, Armed, WaitFile, group_of, is_takers

_BOUND_S: Final = 1.0  # of one sleep: then it is looked whether a writer ended or stopped before waking
_POLL_S: Final = 0.005  # where there is nothing to sleep on
_PAUSE_S: Final = 0.001  # after a wake by a group's word, which others change too
_IDLE_S: Final = 2.0  # without waiters, before the thread ends
_TAKERS: Final = futex.AT_ONCE - GROUPS - 3  # words of takers beside those of groups, everything and the bell
_LATER_US: Final = 20_000  # after the first of several takers whose reads have expired
_SPARE: Final = 64  # expiries of waits that have ended, and are forgotten together


class _Waiter:
    __slots__ = ("future", "watched")

    def __init__(self, watched: Watched, future: asyncio.Future[None]) -> None:
        self.watched = watched
        self.future = future


class LoopWaiting:
    """The waits of one event loop for one store."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._waiting = attachment.waiting
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of the next two
        self._new: list[_Waiter] = []
        self._thread: threading.Thread | None = None
        self._gone: deque[_Waiter] = deque()  # whose coroutines do not wait any more
        self._is_closed = False

    async def wait(self, watched: Watched, deadline: float) -> None:
        """Return when something has changed. `deadline` is of `time.monotonic`, or infinite.

        Raises:
            WaitTimeoutError: nothing has changed until the deadline.
            RunDeletedError: the run was deleted.
            ClosedError: the database was closed.
            InvariantError: called in another event loop.
        """
        if self._pid != os.getpid():
            raise ForkError("this database belongs to the event loop of the parent process")
        check_loop(self._loop)
        waiter = _Waiter(watched, self._loop.create_future())
        self._add(waiter)
        try:
            left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            async with asyncio.timeout(left_s) as limit:
                await waiter.future
        except BaseException as error:
            if watched.taken_from is not None:  # another takes what this one was told of, if it was
                self._waiting.sleeper.pass_on(watched.taken_from)
            if isinstance(error, TimeoutError) and limit.expired():
                raise timed_out() from None
            raise
        finally:
            self._gone.append(waiter)

    def _add(self, waiter: _Waiter) -> None:
        with self._lock:
            if self._is_closed:
                raise ClosedError("the database is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="inmem-waits", daemon=True)
                try:
                    thread.start()  # it looks for this waiter once the lock is free
                except RuntimeError as error:
                    raise LimitError(f"no thread can be started to wait: {error}", what="threads") from None
                self._thread = thread
            self._new.append(waiter)
        self._waiting.sleeper.wake()

    def close(self) -> None:
        """End all waits, and the thread."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        self._waiting.sleeper.wake()
        if thread is not None:
            thread.join()

    def _take_new(self, *, may_end: bool) -> list[_Waiter] | None:
        """Those that have come; None if the thread ends, as there are none and it may."""
        with self._lock:
            new, self._new = self._new, []
            if not new and may_end:
                self._thread = None
                return None
        return new

    def _run(self) -> None:
        told = _Told(self._loop)
        watch = _Watch(self._attachment, told)
        idle_since = math.inf
        try:
            while True:
                rung = self._waiting.sleeper.rung  # before looking for what is rung for
                is_idle = not watch.waiters
                idle_since = min(idle_since, time.monotonic()) if is_idle else math.inf
                new = self._take_new(may_end=time.monotonic() - idle_since >= _IDLE_S)
                if new is None:
                    return
                if self._is_closed or self._waiting.is_closed:
                    watch.add(new)
                    watch.end_all(ClosedError("the database was closed"))
                    told.tell()
                    self._take_new(may_end=True)
                    return
                watch.add(new)
                while self._gone:  # after those that came: one of them may be gone already
                    watch.discard(self._gone.popleft())
                watch.look_and_sleep(rung)
        except BaseException as error:
            with self._lock:
                self._thread = None
                new, self._new = self._new, []
            watch.add(new)
            if isinstance(error, RuntimeError) and self._loop.is_closed():
                return  # nobody waits any more
            watch.end_all(InmemError(f"the thread that waits has failed: {error!r}"))
            told.tell()
            raise


class _Told:
    """What the loop is to be told at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended: list[tuple[_Waiter, InmemError | None]] = []

    def end(self, waiter: _Waiter, error: InmemError | None = None) -> None:
        """A wait has ended."""
        self._ended.append((waiter, error))

    def tell(self) -> None:
        """Tell the loop."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._loop.call_soon_threadsafe(_resolve, ended)


def _resolve(ended: list[tuple[_Waiter, InmemError | None]]) -> None:
    for waiter, error in ended:
        if not waiter.future.done():
            if error is None:
                waiter.future.set_result(None)
            else:
                waiter.future.set_exception(error)


class _Watch:
    """What the thread knows: the waiters by the words that they wait for."""

    def __init__(self, attachment: Attachment, told: _Told) -> None:
        self.waiters: set[_Waiter] = set()
        self._waiting = attachment.waiting
        self._told = told
        self._at: dict[int, dict[_Waiter, None]] = {}  # by place, in the order in which they came
        self._values: dict[int, int] = {}  # of the words, when they were armed
        self._names: dict[int, set[bytes]] = {}  # of takers, by place
        self._file: WaitFile | None = None
        self._due: set[_Waiter] = set()  # to be looked at
        self._expiries: list[tuple[int, int, _Waiter]] = []
        self._numbers = itertools.count()
        self._seen_version = -1  # when all were looked at, as the writer had not told of it

    def add(self, waiters: list[_Waiter]) -> None:
        """They are looked at once their words are armed."""
        for waiter in waiters:
            self.waiters.add(waiter)
            self._due.add(waiter)
            for place in waiter.watched.leaves:
                self._at.setdefault(place, {})[waiter] = None
                if (name := waiter.watched.taken_from) is not None:
                    names = self._names.setdefault(place, set())
                    if name not in names:
                        names.add(name)
                        self._values.pop(place, None)  # it is armed again, and says so
            if waiter.watched.expiry_us:
                heapq.heappush(self._expiries, (waiter.watched.expiry_us, next(self._numbers), waiter))
        if len(self._expiries) > 2 * len(self.waiters) + _SPARE:  # most are of waits that have ended
            self._expiries = [each for each in self._expiries if each[2] in self.waiters]
            heapq.heapify(self._expiries)

    def discard(self, waiter: _Waiter) -> None:
        """Nobody waits for it any more."""
        if waiter in self.waiters:
            self.waiters.discard(waiter)
            self._due.discard(waiter)
            for place in waiter.watched.leaves:
                others = self._at[place]
                others.pop(waiter, None)
                if not others:
                    del self._at[place]
                    self._values.pop(place, None)
                    self._names.pop(place, None)

    def _end(self, waiter: _Waiter, error: InmemError | None = None) -> None:
        self._told.end(waiter, error)
        self.discard(waiter)

    def end_all(self, error: InmemError) -> None:
        """No wait goes on."""
        for waiter in [*self.waiters]:
            self._end(waiter, copy_of(error))

    def look_and_sleep(self, rung: int) -> None:
        """Arm what has changed, look at whom it concerns, and sleep, unless it was rung again."""
        sleeper = self._waiting.sleeper
        file = sleeper.file()
        if file is not self._file:
            self._file, self._values = file, {}
        places: list[int] = []
        values: list[int] = []
        in_groups = len(self._at) >= futex.AT_ONCE
        if file is None:
            self._due |= self.waiters
        else:
            if in_groups:  # before the words themselves are compared
                places = sorted({each if each == EVERYTHING else group_of(each) for each in self._at
                                 if each <= EVERYTHING})  # fmt: skip
                # Takers have no groups. If there are very many, the last are looked at once in a second.
                places += [each for each in self._at if each > EVERYTHING][:_TAKERS]
                values = file.arm(places)
            self._arm_changed(file)
            if not in_groups:
                places = [*self._at]
                values = [self._values[place] for place in places]
        try:
            self._look()
        except InmemError as error:
            self.end_all(error)
        self._told.tell()
        self._sleep(Armed(None, [], []) if file is None else sleeper.armed(file, places, values, rung))
        if in_groups:
            time.sleep(_PAUSE_S)

    def _arm_changed(self, file: WaitFile) -> None:
        words, values = file.words, self._values
        changed = [place for place in self._at if values.get(place, -1) != words[place]]
        if changed:
            for place in changed:
                for name in self._names.get(place, ()):
                    file.say_who(name)
            for place, value in zip(changed, file.arm(changed), strict=True):
                # Of takers as many look as there is new, those who have waited longest first.
                is_each = not is_takers(place) or place not in values or file.is_shared(place)
                new = None if is_each else value - values[place]
                values[place] = value
                self._due.update(islice(self._at[place], new if new is None or new >= 0 else None))

    def _look(self) -> None:
        """Look at those whose words have changed, or who have expired.

        Raises:
            InmemError: the store cannot be read.
        """
        now_us = self._waiting.now_us()
        served: set[bytes] = set()
        while self._expiries and self._expiries[0][0] <= now_us:
            waiter = heapq.heappop(self._expiries)[2]
            name = waiter.watched.taken_from
            if name in served:  # it is for one of them: the others look later
                heapq.heappush(self._expiries, (now_us + _LATER_US, next(self._numbers), waiter))
            elif waiter in self.waiters:
                if name is not None:
                    served.add(name)
                self._end(waiter)
        if not self._due:
            return
        if not self._waiting.has_image():  # see `inmem.client.waiting.Waiting.wait`
            version = self._waiting.version()
            for waiter in [*self._due]:
                if version > waiter.watched.checked:
                    self._end(waiter)
            self._due = set()
            return
        snapshot = self._waiting.begin()
        try:
            for waiter in [*self._due]:  # who is told is out, or a second wake would be given to him too
                try:
                    if waiter.watched.has_changed(snapshot):
                        self._end(waiter)
                except InmemError as error:
                    self._end(waiter, error)
            self._due = set()
        finally:
            snapshot.close()

    def _sleep(self, armed: Armed) -> None:
        sleep_s = _BOUND_S
        if self._expiries:
            sleep_s = min(sleep_s, max(0.0, (self._expiries[0][0] - self._waiting.now_us()) / 1e6))
        began = time.monotonic()
        if armed.file is None:
            time.sleep(min(sleep_s, _POLL_S))
        else:
            self._waiting.sleeper.sleep(armed, sleep_s)
        if self.waiters and time.monotonic() - began >= _BOUND_S:
            with contextlib.suppress(InmemError):  # the next look says so
                self._look_behind_the_writer()

    def _look_behind_the_writer(self) -> None:
        """It may have published something and told nobody: it died, or was stopped, in between."""
        if self._file is None or not self._waiting.has_image():
            return
        snapshot = self._waiting.begin()
        try:
            version = snapshot.version
        finally:
            snapshot.close()
        if self._file.told[0] < version != self._seen_version:
            self._seen_version = version
            self._due |= self.waiters
