"""The writer is killed inside commits over all five primitives: each is whole in all five, or in none."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from primitive_workers import ARM, HUB, STEPS, mark_everywhere, marks_in, open_store
from support import Workers, epoch, kill, wait_until, writer_pid

import inmem

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "12"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
WORKERS = 4
# Launching backs off when writers die young, several in a row: now and then one lives longer.
QUICK_KILLS = 5
LONG_LIFE_S = 1.05


class Killer:
    """Kills the writer amid work: two at a time, one at random, and the next at a step of a commit."""

    def __init__(self, path: Path, workers: Workers, flags: Path) -> None:
        self.path = path
        self.workers = workers
        self.flags = flags
        self.rng = random.Random(SEED)
        self.kills = 0
        self.deaths: dict[str, int] = dict.fromkeys((*STEPS, "anywhere"), 0)

    def progress(self, rounds: int = 1) -> None:
        """Wait until each worker has gone on."""
        before = [self.workers.words[index] for index in range(WORKERS)]

        def gone_on() -> bool:
            self.workers.check()
            return all(self.workers.words[i] >= before[i] + rounds for i in range(WORKERS))

        wait_until(gone_on, "all workers work")

    def kill_two(self, number: int) -> None:
        """The one that serves, wherever it is; and its successor where the failpoint says."""
        step = number % len(STEPS)
        self.workers.words[ARM + 1] = self.rng.randrange(1, 9)
        self.workers.words[ARM + 2] = number
        self.workers.words[ARM] = step + 1
        born = time.monotonic()
        self.progress(2)  # now each of them would start a writer with the new failpoint
        if number % QUICK_KILLS == 0:
            wait_until(lambda: time.monotonic() - born > LONG_LIFE_S, "the writer is not young")
        time.sleep(self.rng.uniform(0, 0.005))  # anywhere within a commit
        first = epoch(self.path)
        pid = wait_until(lambda: writer_pid(self.path), "a writer serves")
        os.kill(pid, signal.SIGKILL)
        flag = Path(f"{self.flags}{number}")
        wait_until(flag.exists, f"the next writer dies when it has reached {STEPS[step]!r}")
        wait_until(lambda: epoch(self.path) >= first + 2 and writer_pid(self.path), "the third serves")
        self.deaths["anywhere"] += 1
        self.deaths[STEPS[step]] += 1
        self.kills += 2
        self.progress()


def assert_whole(db: inmem.Database, run: str) -> set[str]:
    """The markers of a run at one moment, which all five primitives have."""
    with db.snapshot(run) as view:
        kv, events, cells, traces, tags = marks_in(view)
    assert kv == events == cells == traces == tags, run
    return kv


@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.parametrize("durability", ["buffered"])
def test_whole_or_absent_in_all_five(
    store_path: Path, scratch: Path, workers: Workers, durability: str
) -> None:
    print(f"seed {SEED}, {KILLS} kills")
    notes = [scratch / f"notes-{index}" for index in range(WORKERS)]
    with open_store(store_path, durability=durability) as db:
        db.runs.create_run(run_id=HUB)
        some = [
            workers.start(mark_everywhere, i, store_path, SEED, notes[i], f"{scratch}/died-")
            for i in range(WORKERS)
        ]
        wait_until(lambda: all(workers.words[i] for i in range(WORKERS)), "all workers have begun")
        killer = Killer(store_path, workers, scratch / "died-")
        while killer.kills < KILLS:
            killer.kill_two(killer.kills // 2)
            for index in range(WORKERS):
                assert_whole(db, f"marks-{index}-{workers.words[index] // 40:03}")
        # Two workers are killed as well: nobody will ever ask for the answer of their last commits.
        for worker in some[:2]:
            kill(worker.pid, wait=False)
            worker.process.wait()
        workers.words.stop()
        for worker in some[2:]:
            worker.result()

        tried, acked, dropped = read_notes(notes)
        stored: set[str] = set()
        runs = db.runs.list_runs()
        for run in runs:
            if run != HUB:
                markers = assert_whole(db, run)
                assert not markers & stored
                stored |= markers
        assert acked <= stored, "what was acknowledged is there"
        assert stored <= tried, "what nobody sent is not"
        assert not stored & dropped, "what was given up has left nothing"
        assert len(stored - acked) <= 2, "only the killed ones' last is not known"

        with db.snapshot(HUB) as view:
            marks = [event.payload for event in view.events.iter()]
            assert sorted(marks) == sorted(stored), "each once, in the other run too"
            assert view.kv.get("count", 0) == len(stored)
            count = view.cells.read("count")
        kinds = [kind for run in runs if (r := db.runs.get_run(run)) for kind in r.metadata.values()]
        assert (count.value if count else 0) == kinds.count(1)
        for run in runs:
            assert db.events.verify_chain(run).is_valid
        assert db.check().problems == []
        repaired = db.repair_indices()
        assert (repaired.added, repaired.removed, repaired.repaired) == (0, 0, []), "indices are a rebuild"
    print(f"{killer.kills} kills {killer.deaths}, {len(stored)} transactions stored, {len(acked)} acked, "
          f"{len(dropped)} given up, lost 0, torn 0")


def read_notes(files: list[Path]) -> tuple[set[str], set[str], set[str]]:
    """The markers that were tried, acknowledged, and given up."""
    found: dict[str, set[str]] = {"try": set(), "ack": set(), "drop": set()}
    for file in files:
        for line in file.read_text().splitlines():
            what, _, marker = line.split()
            found[what].add(marker)
    return found["try"], found["ack"], found["drop"]
