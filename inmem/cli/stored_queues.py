"""The queues of a run, of one moment: for commands that only look."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from inmem.engines.base import Item
from inmem.primitives.queues.reads import QueueReads
from inmem.primitives.queues.shown import QueueCounts
from inmem.reading.moment import Moment


class ShownVersion:
    """One committed version as an `inmem.engines.base.VersionView`."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        self.read, self.now_us = moment.read, moment.now_us

    @property
    def version(self) -> int:
        """The commit version."""
        return self._moment.version

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records under some keys."""
        return [self._moment.read(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False,
        max_bytes: int | None = None,
    ) -> list[Item]:
        """Keys and records of a range."""
        found: list[Item] = []
        for item in self._moment.walk(start, end, reverse=reverse) if limit != 0 else ():
            found.append((bytes(item[0]), bytes(item[1])))
            if len(found) == limit:
                break
        return found

    def count(self, start: bytes, end: bytes) -> int:
        """How many records a range has."""
        return sum(1 for _ in self._moment.walk(start, end))

    def is_deleted(self, prefix: bytes) -> bool:
        """Who reads through this has seen that the run is there."""
        return False

    @contextmanager
    def moment(self) -> Iterator[ShownVersion]:
        """It is of one version."""
        yield self

    def until(self, time_us: int) -> None:
        """Nobody waits for it."""

    def for_one(self, name: bytes, starts: Collection[bytes]) -> None:
        """Nobody waits for it."""


def queues_in(moment: Moment, prefix: bytes) -> QueueReads:
    """The queues of a run."""
    return QueueReads(ShownVersion(moment), prefix)


def in_words(counts: QueueCounts) -> str:
    """How many jobs there are.

    >>> in_words(QueueCounts(ready=1200, delayed=0, claimed=2, dead=0))
    '1,200 ready, 2 claimed'
    """
    return ", ".join(f"{count:,} {state}" for state, count in asdict(counts).items() if count) or "empty"
