"""The log is cut at every offset: what is left is its longest valid prefix."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from damaged_log import SEED, Log, build, expected, load, recover_and_append, refused

from inmem.storage.wal.files import LogPosition
from inmem.storage.wal.format import SEGMENT_HEADER_BYTES


def test_cut_at_every_offset(tmp_path: Path) -> None:
    """A log that ends anywhere gives exactly the records that are whole."""
    log = build(tmp_path / "wal")
    cuts = 0
    for number in (3, 2, 1):
        data = log.path(number).read_bytes()
        for size in range(len(data) - 1, -1, -1):
            os.truncate(log.path(number), size)
            whole = [e for e in log.entries if (e.segment, e.end) <= (number, size)]
            result, records = load(log.directory)
            assert records == expected(whole), f"{number} cut at {size}"
            ends = [SEGMENT_HEADER_BYTES] + [e.end for e in whole if e.segment == number]
            if size in ends:
                assert result.torn is None
            else:
                at = 0 if size < SEGMENT_HEADER_BYTES else ends[-1]
                assert result.torn is not None
                assert result.torn.file == log.path(number)
                assert (result.torn.offset, result.torn.dropped_bytes) == (at, size - at)
            if size % 7 == 0:
                copy = tmp_path / "copy"
                shutil.copytree(log.directory, copy)
                recover_and_append(copy, whole)
                shutil.rmtree(copy)
            cuts += 1
        log.path(number).unlink()
    print(f"cuts {cuts}")
    assert cuts > 900


def test_a_segment_cut_at_every_offset_while_later_ones_remain(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    cuts = 0
    for number in (1, 2):
        data = log.path(number).read_bytes()
        for size in range(len(data)):
            log.path(number).write_bytes(data[:size])
            ends = [e.end for e in log.entries if e.segment == number and e.end <= size]
            if size < SEGMENT_HEADER_BYTES:
                refused(log.directory, log.path(number), 0)
            elif size in ends or size == SEGMENT_HEADER_BYTES:
                # What is left is whole: it is the next segment that does not follow on it.
                refused(log.directory, log.path(number + 1), 0)
            else:
                refused(log.directory, log.path(number), max([SEGMENT_HEADER_BYTES, *ends]))
            cuts += 1
        log.path(number).write_bytes(data)
    print(f"cuts {cuts}")
    assert load(log.directory)[1] == expected(log.entries)


def test_cut_then_append_then_scan(tmp_path: Path) -> None:
    """Random appends, syncs and cuts against a list; versions are used again."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    crossed = cuts = 0
    for round_number in range(40):
        log = Log(tmp_path / f"wal{round_number}")
        marks: list[tuple[LogPosition, int]] = [(log.wal.position(), 0)]
        for _ in range(rng.randrange(1, 30)):
            step = rng.random()
            if step < 0.65:
                log.append(rng.randrange(60))
                marks.append((log.wal.position(), len(log.entries)))
            elif step < 0.8:
                assert log.wal.sync() == log.wal.version
            else:
                mark, count = marks[max(0, len(marks) - rng.randrange(1, 5))]
                crossed += mark.segment < log.wal.position().segment
                log.wal.cut(mark)
                cuts += 1
                assert log.wal.position() == mark
                assert log.wal.durable_version == log.wal.version == mark.version
                marks = [m for m in marks if m[1] <= count]
                del log.entries[count:]
            assert log.wal.durable_version <= log.wal.version
            assert log.wal.bytes == sum(p.stat().st_size for p in log.directory.iterdir())
        log.wal.close()
        result, records = load(log.directory)
        assert records == expected(log.entries) and result.torn is None
    print(f"cuts {cuts}, over a segment {crossed}")
    assert cuts > 50 and crossed > 5
