"""What a check has found so far: problems, notes and counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from inmem.errors import CorruptionError
from inmem.reports import CheckReport

_MAX_PROBLEMS: Final = 1000  # a damaged store has more than anybody reads
_COUNTS: Final = ("version", "records", "logs", "events", "wal_records", "wal_bytes", "checkpoint")


class Findings:
    """Collects what becomes a `CheckReport`."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._more = 0

    @property
    def is_full(self) -> bool:
        """Whether further problems are only counted."""
        return self._more > 0

    def problem(self, text: str) -> None:
        """Add a problem; the same one counts once, because a log that is replayed is read twice."""
        if len(self.problems) >= _MAX_PROBLEMS:
            self._more += 1
        elif text not in self.problems:
            self.problems.append(text)

    @contextmanager
    def damage(self) -> Iterator[None]:
        """Damage that is met inside the block is a problem of the store, and not an error of the check."""
        try:
            yield
        except (CorruptionError, FileNotFoundError) as error:
            self.problem(str(error))

    def report(self) -> CheckReport:
        """What was found until now."""
        problems = [*self.problems, *([f"{self._more} more problems"] if self._more else [])]
        return CheckReport(problems=problems, notes=self.notes, **self.counts)
