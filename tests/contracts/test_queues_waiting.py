"""Waiting for jobs: claims that sleep, streams of jobs, and how they end; on each engine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forms import new_run
from support import writer_pid
from test_queues import LONG_S, counts

import inmem
from inmem import aio


@pytest.fixture
def run(shared_db: inmem.Database) -> inmem.RunScope:
    """A run of its own."""
    return shared_db.run(new_run())



def test_a_claim_waits(run: inmem.RunScope) -> None:
    began = time.monotonic()
    assert run.queues.claim("q", wait_s=0.1) is None
    assert time.monotonic() - began >= 0.1
    later = threading.Timer(0.05, run.queues.put, ("q", "come"))
    later.start()
    job = run.queues.claim("q", wait_s=LONG_S)
    later.join()
    assert job is not None and job.payload == "come"
    run.queues.put_many("q", [1, 2])
    assert [job.payload for job in run.queues.claim_many("q", 5, wait_s=LONG_S)] == [1, 2]
    assert run.queues.claim_many("q", 5, wait_s=0.01) == []


def test_who_only_looks_takes_no_wake_from_a_worker(run: inmem.RunScope) -> None:
    """A program that waits for `has_ready` may do something else than to claim."""
    seen: list[bool] = []
    lookers = [
        threading.Thread(target=lambda: seen.append(
            run.wait(lambda view: view.queues.has_ready("q"), timeout_s=LONG_S)
        ))
        for _ in range(4)
    ]
    for thread in lookers:
        thread.start()
    time.sleep(0.2)
    put_at: list[float] = []

    def put() -> None:
        put_at.append(time.monotonic())
        run.queues.put("q", 1)

    later = threading.Timer(0.2, put)
    later.start()
    assert run.queues.claim("q", wait_s=LONG_S) is not None
    assert time.monotonic() - put_at[0] < 0.5  # it sleeps for a second, and looks then whatever happens
    run.queues.put("q", 2)  # those who looked too late for the first
    for thread in (later, *lookers):
        thread.join(60)
    assert seen == [True] * 4


def test_each_job_is_one_worker_s(run: inmem.RunScope) -> None:
    """And no claim conflicts."""
    found: list[int] = []

    def work() -> None:
        while (job := run.queues.claim("q", wait_s=0.3)) is not None:
            run.queues.ack(job)
            found.append(job.payload)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for start in range(0, 100, 10):
        run.queues.put_many("q", range(start, start + 10))
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(100)) and counts(run) == (0, 0, 0, 0)


def test_consume_takes_one_after_the_other_until_none_comes(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(3))
    seen = []
    for job in run.queues.consume("q", lease_s=60, wait_s=0.05, worker="me"):
        seen.append((job.payload, run.queues.get(job.id).worker))  # type: ignore[union-attr]
        run.queues.ack(job)
    assert seen == [(0, "me"), (1, "me"), (2, "me")] and counts(run) == (0, 0, 0, 0)


def test_consume_stops(run: inmem.RunScope) -> None:
    stop = threading.Event()
    run.queues.put_many("q", range(3))
    for job in run.queues.consume("q", stop=stop):
        run.queues.ack(job)
        stop.set()
    assert counts(run) == (2, 0, 0, 0), "it looks before each claim"
    stop.clear()
    run.queues.purge("q")
    later = threading.Timer(0.1, stop.set)
    later.start()
    assert list(run.queues.consume("q", stop=stop)) == [], "and while it waits"
    later.join()


def test_a_stream_that_is_left_holds_nothing(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(3))
    stream: Iterator[Any] = run.queues.consume("q")
    run.queues.ack(next(stream))
    assert counts(run) == (2, 0, 0, 0), "the next one is claimed when it is asked for"
    stream.close()  # type: ignore[attr-defined]
    assert counts(run) == (2, 0, 0, 0)


# --- a claim without an answer ----------------------------------------------------------------------


@contextmanager
def stopped(path: Path) -> Iterator[None]:
    """The writer does nothing."""
    pid = writer_pid(path)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_claim_whose_answer_did_not_come_resolves_to_its_jobs(store_path: Path) -> None:
    with inmem.open(store_path), inmem.open(store_path, timeout_s=0.5) as db:
        queues = db.run("run").queues
        queues.put_many("q", range(4))
        with stopped(store_path), pytest.raises(inmem.CommitUnknownError) as one:
            queues.claim("q")
        job = one.value.resend(timeout_s=LONG_S)
        assert (job.payload, job.attempt) == (0, 1)
        queues.ack(job)
        with stopped(store_path), pytest.raises(inmem.CommitUnknownError) as many:
            queues.claim_many("q", 2)
        assert [job.payload for job in many.value.resend(timeout_s=LONG_S)] == [1, 2]
        with stopped(store_path), pytest.raises(inmem.CommitUnknownError) as unknown:
            queues.put("q", "new")
        assert unknown.value.resend(timeout_s=LONG_S) == "q/4"
        assert queues.counts("q").ready == 2


def test_so_does_one_of_a_loop(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path, timeout_s=0.5) as db:
            queues = db.run("run").queues
            await queues.put("q", "payload")
            with stopped(store_path), pytest.raises(inmem.CommitUnknownError) as caught:
                await queues.claim("q")
            job = await caught.value.resend(timeout_s=LONG_S)
            assert job.payload == "payload"
            await queues.ack(job)
            assert await queues.get(job.id) is None

    with inmem.open(store_path):
        asyncio.run(main())
