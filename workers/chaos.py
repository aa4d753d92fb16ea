"""Fleet work while everything around it is killed, stopped and filled: is each commit there exactly once?

Invariant: `ok` is True only if the writer came back after every kill, no
worker met an error but that of a full store while it was full, every check of
the journals against the store compared something and found nothing, and
nothing is left behind. `python -m workers.chaos --help` tells the options.

    chaos           this module: one run from beginning to end
    chaos_plan      what is done, and when: from a seed, pure
    chaos_worker    one worker: the moves of the stress, and more; all of it in a journal
    chaos_crew      the worker processes, killed and replaced, stopped and continued
    chaos_writer    the writer: found, killed, stopped, seen to serve again
    chaos_pressure  memory and disk, filled and emptied; checkpoints
    chaos_judge     the journals against the store; chaos_judge_own, chaos_tally
    chaos_scratch   where it takes place, and what must not be left of it
    chaos_result    figures, tables, JSON; chaos_cli for the options
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from typing import Any, Final

import inmem
from workers.chaos_crew import Crew
from workers.chaos_judge import Journal, judge_chaos, read_journal
from workers.chaos_plan import Disturbance, schedule
from workers.chaos_pressure import Pressure
from workers.chaos_result import ChaosOptions, ChaosResult, Recovery
from workers.chaos_scratch import Scratch
from workers.chaos_worker import TTL_S, ChaosTask, work
from workers.chaos_writer import PROBE_RUN, Astray, Victim
from workers.checking import Check
from workers.history import UNKNOWN, HistoryError, path_of
from workers.judge import FinalState
from workers.mixing import WORKERS_PER_HOT_RUN, StressRuns
from workers.pool import Interrupt
from workers.stress import prepare, read_final

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


class ChaosObserver:
    """Told how a chaos is getting on; the default listens to nothing."""

    def started(self, options: ChaosOptions, store: str, writer_pid: int) -> None:
        """The store is open and the workers are about to start."""

    def progress(self, seconds: float, told: tuple[int, int, int], result: ChaosResult) -> None:
        """So long into the run, workers have told that much."""

    def note(self, text: str) -> None:
        """The next part begins."""


def run_chaos(
    options: ChaosOptions, interrupt: Interrupt, observer: ChaosObserver | None = None
) -> ChaosResult:
    """Run a chaos to its end and judge it.

    Raises:
        Interrupted, TimedOut: all processes are ended and all files removed
            before this leaves the function.
        InmemError, OSError: the store could not be made.
    """
    observer = observer or ChaosObserver()
    result = ChaosResult(options)
    scratch = Scratch(options.directory, options.quota(), options.disk_mib)
    keep = False
    try:
        if scratch.refused:
            result.notes.append(scratch.refused)
        try:
            with inmem.open(
                scratch.store, durability=options.durability, config=scratch.config,
                timeout_s=options.timeout_s,
            ) as db:  # fmt: skip
                _run_on(db, scratch, result, interrupt, observer)
        finally:
            result.problems += [f"left behind: {what}" for what in scratch.left()]
        keep = not result.ok
    finally:
        scratch.close(keep)
    if keep:
        result.kept = str(scratch.path)
    return result


def _run_on(
    db: Any, scratch: Scratch, result: ChaosResult, interrupt: Interrupt, observer: ChaosObserver
) -> None:
    options = result.options
    runs = StressRuns(f"chaos:{inmem.RunId.new()}", max(2, options.workers // WORKERS_PER_HOT_RUN))
    observer.started(options, str(scratch.store), db.status().writer_pid)
    prepare(db, runs)
    task = ChaosTask(
        str(scratch.store), str(scratch.journals), runs, options.seed, options.rate, options.timeout_s
    )
    victim, pressure = Victim(db), Pressure(db, scratch.disk)
    with Crew(work, task, options.workers) as crew, closing(pressure):
        _wait_for_all(crew, interrupt)
        try:
            _Disturber(crew, victim, pressure, result, interrupt, observer).run()
        except (Astray, inmem.InmemError) as error:
            result.problems.append(f"{type(error).__name__}: {error}")
        observer.note("All is let be; workers finish what they do")
        pressure.close()
        crew.drain(interrupt, DRAIN_S)
        result.processes = len(crew.members)
        result.asked, _, result.reruns = crew.told()
        result.problems += [f"worker {number}: {text}" for number, text in sorted(crew.failures.items())]
        members = [(member.number, member.killed, member.result) for member in crew.members]
    result.problems += pressure.problems
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
            result.problems.append(str(error))
            continue
        noted = len(journals[-1].ops)
        if told is not None and told.asked != noted:
            result.problems.append(f"worker {number} noted {noted} of {told.asked} questions")
    result.asked = sum(len(journal.ops) for journal in journals)
    try:
        final = read_chaos(db, runs, journals, interrupt)
    except inmem.InmemError as error:
        result.problems.append(f"reading back: {type(error).__name__}: {error}")
        return
    result.verdict = judge_chaos(journals, final, pressure.phases)
    probes = Check("probes")
    beats = db.kv.get(PROBE_RUN, "beats", 0)
    probes.require(beats == victim.beats, f"{victim.beats} probes were acknowledged, {beats} are counted")
    result.verdict.checks.append(probes)
    result.verify_s = time.perf_counter() - started


def _wait_for_all(crew: Crew, interrupt: Interrupt) -> None:
    deadline = time.monotonic() + READY_S
    while any(member.progress is None and not member.done for member in crew.members):
        if time.monotonic() >= deadline:
            raise Astray(f"not all workers have begun within {READY_S:g} s")
        crew.listen(interrupt, 0.5)


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
        self, crew: Crew, victim: Victim, pressure: Pressure, result: ChaosResult, interrupt: Interrupt,
        observer: ChaosObserver,
    ) -> None:  # fmt: skip
        self._crew = crew
        self._victim = victim
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
        if not self._pressure.can_checkpoint and options.rates.checkpoint:
            result.notes.append("checkpoints: not available")
        if self._pressure.disk is None:
            plan = [one for one in plan if one.kind != "fill_disk"]
        if not self._pressure.can_checkpoint:
            plan = [one for one in plan if one.kind != "checkpoint"]
        for index, one in enumerate(plan):
            if not self._work_until(one.at_s) or self._seconds() >= options.seconds:
                result.left_out += len(plan) - index
                break
            # Kills take most of the time: on a slow machine some are left out, and not what comes after.
            if one.kind == "kill_writer" and self._seconds() - one.at_s > LATE_S:
                result.left_out += 1
            elif getattr(self, f"_{one.kind}")(one):
                result.done[one.kind] = result.done.get(one.kind, 0) + 1
        self._work_until(options.seconds)
        result.work_s = self._seconds()

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _work_until(self, at_s: float) -> bool:
        """Let workers work up to a time of the schedule; False if one has failed."""
        while True:
            left_s = at_s - self._seconds()
            self._crew.listen(self._interrupt, max(0.0, min(left_s, TOLD_S)))
            if self._seconds() >= self._next_told:
                self._next_told = self._seconds() + TOLD_S
                self._observer.progress(self._seconds(), self._crew.told(), self._result)
            if self._crew.failures or self._pressure.problems:
                return False
            if left_s <= 0:
                return True

    def _kill_writer(self, one: Disturbance) -> bool:
        if self._quick >= QUICK_KILLS:
            self._work_until(self._served_at - self._started + LONG_LIFE_S)
        alone = not (self._crew.stopped or self._pressure.busy)
        killed_at = self._victim.kill()
        self._quick = self._quick + 1 if killed_at - self._served_at < LONG_LIFE_S else 0
        if one.choice < AGAIN_SHARE:
            again_at = self._victim.kill_next(one.choice / AGAIN_SHARE * AGAIN_AFTER_S)
            if again_at is not None:
                killed_at, alone = again_at, False
                self._quick += 1
                self._result.done["kill_next"] = self._result.done.get("kill_next", 0) + 1
        self._victim.beat()
        self._served_at = time.monotonic()
        seconds = self._served_at - killed_at
        alone = alone and not (self._crew.stopped or self._pressure.busy)
        self._result.recoveries.append(Recovery(seconds, alone))
        return True

    def _stop_writer(self, one: Disturbance) -> bool:
        self._victim.stop(one.seconds)
        return True

    def _kill_worker(self, one: Disturbance) -> bool:
        return self._crew.kill(one.choice) is not None

    def _stop_worker(self, one: Disturbance) -> bool:
        return self._crew.stop(one.choice, one.seconds) is not None

    def _checkpoint(self, _: Disturbance) -> bool:
        return self._pressure.checkpoint()

    def _fill_memory(self, one: Disturbance) -> bool:
        return self._pressure.fill_memory(one.seconds)

    def _fill_disk(self, one: Disturbance) -> bool:
        return self._pressure.fill_disk(one.seconds)


if __name__ == "__main__":
    # Worker processes import this module again: what only the command needs stays out of it.
    from workers.chaos_cli import chaos_app

    chaos_app()
