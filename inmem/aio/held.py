"""Leases that are held while a block of a coroutine runs. See `inmem.primitives.leases.held`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar, overload

from inmem.aio.renewing import AsyncLoss, drop, keep
from inmem.aio.session import check_loop
from inmem.errors import InmemError
from inmem.pending import Pending
from inmem.primitives.leases.calls import LeaseHolder
from inmem.primitives.leases.held import HeldLease, holding_of
from inmem.primitives.leases.shown import Lease

R = TypeVar("R")



class AsyncHeldLease(LeaseHolder):
    """A lease that is held while an `async with` block runs. See `HeldLease`."""

    __slots__ = ("__weakref__", "_holding", "_loop", "lost")

    def __init__(self, held: HeldLease) -> None:
        self._holding = holding_of(held)
        self.lost = AsyncLoss(self._holding)
        self._holding.lost = self.lost

    def __repr__(self) -> str:
        return f"AsyncHeldLease({self._holding.described()})"

    def _to_use(self) -> Lease:
        return self._holding.to_use()

    @property
    def lease(self) -> Lease:
        """The lease as it was renewed last. See `HeldLease.lease`."""
        return self._holding.lease

    @property
    def token(self) -> int:
        """The token of the lease."""
        return self._holding.lease.token

    async def check(self) -> None:
        """Refuse to go on if it is lost. See `HeldLease.check`."""
        self._holding.check()

    @overload
    async def transact(self, fn: Callable[[Any], Awaitable[Pending[R]]], **options: Any) -> R: ...
    @overload
    async def transact(self, fn: Callable[[Any], Awaitable[R]], **options: Any) -> R: ...
    @overload
    async def transact(self, fn: Callable[[Any], Pending[R]], **options: Any) -> R: ...
    @overload
    async def transact(self, fn: Callable[[Any], R], **options: Any) -> R: ...
    async def transact(self, fn: Callable[[Any], Any], **options: Any) -> Any:
        """`transact` of the lease's run, under the lease. See `HeldLease.transact`."""
        return await self._holding.transact(fn, options)

    async def __aenter__(self) -> Self:
        holding = self._holding
        self._loop = asyncio.get_running_loop()
        await holding.calls.drive(holding.taking())
        keep(holding)
        return self

    async def __aexit__(self, *_: object) -> None:
        check_loop(self._loop)
        holding = self._holding
        drop(holding)
        if holding.is_held:
            with contextlib.suppress(InmemError):  # then it runs out by itself
                await holding.calls.drive(holding.releasing())
