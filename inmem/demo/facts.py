"""What is in the store when the fleet has ended, and what its processes were told while it worked.

Invariant: nothing here is worked out from the plan: `verify` compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import inmem
from inmem.demo.plan import JOBS, REVIEW

Anchor = tuple[int, bytes]


@dataclass(slots=True)
class HeardFacts:
    """What the store has acknowledged to processes, as they told it."""

    planned: dict[int, int] = field(default_factory=dict)  # first job of a batch: how many
    closed: int | None = None
    done: list[tuple[int, str]] = field(default_factory=list)  # job, worker
    approved: list[tuple[int, int, str]] = field(default_factory=list)  # job, token, who
    leases: list[tuple[int, str]] = field(default_factory=list)  # token, who
    anchors: dict[str, Anchor] = field(default_factory=dict)  # by run: the last event that was acknowledged
    kills: Counter[str] = field(default_factory=Counter)  # by role: SIGKILLs

    def anchor(self, run: str, told: Mapping[str, Any]) -> None:
        """Keep where an event went, if it is the last one of its log."""
        if told["sequence"] > self.anchors.get(run, (-1, b""))[0]:
            self.anchors[run] = told["sequence"], bytes.fromhex(told["hash"])


@dataclass(slots=True)
class StoredTrace:
    """A trace, as far as it is compared."""

    parent: str | None
    tool: str | None
    arguments: Any = None
    result: Any = None


@dataclass(slots=True)
class WorkerFacts:
    """What a worker's run holds."""

    done: int
    state: Any
    finished: list[dict[str, Any]]
    traces: dict[str, StoredTrace]


@dataclass(slots=True)
class StoredFacts:
    """What the store holds."""

    run: str
    entries: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]  # type and payload, in their order
    left: dict[str, int]  # jobs that are not done, by queue
    workers: dict[str, WorkerFacts]
    chains: dict[str, inmem.ChainVerification]
    findings: list[str]  # of `db.check()`
    records: int = 0  # that it looked at

    def of_type(self, event_type: str) -> list[dict[str, Any]]:
        """The payloads of the fleet's events of one type."""
        return [payload for found, payload in self.events if found == event_type]


def not_done(database: inmem.Database, run: str) -> dict[str, int]:
    """How many jobs of each queue are in any state, but done."""
    found = {}
    for queue in (JOBS, REVIEW):
        counts = database.queues.counts(run, queue)
        found[queue] = counts.ready + counts.delayed + counts.claimed + counts.dead
    return found


def read_facts(database: inmem.Database, run: str, workers: Sequence[str], heard: HeardFacts) -> StoredFacts:
    """Read all that the fleet has left. Nobody writes any more."""
    of_workers = {name: f"{run}.{name}" for name in workers}
    report = database.check()
    return StoredFacts(
        run,
        dict(database.kv.list_with_values(run)),
        [(event.event_type, event.payload) for event in database.events.iter(run)],
        not_done(database, run),
        {name: _worker(database, own) for name, own in of_workers.items()},
        {
            name: database.events.verify_chain(name, heard.anchors.get(name))
            for name in (run, *of_workers.values())
        },
        [str(problem) for problem in report.problems],
        report.records,
    )


def _worker(database: inmem.Database, run: str) -> WorkerFacts:
    state = database.cells.read(run, "state")
    traces = {}
    for trace in database.traces.iter(run):
        body, parent = trace.body, trace.parent_id
        if isinstance(body, inmem.ToolCall):
            traces[trace.id] = StoredTrace(parent, body.tool_name, body.arguments, body.result)
        else:
            traces[trace.id] = StoredTrace(parent, None)
    finished = [event.payload for event in database.events.iter(run) if event.event_type == "finished"]
    return WorkerFacts(
        database.kv.get(run, "done", 0), None if state is None else state.value, finished, traces
    )
