"""Fault 70: coroutines that commit and wait while writers die, tasks are cancelled and loops end."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import kill_writer, stop_writer, wait_until, writer_pid
from waiting_workers import kill_one

import inmem
from inmem import aio
from inmem.errors import (
    ClosedError,
    CommitUnknownError,
    ConflictError,
    ForkError,
    InvariantError,
    RunDeletedError,
    WaitTimeoutError,
)

RUN = "run"
KILLS = int(os.environ.get("INMEM_TEST_KILLS", "6"))
LONG_S = 60.0


async def settled(db: aio.AsyncDatabase) -> None:
    """Until nothing is under way."""
    deadline = time.monotonic() + LONG_S
    while db.session.in_flight():
        assert time.monotonic() < deadline, "something stays under way"
        await asyncio.sleep(0.005)


def test_commits_take_effect_once_while_writers_die(store_path: Path, rng: random.Random) -> None:
    """64 coroutines add and append, four follow; each commit is acknowledged, and there once."""

    async def main() -> None:
        async with aio.open(store_path, timeout_s=LONG_S) as db:
            run = db.run(RUN)
            await run.kv.put("begun", 1)
            is_over = False
            acked = [0] * 64

            async def work(number: int) -> None:
                while not is_over:
                    await run.kv.add(f"n-{number}")
                    await run.events.append("e", number)
                    await run.transact(lambda txn: txn.kv.put("last", txn.kv.get(f"n-{number}")))
                    acked[number] += 1

            followed: list[list[int]] = [[] for _ in range(4)]

            async def follow(found: list[int]) -> None:
                async for event in run.events.follow(timeout_s=LONG_S):
                    found.append(event.sequence)
                    if event.event_type == "end":
                        return

            workers = [asyncio.create_task(work(number)) for number in range(64)]
            followers = [asyncio.create_task(follow(found)) for found in followed]
            for _ in range(KILLS):
                await asyncio.to_thread(kill_one, store_path, rng)
            is_over = True
            await asyncio.gather(*workers)
            last = await run.events.append("end")
            await asyncio.gather(*followers)
            for number, count in enumerate(acked):
                assert await run.kv.get(f"n-{number}", 0) == count
            assert last.sequence == sum(acked) == await run.events.count() - 1
            assert all(found == list(range(last.sequence + 1)) for found in followed)
            assert (await run.events.verify_chain()).is_valid
            print(f"{KILLS} kills, {3 * sum(acked)} commits, lost 0, doubled 0")

    asyncio.run(main())


Call = Callable[[aio.AsyncDatabase], Awaitable[Any]]


async def _add(db: aio.AsyncDatabase) -> Any:
    return await db.kv.add(RUN, "n")


async def _transact(db: aio.AsyncDatabase) -> Any:
    async def step(txn: aio.AsyncTransaction) -> None:
        count = await txn.kv.get("n", 0)
        await asyncio.sleep(0)
        await txn.kv.put("n", count + 1)

    return await db.transact(RUN, step)


async def _block(db: aio.AsyncDatabase) -> Any:
    async with db.transaction(RUN) as txn:
        await txn.kv.put("n", await txn.kv.get("n", 0) + 1)
        await asyncio.sleep(0)


async def _pipe(db: aio.AsyncDatabase) -> Any:
    async with db.pipeline() as pipe:
        await pipe.kv.add(RUN, "n")


async def _wait(db: aio.AsyncDatabase) -> Any:
    loop = asyncio.get_running_loop()
    later = loop.call_later(0.01, lambda: other.append(asyncio.ensure_future(_poke(db))))
    other: list[Any] = []
    try:
        await db.kv.wait(RUN, "poked", after=await _version(db), timeout_s=LONG_S)
    finally:
        later.cancel()
        for task in other:
            await task


async def _poke(db: aio.AsyncDatabase) -> None:
    await db.kv.add(RUN, "poked")


async def _version(db: aio.AsyncDatabase) -> int | None:
    found = await db.kv.get_versioned(RUN, "poked")
    return None if found is None else found.version


async def _follow(db: aio.AsyncDatabase) -> Any:
    start = await db.events.count(RUN)
    appended = asyncio.ensure_future(db.events.append(RUN, "e"))
    try:
        async for event in db.events.follow(RUN, start, timeout_s=LONG_S):
            return event
    finally:
        await appended


CALLS = [_add, _transact, _block, _pipe, _wait, _follow]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_task_that_is_cancelled_anywhere(store_path: Path, call: Call) -> None:
    """At each turn of the loop: it happened or did not, nothing is held, and the next call works."""

    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "n", 0)
            await call(db)
            done = cancelled = 0
            turns = 0
            while turns < 12 or cancelled:
                before = await db.kv.get(RUN, "n", 0)
                task = asyncio.ensure_future(call(db))
                cancelled = 0
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.cancel():
                    cancelled = 1
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    await task
                await settled(db)
                after = await db.kv.get(RUN, "n", 0)
                assert after - before in ((0, 1) if cancelled else (1, 0))
                done += after - before
                await db.kv.put(RUN, "alive", turns)
                turns += 1
                if turns > 400:
                    break
            assert (await db.status()).oldest_snapshot_age_s is None
            print(f"{call.__name__}: cancelled at {turns} turns, {done} happened")

    asyncio.run(main())


def test_a_commit_that_was_not_sent_is_dropped(store_path: Path) -> None:
    """While nothing can be sent, and when it is sent later: who was cancelled before has no number."""

    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "n", 0)
            pid = writer_pid(store_path)
            os.kill(pid, signal.SIGSTOP)
            try:
                tasks = [asyncio.ensure_future(db.kv.add(RUN, "n")) for _ in range(500)]
                await asyncio.sleep(0.05)
                for task in tasks[100:]:
                    task.cancel()
                await asyncio.sleep(0)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert [await task for task in tasks[:100]] == list(range(1, 101))
            await settled(db)
            assert await db.kv.get(RUN, "n") == 100

    asyncio.run(main())


def test_what_is_not_answered_in_time_is_unknown_and_can_be_resolved(store_path: Path) -> None:
    async def main() -> None:
        with inmem.open(store_path) as first:
            first.kv.put(RUN, "n", 0)
            await unanswered()

    async def unanswered() -> None:
        async with aio.open(store_path, timeout_s=1.0) as db:
            await db.kv.put(RUN, "n", 0)  # its session is known from here on
            pid = writer_pid(store_path)
            os.kill(pid, signal.SIGSTOP)
            errors: list[CommitUnknownError] = []
            try:
                results = await asyncio.gather(
                    *(db.kv.add(RUN, "n") for _ in range(300)), return_exceptions=True
                )
            finally:
                os.kill(pid, signal.SIGCONT)
            sent = [each for each in results if isinstance(each, CommitUnknownError)]
            assert len(sent) == 64 and {type(each).__name__ for each in results} == {
                "CommitUnknownError", "WriterUnavailableError"
            }
            errors += sent
            assert await asyncio.gather(errors[5].resend(30.0), errors[5].resend(30.0)) == [6, 6]
            assert [await error.resend(30.0) for error in errors] == list(range(1, 65))
            assert await errors[5].resend() == 6, "as often as it is asked"
            assert await db.kv.add(RUN, "n") == 65
            with pytest.raises(CommitUnknownError) as caught:
                os.kill(pid, signal.SIGSTOP)
                try:
                    await db.transact(RUN, lambda txn: txn.kv.add("n"), timeout_s=1.0)
                finally:
                    os.kill(pid, signal.SIGCONT)
            assert await caught.value.resend(30.0) == 66

    asyncio.run(main())


def test_each_loop_has_a_handle_of_its_own(store_path: Path) -> None:
    counts = [0, 0]
    opened: list[aio.AsyncDatabase] = []
    refused: list[BaseException] = []

    async def main(number: int) -> None:
        async with aio.open(store_path) as db:
            opened.append(db)
            for _ in range(200):
                await asyncio.gather(*(db.kv.add(RUN, "n") for _ in range(5)))
                counts[number] += 5
            wait_until(lambda: len(opened) == 2, "both are open")
            other = opened[0] if opened[1] is db else opened[1]
            for call in (lambda: other.kv.put(RUN, "k", 1), lambda: other.kv.wait(RUN, "k-2", timeout_s=5)):
                try:
                    await call()
                except InvariantError as error:
                    refused.append(error)
            barrier.wait()

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=asyncio.run, args=(main(number),)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 4
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "n") == sum(counts) == 2000


def test_closing_with_commits_under_way(store_path: Path) -> None:
    async def main() -> None:
        db = await aio.open(store_path)
        await db.kv.put(RUN, "n", 0)
        pid = writer_pid(store_path)
        waits = [asyncio.ensure_future(db.kv.wait(RUN, f"k-{n}")) for n in range(20)]
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGSTOP)
        try:
            tasks = [asyncio.ensure_future(db.kv.add(RUN, "n")) for _ in range(100)]
            await asyncio.sleep(0.05)
            await db.close()
            results = await asyncio.gather(*tasks, *waits, return_exceptions=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        kinds = [type(each) for each in results]
        assert kinds == [CommitUnknownError] * 64 + [ClosedError] * 56
        with pytest.raises(ClosedError):
            await db.kv.put(RUN, "n", 1)
        with pytest.raises(ClosedError):
            await db.kv.get(RUN, "n")

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ends_with_commits_under_way(store_path: Path) -> None:
    """Nothing hangs, and the next loop works. What was sent may have happened."""

    async def begin() -> None:
        db = await aio.open(store_path)
        await db.kv.put(RUN, "n", 0)
        tasks = [asyncio.ensure_future(db.kv.add(RUN, "n")) for _ in range(50)]
        tasks.append(asyncio.ensure_future(db.kv.wait(RUN, "never")))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        left.append(db)

    async def end() -> int:
        async with aio.open(store_path) as db:
            found: int = await db.kv.add(RUN, "n")
            return found

    left: list[aio.AsyncDatabase] = []
    asyncio.run(begin())
    assert 1 <= asyncio.run(end()) <= 51
    left[0].waits.close()
    left[0].handle.close()
    left.clear()
    gc.collect()  # what was not closed says so here


def test_a_forked_child_has_no_part_in_a_loop(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "n", 0)
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    try:
                        db.session.commit(b"", lambda applied: applied, sync=False, timeout_s=1.0)
                    except ForkError:
                        code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert await db.kv.add(RUN, "n") == 1

    asyncio.run(main())


def test_thousands_of_coroutines_wait_and_all_wake(store_path: Path) -> None:
    """On more words than the kernel sleeps on at once; the writer is replaced meanwhile."""
    many = 2000

    async def main() -> None:
        async with aio.open(store_path, timeout_s=LONG_S) as db:
            run = db.run(RUN)
            await run.kv.put("other", 1)
            woken = [asyncio.ensure_future(run.kv.wait(f"k-{n}", timeout_s=LONG_S)) for n in range(many)]
            deleted = asyncio.ensure_future(db.kv.wait("gone", "k", timeout_s=LONG_S))
            late = asyncio.ensure_future(run.kv.wait("never", timeout_s=0.5))
            await asyncio.sleep(0.2)
            await run.kv.put_many({f"k-{n}": n for n in range(many // 2)})
            await asyncio.gather(*woken[: many // 2])
            await asyncio.to_thread(kill_writer, store_path)
            async with db.pipeline() as pipe:
                for n in range(many // 2, many):
                    await pipe.kv.put(RUN, f"k-{n}", n)
            found = await asyncio.gather(*woken)
            assert [each.value for each in found if each is not None] == list(range(many))
            with pytest.raises(WaitTimeoutError):
                await late
            await asyncio.to_thread(stop_writer, store_path)
            await db.kv.put("gone", "other", 1)
            await db.runs.delete_run("gone")
            with pytest.raises(RunDeletedError):
                await deleted

    asyncio.run(main())


def test_coroutines_that_wait_sleep(store_path: Path) -> None:
    """1,000 cost no more than 100 do: one thread looks once a second whether the writer lives."""

    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "other", 1)
            tasks = [asyncio.ensure_future(db.kv.wait(RUN, f"k-{n}")) for n in range(1000)]
            await asyncio.sleep(0.5)
            before, seconds = time.process_time(), 2.0
            await asyncio.sleep(seconds)
            assert time.process_time() - before < 0.05 * seconds
            await db.kv.put_many(RUN, {f"k-{n}": n for n in range(1000)})
            found = await asyncio.gather(*tasks)
            assert [each.value for each in found if each is not None] == list(range(1000))

    asyncio.run(main())


def test_a_coroutine_function_that_conflicts_runs_again(store_path: Path) -> None:
    """A conflict of its own commit, and one that it raises itself."""

    async def main() -> None:
        async with aio.open(store_path) as db:
            runs = 0

            async def step(txn: aio.AsyncTransaction) -> int:
                nonlocal runs
                runs += 1
                count: int = await txn.kv.get("n", 0)
                if runs == 1:
                    await db.kv.put(RUN, "n", 10)
                elif runs == 2:
                    raise ConflictError("of its own")
                await txn.kv.put("n", count + 1)
                return count + 1

            assert await db.transact(RUN, step) == 11 and runs == 3
            assert await db.kv.get(RUN, "n") == 11

    asyncio.run(main())


def test_a_timeout_of_asyncio_ends_a_call(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "n", 0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await db.kv.wait(RUN, "never")
            assert await db.kv.add(RUN, "n") == 1

    asyncio.run(main())
