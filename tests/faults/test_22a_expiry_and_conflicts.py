"""A key that was read expires before the commit, and one is swept inside a range that was read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from crash_workers import RUN
from support import wait_until

import inmem


def test_a_key_swept_inside_a_scanned_range_is_no_conflict(store_path: Path) -> None:
    """It had expired before the scan, which did not see it: that it goes changes nothing for anyone."""
    cases = 0
    with inmem.open(store_path) as db:
        db.kv.put_many(RUN, {"a": 1, "z": 1})
        deadline = time.monotonic() + 20
        while cases < 3:
            assert time.monotonic() < deadline, "the sweep was always faster than the scan"
            swept = db.status().expired
            db.kv.put(RUN, "m", 1, ttl=0.001)
            wait_until(lambda: db.kv.get(RUN, "m") is None, "it expires")
            txn = db.transaction(RUN)
            assert txn.kv.list() == ["a", "z"] and txn.kv.count() == 2
            txn.kv.put("after", cases)
            unswept = db.status().expired == swept
            wait_until(lambda n=swept: db.status().expired > n, "it is swept")
            txn.commit()
            cases += unswept
            assert db.kv.delete(RUN, "after")
    print(f"{cases} commits over a range with a key swept in it: conflicts 0")


def test_a_key_that_expires_before_the_commit_is_a_conflict(store_path: Path) -> None:
    """Read alive, and dead by the time of the commit: every way to have read it."""
    looks = {
        "get": lambda txn: txn.kv.get("m"), "exists": lambda txn: txn.kv.exists("m"),
        "list": lambda txn: txn.kv.list(), "count": lambda txn: txn.kv.count(),
        "ttl": lambda txn: txn.kv.ttl("m"), "many": lambda txn: txn.kv.get_many(["m"]),
        "values": lambda txn: txn.kv.list_with_values("m"),
    }
    with inmem.open(store_path) as db:
        transactions = {}
        db.kv.put_many(RUN, {f"k-{name}": 0 for name in looks})
        db.kv.put(RUN, "m", 1, ttl=2.0)
        for name, look in looks.items():
            txn = transactions[name] = db.transaction(RUN)
            assert look(txn)
            txn.at("elsewhere").kv.put(f"k-{name}", 1)
        blind = db.transaction(RUN)
        blind.at("elsewhere").kv.put("blind", 1)
        wait_until(lambda: db.kv.get(RUN, "m") is None, "it expires")
        for txn in transactions.values():
            with pytest.raises(inmem.ConflictError):
                txn.commit()
        blind.commit()
        assert db.kv.list("elsewhere") == ["blind"]
    print(f"{len(looks)} ways to read a key that expires: conflicts {len(looks)}")
