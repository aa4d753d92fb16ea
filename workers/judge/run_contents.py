"""What a run must hold in all five primitives, compared with what a store gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import inmem
from workers.judge.checks import Check, Record, check_entries
from workers.judge.values import shorten


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


@dataclass(frozen=True, slots=True)
class ExpectedContents:
    """What a run must hold; `traces` has parents before children, and siblings in their order."""

    record: ExpectedRun
    kv: Mapping[str, Any]
    events: Sequence[Record]
    cells: Mapping[str, tuple[Any, int]]  # value, version
    traces: Sequence[inmem.NewTrace]


@dataclass(slots=True)
class RunChecks:
    """The checks that runs are compared in, by what they are of."""

    kv: Check
    log: Check
    chain: Check
    cells: Check
    traces: Check
    queries: Check  # of traces
    records: Check

    def compare(
        self, db: Any, run: str, want: ExpectedContents, *, timed: bool, raced: Iterable[str] = ()
    ) -> None:
        """All of one run, but for cells that a race decides; `timed` if the traces' times are the plan's."""
        check_entries(self.kv, run, want.kv, dict(db.kv.list_with_values(run)))
        check_log(self.log, run, want.events, db.events.iter(run))
        check_chain(self.chain, db.events, run, len(want.events))
        cells = {name: found for name, found in read_cells(db.cells, run).items() if name not in raced}
        check_entries(self.cells, f"{run}: cells", want.cells, cells)
        check_traces(self.traces, db.traces, run, want.traces, timed)
        check_trees(self.queries, db.traces, run, want.traces)
        check_trace_names(self.queries, db.traces, run, want.traces, timed)
        check_run(self.records, db.runs, run, want.record)


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


def check_chain(check: Check, events: Any, run: str, expected_length: int) -> None:
    """The hash chain of a run is whole and as long as its log."""
    chain, length = events.verify_chain(run), events.count(run)
    check.require(chain.is_valid, f"{run}: the chain breaks at {chain.first_invalid}: {chain.error}")
    check.require(
        chain.length == length == expected_length,
        f"{run}: {expected_length} events expected, {length} counted, {chain.length} in the chain",
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
    check: Check, traces: Any, run: str, expected: Sequence[inmem.NewTrace], timed: bool
) -> None:
    """The same traces; in the same order if their times are the plan's."""
    found = traces.list(run)
    count = traces.count(run)
    check.require(count == len(expected), f"{run}: {count} traces are counted, not {len(expected)}")
    wanted = [trace_data(trace, timed) for trace in expected]
    have = [trace_data(trace, timed) for trace in found]
    if not timed:
        wanted.sort(key=lambda data: data[0])
        have.sort(key=lambda data: data[0])
    places = [(trace.timestamp, trace.id) for trace in found]
    check.require(places == sorted(places), f"{run}: traces are not in order of time")
    for left, right in zip_longest(wanted, have):
        check.equal(right, left, f"{run}: the trace")


def check_trees(check: Check, traces: Any, run: str, expected: Sequence[inmem.NewTrace]) -> None:
    """Roots, and the tree below each, as the parents say; `expected` has siblings in their order."""
    children: dict[str | None, list[str]] = {}
    for trace in expected:
        children.setdefault(trace.parent_id, []).append(str(trace.id))
    roots = sorted(trace.id for trace in traces.roots(run))
    check.require(roots == sorted(children.get(None, ())), f"{run}: {len(roots)} roots")
    for root in roots:
        wanted: list[tuple[int, str]] = []
        waiting = [(0, root)]
        while waiting:
            depth, node = waiting.pop()
            wanted.append((depth, node))
            waiting += [(depth + 1, child) for child in reversed(children.get(node, ()))]
        walked = [(depth, trace.id) for depth, trace in traces.get_tree(run, root).walk()]
        check.equal(walked, wanted, f"{run}: the tree of {root}")


def check_trace_names(
    check: Check, traces: Any, run: str, expected: Iterable[inmem.NewTrace], timed: bool
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
        check.equal(have, want, f"{run}: what the {what} {asked} finds")


def run_data(run: Any) -> list[Any]:
    """What a run's record says, without its times, its id and its parent's, which differ per start."""
    return [str(run.status), list(run.tags), dict(run.metadata), run.error, run.version]


def check_run(check: Check, runs: Any, run: str, expected: ExpectedRun) -> None:
    """A run's record, field by field, and the children that name it as their parent."""
    found = runs.get_run(run)
    if found is None:
        check.require(False, f"{run}: has no record")
        return
    want = [expected.status, list(expected.tags), expected.metadata, expected.error, expected.version]
    have = run_data(found)
    fields = ("status", "tags", "metadata", "error", "version")
    for what, left, right in zip(fields, want, have, strict=True):
        check.equal(right, left, f"{run}: {what}")
    check.require(found.parent_run == expected.parent, f"{run}: its parent is {found.parent_run}")
    ended = expected.status in ("completed", "failed", "cancelled")
    times = [found.created_at, found.completed_at or found.updated_at, found.updated_at]
    check.require(
        times == sorted(times) and (not ended or found.completed_at is not None),
        f"{run}: created, ended and changed at {times}",
    )
    children = sorted(child.run_id for child in runs.get_child_runs(run))
    check.equal(children, sorted(expected.children), f"{run}: the list of its children")
