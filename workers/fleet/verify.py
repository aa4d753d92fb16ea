"""A fleet, read back and compared with the plan and with what was acknowledged.

What the seed determines is computed again and compared. What a race decides
is compared with what the agents were told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from workers.fleet import lifecycle
from workers.fleet.expected import ExpectedFleet, expect, shared_log, started_event
from workers.fleet.plan import START_CREDITS, FleetRuns, FleetSpec
from workers.fleet.reports import AgentReport
from workers.fleet.verify_runs import (
    check_board,
    check_deleted,
    check_queries,
    check_statistics,
    check_trace_ranges,
    digest_of_run,
)
from workers.judge.checks import Check, Judged, Record, check_entries, check_numbers, check_store
from workers.judge.run_contents import RunChecks, check_chain, check_run, read_cells
from workers.judge.values import canonical, digest_of, shorten


@dataclass(slots=True, kw_only=True)
class FleetVerdict(Judged):
    """All checks, and the digest of the part that the seed determines."""

    digest: str


def check_shared_log(
    check: Check,
    first: Record,
    expected: Sequence[Iterable[Record]],
    found: Iterable[Any],
    reports: Sequence[AgentReport],
) -> None:
    """Each agent's events once, in its order, at the sequences that were acknowledged to it."""
    awaited: list[Iterator[Record]] = [iter(records) for records in expected]
    acknowledged: list[Iterator[int]] = [iter(()) for _ in expected]
    for report in reports:
        if 0 <= report.worker < len(acknowledged):
            acknowledged[report.worker] = iter(report.sequences)
    for sequence, event in enumerate(found):
        check.equal(event.sequence, sequence, f"the sequence of event {sequence}")
        have = [event.event_type, event.payload]
        if sequence == 0:
            check.equal(have, list(first), "the first event")
            continue
        agent = event.payload.get("agent") if isinstance(event.payload, dict) else None
        if type(agent) is not int or not 0 <= agent < len(awaited):
            check.require(False, f"event {sequence} is of no agent: {shorten(have)}")
            continue
        check.equal(have, list(next(awaited[agent], ())), f"event {sequence}")
        told = next(acknowledged[agent], None)
        check.require(told == sequence, f"event {sequence} was acknowledged to agent {agent} as {told}")
    for agent, rest in enumerate(zip(awaited, acknowledged, strict=True)):
        for what, left in zip(("events", "acknowledged events"), rest, strict=True):
            lost = sum(1 for _ in left)
            check.require(not lost, f"{lost} {what} of agent {agent} are lost")


def check_reports(
    check: Check, expected: ExpectedFleet, runs: FleetRuns, reports: Sequence[AgentReport]
) -> None:
    """What the agents say was acknowledged is what their plans ask for."""
    spec = expected.spec
    check.equal([report.worker for report in reports], list(range(spec.workers)), "the list of reports")
    for report in reports:
        mine = expected.contributed[report.worker]
        scratches = list(lifecycle.scratches(spec, report.worker))
        traces = len(expected.kept[runs.of(report.worker)].traces)
        for name, have, want in (
            ("steps", report.counts["steps"], spec.steps),
            ("tool calls", report.counts["tool_calls"], mine["calls"]),
            ("failed tool calls", report.counts["tool_failures"], mine["failures"]),
            ("contributions", report.contributed, mine),
            ("traces", report.counts["traces"], traces + sum(len(one.traces) for one in scratches)),
            ("runs created", report.counts["runs_created"], 1 + len(scratches)),
        ):
            check.require(have == want, f"agent {report.worker} reports {have} {name}, not {want}")


def check_totals(check: Check, shared: Mapping[str, Any], reports: Sequence[AgentReport]) -> None:
    """The shared totals are the sums of what was acknowledged to the agents."""
    sums: Counter[str] = Counter()
    for report in reports:
        sums.update(report.contributed)
    for name, amount in sorted(sums.items()):
        check.equal(shared.get(f"total:{name}"), amount, f"total:{name}")


