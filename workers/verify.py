"""What was read back, against what was expected and what was acknowledged.

Invariant: a check compares everything it names and says how much that was; a
check that compared nothing is a failure, not a pass. The checkers take plain
data, so that a test can hand them a damaged copy and see them fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

from workers.agent import AgentReport
from workers.canonical import canonical, digest_of, same, shorten
from workers.expect import ExpectedFleet, agent_log, expect, shared_log, started_event
from workers.plan import START_CREDITS, FleetRuns, FleetSpec, Record

MAX_PROBLEMS: Final = 5  # told per check; the rest is counted

_MISSING: Final = object()


@dataclass(slots=True)
class Check:
    """One question about the final state: how much was compared, and what was wrong."""

    name: str
    compared: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    @property
    def ok(self) -> bool:
        return self.compared > 0 and not self.problem_count

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def require(self, condition: bool, text: str) -> None:
        """Count one comparison, and a problem if it does not hold."""
        self.compared += 1
        if not condition:
            self.problem(text)

    def summary(self) -> str:
        """One line for a person."""
        if self.ok:
            return f"{self.compared:,} compared"
        if not self.problem_count:
            return "nothing was compared"
        more = self.problem_count - len(self.problems)
        return "; ".join(self.problems) + (f"; and {more} more" if more else "")


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


def check_kv(check: Check, run: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Same keys, and the same value with the same type under each."""
    for key in sorted(expected.keys() | found.keys()):
        want, have = expected.get(key, _MISSING), found.get(key, _MISSING)
        if have is _MISSING:
            check.require(False, f"{run}: {key!r} is lost")
        elif want is _MISSING:
            check.require(False, f"{run}: {key!r} should not be there")
        else:
            check.require(
                same(want, have), f"{run}: {key!r} is {shorten(have)}, expected {shorten(want)}"
            )


def check_log(check: Check, run: str, expected: Iterable[Record], found: Iterable[Any]) -> None:
    """The same events in the same order, numbered from 0 without a gap. Streams."""
    for sequence, (want, have) in enumerate(zip_longest(expected, found)):
        if have is None:
            check.require(False, f"{run}: event {sequence} is lost: {shorten(want)}")
        elif want is None:
            check.require(False, f"{run}: event {have.sequence} should not be there: {shorten(have)}")
        else:
            check.require(
                have.sequence == sequence, f"{run}: event {sequence} has sequence {have.sequence}"
            )
            check.require(
                have.event_type == want[0] and same(have.payload, want[1]),
                f"{run}: event {sequence} is {shorten((have.event_type, have.payload))}, "
                f"expected {shorten(want)}",
            )


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


def check_chain(check: Check, run: str, chain: Any, length: int, expected_length: int) -> None:
    """The hash chain is whole and as long as the log."""
    check.require(chain.is_valid, f"{run}: the chain breaks at {chain.first_invalid}: {chain.error}")
    check.require(
        chain.length == length == expected_length,
        f"{run}: {expected_length} events expected, {length} counted, {chain.length} in the chain",
    )


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
    checks = [told, totals, tickets, kv, log, anchors, shared_check, chain]
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
