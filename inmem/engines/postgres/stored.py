"""The state as a commit sees it that is decided here, under locks that the server keeps."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from inmem.changes import DELETE, PUT, Table
from inmem.engines.base import Item
from inmem.engines.postgres.asking import AskedConnection, Statement
from inmem.engines.postgres.known import Window
from inmem.engines.postgres.moment import GET, MAX_PAGE, SMALL_PAGE, page_of, pages
from inmem.primitives.import_mark import is_mark

_DATA: Final = int(Table.DATA)


_FENCE: Final = Statement("select fence from fences where digest = $1", "b", "b")


class LockedState:
    """The state under the locks of some commits, of which the later see what the earlier do."""

    def __init__(
        self, connection: AskedConnection, known: dict[bytes, bytes | None], windows: list[Window]
    ) -> None:
        """`known` are records that were read already, `windows` what was read of ranges."""
        self._connection = connection
        self.known = known
        self.windows = windows
        self._changed: dict[bytes, bytes | None] = {}
        self._cleared: list[tuple[bytes, bytes]] = []  # ranges of which nothing stored is left

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        known = self.known
        if key not in known:
            if self._cleared and self._is_cleared(key):
                return None
            for window in self.windows:
                if window.tells(key):
                    return window.get(key)
            [found] = self._connection.ask((GET, (key,)))
            known[key] = found[0][0] if found else None
        return known[key]

    def fence(self, digest: bytes) -> bytes | None:
        """What is known of a run by its digest."""
        [found] = self._connection.ask((_FENCE, (digest,)))
        return found[0][0] if found else None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """Keys and records of a range."""
        changed = self._changed
        mine = sorted((key for key in changed if start <= key < end), reverse=reverse) if changed else []
        stored = self._stored(start, end, reverse)
        if self._cleared:
            stored = (item for item in stored if not self._is_cleared(item[0]))
        if not mine:
            return stored
        return self._merged(stored, mine, reverse)

    def _merged(self, stored: Iterator[Item], mine: list[bytes], reverse: bool) -> Iterator[Item]:
        own = ((key, None) for key in mine)
        others = ((key, record) for key, record in stored if key not in self._changed)
        both = heapq.merge(own, others, key=lambda item: item[0], reverse=reverse)
        for key, record in both:
            shown = self._changed[key] if record is None else record
            if shown is not None:
                yield key, shown

    def _stored(self, start: bytes, end: bytes, reverse: bool) -> Iterator[Item]:
        window = next((each for each in self.windows if each.covers(start, end, reverse)), None)
        if window is None:
            window = Window(start, end, reverse)
            self.windows.append(window)
            window.add(page_of(self._connection, start, end, SMALL_PAGE, reverse), SMALL_PAGE)

        def page(start: bytes, end: bytes, limit: int) -> list[Item]:
            return page_of(self._connection, start, end, limit, reverse)

        for key, record in window.items:
            if not start <= key < end:
                return
            yield key, record
        if not window.is_whole:
            last = window.items[-1][0]
            place = (start, last) if reverse else (last + b"\0", end)
            yield from pages(page, *place, reverse, MAX_PAGE)

    def made(self, ops: Iterable[Any]) -> None:
        """A commit was decided: it shows in what is read from now on."""
        changes = Changes(ops)
        for start, end in changes.ranges:
            for held in (self.known, self._changed):
                held.update({key: None for key in held if start <= key < end})
        self._cleared += changes.ranges
        for some in (changes.put, dict.fromkeys(changes.deleted)):
            self.known.update(some)
            self._changed.update(some)

    def _is_cleared(self, key: bytes) -> bool:
        return any(start <= key < end for start, end in self._cleared)


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
