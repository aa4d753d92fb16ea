"""One committed version of the store, as a transaction of the server's shows it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import psycopg

from inmem.engines.base import Item
from inmem.engines.postgres.buckets import buckets_of_range, is_of_one_prefix, owner_bucket
from inmem.engines.postgres.connections import CLOCK, Connections
from inmem.engines.postgres.failures import as_ours, is_lost
from inmem.engines.postgres.green import Connection
from inmem.errors import ClosedError, ForkError, SnapshotTooOldError

_FIRST_PAGE: Final = 64
_MAX_PAGE: Final = 4096
_VERSIONS: Final = "select bucket, version from buckets where"
SUM: Final = "select coalesce(sum(version), 0)::text from buckets where bucket >= %s and bucket < %s"


class ServerMoment:
    """A snapshot. It remembers of which version the buckets were whose ranges were read in it."""

    def __init__(self, connections: Connections, max_age_s: float) -> None:
        self._connections = connections
        self._max_age_s = max_age_s
        self._process = os.getpid()
        self._ended_by: str | None = None
        self._connection: Connection | None = None
        self._connection, self.now_us = connections.held(_begin)
        self._born = time.monotonic()
        self.seen: dict[bytes, int] = {}
        connections.saw(self.now_us)

    @property
    def version(self) -> int:
        """The server's time of the snapshot: every version that it shows is of an earlier decision."""
        self._open()
        return self.now_us

    def _open(self) -> Connection:
        connection = self._connection
        if self._process != os.getpid():
            raise ForkError("the snapshot was open when this process was forked: it is its parent's")
        if connection is None:
            if self._connections.is_closed:
                raise ClosedError("the database is closed")
            if self._ended_by is not None:
                raise SnapshotTooOldError(self._ended_by)
            raise ClosedError("the snapshot is closed")
        age = time.monotonic() - self._born
        if age > self._max_age_s:
            self.close()
            self._ended_by = f"the snapshot is {age:.1f} s old, the limit is {self._max_age_s} s"
            raise SnapshotTooOldError(self._ended_by, age_s=age, max_age_s=self._max_age_s)
        return connection

    def _ask(self, query: str, arguments: tuple[Any, ...]) -> list[Any]:
        connection = self._open()
        connection.deadline = self._connections.deadline()
        try:
            return connection.execute(query, arguments, binary=True).fetchall()
        except psycopg.Error as error:
            is_over = not is_lost(error, connection)
            self.close()
            if self._connections.is_closed:
                raise ClosedError("the database is closed") from None
            if is_over:
                raise as_ours(error) from None
            self._ended_by = "the connection of this snapshot was lost"
            raise SnapshotTooOldError(self._ended_by) from error

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        found = self._ask("select record from records where key = %s", (key,))
        return found[0][0] if found else None

    def fence(self, digest: bytes) -> bytes | None:
        """What is known of a deleted run, or of one that is being imported."""
        found = self._ask("select fence from fences where digest = %s", (digest,))
        return found[0][0] if found else None

    def get_many(self, keys: list[bytes]) -> dict[bytes, bytes | None]:
        """The records under some keys."""
        found: dict[bytes, bytes | None] = dict.fromkeys(keys)
        found.update(self._ask("select key, record from records where key = any(%s)", (keys,)))
        return found

    def see(self, buckets: Iterable[bytes]) -> None:
        """Note of which version some buckets are."""
        unseen = [each for each in buckets if each not in self.seen]
        if unseen:
            self.seen.update(dict.fromkeys(unseen, 0))
            self.seen.update(self._ask(f"{_VERSIONS} bucket = any(%s)", (unseen,)))

    def sum_of(self, start: bytes, end: bytes) -> int:
        """What grows with each commit in the buckets of a range over several runs."""
        return int(self._ask(SUM, (start, end))[0][0])

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """Keys and records of a range, as far as they are asked for."""
        self.see(buckets_of_range(start, end))
        if not is_of_one_prefix(start, end):
            self.seen.update(self._ask(f"{_VERSIONS} bucket >= %s and bucket < %s", (start, end)))
        return pages(self._ask, start, end, reverse)

    def close(self) -> None:
        """End it."""
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            try:
                connection.execute("rollback")
            except psycopg.Error:
                connection.close()
            finally:
                self._connections.give_back(connection)

    def leave(self) -> None:
        """End it, whoever reads it."""
        self.close()


def _begin(connection: Connection) -> int:
    """Begin a snapshot; the server's time."""
    with connection.pipeline():
        connection.execute("begin isolation level repeatable read read only")
        found = connection.execute(f"select {CLOCK}")
    now_us: int = found.fetchone()[0]  # type: ignore[index]
    return now_us


def pages(ask: Any, start: bytes, end: bytes, reverse: bool) -> Iterator[Item]:
    """Keys and records of a range, page by page; pages grow."""
    limit = _FIRST_PAGE
    order = "desc" if reverse else "asc"
    while True:
        page = ask(
            f"select key, record from records where key >= %s and key < %s order by key {order} limit %s",
            (start, end, limit),
        )
        yield from page
        if len(page) < limit:
            return
        if reverse:
            end = page[-1][0]
        else:
            start = page[-1][0] + b"\0"
        limit = min(2 * limit, _MAX_PAGE)


class SeenBuckets:
    """What is known of the last writes of buckets, to who has locked or looked at them: see `Recent`."""

    def __init__(self, now: dict[bytes, int], seen: dict[bytes, int]) -> None:
        self._now = now
        self._seen = seen

    def last(self, bucket: bytes) -> int:
        """The version of the last write of a bucket."""
        return self._now.get(owner_bucket(bucket), 1 << 64)

    def seen(self, bucket: bytes, snapshot_version: int) -> int:
        """Its version when it was read."""
        return self._seen.get(owner_bucket(bucket), 0)

    def is_unwritten_since(self, bucket: bytes, time_us: int) -> bool:
        """Versions are times."""
        return self.last(bucket) <= time_us
