"""An image that this process has open to read, and the snapshots that are open on it.

Invariant: an image that was left is closed once no snapshot is open on it,
and no snapshot begins on it after that.
"""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from typing import Any, Final

from inmem.storage.environment import Table, open_for_reading

_MANY: Final = 64  # noted snapshots, at which those that were dropped are looked for


class OpenImage:
    """An image that this process has open, and its open snapshots."""

    __slots__ = ("data", "env", "generation", "is_inherited", "is_left", "live", "path", "tables", "word")

    def __init__(self, path: Path, generation: int) -> None:
        self.path = str(path)
        self.env, self.tables = open_for_reading(path)
        self.data = self.tables[Table.DATA]
        self.generation = generation
        self.word = -1  # of the generation, when no dead records were in the image
        # Transactions of open snapshots, and when their time ends. One that is dropped ends without a
        # finalizer of ours, in which the exception of a signal handler would be lost.
        self.live: dict[weakref.ref[Any], float] = {}
        self.is_left = False  # no snapshot may begin here any more
        self.is_inherited = False  # by a forked child, which must not touch it

    def begin(self, max_age_s: float) -> tuple[Any, weakref.ref[Any]]:
        """A transaction that reads, and under what it is noted."""
        transaction = self.env.begin(self.data)
        noted = weakref.ref(transaction)
        self.live[noted] = time.monotonic() + max_age_s
        if len(self.live) > _MANY:
            self._forget_dropped()
        return transaction, noted

    def _forget_dropped(self) -> None:
        for noted in list(self.live):
            if noted() is None:
                self.live.pop(noted, None)

    def has_snapshots(self) -> bool:
        """Whether a snapshot is open."""
        return any(noted() is not None for noted in list(self.live))

    def is_needed(self) -> bool:
        """Whether a snapshot is open that is young enough to be read."""
        now = time.monotonic()
        return any(end >= now and noted() is not None for noted, end in list(self.live.items()))

    def end(self, transaction: Any, noted: weakref.ref[Any]) -> None:
        """End a snapshot; the last one of an image that was left closes the image."""
        if self.live.pop(noted, None) is not None:
            transaction.abort()
            if self.is_left and not self.has_snapshots():
                self.close()

    def close(self) -> None:
        """Close the image; its snapshots end."""
        self.is_left = True
        self.live.clear()
        self.env.close()
