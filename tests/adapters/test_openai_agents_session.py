"""Sessions of the OpenAI Agents SDK: what its own sessions promise, and what many processes need of one."""

from __future__ import annotations

import asyncio
import enum
from typing import Any

import pytest
from homes import Fresh

import inmem

pytest.importorskip("agents", reason="the extra `openai_agents` is not installed")

from agents import SessionSettings
from agents.memory import Session
from given_sessions import MIB, Given, Tried, message, texts, tried

from inmem.adapters.openai_agents import InmemSession
from inmem.adapters.openai_agents.work import MANY

__all__ = ["tried"]

def test_what_a_session_does(tried: Tried) -> None:
    async def test(given: Given) -> None:
        session, other = given.session, given.of("another")
        assert isinstance(session, Session)
        assert await session.get_items() == [] and await session.pop_item() is None
        await session.clear_session()
        await session.add_items([])
        assert await given.entries() == []
        items = [message(f"m{n}") for n in range(5)]
        await session.add_items(items[:2])
        await session.add_items(items[2:])
        assert await session.get_items() == items
        assert await session.get_items(limit=2) == items[3:]
        assert await session.get_items(0) == [] and await session.get_items(-1) == items
        assert await session.get_items(2**31 - 1) == items
        assert await other.get_items() == []
        assert await session.pop_item() == items[4]
        assert await given.of(session.session_id).get_items() == items[:4]
        await session.clear_session()
        assert await session.get_items() == [] and await session.pop_item() is None
        await session.add_items(items[:1])
        assert await session.get_items() == items[:1]

    tried(test)


class Colour(enum.StrEnum):
    RED = "red"


ODD: list[tuple[Any, Any]] = [
    ({"big": 1 << 70, "small": -(1 << 63)}, None), ({"broken": "\ud83d"}, None), ({"\ud800": 1}, None),
    ({"whole": "\U0001f600 é \x00 '\"; DROP TABLE"}, None), ({"floats": [0.1, -0.0, 1e300] * 50}, None),
    ({"tuple": (1, 2), 3: Colour.RED, "none": None}, {"tuple": [1, 2], "3": "red", "none": None}), ({}, None),
    ([1, "a"], None), ("text", None), ({"true": True, "one": 1, "1.0": 1.0}, None),
]


def test_items_of_any_kind(tried: Tried) -> None:
    async def test(given: Given) -> None:
        deep: Any = "bottom"
        for _ in range(300):
            deep = {"in": [deep]}
        cases = [*ODD, (deep, None)]
        await given.session.add_items([item for item, _ in cases])
        expected = [item if changed is None else changed for item, changed in cases]
        found = await given.session.get_items()
        assert repr(found) == repr(expected)  # which tells True from 1
        for item in reversed(expected):
            assert repr(await given.session.pop_item()) == repr(item)

    tried(test)


def test_items_of_any_size(tried: Tried) -> None:
    async def test(given: Given) -> None:
        large = [message("a" * 20 * MIB), message("s"), *(message("b" * 3 * MIB) for _ in range(4))]
        await given.session.add_items(large)
        assert await given.session.get_items() == large
        for each in reversed(large[1:]):
            assert await given.session.pop_item() == each
        assert len(await given.entries("p/")) == 6  # of the one that is left
        await given.session.clear_session()
        assert await given.entries() == ["session"]

    tried(test)


def test_many_items(tried: Tried) -> None:
    async def test(given: Given) -> None:
        items = [message(str(n)) for n in range(MANY + 10)]
        await given.session.add_items(items)
        assert await given.session.get_items() == items
        await given.session.clear_session()
        assert await given.entries() == ["session"]

    tried(test)


def test_what_cannot_be_added_adds_nothing(tried: Tried) -> None:
    async def test(given: Given) -> None:
        loop: Any = {}
        loop["self"] = loop
        for bad in (object(), loop, {"a": b"bytes"}, {("t",): 1}):
            with pytest.raises(inmem.InvalidValueError, match=r"items\[1\] cannot be JSON") as caught:
                await given.session.add_items([message("first"), bad])
            assert caught.value.argument == "items"
        for wrong in ("text", None, message("x")):
            with pytest.raises(inmem.InvalidInputError, match="items must be a list"):
                await given.session.add_items(wrong)
        with pytest.raises(inmem.InvalidInputError, match="limit must be an int"):
            await given.session.get_items("2")  # type: ignore[arg-type]
        assert await given.entries() == []

    tried(test)


def test_what_is_handed_over_may_change_right_after(tried: Tried) -> None:
    async def test(given: Given) -> None:
        items = [message("as it was")]
        adding = asyncio.ensure_future(given.session.add_items(items))
        await asyncio.sleep(0)
        items[0]["content"] = "changed"
        await adding
        assert texts(await given.session.get_items()) == ["as it was"]

    tried(test)


