"""Tasks that agents compete for, on a board and in a queue of the fleet's run.

Invariant: an agent notes each task that it has in the cell `tasks` of its own
run, and it has one exactly if the fleet's run says so too.

There are two sources. The board has a cell for each open task, claimed by
compare-and-swap, in one transaction with the note. An agent that loses the
race looks for the next open one; an agent that wins it opens one more, until
all tasks were on the board. The queue holds a job for each of so many tasks: a
claim takes the next one, the note puts another job, and the transaction that
does the task acks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import inmem
from workers.fleet.lifecycle import QUEUE, claims, open_tasks, task_name
from workers.fleet.plan import FleetRuns, FleetSpec
from workers.fleet.reports import StoreFault
from workers.judge.checks import Record

OPEN = {"state": "open"}
LEASE_S = 120.0  # of a job: longer than a step takes on any machine


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that an agent has: a cell of the board at this version, or a job."""

    number: int
    cell: str = ""
    version: int = 0
    job: Any = None


class TaskClaims:
    """How one agent claims and finishes tasks."""

    def __init__(
        self,
        db: Any,
        spec: FleetSpec,
        runs: FleetRuns,
        worker: int,
        transact: Callable[[str, Callable[[Any], Any]], Any],
    ) -> None:
        self._db = db
        self._ahead = {source: open_tasks(spec, source) for source in ("board", "queue")}
        self._total = {source: spec.workers * claims(spec, source) for source in ("board", "queue")}
        self._own, self._shared = runs.of(worker), runs.shared
        self._worker = worker
        self._transact = transact
        self._from = 0  # all tasks of the board before this one are taken
        self.races_lost = 0

    def claim(self, source: str, event: Record) -> Claim:
        """The next task from the board or the queue.

        Raises:
            StoreFault: there is none, though each agent claims what it is due.
        """
        return self._from_board(event) if source == "board" else self._from_queue(event)

    def finish(self, txn: Any, claim: Claim) -> None:
        """Mark a task as done, in the transaction that does it."""
        shared = txn.at(self._shared)
        if claim.job is not None:
            shared.queues.ack(claim.job, self._mine("done") | {"task": claim.number})
        else:
            shared.cells.cas(claim.cell, claim.version, self._mine("done"))

    def _mine(self, state: str) -> dict[str, Any]:
        return {"state": state, "by": self._worker}

    def _note(self, txn: Any, source: str, number: int, event: Record) -> None:
        def noted(state: inmem.State) -> tuple[Any, None]:
            return state.value | {source: [*state.value[source], number]}, None

        txn.cells.transition("tasks", noted)
        txn.events.append(*event)

    def _from_board(self, event: Record) -> Claim:
        while True:
            number, version = self._first_open()
            name = task_name(number)

            def take(txn: Any, name: str = name, number: int = number, version: int = version) -> int:
                cells = txn.at(self._shared).cells
                claimed: int = cells.cas(name, version, self._mine("claimed"))
                if (ahead := number + self._ahead["board"]) < self._total["board"]:
                    cells.init(task_name(ahead), OPEN)
                self._note(txn, "board", number, event)
                return claimed

            try:
                return Claim(number, name, self._transact(self._own, take))
            except inmem.VersionMismatchError:
                self.races_lost += 1

    def _first_open(self) -> tuple[int, int]:
        while True:
            state = self._db.cells.read(self._shared, task_name(self._from))
            if state is None:
                raise StoreFault(f"agent {self._worker} is due a task, but none is open")
            if state.value == OPEN:
                return self._from, state.version
            self._from += 1

    def _from_queue(self, event: Record) -> Claim:
        job = self._db.queues.claim(self._shared, QUEUE, lease_s=LEASE_S, wait_s=LEASE_S)
        if job is None:
            raise StoreFault(f"agent {self._worker} is due a task, but the queue is empty")
        number = job.payload

        def note(txn: Any) -> None:
            if (ahead := number + self._ahead["queue"]) < self._total["queue"]:
                txn.at(self._shared).queues.put(QUEUE, ahead)
            self._note(txn, "queue", number, event)

        self._transact(self._own, note)
        return Claim(number, job=job)
