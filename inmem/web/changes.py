"""What has changed, told as commits happen.

Invariant: whoever is told of a change, and reads after that, sees it. A
change is told after a look that already sees it, and the next wait begins with
that look. So nothing is missed, while many commits in a short time are told
of once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

from inmem.aio import AsyncDatabase
from inmem.errors import InmemError, RunDeletedError

_PAUSE_S: Final = 0.1  # between two tellings of one kind
_SHARE: Final = 10  # times as long as a look takes, at least: a tenth of a core
SHARED: Final = ("agent", "app", "tenant")


def _look_at_queues(view: Any) -> None:
    for name in view.queues.list():
        view.queues.counts(name)


# Each reads all that a kind has, so that any change of it ends the wait. None looks at values.
LOOKS: Final[dict[str, Callable[[Any], Any]]] = {
    "events": lambda view: view.events.count(),
    "traces": lambda view: view.traces.count(),
    "kv": lambda view: view.kv.count(),
    "cells": lambda view: view.cells.list(),
    "leases": lambda view: view.leases.list(),
    "queues": _look_at_queues,
}


def scope_of(db: AsyncDatabase, run: str) -> Any:
    """A run, or what runs share: `@agent`, `@app`, `@tenant`."""
    return db.shared(run[1:]) if run.startswith("@") else db.run(run)


class RunChanges:
    """Of one run, or of the list of runs: an asynchronous iterator of kinds, each after it has changed.

    Each kind comes once at first. `gone` is the last one, if the run is deleted.
    """

    def __init__(self, db: AsyncDatabase, run: str | None) -> None:
        self._db = db
        self._run = run
        self._told: asyncio.Queue[str | InmemError] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[str]:
        if self._run is None:
            looks: dict[str, Callable[[Any], Any]] = {"runs": lambda view: view.runs.get_stats()}
            scope = self._db.shared("agent")
        else:
            scope = scope_of(self._db, self._run)
            looks = dict(LOOKS)
            if not self._run.startswith("@"):
                looks["run"] = lambda view: view.runs.get_run(self._run)
        tasks = [asyncio.create_task(self._follow(scope, kind, look)) for kind, look in looks.items()]
        try:
            while True:
                told = await self._told.get()
                if isinstance(told, RunDeletedError):
                    yield "gone"
                    return
                if isinstance(told, InmemError):
                    raise told
                yield told
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def _follow(self, scope: Any, kind: str, look: Callable[[Any], Any]) -> None:
        while True:
            looks = 0
            took_s = 0.0

            def look_twice(view: Any) -> bool:
                nonlocal looks, took_s
                began = time.monotonic()
                look(view)
                took_s = time.monotonic() - began
                looks += 1
                if looks == 1:
                    self._told.put_nowait(kind)
                return looks > 1

            try:
                await scope.wait(look_twice)
            except InmemError as error:
                self._told.put_nowait(error)
                return
            await asyncio.sleep(max(_PAUSE_S, _SHARE * took_s))
