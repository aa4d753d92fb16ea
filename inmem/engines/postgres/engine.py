"""The engine on a PostgreSQL server."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg

from inmem.client.applied import Applied
from inmem.client.direct import DirectSink
from inmem.client.pipeline import PipelinedWrites
from inmem.client.transaction import OptimisticTransaction
from inmem.client.views import LatestView, SnapshotView
from inmem.client.waiting import Watched, timed_out
from inmem.commit.validation import Recent
from inmem.config import Settings
from inmem.engines.base import Engine
from inmem.engines.postgres import schema
from inmem.engines.postgres.commits import Sessions
from inmem.engines.postgres.connections import Connections
from inmem.engines.postgres.moment import Moment, Seen
from inmem.errors import ClosedError, InmemError, InvalidInputError
from inmem.wire import STATUS, SYNC

_POLL_S: Final = 0.002
_POLL_MAX_S: Final = 0.02
MAX_AGE_S: Final = 2.0  # of a snapshot: an old one keeps the server from cleaning up after hot rows


_stores: dict[tuple[str, str], Store] = {}  # those that handles of this process have
_lock: Final = threading.Lock()


class Store:
    """What this process shares of one store."""

    incarnation = 0

    @classmethod
    def shared(cls, conninfo: str, schema_name: str, timeout_s: float) -> Store:
        """That of this process, for one more handle; see `let_go`."""
        with _lock:
            found = _stores.get((conninfo, schema_name))
            if found is None:
                found = _stores[conninfo, schema_name] = cls(conninfo, schema_name, timeout_s)
            found.handles += 1
            return found

    def let_go(self) -> None:
        """A handle has it no more; the last one closes it."""
        with _lock:
            self.handles -= 1
            if self.handles:
                return
            _stores.pop(self.place, None)
        self.close()

    def __init__(self, conninfo: str, schema_name: str, timeout_s: float) -> None:
        self.handles = 0
        self.place = conninfo, schema_name
        self.connections = Connections(conninfo, schema_name, timeout_s)
        with self.connections.one() as connection:
            found = schema.meta(connection)
            if found is None:
                schema.create(connection, schema_name, os.urandom(16), 0, "sync")
                found = schema.meta(connection)
        assert found is not None
        self.database_id, _, self.chain, self.durability = found
        self.sessions = Sessions(self.connections, self.chain)
        self.moment().close()  # which tells the server's time

    def moment(self) -> Moment:
        """A snapshot of now."""
        return Moment(self.connections, MAX_AGE_S)

    def close(self) -> None:
        """Close all connections that are free."""
        self.sessions.close()
        self.connections.close()


class _Waits:
    """Who waits looks again and again."""

    def __init__(self, engine: PostgresEngine) -> None:
        self._engine = engine

    def walks(self, snapshot: Any) -> Recent:
        """Versions of the buckets that were read in a snapshot."""
        return Seen({}, snapshot.seen)

    def wait(self, watched: Watched, deadline: float) -> None:
        """Sleep until something has changed."""
        pause_s = _POLL_S
        while time.monotonic() < deadline:
            moment = self._engine.store.moment()
            try:
                if watched.has_changed(moment):
                    return
            finally:
                moment.close()
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(_POLL_MAX_S, pause_s * 1.5)
        raise timed_out()


class _Pipelined:
    """What a pipeline submits to: each commit is made at once, and its outcome kept."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._outcomes: dict[int, Applied | InmemError] = {}
        self.next_sequence = 1

    def take(self) -> _Pipelined:
        """It is its pipeline's alone."""
        return self

    def give_back(self, session: object) -> None:
        """It goes with its pipeline."""

    def has_room(self, body: bytes) -> bool:
        """There is always room."""
        return True

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int:
        """Make a commit."""
        sequence, self.next_sequence = self.next_sequence, self.next_sequence + 1
        try:
            self._outcomes[sequence] = self._sessions.commit(body, sync=sync, timeout_s=timeout_s)
        except InmemError as error:
            self._outcomes[sequence] = error
        return sequence

    def outcome(self, sequence: int, timeout_s: float) -> Applied:
        """What became of one."""
        outcome = self._outcomes[sequence]
        if isinstance(outcome, InmemError):
            raise outcome
        return outcome

    def forget(self, sequence: int) -> None:
        """Its outcome was noted."""
        self._outcomes.pop(sequence, None)


