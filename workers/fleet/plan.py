"""What each agent of a fleet does, from a seed.

Invariant: a plan is a function of `(seed, workers, steps, worker)` and of
nothing else: no clock, no process, no store. So the same plan is carried out
by an agent, and folded by `expect` into the state it must leave behind.

An agent's step is a goal, some calls of simulated tools (which may fail, by
the seed, and are tried again), changes to its working memory, and now and
then one of: credits handed to another agent, an attempt that is abandoned
half-way, a refill of its cache.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from workers.judge.checks import Record

START_CREDITS: Final = 1_000  # of each agent; handing over conserves the sum
MAX_TRIES: Final = 3  # of one tool call, then the step goes on without its result
FAILURE_PERCENT: Final = 8  # of the tries of a tool
TOTALS_EVERY: Final = 4  # steps between two reports to the shared totals
CACHE_EVERY: Final = 16  # steps between two refills of the cache
CACHE_SIZE: Final = 16  # entries written by one refill, without waiting for each
CACHE_SLOTS: Final = 64
AUDIT_EVERY: Final = 8  # steps between two looks at the shared totals in a snapshot
MEMORY_SLOTS: Final = 12
LEASE_TTL_S: Final = 3_600.0  # never met: the agent gives its lease back
TOOLS: Final = ("search", "read", "edit", "test")


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """What determines the outcome of a fleet."""

    seed: int
    workers: int
    steps: int


@dataclass(frozen=True, slots=True)
class FleetRuns:
    """The run ids of one fleet: unique per start, so that a store can hold many fleets."""

    fleet_id: str

    @property
    def shared(self) -> str:
        return f"{self.fleet_id}:shared"

    def of(self, worker: int) -> str:
        return f"{self.fleet_id}:agent-{worker:03d}"

    def scratch(self, worker: int, number: int) -> str:
        return f"{self.of(worker)}:s{number}"


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a tool."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool answered: a value, or an error."""

    value: Any
    error: str | None
    cost: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan."""

    index: int
    goal: str
    calls: tuple[Call, ...]
    remember: tuple[tuple[str, Any], ...]
    forget: tuple[str, ...]
    hand_over: tuple[int, int] | None  # worker, credits
    abandoned: bool  # an attempt at this step is given up half-way before it is done


@dataclass(frozen=True, slots=True)
class Work:
    """What a step came to once its tools were called."""

    events: tuple[Record, ...]
    finding: dict[str, Any]
    counts: dict[str, int]  # what the step adds to the shared totals


def plan(spec: FleetSpec, worker: int) -> Iterator[Step]:
    """The steps of one agent, in order."""
    rng = random.Random(f"{spec.seed}/{spec.workers}/{worker}")
    for index in range(spec.steps):
        calls = tuple(_draw_call(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
        remember = tuple(
            (f"memory:{rng.randrange(MEMORY_SLOTS):02d}", _draw_memory(rng))
            for _ in range(rng.randrange(1, 3))
        )
        forget = (f"memory:{rng.randrange(MEMORY_SLOTS):02d}",) if rng.random() < 0.1 else ()
        hand_over = None
        if spec.workers > 1 and rng.random() < 0.125:
            peer = (worker + rng.randrange(1, spec.workers)) % spec.workers
            hand_over = (peer, rng.randrange(1, 50))
        yield Step(
            index=index,
            goal=f"{rng.choice(('find', 'explain', 'mend', 'measure'))} item {rng.randrange(1000)}",
            calls=calls,
            remember=remember,
            forget=forget,
            hand_over=hand_over,
            abandoned=rng.random() < 0.03,
        )


def _draw_call(rng: random.Random) -> Call:
    tool = rng.choice(TOOLS)
    arguments: dict[str, Any] = {"item": rng.randrange(10_000)}
    if tool == "search":
        arguments["words"] = rng.sample(("alpha", "beta", "gamma", "delta", "epsilon"), 2)
    elif tool == "edit":
        arguments["strict"] = rng.random() < 0.5
    return Call(tool, arguments)


def _draw_memory(rng: random.Random) -> Any:
    # Every type that a value may have, so that a change of type on the way shows.
    return rng.choice(
        (
            lambda: None,
            lambda: rng.random() < 0.5,
            lambda: rng.randrange(-(1 << 63), 1 << 63),
            lambda: rng.uniform(-1e6, 1e6),
            lambda: "".join(rng.choices("abcdefgäöü€", k=24)),
            lambda: rng.randbytes(24),
            lambda: [rng.randrange(10), float(rng.randrange(10)), str(rng.randrange(10))],
            lambda: {"score": rng.random(), "seen": [True, 1, 1.0], "raw": rng.randbytes(4)},
        )
    )()


def use_tool(seed: int, call: Call, attempt: int) -> ToolAnswer:
    """The simulated tool: its answer depends on its input alone, failures included."""
    question = json.dumps([seed, call.tool, call.arguments, attempt], sort_keys=True)
    number = int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "big")
    cost = 1 + number % 7
    if number // 7 % 100 < FAILURE_PERCENT:
        return ToolAnswer(None, ("timed out", "rate limited")[number // 700 % 2], cost)
    value: Any
    if call.tool == "search":
        value = [f"doc-{number >> shift & 0xFFF:03x}" for shift in (0, 12, 24)]
    elif call.tool == "read":
        value = number.to_bytes(8, "big") * 8
    elif call.tool == "edit":
        value = {"changed": number % 40, "clean": number % 2 == 0}
    else:
        value = {"passed": number % 90, "ratio": number % 1000 / 1000}
    return ToolAnswer(value, None, cost)


def perform(spec: FleetSpec, worker: int, step: Step) -> Work:
    """Call the step's tools and tell what happened, as events and counts."""
    events: list[Record] = [("thought", {"step": step.index, "goal": step.goal})]
    counts = dict.fromkeys(("calls", "failures", "cost", *(f"calls:{t}" for t in TOOLS)), 0)
    results = 0
    for call in step.calls:
        for attempt in range(MAX_TRIES):
            outcome = use_tool(spec.seed, call, attempt)
            counts["calls"] += 1
            counts[f"calls:{call.tool}"] += 1
            counts["cost"] += outcome.cost
            base = {"step": step.index, "tool": call.tool, "attempt": attempt}
            events.append(("tool.call", base | {"arguments": call.arguments}))
            if outcome.error is None:
                results += 1
                events.append(("tool.result", base | {"value": outcome.value}))
                break
            counts["failures"] += 1
            events.append(("tool.error", base | {"error": outcome.error}))
    events.append(("step.done", {"step": step.index, "cost": counts["cost"]}))
    finding = {"agent": worker, "step": step.index, "results": results, "cost": counts["cost"]}
    return Work(tuple(events), finding, counts)


def cache_entries(spec: FleetSpec, worker: int, index: int) -> list[tuple[str, Any]]:
    """What a refill of the cache writes after the step `index`; empty if there is none."""
    if (index + 1) % CACHE_EVERY:
        return []
    rng = random.Random(f"cache/{spec.seed}/{worker}/{index}")
    return [
        (f"cache:{rng.randrange(CACHE_SLOTS):02d}", {"at": index, "text": f"{rng.getrandbits(64):x}"})
        for _ in range(CACHE_SIZE)
    ]


def milestones(worker: int, index: int) -> list[Record]:
    """What goes to the shared log in one piece with a refill of the cache."""
    if (index + 1) % CACHE_EVERY:
        return []
    return [
        ("milestone", {"agent": worker, "step": index, "part": part}) for part in ("reached", "saved")
    ]


def reports_totals(spec: FleetSpec, index: int) -> bool:
    """Whether the agent reports to the shared totals after this step: the last one included."""
    return (index + 1) % TOTALS_EVERY == 0 or index + 1 == spec.steps
