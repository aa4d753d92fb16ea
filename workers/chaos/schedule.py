"""What is done to a store and its workers, and when: a schedule from a seed.

Invariant: pure. The same seed, length and rates give the same schedule. Each
kind of disturbance has a random generator of its own, so another rate of one
kind moves nothing of the others. A repetition disturbs at the same times; what
the processes do at these times depends on the machine.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, slots=True)
class Rates:
    """How often each disturbance happens, per minute. 0: never."""

    kill_writer: float = 60.0
    stop_writer: float = 4.0
    kill_worker: float = 6.0
    stop_worker: float = 6.0
    checkpoint: float = 6.0
    fill_memory: float = 0.5
    fill_disk: float = 1.0  # only where the data is on a disk of the program's own


KINDS: Final = tuple(field.name for field in fields(Rates))

# For how long a disturbance lasts, in seconds: from, to. A stopped worker may hold a snapshot.
LENGTHS: Final = {
    "stop_writer": (0.05, 1.0),
    "stop_worker": (0.2, 3.0),
    "fill_memory": (0.3, 1.0),
    "fill_disk": (0.3, 2.0),
}
SPREAD: Final = 0.5  # a gap is between half and one and a half times the mean


@dataclass(frozen=True, slots=True, order=True)
class Disturbance:
    """One thing to do: at `at_s` seconds, for `seconds`; `choice` of 0 to 1 picks among many."""

    at_s: float
    kind: str
    seconds: float
    choice: float


def schedule(seed: int, seconds: float, rates: Rates) -> list[Disturbance]:
    """All disturbances of a run of so many seconds, in order."""
    found = []
    for kind in KINDS:
        rate = getattr(rates, kind)
        if rate <= 0:
            continue
        chance = random.Random(f"{seed}/{kind}")
        mean_s = 60.0 / rate
        at_s = mean_s * chance.uniform(0, 1 + SPREAD)
        while at_s < seconds:
            length_s = chance.uniform(*LENGTHS.get(kind, (0.0, 0.0)))
            found.append(Disturbance(at_s, kind, length_s, chance.random()))
            at_s += mean_s * chance.uniform(1 - SPREAD, 1 + SPREAD)
    return sorted(found)
