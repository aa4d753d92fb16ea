"""Reading the write-ahead log back: which of its records are whole, and what bad bytes mean.

Invariant: a log that is read back is the longest prefix of what was appended,
or it is refused with file and offset. Nothing is guessed. This follows from
the rules that `log` keeps.

What is found first decides:

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

`salvage` reads a log that is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from inmem.storage.wal.files import (
    READ,
    WRITE,
    Files,
    LogPosition,
    Segment,
    Torn,
    segment_files,
    segment_path,
    write_all,
)
from inmem.storage.wal.format import (
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    LogRecord,
    decode_segment_header,
    unpack_record_header,
)
from inmem.storage.wal.walk import (
    CHUNK,
    BadBytes,
    Chain,
    SegmentReader,
    corrupt,
    read_records,
    read_segment_header,
    search,
    walk,
    walk_whole,
    zeros_only,
)


@dataclass(frozen=True, slots=True)
class ScanResult:
    """A log that was read to its end and is whole, but for a torn tail.

    `durable_version` is the highest version that a record names as durable,
    `clock_us` the latest store clock. `end` is None if there is no segment.
    `since_end` is where the record of version `since` ends, if the scan was
    given one and met it. The bytes before `durable_end` in the last segment
    are known to be durable.
    """

    directory: Path
    database_id: bytes
    segments: tuple[Segment, ...]
    end: LogPosition | None
    records: int
    durable_version: int
    clock_us: int
    torn: Torn | None
    files: Files
    since_end: LogPosition | None
    durable_end: int

    @property
    def start(self) -> LogPosition | None:
        """Before the first record; the checksum is that of the record which came before it."""
        if not self.segments:
            return None
        first = self.segments[0]
        return LogPosition(first.number, SEGMENT_HEADER_BYTES, 0, first.previous, 0)

    def find(self, version: int, checksum: int) -> LogPosition | None:
        """Where the record with this version and checksum ends; None if there is none.

        The record just before the oldest segment is found at that segment's
        start, by the checksum that the segment names. So is (0, 0), the empty
        store, in a log that begins with the database. Cost: none for the last
        record and that of `since`, otherwise reading the headers of one segment.
        """
        for known in (self.end, self.since_end):
            if known is not None and (version, checksum) == (known.version, known.checksum):
                return known
        for segment in self.segments:
            if segment.first_version <= version <= segment.last_version:
                for _, end, header, _ in walk_whole(
                    self.files, segment.file, SEGMENT_HEADER_BYTES, segment.end, verify=False
                ):
                    if header.version == version and header.checksum == checksum:
                        return LogPosition(segment.number, end, version, checksum, header.epoch)
        start = self.start
        if start is not None and start.checksum == checksum:
            oldest = next((s.first_version for s in self.segments if s.first_version), version + 1)
            if version < oldest:
                return start._replace(version=version)
        return None

    def iter_records(self, after: LogPosition | None = None) -> Iterator[LogRecord]:
        """Each record after a position (default: all), in order, with one in memory at a time.

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
            yield from read_records(self.files, segment.file, begin, segment.end)


