"""An event loop and a server: how many connections, what a cancellation leaves, and that the loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from homes import PostgresHome
from postgres_server import PostgresServer

import inmem
from inmem import aio
from inmem.engines.postgres.asking import AskedConnection
from inmem.engines.postgres.green import Connection

RUN = "run"
LONG_S = 60.0


@pytest.fixture
def there(postgres_server: PostgresServer) -> Iterator[PostgresHome]:
    home = PostgresHome(postgres_server)
    blocked = Connection.blocked
    yield home
    home.close()
    assert Connection.blocked == blocked, "the loop's thread has waited for the server"


def connections_of(db: Any) -> Any:
    return db.engine.store.connections


def opened(db: Any) -> int:
    """How many connections are open."""
    return sum(not each.closed for each in connections_of(db)._all)


def test_a_thousand_coroutines_share_few_connections(there: PostgresHome) -> None:
    async def main() -> None:
        async with aio.open(there.url) as db:
            await db.kv.put(RUN, "k", 1)
            most = 0

            async def work(number: int) -> None:
                nonlocal most
                assert await db.kv.get(RUN, "k") == 1
                most = max(most, opened(db))
                if number % 10 == 0:
                    await db.kv.add(RUN, "n")
                    async with db.snapshot(RUN) as view:
                        assert await view.kv.get("k") == 1
                        assert await db.kv.get(RUN, "k") == 1

            await asyncio.gather(*(work(number) for number in range(1000)))
            assert await db.kv.get(RUN, "n") == 100
            assert most <= 18

    asyncio.run(main())


def test_who_has_a_connection_and_wants_another_does_not_wait_for_ever(there: PostgresHome) -> None:
    async def main() -> None:
        async with aio.open(f"{there.url}&connections=2") as db:
            await db.kv.put(RUN, "k", 1)
            both = asyncio.Barrier(4)

            async def work() -> None:
                async with db.snapshot(RUN) as view:
                    await view.kv.get("k")
                    async with asyncio.timeout(LONG_S):
                        await asyncio.create_task(db.kv.put(RUN, "k", 2))

            async def meets() -> None:
                await both.wait()
                await work()

            await asyncio.gather(*(meets() for _ in range(4)))

    asyncio.run(main())


def test_the_loop_goes_on_while_the_server_is_slow(there: PostgresHome) -> None:
    async def main() -> None:
        async with aio.open(there.url) as db:
            await db.kv.put(RUN, "k", 1)
            with psycopg.connect(f"{there.conninfo} options='-csearch_path={there.schema}'") as another:
                another.execute("select 1 from buckets for update")
                put = asyncio.create_task(db.kv.put(RUN, "k", 2))
                began, longest = time.monotonic(), 0.0
                while time.monotonic() < began + 0.5:
                    before = time.monotonic()
                    await asyncio.sleep(0.001)
                    longest = max(longest, time.monotonic() - before)
                assert not put.done() and await db.kv.get(RUN, "k") == 1
            await put
            assert longest < 0.4

    asyncio.run(main())


Calls = list[Callable[[aio.AsyncDatabase], Awaitable[Any]]]


async def _transact(db: aio.AsyncDatabase) -> Any:
    async def step(txn: aio.AsyncTransaction) -> None:
        await txn.kv.add("n")
        await txn.kv.put("last", await txn.kv.get("n"))
        await txn.events.append("step", await txn.kv.count())

    await db.transact(RUN, step)


async def _plain(db: aio.AsyncDatabase) -> Any:
    def step(txn: inmem.Transaction) -> None:
        txn.kv.put("n", txn.kv.get("n", 0) + 1)
        txn.events.append("step")

    await db.transact(RUN, step)


async def _block(db: aio.AsyncDatabase) -> Any:
    with contextlib.suppress(inmem.ConflictError):
        async with db.transaction(RUN) as txn:
            await asyncio.gather(txn.kv.get("n"), txn.kv.list(), txn.events.head())
            await txn.kv.add("other")


async def _read(db: aio.AsyncDatabase) -> Any:
    async with db.snapshot(RUN) as view:
        assert (await view.kv.get("n", 0)) >= 0
        async for _ in view.kv.iter():
            pass
    await db.kv.list(RUN)


async def _pipe(db: aio.AsyncDatabase) -> Any:
    async with db.pipeline() as pipe:
        for number in range(5):
            await pipe.kv.put(RUN, "p", number)


async def _wait(db: aio.AsyncDatabase) -> Any:
    with contextlib.suppress(inmem.WaitTimeoutError):
        await db.kv.wait(RUN, "no", timeout_s=0.01)


CALLS: Calls = [_transact, _plain, _block, _read, _pipe, _wait]


def test_tasks_are_cancelled_anywhere(there: PostgresHome, rng: random.Random) -> None:
    """No connection is left broken or taken, and each commit was made once or not."""

    async def main() -> None:
        async with aio.open(there.url) as db:
            await db.kv.put(RUN, "k", 1)
            began = time.monotonic()
            for call in CALLS:
                await call(db)
            whole_s = (time.monotonic() - began) / len(CALLS)
            made = 0
            for number in range(240):
                task = asyncio.ensure_future(CALLS[number % len(CALLS)](db))
                await asyncio.sleep(rng.uniform(0, whole_s) if number % 3 else 0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                    made += 1
            async with asyncio.timeout(LONG_S):
                await asyncio.gather(*(call(db) for call in CALLS for _ in range(20)))
                count, events = await db.kv.get(RUN, "n"), await db.events.count(RUN)
                assert count == events, "each took effect as one"
                assert (await db.events.verify_chain(RUN)).is_valid
            connections = connections_of(db)
            assert not connections._turns._had, "all were given back"
            assert len(connections._free) <= 16
            mine = [connection.info.backend_pid for connection in connections._free]
            with psycopg.connect(there.conninfo) as another:  # other tests use the server too
                idle = another.execute(
                    "select count(*) from pg_stat_activity where state like 'idle in transaction%%'"
                    " and pid = any(%s)", [mine],
                ).fetchone()  # fmt: skip
                assert mine and idle == (0,)

    asyncio.run(main())


def test_a_commit_that_was_sent_is_not_cancelled(there: PostgresHome) -> None:
    async def main() -> None:
        async with aio.open(there.url) as db:
            await db.kv.put(RUN, "k", 1)
            with psycopg.connect(f"{there.conninfo} options='-csearch_path={there.schema}'") as another:
                another.execute("select 1 from buckets for update")
                put = asyncio.create_task(db.kv.put(RUN, "k", 2))
                await asyncio.sleep(0.2)
                put.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await put
            async with asyncio.timeout(LONG_S):
                while await db.kv.get(RUN, "k") != 2:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_thousands_of_coroutines_wait_for_the_thread_of_the_process(there: PostgresHome) -> None:
    async def main() -> None:
        async with aio.open(there.url) as db:
            await db.kv.put(RUN, "k", 1)
            waits = [
                asyncio.create_task(db.wait(RUN, lambda view: view.kv.get("go"), timeout_s=LONG_S))
                for _ in range(1000)
            ]
            async with asyncio.timeout(LONG_S):
                while db.engine.store.poller.waiting < 1000:
                    await asyncio.sleep(0.05)
            assert opened(db) <= 18
            await db.kv.put(RUN, "go", 1)
            assert await asyncio.gather(*waits) == [1] * 1000

    asyncio.run(main())


def test_commits_of_a_pipeline_travel_together(there: PostgresHome) -> None:
    async def main() -> None:
        async with aio.open(there.url) as db:
            for run in range(4):
                await db.kv.put(f"r{run}", "k", 1)
            before = AskedConnection.round_trips
            async with db.pipeline() as pipe:
                for n in range(400):  # of another run than the one before, so each is a commit of its own
                    await pipe.kv.put(f"r{n % 4}", "last", n)
                    await pipe.kv.add(f"r{n % 4}", "n")
            took = AskedConnection.round_trips - before
            assert took < 200, "what waits for each other goes in one transaction"
            for run in range(4):
                assert await db.kv.get_many(f"r{run}", ["last", "n"]) == {"last": 396 + run, "n": 100}
            print(f"400 commits in {took} round trips")

    asyncio.run(main())


def test_one_of_a_pipeline_is_refused(there: PostgresHome) -> None:
    """It is told, and the others stand, in their order."""

    async def main() -> None:
        async with aio.open(there.url) as db:
            await db.kv.put("r0", "text", "no number")
            with pytest.raises(inmem.InvalidValueError):
                async with db.pipeline() as pipe:
                    for n in range(40):
                        await pipe.kv.put(f"r{n % 2}", "last", n)
                        if n == 20:
                            await pipe.run("r2").kv.add("n")
                            await pipe.run("r0").kv.add("text")
            assert [await db.kv.get(f"r{n}", "last") for n in range(2)] == [38, 39]
            assert await db.kv.get("r0", "text") == "no number" and await db.kv.get("r2", "n") == 1

    asyncio.run(main())


def test_closing_ends_what_is_under_way(there: PostgresHome) -> None:
    async def main() -> None:
        db = await aio.open(there.url)
        await db.kv.put(RUN, "k", 1)
        waits = asyncio.create_task(db.kv.wait(RUN, "go"))
        follows = asyncio.create_task(anext(db.events.follow(RUN)))  # type: ignore[arg-type]
        with psycopg.connect(f"{there.conninfo} options='-csearch_path={there.schema}'") as another:
            another.execute("select 1 from buckets for update")
            put = asyncio.create_task(db.kv.put(RUN, "k", 2))
            await asyncio.sleep(0.3)
            async with asyncio.timeout(LONG_S):
                await db.close()
                for task in (waits, follows):
                    with pytest.raises(inmem.ClosedError):
                        await task
                with pytest.raises(inmem.InmemError):
                    await put
        with pytest.raises(inmem.ClosedError):
            await db.kv.get(RUN, "k")
        await db.close()

    asyncio.run(main())


def test_two_loops_one_after_the_other(there: PostgresHome) -> None:
    """Connections that one loop leaves another one takes."""
    with there.open() as keeps:
        for number in range(3):

            async def main(number: int = number) -> None:
                async with aio.open(there.url) as db:
                    assert await db.kv.get(RUN, "n", number) == number
                    await db.kv.put(RUN, "n", number + 1)

            asyncio.run(main())
        assert keeps.kv.get(RUN, "n") == 3
