"""One recorded run into the store, and back.

Invariant: whatever was acknowledged is read back, by a process that did not
write it, and equals the source. `inmem.exchange.recorded` stores a step. What
a complete run must hold is stated here again, so that a mistake there shows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import inmem
from inmem import RunExistsError as ForeignRun  # the store holds another record under this run id
from inmem.exchange.recorded import Trajectory, TrajectoryStep, done_of, parse_file, rebuild, store_step
from workers.judge.checks import Check
from workers.judge.run_contents import ExpectedContents, ExpectedRun, RunChecks
from workers.judge.values import same
from workers.pool import Link

__all__ = ["CHECKS", "Anchor", "ForeignRun", "compare", "expected_contents", "load", "load_step", "read_back"]

Event = tuple[str, Any]  # type, payload


class SourceChanged(Exception):
    """A file no longer holds what it held when the work was shared out."""


@dataclass(frozen=True, slots=True)
class ReplayItem:
    """One trajectory: where it is, and what it is stored as."""

    path: Path
    source: str
    number: int  # within its file
    run_id: str
    steps: int
    status: str = ""  # of the run, once it is complete
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last event of the last step that one process was told is stored."""

    step: int
    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """What one worker process has to do."""

    store: str  # the path; every process opens it by itself
    items: tuple[ReplayItem, ...]
    anchors: dict[str, Anchor]  # for reading back: what was acknowledged, by run
    timeout_s: float


@dataclass(slots=True)
class LoadReport:
    """What one worker committed, as far as the store acknowledged it."""

    # runs: new, continued (were half-done), complete (were there already)
    # steps events traces entries cell_changes reruns
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    anchors: dict[str, Anchor] = field(default_factory=dict)


def expected_contents(trajectory: Trajectory) -> ExpectedContents:
    """What a run that is complete holds."""
    steps = trajectory.steps
    kv: dict[str, Any] = {}
    for step in steps:
        kv |= step.kv
    last, count = steps[-1], len(steps)
    return ExpectedContents(
        ExpectedRun(
            status_of(trajectory), None, trajectory.tags, trajectory.metadata, trajectory.error, version=2
        ),
        kv | {"progress": {"digest": trajectory.digest, "steps": count, "done": count}},
        [event for step in steps for event in step.events],
        {"state": (last.state, count), "status": (last.status, 2)},
        [trace for step in steps for trace in step.traces],
    )


def status_of(trajectory: Trajectory) -> str:
    """How a run ends: a trajectory that failed fails it."""
    return "completed" if trajectory.error is None else "failed"


def load_step(
    db: Any, trajectory: Trajectory, step: TrajectoryStep, timeout_s: float
) -> tuple[int, Any, int]:
    """Commit one step: how many are done now, its last event, and how often it was run again.

    Raises:
        ForeignRun: the run id is taken by another record.
    """
    calls = 0

    def attempted() -> None:
        nonlocal calls
        calls += 1

    done, last = store_step(db, trajectory, step, timeout_s, attempted)
    return done, last, calls - 1


def load(link: Link, task: ReplayTask) -> LoadReport:
    """The body of a loading process."""
    report = LoadReport()
    started = time.perf_counter()
    passed = 0
    link.check()
    with inmem.open(task.store, timeout_s=task.timeout_s) as db:
        for trajectory in _trajectories(task.items):
            done = done_of(trajectory, db.kv.get(trajectory.run_id, "progress"))
            count = len(trajectory.steps)
            report.counts.update(new=done == 0, continued=0 < done < count, complete=done == count)
            while done < count:
                link.check()
                step = trajectory.steps[done]
                done, last, reruns = load_step(db, trajectory, step, task.timeout_s)
                report.counts["reruns"] += reruns
                if last is not None:
                    report.counts.update(
                        steps=1, events=len(step.events), traces=len(step.traces), entries=len(step.kv) + 1,
                        cell_changes=1 + (step.index == 0) + (done == count),
                    )  # fmt: skip
                    report.anchors[trajectory.run_id] = Anchor(step.index, last.sequence, last.hash)
                link.progress((passed + done, report.counts["steps"], report.counts["reruns"]))
            passed += count
    report.seconds = time.perf_counter() - started
    link.progress((passed, report.counts["steps"], report.counts["reruns"]), last=True)
    return report


CHECKS: Final = (
    "events", "source records", "final state", "chains", "acknowledged events", "runs", "cells", "traces",
    "trace queries",
)  # fmt: skip


def read_back(link: Link, task: ReplayTask) -> list[Check]:
    """The body of a verifying process: it reads the source itself, and the store."""
    checks = [Check(name) for name in CHECKS]
    passed, total = 0, sum(item.steps for item in task.items)
    link.check()
    with inmem.open(task.store, timeout_s=task.timeout_s) as db:
        for trajectory in _trajectories(task.items):
            link.check()
            compare(db, trajectory, task.anchors.get(trajectory.run_id), checks)
            passed += len(trajectory.steps)
            link.progress((passed, 0, 0), last=passed == total)
    return checks


def compare(db: Any, trajectory: Trajectory, anchor: Anchor | None, checks: list[Check]) -> None:
    """Everything that the store has of one run, against its source."""
    events, records, state, chains, acknowledged, runs, cells, traces, queries = checks
    run, expected = trajectory.run_id, expected_contents(trajectory)
    found = [(event.event_type, event.payload) for event in db.events.iter(run)]
    RunChecks(state, events, chains, cells, traces, queries, runs).compare(db, run, expected, timed=False)
    check_record(records, trajectory, found)
    if anchor is None:  # nothing was acknowledged to this program: the run was complete
        acknowledged.require(len(found) == len(expected.events), f"{run}: the log has another length")
        return
    # Another program may have stored later steps, so this need not be the last event.
    end = sum(len(step.events) for step in trajectory.steps[: anchor.step + 1])
    whole = db.events.verify_chain(run, anchor=(anchor.sequence, anchor.hash)).is_valid
    acknowledged.require(
        whole and anchor.sequence == end - 1,
        f"{run}: the event acknowledged as {anchor.sequence}, the end of step {anchor.step}, is not there",
    )


def check_record(check: Check, trajectory: Trajectory, events: list[Event]) -> None:
    """The source record can be rebuilt from the events alone."""
    try:
        rebuilt = rebuild(events)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        check.require(False, f"{trajectory.run_id}: cannot be rebuilt: {type(error).__name__}: {error}")
        return
    check.require(
        same(rebuilt, trajectory.record), f"{trajectory.run_id}: rebuilt, it differs from its source"
    )


def _trajectories(items: tuple[ReplayItem, ...]) -> Iterator[Trajectory]:
    # A file may hold many runs; it is parsed once, and mapped only as far as asked for.
    by_path: dict[Path, dict[int, ReplayItem]] = {}
    for item in items:
        by_path.setdefault(item.path, {})[item.number] = item
    for path, wanted in by_path.items():
        left = dict(wanted)
        for number, parsed in parse_file(path, next(iter(wanted.values())).source, wanted):
            item = left.pop(number)
            if not isinstance(parsed, Trajectory) or parsed.run_id != item.run_id:
                raise SourceChanged(f"{path} changed while it was being read")
            yield parsed
        if left:
            raise SourceChanged(f"{path} changed while it was being read")
