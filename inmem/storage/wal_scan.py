"""Reading the write-ahead log back: what of it is whole, and what the rest means.

Invariant: a log that is read back is the longest prefix of what was appended,
or it is refused with file and offset; a guess is never made. The rules that
this rests on are those of `wal`.

Reading back, by what is found first:

    found                                               verdict
    a whole record of another database, epoch, chain    damage
    a whole segment header that does not fit            damage
    a number missing among the segments                 damage
    bad bytes, in a segment that another follows        damage
    bad bytes, a later record proves them durable       damage
    bad bytes, nothing proves them durable              torn tail, to be cut
    a bad header in the last segment, no record in it   torn tail, to be cut
    zeros to the end of the last segment                torn tail, to be cut
    zeros to the end of another, the chain goes on      the end of that segment

A salvage reads a log that is refused: see `scan_pieces`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from inmem.config import FORMAT_VERSION
from inmem.errors import CorruptionError, FormatVersionError
from inmem.storage.wal_files import (
    READ,
    WRITE,
    Files,
    Position,
    Segment,
    Torn,
    segment_files,
    segment_path,
    write_all,
)
from inmem.storage.wal_format import (
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    Record,
    RecordHeader,
    SegmentHeader,
    checksum_of,
    decode_ops,
    decode_segment_header,
    unpack_record_header,
)

_CHUNK: Final = 1 << 20  # bytes read at a time: bounds memory where records are small
_BLOCK: Final = 4096  # what is given up where the disk cannot read


@dataclass(frozen=True, slots=True)
class ScanResult:
    """A log that was read from end to end and is whole, but for a torn tail.

    `durable_version` is the highest version that a record names as durable;
    `clock_us` the latest store clock. `end` is None if there is no segment.
    """

    directory: Path
    database_id: bytes
    segments: tuple[Segment, ...]
    end: Position | None
    records: int
    durable_version: int
    clock_us: int
    torn: Torn | None
    files: Files

    @property
    def start(self) -> Position | None:
        """Before the first record; its checksum is that of the record which came before."""
        if not self.segments:
            return None
        first = self.segments[0]
        return Position(first.number, SEGMENT_HEADER_BYTES, 0, first.previous, 0)

    def find(self, version: int, checksum: int) -> Position | None:
        """Where the record with this version and checksum ends; None if there is none.

        A record that is just older than the oldest segment is found at its
        start, by the checksum that the segment chains to; so is (0, 0), the
        empty store, in a log that reaches back to the beginning. Cost: none
        for the last record, else the headers of one segment.
        """
        if self.end is not None and (version, checksum) == (self.end.version, self.end.checksum):
            return self.end
        for segment in self.segments:
            if segment.first_version <= version <= segment.last_version:
                for _, end, header, _ in _walk_whole(
                    self.files, segment.file, SEGMENT_HEADER_BYTES, segment.end, verify=False
                ):
                    if header.version == version and header.checksum == checksum:
                        return Position(segment.number, end, version, checksum, header.epoch)
        start = self.start
        if start is not None and start.checksum == checksum:
            oldest = next((s.first_version for s in self.segments if s.first_version), version + 1)
            if version < oldest:
                return start._replace(version=version)
        return None

    def iter_records(self, after: Position | None = None) -> Iterator[Record]:
        """Each record after a position (default: all), in order, one in memory at a time.

        Raises:
            CorruptionError: a payload with a right checksum is no list of
                operations, or the file changed since the scan.
        """
        for segment in self.segments:
            if after is not None and segment.number < after.segment:
                continue
            begin = SEGMENT_HEADER_BYTES
            if after is not None and segment.number == after.segment:
                begin = after.offset
            yield from _records(self.files, segment.file, begin, segment.end)


def scan(
    directory: Path, database_id: bytes, *, since: int | None = None, files: Files | None = None
) -> ScanResult:
    """Read and verify a whole log; nothing is changed.

    With `since`, segments that hold nothing after that version are taken as
    they are, unread: for whoever has a state of that version already, and
    needs of the log only where to go on. Payloads are decoded by
    `iter_records` only. Cost: about 1 µs a record; memory is bounded by a MiB
    and the largest record.

    Raises:
        CorruptionError: damage, with file and offset; see the table above.
        FormatVersionError: a whole header of another format version.
    """
    files = files or Files()
    found = segment_files(directory)
    for (before, _), (number, _) in pairwise(found):
        if number != before + 1:
            missing = segment_path(directory, before + 1)
            raise _corrupt(missing, 0, f"the segment is missing, {number} is there")
    chain = _Chain(database_id)
    segments = [] if since is None else _unread(found, since, database_id, files)
    unread = len(segments)
    torn: Torn | None = None
    for number, path in found[unread:]:
        is_last = number == found[-1][0]
        fd = files.open(path, READ)
        try:
            size = files.size(fd)
            source = _Source(files, fd, path, size)
            begun = len(segments) > unread
            header = _read_segment_header(source, number, chain if begun else None, database_id, is_last)
            if isinstance(header, Torn):
                torn = header
                break
            if not begun:
                chain.checksum = header.previous
            first, end = chain.records, SEGMENT_HEADER_BYTES
            first_version = 0
            try:
                for _, end, record, _ in _walk(source, SEGMENT_HEADER_BYTES, chain):  # noqa: B007
                    first_version = first_version or record.version
            except _BadBytes as bad:
                torn = _judge(source, end, bad.reason, chain, is_last)
            last_version = chain.version if chain.records > first else 0
            segments.append(Segment(number, path, end, header.previous, first_version, last_version))
        finally:
            files.close(fd)
    end_position = None
    if segments:
        last = segments[-1]
        end_position = Position(last.number, last.end, chain.version, chain.checksum, chain.epoch)
    return ScanResult(
        directory, database_id, tuple(segments), end_position, chain.records,
        chain.durable_version, chain.clock_us, torn, files,
    )


def _unread(
    found: list[tuple[int, Path]], since: int, database_id: bytes, files: Files
) -> list[Segment]:
    """The oldest segments, up to the last one that begins at or before a version, which is to be read."""
    heads: list[Segment] = []
    for number, path in found:
        fd = files.open(path, READ)
        try:
            size = files.size(fd)
            data = files.read(fd, SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES, 0)
        finally:
            files.close(fd)
        try:
            previous = decode_segment_header(data).previous
        except ValueError:
            break
        if len(data) < SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES:
            break
        first = unpack_record_header(data, SEGMENT_HEADER_BYTES)
        if first.magic != RECORD_MAGIC or first.database_id != database_id or first.version > since:
            break
        heads.append(Segment(number, path, size, previous, first.version, first.version))
    return [
        Segment(one.number, one.file, one.end, one.previous, one.first_version, after.first_version - 1)
        for one, after in pairwise(heads)
    ]


def rewrite_tail(result: ScanResult) -> Position | None:
    """Make the log durable and end where `result` says: `open_at` may follow.

    Cuts the torn tail, then writes every byte after the last record known
    durable anew, with the bytes it has: if an fsync failed, those pages are
    in memory and look clean, so that another fsync alone would skip them.
    Only the last segment can hold such bytes. Crashing in here is harmless:
    the log reads the same before, during and after.

    Returns `result.end`; None means that no segment is left.
    """
    files, torn = result.files, result.torn
    if torn is not None and torn.offset == 0:
        files.unlink(torn.file)
        files.sync_directory(result.directory)
    if result.end is None:
        return None
    last = result.segments[-1]
    begin = 0  # the header too, unless a durable record proves it
    for _, end, header, _ in _walk_whole(files, last.file, SEGMENT_HEADER_BYTES, last.end, verify=False):
        if header.version > result.durable_version:
            break
        begin = end
    fd = files.open(last.file, WRITE)
    try:
        if files.size(fd) > last.end:
            files.ftruncate(fd, last.end)
        while begin < last.end:
            data = files.read(fd, min(_CHUNK, last.end - begin), begin)
            if not data:
                raise _corrupt(last.file, begin, "the file became shorter while it was read")
            write_all(files, fd, data, begin)
            begin += len(data)
        files.fsync(fd)
    finally:
        files.close(fd)
    files.sync_directory(result.directory)
    return result.end


@dataclass(frozen=True, slots=True)
class Piece:
    """Records that follow on each other without a break, in one segment or several.

    `previous` is the checksum of the record that came before the first.
    """

    spans: tuple[tuple[Path, int, int], ...]  # file, begin, end
    previous: int
    first_version: int
    last_version: int
    records: int
    files: Files

    def iter_records(self) -> Iterator[Record]:
        """Each record, in order, one in memory at a time.

        Raises:
            CorruptionError: a payload with a right checksum is no list of
                operations, or the file changed since the scan.
        """
        for path, begin, end in self.spans:
            yield from _records(self.files, path, begin, end)


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes `begin` to `end` of a file in which no whole record of this database was found, and why."""

    file: Path
    begin: int
    end: int
    reason: str


