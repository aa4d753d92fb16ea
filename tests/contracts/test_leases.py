"""Leases, on every engine: who gets one, who has one, and what a late holder can still do."""

from __future__ import annotations

import pickle
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from leases_under_test import LONG_S, Waiting, db, run, run_id, run_out, until, waiters_of, waiting

import inmem
from inmem.errors import InvariantError, LeaseHeldError, LeaseLostError, RunDeletedError
from inmem.primitives.leases import rules
from inmem.primitives.leases.calls import LeaseCalls

__all__ = ["db", "run", "run_id", "waiting"]


# --- taking and giving back -------------------------------------------------------------------------


def test_one_holder_at_a_time(db: inmem.Database, run_id: str, run: inmem.RunScope) -> None:
    before_us = time.time_ns() // 1000 - 10**6
    lease = db.leases.acquire(run_id, "a", ttl_s=LONG_S, holder="me")
    assert (lease.name, lease.holder, lease.run_id, lease.prefix) == ("a", "me", run_id, run.prefix)
    assert lease.expires_at - lease.acquired_at == LONG_S * 1e6 and lease.acquired_at > before_us
    assert db.leases.get(run_id, "a") == run.leases.get("a") == lease
    with pytest.raises(LeaseHeldError, match="'a' is held by me") as caught:
        db.leases.acquire(run_id, "a", ttl_s=timedelta(seconds=5))
    error = caught.value
    assert (error.name, error.holder, error.expires_at) == ("a", "me", lease.expires_at)
    assert error.retryable
    other = run.leases.acquire("b", ttl_s=LONG_S)
    assert run.leases.list() == [lease, other]
    assert run.leases.release(lease) is True
    assert run.leases.release(lease) is False
    assert run.leases.get("a") is None and run.leases.list() == [other]
    assert pickle.loads(pickle.dumps(other)) == other  # noqa: S301


def test_a_token_only_grows(run: inmem.RunScope) -> None:
    tokens = []
    for _ in range(5):
        lease = run.leases.acquire("a", ttl_s=LONG_S)
        tokens.append(lease.token)
        run.leases.release(lease)
    for _ in range(3):
        tokens.append(run_out(run).token)
    assert tokens == sorted(set(tokens))


def test_it_is_not_re_entrant(run: inmem.RunScope) -> None:
    run.leases.acquire("a", ttl_s=LONG_S, holder="me")
    with pytest.raises(LeaseHeldError):
        run.leases.acquire("a", ttl_s=LONG_S, holder="me")


def test_a_holder_says_who_he_is(run: inmem.RunScope) -> None:
    names = {run.leases.acquire(f"{n}", ttl_s=LONG_S).holder for n in range(9)}
    assert len(names) == 9 and all("process" in name for name in names)


def test_listing(run: inmem.RunScope) -> None:
    for name in ("a", "b-1", "b-2", "c"):
        run.leases.acquire(name, ttl_s=LONG_S)
    leases = run.leases

    def names(**how: Any) -> list[str]:
        return [lease.name for lease in leases.list(**how)]

    assert names() == ["a", "b-1", "b-2", "c"]
    assert names(prefix="b") == ["b-1", "b-2"]
    assert names(limit=2) == ["a", "b-1"] and names(limit=0) == []
    assert names(limit=2, reverse=True) == ["c", "b-2"]
    assert names(start_after="b-1", limit=1) == ["b-2"]
    assert names(start_after="b-2", reverse=True) == ["b-1", "a"]


def test_what_runs_share_has_leases(db: inmem.Database) -> None:
    shared = db.shared("agent")
    lease = shared.leases.acquire("of-all", ttl_s=LONG_S)
    assert db.leases.renew(lease).token == lease.token
    db.leases.check(lease)
    db.transact("any", lambda txn: txn.kv.put("k", 1), lease=lease)
    assert db.leases.release(lease) is True


# --- running out ------------------------------------------------------------------------------------


def test_ran_out_and_nobody_took_it(run: inmem.RunScope) -> None:
    lease = run_out(run)
    run.leases.check(lease)
    run.transact(lambda txn: txn.kv.put("k", 1), lease=lease)
    assert run.leases.get("a") == lease
    again = run.leases.renew(lease, 10)
    assert (again.token, again.acquired_at) == (lease.token, lease.acquired_at)
    assert again.expires_at > lease.expires_at + 9e6
    with pytest.raises(LeaseHeldError):
        run.leases.acquire("a", ttl_s=1)
    assert run.leases.release(run_out(run, "b")) is True


