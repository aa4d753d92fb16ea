"""What a transaction shows of its own writes is what is stored, field by field, for every procedure.

Each write is made in an empty run and in one that has something of everything, once with all read before it,
once with all read after it only, and once in a run that the transaction came to with `at`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inmem
from inmem.primitives.server import FOOTPRINTS

_numbers = itertools.count()
HELD: dict[str, Any] = {}  # what `fill` has claimed


@pytest.fixture(scope="module")
def store() -> Iterator[inmem.Database]:
    with inmem.open() as database:
        yield database


def fill(scope: inmem.RunScope) -> None:
    """Something of everything, so that a write changes what is there."""
    scope.runs.create_run(tags=["old"], metadata={"a": 1})
    scope.kv.put_many({"n": 1, "d": {"a": 1}, "k": "v"})
    scope.kv.put("brief", 1, ttl=600)
    scope.events.append_many([("t", 1), ("u", 2)])
    scope.cells.set("c", 1)
    scope.cells.init("gone", 1)
    scope.cells.delete("gone")
    scope.traces.record(inmem.Thought("up"), id="up", tags=["x"])
    scope.queues.put("q", 1, key="k")
    scope.queues.put("q", 2, delay_s=600)
    HELD["job"] = scope.queues.claim("q", lease_s=600)
    HELD["lease"] = scope.leases.acquire("l", ttl_s=600)
    scope.queues.put("dead", 3)
    dead = scope.queues.claim("dead")
    assert dead is not None
    scope.queues.nack(dead, retry=False)


def held(name: str, write: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A write that is about what `fill` has claimed; nothing in an empty run."""
    return lambda txn: write(txn, HELD[name]) if HELD else None


WRITES: dict[str, Callable[[Any], Any]] = {
    "put": lambda t: t.kv.put("k", 1),
    "put with ttl": lambda t: t.kv.put("k", 1, ttl=600),
    "put_many": lambda t: t.kv.put_many({"k": 1, "l": 2.5}),
    "add": lambda t: t.kv.add("n", 2),
    "add to what expires": lambda t: t.kv.add("brief", 2),
    "merge": lambda t: t.kv.merge("d", {"b": b"2"}),
    "kv.delete": lambda t: t.kv.delete("k"),
    "discard": lambda t: t.kv.discard("k"),
    "append": lambda t: t.events.append("t", {"a": 1}),
    "append twice": lambda t: (t.events.append("t"), t.events.append("u")),
    "append_many": lambda t: t.events.append_many([("t", 1), ("v", None)]),
    "init": lambda t: t.cells.init("new", [1]),
    "init again": lambda t: t.cells.init("gone", 2),
    "init if need be": lambda t: t.cells.init("c", 9, exist_ok=True),
    "set": lambda t: t.cells.set("c", 2),
    "set anew": lambda t: t.cells.set("gone", 2),
    "cas": lambda t: t.cells.cas("c", t.cells.set("c", 5).version if t.cells.read("c") else 0, 2),
    "transition": lambda t: t.cells.transition("c", lambda state: (state.value + 1, state.version)),
    "cells.delete": lambda t: t.cells.delete("c"),
    "record": lambda t: t.traces.record(inmem.ToolCall("search", {"q": 1}), id="new", tags=["x", "y"]),
    "record_child": lambda t: t.traces.record_child("up", inmem.Decision("a or b", ["a", "b"], "a")),
    "record_many": lambda t: t.traces.record_many(
        [inmem.NewTrace(inmem.Thought("1"), id="one"), inmem.NewTrace(inmem.Thought("2"), parent_id="one")]
    ),
    "record at a time": lambda t: t.traces.record(inmem.Thought("then"), timestamp=12345),
    "create_run": lambda t: t.runs.create_run(tags=["new"], metadata={"b": 2}),
    "create_run if need be": lambda t: t.runs.create_run(tags=["new"], exist_ok=True),
    "complete_run": lambda t: t.runs.complete_run(),
    "fail_run": lambda t: t.runs.fail_run("it broke"),
    "cancel_run": lambda t: t.runs.cancel_run(),
    "pause_run": lambda t: t.runs.pause_run(),
    "pause and resume": lambda t: (t.runs.pause_run(), t.runs.resume_run()),
    "archive_run": lambda t: t.runs.archive_run(),
    "update_status": lambda t: t.runs.update_status(inmem.RunStatus.FAILED, error="so"),
    "add_tags": lambda t: t.runs.add_tags(["new", "old"]),
    "update_metadata": lambda t: t.runs.update_metadata({"b": 2}),
    "put a job": lambda t: t.queues.put("q", {"a": 1}, priority=3),
    "put a job for later": lambda t: t.queues.put("new", 1, delay_s=60, key="x"),
    "put a job that is there": lambda t: t.queues.put("q", 9, key="k"),
    "put_many jobs": lambda t: t.queues.put_many("q", [1, 2]),
    "ack": held("job", lambda t, job: t.queues.ack(job)),
    "ack with a result": held("job", lambda t, job: t.queues.ack(job, {"done": True})),
    "nack": held("job", lambda t, job: t.queues.nack(job, error="so")),
    "nack for good": held("job", lambda t, job: t.queues.nack(job, retry=False)),
    "extend": held("job", lambda t, job: t.queues.extend(job, 900)),
    "requeue": lambda t: t.queues.requeue("dead/0"),
    "leases.check": held("lease", lambda t, lease: t.leases.check(lease)),
    "leases.renew": held("lease", lambda t, lease: t.leases.renew(lease, 900)),
    "leases.release": held("lease", lambda t, lease: t.leases.release(lease)),
}

