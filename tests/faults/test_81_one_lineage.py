"""Fault 81: workers that resume one thread of LangGraph, and writers, are killed; history stays one line."""

from __future__ import annotations

import itertools
import os
import random
import time
from pathlib import Path

import pytest

pytest.importorskip("langgraph.graph", reason="the extra `langgraph` is not installed")

from graph_workers import LOG, STEPS, THREAD, graph_of, resume
from support import Worker, Workers, kill_writer, wait_until, writer_pid

import inmem
from inmem.adapters.langgraph import InmemSaver

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "8"))
WORKERS = 8
PER_WRITER = 4  # kills of workers, to one of a writer


def at_work(db: inmem.Database, living: list[Worker], due: int) -> int:
    """Wait for so many executions, or the end; which worker executed last."""
    wait_until(
        lambda: db.events.count(LOG) >= due or all(each.process.poll() is not None for each in living),
        "somebody works", 60.0,
    )
    last = db.events.head(LOG)
    by = last.payload["by"] if last else None
    return next((number for number, worker in enumerate(living) if worker.pid == by), 0)


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("fence", ["lease", "parent"])
def test_one_lineage(store_path: Path, workers: Workers, rng: random.Random, fence: str) -> None:
    with inmem.open(store_path, timeout_s=60.0) as db:
        killed = writers = executed = rounds = 0
        while killed < KILLS:
            rounds += 1
            saver = InmemSaver(db)
            saver.delete_thread("t")
            graph_of(saver).invoke({"items": []}, THREAD, interrupt_before=["work"])
            before = db.events.count(LOG)
            living: list[Worker] = [workers.start(resume, store_path, fence) for _ in range(WORKERS)]
            due = before
            while killed < KILLS:
                due = max(due, db.events.count(LOG)) + rng.randrange(1, STEPS // 2)
                index = at_work(db, living, due)
                time.sleep(rng.uniform(0, 0.005))
                if living[index].process.poll() is not None:
                    break  # this thread is at its end
                living[index].process.kill()
                living[index].process.wait()
                living[index] = workers.start(resume, store_path, fence)
                killed += 1
                if killed % PER_WRITER == 0:
                    wait_until(lambda: writer_pid(store_path), "a writer serves")
                    (store_path / "launches").unlink(missing_ok=True)  # launching backs off when many die
                    kill_writer(store_path)
                    writers += 1
            results = [worker.result(120.0) for worker in living]
            assert results == [[*range(STEPS)]] * WORKERS
            history = [*saver.list(THREAD)]
            assert [each.metadata["step"] for each in history] == [*range(STEPS, -2, -1)]
            assert history[-1].parent_config is None
            for later, earlier in itertools.pairwise(history):
                assert later.parent_config == earlier.config
                items = later.checkpoint["channel_values"].get("items", [])
                assert items == [*range(later.metadata["step"])]
            executed += db.events.count(LOG) - before
        if fence == "lease":
            assert rounds * STEPS <= executed <= rounds * STEPS + killed
        assert db.check().problems == []
    print(
        f"fence {fence!r}: {rounds} threads under {WORKERS} workers, of whom {killed} were killed, and"
        f" {writers} writers: {rounds * STEPS} steps once each in history, executed {executed} times"
    )