def test_ran_out_and_was_taken(run: inmem.RunScope) -> None:
    late = run_out(run)
    present = run.leases.acquire("a", ttl_s=LONG_S)
    assert present.token > late.token
    for call in (
        lambda: run.leases.check(late), lambda: run.leases.renew(late),
        lambda: run.transact(lambda txn: txn.kv.put("k", 1), lease=late),
        lambda: run.transact(lambda txn: txn.leases.check(late)),
        lambda: run.transact(lambda txn: txn.leases.renew(late)),
        lambda: run.transact(lambda txn: txn.kv.get("k"), lease=late),
    ):
        with pytest.raises(LeaseLostError) as caught:
            call()  # type: ignore[no-untyped-call]
        assert (caught.value.name, caught.value.token) == ("a", late.token)
    assert run.leases.release(late) is False
    assert run.kv.get("k") is None and run.leases.get("a") == present


def test_renewing(run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=10)
    again = run.leases.renew(lease)
    assert 0 < again.expires_at - lease.expires_at < 9e6, "for as long as it was acquired for"
    longer = run.leases.renew(lease, timedelta(minutes=1))
    assert run.leases.renew(again).expires_at >= longer.expires_at, "and from now on for that long"
    run.leases.release(lease)
    with pytest.raises(LeaseLostError):
        run.leases.renew(lease)


# --- transactions -----------------------------------------------------------------------------------


