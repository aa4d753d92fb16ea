"""One demonstration, from an open store to the verdict.

Invariant: only processes that were started here are killed, and the writer
only if nobody served the store before. Whatever happens, none of the
processes is left, and nothing of a store without a path.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import inmem
from inmem.demo.children import ChildFailedError, FleetChild, FleetProcesses
from inmem.demo.facts import HeardFacts, not_done, read_facts
from inmem.demo.link import DemoTask
from inmem.demo.verify import DemoCheck, DemoEvidence, verified
from inmem.demo.writer import WriterKill, why_not

PROGRAM: Final = ("-m", "inmem.demo.process")
# Who is killed, and after which part of the time.
_PLAN: Final = (("reviewer", 0.30), ("writer", 0.50), ("worker", 0.65))
_READY_S: Final = 120.0  # for all processes to be ready: a machine may be busy
_BACK_S: Final = 60.0  # for what was killed to be back
_DRAIN_S: Final = 60.0  # for the jobs that are left, at the end
_GONE_S: Final = 20.0  # for a store without a path to be gone
_TICK_S: Final = 0.1
_RATE_S: Final = 2.0  # over which rates are taken


class DemoFailedError(Exception):
    """The demonstration could not go on; it says why."""


class DemoEndedError(Exception):
    """A signal has ended it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What is shown."""

    seconds: float = 15.0
    workers: int = 4
    seed: int = 1
    path: str | None = None
    program: Sequence[str] = PROGRAM  # what processes run: words for Python


@dataclass(slots=True)
class DemoKill:
    """One process that was killed: when, and after how long another one had done its work."""

    what: str
    name: str
    pid: int
    at_s: float
    back_s: float | None = None


@dataclass(slots=True)
class DemoState:
    """What can be seen at a moment."""

    place: str
    run: str
    seconds: float
    durability: str
    phase: str = "starts"
    elapsed_s: float = 0.0
    children: list[FleetChild] = field(default_factory=list)
    planned: int = 0
    done: int = 0
    approved: int = 0
    amount: int = 0
    version: int = 0
    jobs_per_s: float = 0.0
    commits_per_s: float = 0.0
    kills: list[DemoKill] = field(default_factory=list)
    spared: str = ""  # why the writer is left alone


@dataclass(slots=True)
class DemoResult:
    """What came of it."""

    state: DemoState
    checks: list[DemoCheck]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether all of it holds."""
        return not self.problems and all(check.ok for check in self.checks)


