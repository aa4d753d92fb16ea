"""Waiting: sleep until something that was read has changed.

Invariant: who waits holds no snapshot, and is told of every change to what it
has read. It needs no writer for that: it is a reader that sleeps.

The sleep is bounded. A commit and its writer may both end between publishing
and waking, with nobody left to start another writer; and who removes files
from the data directory may remove the one that sleepers are woken by.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from inmem.client.tracking import StoredVersion, TrackedReads
from inmem.client.views import closed
from inmem.commit.validation import Recent, RecentWrites, validate
from inmem.engines.base import Draft
from inmem.errors import (
    ClosedError,
    ConflictError,
    InmemError,
    InvariantError,
    RunDeletedError,
    WaitTimeoutError,
)
from inmem.host import futex
from inmem.host.interrupts import let_through
from inmem.host.waitfile import EVERYTHING, Sleeper, group_of, place_of, takers_place
from inmem.keys import bucket_of, fence_of, successor
from inmem.primitives.import_mark import is_mark
from inmem.stepping import Leaves
from inmem.writeset import WriteSet, encode_single

_LEAVING_S: Final = 1.0  # at most, for all who leave when a handle is closed
_BOUND_S: Final = 1.0  # of one sleep
_JUST_S: Final = 0.1  # between the end of a wait and the next one of the same taker
_SLACK_S: Final = 0.001  # by which a sleep may end before its time
# How long after the time of what is due takers look, who know it of themselves: at once only who was told.
_LATER_US: Final = (0, 10_000)
_MUCH_LATER_US: Final = (20_000, 200_000)  # those who have slept on, and know it by their look
_WALK: Final = RecentWrites(1 << 64)  # nothing is known of what was written of late: look


class Watched:
    """What somebody waits for a change of."""

    def __init__(self, reads: TrackedReads, prefix: bytes, waits: Waits) -> None:
        """`prefix` is that of the run in which he waits, which may be deleted meanwhile."""
        if not reads.reads and not reads.ranges:
            raise InvariantError(
                "there is nothing to wait for: nothing was read",
                hint="Read, through the view or transaction that the function is given, what it waits for.",
            )
        self.prefix = prefix
        self.checked = reads.snapshot().version  # up to this version nothing has changed
        self._waits = waits
        self.expiry_us = reads.expiry_us
        ranges = [(s, e, n) for s, e, n in reads.ranges]
        self.reads = WriteSet(reads.snapshot().version, reads.expiry_us, reads.reads, ranges, [])
        self.walks = waits.walks(reads.snapshot(), self.reads, prefix)
        places = {place_of(key) for key in reads.reads}
        for start, end, _ in reads.ranges:
            bucket = bucket_of(start)
            places.add(place_of(bucket) if end <= successor(bucket) else EVERYTHING)
        self.taken_from = reads.taken_by()
        if self.taken_from is not None:
            places = {takers_place(self.taken_from)}
        self.leaves = frozenset(places)
        if len(places) >= futex.AT_ONCE:
            places = {place if place == EVERYTHING else group_of(place) for place in places}
        self.places = sorted(places)

    def wait(self, deadline: float) -> None:
        """Sleep until something has changed. See `Waiting.wait`."""
        self._waits.wait(self, deadline)

    def has_changed(self, snapshot: StoredVersion) -> bool:
        """Whether a later version shows anything else.

        Raises:
            RunDeletedError: the run was deleted.
        """
        check_not_deleted(snapshot, self.prefix)
        self.checked = snapshot.version
        try:
            validate(self.reads, snapshot, self.walks, snapshot.now_us)
        except ConflictError as error:
            let_through(error)
            return True
        return False


class Looked:
    """What somebody looks at who may wait for a change of it: a transaction as a view of one version."""

    __slots__ = (
        "_draft", "count", "for_one", "is_deleted", "moment", "now_us", "read", "read_many", "scan", "until"
    )

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.read, self.read_many = draft.read, draft.read_many
        self.scan, self.count = draft.scan, draft.count
        self.is_deleted, self.moment, self.now_us = draft.is_deleted, draft.moment, draft.now_us
        self.until, self.for_one = draft.until, draft.for_one

    @property
    def version(self) -> int:
        """The commit version that is seen."""
        return self._draft.seen_version

    def close(self) -> None:
        """It ends with the look."""


def check_not_deleted(snapshot: StoredVersion, prefix: bytes) -> None:
    """Refuse to wait in a run that is gone.

    Raises:
        RunDeletedError: it was deleted.
    """
    found = snapshot.fence(fence_of(prefix))
    if found is not None and not is_mark(found):
        run_id = prefix.decode().rpartition("/")[2]
        raise RunDeletedError(f"run {run_id} was deleted", run_id=run_id)


class CommitsBodies(Protocol):
    """Where commits go whose bodies are encoded already."""

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Any: ...


def leave(leaving: set[Leaves], session: Callable[[], CommitsBodies]) -> None:
    """Say that nobody waits any more through a handle that is closed: others would find that out later."""
    deadline = time.monotonic() + _LEAVING_S
    for one in [*leaving]:
        if one.is_mine and (left_s := deadline - time.monotonic()) > 0:
            try:
                session().commit(encode_single(one.leave_op()), sync=False, timeout_s=left_s)
            except InmemError as error:
                let_through(error)


class Waits(Protocol):
    """Who lets callers sleep until something has changed: see `Waiting.wait`."""

    def walks(self, snapshot: Any, reads: WriteSet, prefix: bytes) -> Recent:
        """What is known, in later snapshots, of writes since this one, in which so much was read."""

    def wait(self, watched: Watched, deadline: float) -> None: ...


class WalksAll:
    """Whose snapshots know nothing of the writes since an earlier one: each record is looked at."""

    def walks(self, snapshot: object, reads: WriteSet, prefix: bytes) -> Recent:
        """See `Waits.walks`."""
        return _WALK


class Waiting:
    """The waits of one process for one store."""

    def __init__(
        self, path: Path, begin: Callable[[], StoredVersion], has_image: Callable[[], bool],
        version: Callable[[], int], now_us: Callable[[], int],
    ) -> None:
        self.begin = begin
        self.has_image = has_image
        self.version = version  # the last one that a writer has published, also after it has left
        self.now_us = now_us
        self.sleeper = Sleeper(path)
        self._woken = threading.local()  # `at` and `told`: when this thread's last wait ended, and how
        self.is_closed = False

    def wait(self, watched: Watched, deadline: float, has_closed: Callable[[], bool]) -> None:
        """Return when something has changed. `deadline` is of `time.monotonic`, or infinite.

        `has_closed` says whether the handle was closed; whoever closes it wakes all who sleep here.

        Raises:
            WaitTimeoutError: nothing has changed until the deadline.
            RunDeletedError: the run was deleted.
            ClosedError: the handle was closed.
        """
        try:
            self._wait(watched, deadline, has_closed)
        except BaseException:
            if watched.taken_from is not None:  # another takes what this one was woken for, if it was
                self.sleeper.pass_on(watched.taken_from)
            raise

    def _wait(self, watched: Watched, deadline: float, has_closed: Callable[[], bool]) -> None:
        before: list[int] = []
        asleep_until = math.inf
        late_us = self._late_us() if watched.taken_from is not None else 0
        while True:
            armed = self.sleeper.arm(watched.places, watched.taken_from)
            if self.is_closed or has_closed():
                raise ClosedError("the database is closed")
            if self.has_image():
                if self._looks_changed(watched):
                    self._woken.at = time.monotonic()
                    self._woken.told = self._woken.at < asleep_until - _SLACK_S
                    return
            # Without an image nothing changes before there is a writer, and that wakes everybody. But
            # something may have changed since the last look, before the writer left.
            elif armed.values != before and self.version() > watched.checked:
                return
            before = armed.values
            sleep_s = min(_BOUND_S, deadline - time.monotonic())
            if sleep_s <= 0:
                raise timed_out()
            if watched.expiry_us:
                expires_s = (watched.expiry_us + late_us - self.now_us()) / 1e6
                if expires_s <= 0:
                    return
                sleep_s = min(sleep_s, expires_s)
            asleep_until = time.monotonic() + sleep_s
            self.sleeper.sleep(armed, sleep_s)
            if watched.taken_from is not None and armed.is_for_one_who_takes():
                self._woken.at, self._woken.told = time.monotonic(), True
                return  # what is there is looked at by him: to look here first would be for nothing

    def _late_us(self) -> int:
        """How long after the time of what is due a taker looks: all at once would be in each other's way."""
        if time.monotonic() - getattr(self._woken, "at", -_JUST_S) >= _JUST_S:
            return random.randint(*_LATER_US)
        return 0 if self._woken.told else random.randint(*_MUCH_LATER_US)

    def _looks_changed(self, watched: Watched) -> bool:
        snapshot = self.begin()
        try:
            return watched.has_changed(snapshot)
        finally:
            snapshot.close()

    def close(self) -> None:
        """End all waits of this process."""
        self.is_closed = True
        self.begin = self.has_image = self.version = self.now_us = closed
        self.sleeper.wake()


def timed_out() -> WaitTimeoutError:
    """What a wait raises at its deadline."""
    return WaitTimeoutError("what was waited for did not come in time")
