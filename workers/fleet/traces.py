"""What an agent thinks and does in a step, as a tree of traces.

Invariant: the tree follows from the plan alone, times included, so that every
query of the traces can be worked out again without a store. A step is a
thought; below it are a decision if the agent plans, and its tool calls, each
with its result, or with the error below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import inmem
from workers.fleet.lifecycle import at, end_trace
from workers.fleet.plan import MAX_TRIES, FleetSpec, Step, milestones, plan, use_tool

PLAN_EVERY: Final = 8  # steps between two decisions about what to do next


def root_id(index: int) -> str:
    """The id of a step's root."""
    return f"s{index:06d}"


def step_traces(spec: FleetSpec, worker: int, step: Step) -> list[inmem.NewTrace]:
    """The traces of one step, parents before children."""
    root = root_id(step.index)
    verb = step.goal.split()[0]
    thought = inmem.Thought(step.goal, confidence=1 / (1 + len(step.calls)))
    traces = [
        inmem.NewTrace(
            thought, id=root, tags=("step", verb), metadata={"agent": worker}, timestamp=at(step.index, 0)
        )
    ]

    def add(name: str, parent: str, body: Any, tags: tuple[str, ...] = ()) -> str:
        when = at(step.index, len(traces))
        traces.append(inmem.NewTrace(body, id=name, parent_id=parent, tags=tags, timestamp=when))
        return name

    if step.index % PLAN_EVERY == 0:
        options = ["find", "explain", "mend", "measure"]
        decision = inmem.Decision("what comes next?", options, verb, reasoning=step.goal)
        add(f"{root}.plan", root, decision, ("planning",))
    for number, call in enumerate(step.calls):
        for attempt in range(MAX_TRIES):
            outcome = use_tool(spec.seed, call, attempt)
            body = inmem.ToolCall(call.tool, call.arguments, outcome.value, float(outcome.cost))
            name = add(f"{root}.c{number}{attempt}", root, body, (f"tool:{call.tool}",))
            if outcome.error is not None:
                error = inmem.ErrorTrace("tool", outcome.error, recoverable=attempt + 1 < MAX_TRIES)
                add(f"{name}.e", name, error, ("failure",))
                continue
            if call.tool == "search":
                add(f"{name}.q", name, inmem.Query("search", call.arguments, len(outcome.value)))
            break
    if milestones(worker, step.index):
        add(f"{root}.m", root, inmem.Custom("Milestone", {"step": step.index}))
    return traces


def all_traces(spec: FleetSpec, worker: int) -> Iterator[inmem.NewTrace]:
    """Every trace of an agent's run, in order of time."""
    for step in plan(spec, worker):
        yield from step_traces(spec, worker, step)
    last = end_trace(spec, worker)
    if last is not None:
        yield last