def scan_pieces(
    directory: Path, database_id: bytes, *, files: Files | None = None,
    begun: Callable[[Path], None] = lambda path: None,
) -> tuple[list[Piece], list[Gap]]:
    """All whole records of a log that may be damaged anywhere, and all that lies between them.

    Which pieces can be used is for the caller to say: a piece is proved to
    follow on a state only by the checksum that its first record names. What
    no record was found in is a gap; what the disk cannot read is one too.
    Nothing is changed; `begun` is told of each segment. Cost: about 3 µs a
    record, and a look at every byte where the log is damaged.

    Raises:
        FormatVersionError: a whole header of another format version.
    """
    found = segment_files(directory) if directory.is_dir() else []
    look = _Pieces(database_id, _Readable(files or Files()))
    expected = found[0][0] if found else 0
    for number, path in found:
        if number != expected:
            look.gap(segment_path(directory, expected), 0, 0, f"the segment is missing, {number} is there")
        begun(path)
        look.segment(number, path)
        expected = number + 1
    look.finish()
    return look.pieces, look.gaps


class _Pieces:
    """The pieces and gaps as they are found, and the piece that the next record may belong to."""

    def __init__(self, database_id: bytes, files: Files) -> None:
        self.pieces: list[Piece] = []
        self.gaps: list[Gap] = []
        self._files = files
        self._chain = _Chain(database_id)
        self._spans: list[tuple[Path, int, int]] = []
        self._first: RecordHeader | None = None

    def gap(self, path: Path, begin: int, end: int, reason: str) -> None:
        """Nothing whole is there."""
        self.gaps.append(Gap(path, begin, end, reason))

    def segment(self, number: int, path: Path) -> None:
        """Read one segment to its end."""
        files, chain = self._files, self._chain
        fd = files.open(path, READ)
        try:
            source = _Source(files, fd, path, files.size(fd))
            offset = 0
            try:
                header = decode_segment_header(source.read(SEGMENT_HEADER_BYTES, 0))
                if header.database_id != chain.database_id or header.segment != number:
                    raise ValueError("a segment header of another database or number")
                _check_format(path, header)
                offset = SEGMENT_HEADER_BYTES
            except ValueError as error:
                offset = self._next(source, 0, str(error))
            while offset < source.size:
                offset = self._run(source, offset)
        finally:
            files.close(fd)

    def _run(self, source: _Source, offset: int) -> int:
        """Take the records from `offset` on; where the next may be found after they end."""
        begin = end = offset
        walk = _walk(source, offset, None)
        try:
            for at, after, header, _ in walk:
                if header.database_id != self._chain.database_id:
                    raise _BadBytes("a record of another database")
                if not self._follows(header):
                    self._span(source.path, begin, at)
                    self.finish()
                    begin = at
                self._take(header)
                end = after
        except _BadBytes as bad:
            self._span(source.path, begin, end)
            if _zeros_only(source, end):
                return source.size  # the end of a segment
            return self._next(source, end, bad.reason)
        self._span(source.path, begin, end)
        return source.size

    def _next(self, source: _Source, offset: int, reason: str) -> int:
        """Where the next whole record starts, at the end if there is none; what is before it is a gap."""
        witness = _search(source, offset + 1, self._chain.database_id, None)
        end = source.size if witness is None else witness[0]
        self.gap(source.path, offset, end, reason)
        return end

    def _follows(self, header: RecordHeader) -> bool:
        chain = self._chain
        return self._first is None or (
            header.previous == chain.checksum and header.version > chain.version
            and header.epoch >= chain.epoch
        )

    def _take(self, header: RecordHeader) -> None:
        chain = self._chain
        self._first = self._first or header
        chain.checksum, chain.version, chain.epoch = header.checksum, header.version, header.epoch
        chain.records += 1

    def _span(self, path: Path, begin: int, end: int) -> None:
        if end > begin:
            self._spans.append((path, begin, end))

    def finish(self) -> None:
        """The piece ends here."""
        chain, first = self._chain, self._first
        if first is not None:
            self.pieces.append(Piece(
                tuple(self._spans), first.previous, first.version, chain.version, chain.records,
                self._files,
            ))
        self._chain, self._spans, self._first = _Chain(chain.database_id), [], None