def verify(
    db: Any,
    spec: FleetSpec,
    runs: FleetRuns,
    reports: Sequence[AgentReport],
    pause: Callable[[], None] = lambda: None,
) -> FleetVerdict:
    """Read a whole fleet back and compare. Cost: a read of everything it wrote.

    `pause` is called between runs; it may raise to give up.
    """
    names = ("working memory", "agents' logs", "chains", "cells", "traces", "trace queries", "runs")
    of = RunChecks(*map(Check, names))
    told, totals, tickets, anchors, log, board, deleted, statistics, whole = map(Check, (
        "agents' reports", "shared totals", "tickets", "acknowledged heads", "shared log", "task board",
        "deleted runs", "statistics", "integrity",
    ))  # fmt: skip
    expected = expect(spec, runs)
    for run, want in expected.kept.items():
        pause()
        of.compare(db, run, want, timed=True, raced=("tasks",))  # which tasks: see the task board
    agents = [runs.of(worker) for worker in range(spec.workers)]
    for worker, run in enumerate(agents):
        pause()
        check_trace_ranges(of.queries, db, spec, run, expected.kept[run].traces)
        last = len(expected.kept[run].events) - 1
        anchor = reports[worker].anchor if worker < len(reports) else None
        anchored = anchor is not None and db.events.verify_chain(run, anchor=anchor).is_valid
        anchors.require(
            anchored and anchor is not None and anchor[0] == last,
            f"{run}: the log does not end in the event that was acknowledged last",
        )
    for run in expected.deleted:
        pause()
        check_deleted(deleted, db, run)
    pause()
    shared = dict(db.kv.list_with_values(runs.shared))
    check_entries(of.kv, runs.shared, expected.shared, shared)
    logs = [shared_log(spec, worker) for worker in range(spec.workers)]
    check_shared_log(log, started_event(spec), logs, db.events.iter(runs.shared), reports)
    check_chain(of.chain, db.events, runs.shared, expected.shared_length)
    check_run(of.records, db.runs, runs.shared, expected.record)
    pause()
    records = {run: want.record for run, want in expected.kept.items()} | {runs.shared: expected.record}
    check_queries(of.records, db, runs, records)
    check_statistics(statistics, db, records)
    noted = [state.value if (state := db.cells.read(run, "tasks")) else None for run in agents]
    check_board(board, db, runs.shared, spec, reports, noted, read_cells(db.cells, runs.shared))
    check_totals(totals, shared, reports)
    credits = sum(db.kv.get(run, "credits", 0) for run in agents)  # handing over conserves the sum
    totals.equal(credits, START_CREDITS * spec.workers, "the sum of credits")
    check_numbers(
        tickets, "tickets", (ticket for report in reports for ticket in report.tickets),
        spec.workers * spec.steps,
    )  # fmt: skip
    check_reports(told, expected, runs, reports)
    pause()
    check_store(whole, db.check())
    digests = [part for run in agents for part in (_digest_data(db, run), digest_of_run(db, run))]
    digests.append(_digest_shared(shared, db.events.iter(runs.shared)))
    checks = [
        told, totals, tickets, of.kv, of.log, anchors, log, of.chain, of.records, statistics, of.cells, board,
        of.traces, of.queries, deleted, whole,
    ]  # fmt: skip
    return FleetVerdict(checks=checks, digest=digest_of(digests))


def _digest_data(db: Any, run: str) -> str:
    events = ([event.event_type, event.payload] for event in db.events.iter(run))
    return digest_of(chain([dict(db.kv.list_with_values(run))], events))


def _digest_shared(kv: Mapping[str, Any], events: Iterable[Any]) -> str:
    # The order between agents is not determined, the order of each agent's own events is.
    parts: dict[str, list[str]] = {}
    for event in events:
        agent = event.payload.get("agent") if isinstance(event.payload, dict) else None
        parts.setdefault(canonical(agent), []).append(canonical([event.event_type, event.payload]))
    return digest_of([dict(kv), *(digest_of(parts[agent]) for agent in sorted(parts))])
