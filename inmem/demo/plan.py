"""The work of the demonstration, made from a seed.

Invariant: a job follows from the seed and its number alone. So whoever
verifies can make it again, and compare.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

import inmem

JOBS: Final = "jobs"  # the queue of the workers
REVIEW: Final = "review"  # the queue of the reviewers
LEASE: Final = "reviewer"  # what the reviewer that approves holds
BATCH: Final = 8  # jobs that are planned in one transaction

_CITIES: Final = ("Oslo", "Lima", "Kyoto", "Accra", "Quito", "Turin", "Hanoi", "Perth")
_TOOLS: Final = ("search", "quote", "weather", "calendar", "translate")
_MOST_CENTS: Final = 100_000


@dataclass(frozen=True, slots=True)
class SimulatedCall:
    """A call of a tool: what it is asked, what it answers, and after how long."""

    tool: str
    arguments: dict[str, Any]
    result: dict[str, Any]
    takes_s: float


@dataclass(frozen=True, slots=True)
class DemoJob:
    """One job: what is called for it, and the amount that it is worth."""

    number: int
    city: str
    calls: tuple[SimulatedCall, ...]

    @property
    def amount(self) -> int:
        """What the tools have quoted together."""
        return sum(call.result["cents"] for call in self.calls)

    @property
    def payload(self) -> dict[str, Any]:
        """What is put into the queue."""
        return {"job": self.number, "city": self.city}


def job_of(seed: int, number: int) -> DemoJob:
    """The job with a number.

    >>> job_of(7, 3) == job_of(7, 3), job_of(7, 3) == job_of(8, 3)
    (True, False)
    """
    chance = random.Random(f"{seed}:{number}")
    city = chance.choice(_CITIES)
    calls = tuple(
        SimulatedCall(
            tool, {"city": city, "job": number}, {"cents": chance.randrange(1, _MOST_CENTS)},
            chance.uniform(0.004, 0.020),
        )
        for tool in chance.sample(_TOOLS, chance.randint(2, 3))
    )
    return DemoJob(number, city, calls)


def name_of(number: int) -> str:
    """A job's key in the queues, and the id of its first trace.

    >>> name_of(17)
    'job-000017'
    """
    return f"job-{number:06d}"


def traces_of(job: DemoJob) -> list[inmem.NewTrace]:
    """What is recorded of a job: a decision, and below it each call."""
    root = name_of(job.number)
    tools = [call.tool for call in job.calls]
    decision = inmem.Decision(f"What is needed for {job.city}?", [*_TOOLS], ", ".join(tools))
    calls = [
        inmem.NewTrace(
            inmem.ToolCall(call.tool, call.arguments, call.result, 1e3 * call.takes_s),
            f"{root}.{place}", root, tags=("demo",),
        )
        for place, call in enumerate(job.calls)
    ]
    return [inmem.NewTrace(decision, root, tags=("demo",)), *calls]
