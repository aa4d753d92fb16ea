"""One committed version of the store, as a transaction of the server's shows it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import psycopg

from inmem.engines.base import Item
from inmem.engines.postgres.asking import ROLLBACK, Ask, AskedConnection, Statement
from inmem.engines.postgres.buckets import buckets_of_range, is_of_one_prefix, row_of, rows_of_bucket
from inmem.engines.postgres.connections import CLOCK, Connections, ServerConnection
from inmem.engines.postgres.failures import as_ours, is_lost
from inmem.engines.postgres.known import Told
from inmem.errors import ClosedError, ForkError, SnapshotTooOldError

SMALL_PAGE: Final = 16  # records of a page whose bytes are not counted
MAX_PAGE: Final = 4096
_PAGE_BYTES: Final = 4 << 20


GET: Final = Statement("select record from records where key = $1", "b", "b")
GET_MANY: Final = Statement("select key, record from records where key = any($1)", "B", "bb")
_FENCE: Final = Statement("select fence from fences where digest = $1", "b", "b")
_VERSIONS: Final = Statement("select bucket, version from buckets where bucket = any($1)", "B", "bi")
_VERSIONS_BETWEEN: Final = Statement(
    "select bucket, version from buckets where bucket >= $1 and bucket < $2", "bb", "bi"
)
SUM: Final = "select coalesce(sum(version), 0)::text from buckets where bucket >= {} and bucket < {}"
_SUM: Final = Statement(SUM.format("$1", "$2"), "bb", "b")
_GET_NOTED: Final = Statement(
    "select (select record from records where key = $1), (select version from buckets where bucket = $2),"
    f" {CLOCK}", "bb", "bii",
)
_COUNT: Final = Statement(
    f"with now as materialized (select coalesce(nullif($3, 0), {CLOCK}) as us)"
    " select (select count(*) from records where key >= $1 and key < $2"
    " and (expires is null or expires > us)), us from now", "bbi", "ii",
)
_TELLS_TIME: Final = (_GET_NOTED, _COUNT)  # in their last column, if they are read first
_BEGIN: Final = Statement("begin isolation level repeatable read read only")
_CLOCK: Final = Statement(f"select {CLOCK}", "", "i")
_PAGE: Final = "select key, record from records where key >= $1 and key < $2 order by key {} limit $3"
_PAGES: Final = [Statement(_PAGE.format(order), "bbi", "bb") for order in ("asc", "desc")]
_LARGE_PAGES: Final = [
    Statement(
        "select key, record from (select key, record, sum(octet_length(record))"
        f" over (order by key {order} rows unbounded preceding) as size from records"
        f" where key >= $1 and key < $2 order by key {order} limit $3) page"
        f" where size - octet_length(record) < {_PAGE_BYTES}", "bbi", "bb",
    ) for order in ("asc", "desc")
]


class ServerMoment:
    """A snapshot, taken with what is read first. With `notes` it notes what it shows."""

    def __init__(self, connections: Connections, max_age_s: float, *, notes: bool = False) -> None:
        self._connections = connections
        self._max_age_s = max_age_s
        self._process = os.getpid()
        self._born = time.monotonic()
        self._ended_by: str | None = None
        self._is_closed = False
        self._connection: ServerConnection | None = None
        self._now_us = 0
        self.told = Told()
        self.seen = self.told.versions
        self._notes = notes

    @property
    def now_us(self) -> int:
        """The server's time of the snapshot."""
        if not self._now_us:
            self._ask()
        return self._now_us

    @property
    def version(self) -> int:
        """The same: every version that it shows is of an earlier decision."""
        if self._is_closed or time.monotonic() - self._born > self._max_age_s:
            self._check_open()
        return self.now_us

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise ForkError("the snapshot was open when this process was forked: it is its parent's")
        if self._is_closed:
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

    def _ask(self, *asked: Ask) -> list[list[Any]]:
        self._check_open()
        connection = self._connection
        if connection is None:
            return self._begun(asked)
        connection.deadline = self._connections.deadline()
        try:
            found = connection.ask(*asked)
        except psycopg.Error as error:
            is_over, was_left = not is_lost(error, connection), self._is_closed
            self.close()
            if self._connections.is_closed or was_left:
                raise ClosedError("the database is closed") from None
            if is_over:
                raise as_ours(error) from None
            self._ended_by = "the connection of this snapshot was lost"
            raise SnapshotTooOldError(self._ended_by) from error
        if self._is_closed:
            self.close()  # which nobody else did while it was read
        return found

    def _begun(self, asked: tuple[Ask, ...]) -> list[list[Any]]:
        """What is read first, in one round trip with the snapshot's beginning."""
        before: list[Ask] = [(_BEGIN, ())]
        if not asked or asked[0][0] not in _TELLS_TIME:
            before.append((_CLOCK, ()))

        def begin(connection: ServerConnection) -> list[list[Any]]:
            found = connection.ask(*before, *asked)
            self._connection = connection
            return found

        found = self._connections.held(begin)
        self._born = time.monotonic()
        self._now_us = found[1][0][-1]
        self._connections.saw(self._now_us)
        return found[len(before) :]

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        record: bytes | None
        if not self._notes:
            [found] = self._ask((GET, (key,)))
            return found[0][0] if found else None
        row = row_of(key)
        [[(record, version, _)]] = self._ask((_GET_NOTED, (key, row)))
        self.seen[row] = version or 0
        self.told.records[key] = record
        return record

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The records under some keys, as far as there are any."""
        if not keys:
            return {}
        asked: list[Ask] = [(GET_MANY, (keys,))]
        if self._notes:
            buckets = [*{row_of(key) for key in keys}]
            asked.append((_VERSIONS, (buckets,)))
        rows, *more = self._ask(*asked)
        found: dict[bytes, bytes] = dict(rows)
        if more:
            self.seen.update(dict.fromkeys(buckets, 0))
            self.seen.update(more[0])
            self.told.records.update({key: found.get(key) for key in keys})
        return found

    def see(self, rows: Iterable[bytes]) -> None:
        """Note of which version some rows of buckets are."""
        unseen = [each for each in rows if each not in self.seen]
        if unseen:
            [found] = self._ask((_VERSIONS, (unseen,)))
            self.seen.update(dict.fromkeys(unseen, 0))
            self.seen.update(found)

    def sum_of(self, start: bytes, end: bytes) -> int:
        """What grows with each commit in the buckets of a range over several runs."""
        [[found]] = self._ask((_SUM, (start, end)))
        return int(found[0])

    def fence(self, digest: bytes) -> bytes | None:
        """What is known of a deleted run, or of one that is being imported."""
        [found] = self._ask((_FENCE, (digest,)))
        return found[0][0] if found else None

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Item]:
        """Keys and records of a range, as far as they are asked for. See `StoredVersion.scan`."""
        asked: list[Ask] = []
        buckets: list[bytes] = []
        if self._notes:
            buckets = [each for each in buckets_of_range(start, end) if each not in self.seen]
            if buckets:
                asked.append((_VERSIONS, (buckets,)))
            if not is_of_one_prefix(start, end):
                asked.append((_VERSIONS_BETWEEN, (start, end)))

        def page(start: bytes, end: bytes, limit: int) -> list[Item]:
            *versions, found = self._ask(*asked, page_asked(start, end, limit, reverse))
            if asked:
                self.seen.update(dict.fromkeys(buckets, 0))
                for some in versions:
                    self.seen.update(some)
                asked.clear()
            return found

        return pages(page, start, end, reverse, MAX_PAGE if limit is None else min(limit, MAX_PAGE))

    def count(self, start: bytes, end: bytes) -> int:
        """How many records of a range are live. The server counts: what is large takes longer to send."""
        if self._notes:
            self.see(buckets_of_range(start, end))
        [[(found, _)]] = self._ask((_COUNT, (start, end, self._now_us)))
        return int(found)

    def close(self) -> None:
        """End it; nobody waits for the server to do so."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            connection.tell(ROLLBACK)
            self._connections.give_back(connection)

    def leave(self) -> None:
        """End it while another thread reads it, which then closes it."""
        self._is_closed = True
        connection = self._connection
        if connection is not None and self._process == os.getpid():
            connection.cut()


