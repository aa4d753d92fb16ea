"""The write-ahead log: appending to it, making it durable, reading it back.

Invariant: what `durable_version` names is on the disk, and a log that is read
back is the longest prefix of what was appended, or is refused. This module
knows versions and operations as bytes; what they mean, and when a record may
be published or answered, is for others.

The rules that this rests on:

1. A segment is made durable before the next is created. So bad bytes in any
   segment but the last are damage, and not a write that was cut short.
2. A segment's header, and its name in the directory, are durable before its
   first record is written. So a bad header is a cut-short creation only where
   no record follows it.
3. Every record names the checksum of the one before it, and every segment
   that of the last record before it. So nothing can be missing, doubled,
   exchanged or moved without breaking the chain.
4. Every record names a version that was durable when it was written. So bad
   bytes in the last segment are a torn tail only if no whole record after
   them says that the version they held was durable.
5. After a failed fsync nothing is known of the pages, and asking again would
   answer "done" for pages the kernel has dropped. So a log that failed once
   stays failed; recovery writes its tail anew.

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

Threads: one thread appends, marks, cuts, releases and closes; any thread may
call `sync`. The one lock is held through an fsync, a rotation, a cut and a
close, so none of these happens during another; an append takes no lock unless
it rotates.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from inmem.config import FORMAT_VERSION
from inmem.errors import CorruptionError, FormatVersionError
from inmem.storage.wal_format import (
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    Op,
    Record,
    RecordHeader,
    SegmentHeader,
    checksum_of,
    decode_ops,
    decode_segment_header,
    encode_record,
    encode_segment_header,
    unpack_record_header,
)

_NAME: Final = re.compile(r"[0-9]{20}\.wal\Z")
_CHUNK: Final = 1 << 20  # bytes read at a time: bounds memory where records are small

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class WalBrokenError(OSError):
    """Nothing can be promised of this log any more: the writer has to stop.

    Raised for a failed fsync and for a tail that could not be trimmed, and by
    every call after it. A plain OSError from `append` is milder: the log is
    as it was before the call, and the next append may succeed.
    """


class Files:
    """The system calls that the log makes; tests put failures in their place."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def read(self, fd: int, count: int, offset: int) -> bytes:
        return os.pread(fd, count, offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)


