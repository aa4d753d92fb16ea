"""The log by itself: what was appended is found again, and what may not be done is refused."""

from __future__ import annotations

import stat
from itertools import pairwise
from pathlib import Path

import pytest
from damaged_log import DATABASE, TINY, Log, Unsynced, build, expected, load

from inmem.storage.wal.files import LogPosition
from inmem.storage.wal.format import SEGMENT_HEADER_BYTES
from inmem.storage.wal.log import Wal
from inmem.storage.wal.scan import rewrite_tail


def test_a_log_reads_back_as_it_was_written(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    result, records = load(log.directory)
    last = log.entries[-1]
    assert records == expected(log.entries)
    assert result.torn is None and len(result.segments) == 3
    assert result.end is not None and result.end[:3] == (3, last.end, last.version)
    assert result.end.epoch == 2
    assert result.durable_version == max(e.durable for e in log.entries)
    assert result.clock_us == 1000 + last.version
    assert stat.S_IMODE(log.directory.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(s.file.stat().st_mode) == 0o600 for s in result.segments)
    assert log.wal.bytes == sum(s.file.stat().st_size for s in result.segments)
    for before, entry in pairwise(log.entries):
        if entry.segment > before.segment:
            assert entry.durable == before.version, "a segment begins after the one before is durable"
    places = [(r.file, r.offset, r.end) for r in result.iter_records()]
    assert places == [(str(log.path(e.segment)), e.offset, e.end) for e in log.entries]


def test_every_record_is_found_and_reading_goes_on_after_it(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    result, records = load(log.directory)
    for number, record in enumerate(result.iter_records()):
        position = result.find(record.version, record.checksum)
        entry = log.entries[number]
        assert position == (entry.segment, entry.end, record.version, record.checksum, record.epoch)
        assert [r.version for r in result.iter_records(position)] == [v for v, _ in records[number + 1 :]]
        assert result.find(record.version, record.checksum ^ 1) is None
    assert result.find(0, 0) == result.start == LogPosition(1, SEGMENT_HEADER_BYTES, 0, 0, 0)
    assert result.find(10_000, 1) is None
    assert next(result.iter_records(result.start)).version == 1


def test_release_removes_only_what_a_checkpoint_covers(tmp_path: Path) -> None:
    log = Log(tmp_path / "wal")
    while log.wal.position().segment < 4:
        log.append()
    first_gone = [e for e in log.entries if e.segment == 1][-1]
    before, _ = load(log.directory)
    checksum = next(r for r in before.iter_records() if r.version == first_gone.version).checksum
    assert log.wal.release(first_gone.version - 1) == 0
    assert log.wal.release(first_gone.version) == 1
    log.append()
    result, records = load(log.directory)
    assert records == expected([e for e in log.entries if e.segment > 1])
    at_start = LogPosition(2, SEGMENT_HEADER_BYTES, first_gone.version, checksum, 0)
    assert result.find(first_gone.version, checksum) == at_start
    assert result.find(0, 0) is None, "an empty store does not reach this log"
    assert log.wal.release(10_000) == 2, "the segment in use stays"
    assert log.wal.bytes == sum(p.stat().st_size for p in log.directory.iterdir())
    # Reopened, the same holds of the segments found.
    result, _ = load(log.directory)
    rewrite_tail(result)
    log.wal.close()
    log.wal = Wal.open_at(result, segment_bytes=TINY, version=500, epoch=3, files=Unsynced())
    assert log.wal.version == log.wal.durable_version == 500
    with pytest.raises(ValueError):
        log.wal.append([], version=500, epoch=3, clock_us=0)
    with pytest.raises(ValueError):
        log.wal.append([], version=501, epoch=2, clock_us=0)
    with pytest.raises(FileExistsError):
        Wal.create(log.directory, DATABASE, segment_bytes=TINY)
    log.wal.close()


def test_an_unfinished_recovery_cannot_be_appended_to(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    with log.path(3).open("ab") as file:
        file.write(b"junk")
    result, _ = load(log.directory)
    with pytest.raises(ValueError, match="rewrite the tail"):
        Wal.open_at(result, segment_bytes=TINY)
    assert scan_empty(tmp_path / "empty") is None


def scan_empty(directory: Path) -> LogPosition | None:
    directory.mkdir()
    (directory / "notes.txt").write_text("not a segment")
    result, records = load(directory)
    assert records == [] and result.torn is None and result.find(0, 0) is None
    with pytest.raises(ValueError, match="no segment"):
        Wal.open_at(result, segment_bytes=TINY)
    return result.end


def test_a_mark_beyond_the_end_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path / "wal")
    start = log.wal.position()
    log.append()
    late = log.wal.position()
    log.wal.cut(start)
    with pytest.raises(ValueError):
        log.wal.cut(late)
    log.wal.close()
    with pytest.raises(ValueError, match="closed"):
        log.wal.sync()
