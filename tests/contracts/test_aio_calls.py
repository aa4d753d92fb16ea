"""The same calls, awaited, give what they give without: results, errors, and what is stored."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from awaited import AwaitedDatabase, Done, DoneSink
from bad_arguments import METHODS as KV_AND_EVENTS
from forms import new_run
from homes import Fresh
from test_bad_arguments_cells_traces_runs import METHODS as OTHERS
from test_bad_arguments_cells_traces_runs import WHOLE

import inmem
from inmem import CreateRunOptions, NewTrace, RunStatus, Thought, aio
from inmem.engines.postgres.green import Connection
from inmem.errors import CommitUnknownError, LimitError
from inmem.primitives.cells.facade import RunCells
from inmem.primitives.runs.facade import RunRuns
from inmem.primitives.runs.rules import TO_COUNT

RUN = "run"
SHORT_S = 0.01
FORMS = ("facade", "scope", "transaction", "snapshot", "pipeline", "pipelined")
RUN_FIRST = ("facade", "pipeline")

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def call(name: str, *args: Any, **kwargs: Any) -> Call:
    return name, args, kwargs


def next_of(state: inmem.State) -> tuple[Any, str]:
    return state.value + 1, "moved"


def stops(state: inmem.State) -> Any:
    raise KeyError("stop")


# What a form has of these is called in it, in this order; some of them are refused.
CALLS: dict[str, list[Call]] = {
    "kv": [
        call("put", "a", 1), call("put", "n", {"x": 1}, ttl=1000), call("put", "bad", {1}),
        call("put", "", 1), call("put_with_ttl", "t", 2, 1000), call("put_many", {"b": 2, "c": 3}),
        call("put_many", {}), call("add", "count", 2, initial=5), call("add", "n"),
        call("merge", "n", {"y": 2}), call("merge", "a", {"y": 2}), call("get", "a"), call("get", "zz", 7),
        call("get", key="b"), call("get_versioned", "a"), call("get_versioned", "zz"), call("exists", "a"),
        call("ttl", "t"), call("get_many", ["a", "zz"]), call("list"), call("list", "c", limit=1),
        call("list_with_values", start_after="b"), call("list_versioned", "c", reverse=True),
        call("iter", reverse=True), call("count"), call("records"), call("delete", "a"),
        call("delete", "a"), call("discard", "b"), call("clear", "co"), call("clear", 7),
        call("transaction", lambda txn: txn.kv.add("count")), call("transaction", stops), call("wait", "c"),
        call("wait", "zz", timeout_s=SHORT_S), call("watch", timeout_s=SHORT_S),
        call("watch", "c", since=1, timeout_s=SHORT_S), call("watch", since=-1), call("clear"),
    ],
    "events": [
        call("append", "t", 1), call("append_many", [("u", 2), ("t", 3)]), call("append_many", []),
        call("append", "", 1), call("read", 0), call("read", 9), call("read_range", 1, limit=1),
        call("head"), call("count"), call("iter", 1, event_type="t"), call("iter"),
        call("query_by_type", "t", limit=1), call("verify_chain"), call("follow", timeout_s=SHORT_S),
        call("follow", 1, event_type="t", timeout_s=SHORT_S), call("update", 1), call("delete", sequence=1),
        call("len"), call("read_by_type", "t"),
    ],
    "cells": [
        call("init", "c", 1), call("init", "c", 1), call("init", "c", 2, exist_ok=True),
        call("cas", "c", 1, 2), call("cas", "c", 1, 3), call("cas", "zz", 1, 3), call("set", "d", 1),
        call("read", "c"), call("exists", "c"), call("list"), call("iter"),
        call("transition", "c", next_of), call("transition", "zz", next_of), call("transition", "c", stops),
        call("transition", "c", 5), call("read", "c"), call("wait", "c"),
        call("wait", "zz", timeout_s=SHORT_S), call("delete", "d"), call("delete", "d"),
    ],
    "traces": [
        call("record", Thought("x"), id="t1", tags=["a"], timestamp=5),
        call("record_child", "t1", Thought("y"), id="t2", timestamp=6),
        call("record_child", "no", Thought("y")),
        call("record_many", [NewTrace(Thought("z"), id="t3", timestamp=7)]), call("record_many", []),
        call("record", Thought("x"), id="t1"), call("record", 5), call("get", "t1"), call("get", "zz"),
        call("query_by_type", "Thought"), call("query_by_tag", "a"), call("query_by_time", 0, 1),
        call("get_children", "t1"), call("roots"), call("list", limit=1), call("iter", tag="a"),
        call("count"), call("get_tree", "t1"), call("get_tree", "zz"), call("recorded_after", 0),
        call("recorded_after", -1),
        call("follow", timeout_s=SHORT_S), call("follow", start_after="zz"),
    ],
    "leases": [
        call("acquire", "a", ttl_s=30, holder="h"), call("acquire", "a", ttl_s=30, holder="g"),
        call("acquire", "a", ttl_s=30, holder="g", wait_s=SHORT_S), call("acquire", "", ttl_s=30),
        call("get", "a"), call("get", "zz"), call("list"), call("list", "b", limit=1), call("renew", 5),
        call("release", "a"), call("check", None),
    ],
    "runs": [
        call("create_run", tags=["n"], metadata={"a": 1}), call("create_run"),
        call("create_run", exist_ok=True), call("get_run"), call("update_status", RunStatus.PAUSED),
        call("resume_run"), call("pause_run"), call("complete_run"), call("resume_run"),
        call("add_tags", ["m"]), call("update_metadata", {"b": 2}), call("fail_run", "broke"),
        call("cancel_run"), call("get_child_runs"), call("get_stats"), call("query_runs", tags=["m"]),
        call("query_runs", nonsense=1), call("iter_runs", tags=["n"]),
        call("list_runs", include_uncreated=True), call("wait"),
        call("wait", until=RunStatus.COMPLETED, timeout_s=SHORT_S), call("archive_run"),
        call("claim", ttl_s=30, holder="h"), call("claim", ttl_s=30, holder="g"), call("stale"),
        call("stale", 5), call("prune", keep_last=9), call("prune", status="active"),
        call("fail_stale"), call("fail_stale", error=""), call("delete_run"),
        call("delete_run"), call("get_run"), call("create_run_with_options", CreateRunOptions(run_id="o")),
        call("create_run_with_options", 5),
    ],
}  # fmt: skip
# In a pipeline these would end the commit that they are in with others.
REFUSED_LATE = [("add", ("n",)), ("merge", ("a", {"y": 2}))]

# --- what comes of a call ---------------------------------------------------------------------------


def told(value: Any) -> Any:
    """A result, with what it says of time left out; a pending one is asked once it is known."""
    if isinstance(value, inmem.Pending):
        return (type(value), told(value.value) if value.is_known else None)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value), [told(getattr(value, each.name)) for each in dataclasses.fields(value)])
    if isinstance(value, list | tuple):
        return (type(value), [told(each) for each in value])
    if isinstance(value, dict):
        return {key: told(each) for key, each in value.items()}
    if isinstance(value, int | float) and value > 900:
        return (type(value), "a time")
    return (bytes, len(value)) if isinstance(value, bytes) else (type(value), value)


def told_of(error: BaseException) -> Any:
    return (type(error), str(error), getattr(error, "argument", None))


def outcome(made: Callable[[], Any]) -> Any:
    """What a call gives, or raises, and of what streams all of it."""
    items = []
    try:
        result = made()
        if not isinstance(result, Iterator):
            return result
        for item in result:
            items.append(item)
    except (Exception, Warning) as error:
        return items, told_of(error)
    return items


async def awaited_outcome(made: Callable[[], Any]) -> Any:
    items = []
    try:
        result = made()
        if not isinstance(result, AsyncIterator):
            assert inspect.isawaitable(result)
            return await result
        async for item in result:
            items.append(item)
    except (Exception, Warning) as error:
        return items, told_of(error)
    return items


def fill(db: inmem.Database) -> None:
    """Something of each primitive, for forms that only read."""
    db.kv.put_many(RUN, {"a": 1, "b": 2, "c": 3})
    db.kv.put(RUN, "t", 2, ttl=1000)
    db.events.append_many(RUN, [("t", 1), ("u", 2), ("t", 3)])
    db.cells.init(RUN, "c", 1)
    db.traces.record(RUN, Thought("x"), id="t1", tags=["a"], timestamp=5)
    db.runs.create_run(run_id=RUN, tags=["n", "m"])


def arguments_of(form: str, kind: str, each: Call) -> Call:
    name, args, kwargs = each
    if kind == "leases" and name in ("renew", "release", "check"):
        return each  # of a lease, which knows its run
    if form not in RUN_FIRST or name in (*WHOLE, "create_run_with_options") or (kind, name) in (
        ("events", "update"), ("events", "delete")
    ):
        return each
    return (name, args, {"run_id": RUN} | kwargs) if name == "create_run" else (name, (RUN, *args), kwargs)


def holder_of(db: inmem.Database, form: str) -> tuple[Any, Callable[[], Any]]:
    if form == "scope":
        return db.run(RUN), lambda: None
    if form == "transaction":
        txn = db.transaction(RUN)
        return txn, txn.commit
    if form == "snapshot":
        view = db.snapshot(RUN)
        return view, view.close
    if form in ("pipeline", "pipelined"):
        pipe = db.pipeline()
        return pipe if form == "pipeline" else pipe.run(RUN), pipe.flush
    return db, lambda: None


def awaited_holder_of(db: inmem.Database, form: str) -> tuple[Any, Callable[[], Any]]:
    host = AwaitedDatabase(db)
    if form == "scope":
        return host.run(RUN), lambda: None
    if form == "transaction":
        txn, draft = host.transaction(RUN)
        return txn, draft.commit
    if form == "snapshot":
        facades, view = host.snapshot(RUN)
        return facades, view.close
    if form in ("pipeline", "pipelined"):
        pipe = host.pipeline()
        return pipe if form == "pipeline" else pipe.run(RUN), pipe.batches.flush
    return host, lambda: None


def had(form: str, holder: Any) -> list[tuple[str, Call]]:
    """The calls that a form has."""
    return [
        (kind, arguments_of(form, kind, each)) for kind, calls in CALLS.items() if hasattr(holder, kind)
        for each in calls if hasattr(getattr(holder, kind), each[0])
        if not (form.startswith("pipe") and each[:2] in REFUSED_LATE)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_calls_give_the_same(form: str) -> None:
    with inmem.open() as db, inmem.open() as other:
        for each in (db, other) if form == "snapshot" else ():
            fill(each)
        holder, end = holder_of(db, form)
        expected = [
            outcome(lambda one=one, kind=kind: getattr(getattr(holder, kind), one[0])(*one[1], **one[2]))
            for kind, one in had(form, holder)
        ]
        end()
        mine, end_mine = awaited_holder_of(other, form)

        async def main() -> list[Any]:
            return [
                await awaited_outcome(
                    lambda one=one, kind=kind: getattr(getattr(mine, kind), one[0])(*one[1], **one[2])
                )
                for kind, one in had(form, mine)
            ]

        found = asyncio.run(main())
        end_mine()
        assert had(form, mine) == had(form, holder)
        for (kind, one), theirs, ours in zip(had(form, holder), expected, found, strict=True):
            assert told(ours) == told(theirs), (kind, one)
        names = {(kind, one[0]) for kind, one in had(form, mine)}
        for kind in CALLS:
            facade = getattr(mine, kind, None)
            public = {name for name in dir(facade) if not name.startswith("_") and name != "KIND"}
            public -= {"hold"}  # it gives what is entered: see `test_leases.py`
            assert facade is None or public <= {name for of, name in names if of == kind}, "one is not called"


async def loop_holder_of(db: aio.AsyncDatabase, form: str, stack: AsyncExitStack) -> Any:
    if form == "scope":
        return db.run(RUN)
    if form == "transaction":
        return await stack.enter_async_context(db.transaction(RUN))
    if form == "snapshot":
        return await stack.enter_async_context(db.snapshot(RUN))
    if form in ("pipeline", "pipelined"):
        pipe = await stack.enter_async_context(db.pipeline())
        return pipe if form == "pipeline" else pipe.run(RUN)
    return db


@pytest.mark.parametrize("form", FORMS)
def test_a_loop_s_handle_gives_the_same(fresh: Fresh, form: str) -> None:
    """On each engine; and the loop's thread has not waited for a server."""
    with inmem.open(**fresh()) as db:
        if form == "snapshot":
            fill(db)
        holder, end = holder_of(db, form)
        expected = [
            outcome(lambda one=one, kind=kind: getattr(getattr(holder, kind), one[0])(*one[1], **one[2]))
            for kind, one in had(form, holder)
        ]
        end()
    there = fresh()
    if form == "snapshot":
        with inmem.open(**there) as db:
            fill(db)
    blocked = Connection.blocked

    async def main() -> None:
        async with aio.open(**there) as mine_db, AsyncExitStack() as stack:
            mine = await loop_holder_of(mine_db, form, stack)
            found = [
                await awaited_outcome(
                    lambda one=one, kind=kind: getattr(getattr(mine, kind), one[0])(*one[1], **one[2])
                )
                for kind, one in had(form, mine)
            ]
            await stack.aclose()
            assert had(form, mine) == had(form, holder)
            for (kind, one), theirs, ours in zip(had(form, holder), expected, found, strict=True):
                assert told(ours) == told(theirs), (kind, one)

    asyncio.run(main())
    assert Connection.blocked == blocked


