"""The log under every cut, every flipped bit, splices, and failing system calls.

What ought to come back is worked out from a list kept while appending, not
from the log: the oracle shares nothing with the code that it judges.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest

from inmem.errors import CorruptionError, FormatVersionError
from inmem.storage.wal import walk as wal_module
from inmem.storage.wal.files import Files, LogPosition
from inmem.storage.wal.format import (
    DELETE,
    PUT,
    SEGMENT_HEADER_BYTES,
    Op,
    checksum_of,
    encode_record,
    encode_segment_header,
)
from inmem.storage.wal.log import Wal, WalBrokenError
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


# --- the log as it should be ------------------------------------------------------------------


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


# --- cut and flipped --------------------------------------------------------------------------


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


def verdict(log: Log, number: int, offset: int) -> tuple[bool, list[Entry], int]:
    """Whether a damaged byte must be refused; the records before it; where the damage starts."""
    if offset < SEGMENT_HEADER_BYTES:
        return True, [], 0
    hit = next(i for i, e in enumerate(log.entries) if e.segment == number and e.offset <= offset < e.end)
    good = log.entries[:hit]
    version = good[-1].version if good else 0
    proven = any(e.durable > version for e in log.entries[hit + 1 :])
    return number < 3 or proven, good, log.entries[hit].offset


def test_flip_bits_of_every_byte(tmp_path: Path) -> None:
    """Two bits of each byte, one at a time: refused with the place, or the exact prefix."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    log = build(tmp_path / "wal")
    refusals = prefixes = 0
    for number in (1, 2, 3):
        data = log.path(number).read_bytes()
        for offset in range(len(data)):
            must_refuse, good, start = verdict(log, number, offset)
            for bit in rng.sample(range(8), 2):
                flipped = bytearray(data)
                flipped[offset] ^= 1 << bit
                log.path(number).write_bytes(flipped)
                if must_refuse:
                    refused(log.directory, log.path(number), start)
                    refusals += 1
                else:
                    result, records = load(log.directory)
                    assert records == expected(good), f"segment {number} byte {offset} bit {bit}"
                    assert result.torn is not None
                    place = (log.path(number), start, len(data) - start)
                    assert (result.torn.file, result.torn.offset, result.torn.dropped_bytes) == place
                    prefixes += 1
        log.path(number).write_bytes(data)
    print(f"flips {refusals + prefixes}: refused {refusals}, prefix {prefixes}")
    assert refusals > 500 and prefixes > 100
    assert load(log.directory)[1] == expected(log.entries)


def test_zeros_from_every_offset_on(tmp_path: Path) -> None:
    """Pages that were never written, and a file longer than its data."""
    log = build(tmp_path / "wal")
    data = log.path(3).read_bytes()
    cases = 0
    for offset in range(SEGMENT_HEADER_BYTES, len(data) + 1):
        for beyond in (0, 100):
            log.path(3).write_bytes(data[:offset] + bytes(len(data) - offset + beyond))
            result, records = load(log.directory)
            whole = [e for e in log.entries if (e.segment, e.end) <= (3, offset)]
            # A record whose last bytes are zeros anyway is whole a little earlier.
            whole += [e for e in log.entries[len(whole) :][:1] if not data[offset : e.end].strip(b"\0")]
            assert records == expected(whole), offset
            if offset < len(data) or beyond:
                end = max([SEGMENT_HEADER_BYTES, *(e.end for e in whole if e.segment == 3)])
                assert result.torn is not None and result.torn.offset == end
            cases += 1
    print(f"zero tails {cases}")


def test_a_hole_of_zeros_before_every_record(tmp_path: Path) -> None:
    """A lost page with later ones written: a proof of durability decides."""
    log = build(tmp_path / "wal")
    data = log.path(3).read_bytes()
    seen = set()
    for entry in (e for e in log.entries if e.segment == 3):
        log.path(3).write_bytes(data[: entry.offset] + bytes(entry.end - entry.offset) + data[entry.end :])
        must_refuse, good, start = verdict(log, 3, entry.offset)
        seen.add(must_refuse)
        if must_refuse:
            refused(log.directory, log.path(3), start)
        else:
            assert load(log.directory)[1] == expected(good)
            copy = tmp_path / "copy"
            shutil.copytree(log.directory, copy)
            recover_and_append(copy, good)
            shutil.rmtree(copy)
    assert seen == {True, False}


