"""Recorded runs into a store, step by step, as the agents themselves would have written them.

Invariant: each step is one transaction that also advances the run's
`progress` entry, and reads it first. So a step is stored once however often
and by however many processes a run is loaded: a run that is complete is left
alone, a half-done one goes on after its last committed step.

Each step is in all five primitives: its events; its traces, below one root;
the cells `state` (the agent's, after the step) and `status` ("running", and
in the end how it ended); KV with `progress` and what the trajectory itself
keeps (`submission`, `lookup:...`). The run is created by the transaction of
the first step and ended, completed or failed, by that of the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from inmem.database import Database
from inmem.errors import InvalidInputError, RunExistsError
from inmem.exchange.recorded.formats import FORMATS, parse_file
from inmem.exchange.recorded.trajectory import Rejected, Trajectory, TrajectoryStep
from inmem.keys import shorten
from inmem.scopes import TRANSACT_TIMEOUT_S, Transaction

PROGRESS_KEY: Final = "progress"


@dataclass(slots=True)
class Recorded:
    """What was stored of recorded runs: how many are new, went on from a step, or were there already.

    `rejected` are files and records that are no runs, `notes` what could not be kept in its plain form.
    """

    files: int = 0
    new: int = 0
    continued: int = 0
    complete: int = 0
    steps: int = 0
    events: int = 0
    traces: int = 0
    run_ids: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_recorded(
    database: Database, files: list[Path], source_format: str, *,
    progress: Callable[[str, int], None] = lambda source, steps: None,
) -> Recorded:
    """Store the recorded agent runs of some files; what is no run is reported, and the rest stored.

    Run ids follow from format, name and content, so doing it again changes
    nothing. Cost: one commit a step; a file, or a line of one, is in memory.

    Raises:
        InvalidInputError: there is no such format.
        RunExistsError: a run id is taken by another record.
    """
    if source_format not in FORMATS:
        raise InvalidInputError(
            f"format must be one of {', '.join(FORMATS)}, not {shorten(source_format)}", argument="format"
        )
    report = Recorded()
    for path in files:
        report.files += 1
        for _, parsed in parse_file(path, str(path), source_format=source_format):
            if isinstance(parsed, Rejected):
                report.rejected.append(parsed)
                continue
            report.notes += [f"{path}: {note}" for note in parsed.notes]
            report.run_ids.append(parsed.run_id)
            _store(database, parsed, report)
            progress(str(path), report.steps)
    return report


def _store(database: Database, trajectory: Trajectory, report: Recorded) -> None:
    done = done_of(trajectory, database.kv.get(trajectory.run_id, PROGRESS_KEY))
    count = len(trajectory.steps)
    report.new += done == 0
    report.continued += 0 < done < count
    report.complete += done == count
    while done < count:
        step = trajectory.steps[done]
        done, last = store_step(database, trajectory, step)
        if last is not None:
            report.steps += 1
            report.events += len(step.events)
            report.traces += len(step.traces)


def store_step(
    database: Any, trajectory: Trajectory, step: TrajectoryStep, timeout_s: float = TRANSACT_TIMEOUT_S,
    attempted: Callable[[], None] = lambda: None,
) -> tuple[int, Any]:
    """Commit one step: how many are done now, and its last event; `attempted` hears of each attempt.

    If another process was faster, nothing is written and the event is None.
    Cost: one transaction.

    Raises:
        RunExistsError: the run id is taken by another record.
    """

    def commit(txn: Transaction) -> tuple[int, Any]:
        attempted()
        done = done_of(trajectory, txn.kv.get(PROGRESS_KEY))
        if done != step.index:
            return done, None
        if step.index == 0:
            txn.runs.create_run(tags=trajectory.tags, metadata=trajectory.metadata)
            txn.cells.init("status", "running")
        for key, value in step.kv.items():
            txn.kv.put(key, value)
        last = None
        for event_type, payload in step.events:
            last = txn.events.append(event_type, payload)
        txn.cells.set("state", step.state)
        txn.traces.record_many(step.traces)
        txn.kv.put(PROGRESS_KEY, progress_of(trajectory, done + 1))
        if done + 1 == len(trajectory.steps):
            txn.cells.cas("status", 1, step.status)
            if trajectory.error is None:
                txn.runs.complete_run()
            else:
                txn.runs.fail_run(trajectory.error)
        return done + 1, last

    result: tuple[int, Any] = database.transact(trajectory.run_id, commit, timeout_s=timeout_s)
    return result


def progress_of(trajectory: Trajectory, done: int) -> dict[str, Any]:
    """The value of the entry `progress` after so many steps."""
    return {"digest": trajectory.digest, "steps": len(trajectory.steps), "done": done}


def done_of(trajectory: Trajectory, progress: Any) -> int:
    """How many steps are stored, from the entry `progress`.

    Raises:
        RunExistsError: it is that of another record.
    """
    if progress is None:
        return 0
    if not isinstance(progress, dict) or progress.get("digest") != trajectory.digest:
        raise RunExistsError(
            f"{trajectory.run_id} holds another record; nothing was changed", run_id=trajectory.run_id
        )
    return int(progress["done"])
