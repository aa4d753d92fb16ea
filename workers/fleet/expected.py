"""The state that a fleet must leave behind, worked out without a store.

Invariant: everything here follows from the plan alone, by plain folding of
dicts and lists; no code is shared with the agents' transactions. What two
interleavings may order differently (the shared log as a whole) is expected
per agent, in that agent's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
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
from workers.judge.checks import ExpectedRun, Record


@dataclass(slots=True)
class ExpectedFleet:
    """Final KV of every run, and how much of everything there must be."""

    spec: FleetSpec
    agents: list[dict[str, Any]]  # KV of each agent's run
    shared: dict[str, Any]  # KV of the shared run
    log_lengths: list[int]  # of each agent's log
    shared_length: int
    tickets: int
    contributed: list[dict[str, int]] = field(default_factory=list)  # per agent, of the totals
    cells: list[dict[str, tuple[Any, int]]] = field(default_factory=list)  # of each agent, but its tasks
    traces: list[int] = field(default_factory=list)  # recorded by each agent, in its scratch runs too


def started_event(spec: FleetSpec) -> Record:
    """The first event of the shared log."""
    return "fleet.started", {"seed": spec.seed, "workers": spec.workers, "steps": spec.steps}


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


def expect(spec: FleetSpec) -> ExpectedFleet:
    """Fold the plans of all agents."""
    agents: list[dict[str, Any]] = [{"credits": START_CREDITS} for _ in range(spec.workers)]
    totals: dict[str, int] = {}
    contributed: list[dict[str, int]] = []
    log_lengths = [2] * spec.workers  # the first event and the last
    shared_length = 1  # the event of the start
    for worker in range(spec.workers):
        kv = agents[worker]
        mine: dict[str, int] = {}
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
            for name, amount in work.counts.items():
                mine[name] = mine.get(name, 0) + amount
            reports += reports_totals(spec, step.index)
            log_lengths[worker] += sum(1 for _ in step_log(spec, worker, step))
            shared_length += 1 + len(milestones(worker, step.index))
        kv["ended"] = lifecycle.ending(spec, worker).status
        kv["reported"] = mine["cost"]
        kv["reports"] = reports
        contributed.append(mine)
        for name, amount in mine.items():
            totals[name] = totals.get(name, 0) + amount
    shared: dict[str, Any] = {f"total:{name}": amount for name, amount in totals.items()}
    shared["ticks"] = spec.workers * spec.steps
    shared["spec"] = {"seed": spec.seed, "workers": spec.workers, "steps": spec.steps}
    return ExpectedFleet(
        spec=spec,
        agents=agents,
        shared=shared,
        log_lengths=log_lengths,
        shared_length=shared_length,
        tickets=spec.workers * spec.steps,
        contributed=contributed,
        cells=[agent_cells(spec, worker) for worker in range(spec.workers)],
        traces=[
            sum(1 for _ in all_traces(spec, worker))
            + sum(len(scratch.traces) for scratch in lifecycle.scratches(spec, worker))
            for worker in range(spec.workers)
        ],
    )


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


def scratch_run(runs: FleetRuns, worker: int, scratch: lifecycle.Scratch) -> ExpectedRun:
    """The record of a scratch run that was not deleted."""
    archived = scratch.fate == "archived"
    return ExpectedRun(
        status=scratch.fate,
        parent=runs.of(worker),
        tags=("scratch",),
        metadata={"number": scratch.number},
        error=None,
        version=2 + archived,
    )


def scratch_counts(scratch: lifecycle.Scratch) -> tuple[int, int, int, int]:
    """How many entries, events, cells and traces a deletion must find in a scratch run."""
    return lifecycle.SCRATCH_ENTRIES, len(scratch.events), 1, len(scratch.traces)


def scratch_log(scratch: lifecycle.Scratch) -> list[Record]:
    """The log of a scratch run that was not deleted."""
    return [*scratch.events, lifecycle.scratch_end(scratch)]
