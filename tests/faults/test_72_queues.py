"""Fault 72: claims that run out, holders that sleep, answers that are lost, clocks, full stores, poison."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from queue_workers import hold_and_finish
from small_disks import MIB
from support import Workers, kill_writer, process_state, wait_until, writer_pid
from test_22_clock_steps import HOUR_US, WallClock, wall

import inmem
from inmem.errors import CommitUnknownError, JobLostError, RunDeletedError, StoreFullError
from inmem.primitives.queues.rules import MOVED
from inmem.primitives.queues.shown import Job, QueueCounts

__all__ = ["wall"]
EXPIRED = int(os.environ.get("INMEM_TEST_CLAIMS", "1500"))
RUN, QUEUE = "jobs", "work"
GROUP_S = 0.020


def claimed(db: inmem.Database, **options: Any) -> Job:
    """A job that is there."""
    job = db.queues.claim(RUN, QUEUE, **options)
    assert job is not None
    return job


def run_out(*jobs: Job) -> None:
    """Wait until the claims have run out."""
    last = max(job.claimed_until for job in jobs)
    wait_until(lambda: time.time_ns() // 1000 > last + 2000, "the claims run out", 300.0)


# --- claims that run out ----------------------------------------------------------------------------


def test_a_job_that_never_succeeds_is_dead(db: inmem.Database) -> None:
    """Claims that run out count, and so do failures; put back, it starts anew."""
    job_id = db.queues.put(RUN, QUEUE, "x", max_attempts=3)
    first = claimed(db, lease_s=0.01, worker="one")
    run_out(first)
    second = claimed(db)
    assert (first.attempt, second.attempt) == (1, 2) and second.errors == ("the claim of one ran out",)
    db.queues.nack(second, delay_s=0, error="broken")
    third = claimed(db, lease_s=0.01, worker="two")
    run_out(third)
    assert db.queues.claim(RUN, QUEUE) is None
    assert db.queues.counts(RUN, QUEUE) == QueueCounts(0, 0, 0, 1)
    [dead] = db.queues.dead(RUN, QUEUE)
    assert dead.id == job_id and dead.attempt == 3
    assert dead.errors == ("the claim of one ran out", "broken", "the claim of two ran out")
    db.queues.requeue(RUN, job_id)
    with pytest.raises(JobLostError):
        db.queues.ack(third)
    assert claimed(db).attempt == 1


@pytest.mark.parametrize("count", [MOVED - 1, MOVED, MOVED + 1, 5 * MOVED])
def test_a_ready_job_behind_many_that_die(db: inmem.Database, count: int) -> None:
    """One claim moves a few; that all of these die is no reason to say that there is no job."""
    db.queues.put_many(RUN, QUEUE, range(count), max_attempts=1)
    ended = db.queues.claim_many(RUN, QUEUE, count, lease_s=0.01)
    db.queues.put(RUN, QUEUE, "alive", max_attempts=2)
    last = claimed(db, lease_s=0.02)
    run_out(*ended, last)
    again = claimed(db)
    assert again.id == last.id and again.attempt == 2
    assert db.queues.claim(RUN, QUEUE) is None
    assert db.queues.counts(RUN, QUEUE).dead == count


def test_a_late_ack(db: inmem.Database) -> None:
    """Of a claim that ran out: it counts, unless another has the job."""
    db.queues.put_many(RUN, QUEUE, ["x", "y"])
    late, lost = claimed(db, lease_s=0.01), claimed(db, lease_s=0.01)
    run_out(late, lost)
    db.queues.ack(late)
    other = claimed(db)
    assert other.id == lost.id and other.token > lost.token

    def finish(txn: inmem.Transaction) -> None:
        txn.kv.put("effect", 1)
        txn.queues.ack(lost)

    for attempt in (
        lambda: db.transact(RUN, finish), lambda: db.queues.ack(lost), lambda: db.queues.nack(lost),
        lambda: db.queues.extend(lost),
    ):
        with pytest.raises(JobLostError):
            attempt()
    assert db.kv.get(RUN, "effect") is None and db.queues.extend(other).token == other.token


def test_very_many_claims_run_out_together(db: inmem.Database) -> None:
    """All come again, a few with each claim: no commit does the work of all, and others go on."""
    for first in range(0, EXPIRED, 1000):
        db.queues.put_many(RUN, QUEUE, range(first, min(EXPIRED, first + 1000)))
    jobs: list[Job] = []
    lease_s = 1.0 + EXPIRED / 2000
    while len(jobs) < EXPIRED:
        jobs += db.queues.claim_many(RUN, QUEUE, 500, lease_s=lease_s - (time.monotonic() % 0.01))
    run_out(*jobs)
    before = db.status()
    is_over = threading.Event()
    took: list[float] = []

    def bystander() -> None:
        while not is_over.is_set():
            began = time.perf_counter()
            db.kv.put("other", "k", 1)
            took.append(time.perf_counter() - began)

    again: dict[str, int] = {}

    def take() -> None:
        while (job := db.queues.claim(RUN, QUEUE, lease_s=600)) is not None:
            assert job.id not in again
            again[job.id] = job.attempt

    threads = [threading.Thread(target=take) for _ in range(3)]
    put = threading.Thread(target=bystander)
    for thread in (put, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    put.join()
    after = db.status()
    assert len(again) == EXPIRED and set(again.values()) == {2}
    mean_s = (after.group_s - before.group_s) / (after.groups - before.groups)
    assert mean_s < GROUP_S
    took.sort()
    print(
        f"{EXPIRED} claims: a group of commits took {1e3 * mean_s:.2f} ms; a put beside p50 "
        f"{1e3 * took[len(took) // 2]:.2f}, p99 {1e3 * took[int(len(took) * 0.99)]:.1f}, "
        f"at most {1e3 * took[-1]:.0f} ms"
    )


# --- holders that sleep, clocks that jump -----------------------------------------------------------


def test_a_holder_that_was_stopped_finds_out(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        db.queues.put(RUN, QUEUE, "x")
        holder = workers.start(hold_and_finish, 0, store_path)
        wait_until(lambda: workers.check() or workers.words[0] == 1, "it has the job")
        os.kill(holder.pid, signal.SIGSTOP)
        wait_until(lambda: process_state(holder.pid) == "T", "it stands still")
        job = claimed(db, wait_s=10)
        assert job.attempt == 2
        with db.transaction(RUN) as txn:
            txn.kv.add("effect")
            txn.queues.ack(job)
        workers.words.open_gate()
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.result() == "lost"
        assert db.kv.get(RUN, "effect") == 1


def test_the_clock_is_set_forward(store_path: Path, wall: WallClock) -> None:
    """All claims have run out at once: that costs nobody a job without need, and delays are over."""
    with inmem.open(store_path) as db:
        db.queues.put_many(RUN, QUEUE, ["x", "y"])
        kept, taken = claimed(db, lease_s=60), claimed(db, lease_s=60)
        db.queues.put(RUN, QUEUE, "later", delay_s=60)
        assert db.queues.counts(RUN, QUEUE) == QueueCounts(0, 1, 2, 0)
        wall.off_us = HOUR_US
        wait_until(lambda: db.queues.counts(RUN, QUEUE).ready == 3, "the store follows")
        db.queues.ack(kept)
        found = [claimed(db, lease_s=60), claimed(db, lease_s=60)]
        assert {job.payload for job in found} == {"y", "later"} and db.queues.claim(RUN, QUEUE) is None
        with pytest.raises(JobLostError):
            db.queues.ack(taken)
        wall.off_us = 0  # set back: store time goes on
        for job in found:
            assert job.claimed_until > time.time_ns() // 1000 + HOUR_US
            db.queues.ack(job)
        assert db.queues.counts(RUN, QUEUE) == QueueCounts(0, 0, 0, 0)
        assert db.check().problems == []


def test_a_writer_that_stands_still_costs_nobody_a_claim(db: inmem.Database, store_path: Path) -> None:
    """A lease counts from the commit, and who renews late still holds."""
    db.queues.put(RUN, QUEUE, "x")
    pid = writer_pid(store_path)
    os.kill(pid, signal.SIGSTOP)
    found: list[Job] = []
    thread = threading.Thread(target=lambda: found.append(claimed(db, lease_s=0.5)))
    try:
        thread.start()
        time.sleep(0.8)
    finally:
        os.kill(pid, signal.SIGCONT)
    thread.join()
    left_us = found[0].claimed_until - time.time_ns() // 1000
    assert 0 < left_us <= 500_000
    run_out(found[0])
    assert db.queues.extend(found[0], 5).claimed_until > time.time_ns() // 1000


# --- answers that are lost --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["claim", "ack", "nack", "extend", "put"])
def test_an_answer_that_is_lost(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The writer dies before it answers: what is sent again to the next one is done once."""
    with inmem.open(store_path) as db:
        db.queues.put_many(RUN, QUEUE, range(3))
        job = claimed(db)
        kill_writer(store_path)
        monkeypatch.setenv("INMEM_FAILPOINT", f"answering:1:{scratch / 'died'}")
        calls = {
            "claim": lambda: claimed(db).id, "ack": lambda: db.queues.ack(job, "done"),
            "nack": lambda: db.queues.nack(job, delay_s=0), "extend": lambda: db.queues.extend(job, 60).id,
            "put": lambda: db.queues.put(RUN, QUEUE, 3),
        }
        found = calls[name]()
        assert (scratch / "died").exists()
        counts = db.queues.counts(RUN, QUEUE)
        expected = {
            "claim": ("work/1", QueueCounts(1, 0, 2, 0)), "ack": (None, QueueCounts(2, 0, 0, 0)),
            "nack": (None, QueueCounts(3, 0, 0, 0)), "extend": ("work/0", QueueCounts(2, 0, 1, 0)),
            "put": ("work/3", QueueCounts(3, 0, 1, 0)),
        }
        assert (found, counts) == expected[name]


