"""Everything: each benchmark in turn, then the report. `python -m bench`, or `python -m bench --quick`

The report and all that it rests on goes to build/bench; a full run also
replaces the table and the picture that are kept in bench/results.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import harness, report

BENCHMARKS = (
    "single", "processes", "contention", "sync", "ycsb", "growth", "recovery", "memory", "latency", "tax",
    "waiting", "loops", "leases", "queues", "postgres", "savers",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if something of inmem failed."""
    parser: argparse.ArgumentParser = harness.parser("python -m bench", __doc__)
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="of %(default)s")
    parser.add_argument("--output", type=Path, help="where the report goes, instead")
    found = parser.parse_args(arguments)
    names = found.only.split(",")
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    options = harness.parsed(found)
    documents: dict[str, dict[str, Any]] = {}
    failed, began = [], time.monotonic()
    for name in names:
        try:
            documents[name] = importlib.import_module(f"bench.{name}").run(options)
        except Exception:  # one benchmark that breaks must not cost the figures of the others
            harness.say(traceback.format_exc())
            failed.append(name)
    if documents:
        place = found.output or report.RAW
        report.write(documents, place, None if options.quick or found.output else report.RESULTS)
        print(report.targets_table(documents))
        harness.say(f"{time.monotonic() - began:.0f} s; the whole report is in {place}")
    failed += [name for name, document in documents.items() if document["failures"]]
    if failed:
        harness.say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
