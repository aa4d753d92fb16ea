"""Leases that are held while a block runs, and those that own runs, on every engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from leases_under_test import LONG_S, db, run, run_id, until

import inmem
from inmem.errors import InvalidInputError, InvariantError, LeaseHeldError, LeaseLostError
from inmem.primitives import holding

__all__ = ["db", "run", "run_id"]


@pytest.fixture(autouse=True)
def thread_that_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that renews, once nothing is held."""
    monkeypatch.setattr(holding, "_IDLE_S", 0.01)


# --- held while a block runs ------------------------------------------------------------------------


def test_a_block_holds_and_renews(db: inmem.Database, run_id: str, run: inmem.RunScope) -> None:
    with db.leases.hold(run_id, "a", ttl_s=2.0, holder="me") as held:
        first = held.lease
        assert first.holder == "me" and held.token == first.token
        until(lambda: held.lease.expires_at > first.expires_at)
        until(lambda: run.leases.get("a") == held.lease)  # it may be renewed between the two
        assert not held.lost.is_set() and held.lost.wait(0.001) is False
        held.check()
        assert held.transact(lambda txn: txn.kv.add("n")) == 1
    assert run.leases.get("a") is None
    assert held.lost.is_set() and held.lost.wait() is True
    with pytest.raises(LeaseLostError):
        held.check()
    with pytest.raises(LeaseLostError):
        held.transact(lambda txn: txn.kv.add("n"))
    assert run.kv.get("n") == 1
    with pytest.raises(InvariantError, match="has had its block"), held:
        raise AssertionError


def test_what_holds_a_lease_is_as_good_as_the_lease(
    db: inmem.Database, run_id: str, run: inmem.RunScope
) -> None:
    held = run.leases.hold("a", ttl_s=LONG_S)
    for leases in (db.leases, run.leases):
        with pytest.raises(InvariantError, match="where its block begins"):
            leases.check(held)
    with held:
        assert db.transact(run_id, lambda txn: txn.kv.add("n"), lease=held) == 1
        assert run.transact(lambda txn: txn.kv.add("n"), lease=held) == 2
        for leases in (db.leases, run.leases):
            leases.check(held)
            again = leases.renew(held, 50)
            assert again.token == held.token and again.expires_at > held.lease.expires_at
        with run.transaction() as txn:
            txn.leases.check(held)
            assert txn.leases.renew(held).token == held.token
        with run.snapshot() as view:
            view.leases.check(held)
        assert db.leases.release(held) is True
        with pytest.raises(LeaseLostError):
            run.transact(lambda txn: txn.kv.add("n"), lease=held)
    assert run.kv.get("n") == 2


def test_what_is_held_is_renewed_for_its_own_time(run: inmem.RunScope) -> None:
    with run.leases.hold("a", ttl_s=1.5) as held:
        first = held.lease
        run.leases.renew(held, 0.9)
        until(lambda: held.lease is not first)
        assert held.lease.expires_at > first.expires_at


def test_what_is_held_is_not_renewed_too_often(run: inmem.RunScope) -> None:
    for ttl_s in (1e-6, 0.099, timedelta(milliseconds=99)):
        with pytest.raises(InvalidInputError, match=r"at least 0\.1 s") as caught:
            run.leases.hold("a", ttl_s=ttl_s)
        assert caught.value.argument == "ttl_s"
    with run.leases.hold("a", ttl_s=timedelta(milliseconds=100)) as held:
        held.check()


def test_a_block_that_raises_releases(run: inmem.RunScope) -> None:
    with pytest.raises(KeyError), run.leases.hold("a"):
        raise KeyError("k")
    assert run.leases.get("a") is None


def test_before_its_block_there_is_no_lease(run: inmem.RunScope) -> None:
    held = run.leases.hold("a")
    assert held.lost.is_set()
    with pytest.raises(InvariantError, match="where its block begins"):
        _ = held.lease
    assert run.leases.get("a") is None and "HeldLease('a'" in repr(held)