def test_a_claim_that_was_not_answered_in_time(store_path: Path) -> None:
    """It may have happened: then it runs out, and the job comes again."""
    with inmem.open(store_path) as db, inmem.open(store_path, timeout_s=0.2) as quick:
        db.queues.put(RUN, QUEUE, "x")
        quick.kv.put(RUN, "session", 1)
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(CommitUnknownError):
                quick.queues.claim(RUN, QUEUE, lease_s=0.3)
        finally:
            os.kill(pid, signal.SIGCONT)
        job = claimed(db, wait_s=5)
        assert job.attempt == 2
        quick.queues.ack(job)
        assert db.queues.counts(RUN, QUEUE) == QueueCounts(0, 0, 0, 0)


# --- runs and stores --------------------------------------------------------------------------------


def test_a_run_that_is_deleted(db: inmem.Database) -> None:
    """Its claimed jobs are gone, and who holds or waits is told."""
    db.queues.put_many(RUN, QUEUE, range(50))
    jobs = db.queues.claim_many(RUN, QUEUE, 30)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            db.queues.claim(RUN, "empty", wait_s=30)
        except RunDeletedError as error:
            raised.append(error)

    db.queues.put(RUN, "empty", 1)
    db.queues.ack(claimed_of(db, "empty"))
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    db.runs.delete_run(RUN)
    thread.join()
    assert len(raised) == 1
    for attempt in (
        lambda: db.queues.ack(jobs[0]), lambda: db.queues.nack(jobs[1]), lambda: db.queues.extend(jobs[2]),
        lambda: db.transact(RUN, lambda txn: txn.queues.ack(jobs[3])),
        lambda: db.queues.claim(RUN, QUEUE), lambda: db.queues.put(RUN, QUEUE, 1),
    ):
        with pytest.raises(RunDeletedError):
            attempt()
    wait_until(lambda: not db.check().problems, "nothing is left of it")


