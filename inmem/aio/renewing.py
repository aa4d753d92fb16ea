"""What coroutines hold for a while: a task of their loop renews each."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Final

from inmem.aio.driving import driven
from inmem.host.clock import boot_us
from inmem.primitives.holding import Holding
from inmem.steps import Renewed

_LOOK_S: Final = 1.0  # who waits for a loss looks at the clock as often: it goes on during suspend

_tasks: weakref.WeakKeyDictionary[Renewed, asyncio.Task[None]] = weakref.WeakKeyDictionary()


def keep(renewed: Renewed) -> None:
    """Renew something from now on."""
    _tasks[renewed] = asyncio.get_running_loop().create_task(_renew(renewed), name="inmem-renewal")


def drop(renewed: Renewed) -> None:
    """Renew it no more. What is being asked for may still be given."""
    task = _tasks.pop(renewed, None)
    if task is not None:
        task.cancel()


async def _renew(renewed: Renewed) -> None:
    goes_on = True
    while goes_on:
        await asyncio.sleep(max(0.0, (renewed.renew_at_us - boot_us()) / 1e6))
        goes_on = await driven(renewed.renew())


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
