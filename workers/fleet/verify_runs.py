"""The runs of a fleet, read back: queries, statistics, tasks, and what must be gone.

Invariant: a run that was deleted is nowhere: no record, no data, no index
entry, and it takes no write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import inmem
from workers.fleet import lifecycle
from workers.fleet.plan import FleetRuns, FleetSpec
from workers.fleet.reports import AgentReport
from workers.judge.checks import Check
from workers.judge.run_contents import ExpectedRun, read_cells, run_data, trace_data, type_name
from workers.judge.values import digest_of, shorten


def check_trace_ranges(
    check: Check, db: Any, spec: FleetSpec, run: str, expected: Sequence[inmem.NewTrace]
) -> None:
    """Traces by time, and the last ones of a type."""

    def ask(what: str, found: Sequence[inmem.Trace], want: list[str]) -> None:
        check.equal([trace.id for trace in found], want, f"{run}: what {what} gives")

    for kind in sorted({type_name(trace.body) for trace in expected}):
        want = [str(trace.id) for trace in expected if type_name(trace.body) == kind]
        ask(f"last of {kind}", db.traces.query_by_type(run, kind, limit=2, reverse=True), want[:-3:-1])
    half, after = spec.steps // 2, spec.steps + 1
    for first, last in ((0, half), (half, half + 1), (half, after), (after, after + 1)):
        start, end = lifecycle.at(first, 0), lifecycle.at(last, 0)
        want = [str(trace.id) for trace in expected if trace.timestamp and start <= trace.timestamp < end]
        ask(f"steps {first} to {last}", db.traces.query_by_time(run, start, end), want)


def check_deleted(check: Check, db: Any, run: str) -> None:
    """Nothing is left of a run, and it refuses to be written to or made again."""
    check.require(db.runs.get_run(run) is None, f"{run}: deleted, it has a record")
    left = {
        "entries": len(db.kv.list_with_values(run)),
        "events": db.events.count(run),
        "cells": len(db.cells.list(run)),
        "traces": db.traces.count(run) + len(db.traces.list(run)),
        "children": len(db.runs.get_child_runs(run)),
    }
    check.require(not any(left.values()), f"{run}: deleted, it still has {left}")
    writes: dict[str, Callable[[], Any]] = {
        "a write": lambda: db.kv.put(run, "late", 1),
        "its creation": lambda: db.runs.create_run(run_id=run),
        "its deletion": lambda: db.runs.delete_run(run),
    }
    for what, write in writes.items():
        try:
            write()
        except inmem.RunDeletedError:
            check.require(True, "")
        else:
            check.require(False, f"{run}: deleted, it took {what}")


def check_queries(check: Check, db: Any, runs: FleetRuns, wanted: dict[str, ExpectedRun]) -> None:
    """Runs by status, tag and parent; archived ones only when asked for."""

    def ask(what: str, found: Sequence[Any], want: set[str]) -> None:
        have = [run.run_id for run in found]
        check.require(
            len(have) == len(set(have)) and want == set(have),
            f"runs with {what}: {shorten(sorted(set(have) ^ want))} too many or too few",
        )

    agents = {run: record for run, record in wanted.items() if record.parent == runs.shared}
    shown = {run for run, record in agents.items() if record.status != "archived"}
    ask("the fleet as parent", db.runs.query_runs(parent_run=runs.shared), shown)
    ask(
        "the fleet as parent, archived too",
        db.runs.query_runs(parent_run=runs.shared, include_archived=True),
        set(agents),
    )
    for status in inmem.RunStatus:
        want = {run for run, record in agents.items() if record.status == status}
        ask(f"status {status}", db.runs.query_runs(parent_run=runs.shared, status=status), want)
    for tag in sorted({tag for record in agents.values() for tag in record.tags}):
        want = {run for run in shown if tag in agents[run].tags}
        ask(f"tag {tag}", db.runs.query_runs(parent_run=runs.shared, tags=[tag]), want)
    listed, every = set(db.runs.list_runs()), set(db.runs.list_runs(include_archived=True))
    hidden = {run for run, record in wanted.items() if record.status == "archived"}
    check.require(hidden.isdisjoint(listed), "an archived run is listed unasked")
    check.require(hidden <= every and set(wanted) - hidden <= listed, "a run is missing in the list")


def check_statistics(check: Check, db: Any, wanted: dict[str, ExpectedRun]) -> None:
    """The counts are those of the runs counted one by one, in the same moment, and hold this fleet's."""
    with db.snapshot("-") as view:
        stats = view.runs.get_stats()
        found = view.runs.query_runs(include_archived=True)
    every = Counter(str(run.status) for run in found)
    mine = Counter(str(run.status) for run in found if run.run_id in wanted)
    want = Counter(record.status for record in wanted.values())
    have = {str(status): count for status, count in stats.by_status.items() if count}
    check.require(have == every, f"the statistics say {have}, counted are {every}")
    check.require(stats.total == len(found), f"the total is {stats.total}, counted are {len(found)}")
    check.require(mine == want, f"of this fleet {mine} are counted, expected {want}")


