"""What does a job cost, and how soon does it begin? `python -m bench.queues`

Jobs that are put, and jobs that are taken and ended, by 1 to 64 processes,
beside Redis (`LMOVE` to a second list, then `LREM`) and huey on SQLite. How
long from a put to the moment when an idle worker has the job. And taking jobs
from a queue with very many of them.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any, Final

import inmem
from bench.harness import Options, bench, main
from bench.measuring import BenchError, Work
from bench.peers import Client, Connector
from bench.peers.ours import CONFIG

SUBJECTS: Final = ("inmem", "redis", "huey")
COUNTS: Final = (1, 8, 64)
MANY: Final = 100
FEW_WAITING: Final = 1_000
_MOST_A_SECOND: Final = {"inmem": 30_000, "redis": 40_000, "huey": 8_000}  # claims, by all processes together
_LOADED_AT_ONCE: Final = 1_000
_STUCK_S: Final = 60.0
_spawn = multiprocessing.get_context("spawn")

PUT: Final = "job put"
PUT_MANY: Final = f"job put, {MANY} at once"
DONE: Final = "job claimed and acked"
START: Final = "from put to start"


def label(count: int) -> str:
    """The name of a row."""
    return f"{DONE}, {count} process{'es' if count > 1 else ''}"


def _value(number: int) -> str:
    return f"{number:010}".ljust(50, "x")


def top_up(client: Client, count: int) -> None:
    """See to it that so many jobs wait."""
    missing = count - client.jobs()
    for first in range(0, max(0, missing), _LOADED_AT_ONCE):
        values = [_value(n) for n in range(first, min(missing, first + _LOADED_AT_ONCE))]
        client.job_put_many(values)


def put(client: Client, index: int) -> Work:
    """Put one job."""
    return Work(client.job_put, [_value(n) for n in range(4096)], total=client.jobs)


def put_many(client: Client, index: int) -> Work:
    """Put many jobs at once."""
    values = [_value(n) for n in range(MANY)]
    return Work(client.job_put_many, [values], total=lambda: client.jobs() // MANY, weight=MANY)


def done(client: Client, index: int, waiting: int) -> Work:
    """Take a job and end it; the first process sees to it that there are enough."""
    if index == 0:
        top_up(client, waiting)
    return Work(
        lambda _: client.job_done(), [None], lambda _, found: found is not None,
        total=lambda: -client.jobs(),
    )


def _takes(connector: Connector, count: int, pipe: Connection) -> None:
    client = connector()
    took = []
    pipe.send(os.getpid())
    for _ in range(count):
        found = client.job_done(_STUCK_S)
        assert found is not None
        took.append(time.perf_counter() - float(found))
        pipe.send(None)
    pipe.send(took)
    pipe.recv()
    client.close()


def _starts(connector: Connector, seconds: float, found: list[list[float]]) -> float:
    """Jobs begun a second: from the beginning of a put until another process, which waits, has ended it."""
    count = max(20, int(300 * seconds))
    client = connector()
    client.no_jobs()
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_takes, args=(connector, count, theirs))
    process.start()
    ours.recv()
    for _ in range(count):
        time.sleep(0.001)  # so that the other one sleeps
        client.job_put(repr(time.perf_counter()))
        if not ours.poll(_STUCK_S):
            raise BenchError("a job was not taken")
        ours.recv()
    took = ours.recv()
    ours.send("end")
    process.join()
    client.close()
    found.append(took)
    return 1.0 / float(statistics.median(took))


def _claims(run: inmem.RunScope, queue: str, seconds: float) -> float:
    """Claims and acks a second."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        job = run.queues.claim(queue)
        if job is None:
            raise BenchError("there are no jobs any more")
        run.queues.ack(job)
        run.queues.put(queue, job.payload)
        count += 1
    return count / seconds


def _fill(run: inmem.RunScope, queue: str, count: int) -> None:
    for first in range(0, count, _LOADED_AT_ONCE):
        run.queues.put_many(queue, [_value(n) for n in range(first, first + _LOADED_AT_ONCE)])


def run(options: Options) -> dict[str, Any]:
    """Puts, claims and acks, starts, very many jobs."""
    many = options.size(1_000_000, 20_000)
    few, full = f"claim, ack, put; {FEW_WAITING:,} wait", f"claim, ack, put; {many:,} wait"
    with bench("queues", "what does a job cost, and how soon does it begin?", options, SUBJECTS) as b:
        counts = COUNTS[:2] if options.quick else COUNTS
        b.processes.need(max(counts))
        starts: dict[str, list[list[float]]] = {}
        for count in counts:
            for name in b.subjects:
                waiting = int(_MOST_A_SECOND[name] * options.seconds * 1.6) + 40 * count
                b.cases(
                    label(count), done, waiting, subjects=(name,), processes=count, sample=True,
                    situations=options.situations if count <= 8 else (0,),
                )  # fmt: skip
        for name, build in ((PUT, put), (PUT_MANY, put_many)):
            b.cases(name, build, sample=True, situations=options.situations)
        for name, subject in b.subjects.items():
            found = starts.setdefault(name, [])
            b.case(START, name, functools.partial(_starts, subject.connector, options.seconds, found))
        with inmem.open(b.scratch / "many", config=CONFIG) as db:
            here = db.run("queues")
            _fill(here, "few", FEW_WAITING)
            _fill(here, "many", many)
            b.case(few, "inmem", functools.partial(_claims, here, "few", options.seconds))
            b.case(full, "inmem", functools.partial(_claims, here, "many", options.seconds))
            b.rounds()
        b.compare("claims with very many jobs waiting / with few", full, few)
        for name, rounds in starts.items():
            of = "" if name == "inmem" else f", {name}"
            for took in rounds:
                took.sort()
                b.figure(f"{START}{of}: p50 us", 1e6 * took[len(took) // 2])
                b.figure(f"{START}{of}: p99 us", 1e6 * took[int(0.99 * len(took))])
        return b.document()


if __name__ == "__main__":
    sys.exit(main("queues", __doc__, run))
