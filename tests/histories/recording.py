"""Processes that run random transactions on few objects, and note what they asked, did and were told.

A list is kept in one of four ways, so that each kind of conflict has its turn:

    kv     in one value: every append is a read and a write of one key
    rows   one row per element, numbered: an append counts the rows, so a phantom overwrites one
    log    an event log: appends that read nothing never conflict
    cell   in a state cell, exchanged by version

and a counter in two: `sum` is a KV number, added to by the writer or by reading
and writing it; `tally` is a cell. Lists would grow with the run, and every read
with them, so after some transactions all workers go on to the next generation
of objects.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import TESTS, Workers, wait_until

import inmem
from inmem import CommitUnknownError, InmemError
from workers.judge.history import History, path_of
from workers.judge.serializability import ADD, APPEND, READ, VALUE, Txn, Verdict, check, from_history

RUNS = ("left", "right")
LISTS = ("kv 0", "kv 1", "rows 0", "log 0", "log 1", "cell 1")  # kind, and the place of the run in RUNS
COUNTERS = ("sum 0", "sum 1", "tally 0")
GENERATION = 120  # transactions until all move on
OPEN_S = 30.0
RESOLVE_S = 30.0
ATTEMPTS = 12  # few enough that some transactions are refused in the end


class _Abandoned(Exception):
    """A transaction's own function gives up."""


# --- objects: the same names in transactions and snapshots ------------------------------------------


def _place(key: str) -> tuple[str, str, str]:
    """Kind, run and name of an object; its key is kind, place and generation."""
    kind, place, generation = key.split()
    return kind, RUNS[int(place)], f"{kind}-{generation}"


def read(view: Any, key: str) -> list[Any]:
    """A list as a transaction or a snapshot sees it."""
    kind, run, name = _place(key)
    if kind == "kv":
        return list(view.at(run).kv.get(name, []))
    if kind == "rows":
        return [value for _, value in view.at(run).kv.list_with_values(f"{name}/")]
    if kind == "log":
        return [event.payload for event in view.at(f"{run}-{name}").events.read_range(0)]
    state = view.at(run).cells.read(name)
    return [] if state is None else list(state.value)


def append(txn: Any, key: str, element: str) -> None:
    """Append to a list inside a transaction."""
    kind, run, name = _place(key)
    if kind == "kv":
        kv = txn.at(run).kv
        kv.put(name, [*kv.get(name, []), element])
    elif kind == "rows":
        kv = txn.at(run).kv
        kv.put(f"{name}/{kv.count(f'{name}/'):06}", element)
    elif kind == "log":
        txn.at(f"{run}-{name}").events.append("appended", element)
    else:
        cells = txn.at(run).cells
        state = cells.read(name)
        if state is None:
            cells.init(name, [element])
        else:
            cells.cas(name, state.version, [*state.value, element])


def value(view: Any, key: str) -> int:
    """A counter as a transaction or a snapshot sees it."""
    kind, run, name = _place(key)
    if kind == "sum":
        return int(view.at(run).kv.get(name, 0))
    state = view.at(run).cells.read(name)
    return 0 if state is None else int(state.value)


def add(txn: Any, key: str, delta: int, *, blind: bool) -> None:
    """Add to a counter inside a transaction, in the writer or by writing the sum."""
    kind, run, name = _place(key)
    if kind == "sum" and blind:
        txn.at(run).kv.add(name, delta)
    elif kind == "sum":
        kv = txn.at(run).kv
        kv.put(name, kv.get(name, 0) + delta)
    elif txn.at(run).cells.exists(name):
        txn.at(run).cells.transition(name, lambda state: (state.value + delta, None))
    else:
        txn.at(run).cells.init(name, delta)


# --- one worker -----------------------------------------------------------------------------------


