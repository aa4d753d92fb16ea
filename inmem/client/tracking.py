"""What a transaction has read: one snapshot, every look at which is noted.

Invariant: a record or range is noted before the transaction gets to see it,
and no further than it was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from inmem.commit.workspace import Workspace
from inmem.engines.base import Item
from inmem.errors import InvariantError
from inmem.keys import fence_of, owner_of
from inmem.primitives.import_mark import is_mark
from inmem.record import ABSENT, expires_at, is_live, version_of

_FEW: Final = 16  # records of a range that a procedure looks at, mostly


class StoredVersion(Protocol):
    """One committed version, as a storage gives it: the expired records too."""

    @property
    def now_us(self) -> int: ...

    @property
    def version(self) -> int: ...

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]: ...

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Item]:
        """`limit` is about how many will be taken, None for all: what is far away gives so many at once."""

    def count(self, start: bytes, end: bytes) -> int:
        """How many records of a range are live."""

    def fence(self, digest: bytes) -> bytes | None: ...

    def close(self) -> None: ...


class TrackedReads:
    """The stored state as one transaction sees it. What `begin` gives is taken at the first read."""

    __slots__ = ("_begin", "_snapshot", "_taken_from", "expiry_us", "ranges", "reads")

    def __init__(self, begin: Callable[[], StoredVersion]) -> None:
        self._begin = begin
        self._snapshot: StoredVersion | None = None
        self.reads: dict[bytes, int] = {}
        self.ranges: list[list[Any]] = []
        self.expiry_us = 0
        self._taken_from: tuple[bytes, Collection[bytes]] | None = None

    def snapshot(self) -> StoredVersion:
        """The snapshot that all is read from."""
        if self._snapshot is None:
            self._snapshot = self._begin()
        return self._snapshot

    def get(self, key: bytes) -> bytes | None:
        """The live record under a key."""
        snapshot = self.snapshot()
        record = snapshot.get(key)
        if record is None or (record[0] & 0x80 and not is_live(record, snapshot.now_us)):
            self.reads[key] = ABSENT
            return None
        self.reads[key] = version_of(record)
        self.met(record)
        return record

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The live records under some keys, as far as there are any."""
        snapshot = self.snapshot()
        found = snapshot.get_many(keys)
        shown = {}
        for key in keys:
            record = found.get(key)
            if record is None or (record[0] & 0x80 and not is_live(record, snapshot.now_us)):
                self.reads[key] = ABSENT
            else:
                self.reads[key] = version_of(record)
                self.met(record)
                shown[key] = record
        return shown

    def met(self, record: bytes) -> None:
        """A record was seen that may expire before the commit."""
        expiry = expires_at(record)
        if expiry:
            self.until(expiry)

    def until(self, time_us: int) -> None:
        """What was read holds until then only."""
        self.expiry_us = min(time_us, self.expiry_us or time_us)

    def for_one(self, name: bytes, starts: Collection[bytes]) -> None:
        """See `View.for_one`."""
        self._taken_from = name, starts

    def taken_by(self) -> bytes | None:
        """The name of which one alone can have what is waited for; None if anything else was read too."""
        if self._taken_from is None or self.reads:
            return None
        name, starts = self._taken_from
        return name if all(start in starts for start, _, _ in self.ranges) else None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """The live records of a range, as far as they are asked for."""
        snapshot = self.snapshot()
        noted: list[Any] = [end, end, 0] if reverse else [start, start, 0]
        self.ranges.append(noted)
        for key, record in snapshot.scan(start, end, reverse=reverse, limit=_FEW):
            if is_live(record, snapshot.now_us):
                noted[2] += 1
                if reverse:
                    noted[0] = key
                else:
                    noted[1] = key + b"\0"
                self.met(record)
                yield key, record
        noted[0], noted[1] = start, end

    def overlaps(self, start: bytes, end: bytes) -> bool:
        """Whether anything of a range was read."""
        reads, ranges = self.reads, self.ranges
        if reads and (start in reads or (end != start + b"\0" and any(start <= key < end for key in reads))):
            return True
        return bool(ranges) and any(start < e and s < end for s, e, _ in ranges)

    def close(self) -> None:
        """End the snapshot: what was read stays noted."""
        if self._snapshot is not None:
            self._snapshot.close()


class DraftWorkspace(Workspace):
    """A transaction's own writes over its reads.

    The base shows what was live when the snapshot was taken. Own records do not
    expire in here: how long one lasts counts from the commit.
    """

    __slots__ = ("_closed", "_looked", "_marked", "_open", "_reads")

    def __init__(self, reads: TrackedReads, *, chain: int) -> None:
        # The deleted runs, and those that are being imported, as far as they were looked at.
        self._closed: dict[bytes, bool] = {}
        self._marked: dict[bytes, bytes] = {}
        self._looked: set[bytes] = set()
        self._open: set[bytes] = set()  # prefixes of runs that were neither
        super().__init__(reads, self._closed, version=0, now_us=0, chain=chain, marks=self._marked)
        self._reads = reads

    def check_open(self, key: bytes) -> None:
        """Refuse work in a run that the snapshot knows as closed, as the writer does."""
        owner = owner_of(key)
        if owner in self._open and not (self.new_fences or self.new_marks):
            return
        digest = fence_of(owner)
        if digest not in self._looked:
            found = self._reads.snapshot().fence(digest)
            if found is not None and is_mark(found):
                self._marked[digest] = found
            elif found is not None:
                self._closed[digest] = True
            else:
                self._open.add(owner)
            self._looked.add(digest)
        super().check_open(key)

    def record(self, key: bytes) -> bytes | None:
        """The live record under a key; what it depends on is noted."""
        return self.own(key) if key in self._changed else self._reads.get(key)

    def own(self, key: bytes) -> bytes | None:
        """The record that this transaction has put under a key."""
        return self._changed.get(key)

    def show(self, key: bytes, record: bytes | None) -> None:
        """Let reads see what a plain operation will make of a key."""
        if self._order is not None and key not in self._changed:
            self._order.add(key)
        self._changed[key] = record

    def has(self, key: bytes) -> bool:
        """Whether the transaction has put or deleted a key."""
        return key in self._changed

    def _last_own(self, start: bytes, end: bytes) -> bytes | None:
        return next((k for k in self._own_keys(start, end, reverse=True) if self._changed[k]), None)

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Not in a transaction: what it removes could not be noted.

        Raises:
            InvariantError: always.
        """
        raise InvariantError("a range cannot be deleted in a transaction")
