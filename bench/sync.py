"""What does a commit cost that survives a power cut? `python -m bench.sync`

Puts in a database of durability `sync`, by one and by eight processes, beside
peers that sync every commit too and a bare write with fdatasync. All write to
the same file system: choose it with --scratch.
"""

from __future__ import annotations

import sys
from typing import Any

from bench import probes, workloads
from bench.harness import Options, bench, main
from bench.processes import label

SUBJECTS = ("inmem sync", "inmem sync before", "redis always", "sqlite full", "stratadb always")
COUNTS = (1, 8)


def run(options: Options) -> dict[str, Any]:
    """Durable puts."""
    with bench("sync", "what does a durable commit cost?", options, SUBJECTS, ours="inmem sync") as b, \
            probes.fdatasync(b.scratch) as fdatasync:
        for count in COUNTS:
            operation = label("sync put", count)
            b.cases(operation, workloads.put, processes=count, sample=True)
            b.case(operation, "probe: fdatasync", lambda: fdatasync(options.seconds))
        b.rounds()
        b.compare("sync put: 8 processes / 1", label("sync put", 8), label("sync put", 1))
        return b.document()


if __name__ == "__main__":
    sys.exit(main("sync", __doc__, run))
