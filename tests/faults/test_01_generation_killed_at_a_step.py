"""The writer is killed at every step of a switch of generation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from crash_workers import RUN, keep_working
from generation_workers import get_stuck
from generations import STUCK, generation, image_of, images_left, log_of, resume, running, stop, verify
from support import Workers, epoch, wait_until

import inmem

MIB = 1 << 20
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))


@pytest.mark.parametrize(
    ("name", "durability"),
    [
        ("generation_copied", "buffered"), ("generation_marked", "sync"), ("generation_marked", "memory"),
    ],
)
def test_killed_at_a_step_of_a_switch(
    store_path: Path, scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, name: str,
    durability: str,
) -> None:
    """Before the mark the old image counts, after it the new one; the other one goes."""
    flag = scratch / "died"
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    monkeypatch.setenv("INMEM_FAILPOINT", f"{name}:1:{flag}")
    with inmem.open(store_path, durability=durability) as db:
        db.kv.put(RUN, "k", 0)
        stuck = workers.start(get_stuck, STUCK, store_path, ["k"])
        some = [workers.start(keep_working, index, store_path, SEED) for index in range(3)]
        stop(stuck, workers, STUCK)
        with running(stuck.pid):
            wait_until(lambda: workers.check() or flag.exists(), "the writer dies")
            wait_until(lambda: (epoch(store_path), generation(store_path)) == (2, 2), "the next one switches")
            worked = workers.words.total(3)
            wait_until(lambda: workers.check() or workers.words.total(3) > worked + 50, "work goes on")
        seen = resume(stuck, workers, STUCK)
        workers.words.stop()
        acked = [worker.result() for worker in some]
        assert seen["first"] == seen["again"] == {"k": 0}
        assert (seen["generation"], epoch(store_path)) == (1, 2)
        assert images_left(store_path) == [image_of(store_path)], "no other image is left"
        assert "adopted=True" in log_of(store_path)
        verify(db, acked)
    print(f"seed {SEED}: killed at {name} in {durability}, {workers.words.total(3)} operations")
