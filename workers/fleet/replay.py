"""Recorded agent runs, loaded by many processes and compared with their source.

Invariant: every record found is accounted for, as loaded, already complete,
duplicate or rejected; and `ok` means that whatever is in the store under
their run ids equals the source, read back by processes that did not write it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inmem
from inmem.exchange.recorded import Rejected, find_files, parse_file
from workers.fleet.loading import (
    CHECKS,
    Anchor,
    LoadReport,
    ReplayItem,
    ReplayTask,
    load,
    read_back,
    status_of,
)
from workers.judge.checks import Check, Judged, check_store
from workers.observer import Observer
from workers.pool import Interrupt, Outcome, WorkerPool
from workers.stores import StoreOptions, opened_store


@dataclass(frozen=True, slots=True)
class ReplayOptions(StoreOptions):
    """How recorded runs are loaded."""

    workers: int


@dataclass(slots=True)
class Inventory:
    """What a directory holds."""

    files: int = 0
    items: list[ReplayItem] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ReplayResult(Judged):
    """What came of a replay."""

    inventory: Inventory
    durability: str = ""
    reports: list[LoadReport] = field(default_factory=list)
    load_s: float = 0.0
    verify_s: float = 0.0


def take_inventory(root: Path, interrupt: Interrupt, observer: Observer) -> Inventory:
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
                observer.problem(f"rejected {parsed.source}: {parsed.reason}")
                continue
            first = known.setdefault(parsed.run_id, source)
            if len(known) == len(inventory.items):
                inventory.duplicates.append(f"{source} holds the same as {first}: {parsed.run_id}")
                continue
            inventory.items.append(
                ReplayItem(
                    path, source, number, parsed.run_id, len(parsed.steps), status_of(parsed), parsed.tags
                )
            )
            inventory.notes += [f"{source}: {note}" for note in parsed.notes]
    return inventory


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
    root: Path, options: ReplayOptions, interrupt: Interrupt, observer: Observer | None = None
) -> ReplayResult:
    """Load everything under `root`, then read it back in other processes and compare.

    Raises:
        Interrupted, TimedOut: workers are stopped and a throw-away store is
            removed before this leaves the function.
        LeftBehind: there is no result, and a throw-away store did not go away.
        InmemError: the store could not be opened.
    """
    observer = observer or Observer()
    result = ReplayResult(take_inventory(root, interrupt, observer))
    if not result.inventory.items:
        result.failures.append("no trajectory could be loaded")
        return result
    with opened_store(options, result.failures) as db:
        _run_on(db, result, options, interrupt, observer)
    return result


def _run_on(
    db: Any, result: ReplayResult, options: ReplayOptions, interrupt: Interrupt, observer: Observer
) -> None:
    items = result.inventory.items
    result.durability = db.status().durability
    shares = share_out(items, options.workers)

    def run(text: str, target: Any, name: str, anchors: dict[str, Anchor]) -> tuple[Outcome, float]:
        tasks = [
            (ReplayTask(options.place(db), tuple(share), anchors, options.timeout_s),) for share in shares
        ]
        totals = [sum(item.steps for item in share) for share in shares]
        observer.phase(totals, "steps")
        observer.note(f"{text}: {sum(totals):,} steps in {len(totals)} processes")
        started = time.perf_counter()
        with WorkerPool(target, tasks, name=name, start_method=options.start_method) as pool:
            outcome = pool.run(observer.progress, interrupt)
        result.failures += outcome.told(name)
        return outcome, time.perf_counter() - started

    outcome, result.load_s = run("Loading", load, "loader", {})
    result.reports = outcome.in_order()
    if result.failures:
        return
    anchors: dict[str, Anchor] = {}
    for report in result.reports:
        anchors |= report.anchors
    outcome, result.verify_s = run("Reading back", read_back, "reader", anchors)
    result.checks = merge(outcome.results.values())
    if not result.failures:
        interrupt.check()
        queries, whole = Check("run queries"), Check("integrity")
        check_run_queries(queries, db, items)
        check_store(whole, db.check())
        result.checks += [queries, whole]


def check_run_queries(check: Check, db: Any, items: Sequence[ReplayItem]) -> None:
    """Every run is found by its status and each of its tags; the store may hold others too."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for item in items:
        for named in (("status", item.status), *(("tag", tag) for tag in item.tags)):
            wanted.setdefault(named, set()).add(item.run_id)
    known = {item.run_id for item in items}
    for (what, name), want in wanted.items():
        query: dict[str, Any] = {"tags": [name]} if what == "tag" else {"status": inmem.RunStatus(name)}
        have = {run.run_id for run in db.runs.query_runs(**query)} & known
        check.require(have == want, f"the {what} {name} finds {len(have)} runs, not {len(want)}")


def merge(parts: Iterable[Sequence[Check]]) -> list[Check]:
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
