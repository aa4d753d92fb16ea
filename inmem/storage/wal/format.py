"""The byte format of the write-ahead log.

Invariant: a record names its database, epoch and version, the record before
it, and the version that was durable when it was written. Its checksum covers
all of that. This module does no I/O.

All integers are little-endian. A segment is a file of one header and any
number of records, back to back. Zeros where a record should start end the
segment: a file system may extend a file with zeros when the power fails.

Segment header, 64 bytes:

    offset  size  field
    0       8     magic, b"INMEMWAL"
    8       4     format version
    12      4     flags, 0; a reader refuses flags that it does not know
    16      8     segment number, the same as in the file's name
    24      16    database id
    40      8     checksum of the record before this segment's first, 0 for none
    48      8     reserved, zeros; a reader ignores it
    56      8     xxh3_64 of the 56 bytes before

LogRecord, a header of 72 bytes and a payload:

    offset  size  field
    0       4     magic, f1 57 52 0d: no text in UTF-8 holds it
    4       8     xxh3_64 of everything after it, payload included
    12      4     payload length
    16      8     commit version
    24      8     epoch
    32      16    database id
    48      8     the version known durable when this was written
    56      8     checksum of the record before this one
    64      8     store clock, microseconds since the Unix epoch
    72      ...   payload

The payload is a MessagePack array of operations, each an array:

    [0, table, key, value]     PUT
    [1, table, key]            DELETE
    [2, table, start, end]     DELETE_RANGE, half-open

with `table` an int from 0 to 255 and the rest of type bin. The number of an
operation is never given to another one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from inmem.changes import DELETE as DELETE
from inmem.changes import DELETE_RANGE as DELETE_RANGE
from inmem.changes import PUT as PUT
from inmem.changes import Op as Op
from inmem.config import FORMAT_VERSION

SEGMENT_MAGIC: Final = b"INMEMWAL"
RECORD_MAGIC: Final = b"\xf1WR\x0d"
MAX_PAYLOAD_BYTES: Final = 1 << 30  # far above a batch, far below what the length field holds
MAX_TABLE: Final = 255

_SEGMENT: Final = struct.Struct("<8sIIQ16sQ8x")
_CHECKSUM: Final = struct.Struct("<Q")
_RECORD: Final = struct.Struct("<4sQIQQ16sQQQ")
_MARK: Final = struct.Struct("<4sQ")
_BODY: Final = struct.Struct("<IQQ16sQQQ")

SEGMENT_HEADER_BYTES: Final = 64
RECORD_HEADER_BYTES: Final = 72
CHECKSUMMED_FROM: Final = 12  # the first byte of a record that its checksum covers

assert _SEGMENT.size + _CHECKSUM.size == SEGMENT_HEADER_BYTES
assert _RECORD.size == RECORD_HEADER_BYTES
assert _MARK.size == CHECKSUMMED_FROM and _MARK.size + _BODY.size == RECORD_HEADER_BYTES
assert b"\0" not in RECORD_MAGIC, "zeros must never look like the start of a record"

_FIELDS: Final = {PUT: 4, DELETE: 3, DELETE_RANGE: 4}  # elements of each operation

# One packer for the one thread that appends: to build one costs more than to pack a record.
_pack_ops = msgpack.Packer(use_bin_type=True, autoreset=True).pack


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the first bytes of a segment say."""

    format_version: int
    flags: int
    segment: int
    database_id: bytes
    previous: int


class RecordHeader(NamedTuple):
    """The fixed part of a record, as stored. A tuple, as a scan makes one for each record."""

    magic: bytes
    checksum: int
    length: int
    version: int
    epoch: int
    database_id: bytes
    durable_version: int
    previous: int
    clock_us: int


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One verified record, and where it is: bytes `offset` to `end` of `file`."""

    version: int
    epoch: int
    durable_version: int
    previous: int
    checksum: int
    clock_us: int
    ops: list[Op]
    file: str
    offset: int
    end: int


def encode_segment_header(*, segment: int, database_id: bytes, previous: int) -> bytes:
    """The 64 bytes that a segment starts with; `previous` is 0 in the first ever."""
    _check_id(database_id)
    head = _SEGMENT.pack(SEGMENT_MAGIC, FORMAT_VERSION, 0, segment, database_id, previous)
    return head + _CHECKSUM.pack(xxh3_64_intdigest(head))


def decode_segment_header(data: bytes) -> SegmentHeader:
    """The header in the first 64 bytes of `data`.

    The caller checks format version and flags: a header of another version
    is whole, so the file is not damaged.

    Raises:
        ValueError: too short, another magic or a wrong checksum.
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        raise ValueError(f"segment header of {len(data)} bytes, not {SEGMENT_HEADER_BYTES}")
    magic, version, flags, segment, database_id, previous = _SEGMENT.unpack_from(data)
    if magic != SEGMENT_MAGIC:
        raise ValueError("no segment magic")
    (checksum,) = _CHECKSUM.unpack_from(data, _SEGMENT.size)
    if xxh3_64_intdigest(data[: _SEGMENT.size]) != checksum:
        raise ValueError("wrong checksum of the segment header")
    return SegmentHeader(version, flags, segment, database_id, previous)


def encode_record(
    ops: Sequence[Op],
    *,
    version: int,
    epoch: int,
    database_id: bytes,
    durable_version: int,
    previous: int,
    clock_us: int,
) -> tuple[bytes, int]:
    """A record and its checksum, which the next record names as `previous`.

    Cost: about 1 µs and the packing of `ops`. They come from the committer,
    and are not checked.

    Raises:
        ValueError: the payload is beyond 1 GiB.
    """
    payload: bytes = _pack_ops(ops)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}")
    head = _BODY.pack(len(payload), version, epoch, database_id, durable_version, previous, clock_us)
    body = head + payload
    checksum = xxh3_64_intdigest(body)
    return _MARK.pack(RECORD_MAGIC, checksum) + body, checksum


def unpack_record_header(data: bytes, at: int = 0) -> RecordHeader:
    """The 72 bytes at `at` as fields, unverified."""
    return RecordHeader._make(_RECORD.unpack_from(data, at))


def checksum_of(record: bytes | memoryview) -> int:
    """The checksum that a whole record should have."""
    return xxh3_64_intdigest(record[CHECKSUMMED_FROM:])


def decode_ops(payload: bytes | memoryview) -> list[Op]:
    """The operations of a payload, each checked: number, length, types, table.

    Raises:
        ValueError: the payload is not exactly one array of known operations.
    """
    try:
        ops: Any = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"payload is no MessagePack: {error}") from None
    if type(ops) is not tuple:
        raise ValueError(f"payload is a {type(ops).__name__}, not an array")
    for number, op in enumerate(ops):
        # type(), not isinstance(): a bool is an int, and a MessagePack extension is a tuple.
        if type(op) is not tuple or not op or type(op[0]) is not int or len(op) != _FIELDS.get(op[0]):
            raise ValueError(f"operation {number} is not a known one")
        table = op[1]
        if type(table) is not int or not 0 <= table <= MAX_TABLE:
            raise ValueError(f"operation {number} names table {table!r}, not 0 to {MAX_TABLE}")
        if type(op[2]) is not bytes or type(op[-1]) is not bytes:
            raise ValueError(f"operation {number} holds something other than bytes")
    return list(ops)


def _check_id(database_id: bytes) -> None:
    # struct would pad or cut an id of another length without an error.
    if len(database_id) != 16:
        raise ValueError(f"a database id of {len(database_id)} bytes, not 16")