def claimed_of(db: inmem.Database, queue: str) -> Job:
    job = db.queues.claim(RUN, queue)
    assert job is not None
    return job


def test_a_full_store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put, and what is there goes on: claims, extensions, failures, acks."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path) as db:
        count = 400
        db.queues.put_many(RUN, QUEUE, range(count))
        for name, size in (("large", 20_000), ("small", 100)):
            number = 0
            with pytest.raises(StoreFullError):
                while True:
                    db.kv.put("filler", f"{name}-{number}", os.urandom(size))
                    number += 1
        with pytest.raises(StoreFullError):
            db.queues.put_many(RUN, QUEUE, [os.urandom(20_000)])
        for number in range(count):
            job = claimed(db, worker="w" * 60)
            job = db.queues.extend(job, 60)
            if number % 2:
                db.queues.nack(job, error="e" * 400, delay_s=0)
                job = claimed(db, worker="w" * 60)
            db.queues.ack(job)
        assert db.queues.counts(RUN, QUEUE) == QueueCounts(0, 0, 0, 0)
        assert db.check().problems == []
        for key in db.kv.list("filler")[:50]:
            db.kv.delete("filler", key)
        assert db.queues.put(RUN, QUEUE, "again")


def test_payloads_that_cannot_be_decoded(db: inmem.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dead, with the reason, and nobody is given one or stopped by it."""
    with monkeypatch.context() as patch:
        kind = type(db.run(RUN).queues)
        patch.setattr(kind, "_item", lambda self, payload, argument, *options: [b"\xc1", *options])
        db.queues.put_many(RUN, QUEUE, range(5))
    db.queues.put(RUN, QUEUE, "good")
    assert claimed(db).payload == "good"
    assert db.queues.claim(RUN, QUEUE) is None
    assert db.queues.counts(RUN, QUEUE) == QueueCounts(0, 0, 1, 5)
