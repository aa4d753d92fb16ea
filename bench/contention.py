"""What if all want the same? `python -m bench.contention`

One cell that every process changes with `transition`, one number that every
process adds one to in a transaction, one log that every process appends to.
Nothing may be lost: cell and number count what was done, and the log is as
long as it should be.
"""

from __future__ import annotations

import sys
from typing import Any

from bench import workloads
from bench.harness import Options, bench, main
from bench.peers.ours import Ours
from bench.processes import label

SUBJECTS = ("inmem", "inmem before", "redis", "sqlite", "stratadb", "diskcache", "manager")
COUNTS = (1, 4, 8)
LOG_COUNTS = (1, 8)


def run(options: Options) -> dict[str, Any]:
    """The same cell, the same number and the same log."""
    with bench("contention", "what if all processes want the same?", options, SUBJECTS) as b:
        ours = b.subjects[b.ours].peer
        assert isinstance(ours, Ours)
        assert ours.database is not None
        for count in COUNTS:
            b.cases(
                label("same cell, transition", count), workloads.transition, processes=count, sample=True
            )
            b.cases(
                label("same key, read-modify-write", count), workloads.increment, True, processes=count,
                sample=True,
            )
        for count in LOG_COUNTS:
            b.cases(
                label("same log, append", count), workloads.append, "shared", processes=count, sample=True
            )
        b.rounds()
        for count in COUNTS[1:]:
            for operation in ("same cell, transition", "same key, read-modify-write"):
                b.compare(f"{operation}: {count} processes / 1", label(operation, count), label(operation, 1))
        log = "same log, append"
        b.compare(f"{log}: 8 processes / 1", label(log, 8), label(log, 1))

        # In a moment of its own, so that every conflict in it is one of the appends.
        before = ours.database.status().conflicts
        b.processes.measure(
            b.subjects[b.ours].connector, workloads.append, "shared", processes=8, seconds=options.seconds
        )
        b.figure(f"{log}: conflicts", ours.database.status().conflicts - before)
        return b.document()


if __name__ == "__main__":
    sys.exit(main("contention", __doc__, run))
