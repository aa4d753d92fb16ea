"""Recorded agent runs, loaded by many processes and compared with their source.

Invariant: every record found is accounted for, as loaded, already complete,
duplicate or rejected; and `ok` means that whatever is in the store under
their run ids equals the source, read back by processes that did not write it.
`python -m workers.replay --help` tells the options.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inmem
from inmem.exchange import Rejected, Trajectory, find_files, parse_file
from workers.checking import Check, check_store
from workers.lifetime import LeftBehind, opened_store
from workers.loading import CHECKS, Anchor, LoadReport, ReplayItem, ReplayTask, load, read_back, status_of
from workers.pool import Interrupt, Outcome, WorkerPool


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How recorded runs are loaded."""

    workers: int
    path: str | None = None  # None: a throw-away store
    durability: str | None = None
    start_method: str = "spawn"
    timeout_s: float = 30.0  # of opening the store and of one transaction


@dataclass(slots=True)
class Inventory:
    """What a directory holds."""

    files: int = 0
    items: list[ReplayItem] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ReplayResult:
    """What came of a replay."""

    inventory: Inventory
    durability: str = ""
    reports: list[LoadReport] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    load_s: float = 0.0
    verify_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.failures and bool(self.checks) and all(check.ok for check in self.checks)

    def problems(self) -> list[str]:
        if not self.inventory.items:
            return ["no trajectory could be loaded"]
        found = [f"{check.name}: {check.summary()}" for check in self.checks if not check.ok]
        return self.failures + found


class ReplayObserver:
    """Told how a replay is getting on; the default listens to nothing."""

    def rejected(self, rejected: Rejected) -> None:
        """A file, or a record in one, is no trajectory."""

    def phase(self, text: str, totals: Sequence[int]) -> None:
        """Workers are about to start, with so many steps each."""

    def progress(self, worker: int, payload: tuple[int, int, int]) -> None:
        """A worker has done so many steps, with so many commits and reruns."""


def take_inventory(root: Path, interrupt: Interrupt, observer: ReplayObserver) -> Inventory:
    """Parse every file once, to know what there is. Bad files are told and counted.

    Raises:
        Interrupted, TimedOut: as `interrupt` says.
    """
    inventory = Inventory()
    known: dict[str, str] = {}
    for path in find_files(root):
        inventory.files += 1
        source = path.name if path == root else str(path.relative_to(root))
        for number, parsed in parse_file(path, source):
            interrupt.check()
            if isinstance(parsed, Rejected):
                inventory.rejected.append(parsed)
                observer.rejected(parsed)
                continue
            first = known.setdefault(parsed.run_id, source)
            if len(known) == len(inventory.items):
                inventory.duplicates.append(f"{source} holds the same as {first}: {parsed.run_id}")
                continue
            inventory.items.append(_item(path, source, number, parsed))
            inventory.notes += [f"{source}: {note}" for note in parsed.notes]
    return inventory


def _item(path: Path, source: str, number: int, parsed: Trajectory) -> ReplayItem:
    return ReplayItem(
        path, source, number, parsed.run_id, len(parsed.steps), status_of(parsed), parsed.tags
    )


def share_out(items: Sequence[ReplayItem], workers: int) -> list[list[ReplayItem]]:
    """Items for each worker: the longest first, each to whoever has least."""
    shares: list[list[ReplayItem]] = [[] for _ in range(min(workers, len(items)))]
    loads = [0] * len(shares)
    for item in sorted(items, key=lambda item: (-item.steps, item.run_id)):
        least = loads.index(min(loads))
        shares[least].append(item)
        loads[least] += item.steps
    return shares


