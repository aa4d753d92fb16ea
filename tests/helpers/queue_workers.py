"""What workers of a queue do that are killed, and what their history must say afterwards.

A worker writes a line before it asks for something and one after it was told,
each by one `write`: so a killed one leaves whole lines. A line is a list:

    ["claimed", number, token, attempt, claimed_until]    it has the job
    ["extended", number, token, 0, claimed_until]
    ["acking" | "nacking", number, token, 0, 0]           it is about to ask
    ["acked" | "nacked" | "lost", number, token, 0, 0]    it was told
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import inmem
from inmem.host import futex
from inmem.primitives.queues.shown import Job

RUN = "jobs"
QUEUE = "work"
LEASE_S = 1.0
STUCK_S = 60.0
PHASES = 100  # the words from here on say what each worker does
IDLE, CLAIMED, WORKING, ACKING = range(4)


class History:
    """The lines of one worker."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, job: Job, attempt: int = 0, until: int = 0) -> None:
        """Write one line down."""
        line = json.dumps([what, job.id.number, job.token, attempt, until]) + "\n"
        os.write(self._fd, line.encode())


def work(words: Any, index: int, name: str, path: str, histories: str, seed: int) -> int:
    """Take jobs until told to stop: do most of them, give some back, take longer than allowed over a few."""
    rng = random.Random(f"{seed} {name}")
    history = History(Path(histories) / name)
    done = 0
    with inmem.open(path, timeout_s=STUCK_S) as db:
        while not words.stopping():
            words[PHASES + index] = IDLE
            job = db.queues.claim(RUN, QUEUE, lease_s=LEASE_S, wait_s=0.5, worker=name)
            if job is not None:
                done += one_job(words, index, db, job, history, rng)
                words[index] += 1
    return done


def one_job(
    words: Any, index: int, db: inmem.Database, job: Job, history: History, rng: random.Random
) -> bool:
    """Do what came with a claim; whether it was done and this one was told so."""
    words[PHASES + index] = CLAIMED
    history.note("claimed", job, job.attempt, job.claimed_until)
    kind = rng.random()
    words[PHASES + index] = WORKING
    time.sleep(rng.uniform(0, 0.004) if kind > 0.01 else LEASE_S * 1.3)
    try:
        if kind > 0.97:
            job = db.queues.extend(job, LEASE_S)
            history.note("extended", job, 0, job.claimed_until)
        if 0.90 < kind < 0.95:
            history.note("nacking", job)
            db.queues.nack(job, delay_s=rng.choice([0.0, 0.0, 0.05]), error="not now")
            history.note("nacked", job)
            return False

        def finish(txn: inmem.Transaction) -> None:
            txn.queues.ack(job)
            txn.kv.add(f"n-{job.id.number}")
            txn.events.append("done", [job.id.number, job.token, job.attempt])

        history.note("acking", job)
        words[PHASES + index] = ACKING
        db.transact(RUN, finish)
        history.note("acked", job)
        return True
    except inmem.JobLostError:
        history.note("lost", job)
        return False


def read(histories: Path) -> list[list[Any]]:
    """All lines of all workers; a line that was cut by a kill is none."""
    found = []
    for file in sorted(histories.iterdir()):
        for line in file.read_text().splitlines():
            found.append(json.loads(line))
    return found


