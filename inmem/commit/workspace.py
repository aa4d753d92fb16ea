"""The workspace of one commit: current state, plus what this commit does to it.

Invariant: nothing leaves a workspace until its commit has been decided, so a
commit that fails halfway is dropped without a trace. Procedures read and write
through it alone, and take time and version from it. The writer has one for
each commit; a transaction has one in its client, over the reads that it tracks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, Protocol

from sortedcontainers import SortedList

from inmem.changes import DELETE, DELETE_RANGE, PUT, Table
from inmem.commit.validation import Recent
from inmem.config import ENTRY_BYTES, MAX_COMMIT_BYTES
from inmem.errors import BusyError, ConflictError, RunDeletedError
from inmem.keys import Key, TypeTag, bucket_of, fence_of, owner_of
from inmem.record import is_live, pack, payload_of
from inmem.writeset import check_weight

DATA = int(Table.DATA)
_UNCHANGED: Final = b""  # no record is empty
_NO_MARKS: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class BaseState(Protocol):
    """The store transaction, as far as a commit reads it."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]: ...


class Workspace:
    """What procedures work on."""

    __slots__ = (
        "_admitted", "_base", "_changed", "_cleared", "_fences", "_highest", "_marks", "_order", "_recent",
        "_undo", "_weight", "buckets", "chain", "new_fences", "new_marks", "now_us", "ops", "stamp_us",
        "version",
    )

    def __init__(
        self, base: BaseState, fences: Collection[bytes], *, version: int, now_us: int, chain: int,
        marks: Mapping[bytes, bytes] = _NO_MARKS, recent: Recent | None = None,
    ) -> None:
        self._base = base
        self._fences = fences
        self._marks = marks
        self._recent = recent
        self.version = version
        self.now_us = now_us  # what has expired by then is not seen
        self.stamp_us = now_us  # the time that is written into records
        self.chain = chain
        self.ops: list[tuple[Any, ...]] = []
        self.buckets: set[bytes] = set()
        self.new_fences: list[bytes] = []
        self.new_marks: dict[bytes, bytes | None] = {}  # of imports; None: taken away
        self._admitted: bytes | None = None
        self._changed: dict[bytes, bytes | None] = {}
        self._cleared: list[tuple[bytes, bytes]] = []
        self._highest: dict[bytes, bytes] = {}  # the last key put in each bucket: `last` without a walk
        self._order: SortedList | None = None  # the keys of _changed, from the first scan on
        self._undo: list[tuple[Any, ...]] | None = None  # what a savepoint takes back
        self._weight = 0  # of what was written: see `writeset.check_weight`

    def get(self, key: bytes) -> bytes | None:
        """The payload under a key, None if absent or expired."""
        record = self.record(key)
        return None if record is None else payload_of(record)

    def record(self, key: bytes) -> bytes | None:
        """The live record under a key."""
        if key in self._changed:
            record = self._changed[key]
        elif self._cleared and any(start <= key < end for start, end in self._cleared):
            record = None
        else:
            record = self._base.get(key)
        if record is None or (record[0] & 0x80 and not is_live(record, self.now_us)):
            return None
        return record

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Key and payload of the last live record in a range, which lies in one bucket."""
        mine = self._last_own(start, end)
        for key, record in self._base.scan(start, end, reverse=True):
            if mine is not None and mine >= key:
                break
            if self._shows(key, record):
                return key, payload_of(record)
        return None if mine is None else (mine, payload_of(self._changed[mine] or b""))

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and payloads of the live records in a range, in key order."""
        mine = [k for k in self.own_keys(start, end, reverse=reverse) if self._changed[k] is not None]
        at = 0
        for key, record in self._base.scan(start, end, reverse=reverse):
            while at < len(mine) and (mine[at] > key if reverse else mine[at] < key):
                yield mine[at], payload_of(self._changed[mine[at]] or b"")
                at += 1
            if self._shows(key, record):
                yield key, payload_of(record)
        for key in mine[at:]:
            yield key, payload_of(self._changed[key] or b"")

    def first_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """The first keys of a range whose records do not expire, in key order; at most so many."""
        if self._changed or self._cleared:
            return [key for key, _ in islice(self.scan(start, end), limit)]
        return [key for key, _ in islice(self._base.scan(start, end), limit)]

    def own_keys(self, start: bytes, end: bytes, *, reverse: bool = False) -> list[bytes]:
        """The keys of a range that this commit has put or deleted, in order."""
        return list(self._own_keys(start, end, reverse=reverse)) if self._changed else []

    def _own_keys(self, start: bytes, end: bytes, *, reverse: bool) -> Iterator[bytes]:
        if self._order is None:
            self._order = SortedList(self._changed)
        keys: Iterator[bytes] = self._order.irange(start, end, inclusive=(True, False), reverse=reverse)
        return keys

    def _last_own(self, start: bytes, end: bytes) -> bytes | None:
        mine = self._highest.get(bucket_of(start))
        if mine is None or (start <= mine < end and self._changed.get(mine) is not None):
            return mine
        return next((k for k in self._own_keys(start, end, reverse=True) if self._changed[k]), None)

    def _shows(self, key: bytes, record: bytes) -> bool:
        """Whether a stored record is live and this commit has left it alone."""
        if key in self._changed:
            return False
        if self._cleared and any(start <= key < end for start, end in self._cleared):
            return False
        return is_live(record, self.now_us)

    def put(self, key: bytes, payload: bytes, expires_at: int = 0, timestamp: int = 0) -> None:
        """Write a record at this commit's version, and its time unless another is given."""
        self.check_open(key)
        self._put(key, pack(self.version, timestamp or self.stamp_us, expires_at, payload))

    def put_index(self, keys: Iterable[bytes]) -> None:
        """Write index entries, which are keys alone, of a record of the same run that was put before."""
        record = pack(self.version, self.stamp_us, 0, b"")
        for key in keys:
            self._put(key, record)

    def _put(self, key: bytes, record: bytes) -> None:
        self._weight += ENTRY_BYTES + len(key) + len(record)
        if self._weight > MAX_COMMIT_BYTES:
            check_weight(self._weight)
        bucket = bucket_of(key)
        if self._undo is not None:
            self._remember(key, bucket)
        if self._order is not None and key not in self._changed:
            self._order.add(key)
        self._changed[key] = record
        self.ops.append((PUT, DATA, key, record))
        self.buckets.add(bucket)
        if key > self._highest.get(bucket, b""):
            self._highest[bucket] = key

    def delete(self, key: bytes) -> None:
        """Remove a record."""
        self.check_open(key)
        self._weight += ENTRY_BYTES + len(key)
        if self._weight > MAX_COMMIT_BYTES:
            check_weight(self._weight)
        bucket = bucket_of(key)
        if self._undo is not None:
            self._remember(key, bucket)
        if self._order is not None and key not in self._changed:
            self._order.add(key)
        self._changed[key] = None
        self.ops.append((DELETE, DATA, key))
        self.buckets.add(bucket)

    def expect(self, entries: int, size: int = 0) -> None:
        """Refuse what is about to be written if it is too much, before any of it is.

        Raises:
            LimitError: so many entries of so many bytes do not fit this commit.
        """
        check_weight(self._weight + entries * ENTRY_BYTES + size)

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Remove all records of a range in one operation."""
        self.check_open(start)
        if self._undo is not None:
            self._undo.append((self._changed, self.buckets.copy()))
        self._order = None
        self._changed = {k: r for k, r in self._changed.items() if not start <= k < end}
        self._cleared.append((start, end))
        self.ops.append((DELETE_RANGE, DATA, start, end))
        # One range may cover all types of a run: each of its buckets was written.
        prefix = start[: start.index(0)]
        self.buckets.update(b"%b\0%c" % (prefix, tag) for tag in TypeTag)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Take back all that happens inside if it raises: then the workspace is as it was."""
        outer = self._undo
        undo: list[tuple[Any, ...]] = []
        sizes = len(self.ops), len(self.new_fences), len(self._cleared)
        weight = self._weight
        marks = self.new_marks.copy()
        self._undo = undo
        try:
            yield
        except BaseException:
            self._undo = outer
            self._weight = weight
            self._restore(undo, sizes, marks)
            raise
        self._undo = outer
        if outer is not None:
            outer += undo

    def _remember(self, key: bytes, bucket: bytes) -> None:
        assert self._undo is not None
        self._undo.append((
            key, self._changed.get(key, _UNCHANGED), bucket, bucket in self.buckets, self._highest.get(bucket)
        ))

    def _restore(
        self, undo: list[tuple[Any, ...]], sizes: tuple[int, int, int], marks: dict[bytes, bytes | None]
    ) -> None:
        for before in reversed(undo):
            if len(before) == 2:  # of a range
                self._changed, self.buckets = before
                continue
            key, record, bucket, was_written, highest = before
            if record == _UNCHANGED:
                self._changed.pop(key, None)
            else:
                self._changed[key] = record
            if not was_written:
                self.buckets.discard(bucket)
            if highest is None:
                self._highest.pop(bucket, None)
            else:
                self._highest[bucket] = highest
        self._order = None
        self.new_marks = marks
        for taken_back, size in zip((self.ops, self.new_fences, self._cleared), sizes, strict=True):
            del taken_back[size:]  # type: ignore[attr-defined]

    def is_unwritten(self, start: bytes, version: int) -> bool:
        """Whether surely nothing of the type that a range is of was written since a version."""
        return self._recent is not None and self._recent.last(bucket_of(start)) <= version

    def check_order(self, key: bytes) -> None:
        """Refuse a call that was made before a later commit gave a time to something of the same type.

        Times that the store gives never go back within a run (or a namespace, for its runs). A call that
        a transaction has run carries the time at which it did so, and others may have committed since.

        Raises:
            ConflictError: they have.
        """
        if self.stamp_us < self.now_us and self._recent is not None:
            bucket = bucket_of(key)
            if not self._recent.is_unwritten_since(bucket, self.stamp_us):
                raise ConflictError(
                    f"something of the type of {Key(key)!r} was committed after the time of this", key=key
                )

    def fence(self, owner: bytes) -> None:
        """Close a run for good: no later commit writes into it."""
        digest = fence_of(owner)
        self.new_fences.append(digest)
        self.ops.append((PUT, int(Table.FENCES), digest, self.version.to_bytes(8, "big")))

    def is_fenced(self, owner: bytes) -> bool:
        """Whether a run was deleted."""
        digest = fence_of(owner)
        return digest in self._fences or digest in self.new_fences

    def mark(self, owner: bytes) -> bytes | None:
        """The mark of the import of a run, None if it is not being imported."""
        digest = fence_of(owner)
        return self.new_marks[digest] if digest in self.new_marks else self._marks.get(digest)

    def set_mark(self, owner: bytes, mark: bytes | None) -> None:
        """Close a run to all but its import, or with None open it again."""
        digest = fence_of(owner)
        self.new_marks[digest] = mark
        fences = int(Table.FENCES)
        self.ops.append((DELETE, fences, digest) if mark is None else (PUT, fences, digest, mark))

    @contextmanager
    def admitted(self, owner: bytes) -> Iterator[None]:
        """Let writes into a run that is being imported pass: they are the import's."""
        self._admitted = fence_of(owner)
        try:
            yield
        finally:
            self._admitted = None

    def check_open(self, key: bytes) -> None:
        """Refuse work on a key of a deleted run, or of one that is being imported by others.

        Raises:
            RunDeletedError: names the run.
            BusyError: names the run, which is not whole yet.
        """
        if not (self._fences or self.new_fences or self._marks or self.new_marks):
            return
        digest = fence_of(owner := owner_of(key))
        if digest in self._fences or digest in self.new_fences:
            run_id = owner.decode(errors="replace").rpartition("/")[2]
            raise RunDeletedError(f"run {run_id} was deleted: {Key(key)!r} is not written", run_id=run_id)
        if digest != self._admitted and self.mark(owner) is not None:
            run_id = owner.decode(errors="replace").rpartition("/")[2]
            raise BusyError(
                f"run {run_id} is being imported: {Key(key)!r} is not written", what=f"run {run_id}",
                hint="Wait for the import. One that was killed is finished by importing the file again, "
                "and given up with: inmem import --discard RUN.",
            )
