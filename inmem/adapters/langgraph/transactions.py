"""Transactions of saver and store: in the thread that asks, or in the loop of an `AsyncDatabase`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import inmem
from inmem.aio import AsyncDatabase

T = TypeVar("T")


class Transactions:
    """Runs functions of a transaction, in the scope of a run or in that which all runs of the agent share."""

    def __init__(self, db: inmem.Database | AsyncDatabase, run_id: str | None = None) -> None:
        if not isinstance(db, inmem.Database | AsyncDatabase):
            problem = f"db must be a Database or an AsyncDatabase, not {type(db).__name__}"
            raise inmem.InvalidInputError(problem, argument="db")
        self._db = db
        self._run_id = run_id
        self._loop: asyncio.AbstractEventLoop | None = None
        if isinstance(db, AsyncDatabase):
            self._remember_loop()

    def do(self, fn: Callable[[Any], T], lease: Any = None) -> T:
        """Run `fn(txn)` as a transaction and wait for it."""
        db = self._db
        if not isinstance(db, inmem.Database):
            return self.wait(self.ado(fn, lease))
        scope = db.shared("agent") if self._run_id is None else db.run(self._run_id)
        result: T = db.transact(scope, fn, lease=lease)
        return result

    async def ado(self, fn: Callable[[Any], T], lease: Any = None) -> T:
        """See `do`. With a `Database` the loop waits."""
        db = self._db
        if isinstance(db, inmem.Database):
            return self.do(fn, lease)
        self._remember_loop()
        scope = db.shared("agent") if self._run_id is None else db.run(self._run_id)
        result: T = await db.transact(scope, fn, lease=lease)
        return result

    def wait(self, asked: Coroutine[Any, Any, T]) -> T:
        """Let the loop of an `AsyncDatabase` do what another thread asks: a step of a graph that is awaited.

        Raises:
            InvariantError: this is the thread of the loop, which would wait for itself; or no loop runs.
        """
        loop = self._loop
        if loop is None or not loop.is_running() or loop is _running_loop():
            asked.close()
            raise inmem.InvariantError(
                "this has an AsyncDatabase: in the thread of its loop its methods are awaited",
                hint="Call ainvoke, aput, aget and so on, or use what inmem.open returns.",
            )
        return asyncio.run_coroutine_threadsafe(asked, loop).result()

    def _remember_loop(self) -> None:
        self._loop = _running_loop() or self._loop


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
