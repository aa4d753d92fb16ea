"""Connections to the server: one for each call that is under way, kept for the next one."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg

from inmem.engines.postgres.address import Address
from inmem.engines.postgres.asking import Ask, AskedConnection, Row
from inmem.errors import (
    ClosedError,
    InmemError,
    InvalidInputError,
    PermissionDeniedError,
    StoreFullError,
    WriterUnavailableError,
)

T = TypeVar("T")

CLOCK: Final = "(date_part('epoch', clock_timestamp()) * 1000000)::bigint"  # exact: it is below 2**53
_FRESH_US: Final = 10_000_000
_PAUSE_S: Final = 0.05  # between two attempts to connect
# What libpq says without a state of SQL, where trying again is of no use.
_LASTING: Final = ("authentication failed", "no pg_hba.conf entry", "does not exist", "no password supplied")


class ServerConnection(AskedConnection):
    """A connection that is closed when nobody has it any more."""

    def __del__(self, *_: Any) -> None:
        """psycopg warns here. An interrupt between two lines may drop one: libpq ends it with its object."""


class Connections:
    """Where connections come from."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self.durability = "sync"  # of the store: what is asked of the server for each commit
        self._free: list[ServerConnection] = []
        self._all: weakref.WeakSet[ServerConnection] = weakref.WeakSet()
        self.is_closed = False
        self._seen_at = 0
        self.ahead_us = 0  # of the server's clock, as it was seen last

    def __repr__(self) -> str:
        return f"Connections({self._address.shown!r})"

    def now_us(self) -> int:
        """The server's clock, as far as it is known here: it goes on as this machine's own does."""
        return time.monotonic_ns() // 1000 + self.ahead_us

    def saw(self, clock_us: int) -> None:
        """The server has said what time it is, a moment ago."""
        self._seen_at = now_us = time.monotonic_ns() // 1000
        self.ahead_us = clock_us - now_us

    def is_fresh(self) -> bool:
        """Whether the server's clock was seen so lately that a commit may take its time from here."""
        return time.monotonic_ns() // 1000 - self._seen_at < _FRESH_US

    def connect(self, deadline: float) -> ServerConnection:
        """A new connection.

        Raises:
            WriterUnavailableError: no server could be reached before the deadline.
            PermissionDeniedError: it refused the user.
        """
        while True:
            if self.is_closed:
                raise ClosedError("the database is closed")
            try:
                connection = ServerConnection.connect(
                    self._address.conninfo, autocommit=True, prepare_threshold=2,
                    connect_timeout=max(1, round(min(self._timeout_s, deadline - time.monotonic()))),
                )
                self._prepare(connection)
            except psycopg.Error as error:
                if not is_passing(error) or time.monotonic() + _PAUSE_S >= deadline:
                    raise as_ours(error) from None
                time.sleep(_PAUSE_S)
            else:
                self._all.add(connection)
                return connection

    def _prepare(self, connection: ServerConnection) -> None:
        """Settings of a connection, by a statement: a pooling proxy takes no options."""
        waits = "" if self.durability == "sync" else ", set_config('synchronous_commit', 'off', false)"
        connection.execute(
            "select set_config('search_path', %s, false),"
            f" set_config('idle_in_transaction_session_timeout', '60s', false){waits}",
            (self._address.schema,),
        )

    def take(self, deadline: float | None = None) -> ServerConnection:
        """A connection that nobody else uses, the one that was given back last."""
        try:
            return self._free.pop()  # a list's own methods are safe among threads
        except IndexError:
            return self.connect(time.monotonic() + self._timeout_s if deadline is None else deadline)

    def give_back(self, connection: ServerConnection) -> None:
        """It is free again; one that is broken is dropped."""
        if self.is_closed or not connection.is_free:
            connection.close()
            return
        self._free.append(connection)
        if self.is_closed:
            self.close()

    @contextmanager
    def one(self) -> Iterator[ServerConnection]:
        """A connection for a block, which uses psycopg's own methods."""
        connection = self.take()
        try:
            connection.settle()
            yield connection
        finally:
            self.give_back(connection)

    def ask(self, *asked: Ask) -> list[list[Row]]:
        """What some statements show that change nothing; asked again if a connection is lost."""

        def ask(connection: ServerConnection) -> list[list[Row]]:
            found = connection.ask(*asked)
            self.give_back(connection)
            return found

        return self.held(ask)

    def read(self, ask: Callable[[ServerConnection], T]) -> T:
        """What `ask` gets of a connection by psycopg's own methods; asked again if that is lost."""

        def settled(connection: ServerConnection) -> T:
            connection.settle()
            found = ask(connection)
            self.give_back(connection)
            return found

        return self.held(settled)

    def held(self, ask: Callable[[ServerConnection], T]) -> T:
        """What `ask` gets of a connection, which it keeps; asked again if that is lost."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            connection = self.take(deadline)
            try:
                return ask(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                is_over = time.monotonic() >= deadline or not is_lost(error, connection)
                connection.close()
                if is_over:
                    raise as_ours(error) from None
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Close all, and those that come back later. What is under way ends, as if a connection was lost."""
        self.is_closed = True
        every = [*self._all]  # before those that are free go
        self._free.clear()
        for connection in every:
            connection.close()

    def after_fork_in_child(self) -> None:
        """The parent's are not touched: psycopg ends none that another process has made."""
        self._free = []
        self._all = weakref.WeakSet()


def is_lost(error: psycopg.Error, connection: ServerConnection) -> bool:
    """Whether an error says that the connection is gone, or the server is not to be written to now."""
    return connection.closed or connection.broken or is_passing(error)


def is_passing(error: psycopg.Error) -> bool:
    """Whether it may be better in a moment: no server, too many connections, one that only reads."""
    state = error.sqlstate
    if state is None:
        said = str(error)
        return not any(part in said for part in _LASTING)
    return state[:2] in ("08", "53", "57") or state == "25006"


def as_ours(error: psycopg.Error) -> InmemError:
    """An error of the server's as one of ours, without what the connection string says."""
    said = str(error).strip().splitlines()
    text = said[-1][:300] if said else type(error).__name__
    state = error.sqlstate or ""
    if state[:2] == "28" or any(part in text for part in _LASTING):
        return PermissionDeniedError(
            f"the server refused the connection: {text}", hint="Check user, password and database."
        )
    if state == "42501":
        return PermissionDeniedError(
            f"the server's user may not do this: {text}", hint="Who may create tables runs: inmem init -d URL"
        )
    if state[:2] == "3D":
        return InvalidInputError(f"the server has no such database: {text}", argument="path")
    if state == "53100":
        return StoreFullError(f"the server's disk is full: {text}")
    return WriterUnavailableError(f"no server could be reached: {text}", hint="Is PostgreSQL running?")
