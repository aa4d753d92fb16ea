"""A second engine, on SQLite: the proof that facades and transactions depend on the seam alone.

It runs `decide` with the writer's procedures inside a database transaction of
its own. There is no writer process, no log and no session: a commit is decided
by whoever makes it, under SQLite's lock. Not for use outside of the tests.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from inmem.changes import DELETE, PUT, Table
from inmem.client.applied import Applied
from inmem.client.direct import DirectSink
from inmem.client.pipeline import PipelinedWrites
from inmem.client.transaction import OptimisticTransaction
from inmem.client.views import LatestView, SnapshotView
from inmem.client.waiting import WalksAll, Watched, timed_out
from inmem.commit.decide import decide
from inmem.commit.validation import RecentWrites
from inmem.config import Settings
from inmem.engines.base import Engine, Item
from inmem.errors import ClosedError, InmemError, InvalidInputError
from inmem.host import interrupts
from inmem.primitives.import_mark import is_mark
from inmem.primitives.server import PROCEDURES
from inmem.record import is_live
from inmem.stepping import Leaves
from inmem.wire import STATUS, SYNC
from inmem.writeset import MalformedError
from inmem.writeset import decode as decode_request

interrupts.OURS.add(__name__.partition(".")[0])  # what is raised in here is no signal handler's

TABLES = {Table.DATA: "data", Table.FENCES: "fences"}


class State:
    """What one connection sees."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def get(self, key: bytes) -> bytes | None:
        row = self.connection.execute("select value from data where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return {key: record for key in keys if (record := self.get(key)) is not None}

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Item]:
        order = "desc" if reverse else "asc"
        yield from self.connection.execute(
            f"select key, value from data where key >= ? and key < ? order by key {order}", (start, end)
        )

    @property
    def version(self) -> int:
        row = self.connection.execute("select version from position").fetchone()
        return int(row[0])


class StoredMoment(State):
    """One committed version: a read transaction on a connection of its own."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store.take())
        self._store: SqliteStore | None = store
        self.connection.execute("begin")
        self._version = super().version  # the first read is what fixes the version
        self.now_us = store.now_us()

    @property
    def version(self) -> int:
        return self._version

    def count(self, start: bytes, end: bytes) -> int:
        return sum(is_live(record, self.now_us) for _, record in self.scan(start, end))

    def fence(self, digest: bytes) -> bytes | None:
        row = self.connection.execute("select value from fences where key = ?", (digest,)).fetchone()
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            self.connection.execute("rollback")
            store.give_back(self.connection)


class SqliteStore:
    """A file of SQLite, and who decides its commits: whoever holds its write lock."""

    incarnation = 0  # it is not used after a fork

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="sqlite-"))
        self._free: list[sqlite3.Connection] = []
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._last_us = 0
        self._recent = RecentWrites(0)
        self.waiting = Polling(self)
        connection = self.take()
        connection.executescript(
            "pragma journal_mode = wal;"
            "create table data (key blob primary key, value blob) without rowid;"
            "create table fences (key blob primary key, value blob) without rowid;"
            "create table position (version int); insert into position values (0);"
        )
        self.give_back(connection)

    def now_us(self) -> int:
        """The time, which never goes back."""
        self._last_us = max(self._last_us, time.time_ns() // 1000)
        return self._last_us

    def take(self) -> sqlite3.Connection:
        """A connection that nobody else uses."""
        try:
            return self._free.pop()
        except IndexError:
            connection = sqlite3.connect(
                self.path / "store", isolation_level=None, check_same_thread=False
            )
            connection.execute("pragma synchronous = off")
            self._all.append(connection)
            return connection

    def give_back(self, connection: sqlite3.Connection) -> None:
        """It is free again."""
        self._free.append(connection)

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied:
        """Decide one commit and make it."""
        with self._lock:
            connection = self.take()
            connection.execute("begin immediate")
            try:
                applied = self._decided(State(connection), body)
                connection.execute("commit")
            except BaseException:
                connection.execute("rollback")
                raise
            finally:
                self.give_back(connection)
            return applied

    def _decided(self, state: State, body: bytes) -> Applied:
        connection = state.connection
        try:
            request = decode_request(body)
        except MalformedError as error:
            raise InvalidInputError(str(error)) from None
        closed = connection.execute("select key, value from fences").fetchall()
        version, now_us = state.version + 1, self.now_us()
        decision = decide(
            request, state, self._recent, PROCEDURES, version=version,
            now_us=now_us, fences={key for key, value in closed if not is_mark(value)},
            marks={key: value for key, value in closed if is_mark(value)}, chain=0,
        )
        for op in decision.ops:
            table = TABLES[Table(op[1])]
            if op[0] == PUT:
                connection.execute(f"replace into {table} values (?, ?)", op[2:])
            elif op[0] == DELETE:
                connection.execute(f"delete from {table} where key = ?", op[2:])
            else:
                connection.execute(f"delete from {table} where key >= ? and key < ?", op[2:])
        for bucket in decision.buckets:
            self._recent.wrote(bucket, version)
        self._recent.published(version, now_us)
        if decision.ops:
            connection.execute("update position set version = ?", (version,))
        else:
            version -= 1
        return Applied(version, msgpack.unpackb(decision.results))

    def remove(self) -> None:
        """Close and remove everything."""
        for connection in self._all:
            connection.close()
        shutil.rmtree(self.path)


class Polling(WalksAll):
    """Who waits looks again and again."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def wait(self, watched: Watched, deadline: float) -> None:
        while time.monotonic() < deadline:
            moment = StoredMoment(self._store)
            try:
                if watched.has_changed(moment):
                    return
            finally:
                moment.close()
            time.sleep(0.001)
        raise timed_out()


