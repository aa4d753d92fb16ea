"""Checks: what was found against what was expected, counted and told.

Invariant: a check compares everything it names and says how much that was; a
check that compared nothing is a failure, not a pass. The checkers take plain
data, so that a test can hand them a damaged copy and see them fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

import inmem
from workers.judge.values import same, shorten

Record = tuple[str, dict[str, Any]]  # an event: type, payload
MAX_PROBLEMS: Final = 5  # told per check; the rest is counted


@dataclass(slots=True)
class Check:
    """One question about the final state: how much was compared, and what was wrong."""

    name: str
    compared: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    lost: int = 0  # of what was acknowledged and can be counted one by one
    doubled: int = 0

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

    def count(self, least: int, have: int, most: int) -> None:
        """Count what is missing of what was acknowledged, and what is there beyond what was asked for."""
        self.lost += max(0, least - have)
        self.doubled += max(0, have - most)

    def equal(self, have: Any, want: Any, what: str) -> None:
        """Count one comparison of two values and their types."""
        self.require(same(have, want), f"{what} is {shorten(have)}, expected {shorten(want)}")

    def summary(self) -> str:
        """One line for a person."""
        if self.ok:
            return f"{self.compared:,} compared"
        if not self.problem_count:
            return "nothing was compared"
        more = self.problem_count - len(self.problems)
        return "; ".join(self.problems) + (f"; and {more} more" if more else "")


@dataclass(slots=True, kw_only=True)
class Judged:
    """What came of a program: failures of its processes, and the checks that followed."""

    failures: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and bool(self.checks) and all(check.ok for check in self.checks)

    def problems(self) -> list[str]:
        return self.failures + [f"{one.name}: {one.summary()}" for one in self.checks if not one.ok]


def check_numbers(check: Check, what: str, numbers: Iterable[int], final: int, unknown: int = 0) -> None:
    """Every number from 1 to `final` was given to one question, but for as many as had no answer."""
    seen: set[int] = set()
    for number in numbers:
        check.require(number not in seen, f"{what}: {number} was given twice")
        check.require(1 <= number <= final, f"{what}: {number} was given, the last is {final}")
        seen.add(number)
    missing = final - len(seen)
    check.require(
        0 <= missing <= unknown, f"{what}: the last is {final}, but {len(seen)} were acknowledged"
    )


def check_entries(check: Check, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Same names, and the same value with the same type under each."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            check.require(False, f"{what}: {name!r} is lost")
        elif name not in expected:
            check.require(False, f"{what}: {name!r} should not be there")
        else:
            check.equal(found[name], expected[name], f"{what}: {name!r}")


def check_log(check: Check, run: str, expected: Iterable[Record], found: Iterable[Any]) -> None:
    """The same events in the same order, numbered from 0 without a gap. Streams."""
    for sequence, (want, have) in enumerate(zip_longest(expected, found)):
        if have is None:
            check.require(False, f"{run}: event {sequence} is lost: {shorten(want)}")
        elif want is None:
            check.require(False, f"{run}: event {have.sequence} should not be there: {shorten(have)}")
        else:
            check.equal(have.sequence, sequence, f"{run}: the sequence of event {sequence}")
            check.equal([have.event_type, have.payload], list(want), f"{run}: event {sequence}")


def check_chain(check: Check, name: str, events: Any, run: str, expected_length: int) -> None:
    """The hash chain of a run is whole and as long as its log."""
    chain, length = events.verify_chain(run), events.len(run)
    check.require(chain.is_valid, f"{name}: the chain breaks at {chain.first_invalid}: {chain.error}")
    check.require(
        chain.length == length == expected_length,
        f"{name}: {expected_length} events expected, {length} counted, {chain.length} in the chain",
    )


def read_cells(cells: Any, run: str) -> dict[str, tuple[Any, int]]:
    """Value and version of every cell of a run."""
    states = ((name, cells.read(run, name)) for name in cells.list(run))
    return {name: (state.value, state.version) for name, state in states if state is not None}


def type_name(body: Any) -> str:
    """The name under which a trace with this body is found."""
    if isinstance(body, inmem.Custom):
        return str(body.trace_type)
    return "Error" if isinstance(body, inmem.ErrorTrace) else type(body).__name__


def trace_data(trace: inmem.NewTrace | inmem.Trace, timed: bool = True) -> list[Any]:
    """Everything that a trace says, as a value; without its time if that is the store's."""
    body = {part.name: getattr(trace.body, part.name) for part in dataclasses.fields(trace.body)}
    metadata = dict(trace.metadata or {})
    named = [trace.id, trace.parent_id, type(trace.body).__name__, body, list(trace.tags), metadata]
    return [*named, trace.timestamp] if timed else named


