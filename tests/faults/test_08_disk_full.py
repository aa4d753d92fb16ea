"""The disk is full, for the log and for a checkpoint: a typed error, and service goes on."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from checkpointing import SEED, checkpoints, remove_image
from crash_workers import RUN, fill
from small_disks import MIB, ballast, needs_root, tmpfs
from support import Workers, kill_writer, stop_writer, writer_pid

import inmem
from inmem.errors import StoreFullError
from inmem.storage.checkpoint import verify_checkpoint


@needs_root
@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_disk_full(scratch: Path, workers: Workers, durability: str) -> None:
    with tmpfs(scratch / "disk", 6 * MIB) as disk:
        path = disk / "store"
        try:
            with inmem.open(path, durability=durability) as db:
                pid = writer_pid(path)
                db.kv.put(RUN, "k", "v")
                db.kv.add(RUN, "n")
                taken = ballast(disk, leave=100_000)
                written = 0
                with pytest.raises(inmem.StoreFullError) as caught:
                    while written < 2000:
                        db.kv.put(RUN, f"k{written}", os.urandom(5_000))
                        written += 1
                assert 0 < written < 100 and "disk" in caught.value.hint
                ballast(disk, leave=0)
                added = 1
                with pytest.raises(inmem.StoreFullError):
                    while added < 200:  # what is left of the log's last page takes a few
                        added = db.kv.add(RUN, "n")
                for _ in range(3):  # refused means: not there, and no trace in the numbers
                    with pytest.raises(inmem.StoreFullError):
                        db.kv.add(RUN, "n")
                with pytest.raises(inmem.StoreFullError):
                    db.events.append(RUN, "e", bytes(5000))
                assert db.kv.get(RUN, "n") == added and db.kv.count(RUN) == written + 2
                # A program that comes only now reads, and is told what is wrong when it writes.
                newcomer = workers.start(fill, 7, path, 9_000)
                assert newcomer.result(deadline_s=45.0)["code"] == "store_full"
                taken.unlink()
                assert db.kv.add(RUN, "n") == added + 1, "service resumes"
                assert db.events.append(RUN, "e").sequence == 0
                assert writer_pid(path) == pid
                kill_writer(path)
                assert db.kv.get(RUN, "n") == added + 1 and db.kv.count(RUN) == written + 2
                assert db.kv.add(RUN, "n") == added + 2
                assert db.check().problems == []
        finally:
            stop_writer(path)


@needs_root
def test_no_room_for_a_checkpoint(scratch: Path) -> None:
    """A typed error, the old one intact, service goes on; with room again the next one succeeds."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    with tmpfs(scratch / "disk", 6 * MIB) as disk:
        path = disk / "store"
        try:
            with inmem.open(path, durability="sync") as db:
                for n in range(8):
                    db.kv.put(RUN, f"k{n}", rng.randbytes(100_000))
                first = db.checkpoint()
                pid = writer_pid(path)
                taken = ballast(disk, leave=500_000)
                for _ in range(2):
                    with pytest.raises(StoreFullError) as caught:
                        db.checkpoint()
                    assert "disk" in caught.value.hint
                    assert [file.name for file in (path / "checkpoints").iterdir()] == [
                        f"{first.version:020d}.checkpoint"
                    ]
                    assert verify_checkpoint(checkpoints(path)[0])[0].version == first.version
                    db.kv.add(RUN, "n")
                assert writer_pid(path) == pid
                kill_writer(path)
                remove_image(path)
                assert db.kv.add(RUN, "n") == 3, "the old checkpoint and the log hold everything"
                taken.unlink()
                second = db.checkpoint()
                assert second.version > first.version and len(checkpoints(path)) == 1
                assert db.check().problems == []
        finally:
            stop_writer(path)
