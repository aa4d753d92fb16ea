"""The engine on a PostgreSQL server."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from inmem.client.applied import Applied
from inmem.client.direct import DirectSink
from inmem.client.pipeline import PipelinedWrites
from inmem.client.transaction import OptimisticTransaction
from inmem.client.views import LatestView, SnapshotView
from inmem.client.waiting import leave
from inmem.config import Settings
from inmem.engines.base import Engine, Item
from inmem.engines.postgres import status
from inmem.engines.postgres.buckets import buckets_of
from inmem.engines.postgres.commits import ServerSession
from inmem.engines.postgres.connections import ServerConnection
from inmem.engines.postgres.latest import ServerLatest, ServerSink
from inmem.engines.postgres.moment import GET, GET_MANY, ServerMoment, page_asked
from inmem.engines.postgres.pipelined import PipelinedSession
from inmem.engines.postgres.store import ServerStore
from inmem.engines.postgres.waiting import ServerWaits
from inmem.engines.postgres.whole import WholeMoment
from inmem.errors import ClosedError, ConflictError, InvalidInputError
from inmem.reports import BackupReport, CheckReport
from inmem.stepping import Leaves
from inmem.wire import STATUS, SYNC
from inmem.writeset import decode

_LOSSES: Final = 2  # conflicts in a row of one thread, after which a transaction locks before it reads


class LostAttempts(threading.local):
    """Of a thread: what its last transactions concerned, all of which were refused for a conflict."""

    def __init__(self) -> None:
        self.rows: list[list[bytes]] = []

# The first key of each prefix: one look at the index for each, whatever it holds. A key without NUL is none.
_PREFIXES: Final = """
    with recursive firsts (key) as (
        (select key from records where key >= %s order by key limit 1)
        union all
        select (
            select key from records where key >= case position('\\x00'::bytea in firsts.key)
                when 0 then firsts.key || '\\x00'::bytea
                else substring(firsts.key for position('\\x00'::bytea in firsts.key) - 1) || '\\x01'::bytea
            end order by key limit 1)
        from firsts where firsts.key is not null
    ) select key from firsts where key is not null limit 1000
