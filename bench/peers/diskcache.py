"""diskcache: SQLite behind a cache's interface; its `transact` holds the lock over several writes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diskcache

from bench.peers import Client, Connector, Peer, Record


class DiskCache(Peer):
    """A directory."""

    durability = "the kill of every process; a power cut takes what came since SQLite's last checkpoint"

    def start(self, directory: Path) -> Connector:
        connector = functools.partial(DiskCacheClient, str(directory / "cache"))
        connector().close()
        return connector

    def facts(self) -> str:
        return f"diskcache {diskcache.__version__}, eviction off"


class DiskCacheClient(Client):
    """One cache object."""

    def __init__(self, path: str) -> None:
        self._db = diskcache.Cache(path, timeout=120, eviction_policy="none", size_limit=1 << 40)
        self.get = self._db.get  # type: ignore[method-assign]
        self.put = self._db.set  # type: ignore[method-assign]

    def put_many(self, items: Mapping[str, str]) -> Any:
        with self._db.transact(retry=True):
            for key, value in items.items():
                self._db.set(key, value)

    def append(self, log: str, value: str) -> Any:
        with self._db.transact(retry=True):
            number = self._db.get(log, 0)
            self._db.set(f"{log}-{number:012}", value)
            self._db.set(log, number + 1)

    def log_length(self, log: str) -> int:
        return int(self._db.get(log, 0))

    def cell(self, name: str, value: str) -> int:
        with self._db.transact(retry=True):
            version = (self._db.get(name) or (0, None))[0] + 1
            self._db.set(name, (version, value))
        return version

    def cell_value(self, name: str) -> str | None:
        return (self._db.get(name) or (0, None))[1]

    def cas(self, name: str, version: int, value: str) -> int:
        with self._db.transact(retry=True):
            if self._db.get(name)[0] != version:
                raise AssertionError("another version")
            self._db.set(name, (version + 1, value))
        return version + 1

    def increment(self, key: str) -> Any:
        with self._db.transact(retry=True):
            self._db.set(key, self._db.get(key, 0) + 1)

    def number(self, key: str) -> int:
        return int(self._db.get(key, 0))

    def insert(self, key: str, record: Record) -> Any:
        self._db.set(key, record)

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        with self._db.transact(retry=True):
            for key, record in records.items():
                self._db.set(key, record)

    def read(self, key: str) -> Record | None:
        found: Record | None = self._db.get(key)
        return found

    def update(self, key: str, field: str, value: str) -> Any:
        with self._db.transact(retry=True):
            self._db.set(key, {**self._db.get(key), field: value})

    def modify(self, key: str, field: str, value: str) -> Any:
        self.update(key, field, value)

    def close(self) -> None:
        self._db.close()
