"""Reading the records of one segment, one after the other.

Invariant: a record is yielded only if it is complete and its checksum is
right; with a chain, only if it follows the record before it. Where no such
record follows, the reason is raised. `scan` and `salvage` decide what that
means.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from inmem.config import FORMAT_VERSION
from inmem.errors import CorruptionError, FormatVersionError
from inmem.storage.wal.files import (
    READ,
    Files,
    Torn,
)
from inmem.storage.wal.format import (
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    LogRecord,
    RecordHeader,
    SegmentHeader,
    checksum_of,
    decode_ops,
    decode_segment_header,
    unpack_record_header,
)

CHUNK: Final = 1 << 20  # bytes read at a time: bounds memory where records are small


class BadBytes(Exception):
    """No whole record starts where one should."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Chain:
    """The last record read, which the next one must follow."""

    __slots__ = ("checksum", "clock_us", "database_id", "durable_version", "epoch", "records", "version")

    def __init__(self, database_id: bytes) -> None:
        self.database_id = database_id
        self.checksum = self.version = self.epoch = 0
        self.durable_version = self.clock_us = self.records = 0


class SegmentReader(NamedTuple):
    """An open segment, to be read up to `size`."""

    files: Files
    fd: int
    path: Path
    size: int

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes, fewer only at the end.

        Raises:
            CorruptionError: the disk cannot read a sector.
        """
        try:
            data = self.files.read(self.fd, count, offset)
            while len(data) < min(count, self.size - offset):
                more = self.files.read(self.fd, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise corrupt(self.path, offset, "the disk cannot read it") from error
        return data


def walk(
    source: SegmentReader, offset: int, chain: Chain | None, verify: bool = True
) -> Iterator[tuple[int, int, RecordHeader, memoryview]]:
    """`(offset, end, header, payload)` of each record; with a chain, each must follow it and extends it.

    Raises:
        BadBytes: no whole record starts here.
        CorruptionError: a whole record is here that does not follow the chain.
    """
    size = source.size
    buffer, base = b"", offset
    view = memoryview(buffer)
    while offset < size:
        at = offset - base
        if at + RECORD_HEADER_BYTES > len(buffer):
            buffer, base, at = source.read(CHUNK, offset), offset, 0
            view = memoryview(buffer)
            if len(buffer) < RECORD_HEADER_BYTES:
                raise BadBytes("a record header is cut short")
        header = unpack_record_header(buffer, at)
        if header.magic != RECORD_MAGIC:
            raise BadBytes("no record starts here")
        length = RECORD_HEADER_BYTES + header.length
        end = offset + length
        if end > size:
            raise BadBytes("a record is cut short")
        if at + length > len(buffer):
            buffer, base, at = source.read(max(CHUNK, length), offset), offset, 0
            view = memoryview(buffer)
        if verify and checksum_of(view[at : at + length]) != header.checksum:
            raise BadBytes("a record has a wrong checksum")
        if chain is not None:
            if (
                header.previous != chain.checksum
                or header.version <= chain.version
                or header.epoch < chain.epoch
                or header.database_id != chain.database_id
            ):
                raise corrupt(source.path, offset, _misfit(header, chain))
            chain.checksum = header.checksum
            chain.version = header.version
            chain.epoch = header.epoch
            chain.durable_version = max(chain.durable_version, header.durable_version)
            chain.clock_us = header.clock_us  # of the last one: it is less only where the clock was set back
            chain.records += 1
        yield offset, end, header, view[at + RECORD_HEADER_BYTES : at + length]
        offset = end


def walk_whole(
    files: Files, path: Path, begin: int, end: int, *, verify: bool
) -> Iterator[tuple[int, int, RecordHeader, memoryview]]:
    """Like `walk`, over bytes that a scan has found whole.

    Raises:
        CorruptionError: they have changed since.
    """
    fd = files.open(path, READ)
    at = begin
    try:
        for step in walk(SegmentReader(files, fd, path, end), begin, None, verify):
            at = step[1]
            yield step
    except BadBytes as bad:
        raise corrupt(path, at, f"{bad.reason}, and did when it was scanned") from None
    finally:
        files.close(fd)


def read_records(files: Files, path: Path, begin: int, end: int) -> Iterator[LogRecord]:
    """The verified records between two offsets of a segment.

    Raises:
        CorruptionError: a payload does not parse, or the bytes have changed since the scan.
    """
    name = str(path)
    for offset, after, header, payload in walk_whole(files, path, begin, end, verify=True):
        try:
            ops = decode_ops(payload)
        except ValueError as error:
            raise corrupt(path, offset, str(error)) from None
        yield LogRecord(
            header.version, header.epoch, header.durable_version, header.previous, header.checksum,
            header.clock_us, ops, name, offset, after,
        )


def read_segment_header(
    source: SegmentReader, number: int, chain: Chain | None, database_id: bytes, is_last: bool
) -> SegmentHeader | Torn:
    """The header of a segment; a torn tail if its creation was cut short.

    Raises:
        CorruptionError: damaged, or not the next segment of this database.
        FormatVersionError: of another format version.
    """
    path = source.path
    try:
        header = decode_segment_header(source.read(SEGMENT_HEADER_BYTES, 0))
    except ValueError as error:
        if not is_last:
            raise corrupt(path, 0, f"{error}, and a later segment is there") from None
        record = search(source, 0, database_id, None)
        if record is not None:
            raise corrupt(path, 0, f"{error}, and a record follows at {record[0]}") from None
        return Torn(path, 0, source.size, str(error))
    check_format(path, header)
    if header.database_id != database_id:
        raise corrupt(path, 0, f"a segment of another database, {header.database_id.hex()}")
    if header.segment != number:
        raise corrupt(path, 0, f"segment {header.segment} under the name of another")
    if chain is not None and header.previous != chain.checksum:
        raise corrupt(path, 0, "the segment does not follow on the last record before it")
    return header


def check_format(path: Path, header: SegmentHeader) -> None:
    """Refuse a segment of another format version, or with unknown flags."""
    if header.format_version != FORMAT_VERSION or header.flags:
        raise FormatVersionError(
            f"{path} has format version {header.format_version} and flags {header.flags:#x}, "
            f"this release reads version {FORMAT_VERSION} without flags",
            found=header.format_version,
            supported=FORMAT_VERSION,
        )


def search(
    source: SegmentReader, offset: int, database_id: bytes, after: int | None
) -> tuple[int, int, int] | None:
    """`(offset, version, durable version)` of the first whole record of this database from `offset` on.

    With `after`, only a record that names a later version durable. Every
    byte may start a record: where a length is damaged, nothing tells where.
    """
    while offset < source.size:
        # A header that starts at the last byte of the chunk ends beyond it.
        chunk = source.read(CHUNK + RECORD_HEADER_BYTES - 1, offset)
        at = chunk.find(RECORD_MAGIC)
        while 0 <= at < CHUNK and at + RECORD_HEADER_BYTES <= len(chunk):
            header = unpack_record_header(chunk, at)
            begin = offset + at
            length = RECORD_HEADER_BYTES + header.length
            if (
                header.database_id == database_id
                and (after is None or (header.version > after and header.durable_version > after))
                and begin + length <= source.size
                and checksum_of(source.read(length, begin)[:length]) == header.checksum
            ):
                return begin, header.version, header.durable_version
            at = chunk.find(RECORD_MAGIC, at + 1)
        offset += CHUNK
    return None


def zeros_only(source: SegmentReader, offset: int) -> bool:
    """Whether a segment holds only zeros from an offset on."""
    while offset < source.size:
        chunk = source.read(CHUNK, offset)
        if chunk.count(0) != len(chunk):
            return False
        offset += CHUNK
    return True


def _misfit(header: RecordHeader, chain: Chain) -> str:
    if header.database_id != chain.database_id:
        return f"a record of another database, {header.database_id.hex()}"
    if header.epoch < chain.epoch:
        return f"a record of epoch {header.epoch} after one of epoch {chain.epoch}"
    if header.version <= chain.version:
        return f"a record of version {header.version} after one of version {chain.version}"
    return f"the record of version {header.version} does not follow on the one before it"


def corrupt(path: Path, offset: int, problem: str) -> CorruptionError:
    """The error for damage at an offset of a file."""
    return CorruptionError(f"{path} at {offset}: {problem}", file=str(path), offset=offset)
