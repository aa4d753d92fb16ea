"""Checkpoints of themselves, by size and by time, and of stores with many keys."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from checkpointing import Asking, checkpoints, recovered
from crash_workers import RUN, write_until_told
from support import Workers, alive, epoch, kill, processes_of, stop_writer, wait_until, writer_pid

import inmem
from inmem.errors import InmemError, InvalidInputError
from inmem.storage.wal.files import segment_files

MIB = 1 << 20


def test_a_memory_store_has_none(store_path: Path) -> None:
    with inmem.open(store_path, durability="memory") as db:
        with pytest.raises(InvalidInputError, match="has no log"):
            db.checkpoint()
        assert db.kv.put(RUN, "k", 1)
    assert not (store_path / "checkpoints").exists()


def test_the_log_stays_bounded_under_writes(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, segment = 256 * 1024, 64 * 1024
    monkeypatch.setenv("INMEM_CHECKPOINT_WAL_BYTES", str(limit))
    monkeypatch.setenv("INMEM_SEGMENT_BYTES", str(segment))
    largest = 0
    with inmem.open(store_path) as db:
        for index in range(2):
            workers.start(write_until_told, index, store_path)
        versions: set[str] = set()

        def grown() -> bool:
            nonlocal largest
            largest = max(largest, db.status().wal_bytes)
            versions.update(file.name for file in checkpoints(store_path))
            workers.check()
            report = db.check()  # while checkpoint and log are replaced under it
            assert report.problems == [], report
            return len(versions) >= 3

        wait_until(grown, "three checkpoints by size")
        workers.words.stop()
        workers.results()
        begun = segment_files(store_path / "wal")[-1][0]
        final = db.status()
        largest = max(largest, final.wal_bytes)
        # A copy takes a few tenths of a second, in which the log goes on growing.
        assert largest < max(4 * limit, begun * segment * 3 // 4), (begun, largest)
        wait_until(lambda: len(checkpoints(store_path)) == 1, "the older ones are removed")
        assert db.check().problems == []
    print(f"{begun} segments were begun, the log had {largest / MIB:.1f} MiB at most")


def test_a_little_log_is_copied_after_a_while(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the interval a sixteenth of what makes one due by size is enough."""
    monkeypatch.setenv("INMEM_CHECKPOINT_WAL_BYTES", str(4 * MIB))
    monkeypatch.setenv("INMEM_CHECKPOINT_INTERVAL_S", "0.3")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", os.urandom(MIB // 8))
        assert db.status().wal_bytes < 4 * MIB // 16
        began = time.monotonic()
        while time.monotonic() - began < 0.8:  # four ticks, in which too little has come to copy
            assert checkpoints(store_path) == []
            db.kv.exists(RUN, "k")
        db.kv.put(RUN, "more", os.urandom(MIB // 4))
        wait_until(lambda: checkpoints(store_path), "one by time")
        wait_until(lambda: db.status().wal_bytes < MIB // 8, "the log is released")
        assert db.check().problems == []


def test_many_keys(store_path: Path) -> None:
    """Helpers and writers killed in the middle of a copy; how fast a restart is, and what bounds it."""
    keys, batch = 200_000, 5_000
    with inmem.open(store_path) as db:
        for start in range(0, keys, batch):
            some = range(start, start + batch)
            db.kv.put_many(RUN, {f"key-{n:07}": "x" * 24 + str(n) for n in some})
        pid = writer_pid(store_path)
        directory = store_path / "checkpoints"

        def helper() -> int:
            line = f"inmem.maintenance checkpoint {store_path}"
            copying = (directory / "unfinished").exists()
            return next((pid for pid, text in processes_of(store_path) if copying and line in text), 0)

        asking = Asking(db)
        asking.start()
        kill(wait_until(helper, "a helper copies"))
        asking.join(60.0)
        assert isinstance(asking.outcome, InmemError) and "status -9" in str(asking.outcome)
        assert writer_pid(store_path) == pid and os.listdir(directory) == []

        before = epoch(store_path)
        asking = Asking(db)
        asking.start()
        orphan = wait_until(helper, "a helper copies")
        kill(pid)
        asking.join(60.0)  # it asks the next writer, which has one made from the beginning
        assert isinstance(asking.outcome, inmem.CheckpointReport), asking.outcome
        wait_until(lambda: not alive(orphan), "the helper of the dead writer ends")
        assert epoch(store_path) == before + 1
        assert asking.outcome.entries >= keys and len(os.listdir(directory)) == 1

        after = 50
        for n in range(after):
            db.kv.put(RUN, "after", n)
        db.close()
    stop_writer(store_path)
    with inmem.open(store_path) as db:
        line = recovered(store_path)
        assert db.kv.count(RUN) == keys + 1 and db.kv.get(RUN, "after") == after - 1
        assert db.kv.get(RUN, f"key-{keys - 1:07}") == "x" * 24 + str(keys - 1)
    assert int(line["checkpoint"]) == asking.outcome.version
    # Of the log no more than what came after the checkpoint, and each session's coming and going.
    assert after <= int(line["replayed"]) <= after + 20
    seconds = float(line["seconds"])
    print(
        f"{asking.outcome.entries} entries: copied in {asking.outcome.seconds:.2f} s, "
        f"recovered in {seconds:.2f} s, {keys / seconds:,.0f} keys/s"
    )
    assert keys / seconds > 20_000, "a tenth of the aim, on any machine"