class DemoObserver:
    """Sees nothing; `inmem.demo.screen` has the one that shows it."""

    def draw(self, state: DemoState) -> None:
        """Called some times a second."""

    def beside(self, place: str) -> AbstractContextManager[object]:
        """What goes on while the store is open, which `place` opens as well."""
        return nullcontext()

    def done(self, result: DemoResult) -> None:
        """There is a verdict, and the store is still open."""


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP as a note. Use it as a context manager, in the main thread.

    An exception could come between any two steps, also while a process is
    started, and that one would be left behind.
    """

    def __init__(self) -> None:
        self._number = 0

    def __enter__(self) -> StopSignals:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # Under nohup one of them is ignored, and stays so.
        self._before = {
            number: signal.signal(number, self._note) for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._number = self._number or number

    def check(self) -> None:
        """Return if no signal came.

        Raises:
            DemoEndedError: one came.
        """
        if self._number:
            raise DemoEndedError(self._number)


def run_demo(options: DemoOptions, signals: StopSignals, observer: DemoObserver | None = None) -> DemoResult:
    """Run a fleet, disturb it, and verify what it has left.

    Raises:
        DemoEndedError: a signal came. All processes are gone.
        DemoFailedError: something has not come back, or a process has failed.
        InmemError: the store cannot be used.
    """
    spared = why_not(options.path)
    with _opened(options.path) as database:
        fleet = _Fleet(database, options, signals, observer or DemoObserver(), spared)
        try:
            return fleet.run()
        except ChildFailedError as error:
            raise DemoFailedError(str(error)) from None


@contextmanager
def _opened(path: str | None) -> Iterator[inmem.Database]:
    """The store. One without a path is gone afterwards.

    Raises:
        DemoFailedError: it is not.
    """
    # With a log, as a store has that stays; one without a path has none by default.
    database = inmem.open(path, durability="buffered" if path is None else None)
    place = None if path is not None else Path(database.path)
    try:
        yield database
    finally:
        database.close()
        deadline = time.monotonic() + _GONE_S
        while place is not None and os.path.lexists(place):
            if time.monotonic() >= deadline:
                raise DemoFailedError(f"{place} is still there after {_GONE_S:g} s")
            time.sleep(0.02)


class _Fleet:
    """The parent of all processes, while they work."""

    def __init__(
        self, database: inmem.Database, options: DemoOptions, signals: StopSignals, observer: DemoObserver,
        spared: str,
    ) -> None:
        self._database = database
        self._options = options
        self._signals = signals
        self._observer = observer
        # A URL may have a password, which the database's name has not.
        is_named = options.path is not None and "://" in options.path
        place = options.path if is_named and options.path is not None else str(database.path)
        self._run = f"demo-{inmem.RunId.new()}"
        durability = database.status().durability
        self._state = DemoState(database.name, self._run, options.seconds, durability, spared=spared)
        self._heard = HeardFacts()
        self._chance = random.Random(options.seed)
        self._planned = deque(_PLAN)
        self._started = 0.0
        self._pending: list[tuple[DemoKill, FleetChild, int]] = []  # with the token or work before it
        self._writer_kill = WriterKill(database, self._run)
        self._writer: DemoKill | None = None
        self._rates: deque[tuple[float, int, int]] = deque()
        task = DemoTask(place, self._run, "", "", "", options.seed, options.workers)
        self._processes = FleetProcesses(options.program, task)
        self._place = place

    def run(self) -> DemoResult:
        """All of it."""
        with self._observer.beside(self._place):
            result = self._result()
            self._observer.done(result)
            return result

    def _result(self) -> DemoResult:
        workers = [f"worker-{number}" for number in range(1, self._options.workers + 1)]
        self._begin(workers)
        try:
            with self._processes as processes:
                planner = processes.add("planner", "planner")
                for name in workers:
                    processes.add(name, "worker")
                for name in ("reviewer-1", "reviewer-2"):
                    processes.add(name, "reviewer")
                self._state.children = processes.all
                self._until(lambda: all(each.is_ready for each in processes.all), _READY_S, "be ready")
                self._work()
                self._state.phase = "ends"
                processes.ask_to_stop(planner)
                self._until(lambda: self._heard.closed is not None, _DRAIN_S, "end the plan")
                self._until(self._is_drained, _DRAIN_S, "do the jobs that are left")
                for child in processes.all:
                    processes.ask_to_stop(child)
                self._until(lambda: all(each.process is None for each in processes.all), _DRAIN_S, "end")
        finally:
            self._writer_kill.end()
        self._state.phase = "verifies"
        self._observer.draw(self._state)
        stored = read_facts(self._database, self._run, workers, self._heard)
        self._look()
        # Whoever was killed may not have told of its last commit: what is told at the end is what is stored.
        self._state.approved = len(stored.of_type("approved"))
        self._signals.check()
        checks = [*verified(DemoEvidence(self._options.seed, stored, self._heard)), self._came_back()]
        self._end(workers)
        self._state.phase = "is done"
        problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
        problems += [f"{check.name}: nothing was compared" for check in checks if not check.compared]
        return DemoResult(self._state, checks, problems)

    def _begin(self, workers: Sequence[str]) -> None:
        def begin(txn: Any) -> None:
            txn.runs.create_run(tags=("demo",), metadata={"seed": self._options.seed})
            txn.events.append("began", {"workers": len(workers)})
            for name in workers:
                own = txn.at(f"{self._run}.{name}")
                own.runs.create_run(parent_run=self._run, tags=("demo", "worker"))

        self._database.transact(self._run, begin)

    def _end(self, workers: Sequence[str]) -> None:
        def end(txn: Any) -> None:
            for name in workers:
                txn.at(f"{self._run}.{name}").runs.complete_run()
            txn.runs.complete_run()

        self._database.transact(self._run, end)

    # --- while it works ---------------------------------------------------------------------

    def _work(self) -> None:
        """For the seconds that were asked for, and until what was killed is back."""
        self._state.phase = "works"
        self._started = time.monotonic()
        while (elapsed_s := time.monotonic() - self._started) < self._options.seconds or self._planned:
            self._tick()
            if self._planned and elapsed_s >= self._planned[0][1] * self._options.seconds:
                self._kill(self._planned[0][0])
            if elapsed_s > self._options.seconds + _BACK_S:
                raise DemoFailedError(f"there was nobody to kill: {self._planned[0][0]}")
        self._until(self._all_are_back, _BACK_S, "come back")

    def _until(self, condition: Callable[[], bool], most_s: float, what: str) -> None:
        deadline = time.monotonic() + most_s
        while not condition():
            if time.monotonic() >= deadline:
                names = [f"{each.name} {each.doing}" for each in self._processes.all if each.process]
                raise DemoFailedError(f"the fleet did not {what} within {most_s:g} s: {'; '.join(names)}")
            self._tick()

    def _tick(self) -> None:
        self._signals.check()
        for child, told in self._processes.hear(_TICK_S):
            self._hear(child, told)
        self._look()
        self._observer.draw(self._state)

    def _hear(self, child: FleetChild, told: dict[str, Any]) -> None:
        kind, heard = told["kind"], self._heard
        if "sequence" in told:
            heard.anchor(self._run, told)
        if kind == "ready":
            child.is_ready, child.doing = True, "is ready"
        elif kind == "doing":
            child.doing = told["text"]
        elif kind == "planned":
            heard.planned[told["first"]] = told["jobs"]
            child.done += told["jobs"]
        elif kind == "closed":
            heard.closed = told["jobs"]
        elif kind == "done":
            heard.done.append((told["job"], child.name))
            heard.anchor(f"{self._run}.{child.name}", told["own"])
            child.done += 1
            self._see_back("worker", lambda of, before: of is child and child.done > before)
        elif kind == "lease":
            child.token = told["token"]
            if child.token:
                heard.leases.append((child.token, _holder(child)))
        elif kind == "approved":
            heard.approved.append((told["job"], told["token"], _holder(child)))
            child.done += 1
            self._see_back("reviewer", lambda _, before: bool(told["token"] > before))

    def _look(self) -> None:
        """What the store says: read in shared memory, also while there is no writer."""
        state, now = self._state, time.monotonic()
        if self._started:
            state.elapsed_s = now - self._started
        with self._database.snapshot(self._run) as view:
            state.version = view.version
            state.planned = view.kv.get("planned", 0)
            state.done = view.kv.get("total:jobs", 0)
            state.amount = view.kv.get("total:amount", 0)
        state.approved = len(self._heard.approved)
        self._rates.append((now, state.done, state.version))
        while now - self._rates[0][0] > _RATE_S and len(self._rates) > 2:
            self._rates.popleft()
        before, done, version = self._rates[0]
        passed_s = now - before
        if passed_s > 0:
            state.jobs_per_s = (state.done - done) / passed_s
            state.commits_per_s = (state.version - version) / passed_s
        if self._writer is not None and self._writer.back_s is None:
            if self._writer_kill.error is not None:
                raise DemoFailedError(f"no writer came back: {self._writer_kill.error}")
            self._writer.back_s = self._writer_kill.back_s

    def _is_drained(self) -> bool:
        return not any(not_done(self._database, self._run).values())

    # --- what is killed ---------------------------------------------------------------------

    def _kill(self, what: str) -> None:
        """Kill who is to be killed now; later, if nobody is in the middle of something."""
        at_s = time.monotonic() - self._started
        if what == "writer":
            self._planned.popleft()
            if not self._state.spared:
                try:
                    self._writer_kill.strike()
                except inmem.InmemError as error:
                    raise DemoFailedError(f"the writer could not be killed: {error}") from None
                self._writer = DemoKill("writer", "writer", self._writer_kill.pid, at_s)
                self._state.kills.append(self._writer)
            return
        busy = [
            child for child in self._processes.all
            if child.role == what and child.is_ready and child.done and (what != "reviewer" or child.token)
        ]
        if not busy:
            return
        self._planned.popleft()
        child = self._chance.choice(busy)
        kill = DemoKill(what, child.name, child.pid, at_s)
        self._heard.kills[what] += 1
        for told in self._processes.kill(child):  # what it could still tell
            self._hear(child, told)
        self._state.kills.append(kill)
        self._pending.append((kill, child, child.token if what == "reviewer" else child.done))
        self._processes.start(child)

    def _see_back(self, what: str, is_back: Callable[[FleetChild, int], bool]) -> None:
        for kill, child, before in self._pending:
            if kill.what == what and kill.back_s is None and is_back(child, before):
                kill.back_s = time.monotonic() - self._started - kill.at_s

    def _all_are_back(self) -> bool:
        return all(kill.back_s is not None for kill in self._state.kills) and all(
            child.is_ready for child in self._processes.all
        )

    def _came_back(self) -> DemoCheck:
        expected = [what for what, _ in _PLAN if what != "writer" or not self._state.spared]
        missing = [what for what in expected if what not in [kill.what for kill in self._state.kills]]
        problems = [f"no {what} was killed" for what in missing]
        problems += [
            f"{kill.name}, process {kill.pid}, did not come back"
            for kill in self._state.kills if kill.back_s is None
        ]
        return DemoCheck("what was killed came back", len(self._state.kills), "kills", problems)


def _holder(child: FleetChild) -> str:
    return f"{child.name}#{child.starts}"
