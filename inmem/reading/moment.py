"""One committed version of a database, read without a facade.

A moment owns the rules of reading: which records are live, how a listing is
cut into pages, and that unreadable bytes are a `CorruptionError`. It knows
tables and keys, and no primitive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from inmem.engines.base import Item, Stored
from inmem.errors import CorruptionError, InmemError
from inmem.record import is_live
from inmem.storage.environment import Table
from inmem.storage.position import POSITION_KEY, Position, unpack_position

PAGE_RECORDS: Final = 256  # of one page, and
PAGE_BYTES: Final = 4 * 1024 * 1024  # of keys and records: bounds memory where values are large


class Page(NamedTuple):
    """Some live records in order; `position` is the `start_after` of the next page, None after the last."""

    items: list[Item]
    position: bytes | None


class Reads(Protocol):
    """Live records: of one moment, or of the newest version at each page."""

    def now_us(self) -> int: ...

    def read(self, key: bytes) -> bytes | None: ...

    def first(self, start: bytes, end: bytes, *, reverse: bool = False) -> Item | None: ...

    def walk(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]: ...


class Moment:
    """One committed version. Every read is of this version."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._now_us = stored.now_us
        self.get = stored.get  # the record under a key, expired ones too

    @property
    def version(self) -> int:
        """The commit version."""
        with _engine_errors():
            return self._stored.version

    def now_us(self) -> int:
        """Store time of this moment, microseconds."""
        return self._now_us

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key."""
        record = self.get(key)
        return record if record is not None and is_live(record, self._now_us) else None

    def records(self, start: bytes, end: bytes) -> Iterator[Item]:
        """The records of a range, expired ones too."""
        return self._stored.scan(start, end)

    def walk(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """The live records of a range, one by one."""
        now_us = self._now_us
        for item in self._stored.scan(start, end, reverse=reverse):
            if is_live(item[1], now_us):
                yield item

    def first(self, start: bytes, end: bytes, *, reverse: bool = False) -> Item | None:
        """The first live record of a range, or the last."""
        return next(self.walk(start, end, reverse=reverse), None)

    def page(
        self, start: bytes, end: bytes, *, start_after: bytes | None = None, reverse: bool = False,
        limit: int = PAGE_RECORDS, max_bytes: int = PAGE_BYTES,
    ) -> Page:
        """Live records of a range from where the last page stopped: 1 to `limit`, and about `max_bytes`.

        A record that is larger than `max_bytes` is a page of its own.
        """
        if start_after is not None:
            start, end = (start, start_after) if reverse else (start_after + b"\0", end)
        items: list[Item] = []
        held = 0
        if start >= end:
            return Page(items, None)
        for item in self.walk(start, end, reverse=reverse):
            items.append(item)
            held += len(item[0]) + len(item[1])
            if len(items) >= limit or held >= max_bytes:
                return Page(items, item[0])
        return Page(items, None)

    def rows(self, table: Table) -> Iterator[Item]:
        """All entries of one table.

        Raises:
            CorruptionError: the image cannot be read.
        """
        with _engine_errors():
            yield from self._stored.table(table)

    def position(self) -> Position | None:
        """What the image says of itself; None if nothing was ever published in it."""
        return unpack_position(dict(self.rows(Table.META)).get(POSITION_KEY), Path("image"))


@contextmanager
def _engine_errors() -> Iterator[None]:
    """An error of LMDB inside the block is a `CorruptionError`."""
    try:
        yield
    except (InmemError, MemoryError, OSError):
        raise
    except Exception as error:  # LMDB has one class for each way in which a page can be wrong
        raise CorruptionError(f"the image cannot be read: {type(error).__name__}: {error}") from error


@contextmanager
def readable(what: str) -> Iterator[None]:
    """A decoding error inside the block is a `CorruptionError` that names `what`.

    Raises:
        CorruptionError: it could not be decoded.
    """
    try:
        yield
    except InmemError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise CorruptionError(
            f"{what} cannot be read: {type(error).__name__}: {error!s:.200}",
            hint="See all that is wrong: inmem check -d DIR",
        ) from error
