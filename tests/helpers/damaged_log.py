"""A log, a list of what was appended to it, and system calls that fail.

What ought to come back is worked out from the list kept while appending, not
from the log: the oracle shares nothing with the code that it judges.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from inmem.errors import CorruptionError
from inmem.storage.wal.files import Files
from inmem.storage.wal.format import DELETE, PUT, SEGMENT_HEADER_BYTES, Op
from inmem.storage.wal.log import Wal
from inmem.storage.wal.scan import ScanResult, rewrite_tail, scan

DATABASE = bytes(range(16))
OTHER = bytes(range(16, 32))
SEED = 20260701
TINY = 640  # bytes of a segment: a handful of records


@dataclass(frozen=True)
class Entry:
    """One appended record, as the test knows it."""

    version: int
    durable: int
    segment: int
    offset: int
    end: int
    ops: list[Op]


class Unsynced(Files):
    """Skips the syncs: these tests damage files themselves, and no power fails."""

    def fdatasync(self, fd: int) -> None:
        pass

    def fsync(self, fd: int) -> None:
        pass


class Failing(Unsynced):
    """Fails the calls named in `plan`: method name -> errors, taken in order; None passes."""

    def __init__(self) -> None:
        self.plan: dict[str, list[int | None]] = {}
        self.calls: list[str] = []
        self.short: list[int] = []  # what the next writes are cut to

    def _call(self, name: str) -> None:
        self.calls.append(name)
        todo = self.plan.get(name)
        number = todo.pop(0) if todo else None
        if number is not None:
            raise OSError(number, os.strerror(number))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._call("open")
        return super().open(path, flags, mode)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._call("write")
        return super().write(fd, data[: self.short.pop(0)] if self.short else data, offset)

    def ftruncate(self, fd: int, size: int) -> None:
        self._call("ftruncate")
        super().ftruncate(fd, size)

    def unlink(self, path: Path) -> None:
        self._call("unlink")
        super().unlink(path)

    def fdatasync(self, fd: int) -> None:
        self._call("fdatasync")

    def fsync(self, fd: int) -> None:
        self._call("fsync")


class Log:
    """A log being written, and the list of what is in it."""

    def __init__(self, directory: Path, *, segment_bytes: int = TINY, files: Files | None = None) -> None:
        self.directory = directory
        self.wal = Wal.create(
            directory, DATABASE, segment_bytes=segment_bytes, files=files or Unsynced()
        )
        self.entries: list[Entry] = []
        self.epoch = 1

    def append(self, size: int = 10, version: int | None = None) -> Entry:
        version = self.wal.version + 1 if version is None else version
        ops: list[Op] = [(PUT, 1, b"key%d" % version, bytes([version % 251]) * size), (DELETE, 2, b"x")]
        self.wal.append(ops, version=version, epoch=self.epoch, clock_us=1000 + version)
        mark = self.wal.position()
        # The record's own durable version is read from the file; its place is the test's to know.
        data = self.path(mark.segment).read_bytes()
        same = [e.end for e in self.entries if e.segment == mark.segment]
        offset = same[-1] if same else SEGMENT_HEADER_BYTES
        durable = int.from_bytes(data[offset + 48 : offset + 56], "little")
        entry = Entry(version, durable, mark.segment, offset, mark.offset, ops)
        self.entries.append(entry)
        return entry

    def path(self, number: int) -> Path:
        return self.directory / f"{number:020d}.wal"


def build(directory: Path) -> Log:
    """Three segments; in the last, records that a later one proves durable, and some that none does."""
    log = Log(directory)
    rng = random.Random(SEED)
    while log.wal.position().segment < 3:
        log.append(rng.randrange(30))
        if rng.random() < 0.3:
            log.wal.sync()
    log.append(5)
    log.wal.sync()
    log.epoch = 2
    for size in (0, 9, 3):
        log.append(size)
    log.wal.close()
    assert {e.segment for e in log.entries} == {1, 2, 3}
    last = [e for e in log.entries if e.segment == 3]
    assert max(e.durable for e in last) in [e.version for e in last[:-1]], "both verdicts must be possible"
    return log


def load(directory: Path) -> tuple[ScanResult, list[tuple[int, list[Op]]]]:
    result = scan(directory, DATABASE, files=Unsynced())
    records = [(r.version, r.ops) for r in result.iter_records()]
    assert len(records) == result.records
    return result, records


def expected(entries: list[Entry]) -> list[tuple[int, list[Op]]]:
    return [(e.version, e.ops) for e in entries]


def recover_and_append(directory: Path, entries: list[Entry]) -> None:
    """Whatever was cut, the log goes on after it, and reads back whole."""
    result, _ = load(directory)
    end = rewrite_tail(result)
    version = (entries[-1].version if entries else 0) + 1000
    if end is None:
        wal = Wal.create(directory, DATABASE, segment_bytes=TINY, files=Unsynced())
    else:
        wal = Wal.open_at(result, segment_bytes=TINY, files=Unsynced())
    ops: list[Op] = [(PUT, 7, b"after", b"recovery")]
    wal.append(ops, version=version, epoch=9, clock_us=1)
    wal.close()
    again, records = load(directory)
    assert again.torn is None
    assert records == [*expected(entries), (version, ops)]


def refused(directory: Path, file: Path, offset: int) -> None:
    with pytest.raises(CorruptionError) as caught:
        load(directory)
    assert (caught.value.file, caught.value.offset) == (str(file), offset)


def splice(path: Path, offset: int, data: bytes, drop: int = 0) -> None:
    old = path.read_bytes()
    path.write_bytes(old[:offset] + data + old[offset + drop :])


def verdict(log: Log, number: int, offset: int) -> tuple[bool, list[Entry], int]:
    """Whether a damaged byte must be refused; the records before it; where the damage starts."""
    if offset < SEGMENT_HEADER_BYTES:
        return True, [], 0
    hit = next(i for i, e in enumerate(log.entries) if e.segment == number and e.offset <= offset < e.end)
    good = log.entries[:hit]
    version = good[-1].version if good else 0
    proven = any(e.durable > version for e in log.entries[hit + 1 :])
    return number < 3 or proven, good, log.entries[hit].offset
