"""Pieces of a damaged log by themselves: each whole record before and after the damage is found."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from damaged_store import flip

from inmem.storage.wal.files import Files, segment_files
from inmem.storage.wal.format import PUT
from inmem.storage.wal.log import Wal
from inmem.storage.wal.salvage import scan_pieces

MIB = 1 << 20
DATABASE = bytes(range(16))


class Unreadable(Files):
    """A disk that cannot read some blocks of any file."""

    def __init__(self, *blocks: int) -> None:
        self.blocks = blocks

    def read(self, fd: int, count: int, offset: int) -> bytes:
        if any(offset < (block + 1) * 4096 and offset + count > block * 4096 for block in self.blocks):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(fd, count, offset)


def small_log(directory: Path, *, size: int = 10, records: int = 8, segment_bytes: int = 320) -> list[int]:
    """A closed log, by default of several segments; its versions."""
    log = Wal.create(directory, DATABASE, segment_bytes=segment_bytes)
    for version in range(1, records + 1):
        ops = [(PUT, 0, b"key%d" % version, bytes([version]) * size)]
        log.append(ops, version=version, epoch=1, clock_us=1)
    log.close()
    return list(range(1, records + 1))


def versions(
    directory: Path, files: Files | None = None
) -> tuple[list[list[int]], list[tuple[str, int, int]]]:
    """The versions in each piece, and the gaps."""
    pieces, gaps = scan_pieces(directory, DATABASE, files=files)
    found = [[record.version for record in piece.iter_records()] for piece in pieces]
    for piece, some in zip(pieces, found, strict=True):
        assert (piece.first_version, piece.last_version, piece.records) == (some[0], some[-1], len(some))
    return found, [(gap.file.name, gap.begin, gap.end) for gap in gaps]


def test_a_whole_log_is_one_piece(tmp_path: Path) -> None:
    everything = small_log(tmp_path / "wal")
    assert len(segment_files(tmp_path / "wal")) >= 3
    assert versions(tmp_path / "wal") == ([everything], [])
    assert versions(tmp_path / "missing") == ([], [])


def test_every_byte_of_a_log_flipped(tmp_path: Path) -> None:
    """What is hit is missing, and nothing else; two pieces never follow on each other by mistake."""
    everything = small_log(tmp_path / "wal")
    flips = 0
    for number, file in segment_files(tmp_path / "wal"):
        whole = file.read_bytes()
        for offset in range(len(whole)):
            flip(file, offset)
            found, gaps = versions(tmp_path / "wal")
            missing = sorted(set(everything) - {version for piece in found for version in piece})
            assert sum(map(len, found)) + len(missing) == len(everything)
            if offset < 64:  # a header's end is found by the record behind it
                assert missing == [] and found == [everything], (number, offset)
                assert gaps == [(file.name, 0, 64)]
            else:
                assert len(missing) == 1, (number, offset)
                ((name, begin, end),) = gaps
                assert name == file.name and begin <= offset < end
                assert all(piece[-1] < missing[0] or piece[0] > missing[0] for piece in found)
            file.write_bytes(whole)
            flips += 1
    print(f"{flips} flips, wrong 0")
    assert flips > 900


def test_what_the_disk_cannot_read_is_a_gap(tmp_path: Path) -> None:
    everything = small_log(tmp_path / "wal", size=1000, records=40, segment_bytes=MIB)
    found, gaps = versions(tmp_path / "wal", Unreadable(3))
    missing = set(everything) - {version for piece in found for version in piece}
    assert 3 <= len(missing) <= 6 and len(found) == 2
    ((_, begin, end),) = gaps
    assert begin <= 3 * 4096 and end >= 4 * 4096
    assert versions(tmp_path / "wal", Unreadable()) == ([everything], [])


def test_records_of_another_log_are_pieces_of_their_own(tmp_path: Path) -> None:
    """A segment of an earlier life of the store is whole, but nothing leads to it."""
    small_log(tmp_path / "old", records=4, segment_bytes=MIB)
    small_log(tmp_path / "wal", size=31, records=4, segment_bytes=MIB)
    (_, old), = segment_files(tmp_path / "old")
    (_, file), = segment_files(tmp_path / "wal")
    with file.open("ab") as log:
        log.write(old.read_bytes()[64:])
    assert versions(tmp_path / "wal") == ([[1, 2, 3, 4], [1, 2, 3, 4]], [])
    pieces, _ = scan_pieces(tmp_path / "wal", bytes(16))
    assert pieces == []
