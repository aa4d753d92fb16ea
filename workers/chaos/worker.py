"""One worker of a chaos: all that the stress does, and more that is judged from the journal alone.

Invariant: every change goes through `_ask`. So the journal has each question
before it is asked and each answer before the next question, each written by
one `write`: a SIGKILL loses nothing that was acknowledged. The worker judges
nothing. It meets one error by waiting: a store that is full.

What it adds: entries that only this worker writes, one by one and through
pipelines; counters by read-modify-write; entries that expire; lists that
transactions read and append to; snapshots that are held; private runs, filled
and deleted, of which every record is counted; jobs, and what is written under
leases.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import inmem
from workers.chaos.holders import HoldingWorker
from workers.judge.history import History, path_of
from workers.pool import Link, Stopped
from workers.stress.worker import StressTask, StressTold

FULL_PAUSE_S: Final = 0.05  # after an answer that the store is full
PLACES: Final = 8  # entries of a worker, of each kind
TTL_S: Final = (0.2, 2.0)
HOLD_S: Final = (0.01, 0.2)
LIST_KEYS: Final = 3
LIST_LENGTH: Final = 40  # a list that is this long is left behind for a new one: reading it all costs
PRIVATE_LIFE: Final = 12  # questions that a private run lasts

# What a worker does, and how often, in parts of the sum.
WEIGHTS: Final = {
    "add": 8, "append": 8, "append_many": 3, "cas": 6, "flip": 4, "tally": 4, "mark": 3, "once": 2,
    "abort": 2, "trace": 3, "contest": 2, "audit": 4, "status": 4, "victim": 4, "delete": 1,
    "entry": 8, "drop": 2, "scan": 3, "pipe": 6, "rmw": 5, "ttl": 3, "look": 4, "lists": 10, "hold": 2,
    "private": 8, "put_jobs": 5, "job": 12, "lease": 7,
}  # fmt: skip


def work(link: Link, task: StressTask, number: int) -> StressTold:
    """The body of a worker process; returns when it is told to stop, also if that was before it began."""
    path = path_of(Path(task.histories), number)
    with inmem.open(task.store, timeout_s=task.timeout_s) as db, History(path) as journal:
        return ChaosWorker(db, replace(task, worker=number), link, journal).run()


class ChaosWorker(HoldingWorker):
    """Asks and notes. Use it from one thread."""

    weights = WEIGHTS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expiring: list[tuple[str, str]] = []  # run and key, the latest last
        self._list_generations = dict.fromkeys(range(LIST_KEYS), 0)
        self._private_number = -1
        self._private_age = PRIVATE_LIFE

    def run(self) -> StressTold:
        """Until it is told to stop, which it heeds between two questions."""
        started = time.monotonic()
        with suppress(Stopped):
            while True:
                self._tell(self.told.asked)
                self._move()
                if self.task.rate:
                    # From the end of one to the start of the next: what was missed is not made up for.
                    time.sleep(self._random.uniform(0, 2 / self.task.rate))
        self.told.seconds = time.monotonic() - started
        return self.told

    def _ask(self, op: str, run: str, args: dict[str, Any], call: Callable[[int], Any]) -> Any:
        answer = super()._ask(op, run, args, call)
        if isinstance(answer, inmem.StoreFullError):
            time.sleep(FULL_PAUSE_S)
        return answer

    def _next(self, slot: tuple[str, int]) -> None:
        with suppress(inmem.StoreFullError):  # it is a hint, and no part of what is judged
            super()._next(slot)

    # --- entries of its own ------------------------------------------------------------------

    def _place(self) -> int:
        return self._random.randrange(PLACES)

    def _entry(self, run: str) -> None:
        key = f"s:{self.task.worker}:{self._place()}"
        self._ask("entry", run, {"key": key}, lambda n: self.db.kv.put(run, key, n))

    def _drop(self, run: str) -> None:
        """A delete says whether there was an entry, which only this worker can know."""
        key = f"s:{self.task.worker}:{self._place()}"
        self._ask("drop", run, {"key": key}, lambda _: self.db.kv.delete(run, key))

    def _scan(self, run: str) -> None:
        """What it wrote, as anybody would find it."""
        prefix = f"s:{self.task.worker}:"
        self._ask("scan", run, {"prefix": prefix}, lambda _: dict(self.db.kv.list_with_values(run, prefix)))

    def _pipe(self, _: str) -> None:
        """Blocks of pipelined writes: an event, then entries and additions; a block is one commit."""
        worker, chance = self.task.worker, self._random
        start = chance.randrange(len(self._hot))
        blocks = [
            (self._hot[(start + index) % len(self._hot)], chance.randrange(1, 5))
            for index in range(chance.randrange(1, 7))
        ]

        def call(n: int) -> list[Any]:
            appended: list[Any] = []
            with suppress(inmem.StoreFullError), self.db.pipeline() as pipeline:
                for block, (run, count) in enumerate(blocks):
                    appended.append(pipeline.events.append(run, "pipe", [worker, n, block]))
                    for part in range(count):
                        pipeline.kv.put(run, f"p:{worker}:{part}", [n, block])
                        pipeline.kv.add(run, "piped")
            return [_sequence(one) for one in appended]

        answer = self._ask("pipe", blocks[0][0], {"blocks": [list(block) for block in blocks]}, call)
        if isinstance(answer, list) and None in answer:
            time.sleep(FULL_PAUSE_S)

    def _rmw(self, run: str) -> None:
        def one_more(txn: Any) -> int:
            number: int = txn.kv.get("rmw", 0) + 1
            txn.kv.put("rmw", number)
            return number

        self._ask("rmw", run, {}, lambda _: self._transact(run, one_more))

    def _ttl(self, run: str) -> None:
        key = f"t:{self.task.worker}:{self._place()}"
        ttl_s = round(self._random.uniform(*TTL_S), 3)
        self._ask("ttl", run, {"key": key, "ttl_s": ttl_s}, lambda n: self.db.kv.put(run, key, n, ttl=ttl_s))
        self._expiring = [*self._expiring[-3:], (run, key)]

    def _look(self, _: str) -> None:
        """At an entry that expires, before or after that."""
        if self._expiring:
            run, key = self._random.choice(self._expiring)
            self._ask("look", run, {"key": key}, lambda _: self.db.kv.get(run, key))

    # --- transactions and snapshots --------------------------------------------------------------

    def _lists(self, _: str) -> None:
        """Reads and appends over several lists and counters, for the checker of histories."""
        chance = self._random
        places = [(chance.choice(self._hot), self._list_key()) for _ in range(chance.randrange(1, 4))]
        places = list(dict.fromkeys(places))
        kinds = [chance.choice(("append", "read", "both")) for _ in places]
        count = chance.choice(("add", "value", "none"))
        if count != "add" and set(kinds) == {"read"}:
            self._read_lists(places)
            return
        number = self._upcoming()
        planned: list[list[Any]] = [
            ["append", f"{run}/{key}", f"{self.task.worker}.{number}.{index}"]
            for index, ((run, key), kind) in enumerate(zip(places, kinds, strict=True))
            if kind != "read"
        ]
        counter = f"{places[0][0]}/c"
        if count == "add":
            planned.append(["add", counter, 1])
        last: list[Any] = []

        def body(txn: Any) -> list[Any]:
            last[:] = [txn]
            steps: list[Any] = []
            for index, ((run, key), kind) in enumerate(zip(places, kinds, strict=True)):
                kv = txn.at(run).kv
                have = kv.get(key, [])
                if kind != "append":
                    steps.append(["read", f"{run}/{key}", have])
                if kind != "read":
                    element = f"{self.task.worker}.{number}.{index}"
                    kv.put(key, [*have, element])
                    steps.append(["append", f"{run}/{key}", element])
            kv = txn.at(places[0][0]).kv
            if count == "add":
                kv.add("c")
                steps.append(["add", counter, 1])
            elif count == "value":
                steps.append(["value", counter, kv.get("c", 0)])
            return steps

        def call(_: int) -> dict[str, Any]:
            steps = self._transact(places[0][0], body)
            return {"steps": steps, "version": last[0].version}

        self._leave_long(self._ask("txn", places[0][0], {"steps": planned}, call))

    def _upcoming(self) -> int:
        """The number that the next question will have."""
        return self.told.asked

    def _list_key(self) -> str:
        key = self._random.randrange(LIST_KEYS)
        return f"l:{key}.{self._list_generations[key]}"

    def _leave_long(self, answer: Any) -> None:
        if not isinstance(answer, dict):
            return
        for kind, name, have in answer["steps"]:
            if kind == "read" and len(have) >= LIST_LENGTH:
                key, generation = name.rpartition("/l:")[2].split(".")
                mine = self._list_generations
                mine[int(key)] = max(mine[int(key)], int(generation) + 1)

    def _read_lists(self, places: list[tuple[str, str]]) -> None:
        def call(_: int) -> dict[str, Any]:
            with self.db.snapshot(places[0][0]) as view:
                steps = [["read", f"{run}/{key}", view.at(run).kv.get(key, [])] for run, key in places]
                return {"steps": steps, "version": view.version}

        self._leave_long(self._ask("txn", places[0][0], {"steps": []}, call))

    def _hold(self, run: str) -> None:
        """A snapshot shows the same for as long as it is open, whatever is committed meanwhile."""
        seconds = self._random.uniform(*HOLD_S)

        def call(_: int) -> list[Any]:
            with self.db.snapshot(run) as view:
                first = _seen(view)
                time.sleep(seconds)
                return [first, _seen(view)]

        self._ask("hold", run, {}, call)

    # --- a run of its own -----------------------------------------------------------------------

    def _private(self, _: str) -> None:
        """Created, filled, deleted: the deletion says how much there was, to be held against the journal."""
        if self._private_age >= PRIVATE_LIFE:
            self._private_number += 1
            self._private_age = 0
        db, worker = self.db, self.task.worker
        run = f"{self.task.runs.stress_id}:p{worker}.{self._private_number}"
        age = self._private_age
        if age == 0:
            answer = self._ask(
                "own.create", run, {}, lambda _: db.runs.create_run(run_id=run, tags=("own",)).version
            )
        elif age == PRIVATE_LIFE - 1:
            answer = self._ask("own.delete", run, {}, lambda _: _counts(db.runs.delete_run(run)))
        else:
            calls: dict[str, Callable[[int], Any]] = {
                "kv": lambda n: db.kv.put(run, f"k{n}", n),
                "append": lambda n: db.events.append(run, "own", [worker, n]).sequence,
                "cell": lambda n: db.cells.init(run, f"c{n}", n),
                "trace": lambda n: db.traces.record(run, inmem.Thought("own"), id=f"t{n}"),
                "five": lambda n: self._transact(run, lambda txn: _five(txn, worker, n)),
            }
            move = self._random.choice(list(calls))
            answer = self._ask(f"own.{move}", run, {}, calls[move])
        if not isinstance(answer, inmem.StoreFullError):
            self._private_age += 1


def _five(txn: Any, worker: int, n: int) -> int:
    """One record in each primitive, and a change of the run's own."""
    txn.kv.put(f"k{n}", n)
    txn.events.append("own", [worker, n])
    txn.cells.init(f"c{n}", n)
    root = txn.traces.record(inmem.Thought("own"), id=f"t{n}")
    txn.traces.record_child(root, inmem.Thought("below"), id=f"u{n}")
    return int(txn.runs.update_metadata({"last": n}).version)


def _counts(gone: Any) -> dict[str, Any]:
    return {name: getattr(gone, name) for name in ("kv", "events", "cells", "traces", "had_record")}


def _sequence(appended: Any) -> int | None:
    """Where the event of one block went; None if the block was refused."""
    try:
        return int(appended.sequence)
    except inmem.InvariantError:
        return None


def _seen(view: Any) -> list[Any]:
    head = view.events.head()
    return [
        view.version, view.kv.get("counter", 0), view.kv.get("piped", 0), view.kv.count(),
        view.events.count(), head and head.hash.hex(), view.runs.get_run().version, view.traces.count(),
    ]  # fmt: skip
