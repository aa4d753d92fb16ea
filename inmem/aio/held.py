"""Leases that are held while a block of a coroutine runs: one task renews all of a loop.

See `inmem.primitives.leases.held`, whose books these share.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar, overload

from inmem.errors import InmemError
from inmem.pending import Pending
from inmem.primitives.leases.held import Due, HeldLease, Holding, holding_of
from inmem.primitives.leases.rules import Lease

R = TypeVar("R")

_LOOK_S: Final = 1.0  # who waits for a loss looks at the clock as often: it goes on during suspend


class AsyncHeldLease:
    """A lease that is held while an `async with` block runs. See `HeldLease`."""

    __slots__ = ("__weakref__", "_holding", "lost")

    def __init__(self, held: HeldLease) -> None:
        self._holding = holding_of(held)
        self.lost = AsyncLoss(self._holding)

    def __repr__(self) -> str:
        return f"AsyncHeldLease({self._holding.described()})"

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
        holding.taken(await holding.calls.drive(holding.taking()))
        _renewals_of_loop().add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        _renewals_of_loop().discard(self)
        holding = self._holding
        if holding.is_here:
            with contextlib.suppress(InmemError):  # then it runs out by itself
                await holding.calls.drive(holding.releasing())


class AsyncLoss:
    """Whether a lease may be lost, in the form of an `asyncio.Event`. See `inmem.primitives.leases.held`."""

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


class LoopRenewals:
    """The one task that renews what the coroutines of a loop hold. It ends when nothing is held."""

    def __init__(self) -> None:
        self._due: Due[AsyncHeldLease] = Due(lambda held: held._holding)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, held: AsyncHeldLease) -> None:
        """Renew one from now on."""
        self._due.add(held)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="inmem-leases")

    def discard(self, held: AsyncHeldLease) -> None:
        """Renew it no more."""
        self._due.discard(held)
        self._changed.set()

    async def _run(self) -> None:
        try:
            while (wait_s := self._due.next_in_s()) is not None:
                if wait_s <= 0:
                    await self._renew(self._due.pop())
                    continue
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
        finally:
            self._task = None

    async def _renew(self, held: AsyncHeldLease) -> None:
        holding = held._holding
        try:
            holding.taken(await holding.calls.drive(holding.renewing()))
            goes_on = True
        except InmemError as error:
            goes_on = holding.not_renewed(error)
        if goes_on and held in self._due:
            self._due.add(held)
        else:
            self._due.discard(held)
        if not goes_on:
            held.lost.tell()


_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopRenewals] = weakref.WeakKeyDictionary()


def _renewals_of_loop() -> LoopRenewals:
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = LoopRenewals()
    return found
