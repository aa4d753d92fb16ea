"""StrataDB: one process owns the store, all others reach it through the owner's broker.

It has no transactions over several writes and no compare-and-swap. A record
is a JSON document, of which one field can be written alone.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stratadb

from bench.peers import Client, Connector, NotInstalled, Peer, Record

_START_S = 30.0
_SURVIVES = {
    "standard": "the kill of a client; the death of the owner may take acknowledged commits (standard)",
    "always": "a power cut (durability always)",
}


def _own(path: str, durability: str, connection: Any) -> None:
    os.setsid()
    with stratadb.open(path, durability=durability, ipc="host") as db:
        connection.send(bool(db.admin.ipc_status().hosting))
        try:
            connection.recv()
        except EOFError:
            pass


class Strata(Peer):
    """A process that owns the store and hosts the broker."""

    def __init__(self, durability: str) -> None:
        self._mode = durability
        self.durability = _SURVIVES[durability]
        self._owner: Any = None

    def start(self, directory: Path) -> Connector:
        path = str(directory / "db")
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._owner = context.Process(target=_own, args=(path, self._mode, theirs), daemon=True)
        self._owner.start()
        theirs.close()
        if not self._connection.poll(_START_S) or not self._connection.recv():
            raise NotInstalled("stratadb does not host a broker here")
        return functools.partial(StrataClient, path, "client")

    def stop(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            self._connection.close()
            owner.join(20)
            if owner.is_alive():
                owner.kill()
                owner.join()

    def pids(self) -> Sequence[int]:
        return (self._owner.pid,)

    def facts(self) -> str:
        return f"stratadb {stratadb.__version__}, through its broker"


class StrataInProcess(Peer):
    """The store opened by the one process that uses it: no message is sent."""

    durability = _SURVIVES["standard"]

    def start(self, directory: Path) -> Connector:
        return functools.partial(StrataClient, str(directory / "db"), "off")

    def facts(self) -> str:
        return f"stratadb {stratadb.__version__}, in the process itself"


class StrataClient(Client):
    """One handle."""

    def __init__(self, path: str, ipc: str) -> None:
        self._db = stratadb.open(path, ipc=ipc)
        self._kv, self._events, self._json = self._db.kv, self._db.events, self._db.json
        self.put = self._kv.put  # type: ignore[method-assign]
        self.put_many = self._kv.put_many  # type: ignore[method-assign]

    def get(self, key: str) -> str | None:
        value = self._kv.get(key)
        return None if value is None else value.decode()

    def append(self, log: str, value: str) -> Any:
        # One log in each space; the log is what the space is for here.
        return self._db.at(space=log).events.append("tick", {"value": value})

    def log_length(self, log: str) -> int:
        return int(self._db.at(space=log).events.len())

    def insert(self, key: str, record: Record) -> Any:
        self._json.set(key, record)

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        self._json.set_many([
            {"key": key, "path": "$", "value": record} for key, record in records.items()
        ])

    def read(self, key: str) -> Record | None:
        found: Record | None = self._json.get(key)
        return found

    def update(self, key: str, field: str, value: str) -> Any:
        self._json.set(key, f"$.{field}", value)

    def scan(self, start: str, count: int) -> list[Record]:
        return [row.value for row in self._json.scan(start, limit=count).items]

    def close(self) -> None:
        self._db.close()
