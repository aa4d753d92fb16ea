"""A fleet, read back: against the plan and against what was acknowledged.

Invariant: nothing is taken on trust. What the seed determines is compared
with a recomputation, what a race determines with what the agents were told,
and both with what the store holds, in all five primitives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.account import AgentReport
from workers.canonical import canonical, digest_of, same, shorten
from workers.checking import MAX_PROBLEMS, Check, check_chain, check_kv, check_log, check_store
from workers.expect import ExpectedFleet, agent_log, expect, shared_log, started_event
from workers.life import scratches
from workers.plan import START_CREDITS, FleetRuns, FleetSpec, Record
from workers.verify_runs import Rest, digest_of_run, verify_rest


@dataclass(slots=True)
class Verdict:
    """All checks, and the digest of the part that the seed determines."""

    checks: list[Check]
    digest: str

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def problems(self) -> list[str]:
        return [f"{check.name}: {check.summary()}" for check in self.checks if not check.ok]


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
        check.require(event.sequence == sequence, f"event {sequence} has sequence {event.sequence}")
        have = (event.event_type, event.payload)
        if sequence == 0:
            check.require(same(list(have), list(first)), f"the first event is {shorten(have)}")
            continue
        agent = event.payload.get("agent") if isinstance(event.payload, dict) else None
        if type(agent) is not int or not 0 <= agent < len(awaited):
            check.require(False, f"event {sequence} is of no agent: {shorten(have)}")
            continue
        want = next(awaited[agent], None)
        check.require(
            want is not None and same(list(have), list(want)),
            f"event {sequence} is {shorten(have)}, expected {shorten(want)}",
        )
        told = next(acknowledged[agent], None)
        check.require(
            told == sequence, f"event {sequence} was acknowledged to agent {agent} as {told}"
        )
    for agent, (records, sequences) in enumerate(zip(awaited, acknowledged, strict=True)):
        lost = sum(1 for _ in records)
        check.require(not lost, f"{lost} events of agent {agent} are lost")
        lost = sum(1 for _ in sequences)
        check.require(not lost, f"{lost} acknowledged events of agent {agent} are lost")


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
            ("steps", report.steps, spec.steps),
            ("tool calls", report.tool_calls, mine["calls"]),
            ("failed tool calls", report.tool_failures, mine["failures"]),
            ("contributions", report.contributed, mine),
            ("traces", report.traces, expected.traces[report.worker]),
            ("runs created", report.runs_created, 1 + len(list(scratches(spec, report.worker)))),
        ):
            check.require(have == want, f"agent {report.worker} reports {have} {name}, not {want}")


def check_totals(check: Check, shared: Mapping[str, Any], reports: Sequence[AgentReport]) -> None:
    """The shared totals are the sums of what was acknowledged to the agents."""
    sums: dict[str, int] = {}
    for report in reports:
        for name, amount in report.contributed.items():
            sums[name] = sums.get(name, 0) + amount
    for name, amount in sorted(sums.items()):
        have = shared.get(f"total:{name}")
        check.require(
            type(have) is int and have == amount, f"total:{name} is {have}, acknowledged {amount}"
        )


def check_tickets(check: Check, tickets: Iterable[int], count: int) -> None:
    """Every number from 1 to `count` was handed out, and none of them twice."""
    seen: set[int] = set()
    for ticket in tickets:
        check.require(ticket not in seen, f"ticket {ticket} was handed out twice")
        seen.add(ticket)
    missing = set(range(1, count + 1)) - seen
    foreign = seen - set(range(1, count + 1))
    check.require(not missing, f"{len(missing)} tickets were never handed out: {_some(missing)}")
    check.require(not foreign, f"tickets beyond {count} were handed out: {_some(foreign)}")


def check_credits(check: Check, agents: Sequence[Mapping[str, Any]]) -> None:
    """Handing over conserves the sum."""
    total = sum(kv.get("credits", 0) for kv in agents)
    want = START_CREDITS * len(agents)
    check.require(total == want, f"credits add up to {total}, not {want}")


def _some(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:MAX_PROBLEMS]))


def verify(
    db: Any,
    spec: FleetSpec,
    runs: FleetRuns,
    reports: Sequence[AgentReport],
    pause: Callable[[], None] = lambda: None,
) -> Verdict:
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
        check_kv(kv, f"agent {worker}", want, have)
        check_log(log, f"agent {worker}", agent_log(spec, worker), db.events.iter(run))
        length = expected.log_lengths[worker]
        check_chain(chain, f"agent {worker}", db.events.verify_chain(run), db.events.len(run), length)
        anchor = reports[worker].anchor if worker < len(reports) else None
        anchored = anchor is not None and db.events.verify_chain(run, anchor=anchor).is_valid
        anchors.require(
            anchored and anchor is not None and anchor[0] == length - 1,
            f"agent {worker}: the log does not end in the event that was acknowledged last",
        )
        digests.append(_digest_run(have, db.events.iter(run)))
        digests.append(digest_of_run(db, run))
    pause()
    run = runs.shared
    shared = dict(db.kv.list_with_values(run))
    check_kv(kv, "shared run", expected.shared, shared)
    shared_check = Check("shared log")
    check_shared_log(
        shared_check,
        started_event(spec),
        [shared_log(spec, worker) for worker in range(spec.workers)],
        db.events.iter(run),
        reports,
    )
    length = expected.shared_length
    check_chain(chain, "shared run", db.events.verify_chain(run), db.events.len(run), length)
    pause()
    digests.append(_digest_shared(spec, shared, db.events.iter(run)))
    totals, tickets, told = Check("shared totals"), Check("tickets"), Check("agents' reports")
    check_totals(totals, shared, reports)
    check_credits(totals, agents)
    check_tickets(tickets, (t for report in reports for t in report.tickets), expected.tickets)
    check_reports(told, expected, reports)
    rest = verify_rest(Rest(db, spec, runs, expected, reports), kv, log, pause)
    whole = Check("integrity")
    pause()
    check_store(whole, db.check())
    checks = [told, totals, tickets, kv, log, anchors, shared_check, chain, *rest, whole]
    return Verdict(checks, digest_of(digests))


def _digest_run(kv: Mapping[str, Any], events: Iterable[Any]) -> str:
    return digest_of(_kv_then_events(kv, events))


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
