"""Checkpoints and segments that are exchanged, damaged or missing are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpointing import checkpoints, remove_image
from crash_workers import RUN
from support import control_state, kill_writer, stop_writer, writer_pid

import inmem
from inmem.errors import CorruptionError
from inmem.host.directory import DataDirectory
from inmem.maintenance.check import check
from inmem.storage.checkpoint import (
    CheckpointHeader,
    CheckpointReader,
    checkpoint_path,
    verify_checkpoint,
    write_checkpoint,
)
from inmem.storage.wal.files import segment_files
from inmem.storage.wal.scan import scan


def open_refused(path: Path) -> CorruptionError:
    with pytest.raises(CorruptionError) as caught:
        inmem.open(path).close()
    assert caught.value.file and caught.value.offset is not None and caught.value.hint
    assert writer_pid(path) == 0
    return caught.value


@pytest.fixture
def released(scratch: Path) -> Path:
    """A stopped store of three checkpoints, of which the last is left, and a log after it."""
    path = scratch / "store"
    with inmem.open(path, durability="sync") as db:
        for number in range(3):
            db.kv.put_many(RUN, {f"k{n}": [number, n] for n in range(20)})
            db.events.append(RUN, "round", number)
            report = db.checkpoint()
            shutil.copy(checkpoints(path)[0], scratch / f"checkpoint-{number}")
        assert report.wal_bytes == 64, "all of the log went"
        for n in range(5):
            db.events.append(RUN, "after", n)
    stop_writer(path)
    assert [number for number, _ in segment_files(path / "wal")] == [4]
    return path


def test_an_idle_store_opens_after_its_checkpoint(store_path: Path) -> None:
    """With all of the log released, it is the checkpoint that says up to where all was durable."""
    for ending in (stop_writer, kill_writer):
        with inmem.open(store_path) as db:
            db.kv.add(RUN, "n")
            version = db.checkpoint().version
            assert db.checkpoint().version >= version
        ending(store_path)
        if control_state(store_path).image:
            remove_image(store_path)
        assert scan(store_path / "wal", DataDirectory(store_path).identity().database_id).records == 0
        assert check(store_path).problems == []
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "n") == 2 and db.kv.put(RUN, "m", 1) > version


def test_what_is_exchanged_or_missing_is_refused(released: Path, scratch: Path) -> None:
    """Each time the file is named, nothing is changed, and a check says the same."""
    (newest,) = checkpoints(released)
    ((number, log),) = segment_files(released / "wal")
    whole = {file: file.read_bytes() for file in (newest, log)}
    header = verify_checkpoint(newest)[0]

    def damage(kind: str) -> Path:
        """Do it; the file that must be named."""
        if kind == "another database":
            newest.unlink()
            write_checkpoint(newest, CheckpointHeader(bytes(16), *list(fields_of(header))[1:]), [])
            return newest
        if kind == "an older one":
            newest.unlink()
            shutil.copy(scratch / "checkpoint-1", newest)
            return log
        if kind == "a flipped bit":
            data = bytearray(whole[newest])
            data[len(data) // 2] ^= 4
            newest.write_bytes(data)
            return newest
        if kind == "cut short":
            os.truncate(newest, len(whole[newest]) - 1)
            return newest
        if kind == "missing":
            newest.unlink()
            return log
        assert kind == "no first segment"
        log.unlink()
        return log.parent

    for kind in ("another database", "an older one", "a flipped bit", "cut short", "missing",
                 "no first segment"):  # fmt: skip
        named = damage(kind)
        files = {file: file.read_bytes() for file in (released / "wal").iterdir()}
        error = open_refused(released)
        assert error.file == str(named), (kind, error)
        problems = check(released).problems
        assert any(str(named) in problem or named == log.parent for problem in problems), (kind, problems)
        assert {file: file.read_bytes() for file in (released / "wal").iterdir()} == files
        for file, data in whole.items():
            file.write_bytes(data)
    assert number == 4

    # A writer that died before it removed an older one: the newest counts, and the others go.
    with CheckpointReader(scratch / "checkpoint-0") as reader:
        older = checkpoint_path(newest.parent, reader.header.version)
    shutil.copy(scratch / "checkpoint-0", older)
    (newest.parent / "unfinished").write_bytes(b"half of one")
    with inmem.open(released) as db:
        assert os.listdir(newest.parent) == [newest.name]
        assert [event.payload for event in db.events.iter(RUN)] == [0, 1, 2, 0, 1, 2, 3, 4]
        assert db.check().problems == [] and db.check().checkpoint == header.version


def fields_of(header: CheckpointHeader) -> Iterator[Any]:
    return (getattr(header, name) for name in header.__slots__)
