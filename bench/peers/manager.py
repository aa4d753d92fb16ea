"""`multiprocessing.Manager`: dicts, lists and a lock in a server process, from the standard library.

Its proxies work in processes that the starter of the manager has started.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import platform
from collections.abc import Mapping, Sequence
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from bench.peers import Client, Connector, Peer, Record


class Manager(Peer):
    """The manager's process."""

    durability = "none: memory of one process"

    def __init__(self) -> None:
        self._manager: SyncManager | None = None
        self._pids: list[int] = []

    def start(self, directory: Path) -> Connector:
        before = {child.pid for child in multiprocessing.active_children()}
        manager = self._manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(os.setsid)
        self._pids = [
            child.pid for child in multiprocessing.active_children() if child.pid and child.pid not in before
        ]
        return functools.partial(
            ManagerClient, manager.dict(), manager.list(), manager.dict(), manager.Lock()
        )

    def stop(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.shutdown()

    def pids(self) -> Sequence[int]:
        return self._pids

    def facts(self) -> str:
        return f"Python {platform.python_version()}"


class ManagerClient(Client):
    """Proxies of what all processes share."""

    def __init__(self, data: Any, log: Any, cells: Any, lock: Any) -> None:
        self._data, self._log, self._cells, self._lock = data, log, cells, lock
        self.get = data.get  # type: ignore[method-assign]
        self.put = data.__setitem__  # type: ignore[method-assign]

    def put_many(self, items: Mapping[str, str]) -> Any:
        self._data.update(items)

    def append(self, log: str, value: str) -> Any:
        self._log.append((log, value))

    def log_length(self, log: str) -> int:
        return sum(name == log for name, _ in self._log[:])

    def cell(self, name: str, value: str) -> int:
        with self._lock:
            version: int = self._cells.get(name, (0, None))[0] + 1
            self._cells[name] = version, value
        return version

    def cell_value(self, name: str) -> str | None:
        value: str | None = self._cells.get(name, (0, None))[1]
        return value

    def cas(self, name: str, version: int, value: str) -> int:
        with self._lock:
            if self._cells[name][0] != version:
                raise AssertionError("another version")
            self._cells[name] = version + 1, value
        return version + 1

    def increment(self, key: str) -> Any:
        with self._lock:
            self._data[key] = self._data.get(key, 0) + 1

    def number(self, key: str) -> int:
        return int(self._data.get(key, 0))

    def insert(self, key: str, record: Record) -> Any:
        self._data[key] = record

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        self._data.update(records)

    def read(self, key: str) -> Record | None:
        found: Record | None = self._data.get(key)
        return found

    def update(self, key: str, field: str, value: str) -> Any:
        with self._lock:
            self._data[key] = {**self._data[key], field: value}

    def modify(self, key: str, field: str, value: str) -> Any:
        self.update(key, field, value)
