"""Planner, workers and reviewers: each is a process with a database of its own.

Invariant: what belongs together is one transaction, and a process tells its
parent of work only after the store has acknowledged it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import inmem
from inmem.demo.link import ParentLink
from inmem.demo.plan import BATCH, JOBS, LEASE, REVIEW, DemoJob, job_of, name_of, traces_of

CLAIM_S: Final = 2.0  # a job of a worker that was killed is another one's after that
LEASE_S: Final = 1.0  # another reviewer approves after that
_WAIT_S: Final = 0.25  # a process that waits looks so often whether it shall stop
_BACKLOG: Final = 4  # jobs that are ready, for each worker
_REVIEWS: Final = 16  # results that wait for a reviewer, for each worker
_TRIES: Final = 10_000  # of a transaction: its deadline ends it


class FleetRole:
    """One process at work on the run of the fleet."""

    def __init__(self, database: inmem.Database, link: ParentLink) -> None:
        self.link = link
        self.task = link.task
        self.fleet = database.run(self.task.run)
        self.own = database.run(f"{self.task.run}.{self.task.name}")

    def run(self) -> None:
        """Work until the parent says to stop."""
        self.link.tell("ready")
        while not self.link.stopping.is_set():
            self.step()

    def step(self) -> None:
        """Do one thing, or wait for a moment."""
        raise NotImplementedError

    def transact(self, step: Any, lease: inmem.HeldLease | None = None) -> Any:
        """A transaction of the fleet's run."""
        return self.fleet.transact(step, max_attempts=_TRIES, lease=lease)


class DemoPlanner(FleetRole):
    """Puts jobs, as long as not too many are ready. At the end it says how many there were."""

    def run(self) -> None:
        """As of every role; then the end."""
        super().run()

        def close(txn: Any) -> Any:
            jobs = txn.kv.get("planned", 0)
            txn.kv.put("closed", jobs)
            return jobs, txn.events.append("closed", {"jobs": jobs})

        jobs, last = self.transact(close)
        self.link.tell("closed", jobs=jobs, **_anchor(last))

    def step(self) -> None:
        """Wait until there is room, then put a batch."""
        self.link.doing("waits for the workers")
        try:
            self.fleet.wait(self._has_room, timeout_s=_WAIT_S)
        except inmem.WaitTimeoutError:
            return
        first, last = self.transact(self._put)
        self.link.doing(f"has put {name_of(first)} to {name_of(first + BATCH - 1)}")
        self.link.tell("planned", first=first, jobs=BATCH, **_anchor(last))

    def _has_room(self, view: Any) -> bool:
        jobs, results = view.queues.counts(JOBS).ready, view.queues.counts(REVIEW).ready
        return bool(jobs < _BACKLOG * self.task.workers and results < _REVIEWS * self.task.workers)

    def _put(self, txn: Any) -> Any:
        first = txn.kv.get("planned", 0)
        for number in range(first, first + BATCH):
            payload = job_of(self.task.seed, number).payload
            txn.queues.put(JOBS, payload, key=name_of(number), max_attempts=1000)
        txn.kv.put("planned", first + BATCH)
        return first, txn.events.append("planned", {"first": first, "jobs": BATCH})


class DemoWorker(FleetRole):
    """Claims a job, calls its tools, and commits all that comes of it at once."""

    def step(self) -> None:
        """Do one job."""
        job = self.fleet.queues.claim(JOBS, lease_s=CLAIM_S, wait_s=_WAIT_S, worker=self.task.holder)
        if job is None:
            self.link.doing("waits for a job")
            return
        plan = job_of(self.task.seed, job.payload["job"])
        self.own.events.append("started", {"job": plan.number, "attempt": job.attempt})
        for call in plan.calls:
            self.link.doing(f"{name_of(plan.number)}: calls {call.tool} for {plan.city}")
            time.sleep(call.takes_s)
        try:
            ours, own = self.finish(job, plan)
        except inmem.JobLostError:  # its time ran out, and another worker has the job: nothing was stored
            self.link.doing(f"{name_of(plan.number)}: lost its claim")
            return
        self.link.tell("done", job=plan.number, **_anchor(ours), own=_anchor(own))

    def finish(self, job: inmem.Job, plan: DemoJob) -> Any:
        """The result, the totals, the traces, the next job and the end of this one: one transaction."""

        def commit(txn: Any) -> Any:
            txn.queues.ack(job)
            return self.book(txn, plan)

        return self.transact(commit)

    def book(self, txn: Any, plan: DemoJob) -> Any:
        """All that a job changes, but for its own end; the last events of both logs."""
        txn.kv.put("total:amount", txn.kv.get("total:amount", 0) + plan.amount)
        txn.kv.add("total:jobs")
        result = {"job": plan.number, "amount": plan.amount, "worker": self.task.name}
        txn.queues.put(REVIEW, result, key=name_of(plan.number), max_attempts=1000)
        own = txn.at(self.own)
        done = own.kv.get("done", 0) + 1
        own.kv.put("done", done)
        own.cells.set("state", {"job": plan.number, "done": done})
        own.traces.record_many(traces_of(plan))
        last = own.events.append("finished", {"job": plan.number, "amount": plan.amount})
        return txn.events.append("done", result), last


class DemoReviewer(FleetRole):
    """Approves results while it holds the lease; another one waits to take its place."""

    def step(self) -> None:
        """Hold the lease, if it can be had, and approve until it is lost."""
        held = self.fleet.leases.hold(LEASE, ttl_s=LEASE_S, holder=self.task.holder, wait_s=_WAIT_S)
        try:
            with held:
                self.link.tell("lease", token=held.token)
                while not (self.link.stopping.is_set() or held.lost.is_set()):
                    self.review(held)
        except inmem.LeaseHeldError:
            self.link.doing("waits for the lease")
        except inmem.LeaseLostError:
            self.link.tell("lease", token=0)

    def review(self, held: inmem.HeldLease) -> None:
        """Approve one result."""
        job = self.fleet.queues.claim(REVIEW, lease_s=CLAIM_S, wait_s=_WAIT_S, worker=self.task.holder)
        if job is None:
            self.link.doing(f"holds lease {held.token}, waits for a result")
            return
        self.link.doing(f"holds lease {held.token}: {name_of(job.payload['job'])}")
        try:
            last = self.approve(held, job)
        except inmem.JobLostError:
            return
        self.link.tell("approved", job=job.payload["job"], token=held.token, **_anchor(last))

    def approve(self, held: inmem.HeldLease, job: inmem.Job) -> Any:
        """Under the lease, in one transaction: it is refused if another reviewer has the lease then."""
        token = held.token

        def commit(txn: Any) -> Any:
            txn.queues.ack(job)
            txn.kv.add("total:approved", job.payload["amount"])
            note = {"job": job.payload["job"], "token": token, "reviewer": self.task.holder}
            return txn.events.append("approved", note)

        return self.transact(commit, lease=held)


ROLES: Final[Mapping[str, type[FleetRole]]] = {
    "planner": DemoPlanner, "worker": DemoWorker, "reviewer": DemoReviewer,
}


def _anchor(appended: Any) -> dict[str, Any]:
    return {"sequence": appended.sequence, "hash": appended.hash.hex()}