# --- arguments that are refused ---------------------------------------------------------------------

CASES = [
    pytest.param(form, kind, name, good, argument, values, id=f"{form}.{kind}.{name}({argument})")
    for form in ("facade", "scope", "transaction", "snapshot", "pipeline")
    for kind in CALLS
    for name, good, bad in [*KV_AND_EVENTS[form].get(kind, ()), *OTHERS.get(form, {}).get(kind, ())]
    for argument, values in bad.items()
]


@pytest.fixture(scope="module")
def db() -> Iterator[inmem.Database]:
    with inmem.open() as database:
        fill(database)
        yield database


@pytest.mark.parametrize(("form", "kind", "name", "good", "argument", "values"), CASES)
def test_the_same_arguments_are_refused(
    db: inmem.Database, form: str, kind: str, name: str, good: dict[str, Any], argument: str,
    values: list[Any],
) -> None:
    holder, end = holder_of(db, form)
    mine, end_mine = awaited_holder_of(db, form)
    first = {"run_id": RUN} if form in RUN_FIRST and not (kind == "runs" and name in WHOLE) else {}

    async def main() -> int:
        for value in values:
            arguments = first | good | {argument: value}
            theirs = outcome(lambda arguments=arguments: getattr(getattr(holder, kind), name)(**arguments))
            ours = await awaited_outcome(
                lambda arguments=arguments: getattr(getattr(mine, kind), name)(**arguments)
            )
            assert issubclass(theirs[1][0], Exception)
            assert ours == theirs
        return len(values)

    assert asyncio.run(main())
    end()
    end_mine()