def test_entries_that_are_no_items(tried: Tried) -> None:
    """As with the SDK's own sessions: passed over, not counted, dropped when they would be popped."""

    async def test(given: Given) -> None:
        def spoil(*indices: int) -> Any:
            bad: list[Any] = [7, ["json", b"{"], ["json", "token", 2], "text", [1, 2, 3, 4]]

            def put(txn: Any) -> None:
                for index in indices:
                    txn.kv.put(f"i/{index:015}", bad[index % len(bad)])

            return given.asked(put)

        await given.session.add_items([message(f"m{n}") for n in range(13)])
        await spoil(2, 5, 6, 7, 8, 9, 12)
        assert texts(await given.session.get_items()) == ["m0", "m1", "m3", "m4", "m10", "m11"]
        assert texts(await given.session.get_items(3)) == ["m4", "m10", "m11"]
        settings = SessionSettings(limit=4)
        session = given.of(given.session.session_id, session_settings=settings)
        assert texts(await session.get_items()) == ["m3", "m4", "m10", "m11"]
        assert texts(await session.get_items(100)) == ["m0", "m1", "m3", "m4", "m10", "m11"]
        for text in ("m11", "m10", "m4"):
            assert texts([await session.pop_item()]) == [text]
        await spoil(0, 1, 2, 3)
        assert await session.pop_item() is None and await session.pop_item() is None
        assert await given.entries() == ["session"]

    tried(test)


def test_a_closed_handle(fresh: Fresh) -> None:
    async def refused(session: InmemSession) -> None:
        calls = [
            session.add_items([]), session.add_items([message("x")]), session.get_items(),
            session.pop_item(), session.clear_session(),
        ]
        for call in calls:
            with pytest.raises(inmem.ClosedError):
                await call

    async def of_loop() -> None:
        async with inmem.aio.open(**fresh()) as db:
            session = InmemSession("s", db)
        await refused(session)

    with inmem.open(**fresh()) as db:
        session = InmemSession("s", db)
    asyncio.run(refused(session))
    asyncio.run(of_loop())


@pytest.mark.parametrize("operation", ["add", "pop", "clear"])
def test_who_cancels_waits_for_the_outcome(fresh: Fresh, operation: str) -> None:
    """Cancelled, again and again, at each place where it can wait: when it has ended it is done."""

    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            for turns in range(6):
                session = InmemSession(f"{operation} {turns}", db)
                await session.add_items([message("first")])
                arguments = [[message("second")]] if operation == "add" else []
                names = {"add": "add_items", "pop": "pop_item", "clear": "clear_session"}
                task: Any = asyncio.ensure_future(getattr(session, names[operation])(*arguments))
                await asyncio.sleep(0)
                for _ in range(turns):
                    task.cancel()
                    await asyncio.sleep(0)
                if task.done():
                    break
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                wanted = ["first", "second"] if operation == "add" else []
                assert texts(await session.get_items()) == wanted
            assert turns  # it was cancelled in the middle

    asyncio.run(main())


def test_a_cancelled_call_that_fails_is_cancelled(fresh: Fresh) -> None:
    async def main() -> None:
        seen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        async with inmem.aio.open(**fresh()) as db:
            session = InmemSession("s", db, fence="lease")
            async with session.alease() as held:
                await db.leases.release(held.lease)  # as if it had run out
                task = asyncio.ensure_future(session.add_items([message("x")]))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await session.get_items() == []
        assert seen == []

    asyncio.run(main())


def test_settings(tried: Tried) -> None:
    async def test(given: Given) -> None:
        assert given.session.session_settings == SessionSettings()
        session = given.of("s", session_settings={"limit": 2})
        assert session.session_settings == SessionSettings(limit=2)
        await session.add_items([message(str(n)) for n in range(5)])
        assert texts(await session.get_items()) == ["3", "4"]
        session.session_settings = None
        assert len(await session.get_items()) == 5
        with pytest.raises(inmem.InvalidInputError, match="session_settings must be"):
            given.of("s", session_settings=3)
        with pytest.raises(TypeError, match="Unknown session settings: limitt"):  # the SDK's own check
            given.of("s", session_settings={"limitt": 3})

    tried(test)


def test_bad_arguments(fresh: Fresh) -> None:
    with inmem.open(**fresh()) as db:
        for session_id in ("", 7, None, "\ud800"):
            with pytest.raises(inmem.InvalidInputError) as caught:
                InmemSession(session_id, db)  # type: ignore[arg-type]
            assert caught.value.argument == "session_id"
        with pytest.raises(inmem.InvalidInputError, match="db must be"):
            InmemSession("s", "./data")  # type: ignore[arg-type]
        with pytest.raises(inmem.InvalidInputError, match="fence must be"):
            InmemSession("s", db, fence="parent")  # type: ignore[arg-type]
        assert repr(InmemSession("s", db)).startswith("InmemSession('s', Database(")


