"""A hundred workers at once on shared runs, judged afterwards by what they noted.

Invariant: `ok` is True only if every worker finished, every check of the
judge compared something and found nothing, and a throw-away store left
nothing behind. Histories are kept if asked for, and whenever the judge found
something.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import inmem
from workers.judge.checks import Check, Judged
from workers.judge.final_state import FinalRun, FinalState
from workers.judge.history import OK, REFUSED, HistoryError, Op, by_op, path_of, read_history
from workers.judge.run_contents import read_cells
from workers.judge.stress import judge
from workers.observer import Observer
from workers.pool import Interrupt, WorkerPool
from workers.stores import StoreOptions, opened_store
from workers.stress.worker import WORKERS_PER_HOT_RUN, StressRuns, StressTask, StressTold, stress


@dataclass(frozen=True, slots=True)
class StressOptions(StoreOptions):
    """How a stress is run."""

    seed: int
    workers: int
    seconds: float = 20.0
    operations: int | None = None  # of each worker, instead of a time
    histories: str | None = None  # a directory in which they are kept

    def totals(self) -> list[int]:
        """What each worker has to do, in operations or in seconds."""
        return [self.operations or math.ceil(self.seconds)] * self.workers


@dataclass(frozen=True, slots=True)
class Figures:
    """One kind of question: how often, with what answer, and how long that took."""

    asked: int
    acknowledged: int
    refused: dict[str, int]  # by error
    unknown: int
    mean_ms: float
    p99_ms: float


@dataclass(slots=True)
class StressResult(Judged):
    """What came of a stress."""

    options: StressOptions
    runs: StressRuns | None = None
    durability: str = ""
    told: list[StressTold] = field(default_factory=list)
    figures: dict[str, Figures] = field(default_factory=dict)
    histories: str = ""  # where they are, if they were kept
    work_s: float = 0.0  # from the word to go to the last result
    verify_s: float = 0.0


def run_stress(
    options: StressOptions, interrupt: Interrupt, observer: Observer | None = None
) -> StressResult:
    """Run a stress to its end and judge it.

    Raises:
        Interrupted, TimedOut: workers are stopped and a throw-away store and
            its histories are removed before this leaves the function.
        LeftBehind: there is no result, and a throw-away store did not go away.
        InmemError: the store could not be opened or prepared.
    """
    result = StressResult(options)
    with _directory(result) as histories, opened_store(options, result.failures) as db:
        _run_on(db, histories, result, interrupt, observer or Observer())
    return result


@contextmanager
def _directory(result: StressResult) -> Iterator[Path]:
    """Where the histories go; removed if nothing was found in them, unless it was asked for."""
    asked = result.options.histories
    if asked is not None:
        directory = Path(asked)
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        result.histories = str(directory)
        return
    directory = Path(tempfile.mkdtemp(prefix="inmem-stress-"))
    keep = False
    try:
        yield directory
        keep = not result.ok
    finally:
        if keep:
            result.histories = str(directory)
        else:
            shutil.rmtree(directory)


def _run_on(
    db: Any, histories: Path, result: StressResult, interrupt: Interrupt, observer: Observer
) -> None:
    options = result.options
    hot = max(2, options.workers // WORKERS_PER_HOT_RUN)
    runs = result.runs = StressRuns(f"stress:{inmem.RunId.new()}", hot)
    status = db.status()
    result.durability = status.durability
    observer.phase(options.totals(), "seconds" if options.operations is None else "operations")
    observer.note(f"Store {db.name}, writer process {status.writer_pid or 'none'}")
    observer.note(f"Starting {options.workers} workers")
    prepare(db, runs)
    task = StressTask(
        options.place(db), str(histories), runs, options.seed, options.timeout_s, 0, options.workers,
        options.operations, options.seconds,
    )  # fmt: skip
    tasks = [(replace(task, worker=worker),) for worker in range(options.workers)]
    interrupt.check()
    with WorkerPool(stress, tasks, start_method=options.start_method) as pool:
        outcome = pool.run(observer.progress, interrupt)
    result.told = outcome.in_order()
    result.work_s = max((told.seconds for told in result.told), default=0.0)
    result.failures = outcome.told("worker")
    if result.failures:
        return
    observer.note(f"All workers are done; judging {histories}")
    started = time.perf_counter()
    read = Check("histories")
    noted: list[list[Op]] = []
    for told in result.told:
        interrupt.check()
        try:
            noted.append(read_history(path_of(histories, told.worker), told.worker))
        except HistoryError as error:
            read.require(False, str(error))
            continue
        read.require(
            len(noted[-1]) == told.asked, f"worker {told.worker} noted {len(noted[-1])} of {told.asked}"
        )
    final = read_final(db, runs, noted, interrupt)
    result.checks = [read, *judge(noted, final)]
    result.figures = figures_of(noted)
    result.verify_s = time.perf_counter() - started


def prepare(db: Any, runs: StressRuns) -> None:
    """Hot runs, each with its cells, before anybody starts."""
    for run in runs.hot():

        def begin(txn: Any) -> None:
            txn.runs.create_run(tags=("hot",), metadata={"marks": 0})
            for name, value in (("duel", [-1, -1]), ("tally", 0), ("marks", 0)):
                txn.cells.init(name, value)

        db.transact(run, begin)


def read_final(
    db: Any, runs: StressRuns, histories: Sequence[Sequence[Op]], interrupt: Interrupt
) -> FinalState:
    """Everything that is there of every run that was named."""
    hot = runs.hot()
    named = {op.run for history in histories for op in history} | set(hot)
    deleted = {
        op.run for history in histories for op in history if op.op == "delete" and op.outcome == OK
    }
    most: Counter[str] = Counter()  # jobs of each run
    for op in (op for history in histories for op in history if op.op == "job.put"):
        most[op.run] += op.args["count"]
    final = {}
    for run in sorted(named):
        interrupt.check()
        final[run] = _read_run(db, run, run in deleted)
        _read_jobs(db, run, most[run], final[run])
    report = db.check()
    return FinalState(hot, final, list(report.problems), report.records)


def _read_run(db: Any, run: str, deleted: bool) -> FinalRun:
    found = FinalRun()
    record = db.runs.get_run(run)
    if record is not None:
        found.status, found.version = str(record.status), record.version
        found.metadata = dict(record.metadata)
    found.kv = dict(db.kv.list_with_values(run))
    found.events = [(event.sequence, event.event_type, event.payload) for event in db.events.iter(run)]
    chain = db.events.verify_chain(run)
    length = db.events.count(run)
    if not chain.is_valid or not chain.length == length == len(found.events):
        found.chain = f"chain of {chain.length}, log of {length}: {chain.error}"
    found.cells = read_cells(db.cells, run)
    for trace in db.traces.list(run):
        body = trace.body
        found.traces[trace.id] = (
            trace.parent_id, body.data if isinstance(body, inmem.Custom) else getattr(body, "content", None)
        )  # fmt: skip
    if deleted:
        try:
            db.kv.put(run, "late", 1)
        except inmem.RunDeletedError:
            found.takes_writes = False
    return found


def _read_jobs(db: Any, run: str, most: int, found: FinalRun) -> None:
    with db.snapshot(run) as view:
        for queue in view.queues.list():
            counts = view.queues.counts(queue)
            found.job_count += counts.ready + counts.delayed + counts.claimed + counts.dead
            for number in range(most):
                if (job := view.queues.get(f"{queue}/{number}")) is not None:
                    found.jobs[number] = (job.payload, job.state, job.attempt)


def figures_of(histories: Sequence[Sequence[Op]]) -> dict[str, Figures]:
    """Per kind of question, in order of their names."""
    found = by_op(histories)
    return {name: _figures(found[name]) for name in sorted(found)}


def _figures(ops: list[Op]) -> Figures:
    acknowledged = sum(op.outcome == OK for op in ops)
    refused = Counter(str(op.error) for op in ops if op.outcome == REFUSED)
    times = sorted((op.answered_at or op.asked_at) - op.asked_at for op in ops)
    return Figures(
        asked=len(ops),
        acknowledged=acknowledged,
        refused=dict(sorted(refused.items())),
        unknown=len(ops) - acknowledged - sum(refused.values()),
        mean_ms=sum(times) / len(times) / 1e6,
        p99_ms=times[(len(times) * 99) // 100 if len(times) > 1 else 0] / 1e6,
    )