def test_a_transaction_under_a_lease(db: inmem.Database, run_id: str, run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    assert db.transact(run_id, lambda txn: txn.kv.add("n"), lease=lease) == 1
    assert db.transact("another", lambda txn: txn.kv.put(run_id, 1), lease=lease) is None
    assert db.transact(run_id, lambda txn: txn.kv.get("n"), lease=lease) == 1
    run.leases.release(lease)
    with pytest.raises(LeaseLostError):
        db.transact("another", lambda txn: txn.kv.put(run_id, 2), lease=lease)
    assert db.kv.get("another", run_id) == 1


def test_a_check_is_made_at_the_commit(run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    with pytest.raises(LeaseLostError), run.transaction() as txn:
        txn.leases.check(lease)
        txn.kv.put("k", 1)
        run.leases.release(lease)
    assert run.kv.get("k") is None


def test_a_check_does_not_conflict_with_renewals(run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    with run.transaction() as txn:
        assert txn.kv.get("k") is None
        txn.leases.check(lease)
        run.leases.renew(lease)
        txn.kv.put("k", 1)
    assert run.kv.get("k") == 1


def test_who_reads_a_lease_conflicts_with_its_renewal(run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    with pytest.raises(inmem.ConflictError), run.transaction() as txn:
        assert txn.leases.get("a") == lease
        run.leases.renew(lease)
        txn.kv.put("k", 1)


def test_a_transaction_renews_and_releases(run: inmem.RunScope, waiting: Waiting) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    with run.transaction() as txn:
        again = txn.leases.renew(lease, 60)
        assert txn.leases.get("a") == again
    assert run.leases.get("a") == again
    waiting.begin("w")
    with run.transaction() as txn:
        released = txn.leases.release(again)
        txn.kv.put("done", 1)
    assert released.value is True
    holder, got = waiting.next(1)
    assert holder == "w" and got.token > lease.token and run.kv.get("done") == 1


def test_a_transaction_cannot_acquire(run: inmem.RunScope) -> None:
    with run.transaction() as txn, pytest.raises(InvariantError, match="acquire cannot be part"):
        txn.leases.acquire("a", ttl_s=3)
    assert run.leases.get("a") is None


def test_a_snapshot_shows_leases(run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    with run.snapshot() as view:
        run.leases.release(lease)
        assert view.leases.get("a") == lease and view.leases.list() == [lease]
        view.leases.check(lease)
    with run.snapshot() as view, pytest.raises(LeaseLostError):
        view.leases.check(lease)


# --- waiting ----------------------------------------------------------------------------------------


def test_who_came_first_is_first(run: inmem.RunScope, waiting: Waiting) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    for number in range(4):
        waiting.begin(f"w-{number}")
    with pytest.raises(LeaseHeldError):
        run.leases.acquire("a", ttl_s=1)
    tokens = [lease.token]
    for number in range(4):
        assert run.leases.release(lease) is True
        holder, lease = waiting.next(number + 1)
        assert holder == f"w-{number}" and lease.holder == holder
        assert lease.expires_at > lease.acquired_at + 0.9 * LONG_S * 1e6
        run.leases.check(lease)
        tokens.append(lease.token)
    assert tokens == sorted(set(tokens)) and waiters_of(run) == 0


def test_short_leases_are_handed_on_in_order_too(run: inmem.RunScope, waiting: Waiting) -> None:
    """However long it takes to wake: what is given lasts for a second, until it is confirmed."""
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    for number in range(4):
        waiting.begin(f"w-{number}", ttl_s=0.001)
    run.leases.release(lease)
    waiting.next(4)
    by_token = sorted((got.token, holder) for holder, got in waiting.got)
    assert [holder for _, holder in by_token] == [f"w-{number}" for number in range(4)]


def test_who_came_late_does_not_overtake(run: inmem.RunScope, waiting: Waiting) -> None:
    """Not even if the lease has run out, and the first one has not noticed yet."""
    lease = run.leases.acquire("a", ttl_s=0.2)
    waiting.begin("first")
    try:
        got = run.leases.acquire("a", ttl_s=LONG_S, holder="late", wait_s=0.5)
    except LeaseHeldError as error:
        assert error.holder == "first"
    else:
        raise AssertionError(got)
    assert waiting.next(1)[0] == "first"
    with pytest.raises(LeaseLostError):
        run.leases.check(lease)


def test_a_lease_that_runs_out_wakes_who_waits(run: inmem.RunScope) -> None:
    run.leases.acquire("a", ttl_s=0.1)
    began = time.monotonic()
    lease = run.leases.acquire("a", ttl_s=LONG_S, wait_s=None)
    assert 0.05 < time.monotonic() - began < LONG_S / 2
    assert lease.expires_at > lease.acquired_at + 20e6


def test_waiting_in_vain(run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S, holder="me")
    began = time.monotonic()
    with pytest.raises(LeaseHeldError) as caught:
        run.leases.acquire("a", ttl_s=1, wait_s=timedelta(milliseconds=50))
    assert time.monotonic() - began >= 0.05
    assert (caught.value.holder, caught.value.expires_at) == ("me", lease.expires_at)
    assert waiters_of(run) == 0
    assert run.leases.release(lease) is True and run.leases.get("a") is None


def asks(run: inmem.RunScope, wait_us: int, claim: int, ttl_us: int = 10**7) -> Any:
    """Somebody asks for the lease, and is never heard of again."""
    arguments = [run.prefix, b"a", f"claim {claim}", ttl_us, wait_us, claim]
    return run._database.engine.direct().ask("lease.acquire", arguments, tuple)


def test_a_waiter_that_is_gone_costs_a_second(run: inmem.RunScope, waiting: Waiting) -> None:
    """And has to come again, if he was only asleep."""
    sink = run._database.engine.direct()
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    _, ticket, *_ = asks(run, 10**8, 7)
    assert ticket > 0
    waiting.begin("alive")
    began = time.monotonic()
    run.leases.release(lease)
    found = run.leases.get("a")
    assert found is not None and found.holder == "claim 7"
    holder, got = waiting.next(1)
    assert holder == "alive" and got.token > found.token
    assert 0.9 < time.monotonic() - began < 5
    assert sink.ask("lease.confirm", [run.prefix, b"a", 7, ticket], tuple)[:2] == (0, 0)
    assert sink.ask("lease.leave", [run.prefix, b"a", 7, ticket], tuple)[4] == "alive"


def test_neighbours_that_are_gone_cost_a_second_each(run: inmem.RunScope, waiting: Waiting) -> None:
    """Who waits behind them is told of neither: what he knew of the lease is that it lasts for long."""
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    asks(run, 10**8, 7)
    asks(run, 10**8, 8)
    waiting.begin("alive")
    time.sleep(0.1)
    began = time.monotonic()
    run.leases.release(lease)
    assert waiting.next(1)[0] == "alive"
    assert time.monotonic() - began < 10


def test_a_lease_that_is_renewed_for_less(run: inmem.RunScope, waiting: Waiting) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    waiting.begin("first")
    waiting.begin("second", wait_s=2.0)
    time.sleep(0.1)
    run.leases.renew(lease, 0.2)
    began = time.monotonic()
    assert waiting.next(1)[0] == "first"
    assert time.monotonic() - began < 5
    holder, got = waiting.next(2)
    assert holder == "second" and isinstance(got, LeaseHeldError) and got.holder == "first"


def test_who_has_waited_long_enough_looks_once_more(run: inmem.RunScope, monkeypatch: Any) -> None:
    """The lease has run out, and he does not know."""
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    monkeypatch.setattr(LeaseCalls, "_looking", lambda *_: lambda view: view.kv.get("never"))
    threading.Timer(0.1, lambda: run.leases.renew(lease, 0.001)).start()
    assert run.leases.acquire("a", ttl_s=LONG_S, wait_s=0.5).token > lease.token


def test_the_only_waiter_is_gone(run: inmem.RunScope) -> None:
    """Who comes later and does not wait has it after a second, however long the other one wanted to wait."""
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    asks(run, 1 << 60, 7)
    run.leases.release(lease)
    with pytest.raises(LeaseHeldError) as caught:
        run.leases.acquire("a", ttl_s=1)
    assert caught.value.holder == "claim 7"
    time.sleep(rules.GIVEN_US / 1e6 + 0.01)
    run.leases.acquire("a", ttl_s=1)


def test_who_does_not_wait_any_more_is_passed_over(run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    for claim in range(1, 4):
        asks(run, 1, claim)  # for a microsecond
    time.sleep(0.001)
    assert waiters_of(run) == 3
    run.leases.release(lease)
    assert waiters_of(run) == 0 and run.leases.get("a") is None


def test_who_says_no_more_that_he_is_alive_is_passed_over(run: inmem.RunScope, waiting: Waiting) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    for claim in range(1, 4):
        asks(run, 1 << 60, claim)
    waiting.begin("alive", wait_s=None)
    waiting.begin("too", wait_s=9.0)
    time.sleep(rules.ALIVE_US / 1e6 + 0.1)
    began = time.monotonic()
    run.leases.release(lease)
    holder, got = waiting.next(1)
    assert holder == "alive" and time.monotonic() - began < 0.9
    assert waiters_of(run) == 1
    run.leases.release(got)
    assert waiting.next(2)[0] == "too"


def test_many_who_are_gone_are_forgotten_step_by_step(run: inmem.RunScope) -> None:
    """Who comes next goes on; who wants the lease goes on until he has it."""
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    for claim in range(1, 201):
        asks(run, 1, claim)
    time.sleep(0.001)
    run.leases.release(lease)
    assert waiters_of(run) == 200 - 64 and run.leases.get("a") is None
    with run.transaction() as txn:
        txn.leases.check(run.leases.acquire("a", ttl_s=LONG_S))
    assert waiters_of(run) == 0


def test_who_leaves_passes_on_what_he_was_given(run: inmem.RunScope) -> None:
    sink = run._database.engine.direct()
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    asks(run, 10**8, 7)
    asks(run, 10**8, 8)
    run.leases.release(lease)
    for claim in (7, 8):
        found = run.leases.get("a")
        assert found is not None and found.holder == f"claim {claim}"
        sink.ask("lease.leave", [run.prefix, b"a", claim, 0], tuple)
    assert run.leases.get("a") is None
    assert asks(run, 0, 9)[0] > 0
    sink.ask("lease.leave", [run.prefix, b"a", 9, 0], tuple)  # an acquisition whose answer nobody has heard
    assert run.leases.get("a") is None


def test_who_leaves_without_a_ticket_is_looked_for_at_both_ends(run: inmem.RunScope) -> None:
    """However many wait. One in the middle is not found, and ceases to be alive."""
    sink = run._database.engine.direct()
    run.leases.acquire("a", ttl_s=LONG_S)
    tickets = [asks(run, 1 << 60, claim)[1] for claim in range(1, 602)]
    for claim, left in ((1, 600), (601, 599), (301, 599)):
        sink.ask("lease.leave", [run.prefix, b"a", claim, 0], tuple)
        assert waiters_of(run) == left
    sink.ask("lease.leave", [run.prefix, b"a", 301, tickets[300]], tuple)
    assert waiters_of(run) == 598


def test_a_deleted_run_has_no_leases(db: inmem.Database, run_id: str, run: inmem.RunScope) -> None:
    lease = run.leases.acquire("a", ttl_s=LONG_S)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            run.leases.acquire("a", ttl_s=1, wait_s=None)
        except RunDeletedError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: waiters_of(run))
    deleted = db.runs.delete_run(run_id)
    assert deleted.others == {"leases": 1}
    thread.join()
    assert len(ended) == 1
    for call in (
        lambda: run.leases.check(lease), lambda: run.leases.renew(lease), lambda: run.leases.release(lease),
        lambda: run.leases.acquire("a", ttl_s=1), lambda: run.leases.acquire("b", ttl_s=1, wait_s=9),
        lambda: db.transact("other", lambda txn: txn.kv.put(run_id, 1), lease=lease),
        lambda: run.transact(lambda txn: txn.leases.check(lease)),
    ):
        with pytest.raises(RunDeletedError):
            call()  # type: ignore[no-untyped-call]
    assert db.kv.get("other", run_id) is None
