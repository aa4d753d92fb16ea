"""Programs of the tests of numbered invariants that need several processes."""

from __future__ import annotations

import random
from typing import Any

import inmem

ACCOUNTS = ("a", "b", "c")


def move(words: Any, index: int, path: str, steps: int) -> list[int]:
    """Move between accounts, which add up to 0, and note the order in the log; the numbers done."""
    rng = random.Random(index)
    done = []
    with inmem.open(path) as db:
        for i in range(steps):
            source, target = rng.sample(ACCOUNTS, 2)

            def step(txn: inmem.Transaction, source: str = source, target: str = target, i: int = i) -> int:
                balances = {name: txn.kv.get(name, 0) for name in ACCOUNTS}
                assert sum(balances.values()) == 0
                number = txn.events.count()
                txn.kv.put(source, balances[source] - 1)
                txn.kv.put(target, balances[target] + 1)
                txn.events.append("move", [index, i, source, target])
                return number

            done.append(db.transact("bank", step, max_attempts=10_000))
    return done


def count(words: Any, index: int, path: str, steps: int) -> list[Any]:
    """Change every primitive once per step and return what was acknowledged."""
    acked = []
    with inmem.open(path, timeout_s=30.0) as db:
        for i in range(steps):
            total = db.kv.add("r", "n")
            sequence = db.events.append("r", "t", [index, i]).sequence
            version = db.cells.set("r", f"c{index}", i)
            trace = db.traces.record("r", inmem.Thought("x"), tags=[f"w{index}"])
            acked.append([total, sequence, version, trace])
            words[index] = i + 1
    return acked
