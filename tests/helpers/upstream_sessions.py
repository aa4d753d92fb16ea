"""A plugin for the test suite of the OpenAI Agents SDK: its `SQLiteSession` is ours in there.

`INMEM_PLACE` names the store, `INMEM_KIND` is `threads` or `loops`. A path of
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
IS_OF_LOOPS = os.environ["INMEM_KIND"] == "loops"
_numbers = itertools.count()


class LoopsOwn:
    """A session that opens the store in each loop that uses it."""

    def __init__(self, session_id: str, agent: str, settings: Any) -> None:
        self._arguments = session_id, settings
        self._agent = agent
        self._opened: list[Any] = []
        self._of_loops: dict[Any, InmemSession] = {}
        self._is_closed = False
        self.session_id = session_id
        with inmem.open(PLACE, agent=agent) as db:
            self.session_settings = InmemSession(session_id, db, session_settings=settings).session_settings

    async def _own(self) -> InmemSession:
        if self._is_closed:
            raise inmem.ClosedError("SQLiteSession is closed")
        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            db = await inmem.aio.open(PLACE, agent=self._agent)
            self._opened.append(db)
            self._of_loops[loop] = InmemSession(
                self.session_id, db, session_settings=self.session_settings
            )
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
        for db in self._opened:
            db.handle.close()


class ThreadsOwn(InmemSession):
    """A session over a handle of threads, which it closes."""

    def close(self) -> None:
        self.db.close()  # type: ignore[unused-coroutine]


def replaced(
    session_id: str, db_path: Any = ":memory:", *_: Any, session_settings: Any = None, **__: Any
) -> Any:
    """What a call of `SQLiteSession` gives."""
    place = f"memory {next(_numbers)} {os.getpid()}" if str(db_path) == ":memory:" else str(db_path)
    agent = "a" + sha256(place.encode()).hexdigest()[:16]
    if IS_OF_LOOPS:
        return LoopsOwn(session_id, agent, session_settings)
    return ThreadsOwn(session_id, inmem.open(PLACE, agent=agent), session_settings=session_settings)


agents.SQLiteSession = agents.memory.SQLiteSession = replaced  # type: ignore[misc,assignment]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Coroutine functions are run in a loop, without a plugin more."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
