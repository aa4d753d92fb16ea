"""Fault 70: what programs do with a loop's handle that nobody meant: it works, or says what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import kill_writer, stop_writer, wait_until, writer_pid

import inmem
from inmem import aio
from inmem.errors import ClosedError, CommitUnknownError, InvariantError, WaitTimeoutError
from inmem.wire import COMMITS, MAX_TOGETHER, apart, together

RUN = "run"
LONG_S = 30.0


def test_a_transaction_is_committed_once(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            async with db.transaction(RUN) as txn:
                await txn.kv.add("n")
                await txn.commit()
                with pytest.raises(ClosedError):
                    await txn.commit()
            with pytest.raises(ClosedError):
                await txn.commit()
            txn = db.transaction(RUN)
            await txn.kv.add("n")
            results = await asyncio.gather(txn.commit(), txn.commit(), return_exceptions=True)
            assert [type(each) for each in results] == [type(None), ClosedError]
            aborted = db.transaction(RUN)
            await aborted.kv.add("n")
            await aborted.abort()
            with pytest.raises(ClosedError):
                await aborted.commit()
            assert await db.kv.get(RUN, "n") == 2

    asyncio.run(main())


def test_many_coroutines_write_to_one_pipeline(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            async with db.pipeline() as pipe:

                async def write(number: int) -> None:
                    for n in range(50):
                        await pipe.kv.put(f"{RUN}-{number}", f"k-{n}", "x" * 3000)

                await asyncio.gather(*(write(number) for number in range(100)))
            assert sum([await db.kv.count(f"{RUN}-{number}") for number in range(100)]) == 5000

    asyncio.run(main())


def test_waits_that_end_leave_nothing(store_path: Path) -> None:
    """Cancelled at once, or after a while, on keys that expire in a year: books and threads stay small."""

    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "k", 1, ttl=365 * 86_400)
            seen = await db.kv.get_versioned(RUN, "k")
            assert seen is not None
            for turn in range(300):
                wait = asyncio.ensure_future(db.kv.wait(RUN, "k", after=seen.version))
                for _ in range(turn % 4):
                    await asyncio.sleep(0)
                wait.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await wait
            with pytest.raises(WaitTimeoutError):
                await db.kv.wait(RUN, "k", after=seen.version, timeout_s=1.5)  # the thread has looked
            assert not db.waits._new and len(db.waits._gone) <= 1
            before = [thread for thread in threading.enumerate() if thread.name == "inmem-waits"]
            assert len(before) == 1
            await asyncio.to_thread(
                wait_until, lambda: not any(t.name == "inmem-waits" for t in threading.enumerate()),
                "the thread ends some time after the last wait", 10.0,
            )

    asyncio.run(main())


def test_a_wait_begins_and_ends_at_once(store_path: Path) -> None:
    """Whatever its thread is doing at that moment: a second late would be a bell that was not heard."""

    async def main() -> None:
        slowest = 0.0
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "begun", 0)
            for number in range(300):
                waiting = asyncio.ensure_future(db.kv.wait(RUN, f"k-{number}", timeout_s=LONG_S))
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                await db.kv.put(RUN, f"k-{number}", 1)
                began = time.monotonic()
                await waiting
                slowest = max(slowest, time.monotonic() - began)
        assert slowest < 0.7, slowest

    asyncio.run(main())


def test_a_handle_is_closed_in_its_own_loop(store_path: Path) -> None:
    async def begin() -> None:
        db = await aio.open(store_path)
        await db.kv.put(RUN, "k", 1)

        async def elsewhere() -> None:
            await db.close()

        with pytest.raises(InvariantError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        assert await db.kv.get(RUN, "k") == 1
        await db.close()
        await db.close()

    asyncio.run(begin())


def test_a_function_may_wait_inside_of_a_group_of_tasks(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "other", 1)

            async def step(txn: aio.AsyncTransaction) -> Any:
                async def part() -> Any:
                    return await txn.kv.get("k") or txn.wait()

                async with asyncio.TaskGroup() as group:
                    task = group.create_task(part())
                return task.result()

            waiting = asyncio.ensure_future(db.transact(RUN, step, wait_s=LONG_S))
            await asyncio.sleep(0.1)
            await db.kv.put(RUN, "k", "there")
            assert await waiting == "there"

            class Step:
                async def __call__(self, txn: aio.AsyncTransaction) -> Any:
                    return await txn.kv.get("k")

            assert await db.transact(RUN, Step()) == "there"

    asyncio.run(main())


def test_the_loop_s_own_threads_may_all_be_busy(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "k", 0)
            release = threading.Event()
            busy = [asyncio.ensure_future(asyncio.to_thread(release.wait, LONG_S)) for _ in range(100)]
            await asyncio.sleep(0.05)
            kill_writer(store_path)
            assert await asyncio.wait_for(db.kv.add(RUN, "k"), LONG_S) == 1
            release.set()
            await asyncio.gather(*busy)

    asyncio.run(main())


def test_a_store_that_takes_few_at_once(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_MAX_IN_FLIGHT", "4")

    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "n", 0)
            await asyncio.gather(*(db.kv.add(RUN, "n") for _ in range(500)))
            assert await db.kv.get(RUN, "n") == 500
            assert (await db.status()).failures == 0

    asyncio.run(main())


def test_a_loop_rests_when_nobody_waits(store_path: Path) -> None:
    """After its deadline a commit is asked for by nobody: no timer, no connecting goes on for it."""

    async def main() -> None:
        async with aio.open(store_path, timeout_s=1.0) as db:
            await db.kv.put(RUN, "n", 0)
            pid = writer_pid(store_path)
            os.kill(pid, signal.SIGSTOP)
            try:
                results = await asyncio.gather(
                    *(db.kv.add(RUN, "n") for _ in range(200)), return_exceptions=True
                )
                await asyncio.sleep(0.5)
                assert db.session._timer is None and not db.session._queue
            finally:
                os.kill(pid, signal.SIGCONT)
            unknown = [each for each in results if isinstance(each, CommitUnknownError)]
            assert len(unknown) == 64
            tasks = [asyncio.ensure_future(db.kv.put(RUN, "x", n)) for n in range(3000)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            assert await unknown[0].resend(LONG_S) == 1, "answers that nobody wants do not push it out"

    asyncio.run(main())


def test_a_timeout_ends_a_pipeline_too(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "n", 0)
            pid = writer_pid(store_path)
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3), db.pipeline() as pipe:
                        for n in range(100_000):
                            await pipe.kv.put(RUN, f"k-{n % 10}", "x" * 2000)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert time.monotonic() - began < 3.0
            assert await db.kv.add(RUN, "n") == 1

    asyncio.run(main())


def test_a_stopped_writer_that_has_told_nobody(store_path: Path) -> None:
    """What it has published is seen within a second or two, by coroutines too."""

    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "other", 1)
            waiting = asyncio.ensure_future(db.kv.wait(RUN, "k", timeout_s=LONG_S))
            await asyncio.sleep(0.3)
            file = db.engine.attachment.waiting.sleeper.file()
            assert file is not None
            # As if the writer had stopped between publishing and looking at the flags.
            file.flags[:] = bytes(len(file.flags))
            with inmem.open(store_path) as other:
                other.kv.put(RUN, "k", 1)
            file.told[0] = 0
            began = time.monotonic()
            await waiting
            assert time.monotonic() - began < 2.5

    asyncio.run(main())


def test_a_change_that_is_followed_by_the_writer_s_leaving(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put(RUN, "other", 1)
            looks = 0

            def condition(view: inmem.Snapshot) -> Any:
                nonlocal looks
                looks += 1
                found = view.kv.get("k")
                if looks == 1:
                    with inmem.open(store_path) as other:
                        other.kv.put(RUN, "k", "value")
                    stop_writer(store_path)
                return found

            assert await db.wait(RUN, condition, timeout_s=LONG_S) == "value"
            assert looks == 2

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handle_that_outlived_its_loop_can_be_closed(store_path: Path) -> None:
    async def begin() -> aio.AsyncDatabase:
        db = await aio.open(store_path)
        await db.kv.put(RUN, "k", 1)
        return db

    db = asyncio.run(begin())
    asyncio.run(db.close())
    assert "closed" in repr(db)
    del db
    gc.collect()  # the transport of the loop says that nobody has closed it


def test_a_database_that_was_not_awaited_says_so(store_path: Path) -> None:
    opening: Any = aio.open(store_path)
    with pytest.raises(AttributeError, match="async with"):
        opening.kv.put(RUN, "k", 1)


def test_iterators_can_be_ended(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            await db.kv.put_many(RUN, {f"k-{n}": n for n in range(10)})
            items: Any = db.kv.iter(RUN)
            async with contextlib.aclosing(items):
                assert await anext(items) == ("k-0", 0)
            with pytest.raises(StopAsyncIteration):
                await anext(items)

    asyncio.run(main())


def test_a_frame_holds_so_many_others_at_most() -> None:
    assert len([*apart(together(COMMITS, [b""] * (MAX_TOGETHER + 10)))]) == MAX_TOGETHER


UVLOOP = """
import asyncio, os, signal, sys
import inmem, uvloop

async def main():
    async with inmem.aio.open(sys.argv[1]) as db:
        await asyncio.gather(*(db.kv.add("run", "n") for _ in range(300)))
        waiting = asyncio.ensure_future(db.kv.wait("run", "k", timeout_s=30))
        await asyncio.sleep(0.1)
        os.kill((await db.status()).writer_pid, signal.SIGKILL)
        await db.kv.put("run", "k", 1)
        await waiting
        print(type(asyncio.get_running_loop()).__module__, await db.kv.get("run", "n"))

uvloop.run(main())
"""


def test_under_uvloop(store_path: Path) -> None:
    """In a process of its own: libuv keeps pipes for as long as its process lives."""
    pytest.importorskip("uvloop", reason="uvloop is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", UVLOOP, str(store_path)], capture_output=True, text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("uvloop 300\n", "")


def test_a_handle_of_a_loop_stays_there(store_path: Path) -> None:
    async def main() -> None:
        async with aio.open(store_path) as db:
            for travel in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(inmem.InvalidInputError, match="event loop"):
                    travel(db)

    asyncio.run(main())
