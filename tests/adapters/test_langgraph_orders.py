"""LangGraph's saver when much happens at once, or a worker dies in the middle."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

import pytest
from homes import Fresh

import inmem

pytest.importorskip("langgraph.graph", reason="the extra `langgraph` is not installed")

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import END, START, StateGraph

from inmem.adapters.langgraph import InmemSaver

LARGE = 9 << 20  # it is stored in parts


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


@asynccontextmanager
async def opened(fresh: Fresh, kind: str) -> AsyncIterator[Any]:
    """A handle of a thread, or of a loop."""
    if kind == "thread":
        with inmem.open(**fresh()) as db:
            yield db
    else:
        async with inmem.aio.open(**fresh()) as loop_db:
            yield loop_db


def config(thread_id: str = "t", namespace: str = "") -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}


def checkpoint(saver: InmemSaver, **values: Any) -> tuple[Any, dict[str, Any]]:
    """A new checkpoint with values of channels, and their versions."""
    made = empty_checkpoint()
    made["id"] = str(uuid6(clock_seq=-2))
    made["channel_values"] = values
    versions = {channel: saver.get_next_version(None, None) for channel in values}
    made["channel_versions"] = dict(versions)
    return made, versions


def put(saver: InmemSaver, where: Any, source: str = "loop", step: int = 0, **values: Any) -> Any:
    made, versions = checkpoint(saver, **values)
    return saver.put(where, made, {"source": source, "step": step}, versions)  # type: ignore[typeddict-item]


def run_of(db: inmem.Database, thread_id: str = "t") -> str:
    runs = db.runs.query_runs(tags=["langgraph"])
    [found] = [run.run_id for run in runs if run.metadata["thread_id"] == thread_id]
    return found


# --- the writes of a step, and the checkpoint after it ------------------------------------------------


class Dead(Exception):
    """The worker was killed."""


class Killed(InmemSaver):
    """A saver whose worker dies when the first step has ended, with so much of it stored."""

    def __init__(self, db: inmem.Database, stored: set[str]) -> None:
        super().__init__(db)
        self.stored = stored
        self.is_dead = False

    def put(self, where: Any, made: Any, metadata: Any, new_versions: Any) -> Any:
        self.check()
        if metadata["step"] != 1:
            return super().put(where, made, metadata, new_versions)
        if "checkpoint" in self.stored:
            super().put(where, made, metadata, new_versions)
        self.is_dead = True
        raise Dead

    def put_writes(self, where: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self.check()
        if ("items", ["first"]) not in writes or "writes" in self.stored:
            super().put_writes(where, writes, task_id, task_path)

    def check(self) -> None:
        if self.is_dead:
            raise Dead


class State(TypedDict):
    items: Annotated[list[str], operator.add]


@pytest.mark.parametrize(
    ("stored", "again", "lone"),
    [
        ({"writes", "checkpoint"}, 0, 0),
        ({"writes"}, 0, 0),  # the checkpoint is made of them
        ({"checkpoint"}, 0, 1),  # a replay would run the step again
        (set(), 1, 0),
    ],
    ids=["both", "writes alone", "checkpoint alone", "neither"],
)
def test_a_crash_between_writes_and_checkpoint(
    db: inmem.Database, stored: set[str], again: int, lone: int
) -> None:
    ran: list[str] = []

    def graph_of(saver: InmemSaver) -> Any:
        graph = StateGraph(State)
        for name in ("first", "second"):

            def step(state: State, name: str = name) -> Any:
                ran.append(name)
                return {"items": [name]}

            graph.add_node(name, step)
        graph.add_edge(START, "first")
        graph.add_edge("first", "second")
        graph.add_edge("second", END)
        return graph.compile(checkpointer=saver)

    with pytest.raises(Dead):
        graph_of(Killed(db, stored)).invoke({"items": ["in"]}, config(), durability="sync")
    assert ran == ["first"]
    saver = InmemSaver(db)
    found = graph_of(saver).invoke(None, config(), durability="sync")
    assert found["items"] == ["in", "first", "second"]
    assert ran == ["first"] + ["first"] * again + ["second"]
    left = saver.list_lone("t")
    assert len(left) == lone
    for where in left:
        tuple_ = saver.get_tuple(where)
        assert tuple_ and tuple_.metadata["step"] == 1
    assert asyncio.run(saver.alist_lone("t")) == left
    assert saver.list_lone("nobody") == []


# --- many at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_checkpoints_and_writes_at_once(fresh: Fresh, kind: str) -> None:
    """Coroutines put one checkpoint, its writes and those of its parent at once; all of it is there."""

    async def main() -> None:
        async with opened(fresh, kind) as db:
            saver = InmemSaver(db)
            first, versions = checkpoint(saver, a=[0])
            parent = await saver.aput(config(), first, {"source": "input", "step": -1}, versions)
            second, versions = checkpoint(saver, a=[1])
            child = {"configurable": {**parent["configurable"], "checkpoint_id": second["id"]}}
            calls: list[Any] = [saver.aput(parent, second, {"source": "loop", "step": 0}, versions)]
            for where, name in ((parent, "p"), (child, "c")):
                calls += [
                    saver.aput_writes(where, [("a", [n]), ("b", n)], f"{name}-{n}", f"~{n:03}")
                    for n in range(12)
                ]
            calls += [saver.aget_tuple(config()) for _ in range(5)]
            await asyncio.gather(*calls)
            for where, name in ((parent, "p"), (child, "c")):
                found = await saver.aget_tuple(where)
                assert found is not None
                assert found.pending_writes == [
                    (f"{name}-{n}", channel, value) for n in range(12)
                    for channel, value in (("a", [n]), ("b", n))
                ]
            found = await saver.aget_tuple(config())
            assert found and found.config == child and found.parent_config == parent
            assert await saver.alist_lone("t") == []

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_a_value_that_changes_while_it_is_put(fresh: Fresh, kind: str) -> None:
    async def main() -> None:
        async with opened(fresh, kind) as db:
            saver, state = InmemSaver(db), {"list": [1]}
            made, versions = checkpoint(saver, state=state)
            putting = asyncio.ensure_future(saver.aput(config(), made, {}, versions))
            await asyncio.sleep(0)  # it begins
            state["list"].append(2)
            where = await putting
            writing = asyncio.ensure_future(saver.aput_writes(where, [("state", state)], "task"))
            await asyncio.sleep(0)
            state["list"].append(3)
            await writing
            found = await saver.aget_tuple(config())
            assert found and found.checkpoint["channel_values"] == {"state": {"list": [1]}}
            assert found.pending_writes == [("task", "state", {"list": [1, 2]})]

    asyncio.run(main())


def test_other_threads_ask_the_loop(fresh: Fresh) -> None:
    async def main() -> None:
        async with opened(fresh, "loop") as db:
            saver = InmemSaver(db)
            where = await asyncio.to_thread(put, saver, config(), a=1)
            assert [each.config for each in await asyncio.to_thread(lambda: [*saver.list(None)])] == [where]
            await asyncio.to_thread(saver.copy_thread, "t", "u")
            await asyncio.to_thread(saver.delete_thread, "t")
            found = [each.config["configurable"]["thread_id"] async for each in saver.alist(None)]
            assert found == ["u"]
            for call in (lambda: saver.get_tuple(config()), lambda: saver.delete_thread("u")):
                with pytest.raises(inmem.InvariantError, match="awaited"):
                    call()  # it would wait for itself
            with pytest.raises(inmem.InvariantError, match="alease"), saver.lease("u"):
                pass
        with pytest.raises(inmem.InvariantError, match="awaited"):
            InmemSaver(db).get_tuple(config())

    asyncio.run(main())
    with pytest.raises(inmem.InvariantError, match="AsyncDatabase"), inmem.open(**fresh()) as thread_db:
        asyncio.run(InmemSaver(thread_db).alease("t").__aenter__())


# --- lists of all threads -------------------------------------------------------------------------------


def test_a_list_of_all_threads(db: inmem.Database) -> None:
    saver = InmemSaver(db)
    assert [*saver.list(None)] == []
    ids: list[str] = []
    for number in range(40):
        for thread in ("a", "b/c", ""):
            where = put(saver, config(thread, "sub|1" if number % 4 == 3 else ""), step=number, n=number)
            ids.append(where["configurable"]["checkpoint_id"])
    found = [*saver.list(None)]
    assert {each.config["configurable"]["checkpoint_id"] for each in found} == {*ids} and len(found) == 120
    for _, of_place in groups(found).items():
        assert of_place == sorted(of_place, reverse=True)  # the newest first
    assert len([*saver.list(None, limit=50)]) == 50 and [*saver.list(None, limit=0)] == []
    chosen = [*saver.list(None, filter={"step": 7})]
    assert {each.config["configurable"]["checkpoint_ns"] for each in chosen} == {"sub|1"} and len(chosen) == 3
    before = {"configurable": {"thread_id": "a", "checkpoint_id": ids[30]}}
    earlier = [each.config["configurable"]["checkpoint_id"] for each in saver.list(None, before=before)]
    assert {*earlier} == {each for each in ids if each < ids[30]} and len(earlier) == 30
    saver.delete_thread("b/c")
    assert len([*saver.list(None)]) == 80


def groups(found: list[Any]) -> dict[tuple[str, str], list[str]]:
    made: dict[tuple[str, str], list[str]] = {}
    for each in found:
        of = each.config["configurable"]
        made.setdefault((of["thread_id"], of["checkpoint_ns"]), []).append(of["checkpoint_id"])
    return made


# --- leases, awaited ------------------------------------------------------------------------------------


def test_leases_awaited(fresh: Fresh) -> None:
    async def main() -> None:
        async with opened(fresh, "loop") as db:
            saver, other = InmemSaver(db, fence="lease"), InmemSaver(db, fence="lease")
            made, versions = checkpoint(saver, a=1)
            with pytest.raises(inmem.InvariantError, match="without its lease"):
                await saver.aput(config(), made, {}, versions)
            async with saver.alease("t", ttl_s=30) as held:
                where = await saver.aput(config(), made, {}, versions)
                with pytest.raises(inmem.LeaseHeldError):
                    async with other.alease("t"):
                        pass
                async with other.alease("u"):  # another thread is free
                    await other.aput(config("u"), made, {}, versions)
                waiting = asyncio.ensure_future(took(other, "t"))
                await asyncio.sleep(0)
                await db.leases.release(held.lease)  # as if it had run out
                assert await asyncio.wait_for(waiting, 30)
                with pytest.raises(inmem.LeaseLostError):
                    await saver.aput(where, made, {}, versions)
                with pytest.raises(inmem.LeaseLostError):
                    await saver.aput_writes(where, [("a", 2)], "task")
            found = await saver.aget_tuple(config())
            assert found and found.config == where and found.pending_writes == []

    async def took(saver: InmemSaver, thread_id: str) -> bool:
        async with saver.alease(thread_id, wait_s=30):
            return True

    asyncio.run(main())


# --- long values -----------------------------------------------------------------------------------------


def test_a_prune_takes_what_nothing_names(db: inmem.Database) -> None:
    saver = InmemSaver(db, fence="parent")
    first = put(saver, config(), source="input", a="kept" * (LARGE // 4))
    second = put(saver, first, b="b" * 5000)
    saver.put_writes(second, [("a", "x" * LARGE)], "task")
    run = run_of(db)
    named = set(db.kv.list(run, "p/"))
    saver.put_writes(second, [("a", "y" * LARGE)], "task")  # the first one stays
    with pytest.raises(inmem.InvariantError):
        put(saver, first, a="z" * LARGE)  # its parts are there before it is refused
    assert len(db.kv.list(run, "p/")) > len(named) and len(db.kv.list(run, "b/")) == 2
    saver.prune(["t"])
    left = saver.get_tuple(config())
    assert left and left.config == second and left.pending_writes == [("task", "a", "x" * LARGE)]
    assert set(db.kv.list(run, "p/")) < named  # those of the first checkpoint are gone too
    assert [key.split("/")[2] for key in db.kv.list(run, "b/")] == ["b"]


def test_a_prune_while_a_long_value_is_put(fresh: Fresh) -> None:
    """Parts are stored before what names them: whoever sweeps in between must not break it."""

    async def main() -> None:
        async with opened(fresh, "loop") as db:
            saver = InmemSaver(db)
            parent, versions = checkpoint(saver, a=1)
            where = await saver.aput(config(), parent, {}, versions)
            [run] = await db.runs.query_runs(tags=["langgraph"])
            is_swept, attempts = False, 0
            while not is_swept:  # until a prune came when a part was there and the checkpoint was not
                attempts += 1
                if fresh.engine == "postgres" and attempts > 2:
                    break  # there the two are one after the other nearly always
                made, versions = checkpoint(saver, a="x" * LARGE)
                before = {*await db.kv.list(run.run_id, "p/")}
                putting = asyncio.ensure_future(saver.aput(where, made, {}, versions))
                while not putting.done() and {*await db.kv.list(run.run_id, "p/")} == before:
                    await asyncio.sleep(0)
                there = {*await db.kv.list(run.run_id, "p/")} - before
                await saver.aprune(["t"])
                is_swept = not there <= {*await db.kv.list(run.run_id, "p/")}
                where = await putting
                found = await saver.aget_tuple(config())
                assert found and found.checkpoint["channel_values"] == {"a": "x" * LARGE}

    asyncio.run(main())
