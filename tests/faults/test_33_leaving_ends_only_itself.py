"""Leaving a nested scope ends nothing but itself: each kind, nested, repeated, and after the end."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import inmem


def test_a_nested_scope_of_a_transaction_does_not_commit(db: inmem.Database) -> None:
    with db.transaction("a") as txn:
        txn.kv.put("k", 1)
        for _ in range(3):
            with txn.at("b") as inner, inner.at("c") as deeper, deeper.at(db.shared("agent")) as shared:
                inner.kv.put("k", 2)
                deeper.kv.put("k", 3)
                shared.kv.put("k", 4)
            assert db.kv.get("b", "k") is None and txn.version is None
            inner.kv.put("after", 1)  # it is the transaction's still
        txn.kv.put("end", 1)
    assert db.kv.list("a") == ["end", "k"] and db.kv.list("b") == ["after", "k"]
    assert db.kv.get("c", "k") == 3 and db.shared("agent").kv.get("k") == 4
    for over in (txn, inner, deeper, shared):
        with pytest.raises(inmem.ClosedError):
            over.kv.put("k", 5)
        with pytest.raises(inmem.ClosedError):
            over.kv.get("k")
        with pytest.raises(inmem.ClosedError), over:
            pass
        over.abort()


def test_an_exception_that_stays_inside_ends_nothing(db: inmem.Database) -> None:
    with db.transaction("a") as txn:
        with contextlib.suppress(ZeroDivisionError), txn.at("b") as inner:
            inner.kv.put("k", 1)
            1 / 0  # noqa: B018
        txn.kv.put("k", 2)
    assert db.kv.get("b", "k") == 1 and db.kv.get("a", "k") == 2


def test_an_exception_that_leaves_takes_all_of_it(db: inmem.Database) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction("a") as txn, txn.at("b") as inner:
        inner.kv.put("k", 1)
        1 / 0  # noqa: B018
    assert db.kv.list("a") == db.kv.list("b") == []


def test_nested_scopes_in_transact(db: inmem.Database) -> None:
    def step(txn: inmem.Transaction) -> None:
        with txn.at("b") as inner:
            inner.kv.put("k", inner.kv.get("k", 0) + 1)
        assert db.kv.get("b", "k", 0) == tries[-1]
        txn.kv.put("k", "done")

    tries = [0]
    db.transact("a", step)
    tries.append(1)
    db.transact("a", step)
    assert db.kv.get("a", "k") == "done" and db.kv.get("b", "k") == 2


def test_commit_and_abort_by_name_are_of_the_whole(db: inmem.Database) -> None:
    with db.transaction("a") as txn:
        txn.kv.put("k", 1)
        txn.at("b").commit()
        with pytest.raises(inmem.ClosedError):
            txn.kv.put("k", 2)
    assert db.kv.get("a", "k") == 1
    with db.transaction("a") as txn:
        txn.kv.put("k", 3)
        txn.at("b").abort()
    assert db.kv.get("a", "k") == 1


def test_a_nested_view_does_not_close_the_snapshot(db: inmem.Database) -> None:
    db.kv.put("a", "k", 1)
    db.kv.put("b", "k", 2)
    with db.snapshot("a") as view:
        db.kv.put("a", "k", 3)
        for _ in range(3):
            with view.at("b") as inner, inner.at("a") as deeper:
                assert inner.kv.get("k") == 2 and deeper.kv.get("k") == 1
            inner.close()
            with contextlib.closing(view.at("b")):
                pass
            assert view.kv.get("k") == 1 and inner.kv.get("k") == 2 and deeper.version == view.version
        with db.snapshot("a") as newer, db.snapshot("a"):
            assert newer.kv.get("k") == 3
        assert view.kv.get("k") == 1
    for over in (view, inner, deeper, newer):
        with pytest.raises(inmem.ClosedError):
            over.kv.get("k")
        with pytest.raises(inmem.ClosedError):
            _ = over.version
        with pytest.raises(inmem.ClosedError), over:
            pass
        over.close()


def test_what_is_inside_each_other_ends_by_itself(db: inmem.Database) -> None:
    with db.transaction("a") as outer:
        outer.kv.put("k", 1)
        with db.transaction("a") as inner, db.snapshot("a") as view, db.pipeline() as p:
            inner.kv.put("other", 2)
            with db.pipeline() as q:
                q.kv.put("a", "q", 3)
            p.kv.put("a", "p", 4)
            assert view.kv.list() == []
        assert db.kv.list("a") == ["other", "p", "q"] and outer.version is None
        with db.snapshot("a"):
            pass
        outer.kv.put("last", 5)
    assert db.kv.list("a") == ["k", "last", "other", "p", "q"]


def test_a_block_is_entered_once(db: inmem.Database) -> None:
    """A second block of the same thing could only end what the first one uses."""
    with db.transaction("a") as txn:
        with pytest.raises(inmem.InvariantError, match="entered before"), txn:
            pass
        txn.kv.put("k", 1)
        assert db.kv.get("a", "k") is None
    with pytest.raises(inmem.ClosedError), txn:
        pass
    with db.snapshot("a") as view:
        with pytest.raises(inmem.InvariantError, match="entered before"), view:
            pass
        assert view.kv.get("k") == 1
    with db.pipeline() as p:
        with pytest.raises(inmem.InvariantError, match="entered before"), p:
            pass
        p.kv.put("a", "p", 2)
    with pytest.raises(inmem.InmemError), p:
        pass
    with pytest.raises(inmem.ClosedError):
        p.kv.put("a", "p", 3)
    assert db.kv.get("a", "p") == 2

    def twice(txn: inmem.Transaction) -> None:
        txn.kv.put("twice", 1)
        with txn:
            txn.kv.put("twice", 2)

    with pytest.raises(inmem.InvariantError, match="entered before"):
        db.transact("a", twice)
    assert not db.kv.exists("a", "twice")


def test_one_handle_s_end_is_not_another_s(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        with inmem.open(store_path) as other, other.snapshot("a") as theirs, db.snapshot("a") as view:
            assert theirs.version == view.version
            other.close()
            assert view.kv.get("k") is None
            assert theirs.kv.get("k") is None  # the process holds the store still
        db.kv.put("a", "k", 1)
    with pytest.raises(inmem.ClosedError), db:
        pass
    with pytest.raises(inmem.ClosedError):
        db.kv.get("a", "k")
