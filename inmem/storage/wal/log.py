"""The write-ahead log: appending to it and making it durable.

Invariant: everything up to `durable_version` is on the disk. A log that is
read back is the longest prefix of what was appended, or is refused. This
module knows versions, and operations as bytes. It does not know what they
mean, nor when a record may be published or answered.

The rules that keep the invariant:

1. A segment is made durable before the next is created. So bad bytes in any
   segment but the last are damage, and not a write that was cut short.
2. A segment's header, and its name in the directory, are durable before its
   first record is written. So a bad header is a creation that was cut short
   only if no record follows it.
3. Every record names the checksum of the record before it, and every segment
   that of the last record before it. So a record cannot be missing, doubled,
   exchanged or moved without breaking the chain.
4. Every record names a version that was durable when it was written. So bad
   bytes in the last segment are a torn tail only if no whole record after
   them says that the version they held was durable.
5. After a failed fsync nothing is known about the pages: another fsync would
   succeed although the kernel has dropped them. So a log that failed once
   stays failed, and recovery writes its tail again.

Threads: one thread appends, cuts, releases and closes; any thread may call
`sync`. One lock is held through an fsync, a rotation, a cut and a close, so
that none of these overlap. An append takes the lock only when it rotates.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from inmem.storage.wal.files import (
    CREATE,
    WRITE,
    Files,
    LogPosition,
    segment_files,
    segment_path,
    write_all,
)
from inmem.storage.wal.format import SEGMENT_HEADER_BYTES, Op, encode_record, encode_segment_header
from inmem.storage.wal.scan import ScanResult


class WalBrokenError(OSError):
    """Nothing is known about the end of this log any more: the writer has to stop.

    Raised for a failed fsync, for a tail that could not be trimmed, and by
    every call after that. After a plain OSError from `append` the log is as
    it was before the call, and the next append may succeed.
    """


class Wal:
    """The appending end of a log. Make one with `create` or `open_at`."""

    def __init__(
        self,
        directory: Path,
        database_id: bytes,
        files: Files,
        segment_bytes: int,
        fd: int,
        end: LogPosition,
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
        self._reached: Callable[[str], None] = lambda step: None

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

        Where the log continues a checkpoint, `version`, `epoch` and
        `previous` are the version, epoch and checksum of the record that the
        checkpoint ends with. On return the segment is durable.

        Raises:
            FileExistsError: the directory has a segment already.
            OSError: a system call failed; a half-made segment is removed.
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
        end = LogPosition(number, SEGMENT_HEADER_BYTES, version, previous, epoch)
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

        The next record has a version above `version` and at least the epoch
        `epoch`. All that the log holds counts as durable.

        Raises:
            ValueError: there is no segment (use `create`), or the last one
                does not end where it should: `rewrite_tail` was not called.
        """
        files = files or Files()
        if result.end is None:
            raise ValueError("the log has no segment")
        *older, last = result.segments
        fd = files.open(last.file, WRITE)
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

    def watch(self, reached: Callable[[str], None]) -> None:
        """Call `reached` at each step of a rotation or a release; tests stop the process there."""
        self._reached = reached

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
            WalBrokenError: it failed, and so did removing what it wrote.
        """
        if self._failure is not None or self._fd < 0:
            self._refuse()
        if version <= self._version or epoch < self._epoch:
            raise ValueError(
                f"version {version} of epoch {epoch} after version {self._version} of epoch {self._epoch}"
            )
        if self._offset >= self._segment_bytes:
            self.rotate()
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
            write_all(self._files, self._fd, record, offset)
        except OSError as error:
            try:
                self._files.ftruncate(self._fd, offset)
            except OSError as second:
                raise self._broken(second, "trimming a failed write") from error
            raise
        self._offset = offset + len(record)
        self._checksum = checksum
        self._epoch = epoch
        # Last: a sync in another thread relies on everything up to this version being written.
        self._version = version
        return checksum

    def rotate(self) -> None:
        """Finish the segment in use and begin the next; a segment without records stays in use.

        Cost: three fsyncs. After a failure the old segment is in use and whole.

        Raises:
            OSError: the new segment could not be written; the log is as before.
            WalBrokenError: it is not known what is on the disk.
        """
        with self._lock:
            self._refuse()
            if self._offset <= SEGMENT_HEADER_BYTES:
                return
            version = self._version
            try:
                self._files.fdatasync(self._fd)
            except OSError as error:
                raise self._broken(error, "fdatasync of a finished segment") from error
            self._durable = version
            self._reached("segment_finished")
            # After a failure the old segment stays in use, and the next append tries again.
            try:
                fd = _write_segment(
                    self._files, self._directory, self._database_id, self._segment + 1, self._checksum
                )
            except WalBrokenError as error:
                self._failure = error
                raise
            self._reached("segment_created")
            try:
                self._files.fsync(fd)
                self._files.sync_directory(self._directory)
            except OSError as error:
                self._files.close(fd)
                raise self._broken(error, "fsync of a new segment") from error
            self._reached("segment_durable")
            self._files.close(self._fd)
            self._finished.append((self._segment, self._offset, version))
            self._finished_bytes += self._offset
            self._fd, self._segment, self._offset = fd, self._segment + 1, SEGMENT_HEADER_BYTES

    def position(self) -> LogPosition:
        """Where the log ends now, for `cut`. Cost: no I/O."""
        # Taken for each group: tuple's own __new__ takes half the time of a NamedTuple's.
        return tuple.__new__(
            LogPosition, (self._segment, self._offset, self._version, self._checksum, self._epoch)
        )

    def cut(self, position: LogPosition) -> None:
        """Remove every record after a position, durably; versions after it may be used again.

        Waits for an fsync under way. Cost: a truncation and an fsync, and one
        more fsync if a segment was begun since.

        Raises:
            ValueError: the position is beyond the end, or in a segment that was released.
            WalBrokenError: the records may still be there.
        """
        with self._lock:
            self._refuse()
            oldest = self._finished[0][0] if self._finished else self._segment
            if not (oldest, 0) <= position[:2] <= (self._segment, self._offset):
                raise ValueError(f"{position} is not within the log")
            # First: whatever fails below, nothing after the position counts as durable.
            self._durable = min(self._durable, position.version)
            try:
                if position.segment < self._segment:
                    self._remove_segments_after(position.segment)
                self._files.ftruncate(self._fd, position.offset)
                self._files.fsync(self._fd)
            except OSError as error:
                raise self._broken(error, "cutting") from error
            self._offset, self._checksum, self._epoch = position.offset, position.checksum, position.epoch
            self._version = self._durable = position.version

    def sync(self) -> int:
        """Make everything appended so far durable; returns `durable_version`.

        Cost: one fdatasync, none if nothing was appended since the last.

        Raises:
            WalBrokenError: fdatasync failed, now or before; it is never tried again.
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

        Call it when a checkpoint of `version` is durable. The segment in use
        stays. The oldest goes first, so that a crash leaves no gap.
        """
        with self._lock:
            self._refuse()
            removed = 0
            while self._finished and self._finished[0][2] <= version:
                number, size, _ = self._finished[0]
                self._files.unlink(segment_path(self._directory, number))
                self._reached("segment_released")
                del self._finished[0]
                self._finished_bytes -= size
                removed += 1
            if removed:
                self._files.sync_directory(self._directory)
            return removed

    def close(self) -> None:
        """Close the file, without a sync. May be called twice."""
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

    def _remove_segments_after(self, number: int) -> None:
        # Newest first, and durably, before the older one is cut: so the record that a
        # segment names as the one before it is always there.
        while self._segment > number:
            self._files.unlink(segment_path(self._directory, self._segment))
            self._files.close(self._fd)
            self._fd = -1
            self._segment, self._offset, _ = self._finished.pop()
            self._finished_bytes -= self._offset
            self._fd = self._files.open(segment_path(self._directory, self._segment), WRITE)
        self._files.sync_directory(self._directory)


def _write_segment(files: Files, directory: Path, database_id: bytes, number: int, previous: int) -> int:
    """A new segment with its header, not yet durable; after a failure the file is gone, durably.

    If it stayed, rule 1 would say that the segment before it is finished.
    """
    header = encode_segment_header(segment=number, database_id=database_id, previous=previous)
    path = segment_path(directory, number)
    fd = files.open(path, CREATE, 0o600)
    try:
        write_all(files, fd, header, 0)
    except OSError as error:
        try:
            files.close(fd)
            files.unlink(path)
            files.sync_directory(directory)
        except OSError as second:
            raise WalBrokenError(second.errno, f"removing a half-made segment: {second.strerror}") from error
        raise
    return fd
