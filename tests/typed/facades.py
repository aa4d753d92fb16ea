"""What type checkers make of each form of a facade. Checked by mypy, and never run: see `test_types.py`."""

from __future__ import annotations

from typing import Any, assert_type

import inmem
from inmem.primitives.events.rules import Appended


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
