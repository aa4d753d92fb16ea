"""LangGraph's saver: what it asks the store for, in how many round trips, and what it remembers."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from homes import Fresh
from support import wait_until

import inmem

pytest.importorskip("langgraph.checkpoint.base", reason="the extra `langgraph` is not installed")

from langgraph.checkpoint.base import RESUME, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from inmem.adapters.langgraph import InmemSaver

LARGE = "x" * 5000


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


def config(thread_id: str = "t", checkpoint_id: str | None = None) -> Any:
    found = {"thread_id": thread_id, "checkpoint_ns": ""}
    return {"configurable": found if checkpoint_id is None else {**found, "checkpoint_id": checkpoint_id}}


class Line:
    """Checkpoints of a thread, one after the other."""

    def __init__(self, saver: InmemSaver, thread_id: str = "t") -> None:
        self.saver = saver
        self.where = config(thread_id)
        self.versions: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}

    def put(self, values: dict[str, Any], new: list[str], checkpoint_id: str = "") -> Any:
        made = empty_checkpoint()
        made["id"] = checkpoint_id or str(uuid6())
        made["channel_values"] = values
        versions = {name: self.saver.get_next_version(self.versions.get(name), None) for name in new}
        self.versions |= versions
        made["channel_versions"] = {**self.versions}
        self.where = self.saver.put(self.where, made, {"source": "loop", "step": 0} | self.metadata, versions)
        return self.where


def values_of(saver: InmemSaver, where: Any) -> Any:
    found = saver.get_tuple(where)
    assert found is not None
    return found.checkpoint["channel_values"]


def writes_of(saver: InmemSaver, where: Any) -> Any:
    found = saver.get_tuple(where)
    assert found is not None
    return found.pending_writes


def run_of(db: inmem.Database) -> str:
    [run] = db.runs.query_runs(tags=["langgraph"])
    return run.run_id


def trips(call: Callable[[], Any], times: int = 5) -> float:
    """Round trips to the server of a call, on average."""
    from inmem.engines.postgres.asking import AskedConnection

    call()
    before = AskedConnection.round_trips
    for _ in range(times):
        call()
    return (AskedConnection.round_trips - before) / times


def test_round_trips(db: inmem.Database, fresh: Fresh) -> None:
    if fresh.engine != "postgres":
        pytest.skip("there are no round trips")
    line = Line(InmemSaver(db))
    small: dict[str, Any] = {"messages": ["hello"], "n": 1, "name": "x"}
    line.put(small, [*small])
    assert trips(lambda: line.put(small, ["messages", "n"])) == 1
    tasks = map(str, itertools.count())
    assert trips(lambda: line.saver.put_writes(line.where, [("n", 1), ("name", "y")], next(tasks))) == 1
    for _ in range(3):
        line.saver.get_tuple(config())  # which learns how many records there are
    assert trips(lambda: line.saver.get_tuple(config())) == 1
    assert trips(lambda: line.saver.get_tuple(line.where)) == 1
    large = {**small, "document": LARGE}
    line.put(large, ["document"])
    assert trips(lambda: line.saver.get_tuple(config())) == 2
    assert trips(lambda: line.put(large, ["n"])) == 1
    fenced = InmemSaver(db, fence="parent")
    line.saver = fenced
    # What has failed to guess what is there, as in rows that nobody had written, looks first for a while.
    wait_until(lambda: trips(lambda: line.put(small, ["n"])) == 2, "a put with the parent fence is two trips")


def test_a_large_value_is_stored_once(db: inmem.Database) -> None:
    saver = InmemSaver(db)
    line = Line(saver)
    line.put({"document": LARGE, "n": 0}, ["document", "n"])
    run = run_of(db)
    [blob] = db.kv.list(run, "b/")
    stored = db.kv.get_versioned(run, blob)
    other = InmemSaver(db)
    assert values_of(other, config()) == {"document": LARGE, "n": 0}
    for line.saver in (saver, other):
        for n in range(3):
            line.put({"document": LARGE, "n": n}, ["n"])
    assert db.kv.list(run, "b/") == [blob] and db.kv.get_versioned(run, blob) == stored
    line.saver = InmemSaver(db)  # it has not read the thread, so it cannot know that the value is there
    line.put({"document": LARGE, "n": 4}, ["n"])
    assert db.kv.list(run, "b/") == [blob] and db.kv.get_versioned(run, blob) != stored
    assert values_of(saver, config()) == {"document": LARGE, "n": 4}


def test_many_small_values_are_not_all_in_the_checkpoint(db: inmem.Database) -> None:
    values = {f"c{n}": [f"{n}" * 1500] for n in range(40)}
    line = Line(InmemSaver(db))
    line.put(values, [*values])
    assert values_of(InmemSaver(db), config()) == values
    assert 25 <= len(db.kv.list(run_of(db), "b/")) < 40


@pytest.mark.parametrize("how", ["thread", "run"])
def test_what_is_remembered_of_a_deleted_thread(db: inmem.Database, how: str) -> None:
    """Another process deletes a thread, or dies in it; it may have begun it anew."""
    saver, other = InmemSaver(db), InmemSaver(db)
    line = Line(saver)
    line.put({"document": LARGE, "n": 1}, ["document", "n"])
    if how == "run":
        db.runs.delete_run(run_of(db))  # and dies before the thread's name is gone
        assert other.get_tuple(config()) is None
        assert [*other.list(None)] == []
    else:
        other.delete_thread("t")
    assert saver.get_tuple(config()) is None
    saver.put_writes(line.where, [("n", 2)], "late")
    line.put({"document": LARGE, "n": 3}, ["document", "n"])
    for each in (saver, other, InmemSaver(db)):
        assert values_of(each, config()) == {"document": LARGE, "n": 3}
        assert len([*each.list(None)]) == 1
    other.delete_thread("t")
    fresh = Line(other)
    fresh.put({"n": 9}, ["n"])
    assert values_of(saver, config()) == {"n": 9}
    saver.copy_thread("t", "u")
    assert values_of(other, config("u")) == {"n": 9}


def test_the_first_writes_of_a_task_stay(db: inmem.Database) -> None:
    """In whatever order their keys are: the commits tell."""
    saver, other = InmemSaver(db), InmemSaver(db)
    where = Line(saver).put({"n": 1}, ["n"])
    saver.put_writes(where, [("a", 1), (RESUME, "first")], "task")
    other.put_writes(where, [("a", 2), ("b", 3), (RESUME, "last")], "task")
    other.put_writes(where, [("a", 4)], "another", "path")
    run = run_of(db)
    expected = [("task", RESUME, "last"), ("task", "a", 1), ("task", "b", 3), ("another", "a", 4)]
    assert writes_of(saver, config()) == writes_of(other, where) == expected
    [first, second] = db.kv.list(run, f"c//{where['configurable']['checkpoint_id']} writes/task/")
    assert first < second
    kept = db.kv.get(run, first)
    db.kv.put(run, second.rpartition("/")[0] + "/~", kept)  # by a clock that is ahead, and later
    db.kv.put(run, first, kept)  # now both come after the second call
    assert writes_of(saver, config()) == [
        ("task", RESUME, "first"), ("task", "a", 2), ("task", "b", 3), ("another", "a", 4)
    ]
    saver.prune(["t"])
    assert writes_of(other, config())[1:3] == [("task", "a", 2), ("task", "b", 3)]


def test_the_newest_checkpoint_behind_many_writes(db: inmem.Database) -> None:
    """Writes that came before their checkpoint are behind it, more than one look has."""
    saver = InmemSaver(db)
    where = Line(saver).put({"n": 1}, ["n"])
    early = config(checkpoint_id=str(uuid6()))
    for n in range(70):
        saver.put_writes(early, [("n", n)], str(uuid.uuid4()), f"{n:03}")
    for _ in range(6):
        found = saver.get_tuple(config())
        assert found and found.config == where and found.pending_writes == []
    for n in range(40):
        saver.put_writes(where, [("n", n)], f"task-{n}", f"{n:03}")
    assert [write[2] for write in writes_of(saver, config())] == [*range(40)]
    assert [each.config for each in saver.list(config())] == [where]


@pytest.mark.parametrize("ids", [["a", "a-b", "a.c", "aa"], ["1", "10", "2"], ["x y", "x%", "x/y", "\u00e9"]])
def test_ids_of_checkpoints(db: inmem.Database, ids: list[str]) -> None:
    saver = InmemSaver(db)
    line = Line(saver)
    for n, each in enumerate(ids):
        line.put({"n": n}, ["n"], each)
        saver.put_writes(config(checkpoint_id=each), [("w", n)], "task checkpoint")
    for n, each in enumerate(ids):
        found = saver.get_tuple(config(checkpoint_id=each))
        assert found and found.config["configurable"]["checkpoint_id"] == each
        assert found.checkpoint["channel_values"] == {"n": n}
        assert found.pending_writes == [("task checkpoint", "w", n)]
    listed = [each.config["configurable"]["checkpoint_id"] for each in saver.list(config())]
    assert sorted(listed) == sorted(ids)
    if all(each.replace("-", "").replace(".", "").isalnum() for each in ids) and "\u00e9" not in ids:
        assert listed == sorted(ids, reverse=True)
        newest = saver.get_tuple(config())
        assert newest and newest.config["configurable"]["checkpoint_id"] == max(ids)


def test_a_snapshot_of_a_delta_channel_is_found_by_its_version(db: inmem.Database) -> None:
    """Later checkpoints have no value of it, as long as its version stays; a prune keeps it."""
    saver = InmemSaver(db)
    line = Line(saver)
    line.put({"delta": _DeltaSnapshot(["a"]), "n": 0}, ["delta", "n"])
    line.metadata = {"counters_since_delta_snapshot": {"delta": (0, 1)}}
    line.put({"n": 1}, ["n"])
    for each in (saver, InmemSaver(db)):
        assert values_of(each, config()) == {"delta": _DeltaSnapshot(["a"]), "n": 1}
    saver.prune(["t"])
    assert values_of(saver, config()) == {"delta": _DeltaSnapshot(["a"]), "n": 1}
    assert [each.config for each in saver.list(config())] == [line.where]
    line.put({"n": 2}, ["n", "delta"])  # it was written to: the value is not of this version
    assert values_of(saver, config()) == {"n": 2}
    history = saver.get_delta_channel_history(config=line.where, channels=["delta"])
    assert history == {"delta": {"writes": [], "seed": _DeltaSnapshot(["a"])}}
