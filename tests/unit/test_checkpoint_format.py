"""The format of checkpoints and backups: pinned by a golden file, and under every cut and flip."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from xxhash import xxh3_64_intdigest

from inmem.errors import CorruptionError, FormatVersionError, PermissionDeniedError
from inmem.storage import checkpoint as module
from inmem.storage.checkpoint import (
    CheckpointHeader,
    CheckpointReader,
    Lost,
    Written,
    checkpoint_files,
    checkpoint_path,
    newest_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from inmem.storage.environment import Table

GOLDEN = Path(__file__).parent / "golden" / "checkpoint.hex"
# Each field has bytes that occur nowhere else, so that two fields exchanged cannot go unseen.
HEADER = CheckpointHeader(
    bytes(range(16)), 0x0102030405060708, 0x1112131415161718, 0x2122232425262728, 0x3132333435363738,
    {"durability": "sync", "quota_bytes": 1 << 30, "linger_s": 2.0},
)
Items = list[tuple[bytes, bytes]]
TABLES: list[tuple[Table, Items]] = [
    (Table.DATA, [(b"a\0\1k", b"\0value"), (b"a\0\1l", b"")]),
    (Table.SESSIONS, [(b"s" * 16, b"outcomes")]),
    (Table.FENCES, []),
    (Table.EXPIRY, [(b"\0" * 8 + b"a\0\1k", b"")]),
]


def many_frames() -> list[tuple[Table, Items]]:
    """Five frames of DATA, if each entry is one, and one each of two other tables."""
    return [
        (Table.DATA, [(b"run-%d\0\1k" % n, b"%d" % n * 20) for n in range(5)]),
        (Table.FENCES, [(b"f" * 16, b"\0" * 8)]),
        (Table.EXPIRY, [(b"e" * 9, b"")]),
    ]


@pytest.fixture
def one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of one entry."""
    monkeypatch.setattr(module, "_FRAME_BYTES", 1)


def read(path: Path) -> tuple[CheckpointHeader, list[tuple[Table, Items]]]:
    with CheckpointReader(path) as reader:
        return reader.header, list(reader.frames())