def page_of(connection: AskedConnection, start: bytes, end: bytes, limit: int, reverse: bool) -> list[Item]:
    """Some first records of a range."""
    return connection.ask(page_asked(start, end, limit, reverse))[0]


def page_asked(start: bytes, end: bytes, limit: int, reverse: bool) -> Ask:
    """The statement for the first records of a range; of large ones fewer, but one at least."""
    return (_PAGES if limit <= SMALL_PAGE else _LARGE_PAGES)[reverse], (start, end, limit)


def pages(
    page_of: Callable[[bytes, bytes, int], list[Item]], start: bytes, end: bytes, reverse: bool,
    limit: int = SMALL_PAGE,
) -> Iterator[Item]:
    """Keys and records of a range, page by page, the first of so many."""
    while True:
        page = page_of(start, end, limit)
        yield from page
        if len(page) < limit and sum(len(record) for _, record in page) < _PAGE_BYTES:
            return
        if reverse:
            end = page[-1][0]
        else:
            start = page[-1][0] + b"\0"
        limit = MAX_PAGE


class SeenBuckets:
    """What is known of the last writes of buckets, to who has locked or looked at them: see `Recent`.

    Versions order the commits of a row only, so a bucket of several rows is as it was seen
    only if each of them is.
    """

    def __init__(self, now: dict[bytes, int], seen: dict[bytes, int]) -> None:
        self._now = now
        self._seen = seen

    def last(self, bucket: bytes) -> int:
        """The version of the last write of a bucket."""
        return max(self._now.get(row, 1 << 64) for row in rows_of_bucket(bucket))

    def is_as_seen(self, bucket: bytes, snapshot_version: int) -> bool:
        """Whether nothing was written in it since it was read."""
        now, seen = self._now, self._seen
        return all(now.get(row, -1) == seen.get(row, 0) for row in rows_of_bucket(bucket))

    def seen(self, key: bytes, snapshot_version: int) -> int:
        """The version of the row of a key, when it was read."""
        return self._seen.get(row_of(key), 0)

    def is_unwritten_since(self, bucket: bytes, time_us: int) -> bool:
        """Versions are times."""
        return self.last(bucket) <= time_us