"""


class PostgresEngine:
    """One handle's engine over a store on a server."""

    def __init__(
        self, store: ServerStore, settings: Settings, default: Callable[[Any], Any] | None = None
    ) -> None:
        self._store: ServerStore | None = store
        self._let_go = weakref.finalize(self, store.let_go)
        self._default = default
        self._losses = LostAttempts()
        self.settings = settings
        self.name = store.address.shown
        self.path = None
        self.database_id = store.database_id
        self.leaving: set[Leaves] = set()
        self.waits = ServerWaits(lambda: self.store)
        self._latest = ServerLatest(
            self._get, self._moment, store.connections.now_us, self._get_many, first=self._first
        )
        self._direct = ServerSink(
            lambda: self.store.sessions, settings.timeout_s, default, self._latest.show
        )

    @property
    def store(self) -> ServerStore:
        """What is shared.

        Raises:
            ClosedError: the handle was closed.
        """
        if self._store is None:
            raise ClosedError("the database is closed")
        return self._store

    @property
    def durability(self) -> str:
        """How durable commits are."""
        return self.store.durability

    def _get(self, key: bytes) -> bytes | None:
        [found] = self.store.connections.ask((GET, (key,)))
        return found[0][0] if found else None

    def _get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        [found] = self.store.connections.ask((GET_MANY, (keys,))) if keys else [[]]
        return dict(found)

    def _first(self, start: bytes, end: bytes, limit: int, reverse: bool) -> list[Item]:
        [found] = self.store.connections.ask(page_asked(start, end, limit, reverse))
        return [(key, record) for key, record in found]

    def latest(self) -> LatestView:
        """The newest version at each call."""
        return self._latest

    def direct(self) -> DirectSink:
        """A commit for each write."""
        return self._direct

    def _moment(self) -> SnapshotView:
        return SnapshotView(self.store.moment(), self.store.connections.now_us)

    def snapshot(self) -> SnapshotView:
        """One version, as of now."""
        view = self._moment()
        _ = view.version  # it is taken with the first look
        return view

    def transaction(self, *, timeout_s: float | None, sync: bool) -> OptimisticTransaction:
        """A transaction that reads from now on."""
        store, losses = self.store, self._losses
        begun: list[ServerMoment] = []
        held: list[ServerSession] = []
        if timeout_s is None:
            timeout_s = self.settings.timeout_s

        def begin() -> ServerMoment:
            if len(losses.rows) >= _LOSSES:
                held.append(store.sessions.take())
                held[-1].hold(losses.rows[-1], timeout_s)
            begun.append(self.store.moment(notes=True))
            return begun[-1]

        def commit(body: bytes, *, sync: bool, timeout_s: float) -> Applied:
            told = begun[-1].told if begun else None
            try:
                applied = self.store.sessions.commit(
                    body, sync=sync, timeout_s=timeout_s, told=told, held=held.pop() if held else None
                )
            except ConflictError:
                losses.rows.append(buckets_of(decode(body)))
                raise
            losses.rows.clear()
            return applied

        def dropped() -> None:
            losses.rows.clear()
            while held:
                session = held.pop()
                session.let_go()
                store.sessions.give_back(session)

        draft = OptimisticTransaction(
            begin, commit, store.connections.now_us, store, self.waits, chain=store.chain,
            timeout_s=timeout_s, sync=sync, dropped=dropped,
        )
        if self._default is not None:
            draft.default = self._default
        return draft

    def pipeline(self, *, sync: bool) -> PipelinedWrites:
        """Writes without waiting for each."""
        pipeline = PipelinedWrites(PipelinedSession(self.store.sessions), self.settings, sync=sync)
        pipeline.default = self._default
        return pipeline

    def session(self) -> PipelinedSession:
        """Where commits go that somebody has put together himself."""
        return PipelinedSession(self.store.sessions)

    def stored(self) -> WholeMoment:
        """One version to read whole runs of."""
        return WholeMoment(self.store.connections)

    def request(self, kind: int, timeout_s: float) -> tuple[int, Mapping[str, Any]]:
        """A question about the store as a whole: see `wire`."""
        store = self.store
        if kind == SYNC:
            return store.connections.read(lambda one: status.sync(one, store.durability)), {}
        if kind != STATUS:
            raise status.refused(kind)
        fields = store.connections.read(
            lambda one: status.status(one, store.address.programs, store.durability)
        )
        return fields["version"], fields

    def check(self) -> CheckReport:
        """Verify records, chains and indices, and the tables beside them."""
        from inmem.engines.postgres.checking import check  # which nobody else has to load

        return check(self.store.connections, self.request(SYNC, self.settings.timeout_s)[0])

    def backup(self, file: Path) -> BackupReport:
        """The server's own means.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError(
            f"{self.name} is on a server, which is backed up by its own means", argument="database",
            hint=f"pg_dump --schema={self.store.address.schema}, or a base backup with its log; "
            "runs as files: inmem export",
        )

    def pass_on(self, name: bytes) -> None:
        """Wake one more of those who wait by `View.for_one`."""
        self.store.poller.pass_on(name)

    def prefixes(self) -> Iterator[bytes]:
        """Every prefix that has records, in order; some at a time, so no snapshot grows old meanwhile."""
        start = b""
        while found := self.store.connections.read(lambda one: _prefixes(one, start)):  # noqa: B023
            yield from (key.partition(b"\0")[0] for key in found)
            start = found[-1].partition(b"\0")[0] + b"\1"

    def check_there(self) -> None:
        """Raise if the store cannot be reached."""
        self.store.connections.read(lambda connection: connection.execute("select 1"))

    def is_same_store(self, other: Engine) -> bool:
        """Whether both serve one and the same store."""
        return isinstance(other, PostgresEngine) and other.store.database_id == self.store.database_id

    def close(self) -> None:
        """Give it back."""
        store = self._store
        if store is not None:
            leave(self.leaving, lambda: store.sessions)
            store.poller.close(self.waits)
        self._store = None
        self._latest.close()
        self._direct.close()
        self._let_go()


def _prefixes(connection: ServerConnection, start: bytes) -> list[bytes]:
    """The first key of each of some prefixes."""
    return [key for (key,) in connection.execute(_PREFIXES, (start,), binary=True).fetchall()]
