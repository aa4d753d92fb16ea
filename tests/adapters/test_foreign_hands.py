"""What another program has stored where an adapter has its own entries: a typed error, or passed over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any

import pytest
from homes import Fresh

import inmem
import inmem.aio
from inmem.adapters import foreign, places
from inmem.errors import CorruptionError

RUN = "run"
WRONG: list[Any] = [
    0, True, "text", b"bytes", 1.5, [], {}, [1], ["a"], ["a", 1], ["a", "b", "c"], ["a", "missing", 3],
    ["a", "missing", 10**18], ["a", "a/b", 1], ["a", "a\0b", 1], ["a", "", 1], ["a", "t" * 500, 1],
    ["a", b"b", 1, 2], {"value": 7}, {"value": None}, {"value": ["a", 1]},
    {"value": ["a", "missing", 10**18]},
    {"run_id": 7, "has_parts": True}, {"run_id": "run"}, {"data": 7}, {"first": 0}, {"first": "0", "next": 1},
    {"first": 5, "next": 0}, {"first": -1, "next": 0}, {"first": 0, "next": 1 << 62},
]


SOME = WRONG if os.environ.get("INMEM_EXHAUSTIVE") else WRONG[::4]  # where each costs several commits


def typed(call: Callable[[], Any], *, also: tuple[type[Exception], ...] = ()) -> str:
    """How a call ends: with an error of ours or of the framework that it is for, or without one."""
    try:
        call()
    except (inmem.InmemError, *also) as error:
        assert len(str(error)) < 500
        return type(error).__name__
    return "done"


@pytest.mark.parametrize("entry", WRONG, ids=repr)
def test_a_value_in_parts(entry: Any) -> None:
    reads: list[str] = []

    def read(key: str) -> None:
        reads.append(key)

    with pytest.raises(CorruptionError, match="which no adapter stores"):
        foreign.unpacked(entry, read)
    assert len(reads) <= 1, "a count that another program has stored is not believed"


def test_the_token_of_a_value_is_one_that_adapters_make() -> None:
    packed = foreign.Packed("q.")
    packed.add("x", bytes(foreign.WHOLE_BYTES))
    own = packed.add("x", b"1")
    assert foreign.token_of(own) == own[1] and foreign.token_of(["x", b"1"]) is None
    tokens = [foreign.token_of(entry) for entry in WRONG]
    assert {token for token in tokens if token is not None} == {"missing"}


@pytest.mark.parametrize("entry", WRONG, ids=repr)
def test_a_part_that_is_no_bytes(entry: Any) -> None:
    parts = {foreign.part_key("token", 0): b"a", foreign.part_key("token", 1): entry}
    if isinstance(entry, bytes):
        assert foreign.unpacked(["x", "token", 2], parts.get) == ("x", b"a" + entry)
    else:
        with pytest.raises(CorruptionError, match="part 1 of 2"):
            foreign.unpacked(["x", "token", 2], parts.get)


@pytest.mark.parametrize("where", ["place", "entry"])
def test_places(fresh: Fresh, where: str) -> None:
    pytest.importorskip("dogpile.cache", reason="dogpile.cache is not installed")
    pytest.importorskip("key_value", reason="py-key-value-aio is not installed")
    from key_value.aio.errors import DeserializationError

    from inmem.adapters.dogpile import InmemBackend
    from inmem.adapters.key_value import InmemStore
    from inmem.adapters.key_value.layout import place_name

    place = fresh()

    async def of_store(db: inmem.aio.AsyncDatabase, wrong: Any, at: Callable[[Any], Any]) -> list[str]:
        store = InmemStore(db)
        await store.put("key", {"a": 1}, collection="c")
        name = place_name("default", "c").key
        named = await db.shared("agent").kv.get(name)
        await at((db, name, named["run_id"], wrong))
        ends = []
        for call in (
            lambda: store.get("key", collection="c"), lambda: store.get_many(["key"], collection="c"),
            lambda: store.ttl("key", collection="c"), lambda: store.keys(collection="c"),
            lambda: store.collections(), lambda: store.put("key", {"b": 2}, collection="c"),
            lambda: store.delete("key", collection="c"), lambda: store.cull(),
            lambda: store.destroy_collection("c"),
        ):
            try:
                await call()
                ends.append("done")
            except (inmem.InmemError, DeserializationError) as error:
                ends.append(type(error).__name__)
        await db.shared("agent").kv.discard(name)
        return ends

    async def spoil(given: Any) -> None:
        db, name, run_id, wrong = given
        if where == "place":
            await db.shared("agent").kv.put(name, wrong)
        else:
            await db.kv.put(run_id, places.entry_key("key"), wrong)

    async def main() -> list[list[str]]:
        async with inmem.aio.open(**place) as db:
            return [await of_store(db, wrong, spoil) for wrong in SOME]

    ends = asyncio.run(main())
    assert all("CorruptionError" in each for each in ends) if where == "place" else any(
        "CorruptionError" in each for each in ends
    )
    with inmem.open(**place) as db:
        backend = InmemBackend({"store": db})
        for wrong in SOME:
            backend.set_serialized("key", b"value")
            key = backend._name.key
            if where == "place":
                db.shared("agent").kv.put(key, wrong)
            else:
                named: Any = db.shared("agent").kv.get(key)
                db.kv.put(named["run_id"], places.entry_key("key"), wrong)
            found = [
                typed(lambda: backend.get_serialized("key")),
                typed(lambda: backend.get_serialized_multi(["key"])),
                typed(lambda: backend.set_serialized("key", b"x")), typed(lambda: backend.delete("key")),
                typed(lambda: backend.get_mutex("key").locked()),
            ]
            assert where == "entry" or found[0] == "CorruptionError"
            db.shared("agent").kv.discard(key)


@pytest.mark.parametrize("where", ["session", "i/000000000000001"])
def test_sessions(fresh: Fresh, where: str) -> None:
    pytest.importorskip("agents", reason="openai-agents is not installed")
    from inmem.adapters.openai_agents import InmemSession

    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            for number, wrong in enumerate(SOME):
                session = InmemSession(f"session {number}", db)
                await session.add_items([{"n": 0}, {"n": 1}, {"n": 2}])  # type: ignore[list-item]
                await db.kv.put(session.run_id, where, wrong)
                calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                    session.get_items, lambda session=session: session.get_items(2),
                    lambda session=session: session.add_items([{"n": 3}]), session.pop_item, session.pop_item,
                    session.pop_item, session.clear_session,
                ]
                for call in calls:
                    if where == "session":
                        with pytest.raises(CorruptionError, match="the state of a session"):
                            await call()
                    else:
                        await asyncio.wait_for(call(), 60)
                if where != "session":  # what is no item is passed over, and goes
                    assert await db.kv.list(session.run_id) == ["session"]

    asyncio.run(main())


def test_huey(fresh: Fresh) -> None:
    pytest.importorskip("huey", reason="huey is not installed")
    from inmem.adapters.huey import InmemStorage
    from inmem.adapters.huey import layout as places_of

    with inmem.open(**fresh()) as db:
        storage = InmemStorage("app", db=db)
        run = storage.run
        for wrong in SOME:
            if isinstance(wrong, bytes):
                continue  # as the adapter stores them
            run.kv.put(places_of.place_of(places_of.DATA, "key"), wrong)
            run.kv.put(f"{places_of.due_place(datetime(2020, 1, 1))}/x", wrong)
            ends = [
                typed(lambda: storage.peek_data("key")), typed(lambda: storage.peek_many(["key"])),
                typed(lambda: storage.result_items()), typed(lambda: storage.pop_data("key")),
                typed(lambda: storage.put_data("key", b"1")), typed(lambda: storage.delete_data("key")),
                typed(lambda: storage.scheduled_items()), typed(lambda: storage.due(datetime.now())),
                typed(lambda: storage.read_schedule(datetime.now() + timedelta(1))),
                typed(storage.flush_schedule), typed(storage.flush_results),
            ]
            assert ends[6] == "CorruptionError", wrong
            assert storage.schedule_size() == storage.result_store_size() == 0
            storage.queues.put(places_of.QUEUE, wrong)
            assert typed(lambda: storage.enqueued_items()) == "CorruptionError"
            typed(storage.dequeue)
            typed(storage.flush_queue)
