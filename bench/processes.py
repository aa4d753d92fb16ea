"""What do more processes bring, and who waits? `python -m bench.processes`

Puts and gets by 1 to 64 processes at once, each on keys of its own; puts by
eight also beside processes that compute. With more processes than cores a rate
should stay, not fall, and nobody should starve.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from bench import workloads
from bench.harness import Options, bench, main

SUBJECTS = ("inmem", "inmem before", "redis", "sqlite", "stratadb", "diskcache", "manager")
COUNTS = (1, 2, 4, 8, 16, 32, 64)
QUICK_COUNTS = (1, 2, 8)
FLEET = 8  # processes, whose puts are measured in all situations


def label(operation: str, count: int) -> str:
    """The name of a row."""
    return f"{operation}, {count} process{'es' if count > 1 else ''}"


def run(options: Options) -> dict[str, Any]:
    """Gets and puts by every number of processes."""
    counts = QUICK_COUNTS if options.quick else COUNTS
    with bench("processes", "what do more processes bring, and who waits?", options, SUBJECTS) as b:
        b.load()
        b.processes.need(max(counts))
        for count in counts:
            b.cases(label("kv get", count), workloads.get, processes=count)
            b.cases(
                label("kv put", count), workloads.put, processes=count, sample=True,
                situations=options.situations if count == FLEET else (0,),
            )  # fmt: skip
        b.rounds()
        for operation in ("kv get", "kv put"):
            one = label(operation, 1)
            for count in counts[1:]:
                b.compare(f"{operation}: {count} processes / 1", label(operation, count), one)
            if 64 in counts:
                b.compare(f"{operation}: 64 processes / 8", label(operation, 64), label(operation, 8))
        full = max(count for count in counts if count <= len(os.sched_getaffinity(0)))
        if full > 1:
            b.compare("kv get: readers on all cores / 1", label("kv get", full), label("kv get", 1))
        return b.document()


if __name__ == "__main__":
    sys.exit(main("processes", __doc__, run))
