"""huey on SQLite: a task queue in one file, its storage as its consumers use it.

Taking a task removes it: there is no ack, so who is killed with a task loses
it. That is one commit where others need two.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huey
from huey.api import Task

from bench.peers import Client, Connector, Peer


class Huey(Peer):
    """A file."""

    durability = "the kill of every process, but not the task that one had; a power cut takes the last ones"

    def start(self, directory: Path) -> Connector:
        connector = functools.partial(HueyClient, str(directory / "huey.db"))
        connector().close()
        return connector

    def facts(self) -> str:
        return f"huey {huey.__version__}, results off"


class _Job(Task):  # type: ignore[misc]
    """A task that does nothing."""


class HueyClient(Client):
    """One connection."""

    def __init__(self, path: str) -> None:
        self._huey: Any = huey.SqliteHuey(filename=path, results=False, timeout=120)
        self._huey._registry.register(_Job)

    def job_put(self, value: str) -> Any:
        return self._huey.enqueue(_Job((value,)))

    def job_put_many(self, values: Sequence[str]) -> Any:
        for value in values:  # it has no way to put many at once
            self.job_put(value)

    def job_done(self, wait_s: float = 0.0) -> str | None:
        until = time.monotonic() + wait_s
        while (task := self._huey.dequeue()) is None:
            if time.monotonic() > until:
                return None
            time.sleep(0.1)  # as its consumers do by default
        payload: str = task.args[0]
        return payload

    def jobs(self) -> int:
        return int(self._huey.pending_count())

    def no_jobs(self) -> None:
        self._huey.flush()

    def close(self) -> None:
        self._huey.storage.close()
