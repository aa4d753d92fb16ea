"""The writer or its helper is killed at every step of a checkpoint: the old or the new one is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from checkpointing import (
    RECOVERING,
    SEED,
    TAKING,
    WORKERS,
    Dying,
    checkpoints,
    recovered,
    remove_image,
    verify_work,
)
from crash_workers import RUN, keep_working
from support import Workers, kill_writer, wait_until, writer_pid

import inmem
from inmem.errors import InmemError

ROUNDS = int(os.environ.get("INMEM_TEST_CHECKPOINT_ROUNDS", "1"))


@pytest.mark.timeout(120 + 120 * ROUNDS)
@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_killed_at_every_step(store_path: Path, scratch: Path, workers: Workers, durability: str) -> None:
    print(f"seed {SEED}, {ROUNDS} rounds")
    with inmem.open(store_path, durability=durability) as db:
        for index in range(WORKERS):
            workers.start(keep_working, index, store_path, SEED)
        wait_until(lambda: all(workers.words[i] for i in range(WORKERS)), "all workers have begun")
        first = db.checkpoint()
        assert first.released_segments >= 1
        dying = Dying(store_path, scratch, db, workers)
        for number in range(ROUNDS):
            for index, name in enumerate((*TAKING, *RECOVERING)):
                dying.one(name, (index + number + (durability == "sync")) % 2 == 0)
        dying.all_have_been_told()
        workers.words.stop()
        acked = workers.results()
        verify_work(db, acked)
        kill_writer(store_path)
        remove_image(store_path)
        verify_work(db, acked)
        assert int(recovered(store_path)["checkpoint"]) >= first.version
        assert db.check().problems == []
    operations = workers.words.total(WORKERS)
    print(f"{durability}: {dying.deaths} deaths, {operations} operations, lost 0, doubled 0")


def test_a_helper_that_is_killed(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who asked is told, the writer goes on, and the next one works."""
    with monkeypatch.context() as patch:
        patch.setenv("INMEM_FAILPOINT", f"copying:1:{scratch / 'died'}")
        db = inmem.open(store_path)
    with db:
        db.kv.put(RUN, "k", 1)
        pid = writer_pid(store_path)
        with pytest.raises(InmemError, match="ended with status -9"):
            db.checkpoint()
        assert checkpoints(store_path) == [] and os.listdir(store_path / "checkpoints") == []
        db.kv.put(RUN, "k", 2)
        report = db.checkpoint()
        assert [file.name for file in checkpoints(store_path)] == [f"{report.version:020d}.checkpoint"]
        assert writer_pid(store_path) == pid