def check_traces(
    check: Check, run: str, expected: Sequence[inmem.NewTrace], found: Sequence[inmem.Trace], timed: bool
) -> None:
    """The same traces; in the same order if their times are the plan's."""
    wanted = [trace_data(trace, timed) for trace in expected]
    have = [trace_data(trace, timed) for trace in found]
    if not timed:
        wanted.sort(key=lambda data: data[0])
        have.sort(key=lambda data: data[0])
    places = [(trace.timestamp, trace.id) for trace in found]
    check.require(places == sorted(places), f"{run}: traces are not in order of time")
    for left, right in zip_longest(wanted, have):
        check.equal(right, left, f"{run}: the trace")


def check_trees(
    check: Check, name: str, traces: Any, run: str, expected: Sequence[inmem.NewTrace]
) -> None:
    """Roots, and the tree below each, as the parents say; `expected` has siblings in their order."""
    children: dict[str | None, list[str]] = {}
    for trace in expected:
        children.setdefault(trace.parent_id, []).append(str(trace.id))
    roots = sorted(trace.id for trace in traces.roots(run))
    check.require(roots == sorted(children.get(None, ())), f"{name}: {len(roots)} roots")
    for root in roots:
        wanted: list[tuple[int, str]] = []
        waiting = [(0, root)]
        while waiting:
            depth, node = waiting.pop()
            wanted.append((depth, node))
            waiting += [(depth + 1, child) for child in reversed(children.get(node, ()))]
        walked = [(depth, trace.id) for depth, trace in traces.get_tree(run, root).walk()]
        check.equal(walked, wanted, f"{name}: the tree of {root}")


def check_trace_names(
    check: Check, name: str, traces: Any, run: str, expected: Iterable[inmem.NewTrace], timed: bool
) -> None:
    """Every trace is found by its type and by each of its tags; in order if their times are the plan's."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for trace in expected:
        for query in (("type", type_name(trace.body)), *(("tag", tag) for tag in trace.tags)):
            wanted.setdefault(query, []).append(str(trace.id))
    for (what, asked), want in wanted.items():
        find = traces.query_by_type if what == "type" else traces.query_by_tag
        have = [trace.id for trace in find(run, asked)]
        if not timed:
            have, want = sorted(have), sorted(want)
        check.equal(have, want, f"{name}: what the {what} {asked} finds")


@dataclass(frozen=True, slots=True)
class ExpectedRun:
    """What a run's record must say; the times are the store's."""

    status: str
    parent: str | None
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    error: str | None
    version: int
    children: tuple[str, ...] = ()


def run_data(run: Any) -> list[Any]:
    """What a run's record says, without its times, its id and its parent's, which differ per start."""
    return [str(run.status), list(run.tags), dict(run.metadata), run.error, run.version]


def check_run(check: Check, name: str, expected: ExpectedRun, found: Any) -> None:
    """A run's record, field by field."""
    if found is None:
        check.require(False, f"{name}: has no record")
        return
    want = [expected.status, list(expected.tags), expected.metadata, expected.error, expected.version]
    have = run_data(found)
    fields = ("status", "tags", "metadata", "error", "version")
    for what, left, right in zip(fields, want, have, strict=True):
        check.equal(right, left, f"{name}: {what}")
    check.require(found.parent_run == expected.parent, f"{name}: its parent is {found.parent_run}")
    ended = expected.status in ("completed", "failed", "cancelled")
    times = [found.created_at, found.completed_at or found.updated_at, found.updated_at]
    check.require(
        times == sorted(times) and (not ended or found.completed_at is not None),
        f"{name}: created, ended and changed at {times}",
    )


def check_store(check: Check, report: Any) -> None:
    """The store's own check of image, log, chains and indices found nothing."""
    check.compared += max(1, report.records)
    for problem in report.problems:
        check.problem(problem)