def run_replay(
    root: Path, options: ReplayOptions, interrupt: Interrupt, observer: ReplayObserver | None = None
) -> ReplayResult:
    """Load everything under `root`, then read it back in other processes and compare.

    Raises:
        Interrupted, TimedOut: workers are stopped and a throw-away store is
            removed before this leaves the function.
        LeftBehind: there is no result, and a throw-away store did not go away.
        InmemError: the store could not be opened.
    """
    observer = observer or ReplayObserver()
    result = ReplayResult(take_inventory(root, interrupt, observer))
    if not result.inventory.items:
        return result
    try:
        with opened_store(options.path, options.durability, options.timeout_s) as db:
            _run_on(db, result, options, interrupt, observer)
    except LeftBehind as error:
        if not result.reports:
            raise
        result.failures.append(str(error))
    return result


def _run_on(
    db: Any, result: ReplayResult, options: ReplayOptions, interrupt: Interrupt, observer: ReplayObserver
) -> None:
    items = result.inventory.items
    result.durability = db.status().durability
    shares = share_out(items, options.workers)
    store = str(db.path)
    tasks = [ReplayTask(store, tuple(share), {}, options.timeout_s) for share in shares]
    observer.phase("Loading", [_steps(share) for share in shares])
    outcome, result.load_s = _run(load, tasks, "loader", options, interrupt, observer)
    result.reports = [outcome.results[worker] for worker in sorted(outcome.results)]
    result.failures += _told("loader", outcome)
    if result.failures:
        return
    anchors: dict[str, Anchor] = {}
    for report in result.reports:
        anchors |= report.anchors
    tasks = [ReplayTask(store, task.items, anchors, task.timeout_s) for task in tasks]
    observer.phase("Reading back", [_steps(share) for share in shares])
    outcome, result.verify_s = _run(read_back, tasks, "reader", options, interrupt, observer)
    result.failures += _told("reader", outcome)
    result.checks = merge(list(outcome.results.values()))
    if not result.failures:
        interrupt.check()
        queries, whole = Check("run queries"), Check("integrity")
        check_run_queries(queries, db, items)
        check_store(whole, db.check())
        result.checks += [queries, whole]


def check_run_queries(check: Check, db: Any, items: Sequence[ReplayItem]) -> None:
    """Every run is found by its status and each of its tags; the store may hold others too."""
    by_tag: dict[str, set[str]] = {}
    by_status: dict[str, set[str]] = {}
    for item in items:
        by_status.setdefault(item.status, set()).add(item.run_id)
        for tag in item.tags:
            by_tag.setdefault(tag, set()).add(item.run_id)
    known = {item.run_id for item in items}
    for tag, want in by_tag.items():
        have = {run.run_id for run in db.runs.query_runs(tags=[tag])} & known
        check.require(have == want, f"the tag {tag} finds {len(have)} runs, not {len(want)}")
    for status, want in by_status.items():
        have = {run.run_id for run in db.runs.query_runs(status=inmem.RunStatus(status))} & known
        check.require(have == want, f"the status {status} finds {len(have)} runs, not {len(want)}")


def _run(
    target: Any,
    tasks: Sequence[ReplayTask],
    name: str,
    options: ReplayOptions,
    interrupt: Interrupt,
    observer: ReplayObserver,
) -> tuple[Outcome, float]:
    started = time.perf_counter()
    arguments = [(task,) for task in tasks]
    with WorkerPool(target, arguments, name=name, start_method=options.start_method) as pool:
        outcome = pool.run(observer.progress, interrupt)
    return outcome, time.perf_counter() - started


def merge(parts: Sequence[Sequence[Check]]) -> list[Check]:
    """The checks of several processes as one list."""
    merged = [Check(name) for name in CHECKS]
    for checks in parts:
        for whole, part in zip(merged, checks, strict=True):
            whole.compared += part.compared
            unshown = part.problem_count - len(part.problems)
            for problem in part.problems:
                whole.problem(problem)
            whole.problem_count += unshown
    return merged


def _steps(share: Sequence[ReplayItem]) -> int:
    return sum(item.steps for item in share)


def _told(name: str, outcome: Outcome) -> list[str]:
    return [f"{name} {worker}: {text}" for worker, text in sorted(outcome.failures.items())]


if __name__ == "__main__":
    # Worker processes import this module again: what only the command needs stays out of it.
    from workers.cli import replay_app

    replay_app()
