"""One agent at work: a plan carried out on the store.

Invariant: changes that belong together are one transaction, and an agent
counts only what the store has acknowledged.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import inmem
from workers.fleet import lifecycle
from workers.fleet.expected import scratch_counts
from workers.fleet.plan import (
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
from workers.fleet.reports import AgentReport, StoreFault
from workers.fleet.tasks import Claim, TaskClaims
from workers.fleet.traces import step_traces
from workers.pool import Link
from workers.stores import Abandoned, transact

ABANDONED_AMOUNT: Final = 1_000_000  # what an abandoned attempt adds to a total: seen if it leaks


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
        self._unreported: Counter[str] = Counter()
        self._scratches: list[lifecycle.Scratch] = []
        self.report = AgentReport(task.worker)
        self._tasks = TaskClaims(db, task.spec, task.runs, task.worker, self._transact)

    def run(self) -> AgentReport:
        """The life of a run: created with a lease, all steps, ended without it."""
        started = time.perf_counter()
        self._begin()
        for step in plan(self._spec, self._worker):
            self._link.check()  # raises when the fleet is being stopped
            self._step(step)
            self._tell()
        for scratch in self._scratches:
            self._end_scratch(scratch)
        self._end()
        self._count(races_lost=self._tasks.races_lost)
        self.report.seconds = time.perf_counter() - started
        self._tell(last=True)
        return self.report

    def _tell(self, last: bool = False) -> None:
        counts = self.report.counts
        self._link.progress((counts["steps"], counts["commits"], counts["reruns"]), last=last)

    def _count(self, **amounts: int) -> None:
        """Note what the store has acknowledged."""
        self.report.counts.update(amounts)

    def _step(self, step: Step) -> None:
        if step.abandoned:
            self._abandon(step)
        claim = self._claim(step.index)
        done = perform(self._spec, self._worker, step)
        self._commit_step(step, done, claim)
        self._draw_ticket()
        self._share_finding(done)
        if step.hand_over is not None:
            self._hand_over(*step.hand_over)
        self._unreported.update(done.counts)
        if reports_totals(self._spec, step.index):
            self._report_totals()
        self._refill_cache(step.index)
        if (step.index + 1) % AUDIT_EVERY == 0:
            self._audit()
        scratch = lifecycle.scratch_at(self._spec, self._worker, step.index)
        if scratch is not None:
            self._start_scratch(scratch)
        self._count(steps=1)

    def _transact(self, run_id: str, fn: Callable[[Any], Any]) -> Any:
        """`db.transact`, counted."""
        result = transact(self._db, run_id, fn, self._timeout_s, self._reran)
        self._count(transactions=1, commits=1)
        return result

    def _reran(self, times: int) -> None:
        self._count(reruns=times)
        self.report.most_reruns = max(self.report.most_reruns, times)

    def _claim(self, index: int) -> Claim | None:
        """A task, claimed and noted; with its event."""
        source, event = lifecycle.claims_from(index), lifecycle.claim_event(index)
        if source is None or event is None:
            return None
        claim = self._tasks.claim(source, event)
        self.report.tasks[source].append(claim.number)
        self._count(cell_changes=1 + (source == "board"), commits=source == "queue", events=1)
        return claim

    def _commit_step(self, step: Step, done: Work, claim: Claim | None) -> None:
        """All that one step changes, in all five primitives and on the board: whole, or not at all."""
        change = lifecycle.status_change(self._spec, self._worker, step.index)
        traces = step_traces(self._spec, self._worker, step)
        status = inmem.RunStatus.PAUSED if change == "resumed" else inmem.RunStatus.ACTIVE

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
            txn.cells.set("state", {"step": step.index, "goal": step.goal})
            txn.traces.record_many(traces)
            if claim is not None:
                self._tasks.finish(txn, claim)
            if change is not None:
                found = txn.runs.get_run()
                if found is None or found.status != status:
                    raise StoreFault(f"{self._own}: to be {change}, it is {found and found.status}")
                if change == "paused":
                    txn.cells.delete("focus")
                    txn.runs.pause_run()
                else:
                    txn.cells.init("focus", {"part": 1})
                    txn.runs.resume_run()
                last = txn.events.append(*lifecycle.status_event(change, step.index))
            return last

        last = self._transact(self._own, commit)
        self.report.anchor = (last.sequence, last.hash)
        self._count(
            entries=3 + len(step.forget) + len(step.remember),
            events=len(done.events) + (change is not None),
            cell_changes=1 + (claim is not None and claim.job is None) + (change is not None),
            traces=len(traces),
            status_changes=change is not None,
            tool_calls=done.counts["calls"],
            tool_failures=done.counts["failures"],
        )

    def _abandon(self, step: Step) -> None:
        """An attempt that writes to both runs and then gives up."""

        def attempt(txn: Any) -> None:
            txn.kv.put("abandoned", step.index)
            txn.events.append("abandoned", {"step": step.index})
            txn.cells.init("abandoned", step.index)
            txn.traces.record(inmem.Thought("abandoned"), tags=("abandoned",))
            txn.runs.add_tags(["abandoned"])
            shared = txn.at(self._shared)
            shared.kv.put("total:cost", shared.kv.get("total:cost", 0) + ABANDONED_AMOUNT)
            shared.events.append("abandoned", {"agent": self._worker})
            raise Abandoned

        try:
            self._db.transact(self._own, attempt, timeout_s=self._timeout_s)
        except Abandoned:
            self._count(abandoned=1)
        else:
            raise StoreFault("a transaction whose function raised was committed")

    def _draw_ticket(self) -> None:
        """Counted in the writer, without a conflict; the answer is a ticket nobody else gets."""
        self.report.tickets.append(self._db.kv.add(self._shared, "ticks"))
        self._count(commits=1, entries=1)

    def _share_finding(self, done: Work) -> None:
        appended = self._db.events.append(self._shared, "finding", done.finding)
        self.report.sequences.append(appended.sequence)
        self._count(commits=1, events=1)

    def _hand_over(self, peer: int, amount: int) -> None:
        """Credits from this agent's run to another's, in one transaction over both."""

        def move(txn: Any) -> None:
            other = txn.at(self._runs.of(peer))
            txn.kv.put("credits", txn.kv.get("credits", START_CREDITS) - amount)
            other.kv.put("credits", other.kv.get("credits", START_CREDITS) + amount)

        self._transact(self._own, move)
        self._count(entries=2)

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
        self._count(entries=len(batch) + 2)
        self.report.contributed.update(self._unreported)
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
        self._count(commits=2, entries=len(entries), events=len(records))

    def _audit(self) -> None:
        """Reads that others' transactions must never tear: the parts add up to the whole."""
        with self._db.snapshot(self._shared) as view:
            totals = dict(view.kv.list_with_values("total:"))
        parts = sum(amount for name, amount in totals.items() if name.startswith("total:calls:"))
        if parts != totals["total:calls"]:
            raise StoreFault(f"a snapshot shows {totals['total:calls']} calls but parts of {parts}")
        self._count(audits=1)

    def _begin(self) -> None:
        """The run is created in one transaction with what it starts with; peers may have written before."""

        def begin(txn: Any) -> None:
            txn.runs.create_run(
                parent_run=self._shared,
                tags=lifecycle.agent_tags(self._spec, self._worker),
                metadata=lifecycle.agent_metadata(self._spec, self._worker),
            )
            txn.kv.put("lease", {"agent": self._worker}, ttl=LEASE_TTL_S)
            txn.cells.init("focus", {"part": 0})
            txn.cells.init("tasks", {"board": [], "queue": []})
            txn.events.append(*lifecycle.start_event(self._spec, self._worker))

        self._transact(self._own, begin)
        self._count(runs_created=1, entries=1, cell_changes=2, events=1)

    def _end(self) -> None:
        """The lease goes back and the run ends, in one transaction; then it may be archived."""
        end = lifecycle.ending(self._spec, self._worker)
        trace = lifecycle.end_trace(self._spec, self._worker)
        steps = self._spec.steps
        left_s = self._db.kv.ttl(self._own, "lease")
        if left_s is None or not 0 < left_s <= LEASE_TTL_S:
            raise StoreFault(f"a lease of {LEASE_TTL_S} s has {left_s} s left")

        def finish(txn: Any) -> Any:
            if not txn.kv.delete("lease"):
                raise StoreFault("a lease that was there could not be given back")
            txn.kv.put("ended", end.status)
            txn.cells.cas("state", steps, {"step": steps, "goal": end.status})
            txn.runs.add_tags([f"ended:{end.status}"])
            txn.runs.update_metadata({"spent": txn.kv.get("spent")})
            if trace is None:
                txn.runs.complete_run()
            else:
                txn.traces.record_many([trace])
                txn.runs.fail_run(end.error)
            return txn.events.append(*lifecycle.end_event(self._spec, self._worker))

        last = self._transact(self._own, finish)
        self.report.anchor = (last.sequence, last.hash)
        self._count(entries=2, cell_changes=1, events=1, traces=trace is not None, status_changes=1)
        if end.archived:
            self._archive(self._own)

    def _archive(self, run: str) -> None:
        self._db.runs.archive_run(run)
        self._count(commits=1, status_changes=1, runs_archived=1)

    def _start_scratch(self, scratch: lifecycle.Scratch) -> None:
        """A run below the agent's own, with everything in it, in one transaction from the agent's run."""
        name = self._runs.scratch(self._worker, scratch.number)

        def start(txn: Any) -> None:
            below = txn.at(name)
            below.runs.create_run(
                parent_run=self._own, tags=("scratch",), metadata={"number": scratch.number}
            )
            for slot, value in scratch.entries.items():
                below.kv.put(slot, value)
            for event_type, payload in scratch.events:
                below.events.append(event_type, payload)
            below.cells.init("scratch", scratch.number)
            below.traces.record_many(scratch.traces)

        self._transact(self._own, start)
        self._scratches.append(scratch)
        self._count(
            runs_created=1, entries=len(scratch.entries), events=len(scratch.events), cell_changes=1,
            traces=len(scratch.traces),
        )  # fmt: skip

    def _end_scratch(self, scratch: lifecycle.Scratch) -> None:
        name = self._runs.scratch(self._worker, scratch.number)
        if scratch.fate == "deleted":
            gone = self._db.runs.delete_run(name)
            counts = (gone.kv, gone.events, gone.cells, gone.traces)
            if counts != scratch_counts(scratch) or not gone.had_record:
                raise StoreFault(f"{name}: its deletion removed {gone}")
            self._count(commits=1, runs_deleted=1)
            return

        def finish(txn: Any) -> None:
            txn.events.append(*lifecycle.scratch_end(scratch))
            txn.runs.complete_run()

        self._transact(name, finish)
        self._count(events=1, status_changes=1)
        if scratch.fate == "archived":
            self._archive(name)
