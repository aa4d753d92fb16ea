"""Validation: has anything that a transaction read been changed since?

Invariant: a request passes only if running it now, on the current state,
would read exactly what it read from its snapshot. That refuses lost updates,
write skew and phantoms. The check is exact and needs no history: a record
carries the version that wrote it, and an absent key is version 0.

A range is unchanged if nothing was written in its bucket since the snapshot;
or else if a walk finds no record newer than the snapshot and as many live
ones as were found then: whatever was added is newer, whatever was removed is
missing from the count. Expiry is the one change that leaves no trace in
versions, so a request names the earliest expiry it met, and is refused from
that time on; before it, sweeping removes only what nobody saw alive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from inmem.config import MAX_RANGE_WALK, MAX_RECENT_BUCKETS
from inmem.errors import ConflictError
from inmem.keys import Key, bucket_of, successor
from inmem.record import ABSENT, is_live, version_of
from inmem.writeset import WriteSet

_TIMES: Final = 1024  # groups whose times are remembered, some milliseconds of a busy writer


class StoredState(Protocol):
    """The current state, including earlier commits of the same group."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]: ...


class RecentWrites:
    """The last version written in each bucket (run and type), as far as remembered.

    `floor` is what is assumed for a bucket that is not remembered.
    """

    def __init__(self, floor: int, limit: int = MAX_RECENT_BUCKETS) -> None:
        self.floor = floor
        self._limit = limit
        self._versions: dict[bytes, int] = {}
        self._times: deque[tuple[int, int]] = deque(maxlen=_TIMES)  # of the last groups, with their versions

    def wrote(self, bucket: bytes, version: int) -> None:
        """Remember a write; when memory is full, forget all and raise the floor."""
        versions = self._versions
        if len(versions) >= self._limit and bucket not in versions:
            # Not one less: other buckets of this very commit may be among those forgotten.
            self.floor = max(self.floor, version)
            versions.clear()
        versions[bucket] = version

    def published(self, version: int, now_us: int) -> None:
        """Remember that a group, with this as its last version, is of this time."""
        self._times.append((now_us, version))

    def is_unwritten_since(self, bucket: bytes, time_us: int) -> bool:
        """Whether surely no commit of a later time has written in the bucket."""
        # None of a time before: it is not known, unless there was no group yet.
        before = -1 if self._times else self.floor
        before = next((version for when, version in reversed(self._times) if when <= time_us), before)
        return self.last(bucket) <= before

    def last(self, bucket: bytes) -> int:
        """A version at or above the last write of the bucket."""
        return self._versions.get(bucket, self.floor)

    def is_as_seen(self, bucket: bytes, snapshot_version: int) -> bool:
        """Whether surely nothing was written in the bucket since a snapshot."""
        return self.last(bucket) <= snapshot_version

    def seen(self, key: bytes, snapshot_version: int) -> int:
        """A snapshot shows all commits up to its version."""
        return snapshot_version


class Recent(Protocol):
    """What is known of the last writes of buckets."""

    def last(self, bucket: bytes, /) -> int:
        """A version at or above the last write of a bucket."""

    def is_as_seen(self, bucket: bytes, snapshot_version: int, /) -> bool:
        """Whether surely nothing was written in a bucket since a request has seen it, in its snapshot."""

    def seen(self, key: bytes, snapshot_version: int, /) -> int:
        """The last version that a request has seen of all that is ordered with a key, in its snapshot."""

    def is_unwritten_since(self, bucket: bytes, time_us: int, /) -> bool:
        """Whether surely no commit of a later time has written in a bucket."""


def validate(request: WriteSet, state: StoredState, recent: Recent, now_us: int) -> None:
    """Refuse a request whose reads are no longer true.

    Raises:
        ConflictError: names the key (or the start of the range), the version
            that was read and the one that is there now.
    """
    if request.expiry_us and now_us >= request.expiry_us:
        raise ConflictError("a key that was read has expired since")
    for key, version in request.reads.items():
        record = state.get(key)
        current = ABSENT if record is None or not is_live(record, now_us) else version_of(record)
        if current != version:
            raise _conflict(key, version, current)
    for start, end, count in request.ranges:
        bucket = bucket_of(start)
        if not (end <= successor(bucket) and recent.is_as_seen(bucket, request.snapshot_version)):
            _walk(recent, request.snapshot_version, start, end, count, state, now_us)


def _walk(
    recent: Recent, snapshot: int, start: bytes, end: bytes, count: int, state: StoredState, now_us: int
) -> None:
    if count > MAX_RANGE_WALK:
        raise _conflict(start, snapshot, snapshot + 1)
    found = 0
    for walked, (key, record) in enumerate(state.scan(start, end)):
        version = version_of(record)
        live = is_live(record, now_us)
        if live and version > (seen := recent.seen(key, snapshot)):
            raise _conflict(key, seen, version)
        found += live
        if found > count or walked > 2 * MAX_RANGE_WALK:
            raise _conflict(key, snapshot, version)
    if found != count:
        raise _conflict(start, snapshot, snapshot + 1)


def _conflict(key: bytes, read: int, current: int) -> ConflictError:
    return ConflictError(
        f"{Key(key)!r} was read at version {read} and is now at {current}",
        key=key, read_version=read, committed_version=current,
    )
