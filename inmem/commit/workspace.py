"""The workspace of one commit: current state, plus what this commit does to it.

Invariant: nothing leaves a workspace until its commit has been decided, so a
commit that fails halfway is dropped without a trace. Procedures see it as
their only world; they get time and version from it and have no others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import xxhash

from inmem.errors import RunDeletedError
from inmem.keys import Key, TypeTag, bucket_of, owner_of
from inmem.record import is_live, pack, payload_of
from inmem.storage.environment import Table
from inmem.storage.wal_format import DELETE, DELETE_RANGE, PUT

DATA = int(Table.DATA)


class BaseState(Protocol):
    """The store transaction, as far as a commit reads it."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]: ...


def fence_of(owner: bytes) -> bytes:
    """The digest under which a deleted run is remembered for good."""
    return xxhash.xxh3_128_digest(owner)


class Workspace:
    """What procedures work on."""

    def __init__(
        self, base: BaseState, fences: Collection[bytes], *, version: int, now_us: int, chain: int
    ) -> None:
        self._base = base
        self._fences = fences
        self.version = version
        self.now_us = now_us
        self.chain = chain
        self.ops: list[tuple[Any, ...]] = []
        self.buckets: set[bytes] = set()
        self.new_fences: list[bytes] = []
        self._changed: dict[bytes, bytes | None] = {}
        self._cleared: list[tuple[bytes, bytes]] = []
        self._highest: dict[bytes, bytes] = {}  # the last key put in each bucket: `last` without a walk

    def get(self, key: bytes) -> bytes | None:
        """The payload under a key, None if absent or expired."""
        record = self.record(key)
        return None if record is None else payload_of(record)

    def record(self, key: bytes) -> bytes | None:
        """The live record under a key."""
        if key in self._changed:
            record = self._changed[key]
        elif any(start <= key < end for start, end in self._cleared):
            record = None
        else:
            record = self._base.get(key)
        return record if record is not None and is_live(record, self.now_us) else None

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Key and payload of the last live record in a range."""
        mine: bytes | None = self._highest.get(bucket_of(start))
        if mine is None or not start <= mine < end or self._changed.get(mine) is None:
            # Not what the shortcut is for: look at all.
            written = (k for k, r in self._changed.items() if r is not None and start <= k < end)
            mine = max(written, default=None)
        for key, record in self._base.scan(start, end, reverse=True):
            if mine is not None and mine >= key:
                break
            if self.record(key) is not None:
                return key, payload_of(record)
        return None if mine is None else (mine, payload_of(self._changed[mine] or b""))

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and payloads of the live records in a range, in key order."""
        mine = sorted(k for k, r in self._changed.items() if r is not None and start <= k < end)
        at = 0
        for key, _ in self._base.scan(start, end):
            while at < len(mine) and mine[at] < key:
                yield mine[at], payload_of(self._changed[mine[at]] or b"")
                at += 1
            if key not in self._changed and (record := self.record(key)) is not None:
                yield key, payload_of(record)
        for key in mine[at:]:
            yield key, payload_of(self._changed[key] or b"")

    def put(self, key: bytes, payload: bytes, expires_at: int = 0) -> None:
        """Write a record at this commit's version."""
        self.check_open(key)
        record = pack(self.version, self.now_us, expires_at, payload)
        self._changed[key] = record
        self.ops.append((PUT, DATA, key, record))
        bucket = bucket_of(key)
        self.buckets.add(bucket)
        if key > self._highest.get(bucket, b""):
            self._highest[bucket] = key

    def delete(self, key: bytes) -> None:
        """Remove a record."""
        self.check_open(key)
        self._changed[key] = None
        self.ops.append((DELETE, DATA, key))
        self.buckets.add(bucket_of(key))

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Remove all records of a range in one operation."""
        self.check_open(start)
        self._changed = {k: r for k, r in self._changed.items() if not start <= k < end}
        self._cleared.append((start, end))
        self.ops.append((DELETE_RANGE, DATA, start, end))
        # One range may cover all types of a run: each of its buckets was written.
        prefix = start[: start.index(0)]
        self.buckets.update(b"%b\0%c" % (prefix, tag) for tag in TypeTag)

    def fence(self, owner: bytes) -> None:
        """Close a run for good: no later commit writes into it."""
        digest = fence_of(owner)
        self.new_fences.append(digest)
        self.ops.append((PUT, int(Table.FENCES), digest, self.version.to_bytes(8, "big")))

    def is_fenced(self, owner: bytes) -> bool:
        """Whether a run was deleted."""
        digest = fence_of(owner)
        return digest in self._fences or digest in self.new_fences

    def check_open(self, key: bytes) -> None:
        """Refuse work on a key of a deleted run.

        Raises:
            RunDeletedError: names the run.
        """
        if not self._fences and not self.new_fences:
            return
        digest = fence_of(owner := owner_of(key))
        if digest in self._fences or digest in self.new_fences:
            run_id = owner.decode(errors="replace").rpartition("/")[2]
            raise RunDeletedError(f"run {run_id} was deleted: {Key(key)!r} is not written", run_id=run_id)