def check_board(
    check: Check,
    db: Any,
    run: str,
    spec: FleetSpec,
    reports: Sequence[AgentReport],
    own: Sequence[Any],
    cells: dict[str, tuple[Any, int]],
) -> None:
    """Every task has one owner: its cell or job, the agent's own note and its report say the same."""
    owners: dict[str, dict[int, int]] = {"board": {}, "queue": {}}
    for report in reports:
        for source, numbers in report.tasks.items():
            want = lifecycle.claims(spec, source)
            check.require(
                len(numbers) == want, f"agent {report.worker} has {len(numbers)} of the {source}, not {want}"
            )
            for number in numbers:
                other = owners[source].setdefault(number, report.worker)
                check.require(
                    other == report.worker and numbers.count(number) == 1,
                    f"task {number} of the {source} was given to agents {other} and {report.worker}",
                )
        noted = own[report.worker] if report.worker < len(own) else None
        check.equal(noted, report.tasks, f"what agent {report.worker} noted")
    left = dict(cells)
    for number in range(spec.workers * lifecycle.claims(spec, "board")):
        done = {"state": "done", "by": owners["board"].get(number)}
        found = left.pop(lifecycle.task_name(number), None)
        check.equal(found, (done, 3), f"task {number} of the board")
    check.require(not left, f"cells that should not be there: {shorten(sorted(left))}")
    tasks = spec.workers * lifecycle.claims(spec, "queue")
    jobs = [db.queues.get(run, lifecycle.job_id(number)) for number in range(tasks)]
    results = {job.result["task"]: (job.result, job.attempt) for job in jobs if job and job.state == "done"}
    for number in range(tasks):
        did = {"state": "done", "by": owners["queue"].get(number), "task": number}
        check.equal(results.get(number), (did, 1), f"task {number} of the queue")
    counts = db.queues.counts(run, lifecycle.QUEUE)
    check.require(
        not (counts.ready or counts.delayed or counts.claimed or counts.dead)
        and db.queues.get(run, lifecycle.job_id(tasks)) is None,
        f"the queue has other tasks than those that were taken: {counts}",
    )


def digest_of_run(db: Any, run: str) -> str:
    """Of what the seed determines in a run's record, cells and traces."""
    record = db.runs.get_run(run)
    cells = read_cells(db.cells, run)
    tasks = cells.pop("tasks", None)  # which tasks is a matter of luck, how many is not
    counts = None if tasks is None else [tasks[1], *(len(numbers) for numbers in tasks[0].values())]
    told = {name: list(found) for name, found in cells.items()}
    traces = [trace_data(trace) for trace in db.traces.list(run)]
    return digest_of([None if record is None else run_data(record), told, counts, *traces])
