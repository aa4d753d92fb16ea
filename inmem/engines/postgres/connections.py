"""Connections to the server: one for each call that is under way, kept for the next one."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import psycopg
import psycopg.conninfo

from inmem.config import Settings
from inmem.engines.postgres.address import Address
from inmem.engines.postgres.asking import Ask, AskedConnection, Row
from inmem.engines.postgres.failures import as_ours, is_lost, is_passing
from inmem.engines.postgres.green import in_thread, pause
from inmem.engines.postgres.hints import Hints
from inmem.engines.postgres.settings import prepare
from inmem.engines.postgres.turns import ConnectionTurns
from inmem.errors import ClosedError

T = TypeVar("T")

CLOCK: Final = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
AT_ONCE: Final = 16  # connections in use, by the threads of a process, and by the coroutines of each loop
KEPT: Final = 2  # that are free, however long
IDLE_S: Final = 10.0  # for which others are kept
_FRESH_US: Final = 10_000_000
_BEST_US: Final = 60_000_000  # for how long what the server's clock said is better than what it says later
_STEP_US: Final = 500_000  # by which it was set back, if it is behind as much
_PAUSE_S: Final = 0.05  # between two attempts to connect
_PATIENCE_S: Final = 5.0  # with one of several hosts
_ONE_OF_MANY_S: Final = 2  # for each of several hosts to answer, of which one may stand still


ServerConnection = AskedConnection
_log: Final = logging.getLogger("inmem")


class Connections:
    """Where connections come from."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        hosts = str(psycopg.conninfo.conninfo_to_dict(address.conninfo).get("host", ""))
        self._one_host_s = _ONE_OF_MANY_S if "," in hosts else round(timeout_s)
        self._patience_s = _PATIENCE_S if "," in hosts else math.inf
        self.durability = "sync"  # of the store: what is asked of the server for each commit
        self.database_id = b""
        self._has_told = False
        self._free: deque[ServerConnection] = deque()  # the one that was used last is taken first
        self._all: weakref.WeakSet[ServerConnection] = weakref.WeakSet()
        self._turns = self._all_free()
        self.is_closed = False
        self.session_ttl_s = Settings().session_ttl_s
        self.on_connect: Callable[[], None] = lambda: None
        self.hints = Hints()
        self._seen_at = 0
        self.ahead_us = 0  # of the server's clock
        self._best_at = -_BEST_US - 1

    def __repr__(self) -> str:
        return f"Connections({self._address.shown!r})"

    def now_us(self) -> int:
        """The server's clock, as far as it is known here: it goes on as this machine's own does."""
        return time.monotonic_ns() // 1000 + self.ahead_us

    def saw(self, clock_us: int) -> None:
        """The server has said what time it is, a moment ago: of several such times the latest is best."""
        self._seen_at = now_us = time.monotonic_ns() // 1000
        ahead_us = clock_us - now_us
        is_old = now_us - self._best_at > _BEST_US or ahead_us < self.ahead_us - _STEP_US
        if ahead_us > self.ahead_us or is_old:
            self.ahead_us, self._best_at = ahead_us, now_us

    def is_fresh(self) -> bool:
        """Whether the server's clock was seen so lately that a commit may take its time from here."""
        return time.monotonic_ns() // 1000 - self._seen_at < _FRESH_US

    def tell_once(self, text: str) -> None:
        """Log what concerns all of a store's users, the first time that it is found out here."""
        if not self._has_told:
            self._has_told = True
            _log.error("%s: %s", self._address.shown, text)

    def _all_free(self) -> ConnectionTurns:
        return ConnectionTurns(self._address.connections or AT_ONCE)

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
                connection = in_thread(partial(self._connect, deadline), ServerConnection.close)
            except psycopg.Error as error:
                if not is_passing(error) or time.monotonic() + _PAUSE_S >= deadline:
                    raise as_ours(error) from None
                pause(_PAUSE_S)
                if self._free:  # where the server takes no more, one may have come back
                    return self._free.pop()
            else:
                self._all.add(connection)
                self.on_connect()
                return connection

    def _connect(self, deadline: float) -> ServerConnection:
        left_s = min(self._timeout_s, deadline - time.monotonic())
        connection = ServerConnection.connect(
            self._address.conninfo, autocommit=True,
            prepare_threshold=None,  # psycopg drops all that was prepared at each rollback, ours too
            fallback_application_name=self._address.program(),
            connect_timeout=max(1, min(round(left_s), self._one_host_s)),
        )
        try:
            connection.patience_s = self._patience_s
            connection.deadline = max(deadline, time.monotonic() + 1.0)
            connection.add_notice_handler(connection.noticed)
            prepare(connection, self._address.schema, self.durability)
        except BaseException:
            connection.close()
            raise
        return connection

    def take(self, deadline: float | None = None) -> ServerConnection:
        """A connection that nobody else uses. Without a deadline it is waited for until others are done."""
        turn = self._turns.take(math.inf if deadline is None else deadline)
        deadline = self.deadline() if deadline is None else deadline
        try:
            try:
                connection = self._free.pop()
            except IndexError:
                connection = self.connect(deadline)
        except BaseException:
            self._turns.give_back(turn)
            raise
        connection.turn = turn
        connection.deadline = deadline
        return connection

    def lost(self, connection: ServerConnection) -> None:
        """One is of no use any more: so may be those that are free, each of which would be found out anew."""
        connection.close()
        while self._free:
            try:
                self._free.pop().close()
            except IndexError:
                return

    def deadline(self) -> float:
        """Of a call that begins now."""
        return time.monotonic() + self._timeout_s

    def give_back(self, connection: ServerConnection) -> None:
        """It is free again; one that is broken is dropped."""
        turn, connection.turn = connection.turn, None
        if (
            connection.closed or self.is_closed or not connection.is_free
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
        deadline = None
        while True:
            connection = self.take(deadline)
            deadline = deadline or self.deadline()
            try:
                return ask(connection)
            except psycopg.Error as error:
                is_over = time.monotonic() >= deadline or not is_lost(error, connection)
                self.lost(connection)
                self.give_back(connection)
                if is_over:
                    raise as_ours(error) from None
            except BaseException:
                self.drop(connection)
                raise
            pause(_PAUSE_S / 10)

    def drop(self, connection: ServerConnection) -> None:
        """It is in an unknown state: nobody uses it again."""
        connection.close()
        self.give_back(connection)

    def close(self) -> None:
        """Close those that are free, and others when they come back. What is under way there ends at once."""
        self.is_closed = True
        every = [*self._all]  # before those that are free go
        while self._free:
            try:
                self._free.pop().close()
            except IndexError:
                break
        for connection in every:
            connection.cut()

    def after_fork_in_child(self) -> None:
        """The parent's are not touched: psycopg ends none that another process has made."""
        self._free = deque()
        self._all = weakref.WeakSet()
        self._turns = self._all_free()
