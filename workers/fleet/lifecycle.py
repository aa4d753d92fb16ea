"""What becomes of the runs of a fleet, from a seed: states, scratch runs, claims of tasks.

Invariant: like a plan, all of this is a function of the spec alone. A race
decides only which task an agent gets; how many it gets is decided here, and
adds up to the tasks there are.

An agent's run is created under the fleet's run, paused and resumed once, and
ends completed, or failed with an error; some are then archived. Its scratch
runs are its children: at the end some are deleted, and the others completed,
or archived too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import inmem
from workers.fleet.plan import TOOLS, FleetSpec
from workers.judge.checks import Record

CLAIM_EVERY: Final = 4  # steps between two claims of a task: from the board and the queue in turn
SCRATCH_EVERY: Final = 32  # steps between two scratch runs; the first is made at once
SCRATCH_ENTRIES: Final = 3  # KV entries of a scratch run
QUEUE: Final = "tasks"
OPEN_TASKS: Final = 4  # of each source for each agent: who claims one puts up another, while there are more
FATES: Final = ("deleted", "completed", "archived")

_ERRORS: Final = ("no tool was left", "the budget is used up", "the goal cannot be reached")
_MODELS: Final = ("m-small", "m-large")


@dataclass(frozen=True, slots=True)
class Ending:
    """How an agent's run ends."""

    error: str | None  # None: it is completed
    archived: bool

    @property
    def status(self) -> str:
        """Before it is archived, if it is."""
        return "completed" if self.error is None else "failed"


@dataclass(frozen=True, slots=True)
class Scratch:
    """One scratch run: everything in it is written in one transaction with its creation."""

    number: int
    fate: str  # one of FATES
    entries: dict[str, Any]
    events: tuple[Record, ...]
    traces: tuple[inmem.NewTrace, ...]


def fleet_tags() -> tuple[str, ...]:
    """Of the fleet's own run."""
    return ("fleet",)


def fleet_metadata(spec: FleetSpec) -> dict[str, Any]:
    """Of the fleet's own run."""
    return {"seed": spec.seed, "workers": spec.workers, "steps": spec.steps}


def agent_tags(spec: FleetSpec, worker: int) -> tuple[str, ...]:
    """Of an agent's run when it is created."""
    return ("fleet-agent", f"agent:{worker}", f"tool:{TOOLS[(spec.seed + worker) % len(TOOLS)]}")


def agent_metadata(spec: FleetSpec, worker: int) -> dict[str, Any]:
    """Of an agent's run when it is created."""
    return {"worker": worker, "steps": spec.steps, "model": _MODELS[(spec.seed + worker) % len(_MODELS)]}


def paused_after(spec: FleetSpec, worker: int) -> int | None:
    """The step whose transaction also pauses the run; the next step's resumes it. None: it never is."""
    if spec.steps < 2:
        return None
    return random.Random(f"pause/{spec.seed}/{worker}").randrange(spec.steps - 1)


def status_change(spec: FleetSpec, worker: int, index: int) -> str | None:
    """What the transaction of a step does to its run's status: "paused", "resumed" or nothing."""
    pause = paused_after(spec, worker)
    if pause is None:
        return None
    return {pause: "paused", pause + 1: "resumed"}.get(index)


def ending(spec: FleetSpec, worker: int) -> Ending:
    """How an agent's run ends: in any four one fails, in any three one is archived."""
    turn = worker + random.Random(f"ending/{spec.seed}").randrange(12)
    error = _ERRORS[turn % len(_ERRORS)] if turn % 4 == 1 else None
    return Ending(error, archived=turn % 3 == 0)


def start_event(spec: FleetSpec, worker: int) -> Record:
    """The first event of an agent's log."""
    return "agent.started", {"agent": worker, "steps": spec.steps}


def status_event(change: str, index: int) -> Record:
    """The event of a pause or its end, the last of its step."""
    return f"run.{change}", {"step": index}


def end_event(spec: FleetSpec, worker: int) -> Record:
    """The last event of an agent's log."""
    end = ending(spec, worker)
    return f"agent.{end.status}", {"steps": spec.steps, "error": end.error}


def end_trace(spec: FleetSpec, worker: int) -> inmem.NewTrace | None:
    """What an agent that fails records about it, as a root."""
    error = ending(spec, worker).error
    if error is None:
        return None
    body = inmem.ErrorTrace("run", error, recoverable=False)
    return inmem.NewTrace(body, id="end", tags=("failure",), timestamp=at(spec.steps, 0))


def at(index: int, position: int) -> int:
    """The time of a trace, in microseconds: one step is a second, long ago."""
    return 1_600_000_000_000_000 + index * 1_000_000 + position


# --- tasks ---------------------------------------------------------------------------------


def claims_from(index: int) -> str | None:
    """Where the agent claims a task before this step: "board", "queue", or it does not."""
    if index % CLAIM_EVERY:
        return None
    return ("board", "queue")[index // CLAIM_EVERY % 2]


def claim_event(index: int) -> Record | None:
    """The event of a claim; which task it is depends on the race and is in a cell."""
    source = claims_from(index)
    return None if source is None else ("task.claimed", {"step": index, "from": source})


def claims(spec: FleetSpec, source: str) -> int:
    """How many tasks each agent claims from the board, or the queue."""
    number = (spec.steps + CLAIM_EVERY - 1) // CLAIM_EVERY
    return (number + 1) // 2 if source == "board" else number // 2


def open_tasks(spec: FleetSpec, source: str) -> int:
    """How many tasks are on the board, or in the queue, at the start."""
    return spec.workers * min(OPEN_TASKS, claims(spec, source))


def task_name(number: int) -> str:
    """The cell of a task on the board."""
    return f"task:{number:06d}"


def job_id(number: int) -> str:
    """The job that was put into the queue as this one, from 0 on; of which task it is depends on the race."""
    return f"{QUEUE}/{number}"


# --- scratch runs ----------------------------------------------------------------------------


def scratch_at(spec: FleetSpec, worker: int, index: int) -> Scratch | None:
    """The scratch run that is made after a step, if one is."""
    if index % SCRATCH_EVERY:
        return None
    number = index // SCRATCH_EVERY
    rng = random.Random(f"scratch/{spec.seed}/{worker}/{number}")
    fate = rng.choice(FATES) if number else "deleted"  # so that every fleet has one
    entries = {f"note:{slot}": rng.randbytes(6) for slot in range(SCRATCH_ENTRIES)}
    tried = inmem.Custom("Attempt", {"number": number, "score": rng.random()})
    traces = (
        inmem.NewTrace(inmem.Thought("try it apart"), id="try", tags=("scratch",), timestamp=at(index, 0)),
        inmem.NewTrace(tried, id="try.1", parent_id="try", timestamp=at(index, 1)),
    )
    return Scratch(number, fate, entries, (("scratch.started", {"number": number}),), traces)


def scratches(spec: FleetSpec, worker: int) -> Iterator[Scratch]:
    """All scratch runs of an agent."""
    for index in range(0, spec.steps, SCRATCH_EVERY):
        scratch = scratch_at(spec, worker, index)
        if scratch is not None:
            yield scratch


def scratch_end(scratch: Scratch) -> Record:
    """The last event of a scratch run that is not deleted."""
    return "scratch.done", {"number": scratch.number}
