"""The main job: agents in many processes share one store, and everything is checked at the end.

Invariant: `ok` is True only if every agent finished, every check of `verify`
compared something and found nothing, and a throw-away store left nothing
behind. This module knows neither options nor screen.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import inmem
from workers.fleet.agent import AgentTask, work
from workers.fleet.expected import started_event
from workers.fleet.lifecycle import QUEUE, fleet_metadata, fleet_tags, open_tasks, task_name
from workers.fleet.plan import START_CREDITS, TOOLS, FleetRuns, FleetSpec
from workers.fleet.reports import AgentReport
from workers.fleet.tasks import OPEN
from workers.fleet.verify import verify
from workers.judge.checks import Judged
from workers.observer import Observer
from workers.pool import Interrupt, WorkerPool
from workers.stores import StoreOptions, opened_store


@dataclass(slots=True)
class FleetResult(Judged):
    """What came of a fleet."""

    spec: FleetSpec
    runs: FleetRuns
    durability: str
    reports: list[AgentReport] = field(default_factory=list)
    digest: str | None = None  # of what the seed determines
    work_s: float = 0.0  # from the first process to the last result
    verify_s: float = 0.0


def run_fleet(
    spec: FleetSpec, options: StoreOptions, interrupt: Interrupt, observer: Observer | None = None
) -> FleetResult:
    """Run a fleet to its end and verify it.

    Raises:
        Interrupted, TimedOut: workers are stopped and a throw-away store is
            removed before this leaves the function.
        LeftBehind: there is no result, and a throw-away store did not go away.
        InmemError: the store could not be opened or prepared.
    """
    left: list[str] = []
    with opened_store(options, left) as db:
        result = _run_on(db, spec, options, interrupt, observer or Observer())
    result.failures += left
    return result


def _run_on(
    db: Any, spec: FleetSpec, options: StoreOptions, interrupt: Interrupt, observer: Observer
) -> FleetResult:
    runs = FleetRuns(f"fleet:{inmem.RunId.new()}")
    status = db.status()
    result = FleetResult(spec, runs, status.durability)
    observer.phase([spec.steps] * spec.workers, "steps")
    observer.note(f"Store {db.name}, writer process {status.writer_pid or 'none'}")
    prepare(db, spec, runs)
    interrupt.check()
    started = time.perf_counter()
    place = options.place(db)
    tasks = [(AgentTask(place, spec, runs, worker, options.timeout_s),) for worker in range(spec.workers)]
    with WorkerPool(work, tasks, name="agent", start_method=options.start_method) as pool:
        outcome = pool.run(observer.progress, interrupt)
    result.work_s = time.perf_counter() - started
    result.reports = outcome.in_order()
    result.failures = outcome.told("agent")
    if result.failures:
        with suppress(inmem.InmemError):  # the agents' failures are what is to be told
            conclude(db, runs, len(outcome.results), len(outcome.failures))
        return result
    conclude(db, runs, len(outcome.results), 0)
    observer.note("All agents are done; reading everything back")
    started = time.perf_counter()
    verdict = verify(db, spec, runs, result.reports, interrupt.check)
    result.checks, result.digest = verdict.checks, verdict.digest
    result.verify_s = time.perf_counter() - started
    return result


def prepare(db: Any, spec: FleetSpec, runs: FleetRuns) -> None:
    """One transaction over all runs of the fleet: its own run, credits, totals, tasks, the first event."""
    names = ("calls", "failures", "cost", *(f"calls:{tool}" for tool in TOOLS))

    def begin(txn: Any) -> None:
        event_type, payload = started_event(spec)
        txn.runs.create_run(tags=fleet_tags(), metadata=fleet_metadata(spec))
        for number in range(open_tasks(spec, "board")):
            txn.cells.init(task_name(number), OPEN)
        txn.queues.put_many(QUEUE, range(open_tasks(spec, "queue")))
        txn.kv.put("spec", payload)
        for name in names:
            txn.kv.put(f"total:{name}", 0)
        txn.events.append(event_type, payload)
        for worker in range(spec.workers):
            txn.at(runs.of(worker)).kv.put("credits", START_CREDITS)

    db.transact(runs.shared, begin)


def conclude(db: Any, runs: FleetRuns, ended: int, failed: int) -> None:
    """The end of the fleet's own run, once its agents are done."""

    def end(txn: Any) -> None:
        txn.runs.update_metadata({"ended": ended})
        if failed:
            txn.runs.fail_run(f"{failed} agents failed")
        else:
            txn.runs.complete_run()

    db.transact(runs.shared, end)
