"""What the log is on the disk: segments, places in it, and the system calls that it makes.

Invariant: every system call of the log goes through `Files`, so that a test
can put a failure in its place. The rules are in `wal` (appending) and
`wal_scan` (reading back).
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


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """The segments of a directory by number; other files are not looked at."""
    return sorted((int(p.stem), p) for p in directory.iterdir() if _NAME.match(p.name))


def segment_path(directory: Path, number: int) -> Path:
    """Where a segment is."""
    return directory / f"{number:020d}.wal"


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Write all of the data, however little the system takes at a time."""
    done = files.write(fd, data, offset)
    while done < len(data):
        more = files.write(fd, memoryview(data)[done:], offset + done)
        if more <= 0:
            raise OSError(errno.EIO, "write(2) wrote nothing")
        done += more
