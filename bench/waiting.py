"""What do waits cost, and how soon do they end? `python -m bench.waiting`

Puts while nobody waits, while 64 threads of eight processes wait for other
keys, and while they wait for the very prefix that is written. A wait for a key
that another process puts. Processes that follow one log, beside Redis Streams.
And processes that only wait: what they take of a core.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

import inmem
from bench.harness import Options, bench, main
from bench.measuring import BenchError, cpu_ns

PROCESSES: Final = 8
WAITERS: Final = 64
IDLE: Final = 100
MANY_IDLE: Final = 1000
FOLLOWERS: Final = 64
RUN: Final = "waits"
_QUIET_S: Final = 0.5  # in which those who wait fall asleep
_STUCK_S: Final = 60.0

NOBODY: Final = "kv put, nobody waits"
OTHERS: Final = f"kv put, {WAITERS} wait for other keys"
PREFIX: Final = f"kv put, {WAITERS} wait for its prefix"
WAKE: Final = "kv put and the wait for it"
FOLLOW: Final = f"events, each to {FOLLOWERS} who follow"
_spawn = multiprocessing.get_context("spawn")


def _wait_for_other_keys(db: inmem.Database, number: int) -> None:
    db.kv.wait(RUN, f"other-{number}")


def _wait_for_prefix(db: inmem.Database, number: int) -> None:
    for _ in db.kv.watch(RUN, "put-"):
        pass


def _waiters(path: str, wait: Callable[[inmem.Database, int], None], count: int, pipe: Connection) -> None:
    """One process with threads that wait, until it is told to end."""
    db = inmem.open(path)

    def until_closed(number: int) -> None:
        try:
            wait(db, number)
        except inmem.ClosedError:
            pass

    threads = [threading.Thread(target=until_closed, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    pipe.send(os.getpid())
    pipe.recv()
    db.close()
    for thread in threads:
        thread.join()


def _coroutines(path: str, count: int, pipe: Connection) -> None:
    """One loop with coroutines that wait, until it is told to end."""
    import asyncio

    async def until_told() -> None:
        async with inmem.aio.open(path) as db:
            tasks = [asyncio.ensure_future(_until_closed(db.kv.wait(RUN, f"o-{n}"))) for n in range(count)]
            await asyncio.sleep(_QUIET_S)
            pipe.send(os.getpid())
            await asyncio.to_thread(pipe.recv)
        await asyncio.gather(*tasks)

    asyncio.run(until_told())


async def _until_closed(wait: Any) -> None:
    try:
        await wait
    except inmem.ClosedError:
        pass


@contextmanager
def _started(function: Callable[..., None], *arguments: Any, processes: int = 1) -> Iterator[list[int]]:
    """Processes that have begun, and end with the block; their ids."""
    pipes, started = [], []
    try:
        for _ in range(processes):
            ours, theirs = _spawn.Pipe()
            process = _spawn.Process(target=function, args=(*arguments, theirs))
            process.start()
            pipes.append(ours)
            started.append(process)
        pids = []
        for pipe in pipes:
            if not pipe.poll(_STUCK_S):
                raise BenchError("a process that waits did not begin")
            pids.append(pipe.recv())
        time.sleep(_QUIET_S)
        yield pids
    finally:
        for pipe in pipes:
            pipe.send("end")
        for process in started:
            process.join()


def _puts(db: inmem.Database, seconds: float) -> float:
    """Puts a second."""
    run, done = db.run(RUN).kv, 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for n in range(10):
            run.put(f"put-{n}", done)
        done += 10
    return done / seconds


def _puts_beside(db: inmem.Database, seconds: float, wait: Callable[[inmem.Database, int], None]) -> float:
    with _started(_waiters, str(db.path), wait, WAITERS // PROCESSES, processes=PROCESSES):
        return _puts(db, seconds)


def _woken(path: str, count: int, pipe: Connection) -> None:
    """Wait for one put after the other; how long after its beginning each was there."""
    took = []
    with inmem.open(path) as db:
        seen = None if (found := db.kv.get_versioned(RUN, "sent")) is None else found.version
        pipe.send(os.getpid())
        for _ in range(count):
            found = db.kv.wait(RUN, "sent", after=seen, timeout_s=_STUCK_S)
            assert found is not None
            took.append(time.perf_counter() - found.value)
            seen = found.version
            pipe.send(None)
        pipe.send(took)
    pipe.recv()


def _wakes(db: inmem.Database, seconds: float) -> tuple[list[float], list[float]]:
    """How long a put takes, and how long from its beginning to the end of another process's wait for it."""
    count = max(20, int(1000 * seconds))
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_woken, args=(str(db.path), count, theirs))
    process.start()
    ours.recv()
    puts = []
    for _ in range(count):
        time.sleep(0.0005)  # so that the other one sleeps
        began = time.perf_counter()
        db.kv.put(RUN, "sent", began)
        puts.append(time.perf_counter() - began)
        if not ours.poll(_STUCK_S):
            raise BenchError("a wake was lost")
        ours.recv()
    took = ours.recv()
    ours.send("end")
    process.join()
    return puts, took


