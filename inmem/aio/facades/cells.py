"""The facades of cells for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic

from inmem.aio.wrapping import AsyncFacade, Each, documented
from inmem.primitives.byrun import ByRun, by_run
from inmem.primitives.cells.facade import (
    MAX_ATTEMPTS,
    TRANSITION_TIMEOUT_S,
    CellReads,
    Cells,
    PendingVersion,
    RunCells,
    StateCell,
    T,
    TransactionCells,
    V,
)
from inmem.primitives.cells.rules import State


@documented(CellReads)
class AsyncCellReads(AsyncFacade):
    __slots__ = ()

    async def read(self, name: str) -> State | None:
        result: State | None = self._sync.read(name)
        return result

    async def exists(self, name: str) -> bool:
        result: bool = self._sync.exists(name)
        return result

    async def list(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[str]:
        result: builtins.list[str] = self._sync.list(
            prefix, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    def iter(
        self, prefix: str | None = None, *, start_after: str | None = None, reverse: bool = False
    ) -> AsyncIterator[tuple[str, State]]:
        return Each(self._sync.iter(prefix, start_after=start_after, reverse=reverse))


@documented(Cells)
class AsyncCells(AsyncCellReads, Generic[V]):
    __slots__ = ()

    async def init(self, name: str, value: Any, *, exist_ok: bool = False) -> int:
        result: int = await self._sync.init(name, value, exist_ok=exist_ok)
        return result

    async def cas(self, name: str, expected_version: int, value: Any) -> int:
        result: int = await self._sync.cas(name, expected_version, value)
        return result

    async def set(self, name: str, value: Any) -> V:
        result: V = await self._sync.set(name, value)
        return result

    async def delete(self, name: str) -> bool:
        result: bool = await self._sync.delete(name)
        return result


@documented(RunCells)
class AsyncRunCells(AsyncCells[int]):
    __slots__ = ()

    async def wait(
        self, name: str, *, after: int | None = None, timeout_s: float | None = None
    ) -> State | None:
        result: State | None = await self._sync.wait(name, after=after, timeout_s=timeout_s)
        return result

    async def transition(
        self, name: str, fn: Callable[[State], tuple[Any, T]], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSITION_TIMEOUT_S,
    ) -> T:
        result: T = await self._sync.transition(name, fn, max_attempts=max_attempts, timeout_s=timeout_s)
        return result


@documented(TransactionCells)
class AsyncTransactionCells(AsyncCells[PendingVersion]):
    __slots__ = ()

    async def transition(self, name: str, fn: Callable[[State], tuple[Any, T]]) -> T:
        result: T = await self._sync.transition(name, fn)
        return result


@documented(StateCell)
class AsyncStateCell(ByRun[AsyncRunCells]):
    __slots__ = ()

    KIND = "cells"

    init = by_run(AsyncRunCells.init)
    read = by_run(AsyncRunCells.read)
    cas = by_run(AsyncRunCells.cas)
    set = by_run(AsyncRunCells.set)
    delete = by_run(AsyncRunCells.delete)
    list = by_run(AsyncRunCells.list)
    iter = by_run(AsyncRunCells.iter)
    exists = by_run(AsyncRunCells.exists)
    transition = by_run(AsyncRunCells.transition)
    wait = by_run(AsyncRunCells.wait)
