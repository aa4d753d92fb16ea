"""Purges: what is left in the image of ranges that were deleted, and that nobody sees any more.

Invariant: a record under the prefix of a purge is dead if an earlier version
than that of the purge wrote it, for every reader and for the writer. So a run
is gone in one commit however much it held, its space comes back in slices,
and what is stored anew under the same prefix is seen at once.

Purges are of the image alone, in its table META: `purge 0x00 prefix` has the
version of the deletion, 8 bytes, a byte that is 1 if something was stored anew
since, and the key from which on records may be dead. The log holds the
deletion as one operation, which a replay does at once, and no copy of an image
for a checkpoint or a backup has dead records. So a slice is no commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from inmem.record import expires_at, version_of
from inmem.storage.environment import Table

_HEAD: Final = b"purge\0"
_SLICE_BYTES: Final = 16 * 1024 * 1024  # of large values in one slice: their pages go one by one


class Purge(NamedTuple):
    """Records of earlier versions than this are dead, from a key on; all of them unless it is mixed."""

    version: int
    start: bytes
    is_mixed: bool = False


Purges = Mapping[bytes, Purge]  # by prefix


def purge_key(prefix: bytes) -> bytes:
    """Where the purge of a prefix is in META."""
    return _HEAD + prefix


def is_purge(key: bytes) -> bool:
    """Whether a key of META is that of a purge."""
    return key.startswith(_HEAD)


def pack(purge: Purge) -> bytes:
    """The value of a purge."""
    return b"%b%c%b" % (purge.version.to_bytes(8, "big"), purge.is_mixed, purge.start)


def unpack(value: bytes) -> Purge:
    """The purge of a value."""
    return Purge(int.from_bytes(value[:8], "big"), bytes(value[9:]), value[8] == 1)


def read_purges(txn: Any, meta: Any) -> dict[bytes, Purge]:
    """All purges that a transaction sees. Cost: 1 µs without any."""
    found: dict[bytes, Purge] = {}
    cursor = txn.cursor(meta)
    if cursor.set_range(_HEAD):
        for key, value in cursor:
            name = bytes(key)
            if not is_purge(name):
                break
            found[name[len(_HEAD) :]] = unpack(value)
    return found


def prefix_of(key: bytes) -> bytes:
    """The prefix that a key of DATA is under."""
    return key.partition(b"\0")[0]


def is_dead(purges: Purges, key: bytes, record: bytes) -> bool:
    """Whether a record is left of what was deleted."""
    purge = purges.get(prefix_of(key))
    return purge is not None and version_of(record) < purge.version


def scan_living(
    cursor: Any, purges: Purges, start: bytes, end: bytes, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Walk `[start, end)` of DATA without the dead records, and past all those of a run at once."""
    found = cursor.set_range(end if reverse else start)
    if reverse:
        found = cursor.prev() if found else cursor.last()
    while found:
        for key, record in cursor.iterprev() if reverse else cursor:
            if key < start or key >= end:
                return
            prefix = prefix_of(key)
            purge = purges.get(prefix)
            if purge is None or version_of(record) >= purge.version:
                yield key, record
            elif not purge.is_mixed:
                found = cursor.set_range(prefix + (b"\0" if reverse else b"\1"))
                if reverse:
                    found = cursor.prev() if found else cursor.last()
                break
        else:
            return


def living(purges: Purges, items: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and records without the dead ones."""
    return (item for item in items if not is_dead(purges, *item))


def living_expiries(
    purges: Purges, items: Iterator[tuple[bytes, bytes]], txn: Any, data: Any
) -> Iterator[tuple[bytes, bytes]]:
    """Entries of the table of expiries without those of dead records."""
    for entry, value in items:
        key = bytes(entry[8:])
        if prefix_of(key) in purges and (record := txn.get(key, db=data)) and is_dead(purges, key, record):
            continue
        yield entry, value


def whole_prefix(start: bytes, end: bytes) -> bytes | None:
    """The prefix that a range is all of; None if it is another range."""
    prefix = start[:-1]
    return prefix if start == prefix + b"\0" and end == prefix + b"\1" and b"\0" not in prefix else None


def remove_some(txn: Any, tables: Mapping[Table, Any], prefix: bytes, purge: Purge, limit: int) -> int:
    """Remove up to `limit` dead records; how many entries were looked at. `txn` gives buffers.

    Fewer than `limit` (or the bytes of a slice): the purge is done, and its entry gone.
    """
    cursor = txn.cursor(tables[Table.DATA])
    meta, expiry = tables[Table.META], tables[Table.EXPIRY]
    looked = size = 0
    found = cursor.set_range(purge.start)
    end = prefix + b"\1"
    while found and (key := bytes(cursor.key())) < end:
        if looked >= limit or size >= _SLICE_BYTES:
            txn.put(purge_key(prefix), pack(purge._replace(start=key)), db=meta)
            return looked
        record = cursor.value()
        looked += 1
        if version_of(record) >= purge.version:  # stored anew
            found = cursor.next()
            continue
        size += len(record)
        if record[0] & 0x80:
            txn.delete(expires_at(record).to_bytes(8, "big") + key, db=expiry)
        cursor.delete()  # and moves to the next entry
        found = bool(cursor.key())
    txn.delete(purge_key(prefix), db=meta)
    return looked
