"""Durable steps, on each engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forms import new_run
from homes import Home

import inmem
from inmem import RunStatus, StepFailedError, steps


class Calls(list[Any]):
    """What was executed."""


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def db(home: Home) -> Iterator[inmem.Database]:
    with home.open(agent=new_run()) as database:
        yield database


def entries(db: inmem.Database, run_id: str) -> dict[str, Any]:
    """By the names of the steps."""
    return {value["step"]: value for _, value in db.kv.list_with_values(run_id, "@step/")}


def test_a_program_that_is_run_again_gets_what_is_recorded(db: inmem.Database, calls: Calls) -> None:
    @steps.step
    def double(n: int, *, by: int = 2) -> int:
        calls.append(n)
        return n * by

    def program(n: int) -> list[int]:
        return [double(n), double(n), double(n, by=3), double(by=2, n=n)]

    for _ in range(3):
        assert steps.run(db, "a", program, 4) == [8, 8, 12, 8]
    assert calls == [4, 4, 4, 4]
    run = db.runs.get_run("a")
    assert run is not None and run.status == RunStatus.COMPLETED
    assert steps.run(db, "b", program, 1) == [2, 2, 3, 2] and len(calls) == 8
    db.leases.acquire("a", "@run", ttl_s=1)


def test_outside_of_programs_steps_are_what_they_were(calls: Calls) -> None:
    @steps.step(retries=3, name="other")
    def fails(n: int) -> int:
        """Says so."""
        calls.append(n)
        raise KeyError(n)

    with pytest.raises(KeyError):
        fails(1)
    assert (calls, fails.__doc__, fails.__name__) == ([1], "Says so.", "fails")
    with pytest.raises(inmem.InvariantError, match="no program"):
        steps.scope()


def ended_in_the_middle(db: inmem.Database, program: Callable[[], Any]) -> None:
    """As if its worker had died: the run stays active, and its lease free."""
    with pytest.raises(KeyboardInterrupt):
        steps.run(db, "a", program)
    run = db.runs.get_run("a")
    assert run is not None and run.status == RunStatus.ACTIVE


def test_it_goes_on_where_a_worker_has_left_it(db: inmem.Database, calls: Calls) -> None:
    @steps.step(by="order")
    def one(what: object) -> int:
        calls.append("one")
        return len(calls)

    @steps.step(transaction=True)
    def count(txn: inmem.Transaction, by: int) -> int:
        total: int = txn.kv.get("total", 0) + by
        txn.kv.put("total", total)
        return total

    @steps.step(name="dies")
    def dies() -> str:
        calls.append("dies")
        if len(calls) < 4:
            raise KeyboardInterrupt
        return "lives"

    def program() -> list[Any]:
        assert steps.scope().run_id == "a"
        return [one(object()), count(5), count(7), dies(), one(object())]

    ended_in_the_middle(db, program)
    ended_in_the_middle(db, program)
    assert steps.run(db, "a", program) == [1, 5, 12, "lives", 5]
    assert calls == ["one", "dies", "dies", "dies", "one"]
    assert db.kv.get("a", "total") == 12
    assert entries(db, "a")["dies"]["begun"] == 3


def test_failures_are_counted_across_workers(db: inmem.Database, calls: Calls) -> None:
    @steps.step(retries=2, pause_s=0.001, name="fails")
    def fails() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        raise ValueError(f"no {len(calls)}")

    def program() -> str:
        try:
            fails()
        except StepFailedError as error:
            assert error.step == "fails"
            return str(error)
        raise AssertionError

    ended_in_the_middle(db, program)
    assert "ValueError: no 4" in steps.run(db, "a", program)
    assert len(calls) == 4 and entries(db, "a")["fails"] == {
        "step": "fails", "begun": 4, "failed": 3, "state": "failed", "error": "ValueError: no 4"
    }
    assert "ValueError: no 4" in steps.run(db, "a", program) and len(calls) == 4


def test_a_step_that_kills_its_workers_is_given_up(
    db: inmem.Database, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "MAX_DEATHS", 3)

    @steps.step(name="deadly")
    def deadly() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    for _ in range(3):
        ended_in_the_middle(db, deadly)
    with pytest.raises(StepFailedError, match="begun 3 times"):
        steps.run(db, "a", deadly)
    run = db.runs.get_run("a")
    assert run is not None and run.status == RunStatus.FAILED and run.error is not None
    assert "deadly" in run.error and len(calls) == 3
    with pytest.raises(StepFailedError, match="the program has failed before: StepFailedError"):
        steps.run(db, "a", deadly)


def test_what_a_program_raises_fails_its_run(db: inmem.Database) -> None:
    def program() -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError):
        steps.run(db, "a", program)
    run = db.runs.get_run("a")
    assert run is not None and (run.status, run.error) == (RunStatus.FAILED, "LookupError: nothing there")


def test_a_transaction_that_raises_leaves_nothing(db: inmem.Database, calls: Calls) -> None:
    @steps.step(transaction=True, retries=1, pause_s=0.001, name="books")
    def books(txn: inmem.Transaction) -> int:
        calls.append(1)
        txn.kv.put(f"seat-{len(calls)}", "taken")
        if len(calls) == 1:
            raise ValueError("full")
        number = txn.kv.add("seats")
        assert txn.kv.get("seats") == 1
        return number.value

    assert steps.run(db, "a", books) == 1
    assert db.kv.list("a", "seat") == ["seat-2", "seats"]
    assert entries(db, "a")["books"]["begun"] == 2


def test_two_workers_do_each_step_once(db: inmem.Database, calls: Calls) -> None:
    @steps.step
    def slow(n: int) -> int:
        calls.append(n)
        time.sleep(0.002)
        return n

    def program() -> int:
        return sum(slow(n) for n in range(10))

    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(steps.run, db, "a", program, wait_s=30) for _ in range(3)]
    assert [each.result() for each in found] == [45] * 3 and calls == list(range(10))
    with db.leases.hold("a", "@run"), pytest.raises(inmem.LeaseHeldError):
        steps.run(db, "a", program)


def test_who_was_away_for_too_long_records_nothing(db: inmem.Database, calls: Calls) -> None:
    @steps.step(name="away")
    def away() -> str:
        calls.append(1)
        if len(calls) == 1:
            lease = db.leases.get("a", "@run")
            assert lease is not None
            db.leases.release(lease)  # as if it had run out
            with db.leases.hold("a", "@run"):
                pass
        return "back"

    with pytest.raises(inmem.LeaseLostError):
        steps.run(db, "a", away)
    assert entries(db, "a")["away"]["state"] == "begun"
    assert steps.run(db, "a", away) == "back" and len(calls) == 2


def test_a_step_within_a_step_is_part_of_it(db: inmem.Database, calls: Calls) -> None:
    @steps.step(name="inner")
    def inner() -> int:
        calls.append("inner")
        return 1

    @steps.step(name="outer")
    def outer() -> int:
        return inner() + inner()

    assert [steps.run(db, "a", outer) for _ in range(2)] == [2, 2]
    assert calls == ["inner", "inner"] and set(entries(db, "a")) == {"outer"}
    with pytest.raises(inmem.InvariantError, match="runs here already"):
        steps.run(db, "b", lambda: steps.run(db, "c", outer))


def test_a_step_that_takes_too_long(db: inmem.Database) -> None:
    gate = threading.Event()

    @steps.step(timeout_s=0.02, name="hangs")
    def hangs() -> None:
        gate.wait(30)

    @steps.step(timeout_s=30, name="quick")
    def quick(n: int) -> int:
        return 7 // n

    def program() -> int:
        with pytest.raises(StepFailedError, match="ZeroDivisionError"):
            quick(0)
        with pytest.raises(StepFailedError, match=r"TimeoutError: step hangs took longer than 0.02 s"):
            hangs()
        return quick(1)

    assert steps.run(db, "a", program) == 7
    gate.set()


@pytest.mark.parametrize(("arguments", "named"), [
    ({"retries": -1}, "retries"), ({"retries": 1.0}, "retries"), ({"by": "name"}, "by"),
    ({"pause_s": 0}, "pause_s"), ({"timeout_s": -1}, "timeout_s"), ({"name": ""}, "name"),
    ({"name": "x" * 129}, "name"), ({"transaction": True, "timeout_s": 1}, "timeout_s"),
])
def test_bad_arguments(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(inmem.InvalidInputError) as caught:
        steps.step(**arguments)(len)
    assert caught.value.argument == named


def test_what_cannot_be_recorded(db: inmem.Database) -> None:
    @steps.step(name="odd")
    def odd(_: object = None) -> Any:
        return {1, 2}

    with pytest.raises(inmem.InvalidValueError, match="result"):
        steps.run(db, "a", odd)
    with pytest.raises(inmem.InvalidValueError, match="arguments"):
        steps.run(db, "b", odd, object())
    for wrong in (7, None, "text"):
        with pytest.raises(inmem.InvalidInputError, match="callable"):
            steps.run(db, "c", wrong)  # type: ignore[arg-type]
    with pytest.raises(inmem.InvalidInputError, match="Database"):
        steps.run(None, "c", odd)  # type: ignore[arg-type]
    db.runs.create_run(run_id="d")
    db.runs.cancel_run("d")
    with pytest.raises(inmem.InvariantError, match="has ended without this program"):
        steps.run(db, "d", odd)


def test_coroutines(scratch: Path, calls: Calls) -> None:
    store = scratch / "store"

    @steps.step(retries=2, pause_s=0.001)
    async def flaky(n: int) -> int:
        calls.append(n)
        await asyncio.sleep(0)
        if len(calls) < 3:
            raise ValueError("not yet")
        return n * 2

    @steps.step(transaction=True)
    async def count(txn: Any, by: int) -> int:
        total: int = await txn.kv.get("total", 0) + by
        await txn.kv.put("total", total)
        return total

    @steps.step(timeout_s=0.01)
    async def hangs() -> None:
        await asyncio.sleep(30)

    @steps.step
    def not_here() -> None:
        raise AssertionError

    async def program(n: int) -> list[int]:
        together = await asyncio.gather(flaky(n), count(5))
        with pytest.raises(StepFailedError, match="TimeoutError"):
            await hangs()
        with pytest.raises(inmem.InvariantError, match="no coroutine function"):
            not_here()
        return [*together, await count(6)]

    async def main() -> None:
        async with inmem.aio.open(store) as adb:
            for _ in range(2):
                assert await steps.arun(adb, "a", program, 4) == [8, 5, 11]
            assert await adb.kv.get("a", "total") == 11
            with pytest.raises(inmem.InvalidInputError, match="AsyncDatabase"):
                await steps.arun(None, "b", program, 4)  # type: ignore[arg-type]

    asyncio.run(main())
    assert calls == [4, 4, 4]

    def wrong_kind() -> Any:
        return asyncio.run(flaky(1))  # type: ignore[arg-type]

    with pytest.raises(inmem.InvariantError, match="its program is none"), inmem.open(store) as db:
        steps.run(db, "b", wrong_kind)
