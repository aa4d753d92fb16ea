"""Connections to the server: one for each call that is under way, kept for the next one."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg

from inmem.engines.postgres.address import Address
from inmem.errors import (
    ClosedError,
    InmemError,
    InvalidInputError,
    PermissionDeniedError,
    StoreFullError,
    WriterUnavailableError,
)

T = TypeVar("T")

CLOCK: Final = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
_PAUSE_S: Final = 0.05  # between two attempts to connect
# What libpq says without a state of SQL, where trying again is of no use.
_LASTING: Final = ("authentication failed", "no pg_hba.conf entry", "does not exist", "no password supplied")


class ServerConnection(psycopg.Connection[Any]):
    """A connection that is closed when nobody has it any more."""

    def __del__(self, *_: Any) -> None:
        """psycopg warns here. An interrupt between two lines may drop one: libpq ends it with its object."""


class Connections:
    """Where connections come from."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self.durability = "sync"  # of the store: what is asked of the server for each commit
        self._free: list[psycopg.Connection[Any]] = []
        self._all: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.is_closed = False
        self.ahead_us = 0  # of the server's clock, as it was seen last

    def __repr__(self) -> str:
        return f"Connections({self._address.shown!r})"

    def now_us(self) -> int:
        """The server's clock, as far as it is known here."""
        return time.time_ns() // 1000 + self.ahead_us

    def saw(self, clock_us: int) -> None:
        """The server has said what time it is, a moment ago."""
        self.ahead_us = clock_us - time.time_ns() // 1000

    def connect(self, deadline: float) -> psycopg.Connection[Any]:
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
                    fallback_application_name=self._address.program(),
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

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        """Settings of a connection, by a statement: a pooling proxy takes no options."""
        waits = "" if self.durability == "sync" else ", set_config('synchronous_commit', 'off', false)"
        connection.execute(
            "select set_config('search_path', %s, false),"
            f" set_config('idle_in_transaction_session_timeout', '60s', false){waits}",
            (self._address.schema,),
        )

    def take(self, deadline: float | None = None) -> psycopg.Connection[Any]:
        """A connection that nobody else uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return self.connect(time.monotonic() + self._timeout_s if deadline is None else deadline)

    def give_back(self, connection: psycopg.Connection[Any]) -> None:
        """It is free again; one that is broken is dropped."""
        status = connection.info.transaction_status
        if status != psycopg.pq.TransactionStatus.IDLE or self.is_closed:
            connection.close()
            return
        with self._lock:
            self._free.append(connection)

    @contextmanager
    def one(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection for a block."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def read(self, ask: Callable[[psycopg.Connection[Any]], T]) -> T:
        """What `ask` gets of a connection; asked again if that is lost, as it changes nothing."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            connection = self.take(deadline)
            try:
                return ask(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if time.monotonic() >= deadline or not is_lost(error, connection):
                    raise as_ours(error) from None
                connection.close()
            finally:
                self.give_back(connection)

    def close(self) -> None:
        """Close all, and those that come back later. What is under way ends, as if a connection was lost."""
        self.is_closed = True
        every = [*self._all]  # before those that are free go
        with self._lock:
            self._free = []
        for connection in every:
            connection.close()

    def after_fork_in_child(self) -> None:
        """The parent's are not touched: psycopg ends none that another process has made."""
        self._lock = threading.Lock()
        self._free = []
        self._all = weakref.WeakSet()


def is_lost(error: psycopg.Error, connection: psycopg.Connection[Any]) -> bool:
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
