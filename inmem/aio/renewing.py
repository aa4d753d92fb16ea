"""What coroutines hold for a while: a task of their loop renews each."""

from __future__ import annotations

import asyncio
import weakref

from inmem.aio.driving import driven
from inmem.host.clock import boot_us
from inmem.steps import Renewed

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
