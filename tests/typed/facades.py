"""What type checkers make of each form of a facade. Checked by mypy, and never run: see `test_types.py`."""

from __future__ import annotations

from typing import Any, assert_never, assert_type

import inmem
from inmem.primitives.events.rules import Appended
from inmem.primitives.queues.held import HeldJob
from inmem.primitives.queues.job import JobId
from inmem.primitives.queues.putting import PendingJobId
from inmem.primitives.queues.shown import Job, JobInfo, QueueCounts


def direct(db: inmem.Database, scope: inmem.RunScope) -> None:
    assert_type(scope.kv.put("k", 1, ttl=3), int)
    assert_type(scope.kv.put_many({"k": 1}), int)
    assert_type(scope.kv.add("k"), int | float)
    assert_type(scope.kv.delete("k"), bool)
    assert_type(scope.kv.list("k", limit=3), list[str])
    assert_type(scope.events.append("t"), Appended)
    assert_type(scope.events.append_many([("t", 1)]), list[Appended])
    assert_type(scope.cells.set("c", 1), int)
    assert_type(scope.cells.transition("c", lambda state: (state.value, "x")), str)
    assert_type(scope.traces.record(inmem.Thought("x")), str)
    assert_type(scope.runs.complete_run(), inmem.RunMetadata)
    assert_type(scope.kv.transaction(lambda txn: 1.5), float)
    lease = scope.leases.acquire("a", ttl_s=3, wait_s=None)
    assert_type(lease, inmem.Lease)
    assert_type(scope.leases.renew(lease), inmem.Lease)
    assert_type(scope.leases.release(lease), bool)
    assert_type(scope.leases.get("a"), inmem.Lease | None)
    with scope.leases.hold("a") as held:
        assert_type(held, inmem.HeldLease)
        assert_type(held.transact(lambda txn: 1.5), float)
    assert_type(scope.transact(lambda txn: 1.5, lease=lease), float)
    assert_type(scope.runs.claim(ttl_s=3), inmem.Lease)
    assert_type(scope.runs.stale(), list[inmem.Lease])


def by_run(db: inmem.Database) -> None:
    assert_type(db.kv.get("run", "k"), Any)
    assert_type(db.kv.get_versioned("run", "k"), inmem.Versioned | None)
    assert_type(db.kv.put("run", "k", 1, ttl=3), int)
    assert_type(db.kv.add("run", "k", 2, initial=1), int | float)
    assert_type(db.events.append("run", event_type="t", payload=1), Appended)
    assert_type(db.events.read_range("run", 0, limit=1), list[inmem.Event])
    assert_type(db.cells.set("run", "c", 1), int)
    assert_type(db.traces.get_tree("run", "t"), inmem.TraceTree)
    assert_type(db.runs.delete_run("run"), inmem.DeletedRun)
    lease = db.leases.acquire("run", "a", ttl_s=3)
    assert_type(db.leases.release(lease), bool)
    with db.leases.hold("run", "a", ttl_s=3) as held:
        assert_type(held.lease, inmem.Lease)
    db.leases.acquire("run", "a")  # type: ignore[call-arg]
    db.kv.put("run")  # type: ignore[call-arg]
    db.kv.put("run", 5, 1)  # type: ignore[arg-type]
    db.events.append("run", "t", nothing=1)  # type: ignore[call-arg]


def jobs_of_a_run(db: inmem.Database, scope: inmem.RunScope) -> None:
    assert_type(scope.queues.put("q", 1, delay_s=1, priority=2, key="k", max_attempts=3), JobId)
    assert_type(db.queues.put_many("run", "q", [1, 2]), list[JobId])
    job = scope.queues.claim("q", wait_s=None, worker="w")
    assert_type(job, Job | None)
    assert job is not None
    assert_type(db.queues.claim_many("run", "q", 2), list[Job])
    assert_type(db.queues.extend(job, 3), Job)
    assert_type(scope.queues.get(job.id), JobInfo | None)
    assert_type(db.queues.counts("run", "q"), QueueCounts)
    assert_type(scope.queues.dead("q"), list[JobInfo])
    assert_type(db.queues.purge("run", "q", state="dead"), int)
    for held in scope.queues.consume("q"):
        assert_type(held, HeldJob)
    db.queues.ack(job, 5)
    db.queues.ack("run", job)  # type: ignore[arg-type]
    db.queues.claim("run")  # type: ignore[call-arg]


def jobs_elsewhere(txn: inmem.Transaction, pipe: inmem.Pipeline, view: inmem.Snapshot, job: Job) -> None:
    assert_type(txn.queues.put("q", 1), PendingJobId)
    assert_type(txn.queues.put("q", 1).id, JobId)
    assert_type(txn.queues.extend(job), Job)
    assert_type(pipe.queues.put("run", "q", 1), PendingJobId)
    assert_type(pipe.queues.ack(job), inmem.Pending[None])
    pipe.queues.counts("run", "q")  # type: ignore[attr-defined]
    assert_type(view.queues.peek("q"), list[JobInfo])
    view.queues.put("q", 1)  # type: ignore[attr-defined]
    assert_never(txn.queues.claim("q"))


def in_a_transaction(txn: inmem.Transaction) -> None:
    txn.kv.put("k", 1)
    assert_type(txn.kv.add("k"), inmem.PendingNumber)
    assert_type(txn.kv.add("k").value, int | float)
    assert_type(txn.kv.delete("k"), bool)
    assert_type(txn.events.append("t"), inmem.PendingAppend)
    assert_type(txn.events.append("t").value, Appended)
    assert_type(txn.events.append_many([("t", 1)]), list[inmem.PendingAppend])
    assert_type(txn.cells.set("c", 1), inmem.PendingVersion)
    assert_type(txn.cells.init("c", 1), int)
    assert_type(txn.runs.create_run(), inmem.RunMetadata)
    lease = txn.leases.list()[0]
    assert_type(txn.leases.release(lease), inmem.Pending[bool])
    assert_type(txn.leases.renew(lease, 3), inmem.Lease)
    txn.cells.transition("c", lambda state: (1, 2), max_attempts=3)  # type: ignore[call-arg]
    assert_type(txn.version, int | None)


def in_a_pipeline(pipe: inmem.Pipeline) -> None:
    pipe.kv.put("run", "k", 1)
    assert_type(pipe.kv.add("run", "k"), inmem.PendingNumber)
    assert_type(pipe.kv.delete("run", "k"), inmem.Pending[bool])
    assert_type(pipe.events.append("run", "t"), inmem.PendingAppend)
    pipe.kv.get("run", "k")  # type: ignore[attr-defined]


def of_a_snapshot(view: inmem.Snapshot) -> None:
    assert_type(view.kv.exists("k"), bool)
    assert_type(view.events.head(), inmem.Event | None)
    view.kv.put("k", 1)  # type: ignore[attr-defined]
