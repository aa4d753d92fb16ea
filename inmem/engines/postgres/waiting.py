"""Waiting: who waits sleeps until the thread that looks for all tells him."""

from __future__ import annotations

import math
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from inmem.client.waiting import Watched, check_not_deleted, timed_out
from inmem.engines.postgres.buckets import buckets_of_reads, is_of_one_prefix, quiet_bucket
from inmem.engines.postgres.looking import ServerWaiter, Wide
from inmem.engines.postgres.moment import SeenBuckets, ServerMoment
from inmem.engines.postgres.store import ServerStore
from inmem.errors import InmemError, RunDeletedError
from inmem.primitives.holding import ring
from inmem.writeset import WriteSet


class _Watches(SeenBuckets):
    """What is known, in later snapshots, of writes since this one."""

    def __init__(self, moment: ServerMoment, reads: WriteSet, prefix: bytes) -> None:
        buckets = {*buckets_of_reads(reads), quiet_bucket(prefix)}
        moment.see(buckets)
        super().__init__({}, moment.seen)
        self.deleted: RunDeletedError | None = None
        try:
            check_not_deleted(moment, prefix)
        except RunDeletedError as error:
            self.deleted = error
        self.versions: dict[bytes | Wide, int] = {bucket: moment.seen[bucket] for bucket in buckets}
        for start, end, _ in reads.ranges:
            if not is_of_one_prefix(start, end):
                self.versions[start, end] = moment.sum_of(start, end)


class ServerWaits:
    """The waits through one handle."""

    def __init__(self, store: Callable[[], ServerStore]) -> None:
        self._store = store

    def walks(self, snapshot: ServerMoment, reads: WriteSet, prefix: bytes) -> _Watches:
        """See `Waits.walks`."""
        return _Watches(snapshot, reads, prefix)

    def begin(self, watched: Watched, tell: Callable[[InmemError | None], None]) -> ServerWaiter:
        """Have `tell` called once, in another thread, when something has changed; see `end`."""
        assert isinstance(watched.walks, _Watches)
        if watched.walks.deleted is not None:
            raise watched.walks.deleted
        waiter = ServerWaiter(watched, dict(watched.walks.versions), self, tell)
        self._store().poller.add(waiter)
        return waiter

    def end(self, waiter: ServerWaiter, *, was_interrupted: bool) -> None:
        """He waits no more. If he was interrupted, another takes what he was told of, if he was."""
        poller = self._store().poller
        poller.discard(waiter)
        if was_interrupted and waiter.watched.taken_from is not None:
            poller.pass_on(waiter.watched.taken_from)

    def wait(self, watched: Watched, deadline: float) -> None:
        """Sleep until something has changed. See `WatchedReads.wait`."""
        bell = allocate_lock()
        bell.acquire()
        told: list[InmemError | None] = []

        def tell(error: InmemError | None) -> None:
            told.append(error)
            ring(bell)

        waiter = self.begin(watched, tell)
        try:
            while not told:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise timed_out()
                bell.acquire(timeout=min(left_s, threading.TIMEOUT_MAX) if left_s < math.inf else -1)
            if told[0] is not None:
                raise told[0]
        except BaseException:
            self._ended(waiter, was_interrupted=True)
            raise
        self._ended(waiter, was_interrupted=False)

    def _ended(self, waiter: Any, *, was_interrupted: bool) -> None:
        try:
            self.end(waiter, was_interrupted=was_interrupted)
        except InmemError:
            return  # the handle was closed, and with it all that waited
