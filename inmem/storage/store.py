"""The store: the image, opened by its one writer.

Invariant: a store transaction changes the image whole or not at all. With it
a position is published: commit version, checksum of the log record that led
there, and store time. This module knows bytes, tables and sizes, no types.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import msgpack

from inmem.errors import CorruptionError, StoreFullError
from inmem.record import expires_at
from inmem.storage.environment import PAGE_BYTES, Table, open_for_writing
from inmem.storage.snapshot import VERSION_KEY, scan
from inmem.storage.unusable import unusable
from inmem.storage.wal.format import DELETE, DELETE_RANGE, PUT

POSITION_KEY: Final = b"position"
_ENTRY_OVERHEAD: Final = 16  # node header and pointer of LMDB, rounded up
_DELETE_HEADROOM: Final = 16  # a sixteenth of the quota is reserved for commits that only delete
_LOAD_FRAMES: Final = 32  # of a checkpoint, about a MiB each, in one store transaction
_SLACK: Final = 8  # an eighth of the quota, or half of the live bytes, may be pinned by old snapshots
_STUCK_TRANSACTIONS: Final = 64  # a snapshot this far behind is not about to end
_FILE_FACTOR: Final = 3  # the file may grow to this many quotas while old snapshots pin pages


_pack = msgpack.Packer(autoreset=True).pack  # of the one thread that publishes


class PublishError(Exception):
    """The image could not take a transaction; it stays as it was."""

    def __init__(self, error: lmdb.Error) -> None:
        super().__init__(str(error))
        # LMDB reports a write that a full file system cut short as EIO. Memory has no other cause of it.
        reasons = (os.strerror(errno.ENOSPC), os.strerror(errno.EIO))
        self.is_full = isinstance(error, lmdb.MapFullError) or str(error).endswith(reasons)


def entry_bytes(key: bytes, value: bytes) -> int:
    """Bytes of an entry in the image, without the space that half-filled pages waste."""
    size = len(key) + len(value) + _ENTRY_OVERHEAD
    if len(value) > PAGE_BYTES // 2 - 64:  # LMDB puts it on pages of its own
        return len(key) + 64 + -(-len(value) // PAGE_BYTES) * PAGE_BYTES
    return size


class Store:
    """The image opened for writing."""

    def __init__(self, path: Path, *, max_readers: int, quota_bytes: int) -> None:
        self.path = path
        self.quota_bytes = quota_bytes
        self._max_readers = max_readers
        try:
            self._env, self._tables = open_for_writing(path, max_readers)
        except lmdb.Error as error:
            raise unusable(error, path) from error
        self._budget = 0  # bytes that may be added before the next `measure`
        self.expires = False  # whether any record may expire: then each write reads what it replaces
        self.live_bytes = 0
        with self._env.begin(self._tables[Table.META]) as txn:
            self.position = unpack_position(txn.get(POSITION_KEY), path)
        self.measure()

    def begin(self) -> StoreTransaction:
        """Begin the one write transaction; publish or abort it."""
        return StoreTransaction(self, self._env.begin(self._tables[Table.DATA], write=True))

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
        self.measure()

    def copy_to(self, path: Path) -> Store:
        """A compact copy of this store in another image directory. Cost: about 1 ns a byte.

        Raises:
            PublishError: the memory is full; what was copied stays there.
        """
        try:
            self._env.copy(str(path), compact=True)
        except lmdb.Error as error:
            raise PublishError(error) from error
        return Store(path, max_readers=self._max_readers, quota_bytes=self.quota_bytes)

    @property
    def files(self) -> tuple[Path, Path]:
        """The files of the image."""
        return self.path / "data.mdb", self.path / "lock.mdb"

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

    def items(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a table."""
        with self._env.begin(self._tables[table]) as txn:
            yield from txn.cursor()

    def admit(self, added: int) -> None:
        """Count bytes that a commit is about to add against the quota.

        Call it before anything is logged: if publishing fails, the log has to be cut.

        Raises:
            StoreFullError: the quota has no room, or old snapshots pin so
                much that the file must not grow.
        """
        self._budget -= added * 2  # a split page is half full
        if self._budget < 0:
            self.measure()
            self._budget -= added * 2
            if self._budget < 0:
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