class Recorder:
    """One worker: it asks, and notes the answers."""

    def __init__(
        self, db: inmem.Database, history: History, index: int, seed: int, deadline_s: float
    ) -> None:
        self.db = db
        self.history = history
        self.index = index
        self.rng = random.Random(seed * 1000 + index)
        self.deadline_s = deadline_s
        self.conflicts = 0
        self.errors: dict[str, int] = {}
        self._n = 0

    def one(self, generation: int) -> None:
        """One transaction of some kind."""
        self._n += 1
        chance = self.rng.random()
        if chance < 0.15:
            self._single(generation)
        elif chance < 0.40:
            self._look(generation)
        else:
            self._transact(generation, alone=chance < 0.5, abandon=chance > 0.97)

    def _plan(self, generation: int) -> list[list[Any]]:
        plan: list[list[Any]] = []
        for part in range(self.rng.randint(1, 4)):
            kind = self.rng.choice((READ, READ, APPEND, APPEND, "update", ADD, VALUE))
            key = f"{self.rng.choice(COUNTERS if kind in (ADD, VALUE) else LISTS)} {generation}"
            if kind == "update":
                plan += [[READ, key], [APPEND, key, f"{self.index}.{self._n}.{part}"]]
            elif kind == APPEND:
                plan.append([APPEND, key, f"{self.index}.{self._n}.{part}"])
            elif kind == ADD:
                plan.append([ADD, key, self.rng.randint(1, 9), self.rng.random() < 0.5])
            else:
                plan.append([kind, key])
        return plan

    def _transact(self, generation: int, *, alone: bool, abandon: bool) -> None:
        plan = self._plan(generation)
        seen: dict[str, Any] = {"attempts": 0}

        def step(txn: Any) -> list[Any]:
            seen["attempts"] += 1
            seen["txn"] = txn
            steps = []
            for kind, key, *more in plan:
                if kind == READ:
                    steps.append([READ, key, read(txn, key)])
                elif kind == VALUE:
                    steps.append([VALUE, key, value(txn, key)])
                elif kind == APPEND:
                    append(txn, key, more[0])
                    steps.append([APPEND, key, more[0]])
                else:
                    add(txn, key, more[0], blind=more[1])
                    steps.append([ADD, key, more[0]])
            if abandon:
                raise _Abandoned
            seen["steps"] = steps
            return steps

        def once() -> list[Any]:
            with self.db.transaction(RUNS[0], timeout_s=self.deadline_s) as txn:
                return step(txn)

        def often() -> list[Any]:
            return self.db.transact(RUNS[0], step, max_attempts=ATTEMPTS, timeout_s=self.deadline_s)

        planned = [part[:3] for part in plan if part[0] in (APPEND, ADD)]
        self._ask(planned, once if alone else often, lambda _: (seen["steps"], seen["txn"].version))
        self.conflicts += max(0, seen["attempts"] - 1)

    def _look(self, generation: int) -> None:
        """A snapshot of some objects, of both runs."""
        keys = [f"{key} {generation}" for key in self.rng.sample(LISTS + COUNTERS, self.rng.randint(2, 5))]
        number = self.history.asked("txn", RUNS[0], {"steps": []})
        try:
            with self.db.snapshot(RUNS[0]) as view:
                steps = [
                    [VALUE, key, value(view, key)] if key.split(" ", 1)[0] in ("sum", "tally")
                    else [READ, key, read(view, key)]
                    for key in keys
                ]
                version = view.version
        except inmem.SnapshotTooOldError as error:  # a server's connection was lost
            self.errors["SnapshotTooOldError"] = self.errors.get("SnapshotTooOldError", 0) + 1
            self.history.refused(number, type(error).__name__, {})
            return
        self.history.acknowledged(number, {"steps": steps, "version": version})

    def _single(self, generation: int) -> None:
        """A call that is a transaction of its own; it does not tell its version."""
        kind = self.rng.choice(("sum 0", "log 0", "log 1", "cell 1", "tally 0"))
        key = f"{kind} {generation}"
        _, run, name = _place(key)
        element, delta = f"{self.index}.{self._n}", self.rng.randint(1, 9)
        if kind.startswith("sum"):
            self._ask(
                [[ADD, key, delta]], lambda: self.db.kv.add(run, name, delta),
                lambda total: ([[ADD, key, delta], [VALUE, key, total]], None),
            )
        elif kind.startswith("log"):
            events = [("appended", element), ("appended", f"{element}.1")]
            planned = [[APPEND, key, each] for _, each in events]
            self._ask(
                planned, lambda: self.db.events.append_many(f"{run}-{name}", events),
                lambda _: (planned, None),
            )
        elif kind.startswith("cell"):
            self._ask(
                [[APPEND, key, element]],
                lambda: self.db.cells.transition(run, name, lambda s: ([*s.value, element], s.value)),
                lambda before: ([[READ, key, before], [APPEND, key, element]], None),
            )
        else:
            self._ask(
                [[ADD, key, delta]],
                lambda: self.db.cells.transition(run, name, lambda s: (s.value + delta, s.value)),
                lambda before: ([[VALUE, key, before], [ADD, key, delta]], None),
            )

    def _ask(
        self, planned: list[Any], call: Callable[[], Any], told: Callable[[Any], tuple[Any, Any]]
    ) -> None:
        """Note the question, ask it, and note what came of it."""
        number = self.history.asked("txn", RUNS[0], {"steps": planned})
        try:
            result = self._resolved(call)
        except CommitUnknownError:
            self.history.unknown(number)
            self.errors["unknown"] = self.errors.get("unknown", 0) + 1
        except (_Abandoned, InmemError) as error:
            name = type(error).__name__
            self.conflicts += isinstance(error, inmem.ConflictError)
            self.errors[name] = self.errors.get(name, 0) + 1
            self.history.refused(number, name, {})
        else:
            steps, version = told(result)
            self.history.acknowledged(number, {"steps": steps, "version": version})

    def _resolved(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except CommitUnknownError as error:
            if self.rng.random() < 0.4:
                raise  # nobody ever asks again: it stays open whether it happened
            self.errors["resent"] = self.errors.get("resent", 0) + 1
            return error.resend(RESOLVE_S)


def record(
    words: Any, index: int, path: str, directory: str, seed: int, count: int, deadline_s: float
) -> dict[str, Any]:
    """Transactions without a pause until told to stop; how many, and what they met."""
    with inmem.open(path, timeout_s=OPEN_S) as db, History(path_of(Path(directory), index)) as history:
        recorder = Recorder(db, history, index, seed, deadline_s)
        words[64 + index] = 1
        words.pass_gate()
        while not words.stopping():
            recorder.one(words.total(count) // GENERATION)
            words[index] += 1
    return {"conflicts": recorder.conflicts, "errors": recorder.errors}


# --- a whole run ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Recorded:
    """What a run left: its history, the state at the end, and what the workers met."""

    txns: list[Txn]
    final: dict[str, Any]
    conflicts: int
    errors: dict[str, int]

    def verdict(self, *, replay: bool = True) -> Verdict:
        """What the checker says of it. `replay`: versions of all commits are in one order."""
        return check(self.txns, self.final, replay=replay)


def recorded_run(
    path: Path | str, workers: Workers, directory: Path, *, seed: int, count: int, seconds: float,
    trouble: Callable[[], None] | None = None, deadline_s: float = 30.0,
) -> Recorded:
    """Let `count` processes work on the store for a while; meanwhile there is `trouble`, twice at least."""
    places = [str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(places)}
    directory.mkdir()
    some = [
        workers.start(record, index, path, directory, seed, count, deadline_s, environment=environment)
        for index in range(count)
    ]
    wait_until(lambda: workers.check() or all(workers.words[64 + i] for i in range(count)), "all are there")
    end = time.monotonic() + seconds
    workers.words.open_gate()
    troubles = 0
    while time.monotonic() < end or (trouble is not None and troubles < 2):
        if trouble is not None:
            trouble()
            troubles += 1
        else:
            time.sleep(0.01)
        workers.check()
    workers.words.stop()
    results = [worker.result() for worker in some]
    txns = from_history([path_of(directory, index) for index in range(count)])
    errors: dict[str, int] = {}
    for result in results:
        for name, number in result["errors"].items():
            errors[name] = errors.get(name, 0) + number
    return Recorded(txns, final_state(path, txns), sum(result["conflicts"] for result in results), errors)


def final_state(path: Path | str, txns: list[Txn]) -> dict[str, Any]:
    """Every object that a history names, all at one moment."""
    named = {(step[0] in (APPEND, READ), step[1]) for txn in txns for step in txn.steps}
    with inmem.open(path, timeout_s=OPEN_S) as db, db.snapshot(RUNS[0]) as view:
        return {key: read(view, key) if is_list else value(view, key) for is_list, key in sorted(named)}
