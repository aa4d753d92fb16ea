"""Work of many processes while the writer is killed again and again, and what must be stored afterwards."""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path

from acknowledged import compare
from crash_workers import RUN, keep_reading, keep_working
from support import Workers, epoch, wait_until, writer_pid

import inmem

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "6"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
WORKERS = 8
# Launching backs off when writers die within a second of their start, several in a row. That is
# right, and not what is measured here: after so many quick kills one writer lives longer.
QUICK_KILLS = 5
LONG_LIFE_S = 1.05


def one_kill(path: Path, workers: Workers, long_life: bool) -> float:
    """Kill the writer amid work; the seconds until somebody's commit was acknowledged again."""
    pid = wait_until(lambda: writer_pid(path), "a writer serves")
    born = time.monotonic()
    before = workers.words.total(WORKERS)
    wait_until(
        lambda: workers.words.total(WORKERS) >= before + WORKERS
        and (not long_life or time.monotonic() - born > LONG_LIFE_S),
        "the workers work",
    )
    killed_epoch = epoch(path)
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: epoch(path) > killed_epoch and writer_pid(path) not in (0, pid), "a new writer serves")
    progress = workers.words.total(WORKERS)
    wait_until(lambda: workers.words.total(WORKERS) > progress, "commits go on")
    workers.check()
    return time.monotonic() - killed_at


def killed_again_and_again(store_path: Path, workers: Workers, durability: str) -> None:
    """Kill so many writers; everything that was acknowledged is there once, and nothing else."""
    print(f"seed {SEED}, {KILLS} kills")
    with inmem.open(store_path, durability=durability):
        for index in range(WORKERS):
            workers.start(keep_working, index, store_path, SEED)
        reader = workers.start(keep_reading, store_path)
        wait_until(lambda: all(workers.words[i] for i in range(WORKERS)), "all workers have begun")
        recoveries = [
            one_kill(store_path, workers, long_life=number % QUICK_KILLS == 0) for number in range(KILLS)
        ]
        workers.words.stop()
        *acked, reading = workers.results()
    assert reader.process.returncode == 0

    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "transacted", 0) == sum(one["transacted"] for one in acked)
        assert db.kv.get(RUN, "added", 0) == sum(one["added"] for one in acked)
        for index, one in enumerate(acked):
            assert db.kv.get(RUN, f"last-{index}") == one["last"]

        stored = [(event.sequence, event.payload) for event in db.events.iter(RUN)]
        claimed = sorted((sequence, name) for one in acked for sequence, name in one["appended"])
        lost, doubled = compare([name for _, name in stored], [name for _, name in claimed])
        assert (lost, doubled) == ([], [])
        assert stored == claimed, "each append is where its answer said"

        for part in range(2):
            run = f"{RUN}-{part}"
            names = [event.payload for event in db.events.iter(run)]
            expected = [name for one in acked for name in one["piped"] if int(name[-1]) % 2 == part]
            assert compare(names, expected) == ([], [])
            for index, one in enumerate(acked):
                mine = [name for name in names if name.startswith(f"{index}-")]
                sent = [name for name in one["piped"] if int(name[-1]) % 2 == part]
                assert mine == sent, "a pipeline keeps its order"
            assert db.events.verify_chain(run).is_valid
        chain = db.events.verify_chain(RUN)
        assert chain.is_valid and chain.length == len(stored)
        report = db.check()
        assert report.problems == []

    assert reading["reads"] > 1000 and reading["views"] > 50
    total = sum(workers.words[i] for i in range(WORKERS))
    times = sorted(recoveries)
    print(
        f"{durability}: {KILLS} kills, {total} operations, lost 0, doubled 0, reads {reading['reads']}, "
        f"slowest 20 reads {reading['slowest_s'] * 1000:.0f} ms, recovery s: median "
        f"{statistics.median(times):.2f}, p90 {times[int(len(times) * 0.9)]:.2f}, max {times[-1]:.2f}"
    )
