"""Fault 80: workers and writers are killed in durable programs; each step is recorded once, and all end."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from step_workers import STEPS, execute
from support import Worker, Workers, kill_writer, wait_until, writer_pid

import inmem
from inmem import RunStatus

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "12"))
RUNS = max(2, KILLS // 4)
WORKERS = 3
PER_WRITER = 4  # kills of workers, to one of a writer
NUMBERS = range(STEPS)
NAMES = [f"run-{number}" for number in range(RUNS)]


def at_work(db: inmem.Database) -> list[int]:
    """The processes that executed a step last, in the runs that are not done."""
    found = []
    for name in NAMES:
        executed = db.events.query_by_type(name, "executed")
        if executed and "@program" in db.kv.list(name) and db.kv.get(name, "@program")["state"] == "begun":
            found.append(executed[-1].payload["by"])
    return found


@pytest.mark.timeout(120 + 5 * KILLS)
def test_programs_end_whoever_is_killed(store_path: Path, workers: Workers, rng: random.Random) -> None:
    with inmem.open(store_path, timeout_s=60.0) as db:
        living: list[Worker] = [workers.start(execute, i, store_path, RUNS) for i in range(WORKERS)]
        killed = writers = 0
        while killed < KILLS:
            time.sleep(rng.uniform(0, 0.05))
            index = rng.randrange(WORKERS)
            if rng.random() < 0.8:  # mostly the one who is at work
                before = sum(db.events.count(name) for name in NAMES)
                wait_until(lambda n=before: sum(db.events.count(name) for name in NAMES) > n or all(
                    worker.process.poll() is not None for worker in living
                ), "somebody works", 60.0)
                pids = [worker.pid for worker in living]
                index = next((pids.index(pid) for pid in at_work(db) if pid in pids), index)
            if living[index].process.poll() is not None:
                break  # all is done
            time.sleep(rng.uniform(0, 0.005))
            living[index].process.kill()
            living[index].process.wait()
            living[index] = workers.start(execute, killed, store_path, RUNS)
            killed += 1
            if killed % PER_WRITER == 0:
                wait_until(lambda: writer_pid(store_path), "a writer serves")
                (store_path / "launches").unlink(missing_ok=True)  # launching backs off when many die
                kill_writer(store_path)
                writers += 1
        results = [worker.result(120.0) for worker in living]
        executed = 0
        for number, name in enumerate(NAMES):
            run = db.run(name)
            metadata = run.runs.get_run()
            assert metadata is not None and metadata.status == RunStatus.COMPLETED
            assert [event.payload for event in run.events.query_by_type("counted")] == [*NUMBERS]
            assert run.kv.get("total") == sum(NUMBERS)
            program = run.kv.get("@program")["result"]
            assert all(result[number] == program for result in results)
            outside = [event.payload["step"] for event in run.events.query_by_type("executed")]
            assert set(outside) == {*NUMBERS} and outside == sorted(outside)
            executed += len(outside)
        assert executed > RUNS * STEPS, "nobody was killed in a step"
        assert db.check().problems == []
    print(
        f"{killed} workers and {writers} writers killed; {RUNS * STEPS} steps with effects outside executed"
        f" {executed} times; {RUNS * STEPS} transactions once each"
    )
