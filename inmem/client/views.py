"""Views of what is stored: the newest version at each call, or one version."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import NoReturn, Protocol

from inmem.client.tracking import StoredVersion
from inmem.engines.base import Item, VersionView
from inmem.errors import BusyError, ClosedError
from inmem.host.interrupts import OneThread
from inmem.keys import fence_of
from inmem.primitives.import_mark import is_mark
from inmem.record import is_live


class ReadVersion(StoredVersion, Protocol):
    """One that can be left to who is reading it."""

    def leave(self) -> None: ...


class SnapshotView(OneThread):
    """One committed version, without tracking. For one thread at a time: LMDB lets others run meanwhile."""

    def __init__(self, snapshot: ReadVersion, now_us: Callable[[], int]) -> None:
        super().__init__()
        self._is_over = False
        self._snapshot = snapshot
        self.now_us = now_us

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key."""
        if self.thread != get_ident():
            self._take_over()
        record = self._snapshot.get(key)
        return record if record is not None and is_live(record, self._snapshot.now_us) else None

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The live records under some keys."""
        if self.thread != get_ident():
            self._take_over()
        found = self._snapshot.get_many(keys)
        now_us = self._snapshot.now_us
        live = {key: record for key, record in found.items() if is_live(record, now_us)}
        return [live.get(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False,
        max_bytes: int | None = None,
    ) -> list[Item]:
        """The live records of a range."""
        if self.thread != get_ident():
            self._take_over()
        if limit == 0:
            return []
        found = []
        size = 0
        snapshot = self._snapshot
        for key, record in snapshot.scan(start, end, reverse=reverse, limit=limit):
            if is_live(record, snapshot.now_us):
                found.append((key, record))
                if len(found) == limit:
                    break
                if max_bytes is not None:
                    size += len(record)
                    if size >= max_bytes:
                        break
        return found

    def until(self, time_us: int) -> None:
        """Nobody waits for it."""

    def for_one(self, name: bytes, starts: Collection[bytes]) -> None:
        """Nobody waits for it."""

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has."""
        if self.thread != get_ident():
            self._take_over()
        return self._snapshot.count(start, end)

    def is_deleted(self, prefix: bytes) -> bool:
        """Whether the run with this prefix was deleted."""
        if self.thread != get_ident():
            self._take_over()
        found = self._snapshot.fence(fence_of(prefix))
        return found is not None and not is_mark(found)

    @contextmanager
    def moment(self) -> Iterator[VersionView]:
        """Itself: all reads here are of one version."""
        yield self

    @property
    def version(self) -> int:
        """The commit version that is seen."""
        if self.thread != get_ident():
            self._take_over()
        return self._snapshot.version

    def close(self) -> None:
        """End it. What another thread is reading at this moment it reads to the end."""
        self._is_over = True
        if self.thread != get_ident():
            self.thread = get_ident()  # before the look, as in `take_over`
            if self.is_inside():
                self._snapshot.leave()
                return
        self._snapshot.close()

    def _take_over(self) -> None:
        try:
            self.take_over()
        except BusyError:
            if self._is_over:
                closed()
            raise


def closed(*_: object) -> NoReturn:
    """What a handle that was closed calls.

    Raises:
        ClosedError: always.
    """
    raise ClosedError("the database is closed")


class LatestView:
    """The newest version at each call; for facades outside transactions.

    `get` reads one record without opening a moment, which is what makes a read cheap; so may `get_many`.
    """

    def __init__(
        self, get: Callable[[bytes], bytes | None], begin: Callable[[], SnapshotView],
        now_us: Callable[[], int], get_many: Callable[[Sequence[bytes]], Mapping[bytes, bytes]] | None = None,
    ) -> None:
        self._get = get
        self._get_many = get_many
        self._begin = begin
        self.now_us = now_us

    def close(self) -> None:
        """The handle was closed: whatever is bound to this is refused from now on."""
        self._get = self._begin = self.now_us = closed

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key. Cost: about 1 µs."""
        record = self._get(key)
        if record is not None and record[0] & 0x80 and not is_live(record, self.now_us()):
            return None
        return record

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The live records under some keys, all of one version."""
        if self._get_many is None:
            with self.moment() as view:
                return view.read_many(keys)
        found, now_us = self._get_many(keys), self.now_us()
        live = {key: record for key, record in found.items() if is_live(record, now_us)}
        return [live.get(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False,
        max_bytes: int | None = None,
    ) -> list[Item]:
        """The live records of a range, all of one version."""
        view = self._begin()  # as `moment`, without what a context manager costs
        try:
            return view.scan(start, end, limit=limit, reverse=reverse, max_bytes=max_bytes)
        finally:
            view.close()

    def until(self, time_us: int) -> None:
        """Nobody waits for it."""

    def for_one(self, name: bytes, starts: Collection[bytes]) -> None:
        """Nobody waits for it."""

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has."""
        with self.moment() as view:
            return view.count(start, end)

    def is_deleted(self, prefix: bytes) -> bool:
        """Whether the run with this prefix was deleted."""
        with self.moment() as view:
            return view.is_deleted(prefix)

    @contextmanager
    def moment(self) -> Iterator[VersionView]:
        """A view for several reads of one version."""
        view = self._begin()
        try:
            yield view
        finally:
            view.close()