class Session:
    """What a pipeline submits to: each commit is made at once, and its outcome kept."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._outcomes: list[Applied | InmemError] = []

    @property
    def next_sequence(self) -> int:
        return len(self._outcomes) + 1

    def forget(self, sequence: int) -> None:
        pass

    def take(self) -> Session:
        return self

    def give_back(self, session: Session) -> None:
        assert session is self

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int:
        try:
            self._outcomes.append(self._store.commit(body, sync=sync, timeout_s=timeout_s))
        except InmemError as error:
            self._outcomes.append(error)
        return len(self._outcomes)

    def outcome(self, sequence: int, timeout_s: float) -> Applied:
        outcome = self._outcomes[sequence - 1]
        if isinstance(outcome, InmemError):
            raise outcome
        return outcome

    def has_room(self, body: bytes) -> bool:
        return True


class SqliteEngine:
    """One handle's engine over a store that is in this process."""

    durability = "memory"

    def __init__(self, store: SqliteStore) -> None:
        self._store: SqliteStore | None = store
        self.settings = Settings(durability="memory")
        self.path = store.path
        self.name = str(store.path)
        self.database_id = b""
        self.leaving: set[Leaves] = set()
        self.now_us = store.now_us

    @property
    def store(self) -> SqliteStore:
        if self._store is None:
            raise ClosedError("the database is closed")
        return self._store

    def latest(self) -> LatestView:
        return LatestView(self._read, self.snapshot, self.now_us)

    def _read(self, key: bytes) -> bytes | None:
        moment = StoredMoment(self.store)
        try:
            return moment.get(key)
        finally:
            moment.close()

    def direct(self) -> DirectSink:
        return DirectSink(lambda: self.store, self.settings.timeout_s)

    def snapshot(self) -> SnapshotView:
        return SnapshotView(StoredMoment(self.store), self.now_us)

    def transaction(self, *, timeout_s: float | None, sync: bool) -> OptimisticTransaction:
        store = self.store
        return OptimisticTransaction(
            lambda: StoredMoment(store), store.commit, store.now_us, store, store.waiting, chain=0,
            timeout_s=timeout_s or self.settings.timeout_s, sync=sync,
        )

    def pipeline(self, *, sync: bool) -> PipelinedWrites:
        return PipelinedWrites(Session(self.store), self.settings, sync=sync)

    def request(self, kind: int, timeout_s: float) -> tuple[int, Mapping[str, Any]]:
        """The version; what a status says beyond it is about a writer, which there is not."""
        moment = StoredMoment(self.store)
        moment.close()
        if kind == SYNC:
            return moment.version, {}
        if kind != STATUS:
            raise InvalidInputError("this engine has no log")
        counts = dict.fromkeys((
            "writer_pid", "epoch", "generation", "durable_version", "image_bytes", "image_file_bytes",
            "quota_bytes", "wal_bytes", "memory_free_bytes", "clients", "sessions", "commits", "conflicts",
            "failures", "batches", "repeated", "expired",
        ), 0)
        return moment.version, {
            **counts, "version": moment.version, "durability": "memory", "oldest_snapshot_age_s": None
        }

    def pass_on(self, name: bytes) -> None:
        """Who waits looks again and again."""

    def prefixes(self) -> list[bytes]:
        moment = StoredMoment(self.store)
        try:
            return sorted({key[: key.index(0)] for key, _ in moment.scan(b"", b"\xff" * 8)})
        finally:
            moment.close()

    def check_there(self) -> None:
        _ = self.store

    def is_same_store(self, other: Engine) -> bool:
        return isinstance(other, SqliteEngine) and other.store is self.store

    def close(self) -> None:
        self._store = None
