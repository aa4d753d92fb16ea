"""Connections to the server: one for each call that is under way, kept for the next one.

Invariant: nothing is ever cancelled. A call whose deadline passes, or that is
interrupted, ends its connection; a commit that was under way there is made or
not, and the row of its session tells. A cancelled one could be answered as
made while no standby has it.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg
from psycopg import waiting

from inmem.engines.postgres.address import Address
from inmem.errors import (
    ClosedError,
    ConfigMismatchError,
    CorruptionError,
    DatabaseGoneError,
    InmemError,
    InvalidInputError,
    LimitError,
    PermissionDeniedError,
    StoreFullError,
    WriterUnavailableError,
)

T = TypeVar("T")

CLOCK: Final = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
_PAUSE_S: Final = 0.05  # between two attempts to connect
_ONE_OF_MANY_S: Final = 2  # for each of several hosts to answer, of which one may stand still
_IDLE: Final = "5s"  # in a transaction: who stops in the middle of a commit holds others up for so long
# What libpq says without a state of SQL, where trying again is of no use.
_LASTING: Final = ("authentication failed", "no pg_hba.conf entry", "does not exist", "no password supplied")


class ServerConnection(psycopg.Connection[Any]):
    """A connection that no call waits on for longer than until its deadline."""

    deadline = math.inf  # of the call that uses it, by `time.monotonic`
    is_in_doubt = False  # a standby was not waited for

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """What psycopg waits with. An interrupt or a deadline that passes ends the connection."""
        left_s = self.deadline - time.monotonic()
        if left_s < math.inf:
            timeout = max(0.0, left_s if timeout is None else min(left_s, timeout))
        try:
            found = waiting.wait(gen, self.pgconn.socket, interval, timeout)
        except psycopg.Error as error:
            if error.sqlstate is None and time.monotonic() >= self.deadline:
                self.close()
                raise psycopg.OperationalError("the server did not answer in time") from None
            raise
        except BaseException:
            self.close()
            raise
        if self.is_in_doubt:
            self.close()
            raise psycopg.OperationalError("the server does not wait for its standby")
        return found

    def noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Something else than an answer has come; its text may be in any language."""
        if notice.source_function == "SyncRepWaitForLSN":
            self.is_in_doubt = True


class Connections:
    """Where connections come from."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        hosts = str(psycopg.conninfo.conninfo_to_dict(address.conninfo).get("host", ""))
        self._one_host_s = _ONE_OF_MANY_S if "," in hosts else round(timeout_s)
        self.durability = "sync"  # of the store: what is asked of the server for each commit
        self._free: list[ServerConnection] = []
        self._all: weakref.WeakSet[ServerConnection] = weakref.WeakSet()
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

    def connect(self, deadline: float) -> ServerConnection:
        """A new connection.

        Raises:
            WriterUnavailableError: no server could be reached before the deadline.
            PermissionDeniedError: it refused the user.
        """
        while True:
            if self.is_closed:
                raise ClosedError("the database is closed")
            left_s = min(self._timeout_s, deadline - time.monotonic())
            connection = None
            try:
                connection = ServerConnection.connect(
                    self._address.conninfo, autocommit=True, prepare_threshold=2,
                    connect_timeout=max(1, min(round(left_s), self._one_host_s)),
                )
                connection.deadline = max(deadline, time.monotonic() + 1.0)
                connection.add_notice_handler(connection.noticed)
                self._prepare(connection)
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if not isinstance(error, psycopg.Error):
                    raise
                if not is_passing(error) or time.monotonic() + _PAUSE_S >= deadline:
                    raise as_ours(error) from None
                time.sleep(_PAUSE_S)
                with self._lock:
                    if self._free:  # where the server takes no more, one may have come back
                        return self._free.pop()
            else:
                self._all.add(connection)
                return connection

    def _prepare(self, connection: ServerConnection) -> None:
        """Settings of a connection: so that what is set for a role cannot end or weaken a commit.

        Behind a proxy that gives each transaction another connection of the server's, which has
        another process id than we were told, nothing can be set: it would be set for others.
        """
        wanted = {
            "search_path": self._address.schema,
            "idle_in_transaction_session_timeout": _IDLE,
            "statement_timeout": "0",
            "lock_timeout": "0",
            "default_transaction_isolation": "read committed",
        }
        if connection.info.server_version >= 170000:
            wanted["transaction_timeout"] = "0"
        if self.durability != "sync":
            wanted["synchronous_commit"] = "off"
        pid = connection.info.backend_pid
        names, values = [*wanted], [*wanted.values()]
        found = connection.execute(
            "select pg_backend_pid() = %s, current_setting('search_path'),"
            " current_setting('default_transaction_isolation'), current_setting('synchronous_commit')",
            (pid,),
        ).fetchone()
        assert found is not None
        is_direct, path, isolation, waits = found
        is_weak = self.durability == "sync" and waits == "off"
        if is_weak:
            names, values = [*names, "synchronous_commit"], [*values, "on"]
        if is_direct:
            connection.execute(
                "select set_config(name, value, false) from unnest(%s::text[], %s::text[]) _(name, value)",
                (names, values),
            )
            return
        connection.prepare_threshold = None
        for name, value, right in (
            ("search_path", path.split(",")[0].strip(' "'), self._address.schema),
            ("default_transaction_isolation", isolation, "read committed"),
            ("synchronous_commit", waits, "on" if is_weak else waits),
        ):
            if value != right:
                raise ConfigMismatchError(
                    f"there is a pooling proxy before the server, and {name} is {value!r}, not {right!r}",
                    setting=name, stored=value, requested=right,
                    hint=f"alter role ... set {name} = '{right}', and let the proxy connect anew.",
                )

    def take(self, deadline: float | None = None) -> ServerConnection:
        """A connection that nobody else uses."""
        deadline = self.deadline() if deadline is None else deadline
        with self._lock:
            connection = self._free.pop() if self._free else None
        if connection is None:
            connection = self.connect(deadline)
        connection.deadline = deadline
        return connection

    def deadline(self) -> float:
        """Of a call that begins now."""
        return time.monotonic() + self._timeout_s

    def give_back(self, connection: ServerConnection) -> None:
        """It is free again; one that is broken is dropped."""
        status = connection.info.transaction_status
        if status != psycopg.pq.TransactionStatus.IDLE or self.is_closed:
            connection.close()
            return
        with self._lock:
            self._free.append(connection)

    @contextmanager
    def one(self) -> Iterator[ServerConnection]:
        """A connection for a block."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def read(self, ask: Callable[[ServerConnection], T]) -> T:
        """What `ask` gets of a connection; asked again if that is lost, as it changes nothing."""
        connection, found = self.held(ask)
        self.give_back(connection)
        return found

    def held(self, ask: Callable[[ServerConnection], T]) -> tuple[ServerConnection, T]:
        """The same, and the connection that it was asked of, which the caller has from then on."""
        deadline = self.deadline()
        while True:
            connection = self.take(deadline)
            try:
                return connection, ask(connection)
            except psycopg.Error as error:
                is_over = time.monotonic() >= deadline or not is_lost(error, connection)
                connection.close()
                if is_over:
                    raise as_ours(error) from None
            except BaseException:
                connection.close()
                raise
            time.sleep(_PAUSE_S / 10)

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


