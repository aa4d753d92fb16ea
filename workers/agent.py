"""One agent at work: a plan carried out on the store.

Invariant: every change that belongs together is one transaction, and what the
agent reports was acknowledged by the store before it was counted. Functions
given to `transact` are pure but for counting how often they were called:
that count, less one, is the number of conflicts met.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import inmem
from workers.plan import (
    AUDIT_EVERY,
    LEASE_TTL_S,
    START_CREDITS,
    FleetRuns,
    FleetSpec,
    Step,
    Work,
    cache_entries,
    milestones,
    perform,
    plan,
    reports_totals,
)
from workers.pool import Link

PROGRESS_INTERVAL_S: Final = 0.1
MAX_ATTEMPTS: Final = 10_000  # of one transaction: hundreds of agents meet at the totals; time bounds it
ABANDONED_AMOUNT: Final = 1_000_000  # what an abandoned attempt adds to a total: seen if it leaks


class StoreFault(Exception):
    """The store answered something that no correct store can answer."""


class _Abandoned(Exception):
    """Raised inside a transaction on purpose: nothing of it may remain."""


@dataclass(slots=True)
class AgentReport:
    """What one agent did, as far as the store acknowledged it."""

    worker: int
    steps: int = 0
    commits: int = 0
    transactions: int = 0
    reruns: int = 0
    most_reruns: int = 0
    abandoned: int = 0
    audits: int = 0
    events: int = 0
    tool_calls: int = 0
    tool_failures: int = 0
    seconds: float = 0.0
    anchor: tuple[int, bytes] | None = None  # last own event: sequence and hash
    tickets: list[int] = field(default_factory=list)  # what each add to the shared counter returned
    sequences: list[int] = field(default_factory=list)  # of the agent's events in the shared log
    contributed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentTask:
    """What a worker process needs to know to be one agent."""

    store: str  # the path; every process opens it by itself
    spec: FleetSpec
    runs: FleetRuns
    worker: int
    timeout_s: float


def work(link: Link, task: AgentTask) -> AgentReport:
    """The body of a worker process."""
    link.check()  # a parent that is gone may have taken a throw-away store with it
    with inmem.open(task.store, timeout_s=task.timeout_s) as db:
        return Agent(db, task, link).run()


class Agent:
    """Carries out one plan. Use it from one thread."""

    def __init__(self, db: Any, task: AgentTask, link: Link) -> None:
        self._db = db
        self._link = link
        self._spec = task.spec
        self._runs = task.runs
        self._timeout_s = task.timeout_s
        self._own = task.runs.of(task.worker)
        self._shared = task.runs.shared
        self._worker = task.worker
        self._unreported: dict[str, int] = {}
        self.report = AgentReport(task.worker)

    def run(self) -> AgentReport:
        """All steps, from lease to lease."""
        report = self.report
        started = time.perf_counter()
        last_told = 0.0
        self._take_lease()
        for step in self._steps():
            self._step(step)
            now = time.perf_counter()
            report.seconds = now - started
            if now - last_told >= PROGRESS_INTERVAL_S:
                last_told = now
                self._link.progress((report.steps, report.commits, report.reruns))
        self._give_lease_back()
        report.seconds = time.perf_counter() - started
        self._link.progress((report.steps, report.commits, report.reruns))
        return report

    def _steps(self) -> Iterator[Step]:
        for step in plan(self._spec, self._worker):
            self._link.check()  # raises when the fleet is being stopped
            yield step

    def _step(self, step: Step) -> None:
        if step.abandoned:
            self._abandon(step)
        done = perform(self._spec, self._worker, step)
        self._commit_step(step, done)
        self._draw_ticket()
        self._share_finding(done)
        if step.hand_over is not None:
            self._hand_over(*step.hand_over)
        for name, amount in done.counts.items():
            self._unreported[name] = self._unreported.get(name, 0) + amount
        if reports_totals(self._spec, step.index):
            self._report_totals()
        self._refill_cache(step.index)
        if (step.index + 1) % AUDIT_EVERY == 0:
            self._audit()
        self.report.steps += 1

    def _transact(self, run_id: str, fn: Callable[[Any], Any]) -> Any:
        """`db.transact`, with the calls of the function counted."""
        calls = 0

        def counted(txn: Any) -> Any:
            nonlocal calls
            calls += 1
            return fn(txn)

        try:
            result = self._db.transact(
                run_id, counted, max_attempts=MAX_ATTEMPTS, timeout_s=self._timeout_s
            )
        finally:
            self.report.reruns += max(0, calls - 1)
            self.report.most_reruns = max(self.report.most_reruns, calls - 1)
        self.report.transactions += 1
        self.report.commits += 1
        return result

    def _commit_step(self, step: Step, done: Work) -> None:
        """Events, memory and counters of one step: all of it, or none."""

        def commit(txn: Any) -> Any:
            steps = txn.kv.get("steps", 0)
            if steps != step.index:
                raise StoreFault(f"{self._own}: step {step.index} finds {steps} steps done")
            txn.kv.put("steps", steps + 1)
            txn.kv.put("spent", txn.kv.get("spent", 0) + done.counts["cost"])
            txn.kv.put("phase", {"step": step.index, "goal": step.goal})
            for slot in step.forget:
                txn.kv.delete(slot)
            for slot, value in step.remember:
                txn.kv.put(slot, value)
            for event_type, payload in done.events:
                last = txn.events.append(event_type, payload)
            return last

        last = self._transact(self._own, commit)
        self.report.anchor = (last.sequence, last.hash)
        self.report.events += len(done.events)
        self.report.tool_calls += done.counts["calls"]
        self.report.tool_failures += done.counts["failures"]

    def _abandon(self, step: Step) -> None:
        """An attempt that writes to both runs and then gives up."""

        def attempt(txn: Any) -> None:
            txn.kv.put("abandoned", step.index)
            txn.events.append("abandoned", {"step": step.index})
            shared = txn.at(self._shared)
            shared.kv.put("total:cost", shared.kv.get("total:cost", 0) + ABANDONED_AMOUNT)
            shared.events.append("abandoned", {"agent": self._worker})
            raise _Abandoned

        try:
            self._db.transact(self._own, attempt, timeout_s=self._timeout_s)
        except _Abandoned:
            self.report.abandoned += 1
        else:
            raise StoreFault("a transaction whose function raised was committed")

    def _draw_ticket(self) -> None:
        """Counted in the writer, without a conflict; the answer is a ticket nobody else gets."""
        self.report.tickets.append(self._db.kv.add(self._shared, "ticks"))
        self.report.commits += 1

    def _share_finding(self, done: Work) -> None:
        appended = self._db.events.append(self._shared, "finding", done.finding)
        self.report.sequences.append(appended.sequence)
        self.report.commits += 1
        self.report.events += 1

    def _hand_over(self, peer: int, amount: int) -> None:
        """Credits from this agent's run to another's, in one transaction over both."""

        def move(txn: Any) -> None:
            other = txn.at(self._runs.of(peer))
            txn.kv.put("credits", txn.kv.get("credits", START_CREDITS) - amount)
            other.kv.put("credits", other.kv.get("credits", START_CREDITS) + amount)

        self._transact(self._own, move)

    def _report_totals(self) -> None:
        """What was done since the last report goes to the shared totals and is noted as reported."""
        batch = {name: amount for name, amount in self._unreported.items() if amount}

        def add(txn: Any) -> None:
            for name, amount in batch.items():
                txn.kv.put(f"total:{name}", txn.kv.get(f"total:{name}", 0) + amount)
            mine = txn.at(self._own).kv
            mine.put("reported", mine.get("reported", 0) + batch.get("cost", 0))
            mine.put("reports", mine.get("reports", 0) + 1)

        self._transact(self._shared, add)
        for name, amount in self._unreported.items():
            self.report.contributed[name] = self.report.contributed.get(name, 0) + amount
        self._unreported.clear()

    def _refill_cache(self, index: int) -> None:
        """Blind writes, sent without waiting for each; then a batch for the shared log."""
        entries = cache_entries(self._spec, self._worker, index)
        if not entries:
            return
        with self._db.pipeline() as pipeline:
            for slot, value in entries:
                pipeline.kv.put(self._own, slot, value)
        records = milestones(self._worker, index)
        appended = self._db.events.append_many(self._shared, records)
        self.report.sequences.extend(one.sequence for one in appended)
        self.report.commits += 2
        self.report.events += len(records)

    def _audit(self) -> None:
        """Reads that others' transactions must never tear: the parts add up to the whole."""
        with self._db.snapshot(self._shared) as view:
            totals = dict(view.kv.list_with_values("total:"))
        parts = sum(amount for name, amount in totals.items() if name.startswith("total:calls:"))
        if parts != totals["total:calls"]:
            raise StoreFault(f"a snapshot shows {totals['total:calls']} calls but parts of {parts}")
        self.report.audits += 1

    def _take_lease(self) -> None:
        self._db.kv.put(self._own, "lease", {"agent": self._worker}, ttl=LEASE_TTL_S)
        self.report.commits += 1

    def _give_lease_back(self) -> None:
        left_s = self._db.kv.ttl(self._own, "lease")
        if left_s is None or not 0 < left_s <= LEASE_TTL_S:
            raise StoreFault(f"a lease of {LEASE_TTL_S} s has {left_s} s left")
        if not self._db.kv.delete(self._own, "lease"):
            raise StoreFault("a lease that was there could not be given back")
        self.report.commits += 1
