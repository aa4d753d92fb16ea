"""The server is killed and started again, or restarted, under load: each commit is there once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from histories.recording import recorded_run
from postgres_server import PostgresServer, binaries
from postgres_shared import MISSING
from server_workers import judged, no_error, progress, started, summary
from support import Workers

import inmem

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "2"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
COUNT = int(os.environ.get("INMEM_TEST_WORKERS", "8"))
DEADLINE_S = 60.0  # of a worker's calls; the machine may be busy


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One with fsync on: `durability` is `sync`."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = PostgresServer(shared=False)
    yield server
    server.remove()


def end_and_start(server: PostgresServer, how: str) -> None:
    """End the server, and start it again."""
    if how == "killed":
        server.signal(signal.SIGKILL)
    else:
        server.stop("fast")
    server.start()


@pytest.mark.timeout(120 + 8 * KILLS)
@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_each_commit_is_there_once(server: PostgresServer, workers: Workers, how: str) -> None:
    url = server.url_of("store")
    rng = random.Random(SEED)
    with inmem.open(url, timeout_s=DEADLINE_S) as db:
        assert db.status().durability == "sync"
        some = started(workers, COUNT, url, DEADLINE_S)
        for _ in range(KILLS):
            progress(workers, COUNT)
            time.sleep(rng.uniform(0, 0.3))  # any moment will do
            end_and_start(server, how)
        progress(workers, COUNT)
        workers.words.stop()
        told = [worker.result() for worker in some]
        lost, doubled = judged(url, told)
    print(f"{how}: {KILLS} ends, {summary(told)}; lost {lost}, doubled {doubled}")
    no_error(told)
    assert (lost, doubled) == (0, 0)


@pytest.mark.timeout(180)
def test_histories_are_serializable(server: PostgresServer, scratch: Path, workers: Workers) -> None:
    url = server.url_of("store")
    kills = 0
    rng = random.Random(SEED)

    def kill() -> None:
        nonlocal kills
        before = workers.words.total(COUNT)
        deadline = time.monotonic() + 60
        while workers.words.total(COUNT) < before + COUNT and time.monotonic() < deadline:
            workers.check()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        end_and_start(server, "killed")
        kills += 1

    with inmem.open(url, timeout_s=DEADLINE_S):
        run = recorded_run(
            url, workers, scratch / "history", seed=SEED, count=COUNT, seconds=2.0 * KILLS, trouble=kill,
            deadline_s=DEADLINE_S,
        )
    verdict = run.verdict(replay=False)
    print(f"{kills} kills, {verdict.summary()}; conflicts {run.conflicts}, {run.errors}")
    assert verdict.ok, verdict.summary()
    expected = {"ConflictError", "CellNotFoundError", "_Abandoned", "SnapshotTooOldError"}
    assert run.errors.keys() <= expected, run.errors
    assert run.conflicts > 0
