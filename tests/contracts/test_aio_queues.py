"""Queues, awaited: the same calls give the same; claims that wait, and claims that are cancelled."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from bad_arguments import shown
from homes import Fresh
from test_bad_arguments_queues import JOB, METHODS, OF_JOBS, RUN_FIRST, bad_of

import inmem
from inmem import JobLostError, RunDeletedError, aio
from inmem.aio.session import LoopSession
from inmem.engines.postgres.commits import ServerSessions
from inmem.errors import InvalidInputError

RUN = "run"
LONG_S = 30.0


def told(value: Any) -> Any:
    """A result, with what it says of time, tokens and places left out."""
    if isinstance(value, inmem.Pending):
        return type(value), told(value.value) if value.is_known else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        left_out = ("token", "mark", "worker", "claimed_until", "enqueued_at", "time", "prefix")
        names = [each.name for each in dataclasses.fields(value) if each.name not in left_out]
        return type(value).__name__, [told(getattr(value, name)) for name in names]
    return [told(each) for each in value] if isinstance(value, list) else (type(value), value)


class Told:
    """Makes calls one after the other, awaited or not, and keeps what came of each."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
        self.called: set[str] = set()

    async def __call__(self, facade: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        self.called.add(name)
        items = []
        result: Any = None
        try:
            result = getattr(facade, name)(*args, **kwargs)
            if isinstance(result, AsyncIterator):
                async for item in result:
                    items.append(item)
                result = items
            elif isinstance(result, Iterator):
                result = list(result)
            elif inspect.isawaitable(result):
                result = await result
        except inmem.InmemError as error:
            message = str(error).partition(" under token ")[0]
            self.outcomes.append((name, type(error), message, getattr(error, "argument", None)))
            return None
        self.outcomes.append((name, told(result)))
        return result


async def reads(call: Told, queues: Any, run: list[str]) -> None:
    await call(queues, "list", *run)
    for queue in ("q", "none"):
        await call(queues, "counts", *run, queue)
        await call(queues, "has_ready", *run, queue)
        await call(queues, "peek", *run, queue, limit=9)
        await call(queues, "dead", *run, queue)
        some = await call(queues, "peek", *run, queue)
        for name in ("peek", "dead"):
            await call(queues, name, *run, queue, limit=9, start_after=some[0] if some else None)
        for number in range(4):
            await call(queues, "get", *run, f"{queue}/{number}")
    await call(queues, "get", *run, "no id")


async def puts(call: Told, queues: Any, run: list[str]) -> None:
    await call(queues, "put", *run, "q", {"n": 1}, priority=3, key="k")
    await call(queues, "put", *run, "q", 2, key="k")
    await call(queues, "put", *run, "q", {3})
    await call(queues, "put", *run, "q", 4, delay_s=1000, max_attempts=1)
    await call(queues, "put_many", *run, "q", [5, 6])
    await call(queues, "put_many", *run, "q", [])
    await call(queues, "put_many", *run, "q", "text")


async def ends(call: Told, queues: Any, run: list[str], jobs: list[Any]) -> None:
    first, second, third = jobs
    await call(queues, "holds", first)
    await call(queues, "extend", first, 60)
    await call(queues, "ack", first, "result")
    await call(queues, "ack", first)
    await call(queues, "nack", second, error="broke", retry=False)
    await call(queues, "nack", third, delay_s=0)
    await call(queues, "extend", None)
    await call(queues, "requeue", *run, second.id)
    await call(queues, "requeue", *run, "q/99")


async def takes(call: Told, queues: Any, run: list[str]) -> list[Any]:
    jobs = [await call(queues, "claim", *run, "q", lease_s=60)]
    jobs += await call(queues, "claim_many", *run, "q", 2, worker="w", wait_s=1)
    await call(queues, "claim", *run, "none", wait_s=0.01)
    await call(queues, "claim", *run, "none", limit=2)
    await call(queues, "claim", *run, "", wait_s=0.01)
    await call(queues, "consume", *run, "none", wait_s=0.01)
    await call(queues, "consume", *run, "none", stop=1)
    return jobs


def written(fresh: Fresh) -> list[Any]:
    """What the calls give without asyncio."""

    async def main() -> list[Any]:
        found = []
        for form in ("facade", "scope"):
            with inmem.open(**fresh()) as db:
                call = Told()
                queues, run = (db.queues, [RUN]) if form == "facade" else (db.run(RUN).queues, [])
                await puts(call, queues, run)
                jobs = await takes(call, queues, run)
                with db.snapshot(RUN) as view:
                    await reads(call, view.queues, [])
                await ends(call, queues, run, jobs)
                await reads(call, queues, run)
                await call(queues, "purge", *run, "q", state="done")
                await call(queues, "purge", *run, "q")
                await puts(call, queues, run)
                jobs = await takes(call, queues, run)
                with db.transaction(RUN) as txn:
                    await puts(call, txn.queues, [])
                    await ends(call, txn.queues, [], jobs)
                    await reads(call, txn.queues, [])
                await reads(call, queues, run)
                job = await call(queues, "claim", *run, "q")
                with db.pipeline() as pipe:
                    piped = pipe.queues if form == "facade" else pipe.run(RUN).queues
                    await puts(call, piped, run)
                    await call(piped, "ack", job, 1)
                    await call(piped, "ack", None)
                await reads(call, queues, run)
                found += [call.outcomes, call.called]
        return found

    return asyncio.run(main())


def awaited(fresh: Fresh) -> list[Any]:
    """The same with it."""

    async def main() -> list[Any]:
        found = []
        for form in ("facade", "scope"):
            async with aio.open(**fresh()) as db:
                call = Told()
                queues, run = (db.queues, [RUN]) if form == "facade" else (db.run(RUN).queues, [])
                await puts(call, queues, run)
                jobs = await takes(call, queues, run)
                async with db.snapshot(RUN) as view:
                    await reads(call, view.queues, [])
                await ends(call, queues, run, jobs)
                await reads(call, queues, run)
                await call(queues, "purge", *run, "q", state="done")
                await call(queues, "purge", *run, "q")
                await puts(call, queues, run)
                jobs = await takes(call, queues, run)
                async with db.transaction(RUN) as txn:
                    await puts(call, txn.queues, [])
                    await ends(call, txn.queues, [], jobs)
                    await reads(call, txn.queues, [])
                await reads(call, queues, run)
                job = await call(queues, "claim", *run, "q")
                async with db.pipeline() as pipe:
                    piped = pipe.queues if form == "facade" else pipe.run(RUN).queues
                    await puts(call, piped, run)
                    await call(piped, "ack", job, 1)
                    await call(piped, "ack", None)
                await reads(call, queues, run)
                found += [call.outcomes, call.called]
        return found

    return asyncio.run(main())


def test_the_same_calls_give_the_same(fresh: Fresh) -> None:
    expected, found = written(fresh), awaited(fresh)
    for theirs, ours in zip(expected, found, strict=True):
        if isinstance(theirs, set):
            public = {name for name, *_ in METHODS["scope"]}
            assert theirs == ours == public
            continue
        for one, other in zip(theirs, ours, strict=True):
            assert one == other


@pytest.mark.parametrize("form", METHODS)
def test_the_same_arguments_are_refused(fresh: Fresh, form: str) -> None:
    async def main() -> None:
        async with aio.open(**fresh()) as db:
            run = db.run(RUN)
            await run.queues.put("held", 1)
            job = await run.queues.claim("held")
            holder: Any = {
                "facade": lambda: db, "scope": lambda: run, "transaction": lambda: run.transaction(),
                "snapshot": run.snapshot, "pipeline": db.pipeline,
                "pipelined": lambda: db.pipeline().run(RUN),
            }[form]()
            is_block = form in ("transaction", "snapshot")
            queues = (await holder.__aenter__() if is_block else holder).queues
            before = await db.status()
            for name, good, bad in METHODS[form]:
                first = {"run_id": RUN} if form in RUN_FIRST and name not in OF_JOBS else {}
                for argument, values in bad_of(form, name, bad).items():
                    for value in values:
                        given = first | good | {argument: value}
                        given = {name: job if each is JOB else each for name, each in given.items()}
                        with pytest.raises(inmem.InmemError) as caught:
                            result = getattr(queues, name)(**given)
                            result = await result if inspect.isawaitable(result) else result
                            raise AssertionError(f"{name}({argument}={shown(value)}) gave {result!r:.80}")
                        assert caught.value.hint
            assert (await db.status()).commits == before.commits
            if is_block:
                await holder.__aexit__(None, None, None)

    asyncio.run(main())


def test_jobs_of_elsewhere_and_of_what_runs_share(fresh: Fresh) -> None:
    async def main() -> None:
        async with aio.open(**fresh()) as db:
            shared = db.shared("app")
            await shared.queues.put_many("q", [1, 2])
            one, other = await shared.queues.claim_many("q", 2)
            with pytest.raises(InvalidInputError, match="is of another run"):
                await db.run(RUN).queues.ack(one)
            await db.queues.ack(one)
            async with db.pipeline() as pipe:
                await pipe.queues.ack(other)
                await pipe.shared("app").queues.put("q", 3)
            counts = await shared.queues.counts("q")
            assert (counts.ready, counts.claimed) == (1, 0)

    asyncio.run(main())


# --- waiting ----------------------------------------------------------------------------------------


async def at_rest(seconds: float = 0.1) -> None:
    """Until those that wait sleep: a look takes much less."""
    await asyncio.sleep(seconds)


def test_a_claim_that_waits_gets_what_another_process_puts(fresh: Fresh) -> None:
    async def main() -> None:
        there = fresh()
        async with aio.open(**there) as db:
            queues = db.run(RUN).queues
            waiting = asyncio.create_task(queues.claim("q", wait_s=LONG_S))
            await at_rest()
            with inmem.open(**there) as other:
                began = time.monotonic()
                await asyncio.to_thread(other.queues.put, RUN, "q", "come")
                job = await waiting
                assert job is not None and job.payload == "come" and time.monotonic() - began < 5
                await asyncio.to_thread(other.queues.ack, job)
            with pytest.raises(JobLostError):
                await queues.ack(job)
            began = time.monotonic()
            assert await queues.claim("q", wait_s=0.1) is None
            assert 0.1 <= time.monotonic() - began < 5

    asyncio.run(main())


def test_a_claim_in_a_run_that_is_deleted_ends(fresh: Fresh) -> None:
    async def main() -> None:
        async with aio.open(**fresh()) as db:
            await db.queues.put(RUN, "q", 1, delay_s=1000)
            waiting = asyncio.create_task(db.queues.claim(RUN, "q", wait_s=LONG_S))
            await at_rest()
            await db.runs.delete_run(RUN)
            with pytest.raises(RunDeletedError):
                await waiting

    asyncio.run(main())


def test_a_cancelled_claim_that_sleeps_takes_nothing(fresh: Fresh) -> None:
    async def main() -> None:
        async with aio.open(**fresh()) as db:
            queues = db.run(RUN).queues
            waiting = [asyncio.create_task(queues.claim("q", wait_s=None)) for _ in range(3)]
            await at_rest()
            waiting[0].cancel()
            waiting[1].cancel()
            await queues.put("q", 1)
            job = await asyncio.wait_for(waiting[2], 1.0)
            assert job is not None and job.attempt == 1
            assert [each.cancelled() for each in waiting] == [True, True, False]

    asyncio.run(main())


def test_a_cancelled_claim_is_given_back_and_was_no_attempt(fresh: Fresh) -> None:
    """At each step of it, and another gets the job within a second."""

    async def main() -> None:
        async with aio.open(**fresh()) as db:
            queues = db.run(RUN).queues
            given_back = 0
            for steps in range(30):
                await queues.put("q", steps)
                claim = asyncio.create_task(queues.claim("q", wait_s=0.05, lease_s=1000))
                for _ in range(steps % 10):
                    await asyncio.sleep(0 if steps < 15 else 0.0001)
                was_there = claim.done()
                claim.cancel()
                try:
                    job = await claim
                    assert was_there
                except asyncio.CancelledError:
                    given_back += 1
                    async with asyncio.timeout(1.0):
                        job = await queues.claim("q", wait_s=LONG_S)
                assert job is not None and (job.payload, job.attempt, job.errors) == (steps, 1, ())
                await queues.ack(job)
            assert given_back > 5
            assert (await queues.counts("q")).claimed == 0

    asyncio.run(main())


def test_a_claim_under_a_timeout_takes_none_along(fresh: Fresh) -> None:
    async def main() -> None:
        async with aio.open(**fresh()) as db:
            queues = db.run(RUN).queues
            for number in range(20):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        while True:
                            job = await queues.claim("q", wait_s=None)
                            raise AssertionError(job)
                await queues.put("q", number)
                job = await queues.claim("q", wait_s=LONG_S)
                assert job is not None and (job.payload, job.attempt) == (number, 1)
                await queues.ack(job)

    asyncio.run(main())


def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The claims that are sent, by their number of looks so far."""
    sent: list[int] = []
    for cls in (LoopSession, ServerSessions):
        real: Callable[..., Any] = cls.commit

        def commit(self: Any, body: bytes, *args: Any, real: Any = real, **kwargs: Any) -> Any:
            if b"queue.claim" in body:
                sent.append(len(sent))
            return real(self, body, *args, **kwargs)

        monkeypatch.setattr(cls, "commit", commit)
    return sent


def test_of_64_coroutines_one_job_wakes_one(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = looks(monkeypatch)

    async def main() -> None:
        async with aio.open(**fresh()) as db:
            queues = db.run(RUN).queues
            waiting = [asyncio.create_task(queues.claim("q", wait_s=None)) for _ in range(64)]
            await at_rest(0.3 if fresh.engine == "local" else 2.0)
            assert sent == []
            for number in range(8):
                await queues.put("q", number)
                done, _ = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
                assert [each.result().payload for each in done] == [number]
                waiting = [each for each in waiting if each not in done]
                assert len(sent) <= number + 2, "one was woken, or two at a change of second"
            await queues.put_many("q", range(56))
            found = await asyncio.gather(*waiting)
            assert sorted(each.payload for each in found if each) == list(range(56))
            assert (await queues.counts("q")).ready == 0

    asyncio.run(main())


def test_consume_and_a_stop(fresh: Fresh) -> None:
    async def main() -> None:
        async with aio.open(**fresh()) as db:
            queues = db.run(RUN).queues
            await queues.put_many("q", range(3))
            stop = asyncio.Event()
            seen = []
            async for job in queues.consume("q", stop=stop):
                await queues.ack(job)
                seen.append(job.payload)
                if len(seen) == 2:
                    stop.set()
            assert seen == [0, 1] and (await queues.counts("q")).ready == 1
            async for job in queues.consume("q", wait_s=0.05):
                await queues.ack(job)
                seen.append(job.payload)
            assert seen == [0, 1, 2]
            later = threading.Event()
            asyncio.get_running_loop().call_later(0.1, later.set)
            assert [job async for job in queues.consume("q", stop=later)] == []

    asyncio.run(main())


@pytest.mark.parametrize("name", ["claim", "claim_many", "consume", "purge"])
def test_a_transaction_says_what_it_cannot_have(fresh: Fresh, name: str) -> None:
    async def main() -> None:
        async with aio.open(**fresh()) as db, db.run(RUN).transaction() as txn:
            with pytest.raises(inmem.InvariantError, match=f"{name} cannot be part of a transaction"):
                result = getattr(txn.queues, name)("q")
                await (anext(result) if name == "consume" else result)

    asyncio.run(main())