def test_a_block_waits(run: inmem.RunScope) -> None:
    with run.leases.hold("a", ttl_s=0.1) as held:
        with pytest.raises(LeaseHeldError), run.leases.hold("a", wait_s=0.2):
            raise AssertionError
        held.check()
    run.leases.acquire("b", ttl_s=0.05)
    with run.leases.hold("b", wait_s=LONG_S) as other:
        other.check()


def test_a_lease_that_is_taken_away_is_noticed(run: inmem.RunScope) -> None:
    with run.leases.hold("a", ttl_s=0.3) as held:
        assert run.leases.release(held.lease)
        with pytest.raises(LeaseLostError):
            held.check()
        assert held.lost.wait(LONG_S) is True
        other = run.leases.acquire("a", ttl_s=LONG_S)
    run.leases.check(other)


def test_a_loss_is_judged_by_the_clock(run: inmem.RunScope, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.leases.hold("a", ttl_s=20) as held:
        assert not held.lost.is_set()
        now = holding.boot_us
        monkeypatch.setattr(holding, "boot_us", lambda: now() + 21_000_000)
        assert held.lost.is_set() and held.lost.wait() is True
        held.check()  # but nobody has taken it
        monkeypatch.setattr(holding, "boot_us", now)
        assert not held.lost.is_set()


def test_many_are_held_by_one_thread(run: inmem.RunScope) -> None:
    until(lambda: "inmem-leases" not in [thread.name for thread in threading.enumerate()])
    held = [run.leases.hold(f"{n}", ttl_s=0.5) for n in range(20)]
    for each in held:
        each.__enter__()
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("inmem-renewals") == 1
    first = [each.lease for each in held]
    until(lambda: all(each.lease.expires_at > one.expires_at for each, one in zip(held, first, strict=True)))
    assert not any(each.lost.is_set() for each in held)
    for each in held:
        each.__exit__(None, None, None)
    assert run.leases.list() == []
    until(lambda: "inmem-renewals" not in [thread.name for thread in threading.enumerate()])


# --- owners of runs ---------------------------------------------------------------------------------


def test_stale_runs_are_failed(home: Any) -> None:
    with home.open(agent="stale") as db:
        for name in ("unclaimed", "owned", "late", "later", "released", "done"):
            db.runs.create_run(run_id=name)
        owner = db.runs.claim("owned", ttl_s=LONG_S)
        assert (owner.name, owner.run_id) == ("@run", "owned")
        with pytest.raises(LeaseHeldError):
            db.runs.claim("owned", ttl_s=LONG_S)
        late = db.runs.claim("late", ttl_s=0.001)
        db.run("later").runs.claim(ttl_s=0.002)
        db.leases.release(db.runs.claim("released", ttl_s=0.001))
        db.runs.claim("done", ttl_s=0.001)
        db.runs.complete_run("done")
        time.sleep(0.01)
        assert [lease.run_id for lease in db.runs.stale()] == ["late", "later"]
        assert db.runs.stale(older_than_s=5) == [] and db.runs.fail_stale(older_than_s=5) == []
        db.leases.renew(late, 0.001)
        time.sleep(0.002)
        assert [lease.run_id for lease in db.run("owned").runs.stale()] == ["later", "late"]
        assert db.runs.fail_stale(error="gone") == ["later", "late"]
        assert db.runs.stale() == []
        failed = db.runs.get_run("late")
        assert failed is not None and (failed.status, failed.error) == (inmem.RunStatus.FAILED, "gone")
        with pytest.raises(LeaseLostError):
            db.transact("late", lambda txn: txn.kv.put("k", 1), lease=late)


def test_an_owner_who_renews_in_between_keeps_his_run(home: Any) -> None:
    with home.open(agent="renewing") as db:
        db.runs.create_run(run_id="r")
        lease = db.runs.claim("r", ttl_s=0.001)
        time.sleep(0.002)
        transact = inmem.RunScope.transact

        def renewed_first(scope: inmem.RunScope, fn: Callable[[Any], Any], **options: Any) -> Any:
            db.leases.renew(lease, LONG_S)
            return transact(scope, fn, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inmem.RunScope, "transact", renewed_first)
            assert db.runs.fail_stale() == []
        run = db.runs.get_run("r")
        assert run is not None and run.status == inmem.RunStatus.ACTIVE
        db.leases.check(lease)
