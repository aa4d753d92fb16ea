"""Workers that execute one durable program, and are killed in it."""

from __future__ import annotations

import os
import time
from typing import Any

import inmem
from inmem import steps

STEPS = 12


@steps.step(retries=100, pause_s=0.001)
def looked_up(number: int) -> dict[str, int]:
    """A step with an effect outside: it may happen again."""
    run = _scope[0]
    run.events.append("executed", {"step": number, "by": os.getpid()})
    time.sleep(0.002)
    return {"number": number, "by": os.getpid()}


@steps.step(transaction=True)
def counted(txn: inmem.Transaction, number: int) -> int:
    """A step whose effect is in the store: it happens once."""
    total: int = txn.kv.get("total", 0) + number
    txn.kv.put("total", total)
    txn.events.append("counted", number)
    return total


_scope: list[Any] = []


def program() -> list[Any]:
    """Steps of both kinds."""
    _scope[:] = [steps.scope()]
    found: list[Any] = []
    for number in range(STEPS):
        found.append(looked_up(number))
        found.append(counted(number))
    return found


def execute(words: Any, index: int, path: str, runs: int) -> list[Any]:
    """Execute the program in each run, with whoever else does; the results."""
    with inmem.open(path, timeout_s=60.0) as db:
        return [
            steps.run(db, f"run-{number}", program, ttl_s=0.3, wait_s=120.0) for number in range(runs)
        ]
