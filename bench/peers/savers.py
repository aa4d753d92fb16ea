"""LangGraph's own savers, on SQLite and on PostgreSQL, as its documentation opens them."""

from __future__ import annotations

import functools
import importlib.metadata
import sqlite3
from pathlib import Path
from typing import Any

from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver

from bench.peers import Client, Connector, Peer
from bench.peers.postgres import Shared

_PATIENCE_S = 60.0


class SqliteSavers(Peer):
    """A file, in WAL mode, as the saver sets it up; each commit is synced, as SQLite does by default."""

    durability = "a power cut"

    def start(self, directory: Path) -> Connector:
        connector = functools.partial(SqliteSaverClient, str(directory / "checkpoints.db"))
        connector().close()
        return connector

    def facts(self) -> str:
        return f"langgraph-checkpoint-sqlite {importlib.metadata.version('langgraph-checkpoint-sqlite')}"


class SqliteSaverClient(Client):
    """A connection."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=_PATIENCE_S, check_same_thread=False)
        self._saver = SqliteSaver(self._connection)
        self._saver.setup()

    def saver(self) -> Any:
        return self._saver

    def close(self) -> None:
        self._connection.close()


class PostgresSavers(Peer):
    """The server that inmem is on too."""

    durability = "a power cut"

    def __init__(self) -> None:
        self._server: Any = None

    def start(self, directory: Path) -> Connector:
        self._server = Shared.take()
        conninfo = f"host={self._server.place} port=5432 user=inmem dbname=postgres"
        with PostgresSaver.from_conn_string(conninfo) as saver:
            saver.setup()
        return functools.partial(PostgresSaverClient, conninfo)

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            Shared.let_go()

    def facts(self) -> str:
        return f"langgraph-checkpoint-postgres {importlib.metadata.version('langgraph-checkpoint-postgres')}"


class PostgresSaverClient(Client):
    """A connection."""

    def __init__(self, conninfo: str) -> None:
        self._opened = PostgresSaver.from_conn_string(conninfo)
        self._saver = self._opened.__enter__()

    def saver(self) -> Any:
        return self._saver

    def close(self) -> None:
        self._opened.__exit__(None, None, None)