NAMES = [" ", "a/b", "../..", "é\U0001f600", "x" * 2000, "a\x00b", "A", "a", "-", "session"]


def test_names_of_any_kind(tried: Tried) -> None:
    async def test(given: Given) -> None:
        for name in NAMES:
            await given.of(name).add_items([message(name)])
        for name in NAMES:
            assert texts(await given.of(name).get_items()) == [name]

    tried(test)


def test_what_is_stored_can_be_read(fresh: Fresh) -> None:
    with inmem.open(**fresh()) as db:
        session = InmemSession("user@example.com/7", db)
        asyncio.run(session.add_items([message("Hello"), message("Hi", "assistant")]))
        [run] = db.runs.query_runs(tags=["openai_agents"])
        assert run.run_id == session.run_id and run.run_id.startswith("session-user-example.com-7-")
        assert run.metadata["session_id"] == "user@example.com/7"
        entries = dict(db.kv.list_with_values(run.run_id))
        assert [*entries.values()][:2] == [message("Hello"), message("Hi", "assistant")]
        asyncio.run(session.clear_session())
        assert db.runs.get_run(session.run_id) == run
        db.runs.delete_run(session.run_id)
        with pytest.raises(inmem.RunDeletedError):
            asyncio.run(session.add_items([message("late")]))


def test_clearing_between_the_parts_and_the_item(fresh: Fresh) -> None:
    """The parts of a long item go first. Clearing the session in between removes them: they come again."""

    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            session, other = InmemSession("s", db), InmemSession("s", db)
            cleared = 0
            transact = db.transact

            async def watched(run_id: Any, fn: Any, **keywords: Any) -> Any:
                nonlocal cleared
                if fn.__name__ == "add" and cleared < 2 and await db.kv.count(session.run_id, "p/"):
                    cleared += 1
                    await other.clear_session()
                return await transact(run_id, fn, **keywords)

            await other.add_items([message("before")])
            db.transact = watched  # type: ignore[method-assign,assignment]
            await session.add_items([message("a" * 9 * MIB)])
            assert cleared == 2
            assert [len(text) for text in texts(await session.get_items())] == [9 * MIB]

    asyncio.run(main())


def test_many_tasks_of_one_loop(fresh: Fresh) -> None:
    async def main() -> None:
        async with inmem.aio.open(**fresh()) as db:
            session = InmemSession("s", db)
            async with asyncio.TaskGroup() as group:
                for number in range(30):
                    group.create_task(session.add_items([message(f"{number} {part}") for part in range(3)]))
            found = texts(await session.get_items())
            calls = [found[at : at + 3] for at in range(0, len(found), 3)]
            assert sorted(calls) == sorted([f"{n} {part}" for part in range(3)] for n in range(30))
            popped = await asyncio.gather(*(session.pop_item() for _ in range(95)))
            assert sorted(texts([each for each in popped if each])) == sorted(found)

    asyncio.run(main())


def test_a_fence(tried: Tried) -> None:
    async def test(given: Given) -> None:
        session, other = given.of("s", fence="lease"), given.of("s", fence="lease")
        is_of_threads = isinstance(given.db, inmem.Database)
        calls = [
            session.add_items([message("x")]), session.pop_item(), session.clear_session(),
            session._atomic_replace_items([]),
        ]
        for call in calls:
            with pytest.raises(inmem.InvariantError, match="without its lease"):
                await call
        assert await session.get_items() == []
        if is_of_threads:
            with session.lease() as held:
                await session.add_items([message("1")])
                with pytest.raises(inmem.LeaseHeldError), other.lease():
                    pass
                given.db.leases.release(held.lease)
                with pytest.raises(inmem.LeaseLostError):
                    await session.add_items([message("2")])
            with other.lease():
                await other.add_items([message("3")])
            with pytest.raises(inmem.InvariantError, match="has a Database"):
                async with session.alease():
                    pass
        else:
            async with session.alease() as held:
                await session.add_items([message("1")])
                with pytest.raises(inmem.LeaseHeldError):
                    async with other.alease():
                        pass
                await given.db.leases.release(held.lease)
                with pytest.raises(inmem.LeaseLostError):
                    await session.add_items([message("2")])
            async with other.alease():
                await other.add_items([message("3")])
            with pytest.raises(inmem.InvariantError, match="has an AsyncDatabase"), session.lease():
                pass
        assert texts(await session.get_items()) == ["1", "3"]

    tried(test)
