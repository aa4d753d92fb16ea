"""A small program of a user's, as type checkers see it with inmem installed. Checked, and never run."""

from __future__ import annotations

import datetime
from typing import Any, assert_type

import inmem
import inmem.exchange
from inmem import KVStore, RunScope, transactional
from inmem import open as open_store


@transactional
def step(txn: inmem.Transaction, name: str) -> int:
    count: int = txn.kv.get("steps", 0) + 1
    txn.kv.put("steps", count)
    txn.events.append(name, {"n": count})
    return count


def count(txn: inmem.Transaction) -> inmem.PendingNumber:
    return txn.kv.add("n")


def work(run: RunScope) -> inmem.RunMetadata:
    assert_type(step(run, "looked"), int)
    assert_type(run.transact(count), int | float)
    assert_type(run.cells.transition("phase", lambda state: ("done", state.version)), int)
    with run.snapshot() as view:
        assert_type(view.events.count(), int)
        assert_type(view.traces.roots(), list[inmem.Trace])
    return run.runs.complete_run()


def main() -> None:
    with inmem.open("data", durability="sync") as db, open_store() as other:
        assert_type(db, inmem.Database)
        assert_type(other.kv, KVStore)
        assert_type(db.kv.get("run", "key"), Any)
        assert_type(db.kv.put("run", "key", 1, ttl=datetime.timedelta(days=1)), int)
        assert_type(db.events.append("run", "started").sequence, int)
        assert_type(work(db.run("run")).status, inmem.RunStatus)
        assert_type(db.runs.query_runs(tags=["x"]), list[inmem.RunMetadata])
        assert_type(db.check(), inmem.CheckReport)
        assert_type(inmem.exchange.export_runs(db, "file.jsonl"), inmem.exchange.Exported)
        try:
            db.kv.put("run", "key", "value")
        except inmem.CommitUnknownError as error:
            assert_type(error.retryable, bool)
