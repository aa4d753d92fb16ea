"""One version for as long as it takes to read whole runs: for exports, checks and commands that look.

An old snapshot keeps the server from cleaning up after hot rows. So this one
goes over to a newer snapshot every second or so, if no bucket that it has read
in was written meanwhile: then both show the same. If one was, it stays with
the one that it has, for `WHOLE_RUN_S` at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from inmem.changes import Table
from inmem.engines.base import WHOLE_RUN_S, Item
from inmem.engines.postgres.buckets import is_of_one_prefix
from inmem.engines.postgres.connections import Connections
from inmem.engines.postgres.moment import ServerMoment, pages

_RENEW_S: Final = 1.0
_ROWS: Final = 1000  # of a table, at a time
_TABLES: Final = {  # and their keys
    Table.FENCES: ("fences", "digest", "fence"),
    Table.SESSIONS: ("sessions", "session", "result"),
}


class WholeMoment:
    """A version of all tables."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._moment = ServerMoment(connections, WHOLE_RUN_S)
        self._stays = False  # with this snapshot
        self.now_us = self.version = self._moment.now_us

    def _current(self) -> ServerMoment:
        moment = self._moment
        if self._stays or moment.age_s < _RENEW_S:
            return moment
        newer = ServerMoment(self._connections, WHOLE_RUN_S)
        try:
            seen = moment.seen
            rows = newer.ask("select bucket, version from buckets where bucket = any(%s)", ([*seen],))
        except BaseException:
            newer.close()
            raise
        newer.seen.update({**dict.fromkeys(seen, 0), **dict(rows)})
        self._stays = newer.seen != seen
        if self._stays:
            newer.close()
            return moment
        self._moment = newer
        moment.close()
        return newer

    def seen(self, bucket: bytes) -> int:
        """The version of a bucket in which a range was read."""
        return self._moment.seen.get(bucket, 0)

    def ask(self, query: str, arguments: tuple[Any, ...]) -> list[Any]:
        """What a statement gives."""
        return self._current().ask(query, arguments)

    def look(self, start: bytes, end: bytes) -> None:
        """Remember the versions of the buckets that a range is in; of too many, stay with this snapshot."""
        if is_of_one_prefix(start, end):
            self._current().scan(start, end)  # which has read nothing else yet
        else:
            self._stays = True

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        self.look(key, key + b"\0")
        return self._moment.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """Keys and records of a range."""
        self.look(start, end)
        return pages(self.ask, start, end, reverse)

    def fence(self, digest: bytes) -> bytes | None:
        """What is known of a deleted run, or of one that is being imported."""
        return self._current().fence(digest)

    def table(self, table: Table) -> Iterator[Item]:
        """All entries of a table; of one that is not there, none."""
        name, key, value = _TABLES.get(table, ("", "", ""))
        after = b""
        while name:
            rows = self.ask(
                f"select {key}, {value} from {name} where {key} > %s order by {key} limit {_ROWS}", (after,)
            )
            yield from rows
            if len(rows) < _ROWS:
                return
            after = rows[-1][0]

    def close(self) -> None:
        """End it."""
        self._moment.close()
