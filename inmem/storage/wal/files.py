"""The files of the log: segments, positions in them, and the system calls on them.

Invariant: every system call of the log goes through `Files`, so that tests
can make it fail. The rules of the log are in `log` (appending) and `scan`
(reading back).
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

_NAME: Final = re.compile(r"[0-9]{20}\.wal\Z")

CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
WRITE: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Files:
    """The system calls of the log; tests replace them by failures."""

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


class LogPosition(NamedTuple):
    """A position between two records: `offset` of segment `segment`.

    Version, checksum and epoch are those of the record that ends here. At the
    start of the oldest segment only the checksum is known.
    """

    segment: int
    offset: int
    version: int
    checksum: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as it was read: records from byte 64 to `end`; both versions are 0 if it has none."""

    number: int
    file: Path
    end: int
    previous: int
    first_version: int
    last_version: int


@dataclass(frozen=True, slots=True)
class Torn:
    """A write that was cut short: the `dropped_bytes` from `offset` of `file` on are to be removed.

    At offset 0 the creation of the segment was cut short, and the whole file
    is to be removed.
    """

    file: Path
    offset: int
    dropped_bytes: int
    reason: str


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """Number and path of each segment in a directory, in order; other files are ignored."""
    return sorted((int(p.stem), p) for p in directory.iterdir() if _NAME.match(p.name))


def segment_path(directory: Path, number: int) -> Path:
    """The path of a segment."""
    return directory / f"{number:020d}.wal"


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Write all of the data, in as many calls as that takes."""
    done = files.write(fd, data, offset)
    while done < len(data):
        more = files.write(fd, memoryview(data)[done:], offset + done)
        if more <= 0:
            raise OSError(errno.EIO, "write(2) wrote nothing")
        done += more