def test_the_search_for_proof_crosses_its_own_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = build(tmp_path / "wal")
    must_refuse, _, start = verdict(log, 3, SEGMENT_HEADER_BYTES)
    assert must_refuse
    data = bytearray(log.path(3).read_bytes())
    data[start] ^= 1
    log.path(3).write_bytes(data)
    for chunk in range(72, 200):
        monkeypatch.setattr(wal_module, "CHUNK", chunk)
        refused(log.directory, log.path(3), start)
    data[start] ^= 1
    log.path(3).write_bytes(data)
    for chunk in range(72, 200):
        monkeypatch.setattr(wal_module, "CHUNK", chunk)
        assert load(log.directory)[1] == expected(log.entries)


# --- splices ----------------------------------------------------------------------------------


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


def test_junk_after_the_last_record_of_a_finished_segment(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    data = log.path(1).read_bytes()
    log.path(1).write_bytes(data + b"junk")
    refused(log.directory, log.path(1), len(data))
    log.path(1).write_bytes(data + bytes(50))
    assert load(log.directory)[1] == expected(log.entries), "zeros end a segment, and the chain goes on"


def test_a_payload_of_nonsense_with_a_right_checksum(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    entry = log.entries[2]
    data = bytearray(log.path(1).read_bytes())
    payload = msgpack.packb([[9, 1, b"key"]])
    record = data[entry.offset : entry.offset + 72] + payload
    record[12:16] = len(payload).to_bytes(4, "little")
    record[4:12] = checksum_of(bytes(record)).to_bytes(8, "little")
    for path in (log.path(2), log.path(3)):
        path.unlink()
    log.path(1).write_bytes(data[: entry.offset] + record)
    refused(log.directory, log.path(1), entry.offset)


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


# --- failing system calls ---------------------------------------------------------------------


def test_a_failed_fsync_is_never_tried_again(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", segment_bytes=1 << 20, files=files)
    log.append()
    assert log.wal.sync() == 1
    log.append()
    mark = log.wal.position()
    files.plan["fdatasync"] = [errno.EIO]
    with pytest.raises(WalBrokenError) as caught:
        log.wal.sync()
    assert caught.value.errno == errno.EIO and log.wal.failed
    assert log.wal.durable_version == 1
    files.calls.clear()
    for call in (
        log.wal.sync,
        lambda: log.wal.append([], version=9, epoch=1, clock_us=0),
        lambda: log.wal.cut(mark),
        lambda: log.wal.release(1),
    ):
        with pytest.raises(WalBrokenError):
            call()
    assert files.calls == [], "a broken log makes no system call"
    assert log.wal.durable_version == 1
    log.wal.close()
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_failed_fsync_in_a_rotation(tmp_path: Path, call: str) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    while log.wal.position().offset < TINY:
        log.append()
    files.plan[call] = [errno.EIO]
    with pytest.raises(WalBrokenError):
        log.wal.append([], version=99, epoch=1, clock_us=0)
    assert log.wal.failed
    if call == "fdatasync":
        assert log.wal.durable_version == 0 and not log.path(2).exists()
    log.wal.close()
    recover_and_append(log.directory, log.entries)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("written", [None, 1, 3, 50, 71, 72, 73, 90])
def test_a_failed_write_leaves_the_log_as_it_was(tmp_path: Path, number: int, written: int | None) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    for _ in range(2):
        log.append()
    before = log.path(1).read_bytes()
    files.short = [] if written is None else [written]
    files.plan["write"] = [number] if written is None else [None, number]
    with pytest.raises(OSError) as caught:
        log.append(40)
    assert caught.value.errno == number and not isinstance(caught.value, WalBrokenError)
    assert log.path(1).read_bytes() == before
    assert not log.wal.failed and log.wal.version == 2
    assert load(log.directory)[1] == expected(log.entries)
    while log.wal.position().segment < 2:  # space is back
        log.append()
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_short_writes_are_carried_on(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    for version in range(1, 12):
        files.short = [1] * (version * 8) if version < 8 else [7, 64, 2]
        log.append(20)
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_a_write_that_writes_nothing_ends(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    files.short = [5, 0]
    with pytest.raises(OSError, match="wrote nothing"):
        log.append()
    log.append()
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_a_tail_that_cannot_be_trimmed_breaks_the_log(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    log.append()
    files.short, files.plan = [30], {"write": [None, errno.ENOSPC], "ftruncate": [errno.EIO]}
    with pytest.raises(WalBrokenError):
        log.append()
    with pytest.raises(WalBrokenError):
        log.append()
    log.wal.close()
    result, records = load(log.directory)
    assert records == expected(log.entries)
    assert result.torn is not None and result.torn.dropped_bytes == 30
    recover_and_append(log.directory, log.entries)


@pytest.mark.parametrize("call", ["open", "write"])
def test_no_space_for_a_new_segment(tmp_path: Path, call: str) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    while log.wal.position().offset < TINY:
        log.append()
    files.plan[call] = [errno.ENOSPC]
    with pytest.raises(OSError) as caught:
        log.append()
    assert caught.value.errno == errno.ENOSPC and not log.wal.failed
    assert not log.path(2).exists(), "a half-made segment would call the one before it finished"
    log.append()
    log.wal.close()
    assert log.wal.position().segment == 2
    assert load(log.directory)[1] == expected(log.entries)


def test_a_half_made_segment_that_cannot_be_removed_breaks_the_log(tmp_path: Path) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    while log.wal.position().offset < TINY:
        log.append()
    files.short, files.plan = [20], {"write": [None, errno.ENOSPC], "unlink": [errno.EIO]}
    with pytest.raises(WalBrokenError):
        log.append()
    assert log.wal.failed and log.path(2).stat().st_size == 20
    log.wal.close()
    recover_and_append(log.directory, log.entries)


def test_a_sector_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    class BadSector(Unsynced):
        def read(self, fd: int, count: int, offset: int) -> bytes:
            if offset >= SEGMENT_HEADER_BYTES:
                raise OSError(errno.EIO, "bad sector")
            return super().read(fd, count, offset)

    log = build(tmp_path / "wal")
    with pytest.raises(CorruptionError) as caught:
        scan(log.directory, DATABASE, files=BadSector())
    assert (caught.value.file, caught.value.offset) == (str(log.path(1)), SEGMENT_HEADER_BYTES)


def test_recovery_writes_the_tail_anew_and_syncs_in_order(tmp_path: Path) -> None:
    log = build(tmp_path / "wal")
    with log.path(3).open("ab") as file:
        file.write(b"torn")

    class Recording(Unsynced):
        def __init__(self) -> None:
            self.events: list[tuple[str, int, int]] = []

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            self.events.append(("write", offset, len(data)))
            return super().write(fd, data, offset)

        def ftruncate(self, fd: int, size: int) -> None:
            self.events.append(("ftruncate", size, 0))
            super().ftruncate(fd, size)

        def fsync(self, fd: int) -> None:
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            self.events.append(("fsync directory" if directory else "fsync file", 0, 0))

    before = log.path(3).read_bytes()[:-4]
    files = Recording()
    result = scan(log.directory, DATABASE, files=files)
    durable = next(e for e in log.entries if e.version == result.durable_version)
    assert rewrite_tail(result) == result.end
    assert files.events == [
        ("ftruncate", len(before), 0),
        ("write", durable.end, len(before) - durable.end),
        ("fsync file", 0, 0),
        ("fsync directory", 0, 0),
    ]
    assert log.path(3).read_bytes() == before


def test_what_a_scan_takes_for_durable_is(tmp_path: Path) -> None:
    """Never more than a later record proves, and as much at most as two fsyncs have made durable since."""
    rng = random.Random(SEED)
    exact = 0
    for round_number in range(60):
        log = Log(tmp_path / f"wal{round_number}", segment_bytes=rng.choice([TINY, 4 * TINY]))
        for _ in range(rng.randrange(1, 60)):
            log.append(rng.randrange(60), version=log.wal.version + rng.randrange(1, 4))
            if rng.random() < rng.choice([0.05, 0.5]):
                log.wal.sync()
        log.wal.close()
        some = rng.choice(log.entries)
        result = scan(log.directory, DATABASE, since=some.version, files=Unsynced())
        last = [e for e in log.entries if e.segment == log.entries[-1].segment]
        proven = [e.end for e in last if e.version <= result.durable_version]
        assert result.durable_end <= (proven[-1] if proven else 0), f"seed {SEED}, round {round_number}"
        assert result.durable_end in {0, *(e.end for e in last)}
        exact += result.durable_end == (proven[-1] if proven else 0)
        assert result.since_end is not None and result.since_end.offset == some.end
        assert result.find(some.version, result.since_end.checksum) == result.since_end
        assert result.find(some.version, result.since_end.checksum ^ 1) is None
        before = [log.path(n).read_bytes() for n in range(1, last[-1].segment + 1)]
        rewrite_tail(result)
        assert [log.path(n).read_bytes() for n in range(1, last[-1].segment + 1)] == before
    print(f"seed {SEED}: {exact} of 60 exact")
    assert exact > 20


# --- cut back ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("call", ["ftruncate", "fsync", "unlink"])
def test_a_cut_that_fails_breaks_the_log(tmp_path: Path, call: str) -> None:
    files = Failing()
    log = Log(tmp_path / "wal", files=files)
    log.append()
    mark = log.wal.position()
    while log.wal.position().segment < 2:
        log.append()
    log.wal.sync()
    files.plan[call] = [errno.EIO]
    with pytest.raises(WalBrokenError):
        log.wal.cut(mark)
    assert log.wal.failed and log.wal.durable_version == 1
    log.wal.close()
    _, records = load(log.directory)
    assert records == expected(log.entries)[: len(records)] and len(records) >= 1


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


# --- two threads ------------------------------------------------------------------------------


class Gate(Unsynced):
    """Holds an fdatasync until told, and notes the order of calls."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.order: list[str] = []

    def fdatasync(self, fd: int) -> None:
        self.order.append("fdatasync begins")
        self.entered.set()
        assert self.leave.wait(20)
        self.order.append("fdatasync ends")

    def ftruncate(self, fd: int, size: int) -> None:
        self.order.append("ftruncate")
        super().ftruncate(fd, size)


def test_a_sync_counts_only_what_was_there_when_it_began(tmp_path: Path) -> None:
    files = Gate()
    log = Log(tmp_path / "wal", segment_bytes=1 << 20, files=files)
    log.append()
    thread = threading.Thread(target=log.wal.sync)
    thread.start()
    assert files.entered.wait(20)
    entry = log.append()  # does not wait for the fdatasync
    assert log.wal.durable_version == 0 and entry.durable == 0
    files.leave.set()
    thread.join(20)
    assert log.wal.durable_version == 1
    assert log.wal.sync() == 2
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries)


def test_a_cut_waits_for_a_sync_under_way(tmp_path: Path) -> None:
    files = Gate()
    log = Log(tmp_path / "wal", segment_bytes=1 << 20, files=files)
    log.append()
    mark = log.wal.position()
    log.append()
    syncing = threading.Thread(target=log.wal.sync)
    syncing.start()
    assert files.entered.wait(20)
    begun = threading.Event()

    def cut() -> None:
        begun.set()
        log.wal.cut(mark)

    cutting = threading.Thread(target=cut)
    cutting.start()
    assert begun.wait(20)
    files.leave.set()
    syncing.join(20)
    cutting.join(20)
    assert files.order == ["fdatasync begins", "fdatasync ends", "ftruncate"]
    assert log.wal.durable_version == log.wal.version == 1
    log.wal.close()
    assert load(log.directory)[1] == expected(log.entries[:1])


def test_syncing_all_the_while(tmp_path: Path) -> None:
    """Rotations and cuts under a thread that syncs without a pause."""
    log = Log(tmp_path / "wal", segment_bytes=700)
    stop = threading.Event()
    wrong: list[object] = []

    def run() -> None:
        try:
            while not stop.is_set():
                log.wal.sync()
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for number in range(150):
            mark = log.wal.position()
            log.append(number % 50)
            if number % 5 == 0:
                log.wal.cut(mark)
                log.entries.pop()
            if log.wal.durable_version > log.wal.version:
                wrong.append(number)
    finally:
        stop.set()
        thread.join(20)
    assert wrong == []
    log.wal.sync()
    log.wal.close()
    result, records = load(log.directory)
    assert records == expected(log.entries) and len(result.segments) > 5
