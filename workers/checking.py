"""Checks: what was found against what was expected, counted and told.

Invariant: a check compares everything it names and says how much that was; a
check that compared nothing is a failure, not a pass. The checkers take plain
data, so that a test can hand them a damaged copy and see them fail. Knows
neither fleet nor replay: each says what it expects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

import inmem
from workers.canonical import same, shorten
from workers.plan import Record

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


def check_chain(check: Check, run: str, chain: Any, length: int, expected_length: int) -> None:
    """The hash chain is whole and as long as the log."""
    check.require(chain.is_valid, f"{run}: the chain breaks at {chain.first_invalid}: {chain.error}")
    check.require(
        chain.length == length == expected_length,
        f"{run}: {expected_length} events expected, {length} counted, {chain.length} in the chain",
    )


def check_cells(
    check: Check, run: str, expected: Mapping[str, tuple[Any, int]], found: Mapping[str, tuple[Any, int]]
) -> None:
    """Same names, and the same value at the same version under each."""
    for name in sorted(expected.keys() | found.keys()):
        want, have = expected.get(name), found.get(name)
        if have is None:
            check.require(False, f"{run}: the cell {name!r} is lost")
        elif want is None:
            check.require(False, f"{run}: the cell {name!r} should not be there")
        else:
            check.require(
                same(list(want), list(have)),
                f"{run}: the cell {name!r} is {shorten(have)}, expected {shorten(want)}",
            )


def read_cells(reads: Any, run: str) -> dict[str, tuple[Any, int]]:
    """Value and version of every cell of a run."""
    found = {}
    for name in reads.list(run):
        state = reads.read(run, name)
        if state is not None:
            found[name] = (state.value, state.version)
    return found


def type_name(body: Any) -> str:
    """The name under which a trace with this body is found."""
    if isinstance(body, inmem.Custom):
        return body.trace_type
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
        check.require(
            left is not None and right is not None and same(left, right),
            f"{run}: the trace is {shorten(right)}, expected {shorten(left)}",
        )


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
        check.require(
            walked == wanted, f"{name}: the tree of {root} is {shorten(walked)}, expected {shorten(wanted)}"
        )


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
        check.require(same(left, right), f"{name}: {what} is {shorten(right)}, expected {shorten(left)}")
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