def is_lost(error: psycopg.Error, connection: ServerConnection) -> bool:
    """Whether an error says that the connection is gone, or the server is not to be written to now."""
    return is_gone(connection) or is_passing(error)


def is_gone(connection: ServerConnection) -> bool:
    """Whether it is lost: else the server has refused a statement, and what that was part of was not made."""
    return connection.closed or connection.broken


def is_passing(error: psycopg.Error) -> bool:
    """Whether it may be better in a moment: no server, no connection left, one that only reads, a timeout."""
    state = error.sqlstate
    if state is None:
        said = str(error)
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not any(
            part in said for part in _LASTING
        )
    return state[:2] in ("08", "57") or state in ("25006", "53200", "53300", "55P03", "25P03", "25P04")


# Errors of the server's as ours, by the beginning of their state; a longer one is looked for first.
_OURS: Final[dict[str, Callable[[str], InmemError]]] = {
    "28": lambda text: PermissionDeniedError(
        f"the server refused the connection: {text}", hint="Check user, password and database."
    ),
    "42501": lambda text: PermissionDeniedError(
        f"the server's user may not do this: {text}", hint="Who may create tables runs: inmem init -d URL"
    ),
    "3D": lambda text: InvalidInputError(f"the server has no such database: {text}", argument="path"),
    "3F": lambda text: DatabaseGoneError(f"the store's tables are not there any more: {text}"),
    "42P01": lambda text: DatabaseGoneError(f"the store's tables are not there any more: {text}"),
    "42703": lambda text: CorruptionError(f"the store's tables are not as they were made: {text}"),
    "42804": lambda text: CorruptionError(f"the store's tables are not as they were made: {text}"),
    "53100": lambda text: StoreFullError(
        f"the server's disk is full: {text}", hint="Make room on the server."
    ),
    "54": lambda text: LimitError(f"more than the server takes: {text}"),
    "XX001": lambda text: CorruptionError(f"the server found damaged data: {text}"),
    "XX002": lambda text: CorruptionError(f"the server found a damaged index: {text}"),
}


def as_ours(error: psycopg.Error) -> InmemError:
    """An error of the server's as one of ours, without what the connection string says."""
    said = str(error).strip().splitlines()
    text = said[0][:300] if error.sqlstate else said[-1][:300] if said else type(error).__name__
    state = error.sqlstate or ("28" if any(part in text for part in _LASTING) else "")
    for part in (state, state[:2]):
        if part in _OURS:
            return _OURS[part](text)
    if is_passing(error):
        return WriterUnavailableError(f"the server cannot be used: {text}", hint="Is PostgreSQL running?")
    return InmemError(f"the server refused a statement: {text}")
