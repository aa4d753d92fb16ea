"""What runs on the small machine of the power cut tests: its first process, and the writers that it forks.

Everything that they were told goes into journals outside the machine's disk,
one line for each word of the store, so the test can judge after the cut.
"""

from __future__ import annotations

import json
import os
import random
import time
import traceback
from pathlib import Path
from typing import Any

import inmem

DEADLINE_S = 30.0
WRITERS = 4
PIPED = 3  # the writer that pipelines
SHARED = "shared"


class Journal:
    """What one writer tried and was told in one boot; survives the machine, not the test."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, *words: Any) -> None:
        """One line, whole: one write."""
        os.write(self._fd, json.dumps(words).encode() + b"\n")


def machine(words: Any, path: str, journals: str, boot: int, durability: str, seed: int) -> None:
    """One boot: look at what is there, tell, then let writers write until the power goes."""
    with inmem.open(path, durability=durability, timeout_s=DEADLINE_S) as db:
        found = take_stock(db)
        found["version"] = db.kv.put("boots", f"boot-{boot}", boot)
        problems = db.check().problems if boot else []
        found["problems"] = [str(problem) for problem in problems]
        temporary = Path(journals) / ".found"
        temporary.write_text(json.dumps(found))
        temporary.rename(Path(journals) / f"found-{boot}.json")
        for index in range(WRITERS):
            if os.fork() == 0:
                try:
                    journal = Journal(Path(journals) / f"{boot}-{index}.txt")
                    rng = random.Random(f"{seed} {index}")
                    # Every other boot leaves it to the writer's timer alone.
                    asks = durability == "buffered" and boot % 2 == 0
                    write(words, db, journal, index, found["last"][index], rng, asks)
                except BaseException:
                    # Once the disk is gone everything may fail; before it the test looks for this.
                    (Path(journals) / f"{boot}-{index}.failed").write_text(traceback.format_exc())
                finally:
                    os._exit(0)
        while True:
            time.sleep(1.0)


def take_stock(db: inmem.Database) -> dict[str, Any]:
    """How far each writer came, having made sure that each commit is there whole and once."""
    last = []
    shared: dict[int, list[int]] = {index: [] for index in range(WRITERS)}
    for event in db.events.iter(SHARED):
        index, n = event.payload
        shared[index].append(n)
    for index in range(WRITERS):
        run = f"writer-{index}"
        numbers = [event.payload for event in db.events.iter(run)]
        assert numbers == list(range(1, len(numbers) + 1)), f"writer {index}: no prefix, {numbers[-50:]}"
        if index != PIPED:
            assert shared[index] == numbers, f"writer {index}: half of a transaction"
            assert db.kv.get(run, "last", 0) == db.kv.get(run, "count", 0) == len(numbers)
        assert db.events.verify_chain(run).is_valid
        last.append(len(numbers))
    return {"last": last}


def write(
    words: Any, db: inmem.Database, journal: Journal, index: int, n: int, rng: random.Random, asks: bool
) -> None:
    """Commit after commit, each noted before it is sent and when it was answered; some ask for a sync."""
    run = f"writer-{index}"
    while True:
        if index == PIPED:
            count = rng.randrange(1, 200)
            journal.note("try", n + count)
            with db.pipeline() as pipe:
                for number in range(n + 1, n + count + 1):
                    pipe.events.append(run, "piped", number)
            n += count
            journal.note("ack", n, 0, time.monotonic())
        else:
            n += 1
            sync = asks and rng.random() < 0.05
            journal.note("try", n)

            def step(txn: inmem.Transaction, n: int = n) -> inmem.Transaction:
                txn.kv.put("last", n)
                txn.kv.add("count")
                txn.events.append("step", n)
                txn.at(SHARED).events.append("step", [index, n])
                return txn

            txn = db.transact(run, step, durability="sync" if sync else None)
            now = time.monotonic()
            journal.note("ack", n, txn.version, now)
            if sync:
                journal.note("durable", n, now)
            elif asks and rng.random() < 0.02:
                db.sync()
                journal.note("durable", n, time.monotonic())
        words[index] = n