def frames_of(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of each frame, by the lengths alone."""
    at, found = 16, []
    while at < len(data):
        end = at + 12 + struct.unpack_from("<I", data, at)[0]
        found.append((at, end))
        at = end
    return found


def make(path: Path, tables: list[tuple[Table, Items]] = TABLES) -> bytes:
    write_checkpoint(path, HEADER, tables)
    return path.read_bytes()


# --- as it should be --------------------------------------------------------------------------------


def test_the_file_is_golden(tmp_path: Path) -> None:
    data = make(tmp_path / "c")
    assert data.hex() == GOLDEN.read_text().strip()
    golden = tmp_path / "golden"
    golden.write_bytes(bytes.fromhex(GOLDEN.read_text()))
    header, tables = read(golden)
    assert header == HEADER
    assert tables == [table for table in TABLES if table[1]]


def test_the_fields_lie_where_the_table_says(tmp_path: Path) -> None:
    data = make(tmp_path / "c")
    assert data[:8] == b"INMEMCKP"
    assert struct.unpack_from("<II", data, 8) == (1, 0)
    seed, contents = 0, []
    for number, (begin, end) in enumerate(frames_of(data)):
        length, checksum = struct.unpack_from("<IQ", data, begin)
        payload = data[begin + 12 : end]
        assert len(payload) == length
        seed = xxh3_64_intdigest(data[:16] + payload if number == 0 else payload, seed)
        assert seed == checksum
        contents.append(msgpack.unpackb(payload))
    assert contents[0] == {
        "database": HEADER.database, "version": HEADER.version, "checksum": HEADER.checksum,
        "epoch": HEADER.epoch, "clock_us": HEADER.clock_us, "settings": HEADER.settings,
    }  # fmt: skip
    assert contents[1] == [0, [b"a\0\1k", b"\0value", b"a\0\1l", b""]]
    assert contents[-1] == [-1, 4]


def test_it_is_private_durable_and_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint_path(tmp_path, 7)
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    old = os.umask(0)
    try:
        written = write_checkpoint(path, HEADER, TABLES)
    finally:
        os.umask(old)
    assert synced == [str(path), str(tmp_path)], "the file first, then its name"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert written == Written(4, path.stat().st_size)
    assert verify_checkpoint(path) == (HEADER, written)
    with pytest.raises(FileExistsError):
        write_checkpoint(path, HEADER, [])
    assert verify_checkpoint(path) == (HEADER, written)


def test_frames_end_by_size_and_hold_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRAME_BYTES", 100)
    items = [(b"%05d" % n, bytes(n % 40)) for n in range(300)]
    data = make(tmp_path / "c", [(Table.DATA, items), (Table.EXPIRY, items[:3])])
    _, frames = read(tmp_path / "c")
    assert [item for table, some in frames if table == Table.DATA for item in some] == items
    assert frames[-1] == (Table.EXPIRY, items[:3])
    sizes = [sum(len(k) + len(v) for k, v in some) for _, some in frames[:-2]]
    assert len(sizes) > 50 and all(100 <= size < 150 for size in sizes)
    assert len(frames_of(data)) == len(frames) + 2


def test_a_value_larger_than_a_frame(tmp_path: Path) -> None:
    items = [(b"a", b"x"), (b"b", bytes(3 << 20)), (b"c", b"y")]
    make(tmp_path / "c", [(Table.DATA, items)])
    assert [item for _, some in read(tmp_path / "c")[1] for item in some] == items


def test_names(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None and newest_checkpoint(tmp_path) is None
    for name in ("unfinished", "1.checkpoint", f"{5:020d}.checkpoint.tmp"):
        (tmp_path / name).touch()
    assert checkpoint_files(tmp_path) == []
    paths = [checkpoint_path(tmp_path, version) for version in (9, 10, 1 << 40)]
    for path in reversed(paths):
        path.touch()
    assert checkpoint_files(tmp_path) == paths and newest_checkpoint(tmp_path) == paths[-1]


# --- damaged ------------------------------------------------------------------------------------------


def refused(path: Path, data: bytes, latest: int) -> CorruptionError:
    """That bytes are no checkpoint, told with the file and an offset that is not behind the damage."""
    path.write_bytes(data)
    with pytest.raises(CorruptionError) as caught:
        verify_checkpoint(path)
    error = caught.value
    assert error.file == str(path) and error.offset is not None
    assert 0 <= error.offset <= latest, error
    return error


def test_every_byte_flipped_in_every_bit(tmp_path: Path, one_each: None) -> None:
    path = tmp_path / "c"
    data = make(path)
    for offset in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[offset] ^= 1 << bit
            refused(path, bytes(flipped), offset)
        inverted = bytearray(data)
        inverted[offset] ^= 0xFF
        refused(path, bytes(inverted), offset)
    print(f"{len(data) * 9} flips, silent wrong 0")
    assert len(data) > 300


def test_cut_at_every_length(tmp_path: Path, one_each: None) -> None:
    path = tmp_path / "c"
    data = make(path)
    for length in range(len(data)):
        refused(path, data[:length], length)
    print(f"{len(data)} cuts, silent wrong 0")


@pytest.mark.parametrize("more", [b"\0", b"x" * 100])
def test_something_behind_the_end(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "c"
    data = make(path)
    assert "follows the end" in str(refused(path, data + more, len(data)))


def test_frames_missing_doubled_exchanged_and_spliced(tmp_path: Path, one_each: None) -> None:
    path, other = tmp_path / "c", tmp_path / "other"
    data = make(path, many_frames())
    write_checkpoint(other, CheckpointHeader(bytes(16), 1, 1, 1, 1, {}), many_frames())
    foreign = other.read_bytes()
    frames = frames_of(data)
    pieces = [data[begin:end] for begin, end in frames]
    for number in range(1, len(frames)):
        without = [*pieces[:number], *pieces[number + 1 :]]
        twice = [*pieces[: number + 1], *pieces[number:]]
        spliced = [*pieces[:number], foreign[slice(*frames_of(foreign)[number])], *pieces[number + 1 :]]
        for changed in (without, twice, spliced):
            refused(path, data[:16] + b"".join(changed), len(data))
        if number + 1 < len(frames):
            swapped = [*pieces[:number], pieces[number + 1], pieces[number], *pieces[number + 2 :]]
            refused(path, data[:16] + b"".join(swapped), frames[number][0])


def rebuilt(head: bytes, payloads: list[Any]) -> bytes:
    """A file with right checksums, whatever is in it."""
    data, seed = head, 0
    for number, content in enumerate(payloads):
        payload = content if isinstance(content, bytes) else msgpack.packb(content)
        seed = xxh3_64_intdigest(head + payload if number == 0 else payload, seed)
        data += struct.pack("<IQ", len(payload), seed) + payload
    return data


def fields(**changes: Any) -> dict[str, Any]:
    return {name: getattr(HEADER, name) for name in module._FIELDS} | changes


def head(version: int = 1, flags: int = 0) -> bytes:
    return b"INMEMCKP" + struct.pack("<II", version, flags)


@pytest.mark.parametrize(("version", "flags"), [(2, 0), (1, 1), (1 << 31, 5)])
def test_a_whole_file_of_another_release_is_no_damage(tmp_path: Path, version: int, flags: int) -> None:
    path = tmp_path / "c"
    path.write_bytes(rebuilt(head(version, flags), [fields(), [-1, 0]]))
    with pytest.raises(FormatVersionError) as caught:
        verify_checkpoint(path)
    assert (caught.value.found, caught.value.supported) == (version, 1)


@pytest.mark.parametrize(
    ("payloads", "problem"),
    [
        ([b"\xc1"], "does not parse"),
        ([[1, 2]], "does not say what this is"),
        ([fields(version="7")], "does not say what this is"),
        ([{"database": b"x"}], "does not say what this is"),
        ([fields(), [9, []]], "table 9"),
        ([fields(), [4, []]], "table 4"),
        ([fields(), [0, [b"k", b"v"]], [-1, 2]], "1 entries, and the end says 2"),
    ],
)
def test_right_checksums_around_the_wrong_content(tmp_path: Path, payloads: list[Any], problem: str) -> None:
    data = rebuilt(head(), payloads)
    assert problem in str(refused(tmp_path / "c", data, len(data)))


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    assert "no checkpoint or backup" in str(refused(tmp_path / "a", b"x" * 100, 0))
    refused(tmp_path / "b", b"", 0)
    link = tmp_path / "link"
    make(tmp_path / "c")
    link.symlink_to(tmp_path / "c")
    with pytest.raises(PermissionDeniedError):
        verify_checkpoint(link)
    with pytest.raises(PermissionDeniedError):
        verify_checkpoint(tmp_path)


# --- what a salvage can still prove ---------------------------------------------------------------------


def whole(path: Path) -> tuple[list[tuple[Table, bytes]], list[Lost]]:
    """The table and first key of each whole frame, and what lies between."""
    frames, lost = [], []
    with CheckpointReader(path) as reader:
        for part in reader.whole_frames():
            if isinstance(part, Lost):
                lost.append(part)
            else:
                frames.append((part[0], part[1][0][0]))
                assert len(part[1]) == 1
    return frames, lost


def test_frames_behind_a_damaged_one_are_proved(tmp_path: Path, one_each: None) -> None:
    """Every byte of every frame flipped: never a wrong frame, and only what is hit is missing."""
    path = tmp_path / "c"
    data = make(path, many_frames())
    all_frames, nothing = whole(path)
    assert len(all_frames) == 7 and nothing == []
    bounds = frames_of(data)
    outcomes = {"payload": 0, "checksum": 0, "length": 0}
    for number, (begin, end) in enumerate(bounds[1:-1]):
        for offset in range(begin, end):
            flipped = bytearray(data)
            flipped[offset] ^= 0x11
            path.write_bytes(flipped)
            frames, lost = whole(path)
            if offset >= begin + 12:
                assert frames == all_frames[:number] + all_frames[number + 1 :]
                assert lost == [Lost(begin, end, "a frame has a wrong checksum")]
                outcomes["payload"] += 1
            elif offset >= begin + 4:  # the next frame knows what the checksum was
                assert (frames, lost) == (all_frames, [])
                outcomes["checksum"] += 1
            else:
                assert frames == all_frames[:number] and lost[0].offset == begin
                assert lost[-1].end == len(data)
                outcomes["length"] += 1
    print(outcomes)
    assert min(outcomes.values()) > 0


def test_several_damaged_frames(tmp_path: Path, one_each: None) -> None:
    path = tmp_path / "c"
    data = bytearray(make(path, many_frames()))
    all_frames, _ = whole(path)
    bounds = frames_of(bytes(data))
    for number in (2, 3, 5):
        data[bounds[number][1] - 1] ^= 1
    path.write_bytes(data)
    frames, lost = whole(path)
    assert frames == [all_frames[0], all_frames[3], *all_frames[5:]]
    assert [(one.offset, one.end) for one in lost] == [(bounds[2][0], bounds[3][1]), bounds[5]]


def test_a_damaged_file_that_ends_too_early(tmp_path: Path, one_each: None) -> None:
    path = tmp_path / "c"
    data = make(path, many_frames())
    all_frames, _ = whole(path)
    bounds = frames_of(data)
    for cut in range(bounds[1][0], len(data)):
        path.write_bytes(data[:cut])
        frames, lost = whole(path)
        complete = [number for number, (_, end) in enumerate(bounds[1:-1]) if end <= cut]
        assert frames == [all_frames[number] for number in complete]
        assert len(lost) == 1 and lost[0].end == cut
    path.write_bytes(data + b"more")
    assert whole(path) == (all_frames, [Lost(len(data), len(data) + 4, "something follows the end")])


class Unreadable:
    """A file with a sector that the disk cannot read."""

    def __init__(self, file: Any, at: int) -> None:
        self._file, self._at = file, at

    def read(self, count: int) -> bytes:
        begin = self._file.tell()
        if begin <= self._at < begin + count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(self._file.read(count))

    def close(self) -> None:
        self._file.close()


def test_what_the_disk_cannot_read_is_damage(tmp_path: Path, one_each: None) -> None:
    path = tmp_path / "c"
    data = make(path, many_frames())
    all_frames, _ = whole(path)
    bounds = frames_of(data)
    for number, (begin, end) in enumerate(bounds[1:-1]):
        for at in (begin, begin + 12, end - 1):
            for wanted in ("frames", "whole_frames"):
                with CheckpointReader(path) as reader:
                    reader._file = Unreadable(reader._file, at)  # type: ignore[assignment]
                    if wanted == "frames":
                        with pytest.raises(CorruptionError, match="cannot read") as caught:
                            list(reader.frames())
                        assert caught.value.offset == begin
                        continue
                    *frames, lost = reader.whole_frames()
                assert [(part[0], part[1][0][0]) for part in frames] == all_frames[:number]
                assert isinstance(lost, Lost) and (lost.offset, lost.end) == (begin, len(data))
