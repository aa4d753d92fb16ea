"""Records and segments of another log, another time or another place in the log are refused."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from damaged_log import DATABASE, OTHER, TINY, Log, build, expected, load, recover_and_append, refused, splice

from inmem.errors import CorruptionError, FormatVersionError
from inmem.storage.wal.format import PUT, encode_record, encode_segment_header
from inmem.storage.wal.log import Wal
from inmem.storage.wal.scan import scan


def test_segments_missing_doubled_exchanged(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    first, second, third = (log.path(n) for n in (1, 2, 3))
    keep = {p: p.read_bytes() for p in (first, second, third)}

    def restore() -> None:
        for path in log.directory.iterdir():
            path.unlink()
        for path, data in keep.items():
            path.write_bytes(data)

    second.unlink()
    refused(log.directory, second, 0)
    restore()
    log.path(4).write_bytes(keep[third])  # the same segment twice
    refused(log.directory, log.path(4), 0)
    restore()
    second.write_bytes(keep[first])  # an older segment under a newer name
    refused(log.directory, second, 0)
    restore()
    first.write_bytes(keep[second])
    second.write_bytes(keep[first])
    refused(log.directory, first, 0)
    restore()
    log.path(5).write_bytes(b"")  # even an empty file has a place in the sequence
    refused(log.directory, log.path(4), 0)
    restore()
    log.path(4).write_bytes(b"")  # but in its place it is a creation cut short
    result, records = load(log.directory)
    assert records == expected(log.entries) and result.torn is not None
    assert (result.torn.file, result.torn.offset) == (log.path(4), 0)
    recover_and_append(log.directory, log.entries)


def test_segments_of_another_log(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    last = load(log.directory)[0].end
    assert last is not None
    cases = [
        encode_segment_header(segment=4, database_id=OTHER, previous=last.checksum),
        encode_segment_header(segment=5, database_id=DATABASE, previous=last.checksum),
        encode_segment_header(segment=4, database_id=DATABASE, previous=last.checksum ^ 1),
    ]
    for data in cases:
        log.path(4).write_bytes(data)
        refused(log.directory, log.path(4), 0)
    with pytest.raises(CorruptionError, match="another database"):
        scan(log.directory, OTHER)
    # A backup of the second segment, taken before it was full.
    log.path(4).unlink()
    middle = [e for e in log.entries if e.segment == 2]
    os.truncate(log.path(2), middle[-2].end)
    refused(log.directory, log.path(3), 0)


def test_another_format_version_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inmem.storage.wal.format.FORMAT_VERSION", 2)
    Wal.create(tmp_path / "wal", DATABASE, segment_bytes=TINY).close()
    with pytest.raises(FormatVersionError) as caught:
        scan(tmp_path / "wal", DATABASE)
    assert (caught.value.found, caught.value.supported) == (2, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"database_id": OTHER}, "another database"),
        ({"epoch": 1}, "epoch 1 after"),
        ({"version": 1}, "version 1 after"),
        ({"version": None}, "after one of version"),
        ({"previous": 12345}, "does not follow"),
    ],
)
def test_a_whole_record_that_does_not_belong(tmp_path: Path, change: dict[str, int], reason: str) -> None:
    log = build(tmp_path / "wal")
    end = load(log.directory)[0].end
    assert end is not None
    fields = {
        "version": end.version + 1, "epoch": 2, "database_id": DATABASE, "durable_version": 0,
        "previous": end.checksum, "clock_us": 5,
    }
    good, _ = encode_record([], **fields)  # type: ignore[arg-type]
    bad_fields = fields | {k: end.version if v is None else v for k, v in change.items()}
    bad, _ = encode_record([], **bad_fields)  # type: ignore[arg-type]
    splice(log.path(3), end.offset, good)
    assert len(load(log.directory)[1]) == len(log.entries) + 1, "the splice itself must be sound"
    splice(log.path(3), end.offset, bad, drop=len(good))
    refused(log.directory, log.path(3), end.offset)
    with pytest.raises(CorruptionError, match=reason):
        load(log.directory)


def test_records_doubled_removed_exchanged(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    cases = 0
    for number in (1, 2, 3):
        data = log.path(number).read_bytes()
        here = [e for e in log.entries if e.segment == number]
        for before, entry in pairwise(here):
            one, two = data[before.offset : before.end], data[entry.offset : entry.end]
            doubled = data[: before.end] + one + data[before.end :]
            removed = data[: before.offset] + data[before.end :]
            exchanged = data[: before.offset] + two + one + data[entry.end :]
            for spliced, at in ((doubled, before.end), (removed, before.offset), (exchanged, before.offset)):
                log.path(number).write_bytes(spliced)
                refused(log.directory, log.path(number), at)
                cases += 1
        log.path(number).write_bytes(data)
    print(f"splices {cases}")
    assert cases > 15


def test_a_record_inside_a_value_proves_nothing(tmp_path: Path) -> None:
    """A user may store a copy of a log in the store; its records are older than what is good."""
    log = Log(tmp_path / "wal", segment_bytes=1 << 20)
    for _ in range(5):
        log.append()
        log.wal.sync()
    copy = log.path(1).read_bytes()
    log.wal.append([(PUT, 1, b"copy", copy)], version=6, epoch=1, clock_us=9)
    log.wal.close()
    os.truncate(log.path(1), log.path(1).stat().st_size - 1)
    result, records = load(log.directory)
    assert records == expected(log.entries) and result.torn is not None
