"""Histories of many processes are serializable, also while the writer dies or stands still."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from histories.damage import DAMAGES, copied
from histories.recording import Recorded, recorded_run
from support import Workers, epoch, wait_until, writer_pid

import inmem
from workers.judge.serializability import Verdict, check

SECONDS = float(os.environ.get("INMEM_TEST_HISTORY_SECONDS", "1.0"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
WORKERS = 8
STOP_S = 0.25  # how long the writer stands still
DEADLINE_S = 0.1  # of a transaction in the meantime: shorter, so that answers stay away

# What transactions may meet; a cell of a new generation is not there for a call that only changes it.
EXPECTED = {"ConflictError", "CellNotFoundError", "_Abandoned", "unknown", "resent"}


def assert_serializable(run: Recorded) -> Verdict:
    """No anomaly, in a history that could have had some."""
    verdict = run.verdict()
    print(f"{verdict.summary()}; conflicts {run.conflicts}, {run.errors}")
    assert verdict.ok, verdict.summary()
    assert run.errors.keys() <= EXPECTED, run.errors
    assert verdict.foreign_reads > verdict.reads / 10, "workers see what others write"
    assert run.conflicts > 0, "they are in each other's way"
    assert verdict.refused > 0, "some give up"
    assert verdict.replayed > verdict.acknowledged / 2
    assert min(verdict.edges.get(kind, 0) for kind in ("ww", "wr", "rw", "session", "real-time")) > 0
    return verdict


def killer(path: Path, workers: Workers, rng: random.Random) -> tuple[Callable[[], None], list[int]]:
    """Kills the writer at a random moment of its work, each time it is called; the epochs that it ended."""
    killed: list[int] = []

    def kill_once() -> None:
        pid = wait_until(lambda: writer_pid(path), "a writer serves")
        before = workers.words.total(WORKERS)
        wait_until(lambda: workers.check() or workers.words.total(WORKERS) > before + WORKERS, "they work")
        time.sleep(rng.uniform(0, 0.3))  # any moment will do
        killed.append(epoch(path))
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: epoch(path) > killed[-1] and writer_pid(path) not in (0, pid), "the next serves")

    return kill_once, killed


def stopper(path: Path, workers: Workers, rng: random.Random) -> tuple[Callable[[], None], list[int]]:
    """Stops the writer for longer than a transaction waits, each time it is called; the writers stopped."""
    stopped: list[int] = []

    def stop_once() -> None:
        before = workers.words.total(WORKERS)
        wait_until(lambda: workers.check() or workers.words.total(WORKERS) > before + WORKERS, "they work")
        time.sleep(rng.uniform(0, 0.2))
        pid = wait_until(lambda: writer_pid(path), "a writer serves")
        stopped.append(pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(STOP_S)
        finally:
            os.kill(pid, signal.SIGCONT)

    return stop_once, stopped


@pytest.mark.timeout(120 + 20 * SECONDS)
@pytest.mark.parametrize("durability", ["buffered"])
def test_without_faults(store_path: Path, scratch: Path, workers: Workers, durability: str) -> None:
    print(f"seed {SEED}")
    with inmem.open(store_path, durability=durability) as db:
        run = recorded_run(
            store_path, workers, scratch / "history", seed=SEED, count=WORKERS, seconds=SECONDS
        )
        assert db.check().problems == []
    assert_serializable(run)

    # The very same history, damaged in one way at a time, does not pass. (Some of the ways: all are
    # tried on smaller histories, where it costs less.)
    rng = random.Random(SEED)
    for damage in rng.sample(DAMAGES, 2):
        damaged, end = copied(run.txns, run.final)
        expected = damage(damaged, end, rng)
        assert expected, f"{damage.__name__} finds no place in it"
        assert check(damaged, end).kinds & expected, f"{damage.__name__} is not found"


@pytest.mark.timeout(120 + 20 * SECONDS)
@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_while_the_writer_is_killed(
    store_path: Path, scratch: Path, workers: Workers, durability: str
) -> None:
    print(f"seed {SEED}")
    trouble, killed = killer(store_path, workers, random.Random(SEED))
    with inmem.open(store_path, durability=durability) as db:
        run = recorded_run(
            store_path, workers, scratch / "history", seed=SEED + 1, count=WORKERS, seconds=SECONDS,
            trouble=trouble,
        )
        assert db.check().problems == []
    print(f"{durability}: {len(killed)} kills")
    assert_serializable(run)
    assert len(set(killed)) >= 2


@pytest.mark.timeout(120 + 20 * SECONDS)
def test_while_the_writer_stands_still(store_path: Path, scratch: Path, workers: Workers) -> None:
    print(f"seed {SEED}")
    trouble, stopped = stopper(store_path, workers, random.Random(SEED))
    with inmem.open(store_path) as db:
        run = recorded_run(
            store_path, workers, scratch / "history", seed=SEED + 2, count=WORKERS, seconds=SECONDS,
            trouble=trouble, deadline_s=DEADLINE_S,
        )
        assert db.check().problems == []
    print(f"{len(stopped)} stops")
    verdict = assert_serializable(run)
    assert len(stopped) >= 2
    assert verdict.unknown > 0, "some answers never came"
    assert run.errors.get("resent", 0) > 0, "and some came when they were asked for again"
