"""Valid histories of a store that does not exist, for tests of the checker.

One dictionary is the store: each transaction takes effect at one moment
between question and answer, so whatever comes out is serializable, strictly.
Workers overlap; answers get lost, commits are refused, and some calls do not
tell their version.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from workers.judge.history import OK, REFUSED, UNKNOWN
from workers.judge.serializability import ADD, APPEND, READ, VALUE, Txn

LISTS = ("a", "b", "c")
COUNTERS = ("m", "n")


@dataclass(slots=True)
class _Waiting:
    txn: Txn
    done: bool = False


@dataclass(slots=True)
class Simulation:
    """A store, its workers, and the history so far."""

    rng: random.Random
    workers: int = 4
    overlap: bool = True
    troubled: bool = True  # refusals, and answers that never come
    state: dict[str, Any] = field(
        default_factory=lambda: {key: [] for key in LISTS} | dict.fromkeys(COUNTERS, 0)
    )
    txns: list[Txn] = field(default_factory=list)
    _now: int = 0
    _version: int = 0

    def run(self, count: int) -> tuple[list[Txn], dict[str, Any]]:
        """A history of so many transactions, and the final state."""
        at_work: dict[int, _Waiting] = {}
        lost: list[Txn] = []  # asked, never answered, and not yet done
        asked = dict.fromkeys(range(self.workers), 0)
        while len(self.txns) < count or at_work:
            self._now += 1
            worker = self.rng.randrange(self.workers)
            if lost and self.rng.random() < 0.1:
                self._apply(lost.pop(self.rng.randrange(len(lost))))
            waiting = at_work.get(worker)
            if waiting is None:
                if len(self.txns) < count and (self.overlap or not at_work):
                    txn = Txn(worker, asked[worker], OK, self._plan(worker, asked[worker]), self._now)
                    asked[worker] += 1
                    self.txns.append(txn)
                    at_work[worker] = _Waiting(txn)
            elif not waiting.done:
                waiting.done = True
                chance = self.rng.random() if self.troubled else 1.0
                if chance < 0.1:
                    waiting.txn.outcome = REFUSED
                elif chance < 0.2 and waiting.txn.writes:
                    waiting.txn.outcome = UNKNOWN
                    lost.append(waiting.txn)
                    del at_work[worker]
                else:
                    self._apply(waiting.txn)
            else:
                waiting.txn.answered_at = self._now
                del at_work[worker]
        return self.txns, dict(self.state)

    def _plan(self, worker: int, n: int) -> list[Any]:
        steps: list[Any] = []
        for part in range(self.rng.randint(1, 4)):
            kind = self.rng.choice((READ, READ, APPEND, "update", ADD, VALUE))
            key = self.rng.choice(COUNTERS if kind in (ADD, VALUE) else LISTS)
            if kind == "update":
                steps += [[READ, key, None], [APPEND, key, f"{worker}.{n}.{part}"]]
            elif kind == APPEND:
                steps.append([APPEND, key, f"{worker}.{n}.{part}"])
            else:
                steps.append([kind, key, self.rng.randint(-2, 5) if kind == ADD else None])
        return steps

    def _apply(self, txn: Txn) -> None:
        for step in txn.steps:
            kind, key, what = step
            if kind == APPEND:
                self.state[key] = [*self.state[key], what]
            elif kind == ADD:
                self.state[key] += what
            else:
                step[2] = self.state[key]
        if txn.outcome == OK:
            self._version += txn.writes
            txn.version = self._version if self.rng.random() < 0.8 else None
        else:
            self._version += 1
            txn.steps = [step for step in txn.steps if step[0] in (APPEND, ADD)]