class _Readable(Files):
    """Files of which every byte can be read: what the disk cannot read is zeros, which prove nothing."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        return self._files.open(path, flags, mode)

    def read(self, fd: int, count: int, offset: int) -> bytes:
        try:
            return self._files.read(fd, count, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        count = min(count, self.size(fd) - offset)
        if count <= _BLOCK:
            return bytes(count)
        parts = []
        while count > 0:
            part = self.read(fd, min(count, _BLOCK - offset % _BLOCK), offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return b"".join(parts)


class _BadBytes(Exception):
    """No whole record starts where one should."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Chain:
    """What the next record has to follow on."""

    __slots__ = ("checksum", "clock_us", "database_id", "durable_version", "epoch", "records", "version")

    def __init__(self, database_id: bytes) -> None:
        self.database_id = database_id
        self.checksum = self.version = self.epoch = 0
        self.durable_version = self.clock_us = self.records = 0


class _Source(NamedTuple):
    """An open segment, and how far to read it."""

    files: Files
    fd: int
    path: Path
    size: int

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes, fewer only at the end. A sector that cannot be read is damage."""
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
            raise _corrupt(self.path, offset, "the disk cannot read it") from error
        return data


def _walk(
    source: _Source, offset: int, chain: _Chain | None, verify: bool = True
) -> Iterator[tuple[int, int, RecordHeader, memoryview]]:
    """`(offset, end, header, payload)` of each record; with a chain, it has to fit and is moved on.

    Raises `_BadBytes` where no whole record starts, CorruptionError for a
    whole one that does not belong there.
    """
    size = source.size
    buffer, base = b"", offset
    view = memoryview(buffer)
    while offset < size:
        at = offset - base
        if at + RECORD_HEADER_BYTES > len(buffer):
            buffer, base, at = source.read(_CHUNK, offset), offset, 0
            view = memoryview(buffer)
            if len(buffer) < RECORD_HEADER_BYTES:
                raise _BadBytes("a record header is cut short")
        header = unpack_record_header(buffer, at)
        if header.magic != RECORD_MAGIC:
            raise _BadBytes("no record starts here")
        length = RECORD_HEADER_BYTES + header.length
        end = offset + length
        if end > size:
            raise _BadBytes("a record is cut short")
        if at + length > len(buffer):
            buffer, base, at = source.read(max(_CHUNK, length), offset), offset, 0
            view = memoryview(buffer)
        if verify and checksum_of(view[at : at + length]) != header.checksum:
            raise _BadBytes("a record has a wrong checksum")
        if chain is not None:
            if (
                header.previous != chain.checksum
                or header.version <= chain.version
                or header.epoch < chain.epoch
                or header.database_id != chain.database_id
            ):
                raise _corrupt(source.path, offset, _misfit(header, chain))
            chain.checksum = header.checksum
            chain.version = header.version
            chain.epoch = header.epoch
            chain.durable_version = max(chain.durable_version, header.durable_version)
            chain.clock_us = max(chain.clock_us, header.clock_us)
            chain.records += 1
        yield offset, end, header, view[at + RECORD_HEADER_BYTES : at + length]
        offset = end


def _walk_whole(
    files: Files, path: Path, begin: int, end: int, *, verify: bool
) -> Iterator[tuple[int, int, RecordHeader, memoryview]]:
    """Like `_walk`, of what a scan found whole."""
    fd = files.open(path, READ)
    at = begin
    try:
        for step in _walk(_Source(files, fd, path, end), begin, None, verify):
            at = step[1]
            yield step
    except _BadBytes as bad:
        raise _corrupt(path, at, f"{bad.reason}, and did when it was scanned") from None
    finally:
        files.close(fd)


def _records(files: Files, path: Path, begin: int, end: int) -> Iterator[Record]:
    name = str(path)
    for offset, after, header, payload in _walk_whole(files, path, begin, end, verify=True):
        try:
            ops = decode_ops(payload)
        except ValueError as error:
            raise _corrupt(path, offset, str(error)) from None
        yield Record(
            header.version, header.epoch, header.durable_version, header.previous, header.checksum,
            header.clock_us, ops, name, offset, after,
        )


def _read_segment_header(
    source: _Source, number: int, chain: _Chain | None, database_id: bytes, is_last: bool
) -> SegmentHeader | Torn:
    path = source.path
    try:
        header = decode_segment_header(source.read(SEGMENT_HEADER_BYTES, 0))
    except ValueError as error:
        if not is_last:
            raise _corrupt(path, 0, f"{error}, and a later segment is there") from None
        witness = _search(source, 0, database_id, None)
        if witness is not None:
            raise _corrupt(path, 0, f"{error}, and a record follows at {witness[0]}") from None
        return Torn(path, 0, source.size, str(error))
    _check_format(path, header)
    if header.database_id != database_id:
        raise _corrupt(path, 0, f"a segment of another database, {header.database_id.hex()}")
    if header.segment != number:
        raise _corrupt(path, 0, f"segment {header.segment} under the name of another")
    if chain is not None and header.previous != chain.checksum:
        raise _corrupt(path, 0, "the segment does not follow on the last record before it")
    return header


def _check_format(path: Path, header: SegmentHeader) -> None:
    if header.format_version != FORMAT_VERSION or header.flags:
        raise FormatVersionError(
            f"{path} has format version {header.format_version} and flags {header.flags:#x}, "
            f"this release reads version {FORMAT_VERSION} without flags",
            found=header.format_version,
            supported=FORMAT_VERSION,
        )


def _judge(source: _Source, offset: int, reason: str, chain: _Chain, is_last: bool) -> Torn | None:
    """A torn tail, None for a segment that ends in zeros, or CorruptionError."""
    zeros = _zeros_only(source, offset)
    if not is_last:
        if zeros:
            return None
        raise _corrupt(source.path, offset, f"{reason}, and a later segment is there")
    dropped = source.size - offset
    if zeros:
        return Torn(source.path, offset, dropped, "zeros to the end")
    witness = _search(source, offset + 1, chain.database_id, chain.version)
    if witness is not None:
        at, version, durable = witness
        raise _corrupt(
            source.path,
            offset,
            f"{reason}, and the record of version {version} at {at} says that version {durable} was durable",
        )
    return Torn(source.path, offset, dropped, reason)


def _search(
    source: _Source, offset: int, database_id: bytes, after: int | None
) -> tuple[int, int, int] | None:
    """`(offset, version, durable version)` of a whole record of this database from `offset` on.

    With `after`, only of one that proves a version beyond it durable. Looks
    at every byte: where lengths are damaged, nothing says where records start.
    """
    while offset < source.size:
        # A header may start at the last byte of a chunk: read on to its end.
        chunk = source.read(_CHUNK + RECORD_HEADER_BYTES - 1, offset)
        at = chunk.find(RECORD_MAGIC)
        while 0 <= at < _CHUNK and at + RECORD_HEADER_BYTES <= len(chunk):
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
        offset += _CHUNK
    return None


def _zeros_only(source: _Source, offset: int) -> bool:
    while offset < source.size:
        chunk = source.read(_CHUNK, offset)
        if chunk.count(0) != len(chunk):
            return False
        offset += _CHUNK
    return True


def _misfit(header: RecordHeader, chain: _Chain) -> str:
    if header.database_id != chain.database_id:
        return f"a record of another database, {header.database_id.hex()}"
    if header.epoch < chain.epoch:
        return f"a record of epoch {header.epoch} after one of epoch {chain.epoch}"
    if header.version <= chain.version:
        return f"a record of version {header.version} after one of version {chain.version}"
    return f"the record of version {header.version} does not follow on the one before it"


def _corrupt(path: Path, offset: int, problem: str) -> CorruptionError:
    return CorruptionError(f"{path} at {offset}: {problem}", file=str(path), offset=offset)
