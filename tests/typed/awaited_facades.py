"""What type checkers make of each form of an asynchronous facade. Checked by mypy, and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_never, assert_type

import inmem
from inmem.aio.facade_sets import (
    AsyncDatabaseFacades,
    AsyncPipelineFacades,
    AsyncScopeFacades,
    AsyncSnapshotFacades,
    AsyncTransactionFacades,
)
from inmem.primitives.events.rules import Appended
from inmem.primitives.queues.held import HeldJob
from inmem.primitives.queues.job import JobId
from inmem.primitives.queues.putting import PendingJobId
from inmem.primitives.queues.shown import Job, JobInfo, QueueCounts


async def of_a_run(scope: AsyncScopeFacades) -> None:
    assert_type(await scope.kv.put("k", 1, ttl=3), int)
    assert_type(await scope.kv.get("k"), Any)
    assert_type(await scope.kv.get_versioned("k"), inmem.Versioned | None)
    assert_type(await scope.kv.add("k"), int | float)
    assert_type(await scope.kv.delete("k"), bool)
    assert_type(await scope.kv.list("k", limit=3), list[str])
    assert_type(await scope.kv.wait("k", after=3), inmem.Versioned | None)
    assert_type(scope.kv.iter(), AsyncIterator[tuple[str, Any]])
    async for change in scope.kv.watch("k"):
        assert_type(change, inmem.Change)
    assert_type(await scope.events.append("t"), Appended)
    assert_type(await scope.events.append_many([("t", 1)]), list[Appended])
    async for event in scope.events.follow(event_type="t"):
        assert_type(event, inmem.Event)
    assert_type(await scope.cells.transition("c", lambda state: (state.value, "x")), str)
    assert_type(await scope.cells.wait("c"), inmem.State | None)
    assert_type(await scope.traces.record(inmem.Thought("x")), str)
    assert_type(await scope.runs.complete_run(), inmem.RunMetadata)
    assert_type(await scope.kv.transaction(lambda txn: 1.5), float)
    lease = await scope.leases.acquire("a", ttl_s=3)
    assert_type(lease, inmem.Lease)
    assert_type(await scope.leases.release(lease), bool)
    async with scope.leases.hold("a") as held:
        assert_type(held, inmem.aio.AsyncHeldLease)
        assert_type(await held.transact(lambda txn: 1.5), float)
    assert_type(await scope.runs.claim(ttl_s=3), inmem.Lease)


async def jobs(db: AsyncDatabaseFacades, scope: AsyncScopeFacades, txn: AsyncTransactionFacades) -> None:
    assert_type(await scope.queues.put("q", 1, delay_s=1, priority=2, key="k", max_attempts=3), JobId)
    assert_type(await db.queues.put_many("run", "q", [1, 2]), list[JobId])
    job = await scope.queues.claim("q", wait_s=None)
    assert_type(job, Job | None)
    assert job is not None
    assert_type(await db.queues.claim_many("run", "q", 2), list[Job])
    assert_type(await db.queues.extend(job, 3), Job)
    assert_type(await scope.queues.get(job.id), JobInfo | None)
    assert_type(await db.queues.counts("run", "q"), QueueCounts)
    assert_type(await txn.queues.put("q", 1), PendingJobId)
    async for held in scope.queues.consume("q"):
        assert_type(held, HeldJob)
    await db.queues.ack("run", job)  # type: ignore[arg-type]
    assert_never(await txn.queues.claim("q"))


async def by_run(db: AsyncDatabaseFacades) -> None:
    assert_type(await db.kv.get("run", "k"), Any)
    assert_type(await db.kv.get_versioned("run", "k"), inmem.Versioned | None)
    assert_type(await db.kv.put("run", "k", 1, ttl=3), int)
    assert_type(await db.events.append("run", event_type="t", payload=1), Appended)
    assert_type(db.events.follow("run"), AsyncIterator[inmem.Event])
    assert_type(await db.cells.set("run", "c", 1), int)
    assert_type(await db.traces.get_tree("run", "t"), inmem.TraceTree)
    assert_type(await db.runs.create_run(run_id="run", tags=["t"]), inmem.RunMetadata)
    assert_type(await db.runs.delete_run("run"), inmem.DeletedRun)
    assert_type(await db.runs.get_run("run"), inmem.RunMetadata | None)
    assert_type(db.runs.iter_runs(tags=["t"]), AsyncIterator[inmem.RunMetadata])
    await db.kv.put("run")  # type: ignore[call-arg]
    await db.kv.put("run", 5, 1)  # type: ignore[arg-type]
    await db.events.append("run", "t", nothing=1)  # type: ignore[call-arg]


async def in_a_transaction(txn: AsyncTransactionFacades) -> None:
    await txn.kv.put("k", 1)
    assert_type(await txn.kv.add("k"), inmem.PendingNumber)
    assert_type(await txn.kv.delete("k"), bool)
    assert_type(await txn.events.append("t"), inmem.PendingAppend)
    assert_type(await txn.cells.set("c", 1), inmem.PendingVersion)
    assert_type(await txn.cells.init("c", 1), int)
    assert_type(await txn.runs.create_run(), inmem.RunMetadata)
    await txn.cells.transition("c", lambda state: (1, 2), max_attempts=3)  # type: ignore[call-arg]
    await txn.kv.wait("k")  # type: ignore[attr-defined]


async def in_a_pipeline(pipe: AsyncPipelineFacades) -> None:
    await pipe.kv.put("run", "k", 1)
    assert_type(await pipe.kv.add("run", "k"), inmem.PendingNumber)
    assert_type(await pipe.kv.delete("run", "k"), inmem.Pending[bool])
    assert_type(await pipe.events.append("run", "t"), inmem.PendingAppend)
    await pipe.kv.get("run", "k")  # type: ignore[attr-defined]


async def of_a_snapshot(view: AsyncSnapshotFacades) -> None:
    assert_type(await view.kv.exists("k"), bool)
    assert_type(await view.events.head(), inmem.Event | None)
    await view.kv.put("k", 1)  # type: ignore[attr-defined]