class Position(NamedTuple):
    """A place between two records: `offset` of segment `segment`.

    Version, checksum and epoch are those of the record that ends here; at the
    start of the oldest segment only the checksum is known of it.
    """

    segment: int
    offset: int
    version: int
    checksum: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as it was read: records from byte 64 to `end`; versions 0 if it has none."""

    number: int
    file: Path
    end: int
    previous: int
    first_version: int
    last_version: int


@dataclass(frozen=True, slots=True)
class Torn:
    """A write that was cut short: from `offset` of `file` on, `dropped_bytes` mean nothing.

    At offset 0 it is the creation of the segment that was cut short, and the
    file goes as a whole.
    """

    file: Path
    offset: int
    dropped_bytes: int
    reason: str


# --- appending ---------------------------------------------------------------------------------


class Wal:
    """The appending end of a log. Make one with `create` or `open_at`."""

    def __init__(
        self,
        directory: Path,
        database_id: bytes,
        files: Files,
        segment_bytes: int,
        fd: int,
        end: Position,
        finished: list[tuple[int, int, int]],
    ) -> None:
        self._directory = directory
        self._database_id = database_id
        self._files = files
        self._segment_bytes = segment_bytes
        self._fd = fd
        self._segment = end.segment
        self._offset = end.offset
        self._checksum = end.checksum
        self._epoch = end.epoch
        self._version = end.version
        self._durable = end.version
        self._finished = finished  # (number, bytes, last version) of each older segment, in order
        self._finished_bytes = sum(size for _, size, _ in finished)
        self._failure: OSError | None = None
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        directory: Path,
        database_id: bytes,
        *,
        segment_bytes: int,
        number: int = 1,
        previous: int = 0,
        version: int = 0,
        epoch: int = 0,
        files: Files | None = None,
    ) -> Wal:
        """A new log in a directory that holds none; made with mode 0700 if absent.

        Where a checkpoint stands in for the log's past, `version`, `epoch`
        and `previous` are the version, epoch and checksum of its last record.
        On return the segment is durable.

        Raises:
            FileExistsError: the directory has a segment already.
            OSError: a system call failed; a half-made segment is taken away.
        """
        files = files or Files()
        if not directory.exists():
            directory.mkdir(mode=0o700)
            files.sync_directory(directory.parent)
        if segment_files(directory):
            raise FileExistsError(errno.EEXIST, "there is a log already", str(directory))
        fd = _write_segment(files, directory, database_id, number, previous)
        try:
            files.fsync(fd)
            files.sync_directory(directory)
        except OSError:
            files.close(fd)
            raise
        end = Position(number, SEGMENT_HEADER_BYTES, version, previous, epoch)
        return cls(directory, database_id, files, segment_bytes, fd, end, [])

    @classmethod
    def open_at(
        cls,
        result: ScanResult,
        *,
        segment_bytes: int,
        version: int = 0,
        epoch: int = 0,
        files: Files | None = None,
    ) -> Wal:
        """The log that `scan` read, after `rewrite_tail` made it end where `result` says.

        `version` and `epoch` are floors for the next record, for a log whose
        past a checkpoint holds. All that the log holds counts as durable.

        Raises:
            ValueError: there is no segment (use `create`), or the last one
                does not end where it should: `rewrite_tail` was not called.
        """
        files = files or Files()
        if result.end is None:
            raise ValueError("the log has no segment")
        *older, last = result.segments
        fd = files.open(last.file, _WRITE)
        if files.size(fd) != last.end:
            files.close(fd)
            raise ValueError(f"{last.file} does not end at {last.end}: rewrite the tail first")
        end = result.end._replace(
            version=max(version, result.end.version), epoch=max(epoch, result.end.epoch)
        )
        finished: list[tuple[int, int, int]] = []
        latest = 0
        for segment in older:
            latest = max(latest, segment.last_version)
            finished.append((segment.number, segment.end, latest))
        return cls(result.directory, result.database_id, files, segment_bytes, fd, end, finished)

    @property
    def version(self) -> int:
        """The version of the last record."""
        return self._version

    @property
    def checksum(self) -> int:
        """The checksum of the last record."""
        return self._checksum

    @property
    def durable_version(self) -> int:
        """The highest version known to survive a power cut."""
        return self._durable

    @property
    def bytes(self) -> int:
        """The size of all segments."""
        return self._finished_bytes + self._offset

    @property
    def failed(self) -> bool:
        """True after a failure that no later call recovers from."""
        return self._failure is not None

    def append(self, ops: Sequence[Op], *, version: int, epoch: int, clock_us: int) -> int:
        """Write one record and return its checksum; `sync` makes it durable.

        Cost: one write(2); a rotation, once per segment, adds three fsyncs.

        Raises:
            ValueError: version or epoch go backwards, or the log is closed.
            OSError: the write failed (ENOSPC, EIO); the log is as before.
            WalBrokenError: it failed, and so did taking back what it left.
        """
        if self._failure is not None or self._fd < 0:
            self._refuse()
        if version <= self._version or epoch < self._epoch:
            raise ValueError(
                f"version {version} of epoch {epoch} after version {self._version} of epoch {self._epoch}"
            )
        if self._offset >= self._segment_bytes and self._offset > SEGMENT_HEADER_BYTES:
            self._rotate()
        record, checksum = encode_record(
            ops,
            version=version,
            epoch=epoch,
            database_id=self._database_id,
            durable_version=self._durable,
            previous=self._checksum,
            clock_us=clock_us,
        )
        offset = self._offset
        try:
            _write_all(self._files, self._fd, record, offset)
        except OSError as error:
            try:
                self._files.ftruncate(self._fd, offset)
            except OSError as second:
                raise self._broken(second, "trimming a failed write") from error
            raise
        self._offset = offset + len(record)
        self._checksum = checksum
        self._epoch = epoch
        # Last: a sync in another thread takes what it reads here for written.
        self._version = version
        return checksum

    def mark(self) -> Position:
        """Where the log ends now, for `cut`. No I/O."""
        return Position(self._segment, self._offset, self._version, self._checksum, self._epoch)

    def cut(self, mark: Position) -> None:
        """Remove every record after `mark`, durably; versions after it may be used again.

        Waits for an fsync under way. Cost: a truncation and an fsync, and one
        fsync more where a segment was begun since the mark.

        Raises:
            ValueError: the mark lies beyond the end or in a segment released since.
            WalBrokenError: the records may still be there.
        """
        with self._lock:
            self._refuse()
            oldest = self._finished[0][0] if self._finished else self._segment
            if not (oldest, 0) <= mark[:2] <= (self._segment, self._offset):
                raise ValueError(f"{mark} is not within the log")
            # First: whatever fails below, nothing after the mark counts as durable.
            self._durable = min(self._durable, mark.version)
            try:
                if mark.segment < self._segment:
                    self._leave_segments_after(mark.segment)
                self._files.ftruncate(self._fd, mark.offset)
                self._files.fsync(self._fd)
            except OSError as error:
                raise self._broken(error, "cutting") from error
            self._offset, self._checksum, self._epoch = mark.offset, mark.checksum, mark.epoch
            self._version = self._durable = mark.version

    def sync(self) -> int:
        """Make everything appended so far durable; returns `durable_version`.

        Cost: one fdatasync, none if nothing was appended since the last.

        Raises:
            WalBrokenError: fdatasync failed, now or before. It is never
                tried again.
        """
        with self._lock:
            self._refuse()
            version = self._version
            if version != self._durable:
                try:
                    self._files.fdatasync(self._fd)
                except OSError as error:
                    raise self._broken(error, "fdatasync") from error
                self._durable = version
            return version

    def release(self, version: int) -> int:
        """Remove the segments that hold nothing after `version`; returns how many.

        For a checkpoint that is durable. The segment in use stays. Oldest
        first, so that a crash between two leaves no gap.
        """
        with self._lock:
            self._refuse()
            removed = 0
            while self._finished and self._finished[0][2] <= version:
                number, size, _ = self._finished[0]
                self._files.unlink(_path(self._directory, number))
                del self._finished[0]
                self._finished_bytes -= size
                removed += 1
            if removed:
                self._files.sync_directory(self._directory)
            return removed

    def close(self) -> None:
        """Close the file; what was not synced is not made durable. May be called twice."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                self._files.close(fd)

    def _refuse(self) -> None:
        if self._failure is not None:
            raise WalBrokenError(self._failure.errno, f"the log failed before: {self._failure.strerror}")
        if self._fd < 0:
            raise ValueError("the log is closed")

    def _broken(self, error: OSError, doing: str) -> WalBrokenError:
        self._failure = error
        return WalBrokenError(error.errno, f"{doing}: {error.strerror}")

    def _rotate(self) -> None:
        with self._lock:
            self._refuse()
            version = self._version
            try:
                self._files.fdatasync(self._fd)
            except OSError as error:
                raise self._broken(error, "fdatasync of a finished segment") from error
            self._durable = version
            # A failure in here leaves the old segment in use and whole: the next append tries again.
            try:
                fd = _write_segment(
                    self._files, self._directory, self._database_id, self._segment + 1, self._checksum
                )
            except WalBrokenError as error:
                self._failure = error
                raise
            try:
                self._files.fsync(fd)
                self._files.sync_directory(self._directory)
            except OSError as error:
                self._files.close(fd)
                raise self._broken(error, "fsync of a new segment") from error
            self._files.close(self._fd)
            self._finished.append((self._segment, self._offset, version))
            self._finished_bytes += self._offset
            self._fd, self._segment, self._offset = fd, self._segment + 1, SEGMENT_HEADER_BYTES

    def _leave_segments_after(self, number: int) -> None:
        # Newest first, and durably, before the older one is cut: at no moment does a
        # segment follow one that lacks the record it chains to.
        while self._segment > number:
            self._files.unlink(_path(self._directory, self._segment))
            self._files.close(self._fd)
            self._fd = -1
            self._segment, self._offset, _ = self._finished.pop()
            self._finished_bytes -= self._offset
            self._fd = self._files.open(_path(self._directory, self._segment), _WRITE)
        self._files.sync_directory(self._directory)


