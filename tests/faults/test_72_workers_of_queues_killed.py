"""Fault 72: workers and writers are killed at any point of a job; each job is done once all the same."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import queue_workers
from queue_workers import ACKING, CLAIMED, PHASES, QUEUE, RUN, WORKING, work
from support import Worker, Workers, kill_writer, wait_until, writer_pid

import inmem
from inmem.primitives.queues.shown import QueueCounts

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "12"))
JOBS = int(os.environ.get("INMEM_TEST_JOBS", str(50 * KILLS)))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
WORKERS = 16
PER_WRITER = 6  # kills of workers, to one of a writer


class Crew:
    """So many workers; a killed one is replaced."""

    def __init__(self, workers: Workers, path: Path, histories: Path) -> None:
        self._workers, self._path, self._histories = workers, path, histories
        self._started = 0
        self.living: list[Worker] = [self._start(index) for index in range(WORKERS)]

    def _start(self, index: int) -> Worker:
        self._started += 1
        name = f"w-{self._started:05}"
        return self._workers.start(work, index, name, self._path, self._histories, SEED)

    def kill(self, index: int) -> None:
        """End one, and start another in its place."""
        self.living[index].process.kill()
        self.living[index].process.wait()
        self.living[index] = self._start(index)

    def check(self) -> None:
        """Fail at once if one has failed."""
        for worker in self.living:
            if worker.process.poll():
                worker.result()


@pytest.mark.timeout(120 + 3 * KILLS)
def test_each_job_is_done_once(
    store_path: Path, workers: Workers, rng: random.Random, scratch: Path
) -> None:
    histories = scratch / "histories"
    histories.mkdir()
    print(f"{KILLS} kills, {JOBS} jobs, seed {SEED}")
    killed_in = dict.fromkeys(("anywhere", "claimed", "working", "acking"), 0)
    writers = 0
    with inmem.open(store_path, timeout_s=60.0) as db:
        for first in range(0, JOBS, 1000):
            db.queues.put_many(RUN, QUEUE, range(first, min(JOBS, first + 1000)), max_attempts=60_000)
        crew = Crew(workers, store_path, histories)
        for number in range(KILLS):
            done = db.events.count(RUN)
            wait_until(
                lambda n=done: crew.check() or db.events.count(RUN) > n or n == JOBS, "they work", 60.0
            )
            if number % PER_WRITER == PER_WRITER - 1:
                wait_until(lambda: writer_pid(store_path), "a writer serves")
                (store_path / "launches").unlink(missing_ok=True)  # launching backs off when many die
                time.sleep(rng.uniform(0, 0.3))
                kill_writer(store_path)
                writers += 1
            index = rng.randrange(WORKERS)
            name, phase = rng.choice([("anywhere", 0), ("claimed", CLAIMED), ("working", WORKING),
                                      ("acking", ACKING)])
            until = time.monotonic() + 0.05
            while phase and workers.words[PHASES + index] != phase and time.monotonic() < until:
                pass
            time.sleep(rng.uniform(0, 0.001) if phase else rng.uniform(0, 0.05))
            crew.kill(index)
            killed_in[name] += 1
        deadline_s = 60.0 + JOBS / 50
        wait_until(lambda: crew.check() or db.events.count(RUN) >= JOBS, "all jobs are done", deadline_s)
        workers.words.stop()
        for worker in crew.living:
            worker.result()
        assert db.queues.counts(RUN, QUEUE) == QueueCounts(0, 0, 0, 0)
        assert db.queues.get(RUN, f"{QUEUE}/{JOBS - 1}") is None
        found = queue_workers.check(db, histories, JOBS)
        assert db.check().problems == []
    print(f"{killed_in}, {writers} writers: {found}; lost 0, doubled 0")
