"""How many requests were refused, and why: one line of the journal at a time, however many there were."""

from __future__ import annotations

from collections import Counter

from inmem.errors import InmemError
from inmem.writer.committer import Counters
from inmem.writer.journal import Journal

journal = Journal()


class Refusals:
    """Refused requests since the last report. Commits are counted by the committer."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()  # by error code
        self._reported: Counter[str] = Counter()  # the committer's counters at the last report

    def add(self, error: InmemError) -> None:
        """Count a request that was no commit."""
        self._requests[error.code] += 1

    def report(self, counters: Counters) -> None:
        """Write what was refused since the last report."""
        counted = Counter(conflicts=counters.conflicts, failures=counters.failures - counters.conflicts)
        refused = self._requests + (counted - self._reported)
        self._reported = counted
        self._requests.clear()
        conflicts = refused.pop("conflicts", 0)
        if refused:
            journal.info("refused", conflicts=conflicts, **refused)
        elif conflicts:  # conflicts alone are normal
            journal.debug("refused", conflicts=conflicts)
