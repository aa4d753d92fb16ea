"""How many commits does one event loop make? `python -m bench.loops`

Puts by 1, 64, 1,000 and 10,000 coroutines of one loop; beside one blocking
thread, threads for each call, and the asynchronous client of Redis. And
blocking clients beside a loop that is busy: do they get their share?
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import inmem
from bench.harness import Options, bench, main

COUNTS: Final = (1, 64, 1000, 10_000)
RUN: Final = "loops"
_BEGINNING_S: Final = 0.5  # of puts that do not count
_STARTING_S: Final = 2.0  # for which a loop goes on longer than those beside it, which start meanwhile
_spawn = multiprocessing.get_context("spawn")
BLOCKING, TO_THREAD = "one blocking thread", "64 coroutines, to_thread"
BESIDE_LOOP: Final = "each of two blocking processes beside a busy loop"


def label(count: int) -> str:
    """The name of a row."""
    return f"{count} coroutine{'s' if count > 1 else ''}"


async def _rate(put: Callable[[str, int], Awaitable[Any]], count: int, seconds: float) -> float:
    """Puts a second by so many coroutines."""
    done = 0
    end = time.perf_counter() + seconds

    async def work(number: int) -> None:
        nonlocal done
        name = f"put-{number % 100}"
        while time.perf_counter() < end:
            await put(name, number)
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(count)))
    return done / (time.perf_counter() - began)


def _ours(path: str, count: int, seconds: float) -> float:
    async def measure() -> float:
        async with inmem.aio.open(path) as db:
            run = db.run(RUN)
            await run.kv.put("begun", 1)
            return await _rate(run.kv.put, count, seconds)

    return asyncio.run(measure())


def _to_thread(db: inmem.Database, count: int, seconds: float) -> float:
    put = db.run(RUN).kv.put

    async def in_thread(name: str, number: int) -> None:
        await asyncio.to_thread(put, name, number)

    return asyncio.run(_rate(in_thread, count, seconds))


def _blocking(db: inmem.Database, seconds: float) -> float:
    put, done = db.run(RUN).kv.put, 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        put("put-1", done)
        done += 1
    return done / seconds


def _redis(socket: str, count: int, seconds: float) -> float:
    import redis.asyncio

    async def measure() -> float:
        client = redis.asyncio.Redis(unix_socket_path=socket)
        try:
            await client.set("begun", 1)
            return await _rate(client.set, count, seconds)
        finally:
            await client.aclose()

    return asyncio.run(measure())


def _put(path: str, seconds: float, results: Any) -> None:
    with inmem.open(path) as db:
        _blocking(db, _BEGINNING_S)  # until all have begun
        results.put(_blocking(db, seconds))


def _beside_loop(path: str, seconds: float) -> float:
    """Puts a second of the slower of two blocking processes, while 1,000 coroutines of a third one put."""
    results = _spawn.Queue()
    loop = _spawn.Process(target=_ours, args=(path, 1000, seconds + _STARTING_S))
    clients = [_spawn.Process(target=_put, args=(path, seconds, results)) for _ in range(2)]
    for process in (loop, *clients):
        process.start()
    found = [results.get() for _ in clients]
    for process in (*clients, loop):
        process.join()
    return float(min(found))


def run(options: Options) -> dict[str, Any]:
    """One loop, and what a program would do without one."""
    with bench("loops", "how many commits does one event loop make?", options, ("inmem", "redis")) as b:
        path = str(b.scratch / "loops")
        seconds = options.seconds
        with inmem.open(path) as db:
            db.kv.put(RUN, "begun", 1)
            redis = b.subjects.get("redis")
            socket = str(redis.connector.args[0]) if redis is not None else ""  # type: ignore[attr-defined]
            for busy in options.situations:
                for count in COUNTS:
                    b.case(label(count), "inmem", functools.partial(_ours, path, count, seconds), busy)
                    if redis is not None and count <= 64:  # with more of them it runs out of connections
                        b.case(label(count), "redis", functools.partial(_redis, socket, count, seconds), busy)
                b.case(BLOCKING, "inmem", functools.partial(_blocking, db, seconds), busy)
                b.case(TO_THREAD, "inmem", functools.partial(_to_thread, db, 64, seconds), busy)
            b.case(BESIDE_LOOP, "inmem", functools.partial(_beside_loop, path, seconds))
            b.rounds()
            for count in COUNTS:
                b.compare(f"{label(count)} / one blocking thread", label(count), BLOCKING)
            b.compare("64 coroutines / to_thread", label(64), TO_THREAD)
            b.compare("10,000 coroutines / 1,000", label(10_000), label(1000))
        return b.document()


if __name__ == "__main__":
    sys.exit(main("loops", __doc__, run))
