"""The state that a fleet must leave behind, worked out without a store.

Invariant: everything here follows from the plan alone, by plain folding of
dicts and lists; no code is shared with the agents' transactions. What two
interleavings may order differently (the shared log as a whole) is expected
per agent, in that agent's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workers.fleet import lifecycle
from workers.fleet.plan import (
    START_CREDITS,
    FleetRuns,
    FleetSpec,
    Step,
    cache_entries,
    milestones,
    perform,
    plan,
    reports_totals,
)
from workers.fleet.traces import all_traces
from workers.judge.checks import Record
from workers.judge.run_contents import ExpectedContents, ExpectedRun


@dataclass(slots=True)
class ExpectedFleet:
    """What every run must hold at the end."""

    spec: FleetSpec
    kept: dict[str, ExpectedContents]  # agents' runs and scratch runs; without the cell `tasks`
    deleted: list[str]
    shared: dict[str, Any]  # KV of the shared run
    shared_length: int
    record: ExpectedRun  # of the shared run
    contributed: list[Counter[str]]  # by each agent, to the totals


def started_event(spec: FleetSpec) -> Record:
    """The first event of the shared log."""
    return "fleet.started", lifecycle.fleet_metadata(spec)


def agent_log(spec: FleetSpec, worker: int) -> Iterator[Record]:
    """The whole log of one agent's run, in order."""
    yield lifecycle.start_event(spec, worker)
    for step in plan(spec, worker):
        yield from step_log(spec, worker, step)
    yield lifecycle.end_event(spec, worker)


def step_log(spec: FleetSpec, worker: int, step: Step) -> Iterator[Record]:
    """The events of one step."""
    claim = lifecycle.claim_event(step.index)
    if claim is not None:
        yield claim
    yield from perform(spec, worker, step).events
    change = lifecycle.status_change(spec, worker, step.index)
    if change is not None:
        yield lifecycle.status_event(change, step.index)


def shared_log(spec: FleetSpec, worker: int) -> Iterator[Record]:
    """One agent's part of the shared log, in the order in which it must appear."""
    for step in plan(spec, worker):
        yield "finding", perform(spec, worker, step).finding
        yield from milestones(worker, step.index)


def expect(spec: FleetSpec, runs: FleetRuns) -> ExpectedFleet:
    """Fold the plans of all agents."""
    agents: list[dict[str, Any]] = [{"credits": START_CREDITS} for _ in range(spec.workers)]
    totals: Counter[str] = Counter()
    contributed: list[Counter[str]] = []
    shared_length = 1  # the event of the start
    for worker in range(spec.workers):
        kv = agents[worker]
        mine: Counter[str] = Counter()
        reports = 0
        for step in plan(spec, worker):
            work = perform(spec, worker, step)
            kv["steps"] = step.index + 1
            kv["spent"] = kv.get("spent", 0) + work.counts["cost"]
            kv["phase"] = {"step": step.index, "goal": step.goal}
            for slot in step.forget:
                kv.pop(slot, None)
            kv.update(step.remember)
            kv.update(cache_entries(spec, worker, step.index))
            if step.hand_over is not None:
                peer, amount = step.hand_over
                kv["credits"] -= amount
                agents[peer]["credits"] += amount
            mine.update(work.counts)
            reports += reports_totals(spec, step.index)
            shared_length += 1 + len(milestones(worker, step.index))
        kv |= {"ended": lifecycle.ending(spec, worker).status, "reported": mine["cost"], "reports": reports}
        contributed.append(mine)
        totals.update(mine)
    shared: dict[str, Any] = {f"total:{name}": amount for name, amount in totals.items()}
    shared |= {"ticks": spec.workers * spec.steps, "spec": lifecycle.fleet_metadata(spec)}
    kept: dict[str, ExpectedContents] = {}
    deleted: list[str] = []
    for worker, kv in enumerate(agents):
        kept[runs.of(worker)] = ExpectedContents(
            agent_run(spec, runs, worker, kv["spent"]), kv, list(agent_log(spec, worker)),
            agent_cells(spec, worker), list(all_traces(spec, worker)),
        )  # fmt: skip
        for scratch in lifecycle.scratches(spec, worker):
            name = runs.scratch(worker, scratch.number)
            if scratch.fate == "deleted":
                deleted.append(name)
            else:
                kept[name] = scratch_contents(runs.of(worker), scratch)
    metadata = lifecycle.fleet_metadata(spec) | {"ended": spec.workers}
    children = tuple(map(runs.of, range(spec.workers)))
    # Its version: created, metadata, the end.
    record = ExpectedRun("completed", None, lifecycle.fleet_tags(), metadata, None, 3, children)
    return ExpectedFleet(spec, kept, deleted, shared, shared_length, record, contributed)


def agent_cells(spec: FleetSpec, worker: int) -> dict[str, tuple[Any, int]]:
    """Value and version of the cells of an agent's run, but for `tasks`, which a race decides."""
    # The focus is deleted with the pause and made again after it: its version goes on.
    focus = (0, 1) if lifecycle.paused_after(spec, worker) is None else (1, 2)
    return {
        "focus": ({"part": focus[0]}, focus[1]),
        "state": ({"step": spec.steps, "goal": lifecycle.ending(spec, worker).status}, spec.steps + 1),
    }


def agent_run(spec: FleetSpec, runs: FleetRuns, worker: int, spent: int) -> ExpectedRun:
    """The record of an agent's run at the end."""
    end = lifecycle.ending(spec, worker)
    kept = [scratch for scratch in lifecycle.scratches(spec, worker) if scratch.fate != "deleted"]
    pauses = lifecycle.paused_after(spec, worker) is not None
    changes = 2 * pauses + 3 + end.archived  # 3: tags, metadata, the end
    return ExpectedRun(
        status="archived" if end.archived else end.status,
        parent=runs.shared,
        tags=(*lifecycle.agent_tags(spec, worker), f"ended:{end.status}"),
        metadata=lifecycle.agent_metadata(spec, worker) | {"spent": spent},
        error=end.error,
        version=1 + changes,
        children=tuple(runs.scratch(worker, scratch.number) for scratch in kept),
    )


def scratch_contents(parent: str, scratch: lifecycle.Scratch) -> ExpectedContents:
    """What a scratch run that was not deleted holds, archived or not."""
    version = 2 + (scratch.fate == "archived")
    return ExpectedContents(
        ExpectedRun(scratch.fate, parent, ("scratch",), {"number": scratch.number}, None, version),
        scratch.entries, [*scratch.events, lifecycle.scratch_end(scratch)],
        {"scratch": (scratch.number, 1)}, scratch.traces,
    )  # fmt: skip


def scratch_counts(scratch: lifecycle.Scratch) -> tuple[int, int, int, int]:
    """How many entries, events, cells and traces a deletion must find in a scratch run."""
    return lifecycle.SCRATCH_ENTRIES, len(scratch.events), 1, len(scratch.traces)