def scan(
    directory: Path, database_id: bytes, *, since: int | None = None, files: Files | None = None
) -> ScanResult:
    """Read and verify a whole log; nothing is changed.

    With `since`, segments that hold nothing after that version are not read:
    the caller has the state of that version, and needs the rest of the log.
    Payloads are decoded by `iter_records` only. Cost: about 1 µs a record,
    and memory for a MiB or the largest record.

    Raises:
        CorruptionError: damage, with file and offset; see the table above.
        FormatVersionError: a whole header of another format version.
    """
    files = files or Files()
    found = segment_files(directory)
    for (before, _), (number, _) in pairwise(found):
        if number != before + 1:
            missing = segment_path(directory, before + 1)
            raise corrupt(missing, 0, f"the segment is missing, {number} is there")
    chain = Chain(database_id)
    segments = [] if since is None else _unread(found, since, database_id, files)
    unread = len(segments)
    torn: Torn | None = None
    since_end: LogPosition | None = None
    durable_end = 0
    for number, path in found[unread:]:
        is_last = number == found[-1][0]
        fd = files.open(path, READ)
        try:
            size = files.size(fd)
            source = SegmentReader(files, fd, path, size)
            begun = len(segments) > unread
            header = read_segment_header(source, number, chain if begun else None, database_id, is_last)
            if isinstance(header, Torn):
                torn = header
                break
            if not begun:
                chain.checksum = header.previous
            first, end = chain.records, SEGMENT_HEADER_BYTES
            first_version = named = 0
            durable_end = 0  # the header is not known to be durable either
            # Offset and version of records that named a newer durable version: candidates for `durable_end`.
            named_at: deque[tuple[int, int]] = deque()
            try:
                for begin, end, record, _ in walk(source, SEGMENT_HEADER_BYTES, chain):
                    if record.durable_version > named:
                        named = record.durable_version
                        if first_version:
                            named_at.append((begin, record.version))
                        while named_at and named_at[0][1] <= named + 1:
                            durable_end, _ = named_at.popleft()
                    first_version = first_version or record.version
                    if record.version == since:
                        since_end = LogPosition(number, end, record.version, record.checksum, record.epoch)
            except BadBytes as bad:
                torn = _judge(source, end, bad.reason, chain, is_last)
            last_version = chain.version if chain.records > first else 0
            segments.append(Segment(number, path, end, header.previous, first_version, last_version))
        finally:
            files.close(fd)
    end_position = None
    if segments:
        last = segments[-1]
        end_position = LogPosition(last.number, last.end, chain.version, chain.checksum, chain.epoch)
    return ScanResult(
        directory, database_id, tuple(segments), end_position, chain.records,
        chain.durable_version, chain.clock_us, torn, files, since_end, durable_end,
    )


def _unread(
    found: list[tuple[int, Path]], since: int, database_id: bytes, files: Files
) -> list[Segment]:
    """The oldest segments without the last that begins at or before a version: that one is to be read."""
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


def rewrite_tail(result: ScanResult) -> LogPosition | None:
    """Make the log durable, ending at `result.end`, which is returned; then `open_at` may follow.

    Cuts the torn tail. Then every byte that is not known to be durable is
    written again: after a failed fsync the pages look clean, and another
    fsync alone would skip them. Only the last segment can hold such bytes. A
    crash in here is harmless: the log reads the same before, during and after.
    None means that no segment is left.
    """
    files, torn = result.files, result.torn
    if torn is not None and torn.offset == 0:
        files.unlink(torn.file)
        files.sync_directory(result.directory)
    if result.end is None:
        return None
    last = result.segments[-1]
    begin = result.durable_end
    fd = files.open(last.file, WRITE)
    try:
        if files.size(fd) > last.end:
            files.ftruncate(fd, last.end)
        while begin < last.end:
            data = files.read(fd, min(CHUNK, last.end - begin), begin)
            if not data:
                raise corrupt(last.file, begin, "the file became shorter while it was read")
            write_all(files, fd, data, begin)
            begin += len(data)
        files.fsync(fd)
    finally:
        files.close(fd)
    files.sync_directory(result.directory)
    return result.end


def _judge(source: SegmentReader, offset: int, reason: str, chain: Chain, is_last: bool) -> Torn | None:
    """A torn tail, None for a segment that ends in zeros, or a CorruptionError."""
    zeros = zeros_only(source, offset)
    if not is_last:
        if zeros:
            return None
        raise corrupt(source.path, offset, f"{reason}, and a later segment is there")
    dropped = source.size - offset
    if zeros:
        return Torn(source.path, offset, dropped, "zeros to the end")
    proof = search(source, offset + 1, chain.database_id, chain.version)
    if proof is not None:
        at, version, durable = proof
        raise corrupt(
            source.path,
            offset,
            f"{reason}, and the record of version {version} at {at} says that version {durable} was durable",
        )
    return Torn(source.path, offset, dropped, reason)
