"""Connections to the server: one for each call that is under way, kept for the next one."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import psycopg
import psycopg.conninfo

from inmem.engines.postgres.address import Address
from inmem.engines.postgres.failures import as_ours, is_lost, is_passing
from inmem.engines.postgres.patience import PatientConnection
from inmem.engines.postgres.settings import prepare
from inmem.errors import ClosedError

T = TypeVar("T")

CLOCK: Final = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
_PAUSE_S: Final = 0.05  # between two attempts to connect
_PATIENCE_S: Final = 5.0  # with one of several hosts
_ONE_OF_MANY_S: Final = 2  # for each of several hosts to answer, of which one may stand still


class Connections:
    """Where connections come from."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        hosts = str(psycopg.conninfo.conninfo_to_dict(address.conninfo).get("host", ""))
        self._one_host_s = _ONE_OF_MANY_S if "," in hosts else round(timeout_s)
        self._patience_s = _PATIENCE_S if "," in hosts else math.inf
        self.durability = "sync"  # of the store: what is asked of the server for each commit
        self._free: list[PatientConnection] = []
        self._all: weakref.WeakSet[PatientConnection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.is_closed = False
        self.is_scarce = False  # the server did not take one more: nobody keeps one that he does not use
        self.ahead_us = 0  # of the server's clock, as it was seen last

    def __repr__(self) -> str:
        return f"Connections({self._address.shown!r})"

    def now_us(self) -> int:
        """The server's clock, as far as it is known here."""
        return time.time_ns() // 1000 + self.ahead_us

    def saw(self, clock_us: int) -> None:
        """The server has said what time it is, a moment ago."""
        self.ahead_us = clock_us - time.time_ns() // 1000

    def connect(self, deadline: float) -> PatientConnection:
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
                connection = PatientConnection.connect(
                    self._address.conninfo, autocommit=True, prepare_threshold=2,
                    connect_timeout=max(1, min(round(left_s), self._one_host_s)),
                )
                connection.patience_s = self._patience_s
                connection.deadline = max(deadline, time.monotonic() + 1.0)
                connection.add_notice_handler(connection.noticed)
                prepare(connection, self._address.schema, self.durability)
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if not isinstance(error, psycopg.Error):
                    raise
                if not is_passing(error) or time.monotonic() + _PAUSE_S >= deadline:
                    raise as_ours(error) from None
                self.is_scarce |= "too many" in str(error)
                time.sleep(_PAUSE_S)
                with self._lock:
                    if self._free:
                        return self._free.pop()
            else:
                self._all.add(connection)
                return connection

    def take(self, deadline: float | None = None) -> PatientConnection:
        """A connection that nobody else uses."""
        deadline = self.deadline() if deadline is None else deadline
        with self._lock:
            connection = self._free.pop() if self._free else None
        if connection is None:
            connection = self.connect(deadline)
        connection.deadline = deadline
        return connection

    def lost(self, connection: PatientConnection) -> None:
        """One is of no use any more: so may be those that are free, each of which would be found out anew."""
        connection.close()
        with self._lock:
            free, self._free = self._free, []
        for each in free:
            each.close()

    def deadline(self) -> float:
        """Of a call that begins now."""
        return time.monotonic() + self._timeout_s

    def give_back(self, connection: PatientConnection) -> None:
        """It is free again; one that is broken is dropped."""
        status = connection.info.transaction_status
        if status != psycopg.pq.TransactionStatus.IDLE or self.is_closed:
            connection.close()
            return
        with self._lock:
            self._free.append(connection)

    @contextmanager
    def one(self) -> Iterator[PatientConnection]:
        """A connection for a block."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def read(self, ask: Callable[[PatientConnection], T]) -> T:
        """What `ask` gets of a connection; asked again if that is lost, as it changes nothing."""
        connection, found = self.held(ask)
        self.give_back(connection)
        return found

    def held(self, ask: Callable[[PatientConnection], T]) -> tuple[PatientConnection, T]:
        """The same, and the connection that it was asked of, which the caller has from then on."""
        deadline = self.deadline()
        while True:
            connection = self.take(deadline)
            try:
                return connection, ask(connection)
            except psycopg.Error as error:
                is_over = time.monotonic() >= deadline or not is_lost(error, connection)
                self.lost(connection)
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
