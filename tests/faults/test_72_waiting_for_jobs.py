"""Fault 72: idle workers; few wake for one job, and one begins it soon, whoever is killed in between."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from generations import churn
from queue_workers import QUEUE, RUN, die_when_woken, take_when_woken
from support import Worker, Workers, stop_writer, wait_until, writer_pid
from waiting_workers import kill_one

import inmem
from inmem.host.waitfile import takers_place
from inmem.primitives.queues.reads import takers_name

PUTS = int(os.environ.get("INMEM_TEST_PUTS", "150"))
KILLS = int(os.environ.get("INMEM_TEST_KILLS", "3"))
PROCESSES, THREADS = 16, 4
WOKEN = 100  # from this word on
LOST_S = 1.0  # after which a taker looks by itself
STARTING_S = 2.0  # in which a new writer comes, on a machine that does other work
QUIET_S = 0.3  # in which a taker falls asleep


def crew(workers: Workers, path: Path, processes: int, threads: int) -> list[Worker]:
    """Processes of idle takers, each of which has had a job; asleep."""
    started = [
        workers.start(take_when_woken, index, path, threads, WOKEN) for index in range(processes)
    ]
    with inmem.open(path) as db:
        turn = 0
        while not all(workers.words[index] for index in range(processes)):
            turn += 1
            db.queues.put(RUN, QUEUE, time.time())
            wait_until(lambda n=turn: workers.check() or workers.words.total(processes) >= n, "it is taken")
    time.sleep(QUIET_S)
    return started


def sent_home(db: inmem.Database, started: list[Worker], threads: int) -> list[list[float]]:
    """End the takers; what they had, by number."""
    db.queues.put_many(RUN, QUEUE, [None] * (threads * len(started)))
    return sorted(each for worker in started for each in worker.result())


@pytest.mark.timeout(120 + PUTS)
def test_one_put_wakes_few_of_many(store_path: Path, workers: Workers) -> None:
    """64 wait: at most four wake for one job, those who slept longest, so that all have their turn."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        started = crew(workers, store_path, PROCESSES, THREADS)
        before = workers.words.total(PROCESSES)
        woken_before = sum(workers.words[WOKEN + index] for index in range(PROCESSES))
        most = 0
        for number in range(1, PUTS + 1):
            was = sum(workers.words[WOKEN + index] for index in range(PROCESSES))
            db.queues.put(RUN, QUEUE, time.time())
            wait_until(lambda n=number: workers.words.total(PROCESSES) >= before + n, "it is taken")
            time.sleep(0.001)
            most = max(most, sum(workers.words[WOKEN + index] for index in range(PROCESSES)) - was)
        woken = sum(workers.words[WOKEN + index] for index in range(PROCESSES)) - woken_before
        found = sent_home(db, started, THREADS)[-PUTS:]
    late = sorted(each[2] for each in found)
    last: dict[float, int] = {}
    gaps = []
    for at, (_, who, _) in enumerate(found):
        if who in last:
            gaps.append(at - last[who])
        last[who] = at
    took = [sum(each[1] == who for each in found) for who in range(PROCESSES * THREADS)]
    assert woken <= 4 * PUTS
    assert late[len(late) // 2] < 0.05
    print(
        f"{PUTS} puts: woken {woken / PUTS:.2f} each, at most {most}; began after p50 "
        f"{1e6 * late[len(late) // 2]:.0f} us, p99 {1e3 * late[int(len(late) * 0.99)]:.1f} ms; each of "
        f"{len(took)} had {min(took)} to {max(took)}; the longest between two turns of one: "
        f"{max(gaps, default=0)} jobs"
    )


def test_a_taker_killed_between_wake_and_claim(store_path: Path, workers: Workers) -> None:
    """The others find the job by their own look."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        victim = workers.start(die_when_woken, 20, store_path)
        wait_until(lambda: workers.check() or workers.words[20], "it waits")
        time.sleep(QUIET_S)
        started = [workers.start(take_when_woken, index, store_path, 2, WOKEN) for index in range(2)]
        wait_until(lambda: writer_pid(store_path), "a writer serves")
        time.sleep(QUIET_S)
        puts = 0
        while victim.process.poll() is None:
            db.queues.put(RUN, QUEUE, time.time())
            puts += 1
            wait_until(lambda n=puts: workers.words.total(2) >= n, "it is taken")
            time.sleep(0.01)
            assert puts < 50
        found = sent_home(db, started, 2)
    late = sorted(each[2] for each in found)
    assert len(late) == puts and late[-1] < LOST_S + 0.5
    print(f"killed at put {puts}; its job began after {late[-1]:.2f} s")


@pytest.mark.timeout(120 + 3 * KILLS)
def test_wakes_over_kills_stops_and_switches(store_path: Path, workers: Workers, rng: random.Random) -> None:
    with inmem.open(store_path, timeout_s=60.0) as db:
        db.kv.put(RUN, "k", 1)
        started = crew(workers, store_path, 4, 2)
        puts = before = workers.words.total(4)
        is_over = threading.Event()

        def feed() -> None:
            nonlocal puts
            while not is_over.is_set():
                db.queues.put(RUN, QUEUE, time.time())
                puts += 1
                time.sleep(rng.uniform(0, 0.01))

        feeder = threading.Thread(target=feed)
        feeder.start()
        for number in range(KILLS):
            workers.check()
            if number % 3 == 1:
                stop_writer(store_path)
                time.sleep(0.2)
            else:
                kill_one(store_path, rng)
        is_over.set()
        feeder.join()
        wait_until(lambda: workers.check() or workers.words.total(4) >= puts, "all are taken")
        found = [each for each in sent_home(db, started, 2) if each[0] >= before]
        assert sorted(each[0] for each in found) == list(range(before, puts))
    longest_s = max(each[2] for each in found)
    assert longest_s < LOST_S + STARTING_S
    print(f"{KILLS} writers ended, {puts - before} jobs, the longest until one began {longest_s:.2f} s")


def test_a_new_generation(store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 << 20))
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        started = crew(workers, store_path, 2, 2)
        with db.snapshot(RUN) as view:
            assert view.kv.get("k") == 1
            churn(db, store_path)  # until the image was replaced under this snapshot
        time.sleep(QUIET_S)
        done = workers.words.total(2)
        db.queues.put(RUN, QUEUE, time.time())
        wait_until(lambda: workers.words.total(2) > done, "it is taken")
        found = sent_home(db, started, 2)
    assert found[-1][2] < LOST_S / 2


def test_delayed_jobs_begin_in_time(store_path: Path, workers: Workers) -> None:
    """Nobody commits anything when they are due, and the idle worker begins within milliseconds."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        started = crew(workers, store_path, 2, 2)
        before = workers.words.total(2)
        for number in range(20):
            delay_s = 0.05 + 0.02 * (number % 5)
            db.queues.put(RUN, QUEUE, time.time() + delay_s, delay_s=delay_s)
            time.sleep(0.03)
        wait_until(lambda: workers.check() or workers.words.total(2) >= before + 20, "all are taken")
        found = sent_home(db, started, 2)[-20:]
    late = sorted(each[2] for each in found)
    assert late[10] < 0.05 and late[-1] < LOST_S / 2
    print(f"delayed jobs began after p50 {1e3 * late[10]:.2f} ms, at most {1e3 * late[-1]:.1f} ms")


# --- who waits for what -----------------------------------------------------------------------------


def began_after(db: inmem.Database, waits: Any, act: Any) -> float:
    """How long after `act` a thread is back that waits."""
    ended: list[float] = []
    thread = threading.Thread(target=lambda: (waits(), ended.append(time.monotonic())))
    thread.start()
    time.sleep(QUIET_S)
    began = time.monotonic()
    act()
    thread.join()
    return ended[0] - began


def test_who_waits_for_a_job_or_something_else(db: inmem.Database) -> None:
    """He is no taker: whatever changes wakes him."""
    db.kv.put(RUN, "k", 1)
    waits: list[tuple[Any, Any]] = [
        (lambda v: v.queues.has_ready("a") or v.kv.get("stop"), lambda: db.kv.put(RUN, "stop", 1)),
        (lambda v: v.kv.get("go") or v.queues.has_ready("b"), lambda: db.kv.put(RUN, "go", 1)),
        (lambda v: v.queues.has_ready("c") or v.queues.has_ready("d"), lambda: db.queues.put(RUN, "c", 1)),
        (lambda v: v.queues.has_ready("e") or v.queues.has_ready("f"), lambda: db.queues.put(RUN, "f", 1)),
        (lambda v: v.queues.has_ready("g") or v.queues.list() != found, lambda: db.queues.put(RUN, "x", 1)),
    ]
    for fn, act in waits:
        found = db.queues.list(RUN)
        took_s = began_after(db, lambda fn=fn: db.wait(RUN, fn, timeout_s=10), act)
        assert took_s < LOST_S / 4


def two_queues_at_one_word(db: inmem.Database) -> tuple[str, str]:
    """Names of queues whose takers sleep on one word."""
    prefix = b"default/default/default/" + RUN.encode()
    places: dict[int, str] = {}
    for number in range(3000):
        name = f"queue-{number}"
        place = takers_place(takers_name(prefix, name.encode()))
        if place in places:
            return places[place], name
        places[place] = name
    raise AssertionError("there are fewer words than queues")


def test_takers_of_two_queues_at_one_word(db: inmem.Database) -> None:
    """Who has slept longest is not the one who is meant."""
    db.kv.put(RUN, "k", 1)
    names = two_queues_at_one_word(db)
    for meant in (0, 1, 0, 1):
        other = threading.Thread(target=lambda m=meant: db.queues.claim(RUN, names[1 - m], wait_s=0.8))
        other.start()
        time.sleep(0.05)
        took_s = began_after(
            db, lambda m=meant: db.queues.claim(RUN, names[m], wait_s=5),
            lambda m=meant: db.queues.put(RUN, names[m], 1),
        )
        assert took_s < LOST_S / 4
        other.join()


def test_few_ask_for_a_job_that_all_knew_of(store_path: Path, workers: Workers) -> None:
    """When a delayed job is due that 64 sleep until, most of them find it taken by their look."""
    jobs, delay_s = 3, 1.3  # long enough for each to have looked once
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        started = crew(workers, store_path, PROCESSES, THREADS)
        done, commits = workers.words.total(PROCESSES), db.status().commits
        for number in range(1, jobs + 1):
            db.queues.put(RUN, QUEUE, time.time() + delay_s, delay_s=delay_s)
            wait_until(lambda n=number: workers.words.total(PROCESSES) >= done + n, "it is taken")
            time.sleep(QUIET_S)
        asked = db.status().commits - commits - 2 * jobs
        sent_home(db, started, THREADS)
    assert asked < jobs * PROCESSES * THREADS / 2
    print(f"{asked / jobs:.1f} of {PROCESSES * THREADS} asked for each of {jobs} delayed jobs")
