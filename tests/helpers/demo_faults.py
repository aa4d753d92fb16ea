"""Processes of `inmem demo` with a bug, for `inmem.demo` to find: `python -m demo_faults FAULT`."""

from __future__ import annotations

import sys
from typing import Any

import inmem
from inmem.demo import process
from inmem.demo.plan import LEASE, DemoJob
from inmem.demo.roles import ROLES, DemoReviewer, DemoWorker

EACH = 5  # of so many jobs one meets the bug


class AcksAlone(DemoWorker):
    """Ends a job outside the transaction, and is stopped between the two now and then."""

    def finish(self, job: inmem.Job, plan: DemoJob) -> Any:
        self.fleet.queues.ack(job)
        if plan.number % EACH:
            return self.transact(lambda txn: self.book(txn, plan))
        return self.fleet.events.head(), self.own.events.head()


class BooksTwice(DemoWorker):
    """Repeats what was acknowledged."""

    def finish(self, job: inmem.Job, plan: DemoJob) -> Any:
        done = super().finish(job, plan)
        if plan.number % EACH == 0:

            def again(txn: Any) -> None:
                txn.kv.put("total:amount", txn.kv.get("total:amount", 0) + plan.amount)
                note = {"job": plan.number, "amount": plan.amount, "worker": self.task.name}
                txn.events.append("done", note)

            self.transact(again)
        return done


class ForgetsTraces(DemoWorker):
    """Records the decision, and not what came of it."""

    def book(self, txn: Any, plan: DemoJob) -> Any:
        calls = plan.calls if plan.number % EACH else plan.calls[:-1]
        last = super().book(txn, DemoJob(plan.number, plan.city, calls))
        missing = plan.amount - sum(call.result["cents"] for call in calls)
        txn.kv.put("total:amount", txn.kv.get("total:amount") + missing)
        return last


class TrustsItsClock(DemoReviewer):
    """Believes that it still has a lease which it does not renew."""

    def step(self) -> None:
        try:
            lease = self.fleet.leases.acquire(LEASE, ttl_s=0.1, holder=self.task.holder, wait_s=0.25)
        except inmem.LeaseHeldError:
            return
        self.link.tell("lease", token=lease.token)
        while not self.link.stopping.is_set():
            self.review(lease)  # type: ignore[arg-type]

    def transact(self, step: Any, lease: Any = None) -> Any:
        return super().transact(step)


FAULTS = {
    "acks-alone": {"worker": AcksAlone}, "books-twice": {"worker": BooksTwice},
    "forgets-traces": {"worker": ForgetsTraces}, "trusts-its-clock": {"reviewer": TrustsItsClock},
}

if __name__ == "__main__":
    process.main({**ROLES, **FAULTS[sys.argv[1]]})