def _write_segment(files: Files, directory: Path, database_id: bytes, number: int, previous: int) -> int:
    """A new segment with its header, not yet durable; on failure nothing is left behind.

    Nothing at all, durably: a file that outlived this would claim, by rule 1,
    that the segment before it was finished.
    """
    header = encode_segment_header(segment=number, database_id=database_id, previous=previous)
    path = _path(directory, number)
    fd = files.open(path, _CREATE, 0o600)
    try:
        _write_all(files, fd, header, 0)
    except OSError as error:
        try:
            files.close(fd)
            files.unlink(path)
            files.sync_directory(directory)
        except OSError as second:
            raise WalBrokenError(second.errno, f"removing a half-made segment: {second.strerror}") from error
        raise
    return fd


def _write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    done = files.write(fd, data, offset)
    while done < len(data):
        more = files.write(fd, memoryview(data)[done:], offset + done)
        if more <= 0:
            raise OSError(errno.EIO, "write(2) wrote nothing")
        done += more


# --- reading back ------------------------------------------------------------------------------


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
                for _, end, header, _ in _walk_segment(self, segment, SEGMENT_HEADER_BYTES, verify=False):
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
            name = str(segment.file)
            for offset, end, header, payload in _walk_segment(self, segment, begin, verify=True):
                try:
                    ops = decode_ops(payload)
                except ValueError as error:
                    raise _corrupt(segment.file, offset, str(error)) from None
                yield Record(
                    header.version, header.epoch, header.durable_version, header.previous,
                    header.checksum, header.clock_us, ops, name, offset, end,
                )


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """The segments of a directory by number; other files are not looked at."""
    return sorted((int(p.stem), p) for p in directory.iterdir() if _NAME.match(p.name))


