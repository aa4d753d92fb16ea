"""Connections to the server: one for each call that is under way, kept for the next one."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg

from inmem.errors import ClosedError, InmemError, PermissionDeniedError, WriterUnavailableError

T = TypeVar("T")

CLOCK: Final = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
_PAUSE_S: Final = 0.05  # between two attempts to connect


class Connections:
    """Where connections come from."""

    def __init__(self, conninfo: str, schema: str, timeout_s: float) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._timeout_s = timeout_s
        self._free: list[psycopg.Connection[Any]] = []
        self._all: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.is_closed = False
        self.ahead_us = 0  # of the server's clock, as it was seen last

    def __repr__(self) -> str:
        return f"Connections({self._schema!r})"  # never what is in the connection string

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
                connection = psycopg.connect(
                    self._conninfo, autocommit=True, prepare_threshold=2,
                    connect_timeout=max(1, round(min(self._timeout_s, deadline - time.monotonic()))),
                    options=f"-c search_path={self._schema} -c idle_in_transaction_session_timeout=60000",
                )
            except psycopg.OperationalError as error:
                refused = error.sqlstate is not None and error.sqlstate[:2] in ("28", "3D")
                if refused or time.monotonic() + _PAUSE_S >= deadline:
                    raise _as_ours(error, refused) from None
                time.sleep(_PAUSE_S)
            else:
                self._all.add(connection)
                return connection

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
        """What `ask` gets of a connection. It changes nothing, so it is done again if the connection is lost."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            connection = self.take(deadline)
            try:
                return ask(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if time.monotonic() >= deadline or not is_lost(error, connection):
                    raise _as_ours(error, False) from None
                connection.close()
            finally:
                self.give_back(connection)

    def close(self) -> None:
        """Close all, and those that come back later. What is under way in one ends, as if its connection was lost."""
        self.is_closed = True
        every = [*self._all]  # before those that are free go
        with self._lock:
            self._free = []
        for connection in every:
            connection.close()


def is_lost(error: psycopg.Error, connection: psycopg.Connection[Any]) -> bool:
    """Whether an error says that the connection is gone, or the server is not to be written to now."""
    state = error.sqlstate
    return connection.closed or connection.broken or state is None or state[:2] in ("08", "57") or state == "25006"


def _as_ours(error: psycopg.Error, refused: bool) -> InmemError:
    """An error of the server's as one of ours, without what the connection string says."""
    said = str(error).strip().splitlines()
    text = said[-1][:300] if said else type(error).__name__
    if refused:
        return PermissionDeniedError(
            f"the server refused the connection: {text}", hint="Check user, password and database."
        )
    return WriterUnavailableError(f"no server could be reached: {text}", hint="Is PostgreSQL running?")
