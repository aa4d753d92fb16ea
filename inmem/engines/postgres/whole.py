"""One version for as long as it takes to read whole runs: for exports, checks and commands that look.

An old snapshot keeps the server from cleaning up after hot rows. So this one
goes over to a newer snapshot every second or so, if no bucket that it has read
in was written meanwhile: then both show the same. If one was, it stays with
the one that it has, for `WHOLE_RUN_S` at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import psycopg

from inmem.changes import Table
from inmem.engines.base import WHOLE_RUN_S, Item
from inmem.engines.postgres.buckets import buckets_of_range, is_of_one_prefix
from inmem.engines.postgres.connections import CLOCK, Connections
from inmem.engines.postgres.failures import as_ours, is_lost
from inmem.errors import ClosedError, ForkError, SnapshotTooOldError

_RENEW_S: Final = 1.0
_PATIENCE_S: Final = 60.0  # with one statement
_FIRST_PAGE: Final = 64
_MAX_PAGE: Final = 4096
_PAGE_BYTES: Final = 4 * 1024 * 1024  # a page ends with the record that makes it so large
_VERSIONS: Final = "select bucket, version from buckets where bucket = any(%s)"
_PAGE: Final = (
    "select key, record, expires from (select key, record, expires, sum(octet_length(record))"
    " over (order by key {order} rows unbounded preceding) as size from records"
    " where key >= %s and key < %s order by key {order} limit %s) page"
    f" where size - octet_length(record) < {_PAGE_BYTES} order by key {{order}}"
)
_ROWS: Final = 1000  # of a table, at a time
_TABLES: Final = {  # and their keys
    Table.FENCES: ("fences", "digest", "fence"),
    Table.SESSIONS: ("sessions", "session", "result"),
}


class _Snapshot:
    """A transaction that reads, and the versions of buckets in which that was."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._process = os.getpid()
        self._stack = ExitStack()
        self.born = time.monotonic()
        self.seen: dict[bytes, int] = {}
        self._connection: Any = self._stack.enter_context(connections.one())
        try:
            self.ask("begin isolation level repeatable read read only")
            self.now_us: int = self.ask(f"select {CLOCK}")[0][0]
        except BaseException:
            self.close()
            raise

    def ask(self, query: str, *arguments: Any) -> list[Any]:
        """What a statement gives."""
        connection = self._connection
        if self._process != os.getpid():
            raise ForkError("this was being read when the process was forked: it is the parent's")
        if connection is None:
            raise ClosedError("what was being read is closed")
        connection.deadline = time.monotonic() + _PATIENCE_S  # of this call, whoever had it before
        try:
            found = connection.execute(query, arguments, binary=True)
            return found.fetchall() if found.description else []
        except psycopg.Error as error:
            lost = is_lost(error, connection)
            self.close()
            if self._connections.is_closed:
                raise ClosedError("the database is closed") from None
            if not lost:
                raise as_ours(error) from None
            raise SnapshotTooOldError("the connection of this snapshot was lost") from error

    def look(self, buckets: list[bytes]) -> None:
        """Remember of which version some buckets are."""
        new = [bucket for bucket in buckets if bucket not in self.seen]
        if new:
            self.seen.update(dict.fromkeys(new, 0))
            self.seen.update(self.ask(_VERSIONS, new))

    def close(self) -> None:
        """End it."""
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            try:
                connection.execute("rollback")
            except psycopg.Error:
                connection.close()
            self._stack.close()


class WholeMoment:
    """A version of all tables."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._began = time.monotonic()
        self._snapshot = _Snapshot(connections)
        self._stays = False  # with this snapshot
        self.now_us = self.version = self._snapshot.now_us

    def _current(self) -> _Snapshot:
        """The snapshot to read in."""
        snapshot, now = self._snapshot, time.monotonic()
        if now - self._began > WHOLE_RUN_S:
            raise SnapshotTooOldError(f"what is read is older than {WHOLE_RUN_S:,.0f} s")
        if self._stays or now - snapshot.born < _RENEW_S:
            return snapshot
        newer = _Snapshot(self._connections)
        try:
            newer.look([*snapshot.seen])
        except BaseException:
            newer.close()
            raise
        self._stays = newer.seen != snapshot.seen
        if self._stays:
            newer.close()
            return snapshot
        self._snapshot = newer
        snapshot.close()
        return newer

    def ask(self, query: str, *arguments: Any) -> list[Any]:
        """What a statement gives; what it reads is not remembered."""
        return self._current().ask(query, *arguments)

    def look(self, start: bytes, end: bytes) -> None:
        """Remember the versions of the buckets that a range is in; of too many, stay with this snapshot."""
        if is_of_one_prefix(start, end):
            self._current().look(buckets_of_range(start, end))
        else:
            self._stays = True

    def seen(self, bucket: bytes) -> int:
        """The version of a bucket in which a range was read; 0 if it has no row."""
        return self._snapshot.seen.get(bucket, 0)

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        self.look(key, key + b"\0")
        found = self._snapshot.ask("select record from records where key = %s", key)
        return found[0][0] if found else None

    def fence(self, digest: bytes) -> bytes | None:
        """What is known of a deleted run, or of one that is being imported."""
        found = self.ask("select fence from fences where digest = %s", digest)
        return found[0][0] if found else None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """Keys and records of a range, as far as they are asked for."""
        self.look(start, end)
        return ((key, record) for key, record, _ in self.rows(start, end, reverse=reverse))

    def rows(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes, int | None]]:
        """Keys, records and when the table says that they expire."""
        query = _PAGE.format(order="desc" if reverse else "asc")
        limit = _FIRST_PAGE
        while True:
            page = self.ask(query, start, end, limit)
            yield from page
            if len(page) < limit and sum(len(record) for _, record, _ in page) < _PAGE_BYTES:
                return
            if reverse:
                end = page[-1][0]
            else:
                start = page[-1][0] + b"\0"
            limit = _MAX_PAGE

    def table(self, table: Table) -> Iterator[Item]:
        """All entries of a table; of one that is not there, none."""
        name, key, value = _TABLES.get(table, ("", "", ""))
        after = b""
        while name:
            rows = self.ask(
                f"select {key}, {value} from {name} where {key} > %s order by {key} limit {_ROWS}", after
            )
            yield from rows
            if len(rows) < _ROWS:
                return
            after = rows[-1][0]

    def close(self) -> None:
        """End it."""
        self._snapshot.close()
