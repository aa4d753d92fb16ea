"""Sessions on a handle of a loop, and on one of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from homes import Fresh

import inmem
from inmem.adapters.openai_agents import InmemSession

KINDS = ["loops", "threads"]
MIB = 1 << 20


def message(text: str, role: str = "user") -> Any:
    return {"role": role, "content": text}


def texts(items: list[Any]) -> list[str]:
    return [each["content"] for each in items]


class Given:
    """A handle of each kind, and sessions on it."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.session = self.of("user@example.com/7")

    def of(self, session_id: str, **keywords: Any) -> InmemSession:
        return InmemSession(session_id, self.db, **keywords)

    async def entries(self, prefix: str = "") -> list[str]:
        return [*await self.asked(lambda view: view.kv.list(prefix or None))]

    async def asked(self, fn: Callable[[Any], Any]) -> Any:
        done = self.db.transact(self.session.run_id, fn)
        return done if isinstance(self.db, inmem.Database) else await done


Test = Callable[[Given], Awaitable[None]]


@pytest.fixture(params=KINDS)
def tried(request: pytest.FixtureRequest, fresh: Fresh) -> Callable[[Test], None]:
    """Runs a test in a loop, with a handle of the loop or of threads."""

    async def of_loop(test: Test) -> None:
        async with inmem.aio.open(**fresh()) as db:
            await test(Given(db))

    def tried(test: Test) -> None:
        if request.param == "loops":
            asyncio.run(of_loop(test))
        else:
            with inmem.open(**fresh()) as db:
                asyncio.run(test(Given(db)))  # type: ignore[arg-type]

    return tried


Tried = Callable[[Test], None]
