"""Tasks that agents compete for, in cells of the fleet's run.

Invariant: one transaction claims a task. It changes the task's cell, notes
the task in the cell `tasks` of the agent's own run, and appends the event. So
an agent owns a task exactly if both runs say so.

There are two sources. The board has a cell for each open task, claimed by
compare-and-swap. An agent that loses the race looks for the next open one; an
agent that wins it opens one more, until all tasks were on the board. The
queue is one cell with the number of the next task, taken by a transition; the
agent that takes it makes the cell of the task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import inmem
from workers.fleet.lifecycle import claims, job_name, open_tasks, task_name
from workers.fleet.plan import FleetRuns, FleetSpec
from workers.fleet.reports import StoreFault
from workers.judge.checks import Record

OPEN = {"state": "open"}


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that an agent has; its cell is at this version."""

    number: int
    cell: str
    version: int


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
        self._ahead = open_tasks(spec)
        self._total = spec.workers * claims(spec, "board")
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
        txn.at(self._shared).cells.cas(claim.cell, claim.version, self._mine("done"))

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
                if number + self._ahead < self._total:
                    cells.init(task_name(number + self._ahead), OPEN)
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
        def following(state: inmem.State) -> tuple[Any, int]:
            number: int = state.value["next"]
            return {"next": number + 1}, number

        def take(txn: Any) -> Claim:
            cells = txn.at(self._shared).cells
            number = cells.transition("queue", following)
            version = cells.init(job_name(number), self._mine("claimed"))
            self._note(txn, "queue", number, event)
            return Claim(number, job_name(number), version)

        claim: Claim = self._transact(self._own, take)
        return claim