class Position(NamedTuple):
    """The version that an image holds, and whose image it is."""

    version: int
    checksum: int  # of the log record that led here
    clock_us: int
    epoch: int
    owner: tuple[Any, ...]  # database id, boot id, device and inode of the data directory


def unpack_position(data: bytes | None, path: Path) -> Position | None:
    """The position stored in an image; None if nothing was published in it."""
    if data is None:
        return None
    try:
        version, checksum, clock_us, epoch, owner = msgpack.unpackb(data)
        return Position(version, checksum, clock_us, epoch, tuple(owner))
    except ValueError as error:
        raise CorruptionError(f"{path}: position {error}", file=str(path), offset=0) from None


def _expiry_entry(key: bytes, record: bytes) -> bytes:
    """The key of a record in the table of expiries."""
    return expires_at(record).to_bytes(8, "big") + key


class StoreTransaction:
    """Changes that `publish` makes visible together, or `abort` drops."""

    __slots__ = ("_cursor", "_store", "_tables", "_txn", "get")

    def __init__(self, store: Store, txn: Any) -> None:
        self._store = store
        self._txn = txn
        self._tables = store._tables
        self._cursor: Any = None
        self.get = txn.get  # (key) -> record | None, of table DATA

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records of `[start, end)` of table DATA; not during `apply`."""
        return scan(self._txn.cursor(), start, end, reverse)

    def expired(self, now_us: int, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` due entries of the table of expiries: (entry, key)."""
        due: list[tuple[bytes, bytes]] = []
        for entry, _ in self._txn.cursor(self._tables[Table.EXPIRY]):
            if int.from_bytes(entry[:8], "big") > now_us or len(due) >= limit:
                break
            due.append((entry, entry[8:]))
        return due

    def drop_expiry(self, entry: bytes) -> None:
        """Remove one entry of the table of expiries.

        Raises:
            PublishError: as `apply` does.
        """
        try:
            self._txn.delete(entry, db=self._tables[Table.EXPIRY])
        except lmdb.Error as error:  # a removal copies a page, and there may be no room for that
            raise PublishError(error) from error

    def apply(self, ops: Iterable[Any]) -> None:
        """Apply resolved operations, in order.

        Raises:
            PublishError: the image is full; the transaction can only be aborted.
        """
        replace, pop, tables = self._txn.replace, self._txn.pop, self._tables
        put, delete, store = self._txn.put, self._txn.delete, self._store
        try:
            for op in ops:
                kind, table = op[0], op[1]
                if kind == DELETE_RANGE:
                    self._delete_range(table, op[2], op[3])
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
        except lmdb.Error as error:
            raise PublishError(error) from error

    def _delete_range(self, table: int, start: bytes, end: bytes) -> None:
        cursor = self._txn.cursor(self._tables[Table(table)])
        if not cursor.set_range(start):
            return
        while (key := cursor.key()) and key < end:
            if table == 0 and (record := cursor.value())[0] & 0x80:
                self._txn.delete(_expiry_entry(key, record), db=self._tables[Table.EXPIRY])
            cursor.delete()  # and moves to the next entry

    def publish(self, position: Position) -> None:
        """Commit with a position: from now on every reader sees the changes.

        Raises:
            PublishError: the image could not be written, and is as it was.
        """
        meta = self._tables[Table.META]
        data = _pack(position)
        try:
            self._txn.put(VERSION_KEY, position.version.to_bytes(8, "big"), db=meta)
            self._txn.put(POSITION_KEY, data, db=meta)
            self._txn.commit()
        except lmdb.Error as error:
            raise PublishError(error) from error
        self._store.position = position

    def abort(self) -> None:
        """Drop everything."""
        self._txn.abort()
