"""Sessions with the SDK itself: its runners, its compaction, its encryption."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import pytest
from homes import Home

import inmem

pytest.importorskip("agents", reason="the extra `openai_agents` is not installed")
pytest.importorskip("cryptography", reason="sessions of openai-agents need it to be encrypted")

from agents import Agent, RunConfig, Runner
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession
from given_sessions import MIB, Given, Tried, message, texts, tried
from session_workers import Answering

from inmem.adapters.openai_agents import InmemSession
from inmem.adapters.openai_agents.work import MANY

__all__ = ["tried"]

# Before, compaction took away what others added while it asked the model: it cleared the session, then added.
# And what it added was not encrypted.
LOOKS_AGAIN = tuple(map(int, version("openai-agents").split(".")[:2])) >= (0, 23)


class Compactor:
    """In place of OpenAI's client: makes one item of all."""

    def __init__(self) -> None:
        self.responses = self
        self.asked: list[Any] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def compact(self, **asked: Any) -> Any:
        self.asked.append(asked)
        if self.meanwhile is not None:
            await self.meanwhile()
        output = [{"type": "compaction", "encrypted_content": f"of {len(asked['input'])}"}]
        return type("Compacted", (), {"output": output, "usage": None})()


def compacting(session: Any, client: Compactor) -> OpenAIResponsesCompactionSession:
    return OpenAIResponsesCompactionSession(
        session.session_id, session, client=client, compaction_mode="input",  # type: ignore[arg-type]
        should_trigger_compaction=lambda context: len(context["session_items"]) >= 4,
    )


async def talk(session: Any, *questions: str) -> list[Any]:
    """Questions with their answers; what the model was given last."""
    model = Answering()
    agent = Agent(name="clerk", model=model)
    for question in questions:
        result = await Runner.run(
            agent, question, session=session, run_config=RunConfig(tracing_disabled=True)
        )
        assert result.final_output == f"to {question}"
    return model.seen


def test_a_runner(tried: Tried) -> None:
    async def test(given: Given) -> None:
        seen = await talk(given.session, "a", "b", "c")
        assert [each.get("content") for each in seen if each.get("role") == "user"] == ["a", "b", "c"]
        stored = await given.session.get_items()
        assert [each["role"] for each in stored] == ["user", "assistant"] * 3
        assert seen == stored[:5]

    tried(test)


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
def test_compaction_by_a_runner(tried: Tried, is_encrypted: bool) -> None:
    """It replaces what the model saw, in one commit, and only if nobody has added to it meanwhile."""

    async def test(given: Given) -> None:
        client = Compactor()
        session: Any = compacting(given.session, client)
        if is_encrypted:
            session = EncryptedSession(session.session_id, session, "a key", ttl=600)
        await talk(session, "a")
        assert len(await session.get_items()) == 2 and client.asked == []
        await talk(session, "b")
        assert [each["type"] for each in await session.get_items()] == ["compaction"]
        assert len(client.asked[0]["input"]) == 4
        await talk(session, "c", "d")
        client.meanwhile = lambda: given.session.add_items([message("of somebody else")])
        await talk(session, "e", "f")
        stored = await given.session.get_items()
        assert len(client.asked) >= 2
        if not LOOKS_AGAIN:
            return
        assert message("of somebody else") in stored
        if is_encrypted:
            assert all("__enc__" in each for each in stored if each != message("of somebody else"))

    tried(test)


def test_compaction_by_hand_is_one_commit(tried: Tried) -> None:
    async def test(given: Given) -> None:
        session = compacting(given.session, Compactor())
        await given.session.add_items([message("x" * 9 * MIB), *(message(str(n)) for n in range(1200))])
        await session.run_compaction({"force": True})
        assert await given.session.get_items() == [{"type": "compaction", "encrypted_content": "of 1201"}]
        assert len(await given.entries()) == 2

    tried(test)


def test_the_suffix_that_compaction_replaces(tried: Tried) -> None:
    async def test(given: Given) -> None:
        session = given.session
        empty = await session._get_compaction_snapshot(3)
        assert empty is not None and empty.items == [] and empty.complete
        assert not await empty.replace_suffix(0, [message("x")])
        items = [message(f"m{n}") for n in range(6)]
        await session.add_items(items)
        found = await session._get_compaction_snapshot(3)
        assert found is not None and found.items == items[3:] and not found.complete
        whole = await session._get_compaction_snapshot(6, prune_prefix=lambda item: item in items[:2])
        assert whole is not None and whole.items == items and whole.complete
        assert await whole.replace_suffix(4, [message("end")])
        assert texts(await session.get_items()) == ["m2", "m3", "end"]
        assert not await whole.replace_suffix(4, [message("again")])
        again = await session._get_compaction_snapshot(1)
        assert again is not None
        await session.pop_item()
        await session.add_items([message("end")])  # the same text, yet another item
        assert not await again.replace_suffix(0, [message("x")])
        assert texts(await session.get_items()) == ["m2", "m3", "end"]
        with pytest.raises(inmem.LimitError, match="in one commit"):
            await session._atomic_replace_items([message("x")] * (MANY + 1))

        class Own(InmemSession):
            """What a subclass keeps beside the items is not known here."""

        own = Own(session.session_id, given.db)
        assert await own._get_compaction_snapshot(3) is None and not await own._atomic_replace_items([])

    tried(test)


def test_the_sdks_sync_runner(home: Home) -> None:
    """It makes loops of its own: a handle of threads serves them all."""
    with home.open(agent="sync") as db:
        session = InmemSession("s", db)
        for number in range(2):
            agent = Agent(name="clerk", model=Answering())
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)  # or the SDK makes one that it leaves open
            try:
                Runner.run_sync(
                    agent, f"question {number}", session=session, run_config=RunConfig(tracing_disabled=True)
                )
            finally:
                asyncio.set_event_loop(None)
                loop.close()
        assert len(asyncio.run(session.get_items())) == 4
