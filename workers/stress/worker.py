"""One worker of the stress: all primitives in random order, on runs shared with everybody.

Invariant: whatever it does goes through `_ask`, which notes the question
before and the answer after; the worker itself judges nothing.

Hot runs are there from the start and stay: counters, one log, cells that all
compete for, marks that go through all five primitives in one transaction.
Life runs are created, change status and are archived by whoever comes first.
Victims are written to while somebody deletes them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import inmem
from workers.judge.history import History, path_of
from workers.pool import Link
from workers.stores import MAX_ATTEMPTS, Abandoned, transact

WORKERS_PER_HOT_RUN: Final = 8
_CHECK_S: Final = 1.0  # between two looks at whether this worker is to stop, while it waits
SLOTS: Final = 4  # of life runs, and of victims, at any time
CONTESTED: Final = 50  # trace ids that workers compete for, per hot run

# What a worker does, and how often, in parts of the sum.
WEIGHTS: Final = {
    "add": 16, "append": 16, "append_many": 4, "cas": 12, "flip": 8, "tally": 6, "mark": 8, "once": 5,
    "abort": 3, "trace": 6, "contest": 3, "audit": 4, "status": 9, "victim": 12, "delete": 1,
}  # fmt: skip

# A life run mostly goes back and forth, so that there is something to compete for.
_STATUSES: Final = ("active",) * 12 + ("paused",) * 12 + ("completed", "failed", "cancelled", "archived")
_ENDED: Final = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class StressRuns:
    """The run ids of one stress."""

    stress_id: str
    hot_count: int

    @property
    def control(self) -> str:
        return f"{self.stress_id}:go"

    def hot(self) -> list[str]:
        return [f"{self.stress_id}:h{number}" for number in range(self.hot_count)]

    def life(self, slot: int, generation: int) -> str:
        return f"{self.stress_id}:l{slot}.{generation}"

    def victim(self, slot: int, generation: int) -> str:
        return f"{self.stress_id}:v{slot}.{generation}"


@dataclass(frozen=True, slots=True)
class StressTask:
    """What a worker process needs to know."""

    store: str
    histories: str
    runs: StressRuns
    seed: int
    timeout_s: float
    worker: int = 0
    workers: int = 1
    operations: int | None = None  # of this worker; None: until the time is over
    seconds: float = 0.0
    rate: float = 0.0  # of a worker of the chaos: its operations per second, at most; 0: as fast as it can


@dataclass(slots=True)
class StressTold:
    """How much one worker did."""

    worker: int
    asked: int = 0
    acknowledged: int = 0
    reruns: int = 0
    seconds: float = 0.0


def stress(link: Link, task: StressTask) -> StressTold:
    """The body of a worker process."""
    link.check()
    path = path_of(Path(task.histories), task.worker)
    with inmem.open(task.store, timeout_s=task.timeout_s) as db, History(path) as history:
        return StressWorker(db, task, link, history).run()


@dataclass(slots=True)
class StressWorker:
    """Asks and notes. Use it from one thread."""

    db: Any
    task: StressTask
    link: Any
    history: History
    weights: ClassVar = WEIGHTS
    told: StressTold = field(init=False)
    _random: random.Random = field(init=False)
    _hot: list[str] = field(init=False)
    _generations: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.told = StressTold(self.task.worker)
        self._random = random.Random(f"{self.task.seed}/{self.task.worker}")
        self._hot = self.task.runs.hot()

    def run(self) -> StressTold:
        """Until the operations are done or the time is over, all workers together."""
        started = self._wait_for_all()
        task, told = self.task, self.told
        while True:
            told.seconds = time.monotonic() - started
            if task.operations is None:
                done, over = int(told.seconds), told.seconds >= task.seconds
            else:
                done, over = told.asked, told.asked >= task.operations
            self._tell(done, over)
            if over:
                return told
            self._move()

    def _tell(self, done: int, last: bool = False) -> None:
        """Say how far this worker is; raises when it is to stop."""
        self.link.check()
        self.link.progress((done, self.told.acknowledged, self.told.reruns), last=last)

    def _move(self) -> None:
        move = self._random.choices([*self.weights], [*self.weights.values()])[0]
        getattr(self, f"_{move}")(self._random.choice(self._hot))

    def _wait_for_all(self) -> float:
        """Everybody starts at once, or there would be little contention; the last one gives the word."""
        control = self.task.runs.control
        if self.db.kv.add(control, "ready") == self.task.workers:
            self.db.kv.put(control, "go", True)
        while True:
            try:
                self.db.wait(control, lambda view: view.kv.get("go"), timeout_s=_CHECK_S)
                return time.monotonic()
            except inmem.WaitTimeoutError:
                self.link.check()

    def _ask(self, op: str, run: str, args: dict[str, Any], call: Callable[[int], Any]) -> Any:
        """Ask, note the answer, and return it; None if it was refused or never came."""
        number = self.history.asked(op, run, args)
        self.told.asked += 1
        try:
            try:
                result = call(number)
            except inmem.CommitUnknownError as error:
                result = error.resend(self.task.timeout_s)
        except inmem.CommitUnknownError:
            self.history.unknown(number)
            return None
        except (inmem.InmemError, Abandoned) as error:
            self.history.refused(number, type(error).__name__, _fields(error))
            return error
        self.history.acknowledged(number, result)
        self.told.acknowledged += 1
        return result

    def _transact(self, run: str, fn: Callable[[Any], Any], lease: Any = None) -> Any:
        return transact(self.db, run, fn, self.task.timeout_s, self._reran, lease)

    def _reran(self, times: int) -> None:
        self.told.reruns += times

    # --- on hot runs ----------------------------------------------------------------------

    def _add(self, run: str) -> None:
        self._ask("add", run, {}, lambda _: self.db.kv.add(run, "counter"))

    def _append(self, run: str) -> None:
        worker = self.task.worker
        self._ask(
            "append", run, {"count": 1},
            lambda n: [self.db.events.append(run, "tick", [worker, n, 0]).sequence],
        )  # fmt: skip

    def _append_many(self, run: str) -> None:
        worker, count = self.task.worker, self._random.randrange(2, 6)

        def call(n: int) -> list[int]:
            records = [("tick", [worker, n, part]) for part in range(count)]
            return [one.sequence for one in self.db.events.append_many(run, records)]

        self._ask("append", run, {"count": count}, call)

    def _cas(self, run: str) -> None:
        state = self.db.cells.read(run, "duel")
        args = {"cell": "duel", "expected": state.version}
        worker = self.task.worker
        self._ask(
            "cas", run, args, lambda n: self.db.cells.cas(run, "duel", state.version, [worker, n])
        )

    def _flip(self, run: str) -> None:
        """A cell that comes and goes: its versions must go on all the same."""
        worker = self.task.worker
        move = self._random.choice(("init", "set", "delete"))
        args = {"cell": "flip"}
        if move == "delete":
            self._ask("cell.delete", run, args, lambda _: self.db.cells.delete(run, "flip"))
        else:
            change = getattr(self.db.cells, move)
            self._ask(f"cell.{move}", run, args, lambda n: change(run, "flip", [worker, n]))

    def _tally(self, run: str) -> None:
        def one_more(state: inmem.State) -> tuple[int, int]:
            return state.value + 1, state.value + 1

        timeout_s = self.task.timeout_s
        self._ask(
            "tally", run, {},
            lambda _: self.db.cells.transition(
                run, "tally", one_more, max_attempts=MAX_ATTEMPTS, timeout_s=timeout_s
            ),
        )  # fmt: skip

    def _write_mark(self, txn: Any, mark: str, n: int) -> int:
        """One mark, in all five primitives of a run; how many marks it has now."""
        marks: int = txn.kv.get("marks", 0) + 1
        txn.kv.put("marks", marks)
        txn.kv.put(f"m:{mark}", n)
        txn.events.append("mark", {"mark": mark})
        txn.cells.init(f"m:{mark}", n)
        txn.cells.transition("marks", lambda state: (state.value + 1, None))
        txn.traces.record(inmem.Thought(mark), id=f"m-{mark}", tags=("mark",))
        txn.runs.update_metadata({f"w{self.task.worker}": n, "marks": marks})
        return marks

    def _places(self, run: str) -> list[str]:
        """One run, or two."""
        other = self._random.choice(self._hot)
        return [run] if other == run or self._random.random() < 0.5 else [run, other]

    def _mark(self, run: str) -> None:
        places = self._places(run)

        def call(n: int) -> list[int]:
            mark = f"{self.task.worker}-{n}"

            def write(txn: Any) -> list[int]:
                return [self._write_mark(txn.at(place), mark, n) for place in places]

            marks: list[int] = self._transact(run, write)
            return marks

        self._ask("mark", run, {"runs": places}, call)

    def _once(self, run: str) -> None:
        """A mark with a single attempt: it may well be refused, and then nothing of it may be there."""
        places = self._places(run)

        def call(n: int) -> list[int]:
            with self.db.transaction(run, timeout_s=self.task.timeout_s) as txn:
                return [self._write_mark(txn.at(place), f"{self.task.worker}-{n}", n) for place in places]

        self._ask("mark", run, {"runs": places}, call)

    def _abort(self, run: str) -> None:
        places = self._places(run)

        def call(n: int) -> None:
            def write(txn: Any) -> None:
                for place in places:
                    self._write_mark(txn.at(place), f"{self.task.worker}-{n}", n)
                raise Abandoned

            self._transact(run, write)

        self._ask("abort", run, {"runs": places}, call)

    def _trace(self, run: str) -> None:
        """A chain of traces, as one commit."""
        depth = self._random.randrange(1, 4)

        def call(n: int) -> list[str]:
            ids = [f"t-{self.task.worker}-{n}-{place}" for place in range(depth)]
            parents = [None, *ids]
            traces = [
                inmem.NewTrace(inmem.Custom("Link", place), id=name, parent_id=parents[place])
                for place, name in enumerate(ids)
            ]
            recorded: list[str] = self.db.traces.record_many(run, traces)
            return recorded

        self._ask("trace", run, {"depth": depth}, call)

    def _contest(self, run: str) -> None:
        name = f"c-{self._random.randrange(CONTESTED)}"
        worker = self.task.worker
        self._ask(
            "contest", run, {"id": name},
            lambda n: self.db.traces.record(run, inmem.Custom("Contested", [worker, n]), id=name),
        )  # fmt: skip

    def _audit(self, run: str) -> None:
        """The same number in three primitives, at one moment."""

        def call(_: int) -> dict[str, int]:
            with self.db.snapshot(run) as view:
                return {
                    "kv": view.kv.get("marks", 0),
                    "cell": view.cells.read("marks").value,
                    "run": view.runs.get_run().metadata["marks"],
                    "version": view.runs.get_run().version - 1,
                }

        self._ask("audit", run, {}, call)

    # --- on runs that come and go -----------------------------------------------------------

    def _slot(self, kind: str) -> tuple[tuple[str, int], str]:
        slot = (kind, self._random.randrange(SLOTS))
        name = self.task.runs.life if kind == "life" else self.task.runs.victim
        # A hint of how far the others are: who lags behind meets only runs that are gone.
        hint = self.db.kv.get(self.task.runs.control, f"{kind}{slot[1]}", 0)
        generation = self._generations[slot] = max(hint, self._generations.get(slot, 0))
        return slot, name(slot[1], generation)

    def _next(self, slot: tuple[str, int]) -> None:
        generation = self._generations[slot] = self._generations[slot] + 1
        if self._random.random() < 0.5:  # not always: some are to write into runs that are gone
            self.db.kv.put(self.task.runs.control, f"{slot[0]}{slot[1]}", generation)

    def _status(self, _: str) -> None:
        slot, run = self._slot("life")
        status = self._random.choice(_STATUSES)

        def call(_: int) -> dict[str, Any]:
            changed = self.db.runs.update_status(run, status)
            return {"status": str(changed.status), "version": changed.version}

        answer = self._ask("status", run, {"to": status}, call)
        if isinstance(answer, inmem.RunNotFoundError):
            self._ask("create", run, {}, lambda _: self.db.runs.create_run(run_id=run).version)
        elif isinstance(answer, inmem.InvalidTransitionError):
            stuck = answer.from_status in _ENDED and self._random.random() < 0.7
            if answer.from_status == "archived" or stuck:
                self._next(slot)

    def _victim(self, _: str) -> None:
        slot, run = self._slot("victim")
        worker, db = self.task.worker, self.db
        move = self._random.choice(("kv", "append", "cell", "trace", "create"))
        calls: dict[str, Callable[[int], Any]] = {
            "kv": lambda n: db.kv.put(run, f"v:{worker}-{n}", n),
            "append": lambda n: db.events.append(run, "tick", [worker, n, 0]).sequence,
            "cell": lambda n: db.cells.set(run, f"v:{worker}-{n}", n),
            "trace": lambda n: db.traces.record(run, inmem.Thought("here"), id=f"v-{worker}-{n}"),
            "create": lambda n: db.runs.create_run(run_id=run, tags=("victim",)).version,
        }
        op = "create" if move == "create" else f"victim.{move}"
        if isinstance(self._ask(op, run, {}, calls[move]), inmem.RunDeletedError):
            self._next(slot)

    def _delete(self, _: str) -> None:
        slot, run = self._slot("victim")

        def call(_: int) -> dict[str, Any]:
            gone = self.db.runs.delete_run(run)
            return {name: getattr(gone, name) for name in ("kv", "events", "cells", "traces", "had_record")}

        answer = self._ask("delete", run, {}, call)
        if isinstance(answer, inmem.RunDeletedError | dict):
            self._next(slot)


def _fields(error: Exception) -> dict[str, Any]:
    """What the error says, as far as JSON can."""
    names = ("expected", "actual", "from_status", "to_status", "code")
    found = {name: getattr(error, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}