# --- more than one step -----------------------------------------------------------------------------


def test_a_lost_race_is_run_again(db: inmem.Database) -> None:
    """And `fn` is called anew with what is there then."""
    seen: list[Any] = []
    run = new_run()

    def moves(state: inmem.State) -> tuple[Any, Any]:
        seen.append(state.value)
        if len(seen) < 4:
            db.cells.set(run, "c", 10 * len(seen))
        return state.value + 1, state.value

    db.cells.init(run, "c", 1)
    assert asyncio.run(AwaitedDatabase(db).cells.transition(run, "c", moves)) == 30
    assert seen == [1, 10, 20, 30] and db.cells.read(run, "c").value == 31
    seen.clear()
    with pytest.raises(inmem.ConflictError):
        asyncio.run(AwaitedDatabase(db).cells.transition(run, "c", moves, max_attempts=2))


def test_reads_do_not_suspend(db: inmem.Database) -> None:
    waiting = AwaitedDatabase(db).run(RUN).kv.get("a")
    with pytest.raises(StopIteration) as found:
        waiting.send(None)
    assert found.value.value == 1


class Later:
    """What ends with an error, and only when it is awaited."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __await__(self) -> Iterator[None]:
        yield from asyncio.sleep(0).__await__()
        raise self.error


class Refusing(DoneSink):
    """A sink whose first calls end so."""

    def __init__(self, sink: Any, *errors: Exception) -> None:
        super().__init__(sink)
        self.errors = [*errors]
        self.asked: list[str] = []

    def ask(self, procedure: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(procedure)
        if self.errors:
            return Later(self.errors.pop(0))
        return Done(self._sink.ask(procedure, *args, **kwargs))


def test_a_large_run_is_counted_before_it_is_deleted(db: inmem.Database) -> None:
    run = new_run()
    db.kv.put_many(run, {"a": 1, "b": 2})
    sink: Any = Refusing(db.engine.direct(), LimitError("too much", what=TO_COUNT))
    runs = RunRuns(db, db.engine.latest(), sink, db.namespace_prefix, run, None)  # type: ignore[arg-type]
    deleted: Any = runs.delete_run()
    assert asyncio.run(deleted) == inmem.DeletedRun(run, 2, 0, 0, 0, False)
    assert sink.asked == ["run.remove", "run.remove"]
    sink.errors = [LimitError("too much", what="something else")]
    again: Any = runs.delete_run()
    with pytest.raises(LimitError, match="too much"):
        asyncio.run(again)


def test_an_unknown_outcome_resolves_to_what_was_asked_for(db: inmem.Database) -> None:
    run = new_run()
    db.cells.init(run, "c", 1)
    error = CommitUnknownError("no answer")
    error.resender = lambda timeout_s: 5
    sink: Any = Refusing(db.engine.direct(), error)
    cells = RunCells(db.engine.latest(), sink, db.run(run).prefix, None)  # type: ignore[arg-type]
    moved: Any = cells.transition("c", next_of)
    with pytest.raises(CommitUnknownError) as caught:
        asyncio.run(moved)
    assert caught.value.resend() == "moved"


def ends(state: inmem.State) -> Any:
    raise StopIteration("out of jobs")


def test_a_function_may_raise_what_ends_a_generator(db: inmem.Database) -> None:
    """Python lets no coroutine raise it: there it is the cause of what comes."""
    run = new_run()
    db.cells.init(run, "c", 1)
    with pytest.raises(StopIteration, match="out of jobs"):
        db.cells.transition(run, "c", ends)
    with db.transaction(run) as txn, pytest.raises(StopIteration, match="out of jobs"):
        txn.cells.transition("c", ends)
    with pytest.raises(RuntimeError) as caught:
        asyncio.run(AwaitedDatabase(db).cells.transition(run, "c", ends))
    assert isinstance(caught.value.__cause__, StopIteration)
    assert db.cells.read(run, "c").value == 1


@pytest.mark.parametrize("level", ["agent", "app", "tenant"])
def test_a_shared_scope_is_made_once(level: str) -> None:
    async def main() -> None:
        async with aio.open() as db:
            scope = db.shared(level)
            assert db.shared(level) is scope and scope.prefix == db.handle.shared(level).prefix
            await scope.kv.put("k", 1)
            assert await db.shared(level).kv.get("k") == 1
            for wrong in ("agents", "", None, 7):
                with pytest.raises(inmem.InvalidInputError):
                    db.shared(wrong)  # type: ignore[arg-type]
        with pytest.raises(inmem.ClosedError):
            db.shared(level)

    asyncio.run(main())
