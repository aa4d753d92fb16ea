"""What a process shares of one store on a server."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import psycopg

from inmem.engines.postgres import schema
from inmem.engines.postgres.address import Address
from inmem.engines.postgres.commits import ServerSessions
from inmem.engines.postgres.connections import Connections
from inmem.engines.postgres.failures import as_ours
from inmem.engines.postgres.moment import ServerMoment
from inmem.engines.postgres.polling import Poller
from inmem.engines.postgres.tidying import Tidying
from inmem.errors import (
    BusyError,
    ConfigMismatchError,
    DatabaseGoneError,
    InmemError,
    InvalidInputError,
)
from inmem.host.interrupts import Exclusive, Living, let_through
from inmem.primitives.events.rules import CHAIN_IDS

MAX_AGE_S: Final = 2.0  # of a snapshot: an old one keeps the server from cleaning up after hot rows
_STRENGTH: Final = ("memory", "buffered", "sync")  # durabilities, the weakest first
_CHAIN_NAMES: Final = {number: name for name, number in CHAIN_IDS.items()}


class ServerStore:
    """What this process shares of one store."""

    def __init__(
        self, address: Address, timeout_s: float, *, create: bool, known: bytes | None,
        asked: Mapping[str, Any],
    ) -> None:
        self.handles = 0
        self.address = address
        self.incarnation = 0  # how often the process was forked
        self.connections = Connections(address, timeout_s)
        try:
            with self.connections.one() as connection:
                found = _found_or_made(connection, address, create, known, asked)
        except BaseException as error:
            self.connections.close()
            if isinstance(error, psycopg.Error):
                raise as_ours(error) from None
            raise
        self.database_id, self.chain, self.durability = found
        self.connections.durability = self.durability
        self.connections.database_id = self.database_id
        self.sessions = ServerSessions(self.connections, self.chain)
        self.listens = True  # for hints
        self.tidying = Tidying(self)
        self.connections.on_connect = self.tidying.start
        self.tidying.start()
        self.poller = Poller(self)
        moment = self.moment()
        _ = moment.now_us  # which tells the server's time
        moment.close()
        _alive.add(self)

    @classmethod
    def shared(cls, address: Address, timeout_s: float, **arguments: Any) -> ServerStore:
        """That of this process, for one more handle; see `let_go`. `arguments` are those of a new one.

        Raises:
            DatabaseGoneError: the known store is not there.
            BusyError: called by a signal handler or finalizer while its thread opens another one.
        """
        try:
            call = partial(cls._shared, address, timeout_s, **arguments)
            return _opening.alone(time.monotonic() + timeout_s, call)
        finally:
            _settle()

    @classmethod
    def _shared(cls, address: Address, timeout_s: float, **arguments: Any) -> ServerStore:
        place = address.conninfo, address.schema
        store = _stores.get(place)
        if store is None or store.connections.is_closed:
            store = _stores[place] = cls(address, timeout_s, **arguments)
        elif arguments["known"] not in (None, store.database_id):
            raise _gone(address)
        store.handles += 1
        return store

    @property
    def chain_name(self) -> str:
        """The hash of new event logs."""
        return _CHAIN_NAMES[self.chain]

    def let_go(self) -> None:
        """A handle has it no more; the last one closes it. It waits for nobody: a finalizer may call this.

        Where a store is being opened, whoever does that closes it a moment later.
        """
        _leaving.append(self)
        _settle()

    def moment(self, *, notes: bool = False) -> ServerMoment:
        """A snapshot of now; for who commits on what he reads in it, with `notes`."""
        return ServerMoment(self.connections, MAX_AGE_S, notes=notes)

    def close(self) -> None:
        """Close all connections that are free."""
        self.sessions.close()
        self.connections.close()
        self.poller.end()
        self.tidying.end()

    def after_fork_in_child(self) -> None:
        """The parent's connections and sessions are its own."""
        self.incarnation += 1
        self.connections.after_fork_in_child()
        self.sessions.after_fork_in_child()
        self.poller.after_fork_in_child()
        self.tidying.after_fork_in_child()


class _Opening(Exclusive):
    def what(self) -> str:
        """For messages."""
        return "opening or closing a store on a server"


_stores: dict[tuple[str, str], ServerStore] = {}  # those that handles of this process have
_leaving: deque[ServerStore] = deque()  # each once for a handle that has it no more
_opening: Final = _Opening()
_alive: Final[Living[ServerStore]] = Living()


def _found_or_made(
    connection: psycopg.Connection[Any], address: Address, create: bool, known: bytes | None,
    asked: Mapping[str, Any],
) -> tuple[bytes, int, str]:
    """Id, chain and durability of the store; made if it may be."""
    strongest = _strongest(connection)
    found = schema.meta(connection)
    if found is None:
        if known is not None:
            raise _gone(address)
        if not create:
            raise InvalidInputError(
                f"{address.shown} holds no inmem database, and create is off", argument="path",
                hint="Correct the URL, or make a store: inmem init -d URL.",
            )
        durability = asked.get("durability", strongest)
        _check_strength(durability, strongest)
        schema.create(
            connection, address.schema, os.urandom(16), CHAIN_IDS[asked.get("chain", "xxh3")], durability
        )
        found = schema.meta(connection)
        assert found is not None
    database_id, version, chain, durability = found
    schema.check_format(address.shown, version)
    if known not in (None, database_id):
        raise _gone(address)
    _check_strength(durability, strongest)
    return database_id, chain, durability


def _strongest(connection: psycopg.Connection[Any]) -> str:
    """The strongest durability that the server gives: without fsync nothing survives a power cut."""
    return "sync" if connection.execute("show fsync").fetchone() == ("on",) else "memory"


def _check_strength(wanted: str, strongest: str) -> None:
    if _STRENGTH.index(wanted) > _STRENGTH.index(strongest):
        raise ConfigMismatchError(
            f"the store's durability is {wanted!r}, and the server has fsync off", setting="durability",
            stored=strongest, requested=wanted,
            hint="Turn fsync on, or create a store with durability='memory'.",
        )


def _gone(address: Address) -> InmemError:
    return DatabaseGoneError(
        f"{address.shown} holds no database any more, or another one than it did", path=address.shown
    )


def _settle() -> None:
    """Take in who has left, unless somebody is opening a store: he does so after that."""
    try:
        while _leaving:
            _opening.alone(0.0, _let_go)
    except BusyError as error:
        let_through(error)


def _let_go() -> None:
    while _leaving:
        store = _leaving.popleft()
        store.handles -= 1
        if store.handles <= 0:
            place = store.address.conninfo, store.address.schema
            if _stores.get(place) is store:
                del _stores[place]
            store.close()


def _after_fork_in_child() -> None:
    _opening.turns.clear()  # of a thread that is not here
    for store in _alive:
        store.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
