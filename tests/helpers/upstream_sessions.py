"""A plugin for the test suite of the OpenAI Agents SDK: its `SQLiteSession` is ours in there.

`INMEM_PLACE` names the store, `INMEM_KIND` is `threads`, `loops` or `sqlite`. A path of
a test's own is a namespace of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
from hashlib import sha256
from typing import Any

import agents
import agents.memory
import pytest

import inmem
from inmem.adapters.openai_agents import InmemSession

PLACE = os.environ["INMEM_PLACE"]
KIND = os.environ["INMEM_KIND"]
_numbers = itertools.count()


def agent_of(path: Any) -> str:
    """The namespace for what a test has in a file, or for itself in memory."""
    place = next(_numbers) if str(path) == ":memory:" else path
    return "a" + sha256(f"{os.getpid()} {place}".encode()).hexdigest()[:16]


class ThreadsOwn(InmemSession):
    """A session over a handle of threads, which it closes."""

    def __init__(
        self, session_id: str, db_path: Any = ":memory:", *_: Any, session_settings: Any = None, **__: Any
    ) -> None:
        db = inmem.open(PLACE, agent=agent_of(db_path))
        super().__init__(session_id, db, session_settings=session_settings)

    def close(self) -> None:
        self.db.close()  # type: ignore[unused-coroutine]


class LoopsOwn:
    """A session that opens the store in each loop that uses it."""

    def __init__(
        self, session_id: str, db_path: Any = ":memory:", *_: Any, session_settings: Any = None, **__: Any
    ) -> None:
        self._agent = agent_of(db_path)
        self._of_loops: dict[Any, InmemSession] = {}
        self._is_closed = False
        self.session_id = session_id
        with inmem.open(PLACE, agent=self._agent) as db:
            found = InmemSession(session_id, db, session_settings=session_settings)
        self.session_settings = found.session_settings

    async def _own(self) -> InmemSession:
        if self._is_closed:
            raise inmem.ClosedError("the session is closed")
        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            db = await inmem.aio.open(PLACE, agent=self._agent)
            self._of_loops[loop] = InmemSession(self.session_id, db)
        self._of_loops[loop].session_settings = self.session_settings
        return self._of_loops[loop]

    async def get_items(self, limit: int | None = None) -> Any:
        return await (await self._own()).get_items(limit)

    async def add_items(self, items: Any) -> None:
        await (await self._own()).add_items(items)

    async def pop_item(self) -> Any:
        return await (await self._own()).pop_item()

    async def clear_session(self) -> None:
        await (await self._own()).clear_session()

    def close(self) -> None:
        self._is_closed = True
        for session in self._of_loops.values():
            session.db.handle.close()  # type: ignore[union-attr]


if KIND != "sqlite":  # which shows how many fail with SQLite itself
    own: Any = {"threads": ThreadsOwn, "loops": LoopsOwn}[KIND]
    agents.SQLiteSession = agents.memory.SQLiteSession = own  # type: ignore[misc]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Coroutine functions are run in a loop, without a plugin more."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
