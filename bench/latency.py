"""How long does one call take, and the slowest of a hundred? `python -m bench.latency`

Every operation is timed by itself: with nobody else there, and while other
processes write without a pause.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from bench import workloads
from bench.harness import Bench, Options, bench, main
from bench.measuring import Job, Measurement, combine

SUBJECTS = ("inmem", "inmem before", "redis", "sqlite", "stratadb", "diskcache", "manager")
OTHERS = 4
OPERATIONS: dict[str, Callable[..., Any]] = {
    "kv get": workloads.get, "kv put": workloads.put, "event append": workloads.append,
    "transaction": workloads.step,
}  # fmt: skip


def _under_load(b: Bench, subject: str, build: Any) -> Measurement:
    """The first process's operation, while others put."""
    chosen = b.subjects[subject]
    connector = chosen.connector
    jobs = [Job(connector, build), *[Job(connector, workloads.pressure)] * OTHERS]
    done, _ = b.of(chosen).run(jobs, b.options.seconds, sample=True)
    return combine(done[:1])  # the store's processor time is that of all, so none is told


def run(options: Options) -> dict[str, Any]:
    """Percentiles of each operation, alone and under load."""
    with bench("latency", "how long does one call take?", options, SUBJECTS) as b:
        b.load()
        for operation, build in OPERATIONS.items():
            b.cases(f"{operation}, alone", build, sample=True)
            for name in b.subjects:
                under_load = functools.partial(_under_load, b, name, build)
                b.case(f"{operation}, {OTHERS} others put", name, under_load)
        b.rounds()
        return b.document()


if __name__ == "__main__":
    sys.exit(main("latency", __doc__, run))
