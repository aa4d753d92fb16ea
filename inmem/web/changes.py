"""What has changed, told as commits happen.

Invariant: whoever is told of a change, and reads after that, sees it. A
change is told after a look that already sees it, and the next wait begins with
that look. So nothing is missed, while many commits in a short time are told
of once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from inmem.aio import AsyncDatabase
from inmem.errors import InmemError, RunDeletedError

_log: Final = logging.getLogger(__name__)
_PAUSE_S: Final = 0.1  # between two tellings of one kind
_SHARE: Final = 10  # times as long as looks take, of all kinds together: a tenth of a core for each page


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


class NewestWords:
    """What one page has still to be told: of each kind the newest, so that a slow page is cheap."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[str, Any]] = {}
        self._filled = asyncio.Event()

    def put(self, name: str, data: Any) -> None:
        """Tell it, in place of an older word of the same kind that has not been taken."""
        self._waiting[f"changed {data}" if name == "changed" else name] = (name, data)
        self._filled.set()

    async def take(self) -> tuple[str, Any]:
        """Wait for the next word: its name, and what it says."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        return self._waiting.pop(next(iter(self._waiting)))


class RunChanges:
    """Follows one run, or the list of runs, and tells of each kind that has changed.

    Each kind comes once at first. `gone` is the last one, if the run is deleted.
    """

    def __init__(self, db: AsyncDatabase, run: str | None, told: NewestWords) -> None:
        self._db = db
        self._run = run
        self._told = told
        self._free = 0.0  # when the looks of all kinds have had their share of the processor

    async def follow(self) -> None:
        """Go on until the run is deleted.

        Raises:
            InmemError: the store cannot be read or waited for.
        """
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
            await asyncio.gather(*tasks)
        except RunDeletedError:
            self._told.put("changed", "gone")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, scope: Any, kind: str, look: Callable[[Any], Any]) -> None:
        while True:
            looks = 0
            took_s = 0.0

            def look_twice(view: Any) -> bool:
                nonlocal looks, took_s
                began = time.monotonic()
                look(view)
                took_s += time.monotonic() - began
                looks += 1
                if looks == 1:
                    self._told.put("changed", kind)
                return looks > 1

            await scope.wait(look_twice)
            now = time.monotonic()
            self._free = max(now, self._free) + _SHARE * took_s
            await asyncio.sleep(max(_PAUSE_S, self._free - now))


async def tell_changes(db: AsyncDatabase, run: str | None, told: NewestWords) -> None:
    """Follow as `RunChanges` does. Why it could not go on is the last word: `bye`."""
    try:
        await RunChanges(db, run, told).follow()
    except InmemError as error:
        told.put("bye", error.message)
    except Exception:  # a page that is told of nothing any more must not seem to be live
        _log.exception("the page cannot follow %s", "the runs" if run is None else f"run {run}")
        told.put("bye", "the page cannot follow any more: its server says why")