def check(db: inmem.Database, histories: Path, jobs: int) -> dict[str, int]:
    """What must be true of a run whose jobs all are done; how much there was of it.

    Raises:
        AssertionError: something is not.
    """
    lines = read(histories)
    done = [event.payload for event in db.events.iter(RUN)]
    assert sorted(number for number, _, _ in done) == list(range(jobs)), "each job once, by its event"
    counted = dict(db.kv.list_with_values(RUN, "n-"))
    assert counted == {f"n-{number}": 1 for number in range(jobs)}, "and by its counter"
    ended = {number: (token, attempt) for number, token, attempt in done}

    claims: dict[int, dict[int, list[int]]] = defaultdict(dict)  # by job and token: attempt and ends
    given_back, asked, told, lost = set(), set(), set(), set()
    for what, number, token, attempt, until in lines:
        if what == "claimed":
            assert token not in claims[number], "no claim is given twice"
            claims[number][token] = [attempt, until, until]
        elif what == "extended":
            claims[number][token][2] = until
        elif what == "nacking":
            given_back.add((number, token))
        elif what == "acking":
            asked.add((number, token))
        elif what == "acked":
            told.add((number, token))
        elif what == "lost":
            lost.add((number, token))

    seen = doubled = 0
    for number, by_token in claims.items():
        in_order = sorted(by_token.items())
        seen += len(in_order)
        for (token, (attempt, _, until)), (later, (next_attempt, next_until, _)) in pairwise(in_order):
            assert next_attempt > attempt, "each claim is a later attempt"
            began = next_until - int(LEASE_S * 1e6)
            if (number, token) not in given_back and began < until:
                doubled += 1
                print(f"job {number}: token {later} was given {until - began} us before {token} ran out")
        assert in_order[-1][0] <= ended[number][0], "who ended it had it last"
    assert doubled == 0, "no job has two holders of live claims"
    for number, (token, attempt) in ended.items():
        assert (number, token) in asked and claims[number][token][0] == attempt
        assert attempt >= len(claims[number])
    assert told <= {(number, token) for number, (token, _) in ended.items()}
    assert not lost & {(number, token) for number, (token, _) in ended.items()}, "lost is lost"
    attempts = sum(attempt for _, attempt in ended.values())
    return {
        "jobs": jobs, "claims": attempts, "seen": seen, "unanswered acks": len(ended) - len(told),
        "given back": len(given_back), "lost": len(lost),
    }


def hold_and_finish(words: Any, index: int, path: str) -> str:
    """Take a job, wait for the gate, and end it: whether that was too late."""
    with inmem.open(path, timeout_s=STUCK_S) as db:
        job = db.queues.claim(RUN, QUEUE, lease_s=0.5)
        assert job is not None
        words[index] = 1
        words.pass_gate()

        def finish(txn: inmem.Transaction) -> None:
            txn.kv.add("effect")
            txn.queues.ack(job)

        try:
            db.transact(RUN, finish)
        except inmem.JobLostError:
            return "lost"
        return "done"


def take_when_woken(words: Any, index: int, path: str, threads: int, first: int) -> list[list[float]]:
    """Threads that wait for jobs and end each at once: for each job its number, who, and how late it began.

    The payload of a job is when it was put, or is due. The words from `first` on count, for each process,
    how often one of its threads was woken before its sleep was over.
    """
    woken = [0] * threads
    sleep = futex.wait_any

    def counted(addresses: Any, values: Any, timeout_s: float) -> None:
        began = time.monotonic()
        sleep(addresses, values, timeout_s)
        if time.monotonic() - began < timeout_s:
            who = int(threading.current_thread().name)
            woken[who] += 1
            words[first + index] = sum(woken)

    futex.wait_any = counted
    found: list[list[float]] = []
    with inmem.open(path, timeout_s=STUCK_S) as db:

        def take(who: int) -> None:
            while True:
                job = db.queues.claim(RUN, QUEUE, wait_s=STUCK_S)
                late_s = time.time() - (job.payload if job is not None and job.payload else 0)
                assert job is not None
                db.queues.ack(job)
                if job.payload is None:
                    return
                found.append([job.id.number, index * threads + who, late_s])
                words[index] += 1

        all_of_them = [threading.Thread(target=take, args=(n,), name=str(n)) for n in range(threads)]
        for thread in all_of_them:
            thread.start()
        for thread in all_of_them:
            thread.join()
    return found


def die_when_woken(words: Any, index: int, path: str) -> None:
    """Wait for a job, and be killed before taking it."""
    with inmem.open(path) as db:
        words[index] = 1
        db.wait(RUN, lambda view: view.queues.has_ready(QUEUE), timeout_s=STUCK_S)
        os.kill(os.getpid(), signal.SIGKILL)
