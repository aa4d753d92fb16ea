"""Fleet work while everything around it is killed, stopped and filled: is each commit there exactly once?

Invariant: `ok` is True only if the writer came back after every kill, no
worker met an error but that of a full store while it was full, every check of
the journals against the store compared something and found nothing, and
nothing is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, Final

import inmem
from workers.chaos.directory import ChaosDirectory
from workers.chaos.pressure import Pressure
from workers.chaos.processes import KillableWorkers
from workers.chaos.result import ChaosOptions, ChaosResult, Recovery
from workers.chaos.schedule import Disturbance, schedule
from workers.chaos.worker import TTL_S, work
from workers.chaos.writer import PROBE_RUN, WriterFault, WriterProcess
from workers.judge.chaos import Journal, judge_chaos, read_journal
from workers.judge.checks import Check
from workers.judge.final_state import FinalState
from workers.judge.history import UNKNOWN, HistoryError, path_of
from workers.observer import Observer
from workers.pool import Interrupt
from workers.stress.program import prepare, read_final
from workers.stress.worker import WORKERS_PER_HOT_RUN, StressRuns, StressTask

OF_WORKERS: Final = ("kill_worker", "stop_worker")  # what is done to a store on a server is done to these
READY_S: Final = 60.0  # for all workers to have begun
DRAIN_S: Final = 60.0  # for all workers to finish what they do
AGAIN_SHARE: Final = 0.1  # of kills: the next writer is killed while it starts
AGAIN_AFTER_S: Final = 0.2  # at most, after it was seen
# Starting holds back when writers die within a second of each other, many in a row. That is right, and
# not what is measured here: after so many quick kills one writer lives longer.
QUICK_KILLS: Final = 4
LONG_LIFE_S: Final = 1.1
LATE_S: Final = 2.0  # for which a kill may be late
TOLD_S: Final = 0.5  # how often an observer is told
LINE_S: Final = 5.0  # where it prints lines


def run_chaos(
    options: ChaosOptions, interrupt: Interrupt, observer: Observer | None = None
) -> ChaosResult:
    """Run a chaos to its end and judge it.

    Raises:
        Interrupted, TimedOut: all processes are ended and all files removed
            before this leaves the function.
        InmemError, OSError: the store could not be made.
    """
    result = ChaosResult(options)
    scratch = ChaosDirectory(options.directory, options.quota(), options.disk_mib)
    keep = False
    try:
        if scratch.refused:
            result.notes.append(scratch.refused)
        try:
            with inmem.open(
                options.store or scratch.store, durability=None if options.store else options.durability,
                config=scratch.config, timeout_s=options.timeout_s,
            ) as db:  # fmt: skip
                _run_on(db, scratch, result, interrupt, observer or Observer())
        finally:
            result.failures += [f"left behind: {what}" for what in scratch.left()]
        keep = not result.ok
    finally:
        scratch.close(keep)
    if keep:
        result.kept = str(scratch.path)
    return result


def _run_on(
    db: Any, scratch: ChaosDirectory, result: ChaosResult, interrupt: Interrupt, observer: Observer
) -> None:
    options = result.options
    runs = StressRuns(f"chaos:{inmem.RunId.new()}", max(2, options.workers // WORKERS_PER_HOT_RUN))
    observer.note(
        f"Store {db.name}, writer process {db.status().writer_pid or 'none'}; "
        f"starting {options.workers} workers"
    )
    prepare(db, runs)
    task = StressTask(
        options.store or str(scratch.store), str(scratch.journals), runs, options.seed, options.timeout_s,
        rate=options.rate,
    )
    writer, pressure = WriterProcess(db), Pressure(db, scratch.disk)
    with KillableWorkers(work, task, options.workers) as workers, closing(pressure):
        _wait_for_all(workers, interrupt)
        try:
            _Disturber(workers, writer, pressure, result, interrupt, observer).run()
        except (WriterFault, inmem.InmemError) as error:
            result.failures.append(f"{type(error).__name__}: {error}")
        observer.note("All is let be; workers finish what they do")
        pressure.close()
        workers.drain(interrupt, DRAIN_S)
        result.processes = len(workers.members)
        result.asked, _, result.reruns = workers.told()
        result.failures += [f"worker {number}: {text}" for number, text in sorted(workers.failures.items())]
        members = [(member.number, member.killed, member.result) for member in workers.members]
    result.failures += pressure.problems
    status = db.status()
    result.image_bytes, result.wal_bytes = status.image_bytes, status.wal_bytes
    result.checkpoint_s = pressure.checkpoints
    result.resumed_s = [phase.resumed_s for phase in pressure.phases]
    observer.note("Reading everything back")
    started = time.perf_counter()
    _outlive_entries(interrupt)
    journals = []
    for number, killed, told in members:
        try:
            journals.append(read_journal(path_of(scratch.journals, number), number, killed))
        except HistoryError as error:
            result.failures.append(str(error))
            continue
        noted = len(journals[-1].ops)
        if told is not None and told.asked != noted:
            result.failures.append(f"worker {number} noted {noted} of {told.asked} questions")
    result.asked = sum(len(journal.ops) for journal in journals)
    try:
        final = read_chaos(db, runs, journals, interrupt)
    except inmem.InmemError as error:
        result.failures.append(f"reading back: {type(error).__name__}: {error}")
        return
    verdict = judge_chaos(journals, final, pressure.phases)
    probes = Check("probes")
    beats = db.kv.get(PROBE_RUN, "beats", 0)
    probes.require(beats == writer.probes, f"{writer.probes} probes were acknowledged, {beats} are counted")
    result.checks, result.tally = [*verdict.checks, probes], verdict.tally
    result.verify_s = time.perf_counter() - started


def _wait_for_all(workers: KillableWorkers, interrupt: Interrupt) -> None:
    deadline = time.monotonic() + READY_S
    while any(member.progress is None and not member.done for member in workers.members):
        if time.monotonic() >= deadline:
            raise WriterFault(f"not all workers have begun within {READY_S:g} s")
        workers.listen(interrupt, 0.5)


def _outlive_entries(interrupt: Interrupt) -> None:
    """Wait until what expires has: each put is older than its time to live by now."""
    until = time.monotonic() + TTL_S[1]
    while (left_s := until - time.monotonic()) > 0:
        interrupt.check()
        interrupt.wait([], left_s)


def read_chaos(db: Any, runs: StressRuns, journals: list[Journal], interrupt: Interrupt) -> FinalState:
    """Everything that is there of every run that was named."""
    final = read_final(db, runs, [journal.ops for journal in journals], interrupt)
    for journal in journals:
        for op in journal.ops[-1:]:
            # A deletion that a killed worker asked for, and nobody was told of: was the run deleted?
            if op.op == "delete" and op.outcome == UNKNOWN:
                with suppress(inmem.RunDeletedError):
                    db.repair_indices(op.run)  # the one call on a run that is refused or changes nothing
                    continue
                final.runs[op.run].takes_writes = False
    return final


class _Disturber:
    """Carries out a schedule, and notes what came of it."""

    def __init__(
        self, workers: KillableWorkers, writer: WriterProcess, pressure: Pressure, result: ChaosResult,
        interrupt: Interrupt, observer: Observer,
    ) -> None:  # fmt: skip
        self._workers = workers
        self._writer = writer
        self._pressure = pressure
        self._result = result
        self._interrupt = interrupt
        self._observer = observer
        self._next_told = 0.0
        self._served_at = 0.0  # when the last writer that was started had answered
        self._quick = 0  # kills in a row of writers that had lived for less

    def run(self) -> None:
        """The whole schedule, as far as there is time for it; ends at once if a worker fails."""
        result, options = self._result, self._result.options
        self._started = time.monotonic()
        plan = schedule(options.seed, options.seconds, options.rates)
        if self._pressure.disk is None:
            plan = [one for one in plan if one.kind != "fill_disk"]
        if options.store is not None:
            plan = [one for one in plan if one.kind in OF_WORKERS]
        for index, one in enumerate(plan):
            if not self._work_until(one.at_s) or self._seconds() >= options.seconds:
                result.left_out += len(plan) - index
                break
            # Kills take most of the time: on a slow machine some are left out, and not what comes after.
            if one.kind == "kill_writer" and self._seconds() - one.at_s > LATE_S:
                result.left_out += 1
            elif self._disturb(one):
                result.done[one.kind] = result.done.get(one.kind, 0) + 1
        self._work_until(options.seconds)
        result.work_s = self._seconds()

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _work_until(self, at_s: float) -> bool:
        """Let workers work up to a time of the schedule; False if one has failed."""
        while True:
            left_s = at_s - self._seconds()
            self._workers.listen(self._interrupt, max(0.0, min(left_s, TOLD_S)))
            if self._seconds() >= self._next_told:
                self._next_told = self._seconds() + TOLD_S
                self._tell()
            if self._workers.failures or self._pressure.problems:
                return False
            if left_s <= 0:
                return True

    def _tell(self) -> None:
        seconds, asked, recoveries = self._seconds(), self._workers.told()[0], self._result.recoveries
        done = {kind.replace("_", " "): f"{count:,}" for kind, count in sorted(self._result.done.items())}
        self._observer.figures({
            "time": f"{seconds:.0f} of {self._result.options.seconds:.0f} s",
            "operations": f"{asked:,} ({asked / max(seconds, 0.1):,.0f}/s)",
            "last recovery": f"{recoveries[-1].seconds:.2f} s" if recoveries else "-",
        } | done, LINE_S)  # fmt: skip

    def _disturb(self, one: Disturbance) -> bool:
        """Do it; False if it could not be done."""
        acts: dict[str, Callable[[], object]] = {
            "kill_writer": lambda: self._kill_writer(one),
            "stop_writer": lambda: self._writer.stop(one.seconds),
            "kill_worker": lambda: self._workers.kill(one.choice),
            "stop_worker": lambda: self._workers.stop(one.choice, one.seconds),
            "checkpoint": self._pressure.checkpoint,
            "fill_memory": lambda: self._pressure.fill_memory(one.seconds),
            "fill_disk": lambda: self._pressure.fill_disk(one.seconds),
        }
        return bool(acts[one.kind]())

    def _kill_writer(self, one: Disturbance) -> bool:
        if self._quick >= QUICK_KILLS:
            self._work_until(self._served_at - self._started + LONG_LIFE_S)
        alone = not (self._workers.stopped or self._pressure.busy)
        killed_at = self._writer.kill()
        self._quick = self._quick + 1 if killed_at - self._served_at < LONG_LIFE_S else 0
        if one.choice < AGAIN_SHARE:
            again_at = self._writer.kill_next(one.choice / AGAIN_SHARE * AGAIN_AFTER_S)
            if again_at is not None:
                killed_at, alone = again_at, False
                self._quick += 1
                self._result.done["kill_next"] = self._result.done.get("kill_next", 0) + 1
        self._writer.probe()
        self._served_at = time.monotonic()
        seconds = self._served_at - killed_at
        alone = alone and not (self._workers.stopped or self._pressure.busy)
        self._result.recoveries.append(Recovery(seconds, alone))
        return True
