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

from workers.plan import (
    START_CREDITS,
    FleetSpec,
    Record,
    cache_entries,
    milestones,
    perform,
    plan,
    reports_totals,
)


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


def started_event(spec: FleetSpec) -> Record:
    """The first event of the shared log."""
    return "fleet.started", {"seed": spec.seed, "workers": spec.workers, "steps": spec.steps}


def agent_log(spec: FleetSpec, worker: int) -> Iterator[Record]:
    """The whole log of one agent's run, in order."""
    for step in plan(spec, worker):
        yield from perform(spec, worker, step).events


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
    log_lengths = [0] * spec.workers
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
            log_lengths[worker] += len(work.events)
            shared_length += 1 + len(milestones(worker, step.index))
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
    )
