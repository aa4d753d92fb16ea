"""Connections to the server: one for each call that is under way, kept for the next one."""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import psycopg

from inmem.config import Settings
from inmem.engines.postgres.address import Address
from inmem.engines.postgres.green import Connection, in_thread, pause
from inmem.engines.postgres.hints import Hints
from inmem.engines.postgres.turns import ConnectionTurns
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
AT_ONCE: Final = 16  # connections in use, by the threads of a process, and by the coroutines of each loop
KEPT: Final = 2  # that are free, however long
IDLE_S: Final = 10.0  # for which others are kept
_BEST_US: Final = 60_000_000  # for how long what the server's clock said is better than what it says later
_STEP_US: Final = 500_000  # by which it was set back, if it is behind as much
_PAUSE_S: Final = 0.05  # between two attempts to connect
# What libpq says without a state of SQL, where trying again is of no use.
_LASTING: Final = ("authentication failed", "no pg_hba.conf entry", "does not exist", "no password supplied")


class Connections:
    """Where connections come from."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self.durability = "sync"  # of the store: what is asked of the server for each commit
        self._free: deque[Connection] = deque()  # the one that was used last is taken first
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._turns = self._all_free()
        self.is_closed = False
        self.session_ttl_s = Settings().session_ttl_s
        self.on_connect: Callable[[], None] = lambda: None
        self.hints = Hints()
        self.ahead_us = 0  # of the server's clock
        self._best_at = -_BEST_US - 1

    def __repr__(self) -> str:
        return f"Connections({self._address.shown!r})"

    def now_us(self) -> int:
        """The server's clock, as far as it is known here: it goes on as this machine's own does."""
        return time.monotonic_ns() // 1000 + self.ahead_us

    def saw(self, clock_us: int) -> None:
        """The server has said what time it is, a moment ago: of several such times the latest is best."""
        now_us = time.monotonic_ns() // 1000
        ahead_us = clock_us - now_us
        is_old = now_us - self._best_at > _BEST_US or ahead_us < self.ahead_us - _STEP_US
        if ahead_us > self.ahead_us or is_old:
            self.ahead_us, self._best_at = ahead_us, now_us

    def _all_free(self) -> ConnectionTurns:
        return ConnectionTurns(self._address.connections or AT_ONCE)

    def connect(self, deadline: float) -> Connection:
        """A new connection.

        Raises:
            WriterUnavailableError: no server could be reached before the deadline.
            PermissionDeniedError: it refused the user.
        """
        while True:
            if self.is_closed:
                raise ClosedError("the database is closed")
            try:
                connection = in_thread(partial(self._connect, deadline), Connection.close)
            except psycopg.Error as error:
                if not is_passing(error) or time.monotonic() + _PAUSE_S >= deadline:
                    raise as_ours(error) from None
                pause(_PAUSE_S)
            else:
                self._all.add(connection)
                self.on_connect()
                return connection

    def _connect(self, deadline: float) -> Connection:
        connection = Connection.connect(
            self._address.conninfo, autocommit=True, prepare_threshold=2,
            connect_timeout=max(1, round(min(self._timeout_s, deadline - time.monotonic()))),
        )
        self._prepare(connection)
        return connection

    def _prepare(self, connection: Connection) -> None:
        """Settings of a connection, by a statement: a pooling proxy takes no options."""
        waits = "" if self.durability == "sync" else ", set_config('synchronous_commit', 'off', false)"
        connection.execute(
            "select set_config('search_path', %s, false),"
            f" set_config('idle_in_transaction_session_timeout', '60s', false){waits}",
            (self._address.schema,),
        )

    def take(self, deadline: float | None = None) -> Connection:
        """A connection that nobody else uses. Without a deadline it is waited for until others are done."""
        turn = self._turns.take(math.inf if deadline is None else deadline)
        deadline = time.monotonic() + self._timeout_s if deadline is None else deadline
        try:
            try:
                connection = self._free.pop()
            except IndexError:
                connection = self.connect(deadline)
        except BaseException:
            self._turns.give_back(turn)
            raise
        connection.turn = turn
        return connection

    def give_back(self, connection: Connection) -> None:
        """It is free again; one that is broken is dropped."""
        turn, connection.turn = connection.turn, None
        if (
            connection.closed or self.is_closed or not _is_idle(connection)
            or len(self._free) >= self._turns.limit  # some went on without a turn
        ):
            connection.close()
        else:
            connection.free_since = time.monotonic()
            self._free.append(connection)
            if self.is_closed:
                connection.close()
        if turn is not None:
            self._turns.give_back(turn)

    def close_idle(self, idle_s: float = IDLE_S) -> None:
        """Close those that nobody has used for a while, but for a few."""
        while len(self._free) > KEPT:
            try:
                oldest = self._free.popleft()
            except IndexError:
                return
            if time.monotonic() - oldest.free_since < idle_s:
                self._free.appendleft(oldest)
                return
            oldest.close()

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """A connection for a block."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def read(self, ask: Callable[[Connection], T]) -> T:
        """What `ask` gets of a connection; asked again if that is lost, as it changes nothing."""
        deadline = None
        while True:
            connection = self.take(deadline)
            deadline = deadline or time.monotonic() + self._timeout_s
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
        self._free.clear()
        for connection in every:
            connection.close()

    def after_fork_in_child(self) -> None:
        """The parent's are not touched: psycopg ends none that another process has made."""
        self._free = deque()
        self._all = weakref.WeakSet()
        self._turns = self._all_free()


def _is_idle(connection: Connection) -> bool:
    return connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def is_lost(error: psycopg.Error, connection: Connection) -> bool:
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
