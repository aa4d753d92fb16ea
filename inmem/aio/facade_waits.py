"""How the facades of coroutines wait, and keep what is held for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from inmem.aio.driving import driven, streamed
from inmem.aio.renewing import AsyncLoss, drop, keep
from inmem.primitives.holding import Holding
from inmem.steps import Steps, Streamed

T = TypeVar("T")
R = TypeVar("R")


class AwaitedWait(Protocol):
    """`AsyncRunScope.wait`."""

    def __call__(self, fn: Callable[[Any], T | None], *, timeout_s: float | None = None) -> Awaitable[T]: ...


class LoopWaits:
    """A scope's coroutines wait: see `inmem.steps.FacadeWaits`."""

    __slots__ = ("_call", "drop", "keep", "pass_on")

    is_awaited = True

    def __init__(self, wait: AwaitedWait, pass_on: Callable[[bytes], None]) -> None:
        self._call = wait
        self.pass_on = pass_on
        self.keep, self.drop = keep, drop

    async def wait(
        self, fn: Callable[[Any], T | None], timeout_s: float | None, convert: Callable[[T], R]
    ) -> R:
        """See `FacadeWaits`."""
        return convert(await self._call(fn, timeout_s=timeout_s))

    def stream(self, steps: Streamed[T]) -> AsyncIterator[T]:
        """See `FacadeWaits`."""
        return streamed(steps, self._wait)

    def drive(self, steps: Steps[T]) -> Awaitable[T]:
        """See `FacadeWaits`."""
        return driven(steps, self._wait)

    def loss(self, holding: Holding) -> AsyncLoss:
        """See `FacadeWaits`."""
        return AsyncLoss(holding)

    def _wait(self, fn: Callable[[Any], Any], timeout_s: float | None) -> Awaitable[Any]:
        return self._call(fn, timeout_s=timeout_s)