def scan(directory: Path, database_id: bytes, *, files: Files | None = None) -> ScanResult:
    """Read and verify a whole log; nothing is changed.

    Payloads are decoded by `iter_records` only. Cost: about 1 µs a record;
    memory is bounded by a MiB and the largest record.

    Raises:
        CorruptionError: damage, with file and offset; see the table above.
        FormatVersionError: a whole header of another format version.
    """
    files = files or Files()
    found = segment_files(directory)
    for (before, _), (number, _) in pairwise(found):
        if number != before + 1:
            raise _corrupt(_path(directory, before + 1), 0, f"the segment is missing, {number} is there")
    chain = _Chain(database_id)
    segments: list[Segment] = []
    torn: Torn | None = None
    for number, path in found:
        is_last = number == found[-1][0]
        fd = files.open(path, _READ)
        try:
            size = files.size(fd)
            source = _Source(files, fd, path, size)
            header = _read_segment_header(source, number, chain if segments else None, database_id, is_last)
            if isinstance(header, Torn):
                torn = header
                break
            if not segments:
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
    for _, end, header, _ in _walk_segment(result, last, SEGMENT_HEADER_BYTES, verify=False):
        if header.version > result.durable_version:
            break
        begin = end
    fd = files.open(last.file, _WRITE)
    try:
        if files.size(fd) > last.end:
            files.ftruncate(fd, last.end)
        while begin < last.end:
            data = files.read(fd, min(_CHUNK, last.end - begin), begin)
            if not data:
                raise _corrupt(last.file, begin, "the file became shorter while it was read")
            _write_all(files, fd, data, begin)
            begin += len(data)
        files.fsync(fd)
    finally:
        files.close(fd)
    files.sync_directory(result.directory)
    return result.end


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


def _walk_segment(
    result: ScanResult, segment: Segment, offset: int, *, verify: bool
) -> Iterator[tuple[int, int, RecordHeader, memoryview]]:
    """Like `_walk`, of a segment that a scan found whole up to its end."""
    fd = result.files.open(segment.file, _READ)
    end = offset
    try:
        for step in _walk(_Source(result.files, fd, segment.file, segment.end), offset, None, verify):
            end = step[1]
            yield step
    except _BadBytes as bad:
        raise _corrupt(segment.file, end, f"{bad.reason}, and did when it was scanned") from None
    finally:
        result.files.close(fd)


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
    if header.format_version != FORMAT_VERSION or header.flags:
        raise FormatVersionError(
            f"{path} has format version {header.format_version} and flags {header.flags:#x}, "
            f"this release reads version {FORMAT_VERSION} without flags",
            found=header.format_version,
            supported=FORMAT_VERSION,
        )
    if header.database_id != database_id:
        raise _corrupt(path, 0, f"a segment of another database, {header.database_id.hex()}")
    if header.segment != number:
        raise _corrupt(path, 0, f"segment {header.segment} under the name of another")
    if chain is not None and header.previous != chain.checksum:
        raise _corrupt(path, 0, "the segment does not follow on the last record before it")
    return header


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


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:020d}.wal"


def _corrupt(path: Path, offset: int, problem: str) -> CorruptionError:
    return CorruptionError(f"{path} at {offset}: {problem}", file=str(path), offset=offset)
