"""Programs that share a session of the OpenAI Agents SDK, and are killed in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

import inmem
from inmem.adapters.openai_agents import InmemSession

SESSION = "of all"
PER_CALL = 3


def item(by: int, call: int, part: int, size: int = 0) -> Any:
    """One of the items that a call adds."""
    return {"role": "user", "content": f"{by} {call} {part} " + "x" * size}


def told(items: list[Any]) -> list[tuple[int, int, int]]:
    """By whom, in which call and as which of its parts each item was added."""
    return [tuple(map(int, each["content"].split()[:3])) for each in items]  # type: ignore[misc]


def add(words: Any, by: int, place: str, is_awaited: bool, calls: int, size: int = 0) -> int:
    """Add to the session, one call after the other; word `by` says how many are done."""

    async def adding(db: Any) -> None:
        session = InmemSession(SESSION, db)
        for call in range(calls):
            await session.add_items([item(by, call, part, size) for part in range(PER_CALL)])
            words[by] = call + 1

    async def awaited() -> None:
        async with inmem.aio.open(place, timeout_s=60.0) as db:
            await adding(db)

    words.pass_gate()
    if is_awaited:
        asyncio.run(awaited())
    else:
        with inmem.open(place, timeout_s=60.0) as db:
            asyncio.run(adding(db))
    return calls


def pop(words: Any, place: str) -> list[Any]:
    """Pop until nothing is left."""

    async def popping() -> list[Any]:
        async with inmem.aio.open(place, timeout_s=60.0) as db:
            session, found = InmemSession(SESSION, db), []
            while (item := await session.pop_item()) is not None:
                found.append(item)
            return found

    words.pass_gate()
    return asyncio.run(popping())


class Answering(Model):
    """Answers what it was asked last; `seen` is what it was given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def answer(self, last: Any) -> Any:
        return says(f"to {last['content']}")

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        self.seen = [*input]
        return ModelResponse(output=[self.answer(input[-1])], usage=Usage(), response_id="r")

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise AssertionError("no test streams")


def says(text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(text=text, type="output_text", annotations=[])
    return ResponseOutputMessage(
        id="m", content=[content], role="assistant", status="completed", type="message"
    )


class Looking(Answering):
    """Calls the tool `look` with what it was asked last, and then says what it found."""

    def answer(self, last: Any) -> Any:
        if last.get("type") == "function_call_output":
            return says(f"found {last['output']}")
        asked = last["content"]
        return ResponseFunctionToolCall(
            name="look", call_id=asked, arguments=f'{{"name": "{asked}"}}', type="function_call"
        )


@function_tool
def look(name: str) -> str:
    """Look for something."""
    return name


def converse(words: Any, by: int, place: str, is_fenced: bool, turns: int) -> list[str]:
    """Take turns of an agent, which asks, calls a tool, hears of it and answers; word `by` counts them."""
    agent = Agent(name="clerk", model=Looking(), tools=[look])

    async def conversing() -> list[str]:
        answers = []
        async with inmem.aio.open(place, timeout_s=60.0) as db:
            session = InmemSession(SESSION, db, fence="lease" if is_fenced else None)
            for turn in range(turns):
                owned: Any = session.alease(ttl_s=5.0, wait_s=60.0) if is_fenced else nullcontext()
                async with owned:
                    result = await Runner.run(
                        agent, f"{by}-{turn}", session=session, run_config=RunConfig(tracing_disabled=True)
                    )
                answers.append(result.final_output)
                words[by] = turn + 1
        return answers

    words.pass_gate()
    return asyncio.run(conversing())
