"""What a process knows of a bucket as it was at a version: enough to decide many a commit without a look.

Invariant: what is decided from here is made only if each bucket still has the
version at which it was known. That is exact: whatever changes in a bucket
changes its version.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from inmem.changes import DELETE_RANGE, PUT, Table
from inmem.engines.base import Item

_DATA: Final = int(Table.DATA)
_MOST_BUCKETS: Final = 256
_MOST_RECORDS: Final = 256  # of a bucket
_MOST_WINDOWS: Final = 16
_MOST_ITEMS: Final = 64  # of a window
_MOST_BYTES: Final = 4096  # of a record that is remembered
_AVOIDED_S: Final = 0.05  # for how long nothing is guessed of buckets that others had changed


class NotKnownError(Exception):
    """It has to be looked up."""


class Window:
    """The first records of a range, in the order in which they were looked at."""

    __slots__ = ("end", "is_whole", "items", "reverse", "start")

    def __init__(self, start: bytes, end: bytes, reverse: bool) -> None:
        self.start = start
        self.end = end
        self.reverse = reverse
        self.items: list[Item] = []
        self.is_whole = False

    def add(self, items: list[Item], limit: int) -> None:
        """What a look at so many of the first has shown."""
        self.items = items
        self.is_whole = len(items) < limit

    def covers(self, start: bytes, end: bytes, reverse: bool) -> bool:
        """Whether it tells of a range from its first record on."""
        if reverse or self.reverse:
            return reverse is self.reverse and start == self.start and end == self.end
        return start == self.start and end <= self.end

    def shown(self, end: bytes) -> Iterator[Item]:
        """What it tells of its range, or of one that ends before it."""
        for item in self.items:
            if not self.reverse and item[0] >= end:
                return
            yield item
        if not self.is_whole:
            raise NotKnownError

    def tells(self, key: bytes) -> bool:
        """Whether it says what is under a key."""
        if not self.start <= key < self.end:
            return False
        if self.is_whole or not self.items:
            return self.is_whole
        last = self.items[-1][0]
        return key >= last if self.reverse else key <= last

    def get(self, key: bytes) -> bytes | None:
        """The record under a key of which it tells."""
        return next((record for k, record in self.items if k == key), None)

    def put(self, key: bytes, record: bytes) -> None:
        """A record was written."""
        if not self.start <= key < self.end:
            return
        items, reverse = self.items, self.reverse
        at = next((i for i, (k, _) in enumerate(items) if (k <= key if reverse else k >= key)), len(items))
        if at < len(items) and items[at][0] == key:
            items[at] = key, record
        elif at < len(items) or self.is_whole:
            items.insert(at, (key, record))
            if len(items) > _MOST_ITEMS:
                items.pop()
                self.is_whole = False

    def delete(self, key: bytes) -> None:
        """A record was removed."""
        if self.start <= key < self.end:
            self.items = [item for item in self.items if item[0] != key]


class Bucket:
    """What is known of one, at a version."""

    __slots__ = ("is_ours", "records", "version", "windows")

    def __init__(
        self, version: int, records: dict[bytes, bytes | None], windows: list[Window], *, is_ours: bool
    ) -> None:
        self.version = version
        self.records = records
        self.windows = windows
        self.is_ours = is_ours  # nobody else has written in it between the last two commits from here

    def wrote(self, version: int, ops: Iterable[Any]) -> None:
        """It was written in from here, by simple operations."""
        self.version = version
        records = self.records
        for op in ops:
            key = op[2]
            record = op[3] if op[0] == PUT else None
            records[key] = record
            for window in self.windows:
                if record is None:
                    window.delete(key)
                else:
                    window.put(key, record)
            if record is not None and len(record) > _MOST_BYTES:
                del records[key]
                self.windows = [each for each in self.windows if not each.start <= key < each.end]
        if len(records) > _MOST_RECORDS:
            self.records = dict([*records.items()][-_MOST_RECORDS // 2 :])
        self.windows = [each for each in self.windows if each.items or each.is_whole][-_MOST_WINDOWS:]


class Told:
    """What somebody has read in one snapshot: versions of rows of buckets, and records in them."""

    __slots__ = ("records", "versions")

    def __init__(self) -> None:
        self.versions: dict[bytes, int] = {}
        self.records: dict[bytes, bytes | None] = {}


class KnownState:
    """The state as far as it is known."""

    def __init__(self, records: dict[bytes, bytes | None], windows: Sequence[Window] = ()) -> None:
        self._records = records
        self._windows = windows

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        if key in self._records:
            return self._records[key]
        for window in self._windows:
            if window.tells(key):
                return window.get(key)
        raise NotKnownError

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """Keys and records of a range."""
        for window in self._windows:
            if window.covers(start, end, reverse):
                return window.shown(end)
        raise NotKnownError


class Noted(KnownState):
    """The same, as far as it is records that are there; it notes those that are looked at."""

    def __init__(self, records: dict[bytes, bytes | None]) -> None:
        super().__init__(records)
        self.looked_at: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        record = self._records.get(key)
        if record is None:
            raise NotKnownError
        self.looked_at[key] = record
        return record


class Memory:
    """What a process remembers of buckets in which it has written."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, Bucket] = {}
        self._avoided: dict[bytes, float] = {}

    def take(self, row: bytes) -> Bucket | None:
        """What is known, for one who decides from it and gives it back."""
        return self._buckets.pop(row, None)

    def give_back(self, row: bytes, bucket: Bucket) -> None:
        """It is known as of its version."""
        buckets = self._buckets
        if len(buckets) >= _MOST_BUCKETS:
            buckets.pop(next(iter([*buckets])), None)
        buckets[row] = bucket

    def was_wrong(self, rows: Iterable[bytes]) -> None:
        """Somebody else has written in one of these."""
        if len(self._avoided) > _MOST_BUCKETS:
            self._avoided = {}
        now_s = time.monotonic()
        self._avoided.update(dict.fromkeys(rows, now_s + _AVOIDED_S))

    def avoids(self, rows: Iterable[bytes]) -> bool:
        """Whether it would most likely be wrong."""
        avoided = self._avoided
        return bool(avoided) and any(avoided.get(row, 0.0) > time.monotonic() for row in rows)


def is_simple(ops: Iterable[Any]) -> bool:
    """Whether operations are puts and deletes of records alone."""
    return all(op[1] == _DATA and op[0] != DELETE_RANGE for op in ops)
