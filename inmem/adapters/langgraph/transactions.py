"""Transactions of saver and store: in the thread that asks, or in the loop of an `AsyncDatabase`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

import inmem
from inmem.aio import AsyncDatabase

T = TypeVar("T")


class Asked(Generic[T]):
    """A call of facades of a run, outside of transactions; a loop awaits what it returns."""

    __slots__ = ("call", "run_id")

    def __init__(self, run_id: str | None, call: Callable[[Any], T]) -> None:
        self.run_id = run_id  # None: what all runs of the agent share
        self.call = call


class Transacted(Generic[T]):
    """A function of a transaction."""

    __slots__ = ("fn", "run_id")

    def __init__(self, run_id: str | None, fn: Callable[[Any], T]) -> None:
        self.run_id = run_id
        self.fn = fn


Step = Asked[Any] | Transacted[Any]
Work = Generator[Step, Any, T]  # told what each step gave; a deletion of the run is thrown into it


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

    def take(self, work: Work[T], lease: Any = None) -> T:
        """Take the steps of some work; what it returns. `lease` must be held when its transactions commit."""
        db = self._db
        if not isinstance(db, inmem.Database):
            return self.wait(self.atake(work, lease))
        try:
            step = next(work)
            while True:
                scope = db.shared("agent") if step.run_id is None else db.run(step.run_id)
                try:
                    told = (
                        step.call(scope) if isinstance(step, Asked)
                        else scope.transact(step.fn, lease=lease)
                    )
                except inmem.RunDeletedError as error:
                    step = work.throw(error)
                else:
                    step = work.send(told)
        except StopIteration as ended:
            result: T = ended.value
            return result

    async def atake(self, work: Work[T], lease: Any = None) -> T:
        """See `take`. With a `Database` the loop waits."""
        db = self._db
        if isinstance(db, inmem.Database):
            return self.take(work, lease)
        self._remember_loop()
        try:
            step = next(work)
            while True:
                scope = db.shared("agent") if step.run_id is None else db.run(step.run_id)
                try:
                    told = (
                        step.call(scope) if isinstance(step, Asked)
                        else await scope.transact(step.fn, lease=lease)
                    )
                    if inspect.isawaitable(told):
                        told = await told
                except inmem.RunDeletedError as error:
                    step = work.throw(error)
                else:
                    step = work.send(told)
        except StopIteration as ended:
            result: T = ended.value
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
