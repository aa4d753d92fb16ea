"""A fleet, read back: against the plan and against what was acknowledged.

Invariant: nothing is taken on trust. What the seed determines is compared
with a recomputation, what a race determines with what the agents were told,
and both with what the store holds, in all five primitives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.fleet.expected import ExpectedFleet, agent_log, expect, shared_log, started_event
from workers.fleet.lifecycle import scratches
from workers.fleet.plan import START_CREDITS, FleetRuns, FleetSpec
from workers.fleet.reports import AgentReport
from workers.fleet.verify_runs import Rest, digest_of_run, verify_rest
from workers.judge.checks import (
    Check,
    Judged,
    Record,
    check_chain,
    check_entries,
    check_log,
    check_numbers,
    check_store,
)
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


def check_reports(check: Check, expected: ExpectedFleet, reports: Sequence[AgentReport]) -> None:
    """What the agents say was acknowledged is what their plans ask for."""
    spec = expected.spec
    check.require(
        [report.worker for report in reports] == list(range(spec.workers)),
        f"reports of agents {[report.worker for report in reports]}, expected {spec.workers}",
    )
    for report in reports:
        mine = expected.contributed[report.worker]
        for name, have, want in (
            ("steps", report.counts["steps"], spec.steps),
            ("tool calls", report.counts["tool_calls"], mine["calls"]),
            ("failed tool calls", report.counts["tool_failures"], mine["failures"]),
            ("contributions", report.contributed, mine),
            ("traces", report.counts["traces"], expected.traces[report.worker]),
            ("runs created", report.counts["runs_created"], 1 + len(list(scratches(spec, report.worker)))),
        ):
            check.require(have == want, f"agent {report.worker} reports {have} {name}, not {want}")


def check_totals(check: Check, shared: Mapping[str, Any], reports: Sequence[AgentReport]) -> None:
    """The shared totals are the sums of what was acknowledged to the agents."""
    sums: Counter[str] = Counter()
    for report in reports:
        sums.update(report.contributed)
    for name, amount in sorted(sums.items()):
        check.equal(shared.get(f"total:{name}"), amount, f"total:{name}")


def check_credits(check: Check, agents: Sequence[Mapping[str, Any]]) -> None:
    """Handing over conserves the sum."""
    total = sum(kv.get("credits", 0) for kv in agents)
    want = START_CREDITS * len(agents)
    check.require(total == want, f"credits add up to {total}, not {want}")


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
    expected = expect(spec)
    kv, log, chain = Check("working memory"), Check("agents' logs"), Check("chains")
    anchors = Check("acknowledged heads")
    agents: list[dict[str, Any]] = []
    digests: list[str] = []
    for worker, want in enumerate(expected.agents):
        pause()
        run = runs.of(worker)
        have = dict(db.kv.list_with_values(run))
        agents.append(have)
        check_entries(kv, f"agent {worker}", want, have)
        check_log(log, f"agent {worker}", agent_log(spec, worker), db.events.iter(run))
        length = expected.log_lengths[worker]
        check_chain(chain, f"agent {worker}", db.events, run, length)
        anchor = reports[worker].anchor if worker < len(reports) else None
        anchored = anchor is not None and db.events.verify_chain(run, anchor=anchor).is_valid
        anchors.require(
            anchored and anchor is not None and anchor[0] == length - 1,
            f"agent {worker}: the log does not end in the event that was acknowledged last",
        )
        digests.append(digest_of(_kv_then_events(have, db.events.iter(run))))
        digests.append(digest_of_run(db, run))
    pause()
    run = runs.shared
    shared = dict(db.kv.list_with_values(run))
    check_entries(kv, "shared run", expected.shared, shared)
    shared_check = Check("shared log")
    check_shared_log(
        shared_check,
        started_event(spec),
        [shared_log(spec, worker) for worker in range(spec.workers)],
        db.events.iter(run),
        reports,
    )
    check_chain(chain, "shared run", db.events, run, expected.shared_length)
    pause()
    digests.append(_digest_shared(spec, shared, db.events.iter(run)))
    totals, tickets, told = Check("shared totals"), Check("tickets"), Check("agents' reports")
    check_totals(totals, shared, reports)
    check_credits(totals, agents)
    check_numbers(tickets, "tickets", (t for report in reports for t in report.tickets), expected.tickets)
    check_reports(told, expected, reports)
    rest = verify_rest(Rest(db, spec, runs, expected, reports), kv, log, pause)
    whole = Check("integrity")
    pause()
    check_store(whole, db.check())
    checks = [told, totals, tickets, kv, log, anchors, shared_check, chain, *rest, whole]
    return FleetVerdict(checks=checks, digest=digest_of(digests))


def _kv_then_events(kv: Mapping[str, Any], events: Iterable[Any]) -> Iterator[Any]:
    yield dict(kv)
    for event in events:
        yield [event.event_type, event.payload]


def _digest_shared(spec: FleetSpec, kv: Mapping[str, Any], events: Iterable[Any]) -> str:
    # The order between agents is not determined, the order of each agent's own events is.
    parts: dict[str, list[str]] = {}
    for event in events:
        agent = event.payload.get("agent") if isinstance(event.payload, dict) else None
        parts.setdefault(canonical(agent), []).append(canonical([event.event_type, event.payload]))
    return digest_of([dict(kv), *(digest_of(parts[agent]) for agent in sorted(parts))])