READS: dict[str, Callable[[Any], Any]] = {
    "kv": lambda t: (
        t.kv.list(), t.kv.list_with_values(reverse=True), t.kv.count(), t.kv.exists("k"), t.kv.get("n"),
        t.kv.get_many(["k", "n", "d"]), (t.kv.ttl("k") is None, t.kv.ttl("brief") is None),
    ),
    "events": lambda t: (
        t.events.read_range(0), t.events.head(), t.events.count(), list(t.events.iter()), t.events.read(1),
        t.events.query_by_type("t"), t.events.query_by_type("u", reverse=True), t.events.verify_chain(),
    ),
    "cells": lambda t: (t.cells.list(), [t.cells.read(n) for n in ("c", "gone", "new")], t.cells.exists("c")),
    "traces": lambda t: (
        t.traces.list(), t.traces.roots(), t.traces.count(), t.traces.query_by_tag("x"),
        t.traces.query_by_type("Thought"), t.traces.query_by_time(0, 1 << 62), t.traces.get_children("up"),
        t.traces.get("up") and list(t.traces.get_tree("up").walk()),
    ),
    "runs": lambda t: (
        t.runs.get_run(), t.runs.query_runs(), t.runs.query_runs(tags=["old"]), t.runs.list_runs(),
        t.runs.query_runs(status="failed"), t.runs.get_stats(), t.runs.get_child_runs(t.run_id),
    ),
    "queues": lambda t: (
        t.queues.list(), [t.queues.counts(name) for name in ("q", "new", "dead")],
        t.queues.peek("q", limit=9), t.queues.dead("dead"), t.queues.dead("q"),
        [t.queues.get(f"q/{number}") for number in range(4)], t.queues.get("new/0"),
    ),
    "leases": lambda t: (t.leases.list(), t.leases.get("l")),
}


def everything(where: Any) -> dict[str, Any]:
    return {name: read(where) for name, read in READS.items()}


def result_of(returned: Any) -> Any:
    """What a write gave, with what was pending as it is by now."""
    if isinstance(returned, inmem.Pending):
        return returned.value
    return [result_of(each) for each in returned] if isinstance(returned, list | tuple) else returned


@pytest.mark.parametrize("how", ["read before", "read after", "at"])
@pytest.mark.parametrize("is_filled", [True, False], ids=["filled", "empty"])
@pytest.mark.parametrize("name", WRITES)
def test_each_write_is_shown_as_it_is_stored(
    store: inmem.Database, name: str, is_filled: bool, how: str
) -> None:
    agent = f"agent-{next(_numbers)}"
    with inmem.open(store.path, agent=agent) as db:
        scope = db.run("run")
        HELD.clear()
        if is_filled:
            fill(scope)
        with db.transaction("elsewhere" if how == "at" else "run") as outer:
            txn = outer.at("run") if how == "at" else outer
            if how != "read after":
                everything(txn)
            try:
                returned = WRITES[name](txn)
                inside = everything(txn)
            except inmem.InmemError as error:
                with pytest.raises(type(error)):
                    WRITES[name](scope)  # as it is outside of a transaction
                outer.abort()
                return
            shown = result_of(returned)  # all is known, for all was read
            time.sleep(0.002)  # the commit is at another microsecond
        assert everything(scope) == inside
        assert result_of(returned) == shown


def test_every_procedure_of_a_transaction_is_among_them(
    store: inmem.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inmem.client import transaction as client

    ran = set()

    class Noted(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            ran.add(name)
            return super().__getitem__(name)

    monkeypatch.setattr(client, "PROCEDURES", Noted(client.PROCEDURES))
    for number, write in enumerate(WRITES.values()):
        scope = store.run(f"all-{number}")
        fill(scope)
        with scope.transaction() as txn:
            everything(txn)
            try:
                write(txn)
            except inmem.InmemError:
                txn.abort()
    assert ran >= set(FOOTPRINTS)
