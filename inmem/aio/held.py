"""Leases that are held while a block of a coroutine runs. See `inmem.primitives.leases.held`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar, overload

from inmem.aio.renewing import drop, keep
from inmem.errors import InmemError
from inmem.pending import Pending
from inmem.primitives.holding import Holding
from inmem.primitives.leases.calls import LeaseHolder
from inmem.primitives.leases.held import HeldLease, holding_of
from inmem.primitives.leases.rules import Lease

R = TypeVar("R")

_LOOK_S: Final = 1.0  # who waits for a loss looks at the clock as often: it goes on during suspend


class AsyncHeldLease(LeaseHolder):
    """A lease that is held while an `async with` block runs. See `HeldLease`."""

    __slots__ = ("__weakref__", "_holding", "lost")

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
        await holding.calls.drive(holding.taking())
        keep(holding)
        return self

    async def __aexit__(self, *_: object) -> None:
        holding = self._holding
        drop(holding)
        if holding.is_held:
            with contextlib.suppress(InmemError):  # then it runs out by itself
                await holding.calls.drive(holding.releasing())


class AsyncLoss:
    """Whether a lease may be lost, in the form of an `asyncio.Event`. See `inmem.primitives.holding`."""

    __slots__ = ("_holding", "_told")

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._told = asyncio.Event()

    def is_set(self) -> bool:
        """Whether it may be lost."""
        return self._holding.lost_in_s() <= 0

    async def wait(self) -> bool:
        """Wait until it may be lost; True."""
        while (left_s := self._holding.lost_in_s()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_S)):
                    await self._told.wait()
        return True

    def tell(self) -> None:
        """Wake who waits."""
        self._told.set()