def _following(path: str, count: int, pipe: Connection) -> None:
    with inmem.open(path) as db:
        start = db.events.count(RUN)
        pipe.send(os.getpid())
        for number, event in enumerate(db.events.follow(RUN, start, timeout_s=_STUCK_S), 1):
            assert event.sequence == start + number - 1
            if number == count:
                break
        pipe.send("done")
    pipe.recv()


def _following_redis(connector: Any, count: int, pipe: Connection) -> None:
    client = connector().db
    last, seen = "$", 0
    found = client.xrevrange("stream", count=1)
    last = found[0][0] if found else "0"
    pipe.send(os.getpid())
    while seen < count:
        for _, entries in client.xread({"stream": last}, block=int(1000 * _STUCK_S)):
            seen += len(entries)
            last = entries[-1][0]
    pipe.send("done")
    pipe.recv()


def _followed(function: Callable[..., None], target: Any, append: Callable[[int], Any], count: int) -> float:
    """Events a second, from the first append until all who follow have all of them."""
    pipes, started = [], []
    for _ in range(FOLLOWERS):
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=function, args=(target, count, theirs))
        process.start()
        pipes.append(ours)
        started.append(process)
    for pipe in pipes:
        pipe.recv()
    time.sleep(_QUIET_S)
    began = time.perf_counter()
    for number in range(count):
        append(number)
    for pipe in pipes:
        if not pipe.poll(_STUCK_S):
            raise BenchError("somebody who follows did not get every event")
        pipe.recv()
    took = time.perf_counter() - began
    for pipe, process in zip(pipes, started, strict=True):
        pipe.send("end")
        process.join()
    return count / took


def _idle(path: str, function: Callable[..., None], *arguments: Any, seconds: float) -> float:
    """What a process that only waits takes of a core, in percent."""
    with _started(function, path, *arguments) as pids:
        before = sum(map(cpu_ns, pids))
        time.sleep(seconds)
        return (sum(map(cpu_ns, pids)) - before) / 1e7 / seconds


def run(options: Options) -> dict[str, Any]:
    """Puts beside waiters, wakes, followers, idle waiters."""
    with bench("waiting", "what do waits cost, and how soon do they end?", options, ("inmem", "redis")) as b:
        store = b.scratch / "waits"
        seconds = options.seconds
        with inmem.open(store) as db:
            db.kv.put(RUN, "begun", 1)
            wakes: dict[int, list[tuple[list[float], list[float]]]] = {}

            def wake(busy: int) -> float:
                found = _wakes(db, seconds)
                wakes.setdefault(busy, []).append(found)
                return 1 / statistics.median(found[1])

            for count in options.situations:
                b.case(NOBODY, "inmem", functools.partial(_puts, db, seconds), count)
                for name, wait in ((OTHERS, _wait_for_other_keys), (PREFIX, _wait_for_prefix)):
                    b.case(name, "inmem", functools.partial(_puts_beside, db, seconds, wait), count)
                b.case(WAKE, "inmem", functools.partial(wake, count), count)
            events = options.size(2000, 50)
            b.case(FOLLOW, "inmem", lambda: _followed(
                _following, str(store), lambda n: db.events.append(RUN, "e", n), events
            ))
            if "redis" in b.subjects:
                connector = b.subjects["redis"].connector
                client: Any = connector()
                b.case(FOLLOW, "redis", lambda: _followed(
                    _following_redis, connector, lambda n: client.db.xadd("stream", {"n": n}), events
                ))
            b.rounds()
            for busy, found in wakes.items():
                beside = f", beside {busy} busy" if busy else ""
                for puts, took in found:
                    puts.sort()
                    took.sort()
                    b.figure(f"put p50 us{beside}", 1e6 * puts[len(puts) // 2])
                    b.figure(f"wake p50 us{beside}", 1e6 * took[len(took) // 2])
                    b.figure(f"wake p99 us{beside}", 1e6 * took[int(0.99 * len(took))])
            b.compare("puts: 64 wait for other keys / nobody", OTHERS, NOBODY)
            b.compare("puts: 64 wait for the prefix / nobody", PREFIX, NOBODY)
            idle_s = options.size(5, 1)
            path = str(store)
            for _ in range(options.rounds):
                b.figure(
                    f"{IDLE} idle waiters, % of a core",
                    _idle(path, _waiters, _wait_for_other_keys, IDLE, seconds=idle_s),
                )
                for count in (IDLE, MANY_IDLE):
                    share = _idle(path, _coroutines, count, seconds=idle_s)
                    b.figure(f"{count} idle coroutines, % of a core", share)
        return b.document()


if __name__ == "__main__":
    sys.exit(main("waiting", __doc__, run))
