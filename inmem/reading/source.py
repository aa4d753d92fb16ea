"""Where stored data is read from: a shared image, a private copy, or one file.

A source gives moments. Reading through one starts no writer and changes
nothing. A moment keeps what commits replace in memory, so it should be short;
the methods of the source itself take a new moment for each page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from inmem.engines.base import WHOLE_RUN_S, Item, Stored
from inmem.errors import SnapshotTooOldError
from inmem.host.clock import wall_us
from inmem.host.control import Control
from inmem.host.directory import DataDirectory, Identity
from inmem.keys import MAX_KEY_BYTES
from inmem.reading.moment import PAGE_BYTES, PAGE_RECORDS, Moment, Page
from inmem.storage.checkpoint import CheckpointReader
from inmem.storage.rebuild import fill, private_store, replay_privately
from inmem.storage.snapshot import Image
from inmem.storage.store import Store

LAST_KEY: Final = b"\xff" * (MAX_KEY_BYTES + 1)
_RENEW_S: Final = 0.5  # `records` takes a new moment at the first new run after this


class Source:
    """Committed versions of one database.

    `name` is "image" for a shared image, "replay" for a copy, "server" for a store on one.
    """

    def __init__(self, name: str, begin: Callable[[], Stored], now_us: Callable[[], int]) -> None:
        self.name = name
        self.begin = begin
        self.now_us = now_us  # store time, microseconds

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """The newest committed version. A private copy has one moment at a time."""
        stored = self.begin()
        try:
            yield Moment(stored)
        finally:
            stored.close()

    def read(self, key: bytes) -> bytes | None:
        """The newest live record under a key."""
        with self.moment() as moment:
            return moment.read(key)

    def first(self, start: bytes, end: bytes, *, reverse: bool = False) -> Item | None:
        """The first live record of a range, or the last."""
        with self.moment() as moment:
            return moment.first(start, end, reverse=reverse)

    def page(
        self, start: bytes, end: bytes, *, start_after: bytes | None = None, reverse: bool = False,
        limit: int = PAGE_RECORDS, max_bytes: int = PAGE_BYTES,
    ) -> Page:
        """One page of a range, of the newest version. See `Moment.page`."""
        while True:
            try:
                with self.moment() as moment:
                    return moment.page(
                        start, end, start_after=start_after, reverse=reverse, limit=limit, max_bytes=max_bytes
                    )
            except SnapshotTooOldError:
                continue  # the image was replaced: the next moment is of the new one

    def walk(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """The live records of a range, page by page, each page as of another moment.

        Memory is bounded by one page, and a slow caller pins nothing.
        """
        position: bytes | None = None
        while True:
            page = self.page(start, end, start_after=position, reverse=reverse)
            yield from page.items
            position = page.position
            if position is None:
                return

    def records(self) -> Iterator[tuple[Moment, bytes, bytes]]:
        """Every record with the moment that it is of, expired ones too; each run is of one moment."""
        start: bytes | None = b""
        while start is not None:
            with self.moment() as moment:
                start = yield from _whole_runs(moment, start)


def _whole_runs(
    moment: Moment, start: bytes
) -> Generator[tuple[Moment, bytes, bytes], None, bytes | None]:
    """The records of some whole runs; returns where the next run starts, None at the end."""
    renew_at = time.monotonic() + _RENEW_S
    run: bytes | None = None
    for key, record in moment.records(start, LAST_KEY):
        prefix = key.partition(b"\0")[0]
        if prefix != run:
            if run is not None and time.monotonic() >= renew_at:
                return key
            run = prefix
        yield moment, key, record
    return None


def shared(image: Image, max_age_s: float = WHOLE_RUN_S) -> Source:
    """An image that other processes read too. It is not closed here."""
    return Source("image", lambda: image.snapshot(max_age_s), image.now_us)


def private(store: Store) -> Source:
    """A store that only this process has. Its own clock rests: what the wall clock says has expired, has."""
    clock_us = store.position.clock_us if store.position is not None else 0

    def now_us() -> int:
        return max(wall_us(), clock_us)

    return Source("replay", lambda: _StoreVersion(store, now_us()), now_us)


class _StoreVersion:
    """A private store as it is now."""

    def __init__(self, store: Store, now_us: int) -> None:
        self._txn = store.begin()
        self.version = store.position.version if store.position is not None else 0
        self.now_us = now_us
        self.get = self._txn.get
        self.scan = self._txn.scan
        self.table = store.items

    def close(self) -> None:
        self._txn.abort()


@contextmanager
def replayed(
    directory: DataDirectory, identity: Identity, control: Control | None = None
) -> Iterator[Source]:
    """A private copy made from checkpoint and log. Cost: that of a restart, and its memory.

    The copy has no name: however this process ends, nothing is left of it.

    Raises:
        CorruptionError: the files are damaged, or, with `control`, end before what was durable.
    """
    with replay_privately(directory, identity, control) as store:
        yield private(store)


@contextmanager
def loaded(file: Path) -> Iterator[Source]:
    """A private copy made from one file: a backup, or a checkpoint.

    Raises:
        CorruptionError: the file is damaged.
    """
    with private_store() as store, CheckpointReader(file) as reader:
        fill(store, reader, (reader.header.database,))
        yield private(store)