class PostgresEngine:
    """One handle's engine over a store on a server."""

    def __init__(self, store: Store, settings: Settings, name: str) -> None:
        self._store: Store | None = store
        self._let_go = weakref.finalize(self, store.let_go)
        self.settings = settings
        self.path = Path(name)
        self._waits = _Waits(self)
        self._latest = LatestView(self._get, self.snapshot, store.connections.now_us)
        self._direct = DirectSink(lambda: self.store.sessions, settings.timeout_s)

    @property
    def store(self) -> Store:
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
        def ask(connection: psycopg.Connection[Any]) -> bytes | None:
            found = connection.execute(
                "select record from records where key = %s", (key,), binary=True
            ).fetchone()
            return found[0] if found else None

        return self.store.connections.read(ask)

    def latest(self) -> LatestView:
        """The newest version at each call."""
        return self._latest

    def direct(self) -> DirectSink:
        """A commit for each write."""
        return self._direct

    def snapshot(self) -> SnapshotView:
        """One version, as of now."""
        return SnapshotView(self.store.moment(), self.store.connections.now_us)

    def transaction(self, *, timeout_s: float | None, sync: bool) -> OptimisticTransaction:
        """A transaction that reads from now on."""
        store = self.store
        begun: list[Moment] = []

        def begin() -> Moment:
            begun.append(self.store.moment())
            return begun[-1]

        def commit(body: bytes, *, sync: bool, timeout_s: float) -> Applied:
            told = begun[-1].seen if begun else {}
            return self.store.sessions.commit(body, sync=sync, timeout_s=timeout_s, told=told)

        return OptimisticTransaction(
            begin, commit, store.connections.now_us, store, self._waits, chain=store.chain,
            timeout_s=self.settings.timeout_s if timeout_s is None else timeout_s, sync=sync,
        )

    def pipeline(self, *, sync: bool) -> PipelinedWrites:
        """Writes without waiting for each."""
        return PipelinedWrites(_Pipelined(self.store.sessions), self.settings, sync=sync)

    def request(self, kind: int, timeout_s: float) -> tuple[int, Mapping[str, Any]]:
        """The version; what a status says beyond it is about a writer, which there is not."""
        version: int = self.store.connections.read(
            lambda connection: connection.execute("select coalesce(max(version), 0) from buckets").fetchone()[0]
        )
        if kind == SYNC:
            return version, {}
        if kind != STATUS:
            raise InvalidInputError("this engine has no log")
        counts = dict.fromkeys((
            "writer_pid", "epoch", "generation", "durable_version", "image_bytes", "image_file_bytes",
            "quota_bytes", "wal_bytes", "memory_free_bytes", "clients", "sessions", "commits", "conflicts",
            "failures", "batches", "repeated", "expired",
        ), 0)
        return version, {
            **counts, "version": version, "durability": self.durability, "oldest_snapshot_age_s": None
        }

    def pass_on(self, name: bytes) -> None:
        """Who waits looks again and again."""

    def prefixes(self) -> Iterator[bytes]:
        """Every prefix that has records, in order."""
        moment = self.store.moment()
        try:
            start = b""
            while item := next(moment.scan(start, b"\xff" * 8), None):
                prefix = item[0][: item[0].index(0)]
                yield prefix
                start = prefix + b"\1"
        finally:
            moment.close()

    def check_there(self) -> None:
        """Raise if the store cannot be reached."""
        self.store.connections.read(lambda connection: connection.execute("select 1"))

    def is_same_store(self, other: Engine) -> bool:
        """Whether both serve one and the same store."""
        return isinstance(other, PostgresEngine) and other.store.database_id == self.store.database_id

    def close(self) -> None:
        """Give it back."""
        self._store = None
        self._latest.close()
        self._direct.close()
        self._let_go()
