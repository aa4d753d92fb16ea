"""The state as a commit sees it that is decided here, under locks that the server keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import psycopg

from inmem.changes import DELETE, PUT, Table
from inmem.engines.base import Item
from inmem.engines.postgres.moment import pages
from inmem.primitives.import_mark import is_mark

_DATA: Final = int(Table.DATA)


class LockedState:
    """The state under the locks of a commit."""

    def __init__(self, connection: psycopg.Connection[Any], known: dict[bytes, bytes | None]) -> None:
        self._connection = connection
        self._known = known

    def _ask(self, query: str, arguments: tuple[Any, ...]) -> list[Any]:
        return self._connection.execute(query, arguments, binary=True).fetchall()

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        if key not in self._known:
            found = self._ask("select record from records where key = %s", (key,))
            self._known[key] = found[0][0] if found else None
        return self._known[key]

    def fence(self, digest: bytes) -> bytes | None:
        """What is known of a run by its digest."""
        found = self._ask("select fence from fences where digest = %s", (digest,))
        return found[0][0] if found else None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """Keys and records of a range."""
        return pages(self._ask, start, end, reverse)


class Fences(Mapping[bytes, bytes]):
    """Deleted runs, or with `marks` those that are being imported, by digest: looked up when asked for."""

    def __init__(self, stored: LockedState, known: dict[bytes, bytes | None], *, marks: bool) -> None:
        self._stored = stored
        self._known = known  # shared by both kinds
        self._marks = marks

    def __contains__(self, digest: object) -> bool:
        assert isinstance(digest, bytes)
        if digest not in self._known:
            self._known[digest] = self._stored.fence(digest)
        fence = self._known[digest]
        return fence is not None and is_mark(fence) is self._marks

    def __getitem__(self, digest: bytes) -> bytes:
        if digest not in self:
            raise KeyError(digest)
        return self._known[digest] or b""

    def __iter__(self) -> Iterator[bytes]:
        return (digest for digest in [*self._known] if digest in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Changes:
    """What the operations of a commit come to."""

    def __init__(self, ops: Any) -> None:
        self.ranges: list[tuple[bytes, bytes]] = []
        self.put: dict[bytes, bytes] = {}
        self.fences: dict[bytes, bytes | None] = {}
        deleted: dict[bytes, None] = {}
        for op in ops:
            key = op[2]
            if op[1] != _DATA:
                self.fences[key] = op[3] if op[0] == PUT else None
            elif op[0] == PUT:
                self.put[key] = op[3]
                deleted.pop(key, None)
            elif op[0] == DELETE:
                self.put.pop(key, None)
                deleted[key] = None
            else:
                self.ranges.append((key, op[3]))
                self.put = {k: record for k, record in self.put.items() if not key <= k < op[3]}
        self.deleted = [*deleted]
