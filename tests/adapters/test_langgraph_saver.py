"""LangGraph's saver: its ecosystem's conformance suite, and what that does not look at."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
from homes import Fresh, Home
from recorded_runs import SUITE

import inmem

pytest.importorskip("langgraph.checkpoint.base", reason="the extra `langgraph` is not installed")

from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from inmem.adapters.langgraph import InmemSaver

CAPABILITIES = {
    "put": 17, "list": 16, "get_tuple": 10, "put_writes": 10, "copy_thread": 8, "prune": 8,
    "delete_for_runs": 7, "delete_thread": 5,
}


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


@pytest.fixture
def saver(db: inmem.Database) -> InmemSaver:
    return InmemSaver(db)


@pytest.mark.parametrize("kind", ["threads", "loops"])
def test_conformance(home: Home, kind: str, record_property: Callable[[str, object], None]) -> None:
    numbers = iter(range(1 << 20))

    @checkpointer_test(name=kind)
    async def make() -> AsyncIterator[InmemSaver]:
        agent = f"{kind}-{next(numbers)}"
        if kind == "threads":
            with home.open(agent=agent) as db:
                yield InmemSaver(db)
        else:
            async with inmem.aio.open(home.place, agent=agent) as db:
                yield InmemSaver(db)

    results = asyncio.run(validate(make)).results
    assert [each.failures for each in results.values() if each.failures] == []
    assert {name: each.tests_passed for name, each in results.items()} == CAPABILITIES
    count = sum(CAPABILITIES.values())
    name = f"langgraph-checkpoint-conformance, {kind}"
    record_property(SUITE, {"name": name, "passed": count, "of": count})


def config(thread_id: str = "t", checkpoint_id: str | None = None, namespace: str = "") -> Any:
    found = {"thread_id": thread_id, "checkpoint_ns": namespace}
    return {"configurable": found | ({} if checkpoint_id is None else {"checkpoint_id": checkpoint_id})}


def put(
    saver: InmemSaver, where: Any, values: dict[str, Any], *, source: str = "loop", checkpoint_id: str = "",
    new: dict[str, str] | None = None, **metadata: Any,
) -> Any:
    """Put a checkpoint with new values of all channels, or of those of which versions are given."""
    checkpoint = empty_checkpoint()
    checkpoint["id"] = checkpoint_id or str(uuid6(clock_seq=-2))
    checkpoint["channel_values"] = values
    before = saver.get_tuple(where)
    versions = dict(before.checkpoint["channel_versions"]) if before else {}
    if new is None:
        new = {channel: saver.get_next_version(versions.get(channel), None) for channel in values}  # type: ignore[arg-type]
    checkpoint["channel_versions"] = versions | new  # type: ignore[typeddict-item]
    return saver.put(where, checkpoint, {"source": source, "step": 0, **metadata}, dict(new))  # type: ignore[typeddict-item]


def got(saver: InmemSaver, where: Any) -> CheckpointTuple:
    found = saver.get_tuple(where)
    assert found is not None
    return found


ODD = ["", " ", "a/b", "../..", "\u00e9\U0001f600", "x" * 2000, "a\x00b", "-", "c/n/b"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_names_of_any_kind(saver: InmemSaver, name: str) -> None:
    put(saver, config(name, namespace=name), {name: name})
    found = got(saver, config(name, namespace=name))
    assert found.checkpoint["channel_values"] == {name: name}
    assert found.config["configurable"]["thread_id"] == name
    saver.put_writes(found.config, [(name, 1)], name, name)
    assert got(saver, config(name, namespace=name)).pending_writes == [(name, name, 1)]
    assert [each.config for each in saver.list(None)] == [found.config]
    saver.delete_thread(name)
    assert saver.get_tuple(config(name, namespace=name)) is None and [*saver.list(None)] == []


def test_a_name_that_is_no_text(saver: InmemSaver) -> None:
    with pytest.raises(inmem.InvalidInputError):
        put(saver, config("\ud800"), {"a": 1})
    assert [*saver.list(None)] == []


def test_values_of_any_size(saver: InmemSaver, db: inmem.Database) -> None:
    large, several = "x" * (20 << 20), {f"part-{number}": "z" * (3 << 20) for number in range(7)}
    where = put(saver, config(), {"large": large, "small": 1, **several}, note="y" * (9 << 20))
    saver.put_writes(where, [("large", large[: 9 << 20])], "task")
    saver.copy_thread("t", "u")
    for thread in ("t", "u"):
        found = got(saver, config(thread))
        assert found.checkpoint["channel_values"] == {"large": large, "small": 1, **several}
        assert found.metadata["note"] == "y" * (9 << 20)  # type: ignore[typeddict-item]
        assert found.pending_writes == [("task", "large", large[: 9 << 20])]
    # Values that are not new are given again, as LangGraph does; each is stored once all the same.
    version = saver.get_next_version("7", None)
    put(saver, config(), {"large": 2, "small": 1, **several}, new={"large": version})
    assert got(saver, config()).checkpoint["channel_values"] == {"large": 2, "small": 1, **several}
    saver.prune(["t"])
    assert got(saver, config()).checkpoint["channel_values"] == {"large": 2, "small": 1, **several}
    [run_id] = [run for run in db.runs.list_runs() if db.runs.get_run(run).metadata["thread_id"] == "t"]  # type: ignore[union-attr]
    assert len(db.kv.list(run_id, "b/")) == len(several)
    stored = db.kv.list(run_id, "p/")
    saver.delete_thread("u")
    put(saver, config(), dict.fromkeys(several, 1))
    saver.prune(["t"])
    assert stored and db.kv.list(run_id, "p/") == []


def test_what_is_stored_can_be_read(saver: InmemSaver, db: inmem.Database) -> None:
    where = put(saver, config("user@example.com/7"), {"messages": ["hello"], "document": "x" * 5000, "n": 1})
    saver.put_writes(where, [("messages", ["a"]), ("n", 2)], "task-1")
    [run] = db.runs.query_runs(tags=["langgraph"])
    assert run.metadata == {"thread_id": "user@example.com/7"}
    made = where["configurable"]["checkpoint_id"]
    blob, checkpoint, writes, namespace = db.kv.list(run.run_id)
    assert blob.split("/")[:3] == ["b", "", "document"] and namespace == "n/"
    assert checkpoint == f"c//{made} checkpoint" and writes.startswith(f"c//{made} writes/task-1/")
    assert [write[:2] for write in db.kv.get(run.run_id, writes)["writes"]] == [[0, "messages"], [1, "n"]]


def test_a_thread_that_was_deleted_can_be_used_again(saver: InmemSaver, db: inmem.Database) -> None:
    late = put(saver, config(), {"a": 1})
    saver.delete_thread("t")
    saver.delete_thread("t")
    assert saver.get_tuple(config()) is None and db.runs.list_runs() == []
    saver.put_writes(late, [("a", 2)], "late")  # it comes before a checkpoint, as it may
    put(saver, config(), {"a": 3})
    assert [each.checkpoint["channel_values"] for each in saver.list(config())] == [{"a": 3}]


def test_more_than_a_page(saver: InmemSaver) -> None:
    where = config()
    for number in range(70):
        where = put(saver, where, {"n": number}, step_of=number % 2)
    assert [each.checkpoint["channel_values"]["n"] for each in saver.list(config())] == [*range(69, -1, -1)]
    some = saver.list(config(), filter={"step_of": 1}, limit=34)
    assert [each.checkpoint["channel_values"]["n"] for each in some] == [*range(69, 2, -2)]


def test_a_value_that_changes_after_it_was_handed_over(saver: InmemSaver) -> None:
    values = {"list": [1]}
    put(saver, config(), values)
    values["list"].append(2)
    assert got(saver, config()).checkpoint["channel_values"] == {"list": [1]}


def test_pruning_keeps_what_delta_channels_are_made_of(saver: InmemSaver) -> None:
    where = put(saver, config(), {"whole": 0, "delta": ["base"]})
    for number in range(5):
        saver.put_writes(where, [("delta", number)], f"task-{number}")
        version = saver.get_next_version(str(number + 1), None)
        where = put(
            saver, where, {"whole": number}, new={"delta": version, "whole": version},
            counters_since_delta_snapshot={"delta": [number + 1, number + 1]},
        )
    before = saver.get_delta_channel_history(config=where, channels=["delta", "none"])
    assert [write[2] for write in before["delta"]["writes"]] == [0, 1, 2, 3, 4]
    assert before["delta"]["seed"] == ["base"] and before["none"] == {"writes": []}
    saver.prune(["t"])
    assert saver.get_delta_channel_history(config=where, channels=["delta", "none"]) == before
    where = put(saver, where, {"whole": 9, "delta": ["all"]})
    saver.prune(["t"])
    assert [each.config for each in saver.list(config())] == [where]


def test_a_fence_of_parents(db: inmem.Database) -> None:
    saver = InmemSaver(db, fence="parent")
    first = put(saver, config(), {"a": 1}, source="input")
    put(saver, first, {"a": 2})
    with pytest.raises(inmem.InvariantError, match="another worker has gone on"):
        put(saver, first, {"a": 3})
    put(saver, first, {"a": 4}, source="fork")
    assert [each.checkpoint["channel_values"]["a"] for each in saver.list(config())] == [4, 2, 1]


def test_a_fence_of_leases(db: inmem.Database) -> None:
    saver, other = InmemSaver(db, fence="lease"), InmemSaver(db, fence="lease")
    with pytest.raises(inmem.InvariantError, match="without its lease"):
        put(saver, config(), {"a": 1})
    with saver.lease("t") as held:
        where = put(saver, config(), {"a": 1})
        with pytest.raises(inmem.LeaseHeldError), other.lease("t"):
            pass
        db.leases.release(held.lease)  # as if it had run out
        with pytest.raises(inmem.LeaseLostError):
            put(saver, where, {"a": 2})
        with pytest.raises(inmem.LeaseLostError):
            saver.put_writes(where, [("a", 2)], "task")
    with other.lease("t"):
        put(other, where, {"a": 3})
    assert got(saver, config()).checkpoint["channel_values"] == {"a": 3}


def test_bad_arguments(db: inmem.Database, saver: InmemSaver) -> None:
    for arguments, named in (((None,), "db"), ((db, "x"), "fence")):
        with pytest.raises(inmem.InvalidInputError) as caught:
            InmemSaver(arguments[0], fence=arguments[1] if arguments[1:] else None)  # type: ignore[arg-type]
        assert caught.value.argument == named
    with pytest.raises(inmem.InvalidInputError, match="thread_id"):
        saver.get_tuple({"configurable": {}})
    with pytest.raises(inmem.InvalidInputError, match="checkpoint_id"):
        saver.put_writes(config(), [("a", 1)], "task")
    with pytest.raises(inmem.InvalidInputError, match="strategy"):
        saver.prune([], strategy="all")
    assert "InmemSaver(Database(" in repr(saver)


# --- with LangGraph itself --------------------------------------------------------------------------


class State(TypedDict):
    items: Annotated[list[str], operator.add]


def graph_of(saver: InmemSaver) -> Any:
    """Two steps, of which the second one asks."""

    def first(state: State) -> Any:
        return {"items": ["first"]}

    def second(state: State) -> Any:
        return {"items": [f"asked: {interrupt('go on?')}"]}

    graph = StateGraph(State)
    graph.add_node("first", first)
    graph.add_node("second", second)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    graph.add_edge("second", END)
    return graph.compile(checkpointer=saver)


def story(saver: Any, durability: str) -> list[Any]:
    """A graph is interrupted, resumed by another process's graph, replayed, forked and changed by hand."""
    graph, where = graph_of(saver), config()
    told = [graph.invoke({"items": ["in"]}, where, durability=durability)["__interrupt__"][0].value]
    told.append(graph_of(saver).invoke(Command(resume="yes"), where, durability=durability))
    history = [*graph.get_state_history(where)]
    told.append([(each.values, each.next, each.metadata["step"]) for each in history])
    for each in history:
        told.append(graph.invoke(None, each.config, durability=durability))
        told.append(graph.invoke(Command(resume="no"), each.config, durability=durability))
    graph.update_state(where, {"items": ["by hand"]})
    told.append(graph.get_state(where).values)
    told.append(len([*graph.get_state_history(where)]))
    for each in told:
        if isinstance(each, dict):
            each.pop("__interrupt__", None)  # it has an id of its own
    return told


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_graphs_do_what_they_do_with_langgraphs_own_saver(saver: InmemSaver, durability: str) -> None:
    assert story(saver, durability) == story(InMemorySaver(), durability)


def test_a_graph_is_awaited(fresh: Fresh) -> None:
    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            saver = InmemSaver(db, fence="lease")
            graph = graph_of(saver)
            async with saver.alease("t"):
                await graph.ainvoke({"items": ["in"]}, config())
                found = await graph.ainvoke(Command(resume="yes"), config())
            assert found["items"] == ["in", "first", "asked: yes"]
            assert (await graph.aget_state(config())).values == {"items": ["in", "first", "asked: yes"]}
            with pytest.raises(inmem.InvariantError, match="awaited"):
                saver.get_tuple(config())

    asyncio.run(main())
