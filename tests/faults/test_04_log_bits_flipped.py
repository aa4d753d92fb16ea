"""Flipped bits, zeros and nonsense in the log: cut as a torn tail or refused, never wrong."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import msgpack
import pytest
from damaged_log import DATABASE, SEED, Unsynced, build, expected, load, recover_and_append, refused, verdict

from inmem.errors import CorruptionError
from inmem.storage.wal import walk as wal_module
from inmem.storage.wal.format import SEGMENT_HEADER_BYTES, checksum_of
from inmem.storage.wal.scan import scan


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
