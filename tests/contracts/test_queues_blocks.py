"""Jobs of `consume` as blocks: how leaving one ends the job, and that it is kept until then."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forms import new_run
from test_queues import LONG_S, counts

import inmem
from inmem import JobLostError, RunDeletedError, aio


@pytest.fixture
def run(shared_db: inmem.Database) -> inmem.RunScope:
    """A run of its own, with a job."""
    scope = shared_db.run(new_run())
    scope.queues.put("q", "payload", key="k")
    return scope


def only(run: inmem.RunScope, **options: Any) -> Any:
    """The one job that `consume` gives."""
    return next(iter(run.queues.consume("q", wait_s=0, **options)))


class Broke(Exception):
    pass


def test_leaving_the_block_acks(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(2))
    seen = []
    for job in run.queues.consume("q", wait_s=0):
        with job as entered:
            assert entered is job and not job.lost.is_set()
            seen.append(job.payload)
            assert run.queues.get(job.id).state == "claimed"  # type: ignore[union-attr]
        assert run.queues.get(job.id) is None
    assert seen == ["payload", 0, 1] and counts(run) == (0, 0, 0, 0)


def test_an_exception_nacks_and_goes_on(run: inmem.RunScope) -> None:
    job = only(run)
    with pytest.raises(Broke, match="no stamps"), job:
        raise Broke("no stamps")
    info = run.queues.get("q/0")
    assert info is not None and (info.state, info.attempt) == ("delayed", 1)
    (error,) = info.errors
    assert error.endswith("Broke: no stamps")


@pytest.mark.parametrize(("error", "kept"), [
    ("\udcff at 3", "\\udcff at 3"), ("x" * (17 << 20), "x" * 500), ("\ud800" * 400, ("\\ud800" * 400)[:500]),
    ("\u00e9" * 600, "\u00e9" * 500), ("", None),
])  # fmt: skip
def test_any_text_of_an_error_is_kept_as_far_as_it_can_be(
    run: inmem.RunScope, error: str, kept: str | None
) -> None:
    run.queues.nack(run.queues.claim("q"), error=error, delay_s=0)
    info = run.queues.get("q/0")
    assert info is not None and info.errors == (() if kept is None else (kept,))


def test_an_exception_whose_text_cannot_be_encoded_nacks(run: inmem.RunScope) -> None:
    with pytest.raises(Broke), only(run):
        raise Broke("\udcff")
    info = run.queues.get("q/0")
    assert info is not None and info.state == "delayed" and info.errors[0].endswith("Broke: \\udcff")


@pytest.mark.parametrize("job", [None, 7, "q/0", JobLostError, object()])
def test_only_a_job_is_held(run: inmem.RunScope, job: Any) -> None:
    with pytest.raises(inmem.InvalidInputError, match="job must be a Job that was claimed"):
        run.queues.holds(job)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_gives_the_job_back_at_once(run: inmem.RunScope, kind: Any) -> None:
    job = only(run)
    with pytest.raises(kind), job:
        raise kind
    assert counts(run) == (1, 0, 0, 0)


def test_after_the_last_attempt_it_is_dead(run: inmem.RunScope) -> None:
    run.queues.put("last", 1, max_attempts=1)
    (job,) = run.queues.consume("last", wait_s=0)
    with pytest.raises(Broke), job:
        raise Broke
    assert counts(run, "last") == (0, 0, 0, 1)


INSIDE: dict[str, tuple[Callable[[inmem.RunScope, Any], Any], str | None]] = {
    "acked with a result": (lambda run, job: run.queues.ack(job, "r"), "done"),
    "acked": (lambda run, job: run.queues.ack(job), None),
    "nacked": (lambda run, job: run.queues.nack(job, delay_s=100), "delayed"),
    "nacked for good": (lambda run, job: run.queues.nack(job, retry=False), "dead"),
    "acked in a transaction": (lambda run, job: run.transact(lambda txn: txn.queues.ack(job, 5)), "done"),
    "acked by the database": (lambda run, job: run._database.queues.ack(job), None),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("raises", [False, True])
def test_what_ends_it_inside_is_the_end(run: inmem.RunScope, name: str, raises: bool) -> None:
    end, state = INSIDE[name]
    try:
        with only(run) as job:
            end(run, job)
            if raises:
                raise Broke
    except Broke:
        assert raises
    info = run.queues.get("q/0")
    assert (info and info.state) == state


@pytest.mark.parametrize("how", ["raises", "conflicts"])
def test_a_transaction_that_fails_inside_nacks(run: inmem.RunScope, how: str) -> None:
    error: Any = Broke if how == "raises" else inmem.ConflictError
    with pytest.raises(error), only(run) as job, run.transaction() as txn:
        txn.kv.get("k")
        txn.queues.ack(job, "r")
        txn.kv.put("late", 1)
        if how == "raises":
            raise Broke
        run.kv.put("k", 1)
    info = run.queues.get("q/0")
    assert info is not None and (info.state, info.attempt) == ("delayed", 1) and run.kv.get("late") is None


def test_the_claim_is_kept_while_the_block_runs(run: inmem.RunScope) -> None:
    with only(run, lease_s=0.3) as job:
        assert run.queues.claim("q", wait_s=1.2) is None
        info = run.queues.get(job.id)
        assert info is not None and info.time > job.claimed_until and info.attempt == 1
        assert not job.lost.is_set()
    assert run.queues.get("q/0") is None


def test_it_is_kept_by_one_thread_for_all(run: inmem.RunScope) -> None:
    run.queues.put_many("q", range(4))
    before = threading.active_count()
    jobs = [only(run, lease_s=0.5) for _ in range(5)]
    for job in jobs:
        job.__enter__()
    assert threading.active_count() <= before + 1
    assert run.queues.claim("q", wait_s=1.0) is None
    for job in jobs:
        job.__exit__(None, None, None)
    assert counts(run) == (0, 0, 0, 0)


def test_it_is_lost_if_another_has_ended_it(run: inmem.RunScope) -> None:
    with pytest.raises(JobLostError) as caught, only(run, lease_s=0.2) as job:
        run.queues.purge("q")
        assert job.lost.wait(LONG_S), "who extends it finds that out"
    assert (caught.value.job_id, caught.value.token) == ("q/0", job.token)
    run.queues.put("q", 2)
    with pytest.raises(Broke), only(run):
        run.queues.purge("q")
        raise Broke  # and is not replaced


def test_a_block_that_begins_too_late(run: inmem.RunScope) -> None:
    job = only(run, lease_s=0.05)
    again = run.queues.claim("q", wait_s=LONG_S)
    assert again is not None
    with pytest.raises(JobLostError), job:
        raise AssertionError("it is another's")
    run.queues.ack(again)


def test_late_but_not_taken_again_it_begins_and_ends(run: inmem.RunScope) -> None:
    job = only(run, lease_s=0.05)
    run.wait(lambda view: view.queues.has_ready("q"), timeout_s=LONG_S)
    run.queues.put("q", "better", priority=1)
    assert run.queues.claim("q").payload == "better"  # type: ignore[union-attr]
    with job:  # that claim has moved it to those that are ready
        pass
    assert run.queues.get("q/0") is None


def test_a_run_that_is_deleted_meanwhile(run: inmem.RunScope) -> None:
    with pytest.raises((JobLostError, RunDeletedError)), only(run):
        run.runs.delete_run()
    scope = run._database.run(new_run())
    scope.queues.put("q", 1)
    with pytest.raises(Broke), only(scope):
        scope.runs.delete_run()
        raise Broke


def test_it_travels_as_a_plain_job(run: inmem.RunScope) -> None:
    job = only(run)
    there = pickle.loads(pickle.dumps(job))  # noqa: S301
    assert type(there) is inmem.Job and (there.id, there.token) == (job.id, job.token)
    run.queues.ack(there)


def test_extending_it_inside_ends_nothing(run: inmem.RunScope) -> None:
    with only(run) as job:
        longer = run.queues.extend(job, 60)
        assert longer.claimed_until > job.claimed_until
    assert run.queues.get("q/0") is None


def test_extending_it_inside_does_not_hide_its_loss(run: inmem.RunScope) -> None:
    with pytest.raises(JobLostError), only(run) as job:
        run.queues.extend(job, 60)
        run.queues.purge("q")


def test_what_commits_after_the_block_is_not_forestalled(run: inmem.RunScope) -> None:
    run.queues.put("q", "second")
    with run._database.pipeline() as pipe, only(run) as job:
        pipe.queues.ack(job, "piped")
    assert run.queues.get("q/0").result == "piped"  # type: ignore[union-attr]
    with run.transaction() as txn:
        with only(run) as job:
            txn.queues.ack(job, "committed")
        assert run.queues.get("q/1").state == "claimed"  # type: ignore[union-attr]
    assert run.queues.get("q/1").result == "committed"  # type: ignore[union-attr]


# --- of a loop --------------------------------------------------------------------------------------


@pytest.fixture
def asynchronous() -> Iterator[Callable[[Callable[[Any], Any]], None]]:
    def drive(story: Callable[[Any], Any]) -> None:
        async def main() -> None:
            async with aio.open() as db:
                run = db.run("run")
                await run.queues.put("q", "payload")
                await story(run)

        asyncio.run(main())

    yield drive


async def first_of(run: Any, **options: Any) -> Any:
    return await anext(run.queues.consume("q", wait_s=0, **options))


def test_blocks_of_a_loop(asynchronous: Any) -> None:
    async def story(run: aio.AsyncRunScope) -> None:
        async with await first_of(run) as job:
            assert job.payload == "payload"
        assert await run.queues.get(job.id) is None
        await run.queues.put("q", 2)
        with pytest.raises(Broke):
            async with await first_of(run):
                raise Broke("no stamps")
        info = await run.queues.get("q/1")
        assert info is not None and info.errors[0].endswith("Broke: no stamps")
        await run.queues.purge("q")
        await run.queues.put("q", 3)
        async with await first_of(run) as job, run.transaction() as txn:
            await txn.queues.ack(job, "r")
        assert (await run.queues.get("q/2")).result == "r"  # type: ignore[union-attr]

    asynchronous(story)


def test_a_block_of_a_loop_keeps_the_claim(asynchronous: Any) -> None:
    async def story(run: aio.AsyncRunScope) -> None:
        async with await first_of(run, lease_s=0.3) as job:
            assert await run.queues.claim("q", wait_s=1.2) is None
            assert not job.lost.is_set()
        assert await run.queues.get(job.id) is None

    asynchronous(story)


def test_a_cancelled_block_gives_the_job_back_at_once(asynchronous: Any) -> None:
    async def story(run: aio.AsyncRunScope) -> None:
        entered = asyncio.Event()

        async def work() -> None:
            async with await first_of(run):
                entered.set()
                await asyncio.sleep(LONG_S)

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        began = time.monotonic()
        job = await run.queues.claim("q", wait_s=5)
        assert job is not None and job.attempt == 1 and time.monotonic() - began < 1

    asynchronous(story)


def test_a_lost_job_of_a_loop(asynchronous: Any) -> None:
    async def story(run: aio.AsyncRunScope) -> None:
        with pytest.raises(JobLostError):
            async with await first_of(run, lease_s=0.2) as job:
                await run.queues.purge("q")
                async with asyncio.timeout(LONG_S):
                    while not job.lost.is_set():
                        await asyncio.sleep(0.01)

    asynchronous(story)


def test_leaving_that_is_cancelled_ends_the_job_all_the_same(asynchronous: Any) -> None:
    """At each turn of the loop; a lease too is given back."""

    async def story(run: aio.AsyncRunScope) -> None:
        for turns in range(6):
            await run.queues.put("turns", turns)
            left = asyncio.Event()

            async def work(left: asyncio.Event = left) -> None:
                async for job in run.queues.consume("turns"):
                    async with run.leases.hold("one", ttl_s=100), job:
                        left.set()
                    return

            task = asyncio.create_task(work())
            await left.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert await run.queues.list() == ["q", "turns"] and await run.leases.get("one") is None, turns
            found = await run.queues.counts("turns")
            assert found.claimed == 0, f"cancelled after {turns} turns"
            await run.queues.purge("turns")

    asynchronous(story)


def test_the_wrong_kind_of_block_is_refused(run: inmem.RunScope, asynchronous: Any) -> None:
    job = only(run)

    async def awaited() -> None:
        async with job:
            raise AssertionError

    with pytest.raises(inmem.InvariantError, match="is for `with`"):
        asyncio.run(awaited())
    with job, pytest.raises(inmem.InvariantError, match="has had its block"), job:
        raise AssertionError

    async def story(run: aio.AsyncRunScope) -> None:
        job = await first_of(run)
        with pytest.raises(inmem.InvariantError, match="is for `async with`"), job:
            raise AssertionError
        assert (await run.queues.counts("q")).claimed == 1
        await run.queues.nack(job)

    asynchronous(story)


def test_two_jobs_that_come_while_the_loop_is_busy_wake_two(asynchronous: Any) -> None:
    async def story(run: aio.AsyncRunScope) -> None:
        await run.queues.purge("q")
        got: list[Any] = []

        async def work() -> None:
            await run.wait(lambda view: view.queues.has_ready("q"))
            got.append(await run.queues.claim("q"))
            await asyncio.sleep(LONG_S)

        tasks = [asyncio.create_task(work()) for _ in range(2)]
        await asyncio.sleep(0.1)  # they fall asleep
        handle = run.database.handle.run(run.run_id)
        for number in range(2):
            handle.queues.put("q", number)  # from here, without giving way to them
            time.sleep(0.05)
        async with asyncio.timeout(5):
            while len(got) < 2:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert {job.payload for job in got} == {0, 1}

    asynchronous(story)
