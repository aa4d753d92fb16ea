"""The stores that contracts are held against: one on each engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from postgres_server import PostgresServer

import inmem


class Home:
    """A store, and handles of it."""

    name = ""
    place: Any = ""  # what `inmem.open` takes

    def open(self, **namespace: Any) -> inmem.Database:
        """A handle, by default of the default namespace; others open more of the same store."""
        raise NotImplementedError


class LocalHome(Home):
    name = "local"

    def __init__(self) -> None:
        self.database = inmem.open()
        self.place = self.database.path

    def open(self, **namespace: Any) -> inmem.Database:
        return inmem.open(self.database.path, **namespace)

    def close(self) -> None:
        self.database.close()


class PostgresHome(Home):
    name = "postgres"
    number = 0

    def __init__(self, server: PostgresServer) -> None:
        self.conninfo = server.conninfo
        PostgresHome.number += 1
        self.schema = f"home_{os.getpid()}_{PostgresHome.number}"
        self.place = self.url = f"{server.url}?schema={self.schema}"

    def open(self, **namespace: Any) -> inmem.Database:
        return inmem.open(self.url, **namespace)

    def close(self) -> None:
        import psycopg

        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            while True:
                try:
                    connection.execute(f"drop schema if exists {self.schema} cascade")
                    return
                except psycopg.errors.DeadlockDetected:  # with a program of the test's that is ending
                    continue


HOMES = [LocalHome, PostgresHome]


@pytest.fixture(scope="module", params=HOMES, ids=lambda home: str(home.name))
def home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """A store on one of the engines."""
    with ExitStack() as stack:
        needs = [request.getfixturevalue("postgres_server")] if request.param is PostgresHome else []
        made: Any = request.param(*needs)
        stack.callback(made.close)
        yield made


@pytest.fixture(scope="module")
def shared_db(home: Home) -> Iterator[inmem.Database]:
    """One handle for all tests of a module."""
    with home.open() as database:
        yield database


class Fresh:
    """Gives what to open: a store of its own, or a namespace that nobody has used."""

    number = 0

    def __init__(self, home: Home) -> None:
        self.engine = home.name
        self.opened = ExitStack()
        self._place = home.place

    def __call__(self) -> dict[str, Any]:
        if self.engine == "local":
            return {"path": self.opened.enter_context(inmem.open()).path}
        Fresh.number += 1
        return {"path": self._place, "agent": f"fresh-{Fresh.number:05}"}


@pytest.fixture
def fresh(home: Home) -> Iterator[Fresh]:
    """What nobody has used."""
    found = Fresh(home)
    with found.opened:
        yield found
