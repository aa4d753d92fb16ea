"""Reading a damaged log: all that can be proved whole, in pieces.

Invariant: a piece is a sequence of whole records of this database, each of
which names the one before it. What lies between two pieces is reported as a
gap, and never guessed. `scan` reads a log that is whole.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inmem.storage.wal.files import (
    READ,
    Files,
    segment_files,
    segment_path,
)
from inmem.storage.wal.format import (
    SEGMENT_HEADER_BYTES,
    LogRecord,
    RecordHeader,
    decode_segment_header,
)
from inmem.storage.wal.walk import (
    BadBytes,
    Chain,
    SegmentReader,
    check_format,
    read_records,
    search,
    walk,
    zeros_only,
)

_BLOCK: Final = 4096  # bytes given up where the disk cannot read


@dataclass(frozen=True, slots=True)
class Piece:
    """Records that follow each other without a break, in one segment or several.

    `previous` is the checksum of the record that came before the first.
    """

    spans: tuple[tuple[Path, int, int], ...]  # file, begin, end
    previous: int
    first_version: int
    last_version: int
    records: int
    files: Files

    def iter_records(self) -> Iterator[LogRecord]:
        """Each record, in order, with one in memory at a time.

        Raises:
            CorruptionError: a payload with a right checksum is no list of
                operations, or the file changed since the scan.
        """
        for path, begin, end in self.spans:
            yield from read_records(self.files, path, begin, end)


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
    """All whole records of a log that may be damaged anywhere, and the gaps between them.

    The caller decides which pieces can be used: only the checksum that a
    piece's first record names proves that it follows a state. Bytes that the
    disk cannot read are a gap too. Nothing is changed; `begun` is called with
    each segment. Cost: about 3 µs a record; where the log is damaged, every
    byte is searched.

    Raises:
        FormatVersionError: a whole header of another format version.
    """
    found = segment_files(directory) if directory.is_dir() else []
    collector = _Pieces(database_id, _Readable(files or Files()))
    expected = found[0][0] if found else 0
    for number, path in found:
        if number != expected:
            missing = segment_path(directory, expected)
            collector.gap(missing, 0, 0, f"the segment is missing, {number} is there")
        begun(path)
        collector.segment(number, path)
        expected = number + 1
    collector.finish()
    return collector.pieces, collector.gaps


class _Pieces:
    """The pieces and gaps found so far, and the piece that the next record may extend."""

    def __init__(self, database_id: bytes, files: Files) -> None:
        self.pieces: list[Piece] = []
        self.gaps: list[Gap] = []
        self._files = files
        self._chain = Chain(database_id)
        self._spans: list[tuple[Path, int, int]] = []
        self._first: RecordHeader | None = None

    def gap(self, path: Path, begin: int, end: int, reason: str) -> None:
        """No whole record is there."""
        self.gaps.append(Gap(path, begin, end, reason))

    def segment(self, number: int, path: Path) -> None:
        """Read one segment to its end."""
        files, chain = self._files, self._chain
        fd = files.open(path, READ)
        try:
            source = SegmentReader(files, fd, path, files.size(fd))
            offset = 0
            try:
                header = decode_segment_header(source.read(SEGMENT_HEADER_BYTES, 0))
                if header.database_id != chain.database_id or header.segment != number:
                    raise ValueError("a segment header of another database or number")
                check_format(path, header)
                offset = SEGMENT_HEADER_BYTES
            except ValueError as error:
                offset = self._next(source, 0, str(error))
            while offset < source.size:
                offset = self._run(source, offset)
        finally:
            files.close(fd)

    def _run(self, source: SegmentReader, offset: int) -> int:
        """Take the records from `offset` on; returns where to go on after the last of them."""
        begin = end = offset
        try:
            for at, after, header, _ in walk(source, offset, None):
                if header.database_id != self._chain.database_id:
                    raise BadBytes("a record of another database")
                if not self._follows(header):
                    self._span(source.path, begin, at)
                    self.finish()
                    begin = at
                self._take(header)
                end = after
        except BadBytes as bad:
            self._span(source.path, begin, end)
            if zeros_only(source, end):
                return source.size  # the end of a segment
            return self._next(source, end, bad.reason)
        self._span(source.path, begin, end)
        return source.size

    def _next(self, source: SegmentReader, offset: int, reason: str) -> int:
        """Where the next whole record starts, or the end; the bytes before it are a gap."""
        record = search(source, offset + 1, self._chain.database_id, None)
        end = source.size if record is None else record[0]
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
        """End the current piece."""
        chain, first = self._chain, self._first
        if first is not None:
            self.pieces.append(Piece(
                tuple(self._spans), first.previous, first.version, chain.version, chain.records,
                self._files,
            ))
        self._chain, self._spans, self._first = Chain(chain.database_id), [], None


class _Readable(Files):
    """Files of which every byte can be read: zeros replace what the disk cannot read."""

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
