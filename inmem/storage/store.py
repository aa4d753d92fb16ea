"""The store: the image, opened by its one writer.

Invariant: a store transaction changes the image whole or not at all. With it
a position is published: commit version, checksum of the log record that led
there, and store time. This module knows bytes, tables and sizes, no types.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb
import msgpack

from inmem.errors import StoreFullError
from inmem.host.directory import file_system
from inmem.record import expires_at, is_live, timestamp_of
from inmem.storage.environment import PAGE_BYTES, Table, open_for_writing, open_without_name
from inmem.storage.position import POSITION_KEY, Position, unpack_position
from inmem.storage.prepared_map import PreparedMap
from inmem.storage.purges import (
    Purge,
    is_dead,
    pack,
    prefix_of,
    purge_key,
    read_purges,
    remove_some,
    scan_living,
    whole_prefix,
)
from inmem.storage.snapshot import VERSION_KEY, scan
from inmem.storage.unusable import unusable
from inmem.storage.wal.format import DELETE, DELETE_RANGE, PUT

ENTRY_OVERHEAD: Final = 16  # node header and pointer of LMDB, rounded up
SMALL_ENTRY: Final = PAGE_BYTES // 2 - 64  # up to here, key included, an entry shares its page with others
_DELETE_HEADROOM: Final = 16  # a sixteenth of the quota is reserved for commits that only delete
_UPKEEP_PART: Final = 32  # half of that may be taken for upkeep
_LOAD_FRAMES: Final = 32  # of a checkpoint, about a MiB each, in one store transaction
_SLACK: Final = 8  # an eighth of the quota, or half of the live bytes, may be pinned by old snapshots
_STUCK_TRANSACTIONS: Final = 64  # a snapshot this far behind is not about to end
_FILE_FACTOR: Final = 3  # the file may grow to this many quotas while old snapshots pin pages
_COMMIT_BYTES: Final = 8 * PAGE_BYTES  # what a small commit takes of the map: copies of a path in each table
NEVER_US: Final = 1 << 63  # later than any expiry
_AT_ONCE: Final = 1_000  # records of a deleted range that go with its commit, the others in slices
_AT_ONCE_BYTES: Final = 4 * 1024 * 1024


T = TypeVar("T")

_pack = msgpack.Packer(autoreset=True).pack  # of the one thread that publishes


class PublishError(Exception):
    """The image could not take a transaction; it stays as it was."""

    def __init__(self, error: lmdb.Error) -> None:
        super().__init__(str(error))
        # LMDB reports a write that a full file system cut short as EIO. Memory has no other cause of it.
        self.is_map_full = isinstance(error, lmdb.MapFullError)
        reasons = (os.strerror(errno.ENOSPC), os.strerror(errno.EIO), os.strerror(errno.EFBIG))
        self.is_full = self.is_map_full or str(error).endswith(reasons)


def entry_bytes(key: bytes, value: bytes) -> int:
    """Bytes of an entry in the image, without the space that half-filled pages waste."""
    size = len(key) + len(value) + ENTRY_OVERHEAD
    if len(value) > SMALL_ENTRY:  # LMDB puts it on pages of its own
        return len(key) + 64 + -(-len(value) // PAGE_BYTES) * PAGE_BYTES
    return size


class Store:
    """The image opened for writing; without a path a private one, which ends with the process."""

    def __init__(self, path: Path | None, *, max_readers: int, quota_bytes: int) -> None:
        self.quota_bytes = quota_bytes
        self._max_readers = max_readers
        try:
            if path is None:
                self._env, self._tables = open_without_name()
            else:
                self._env, self._tables = open_for_writing(path, max_readers)
            self.path = path = path or Path("private image")
        except lmdb.Error as error:
            raise unusable(error, path or "in private memory") from error
        self._map: PreparedMap | None = None
        self._room = 0  # bytes of the map that may be used before its room is looked at again
        self._budget = 0  # bytes that may be added before the next `measure`
        self.expires = False  # whether any record may expire: then each write reads what it replaces
        self.next_expiry_us = NEVER_US  # no record expires before
        self.live_bytes = 0
        self.announce: Callable[[bool], None] = _tell_nobody  # before readers may see purges, after the last
        with self._env.begin(self._tables[Table.META]) as txn:
            self.position = unpack_position(txn.get(POSITION_KEY), path)
            self.purges = read_purges(txn, self._tables[Table.META])
        self._find_next_expiry()
        self.measure()

    def begin(self) -> StoreTransaction:
        """Begin the one write transaction; publish or abort it."""
        self._room -= _COMMIT_BYTES
        if self._room < 0 and self._map is not None:
            self._room = self._map.look()
        return StoreTransaction(self, self._env.begin(self._tables[Table.DATA], write=True))

    def write_through_map(self) -> None:
        """Write through a map from now on, where the image is in memory and there is enough of it.

        Only without a transaction. Cost: a millisecond, and 15 µs for each MiB.
        """
        file = self.files[0]
        try:
            if file_system(file.stat().st_dev) != "tmpfs":
                return  # on a disk each first write to a page would go through the file system
            prepared = PreparedMap(file, self.file_bytes)
        except OSError:
            return
        self._env.close()
        self._env, self._tables = open_for_writing(self.path, self._max_readers, prepared.size)
        prepared.attach(self._env)
        self._map = prepared
        self._room = 0

    def with_room(self, step: Callable[[], T]) -> T:
        """The result of a step that is one transaction, which is tried again where the map has no room.

        Raises:
            PublishError: it fails otherwise, or the map cannot grow.
        """
        while True:
            try:
                return step()
            except PublishError as error:
                if not self.grow(error):
                    raise

    def grow(self, error: PublishError) -> bool:
        """Whether the map was too small for what failed, and is larger now. Only without a transaction."""
        return error.is_map_full and self._map is not None and self._map.grow()

    def load(self, frames: Iterable[tuple[Table, list[tuple[bytes, bytes]]]], position: Position) -> None:
        """Fill an empty image with entries in the order of their keys, then set its position.

        Several transactions bound the dirty pages. The position is set by the
        last, so an image that was filled in part has none. Cost: 0.3 µs an entry.

        Raises:
            PublishError: the memory behind the image is full.
        """
        txn = self._env.begin(write=True)
        held = 0
        try:
            for table, items in frames:
                if held >= _LOAD_FRAMES:
                    txn.commit()
                    txn, held = self._env.begin(write=True), 0
                txn.cursor(self._tables[table]).putmulti(items, append=True)
                held += 1
            txn.commit()
        except lmdb.Error as error:
            raise PublishError(error) from error
        self.begin().publish(position)
        self._find_next_expiry()
        self.measure()

    def _find_next_expiry(self) -> None:
        with self._env.begin(self._tables[Table.EXPIRY]) as txn:
            cursor = txn.cursor()
            self.next_expiry_us = int.from_bytes(cursor.key()[:8], "big") if cursor.first() else NEVER_US

    def copy_to(self, path: Path) -> Store:
        """A compact copy of this store in another image directory. Cost: about 1 ns a byte.

        Raises:
            PublishError: the memory is full; what was copied stays there.
        """
        try:
            self._env.copy(str(path), compact=True)
        except lmdb.Error as error:
            raise PublishError(error) from error
        copy = Store(path, max_readers=self._max_readers, quota_bytes=self.quota_bytes)
        copy.announce = self.announce
        if self._map is not None:
            copy.write_through_map()
        return copy

    @property
    def files(self) -> tuple[Path, Path]:
        """The files of the image."""
        return self.path / "data.mdb", self.path / "lock.mdb"

    def touch(self) -> None:
        """Let the time of the image's file tell that it was used now."""
        if self._map is not None:
            self._map.touch()

    def is_pinned(self) -> bool:
        """Whether the file has grown far beyond its content because of an old snapshot.

        Cost: 1 µs, or about 30 µs where the file is that large.
        """
        if self._has_slack():
            return False
        self.measure()
        if self._has_slack():
            return False
        pinned = self.oldest_pinned()
        return pinned is not None and pinned < self.last_transaction() - _STUCK_TRANSACTIONS

    def _has_slack(self) -> bool:
        slack = max(self.quota_bytes // _SLACK, self.live_bytes // 2)
        return self.file_bytes - self.live_bytes <= slack

    def purge(self, limit: int) -> int:
        """Remove some of what is left of deleted ranges, without a version of its own; how many entries.

        Raises:
            PublishError: there is no room to copy pages to; nothing has changed.
        """
        return self.with_room(lambda: self._purge(limit))

    def _purge(self, limit: int) -> int:
        prefix, purge = next(iter(self.purges.items()))
        txn = self._env.begin(write=True, buffers=True)
        try:
            looked = remove_some(txn, self._tables, prefix, purge, limit)
            purges = read_purges(txn, self._tables[Table.META])
            txn.commit()
        except lmdb.Error as error:
            txn.abort()
            raise PublishError(error) from error
        except BaseException:
            txn.abort()
            raise
        self.purges = purges
        if not purges:
            self.announce(False)
        return looked

    def is_tight(self) -> bool:
        """Whether three quarters of the quota are in use, what is left of deleted runs too. Cost: 5 µs."""
        self.measure()
        return self.live_bytes > self.quota_bytes * 3 // 4

    def items(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a table."""
        with self._env.begin(self._tables[table]) as txn:
            yield from txn.cursor()

    def admit(self, added: int, *, is_upkeep: bool = False) -> None:
        """Count bytes that a commit is about to add against the quota, before anything is logged.

        Raises:
            StoreFullError: the quota has no room, or old snapshots pin so
                much that the file must not grow.
        """
        least = -(self.quota_bytes // _UPKEEP_PART) if is_upkeep else 0
        self._budget -= added * 2  # a split page is half full
        self._room -= added * 2
        if self._budget < least:
            self.measure()
            self._budget -= added * 2
            if self._budget < least:
                self._budget += added * 2
                raise StoreFullError(
                    f"{added} bytes do not fit: {self.live_bytes} of {self.quota_bytes} bytes are in use",
                    used_bytes=self.live_bytes, quota_bytes=self.quota_bytes,
                )

    def measure(self) -> None:
        """Read the sizes of tables and file. Cost: about 5 µs."""
        with self._env.begin() as txn:
            pages = 0
            for table, database in self._tables.items():
                stat = txn.stat(database)
                # Never back to False: an open write transaction may add the first of them.
                self.expires |= table == Table.EXPIRY and stat["entries"] > 0
                pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        self.live_bytes = pages * PAGE_BYTES
        headroom = self.quota_bytes // _DELETE_HEADROOM
        file_left = _FILE_FACTOR * self.quota_bytes - self.file_bytes
        self._budget = min(self.quota_bytes - headroom - self.live_bytes, file_left)

    @property
    def file_bytes(self) -> int:
        """The size of the image's file, with what old snapshots pin."""
        size: int = (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
        return size

    def last_transaction(self) -> int:
        """LMDB's number of the last published transaction."""
        number: int = self._env.info()["last_txnid"]
        return number

    def oldest_pinned(self) -> int | None:
        """The transaction of the oldest open snapshot; None without any."""
        ids = [
            int(parts[2])
            for parts in (line.split() for line in self._env.readers().splitlines()[1:])
            if len(parts) == 3 and parts[2].isdigit()
        ]
        return min(ids, default=None)

    def free_dead_readers(self) -> int:
        """Free the reader slots of dead processes; returns how many."""
        count: int = self._env.reader_check()
        return count

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
        if self._map is not None:
            self._map.close()
            self._map = None


def _tell_nobody(_: bool) -> None:
    pass


def _expiry_entry(key: bytes, record: bytes) -> bytes:
    """The key of a record in the table of expiries."""
    return expires_at(record).to_bytes(8, "big") + key


class StoreTransaction:
    """Changes that `publish` makes visible together, or `abort` drops."""

    __slots__ = ("_purges", "_store", "_tables", "_txn", "get")

    def __init__(self, store: Store, txn: Any) -> None:
        self._store = store
        self._txn = txn
        self._tables = store._tables
        self._purges = store.purges
        # (key) -> record | None, of table DATA
        self.get: Callable[[bytes], bytes | None] = self._get_living if store.purges else txn.get

    def _get_living(self, key: bytes) -> bytes | None:
        record: bytes | None = self._txn.get(key)
        return None if record is not None and is_dead(self._purges, key, record) else record

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records of `[start, end)` of table DATA; not during `apply`."""
        if self._purges:
            return scan_living(self._txn.cursor(), self._purges, start, end, reverse)
        return scan(self._txn.cursor(), start, end, reverse)

    def sweep(self, now_us: int, limit: int) -> tuple[int, list[Any]]:
        """Remove up to `limit` records that have expired: how many entries were due, and the operations.

        Raises:
            PublishError: as `apply` does.
        """
        looked, ops = 0, []
        data, delete = self._tables[Table.DATA], self._txn.delete
        try:
            cursor = self._txn.cursor(self._tables[Table.EXPIRY])
            found = cursor.first()
            while found and looked < limit:
                entry = cursor.key()
                if int.from_bytes(entry[:8], "big") > now_us:
                    break
                key = entry[8:]
                record = self.get(key)
                if record is not None and not is_live(record, now_us):
                    delete(key, db=data)
                    ops.append((DELETE, 0, key))
                cursor.delete()  # and moves to the next entry
                looked += 1
                found = bool(cursor.key())
            self._store.next_expiry_us = int.from_bytes(cursor.key()[:8], "big") if found else NEVER_US
        except lmdb.Error as error:  # a removal copies a page, and there may be no room for that
            raise PublishError(error) from error
        return looked, ops

    def future_expiries(self, now_us: int) -> list[tuple[bytes, bytes]]:
        """The records that expire, of those that were written later than now: keys and records."""
        keys = (bytes(entry[8:]) for entry, _ in self._txn.cursor(self._tables[Table.EXPIRY]))
        found = ((key, record) for key in keys if (record := self.get(key)) is not None)
        return [(key, record) for key, record in found if timestamp_of(record) > now_us]

    def apply(self, ops: Sequence[Any], version: int = 0) -> None:
        """Apply resolved operations, in order.

        As a commit of this version: then large ranges are gone at once, but their space comes back later.

        Raises:
            PublishError: the image is full; the transaction can only be aborted.
        """
        replace, pop, tables = self._txn.replace, self._txn.pop, self._tables
        put, delete, store = self._txn.put, self._txn.delete, self._store
        try:
            for op in ops:
                kind, table = op[0], op[1]
                if kind == DELETE_RANGE:
                    self._delete_range(op, ops, version)
                    continue
                assert kind in (PUT, DELETE)
                if table != 0:
                    if kind == PUT:
                        put(op[2], op[3], db=tables[table])
                    else:
                        delete(op[2], db=tables[table])
                    continue
                if not (store.expires or (kind == PUT and op[3][0] & 0x80)):
                    if kind == PUT:
                        put(op[2], op[3])
                    else:
                        delete(op[2])
                    continue
                # Keep the table of expiries exact: an entry goes with the value that it was for.
                store.expires = True
                expiry = tables[Table.EXPIRY]
                old = replace(op[2], op[3]) if kind == PUT else pop(op[2])
                if old is not None and old[0] & 0x80:
                    delete(_expiry_entry(op[2], old), db=expiry)
                if kind == PUT and op[3][0] & 0x80:
                    put(_expiry_entry(op[2], op[3]), b"", db=expiry)
                    if (expiry_us := expires_at(op[3])) < store.next_expiry_us:
                        store.next_expiry_us = expiry_us
            if self._purges:
                self._note_new(ops)
        except lmdb.Error as error:
            raise PublishError(error) from error

    def _delete_range(self, op: Any, ops: Sequence[Any], version: int) -> None:
        _, table, start, end = op
        prefix = whole_prefix(start, end) if version and table == 0 else None
        cursor = self._txn.cursor(self._tables[Table(table)])
        if not cursor.set_range(start):
            return
        removed = size = 0
        while (key := cursor.key()) and key < end:
            if prefix is not None and (removed >= _AT_ONCE or size >= _AT_ONCE_BYTES):
                break
            if table == 0:
                record = cursor.value()
                size += len(record)
                if record[0] & 0x80:
                    self._txn.delete(_expiry_entry(key, record), db=self._tables[Table.EXPIRY])
            cursor.delete()  # and moves to the next entry
            removed += 1
        else:
            return
        for before in ops:  # what this very commit has put there is of its version, and not dead by that
            if before is op:
                break
            if before[0] == PUT and before[1] == 0 and start <= before[2] < end:
                old = self._txn.pop(before[2])
                if old is not None and old[0] & 0x80:
                    self._txn.delete(_expiry_entry(before[2], old), db=self._tables[Table.EXPIRY])
        self._set_purge(prefix, Purge(version, key))

    def _note_new(self, ops: Sequence[Any]) -> None:
        """What is stored under the prefix of a purge is living: its dead ones cannot be passed at once."""
        for op in ops:
            if op[0] == PUT and op[1] == 0:
                purge = self._purges.get(prefix := prefix_of(op[2]))
                if purge is not None and not purge.is_mixed:
                    self._set_purge(prefix, purge._replace(is_mixed=True))

    def _set_purge(self, prefix: bytes, purge: Purge) -> None:
        self._txn.put(purge_key(prefix), pack(purge), db=self._tables[Table.META])
        self._purges = {**self._purges, prefix: purge}
        self.get = self._get_living

    def publish(self, position: Position) -> None:
        """Commit with a position: from now on every reader sees the changes.

        Raises:
            PublishError: the image could not be written, and is as it was.
        """
        meta = self._tables[Table.META]
        data = _pack(position)
        store = self._store
        has_new = self._purges is not store.purges
        if has_new:
            store.announce(True)
        try:
            self._txn.put(VERSION_KEY, position.version.to_bytes(8, "big"), db=meta)
            self._txn.put(POSITION_KEY, data, db=meta)
            self._txn.commit()
        except lmdb.Error as error:
            if has_new:
                store.announce(bool(store.purges))
            raise PublishError(error) from error
        store.position = position
        store.purges = self._purges

    def abort(self) -> None:
        """Drop everything."""
        self._txn.abort()
