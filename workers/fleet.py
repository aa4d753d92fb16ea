"""The main job: agents in many processes share one store, and everything is checked at the end.

Invariant: `ok` is True only if every agent finished, every check of `verify`
compared something and found nothing, and a throw-away store left nothing
behind. `python -m workers.fleet --help` tells the options; this module knows
neither options nor screen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import inmem
from workers.account import AgentReport
from workers.agent import AgentTask, work
from workers.board import OPEN
from workers.expect import started_event
from workers.life import fleet_metadata, fleet_tags, open_tasks, task_name
from workers.lifetime import LeftBehind, opened_store
from workers.plan import START_CREDITS, TOOLS, FleetRuns, FleetSpec
from workers.pool import Interrupt, WorkerPool
from workers.verify import Verdict, verify


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How a fleet is run; what it computes is in the spec alone."""

    path: str | None = None  # None: a throw-away store
    durability: str | None = None
    start_method: str = "spawn"
    timeout_s: float = 30.0  # of opening the store and of one transaction


@dataclass(slots=True)
class FleetResult:
    """What came of a fleet."""

    spec: FleetSpec
    runs: FleetRuns
    durability: str
    reports: list[AgentReport] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    verdict: Verdict | None = None
    work_s: float = 0.0  # from the first process to the last result
    verify_s: float = 0.0
    left_behind: str = ""  # what is left of a throw-away store, if anything

    @property
    def ok(self) -> bool:
        return not self.failures and not self.left_behind and self.verdict is not None and self.verdict.ok

    def problems(self) -> list[str]:
        found = [f"agent {worker}: {text}" for worker, text in sorted(self.failures.items())]
        found += self.verdict.problems() if self.verdict else []
        return found + ([self.left_behind] if self.left_behind else [])


class Observer:
    """Told how a fleet is getting on; the default listens to nothing."""

    def started(self, spec: FleetSpec, writer_pid: int, path: str) -> None:
        """The store is open and the agents are about to start."""

    def progress(self, worker: int, payload: tuple[int, int, int]) -> None:
        """A worker has done so many steps, with so many commits and reruns."""

    def verifying(self) -> None:
        """All agents are done; reading back begins."""


def run_fleet(
    spec: FleetSpec, options: FleetOptions, interrupt: Interrupt, observer: Observer | None = None
) -> FleetResult:
    """Run a fleet to its end and verify it.

    Raises:
        Interrupted, TimedOut: workers are stopped and a throw-away store is
            removed before this leaves the function.
        LeftBehind: there is no result, and a throw-away store did not go away.
        InmemError: the store could not be opened or prepared.
    """
    observer = observer or Observer()
    result: FleetResult | None = None
    try:
        with opened_store(options.path, options.durability, options.timeout_s) as db:
            result = _run_on(db, spec, options, interrupt, observer)
    except LeftBehind as error:
        if result is None:
            raise
        result.left_behind = str(error)
    return result


def _run_on(
    db: Any, spec: FleetSpec, options: FleetOptions, interrupt: Interrupt, observer: Observer
) -> FleetResult:
    runs = FleetRuns(f"fleet:{inmem.RunId.new()}")
    status = db.status()
    result = FleetResult(spec, runs, status.durability)
    observer.started(spec, status.writer_pid, str(db.path))
    prepare(db, spec, runs)
    interrupt.check()
    started = time.perf_counter()
    store = str(db.path)
    tasks = [
        (AgentTask(store, spec, runs, worker, options.timeout_s),) for worker in range(spec.workers)
    ]
    with WorkerPool(work, tasks, name="agent", start_method=options.start_method) as pool:
        outcome = pool.run(observer.progress, interrupt)
    result.work_s = time.perf_counter() - started
    result.reports = [outcome.results[worker] for worker in sorted(outcome.results)]
    result.failures = outcome.failures
    if outcome.failures:
        with suppress(inmem.InmemError):  # the agents' failures are what is to be told
            conclude(db, runs, len(outcome.results), len(outcome.failures))
    else:
        conclude(db, runs, len(outcome.results), 0)
        observer.verifying()
        result.verdict, result.verify_s = _timed(
            lambda: verify(db, spec, runs, result.reports, interrupt.check)
        )
    return result


def prepare(db: Any, spec: FleetSpec, runs: FleetRuns) -> None:
    """One transaction over all runs of the fleet: its own run, credits, totals, tasks, the first event."""
    names = ("calls", "failures", "cost", *(f"calls:{tool}" for tool in TOOLS))

    def begin(txn: Any) -> None:
        event_type, payload = started_event(spec)
        txn.runs.create_run(tags=fleet_tags(), metadata=fleet_metadata(spec))
        txn.cells.init("queue", {"next": 0})
        for number in range(open_tasks(spec)):
            txn.cells.init(task_name(number), OPEN)
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


def _timed(call: Callable[[], Verdict]) -> tuple[Verdict, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


if __name__ == "__main__":
    # Worker processes import this module again: what only the command needs stays out of it.
    from workers.cli import fleet_app

    fleet_app()
