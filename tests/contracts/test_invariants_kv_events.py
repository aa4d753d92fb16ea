"""The numbered invariants that hold for KV and events, each by its number."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from forms import new_run
from support import in_threads, wait_until

import inmem

DEADLINE_S = 30.0


@pytest.fixture
def db(shared_db: inmem.Database) -> inmem.Database:
    return shared_db


def test_invariant_01_keys_of_one_primitive_are_invisible_to_the_others(db: inmem.Database) -> None:
    run = new_run()
    for name in ("t", "0", "\x01", "\x02", "\x12t"):
        db.kv.put(run, name, name)
    db.events.append(run, "t", "event")
    assert db.events.count(run) == 1
    assert db.events.query_by_type(run, "t")[0].payload == "event"
    assert db.kv.count(run) == 5
    assert db.kv.list(run, "\x02") == ["\x02"]
    with db.snapshot(run) as view:
        assert (view.kv.count(), view.events.count()) == (5, 1)


def test_invariant_02_the_same_key_in_two_runs_is_two_values(db: inmem.Database) -> None:
    one, other = new_run(), new_run()
    scopes = [db.run(one), db.run(other), db.shared("agent"), db.shared("app"), db.shared("tenant")]
    for i, scope in enumerate(scopes):
        scope.kv.put("k", i)
        scope.events.append("t", i)
    for i, scope in enumerate(scopes):
        assert scope.kv.list_with_values() == [("k", i)]
        assert [e.payload for e in scope.events.read_range(0)] == [i]
    for neighbour in (one + "0", one + "-", one + ".", one.upper()):
        assert (db.kv.count(neighbour), db.events.count(neighbour)) == (0, 0)


def test_invariant_03_facades_hold_no_state(db: inmem.Database) -> None:
    run = new_run()
    inmem.KVStore(db).put(run, "k", 1)
    assert inmem.KVStore(db).get(run, "k") == 1
    assert inmem.EventLog(db).append(run, "t").sequence == 0
    assert inmem.EventLog(db).append(run, "t").sequence == 1
    for facade in (db.kv, db.events, inmem.KVStore(db)):
        assert [held for held in gc.get_referents(facade) if not isinstance(held, type)] == [db]
        with pytest.raises(AttributeError):
            facade.extra = 1


def test_invariant_04_values_keep_their_type(db: inmem.Database) -> None:
    run = new_run()
    values: list[Any] = [
        True, 1, 1.0, "1", b"1", None, False, 0, 0.0, "", b"", [True, 1, 1.0], {"k": [b"", "", None, {}]},
    ]
    for i, value in enumerate(values):
        db.kv.put(run, f"k{i}", value)
        db.events.append(run, "t", value)
    for i, value in enumerate(values):
        event = db.events.read(run, i)
        assert event is not None
        for found in (db.kv.get(run, f"k{i}"), event.payload):
            assert (repr(found), type(found)) == (repr(value), type(value))


def test_invariant_05_listing_order_is_deterministic(db: inmem.Database) -> None:
    rng = random.Random(5)
    names = ["a", "B", "\u00e9", "a/b", "a ", "10", "9", "\U0001f600", "\uffee"]
    listings = []
    for _ in range(5):
        run = new_run()
        rng.shuffle(names)
        for name in names:
            db.kv.put(run, name, 1)
        listings.append(db.kv.list(run))
    assert listings == [sorted(names)] * 5


def test_invariant_06_an_aborted_transaction_leaves_nothing(db: inmem.Database) -> None:
    run, other = new_run(), new_run()
    db.events.append(run, "t")
    version = db.status().version

    class MyError(Exception):
        pass

    def step(txn: inmem.Transaction) -> None:
        txn.kv.put("k", 1)
        txn.kv.add("n")
        txn.events.append("lost")
        txn.at(other).kv.put("k", 1)
        assert txn.events.count() == 2
        raise MyError

    for call in (lambda: db.transact(run, step), lambda: db.kv.transaction(run, step)):
        with pytest.raises(MyError):
            call()
    with pytest.raises(MyError), db.transaction(run) as txn:
        step(txn)
    txn = db.transaction(run)
    txn.kv.put("k", 1)
    txn.abort()
    assert db.status().version == version
    assert (db.kv.count(run), db.kv.count(other)) == (0, 0)
    assert db.events.append(run, "next").sequence == 1


def test_invariant_07_events_are_append_only(db: inmem.Database) -> None:
    run = new_run()
    db.events.append(run, "t", "kept")
    before = db.events.read_range(run, 0)
    with db.transaction(run) as txn, db.snapshot(run) as view:
        for log in (db.run(run).events, txn.events, view.events):
            for method in (log.update, log.delete):
                with pytest.raises(inmem.AppendOnlyError):
                    method(0, "t", "changed")
    for method in (db.events.update, db.events.delete):
        with pytest.raises(inmem.AppendOnlyError):
            method(run, 0)
    assert db.events.read_range(run, 0) == before


def test_invariant_08_sequences_are_contiguous_also_after_failures(db: inmem.Database) -> None:
    run = new_run()
    sequences = []
    for i in range(30):
        if i % 3 == 0:
            with pytest.raises(inmem.InvalidValueError):
                db.events.append_many(run, [("t", i), ("t", {1})])
        if i % 3 == 1:
            txn = db.transaction(run)
            txn.kv.get("contended")
            txn.events.append("lost")
            db.kv.put(run, "contended", i)
            with pytest.raises(inmem.ConflictError):
                txn.commit()
        sequences.append(db.events.append(run, "t", i).sequence)
    assert sequences == list(range(30))
    assert [e.sequence for e in db.events.read_range(run, 0)] == sequences


def test_invariant_09_the_chain_is_verified_end_to_end(db: inmem.Database) -> None:
    """What is stored; that each kind of damage is found is shown at the rules of the chain."""
    run = new_run()
    appended = db.events.append_many(run, [("t", i) for i in range(50)])
    assert db.events.verify_chain(run, (49, appended[49].hash)) == inmem.ChainVerification(True, 50)
    events = db.events.read_range(run, 0)
    assert [(e.sequence, e.hash) for e in events] == [(a.sequence, a.hash) for a in appended]
    assert all(b.prev_hash == a.hash for a, b in pairwise(events))
    assert not db.events.verify_chain(run, (49, appended[48].hash)).is_valid
    assert not db.events.verify_chain(run, (50, appended[49].hash)).is_valid


def test_invariant_10_concurrent_appends_form_one_total_order(db: inmem.Database) -> None:
    run, results = new_run(), [[] for _ in range(4)]  # type: ignore[var-annotated]

    def work(worker: int) -> None:
        for i in range(50):
            if i % 2:
                results[worker].append(db.events.append(run, f"w{worker}", i))
            else:
                with db.transaction(run) as txn:
                    pending = txn.events.append(f"w{worker}", i)
                results[worker].append(pending)

    in_threads(4, work)
    events = db.events.read_range(run, 0)
    assert [e.sequence for e in events] == list(range(200))
    assert db.events.verify_chain(run).is_valid
    by_sequence = {
        a.sequence: (worker, i, a.hash) for worker in range(4) for i, a in enumerate(results[worker])
    }
    assert len(by_sequence) == 200
    for event in events:
        worker, i, digest = by_sequence[event.sequence]
        assert (event.event_type, event.payload, event.hash) == (f"w{worker}", i, digest)
    for worker in range(4):
        assert [e.payload for e in db.events.query_by_type(run, f"w{worker}")] == list(range(50))


def test_invariant_11_length_and_head_agree_with_the_events(db: inmem.Database) -> None:
    run = new_run()
    for i in range(20):
        with db.snapshot(run) as view:
            events = view.events.read_range(0)
            assert view.events.count() == len(events) == i
            assert view.events.head() == (events[-1] if events else None)
        db.events.append(run, "t", i)


def test_invariant_11_also_after_recovery(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_LINGER_S", "0.1")  # the writer is waited for
    with inmem.open(store_path) as db:
        db.events.append_many("r", [("t", i) for i in range(20)])
        db.kv.put("r", "k", 1)
        head, pid = db.events.head("r"), db.status().writer_pid
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the writer ends")
    with inmem.open(store_path) as db:
        assert db.status().writer_pid != pid
        assert (db.events.count("r"), db.events.head("r")) == (20, head)
        assert db.events.append("r", "t").sequence == 20
        assert db.events.verify_chain("r") == inmem.ChainVerification(True, 21)
        assert db.kv.get("r", "k") == 1


def test_invariant_22_a_commit_is_seen_whole_or_not_at_all(db: inmem.Database) -> None:
    run, stop = new_run(), threading.Event()
    seen: set[int] = set()
    db.kv.put_many(run, {"a": 0, "b": 0})

    def work(worker: int) -> None:
        if worker == 0:
            try:
                for i in range(1, 150):
                    with db.transaction(run) as txn:
                        txn.kv.put("a", i)
                        txn.events.append("t", i)
                        txn.kv.put("b", i)
            finally:
                stop.set()
        while not stop.is_set():
            with db.snapshot(run) as view:
                head = view.events.head()
                assert view.kv.get("a") == view.kv.get("b") == (head.payload if head else 0)
                assert view.events.count() == view.kv.get("a")
                seen.add(view.kv.get("a"))
            both = db.kv.get_many(run, ["a", "b"])
            assert both["a"] == both["b"]
            listed = dict(db.kv.list_with_values(run))
            assert listed["a"] == listed["b"]

    in_threads(3, work)
    assert len(seen) > 1, "the readers saw something happen"


def test_invariant_24_no_primitive_touches_the_data_of_another(db: inmem.Database) -> None:
    run = new_run()
    db.events.append(run, "t", 1)
    log = db.events.read_range(run, 0)
    db.kv.put(run, "k", 1)
    db.kv.add(run, "n")
    db.kv.put_many(run, {"t": 1})
    db.kv.delete(run, "k")
    assert db.events.read_range(run, 0) == log
    entries = [db.kv.get_versioned(run, key) for key in ("n", "t")]
    db.events.append_many(run, [("t", 2), ("n", 3)])
    assert [db.kv.get_versioned(run, key) for key in ("n", "t")] == entries
    assert db.kv.list(run) == ["n", "t"]


def test_invariant_25_lost_update_write_skew_and_phantom_are_refused(db: inmem.Database) -> None:
    def both(first: Callable[[Any], None], second: Callable[[Any], None]) -> bool:
        """Whether two transactions that began at the same moment both commit."""
        run = new_run()
        db.kv.put_many(run, {"x": 1, "y": 1})
        one, two = db.transaction(run), db.transaction(run)
        first(one)
        second(two)
        one.commit()
        try:
            two.commit()
        except inmem.ConflictError:
            return False
        return True

    def increment(txn: Any) -> None:
        txn.kv.put("x", txn.kv.get("x") + 1)

    assert not both(increment, increment)
    assert not both(
        lambda t: t.kv.put("x", 0 if t.kv.get("y") else 1), lambda t: t.kv.put("y", 0 if t.kv.get("x") else 1)
    )
    assert not both(
        lambda t: t.kv.put(f"one{t.kv.count()}", 1), lambda t: t.kv.put(f"two{t.kv.count()}", 1)
    )
    assert not both(lambda t: t.kv.put("a", t.kv.list("q")), lambda t: t.kv.put("q", t.kv.list("a")))
    assert both(lambda t: t.kv.put("x", t.kv.get("x")), lambda t: t.kv.put("y", t.kv.get("y")))
    assert both(lambda t: t.kv.put("a", t.kv.list("x")), lambda t: t.kv.put("b", t.kv.list("y")))
    assert both(lambda t: t.kv.add("x"), lambda t: t.kv.add("x"))


def test_invariant_25_a_scan_with_a_limit_depends_on_its_part_only(db: inmem.Database) -> None:
    for reverse, before, beyond in ((False, "a5", "a95"), (True, "a95", "a5")):
        for own in (False, True):
            run = new_run()
            db.kv.put_many(run, {} if own else {"a1": 1, "a9": 1})
            scanned = db.transaction(run)
            if own:
                scanned.kv.put_many({"a1": 1, "a9": 1})
            assert scanned.kv.list("a", limit=1, reverse=reverse) == ["a9" if reverse else "a1"]
            scanned.kv.put("result", 1)
            outside = {"a5": 1, beyond: 1} if not reverse else {"a5": 1, "a0": 1}
            db.kv.put_many(run, outside)
            scanned.commit()
            again = db.transaction(run)
            again.kv.list("a", limit=2, reverse=reverse)
            again.kv.put("result", 2)
            db.kv.put(run, "a99" if reverse else "a00", before)
            with pytest.raises(inmem.ConflictError):
                again.commit()


def test_invariant_26_an_acknowledged_commit_is_there_once(store_path: Path) -> None:
    """The writer is killed again and again while one program counts; it never notices."""
    with inmem.open(store_path) as db:
        for i in range(40):
            assert db.kv.add("r", "n") == i + 1
            assert db.events.append("r", "t", i).sequence == i
            if i % 10 == 5:
                os.kill(db.status().writer_pid, signal.SIGKILL)
        assert db.kv.get("r", "n") == 40
        assert [e.payload for e in db.events.read_range("r", 0)] == list(range(40))
        assert db.events.verify_chain("r").is_valid


def test_an_unknown_commit_is_resolved_as_what_its_call_returns(store_path: Path) -> None:
    """The writer is stopped past the deadline; each call's error gives its result later, once."""

    def step(txn: inmem.Transaction) -> str:
        txn.kv.put("z", 1)
        pending.append(txn.events.append("late"))
        return "result of the function"

    pending: list[inmem.PendingAppend] = []
    with inmem.open(store_path), inmem.open(store_path, timeout_s=0.3) as db:
        log = [db.events.append("r", "t") for _ in range(2)]
        db.kv.put("r", "d", 1)
        pid = db.status().writer_pid
        calls: list[tuple[Callable[[], Any], Callable[[Any], bool]]] = [
            (lambda: db.kv.put("r", "k", 1), lambda v: v == db.kv.get_versioned("r", "k").version),
            (lambda: db.kv.put_many("r", {"m": 1}), lambda v: v == db.kv.get_versioned("r", "m").version),
            (lambda: db.kv.add("r", "n", 5), lambda v: v == 5),
            (lambda: db.kv.delete("r", "d"), lambda v: v is True),
            (lambda: db.events.append("r", "t"), lambda v: v == inmem.Appended(2, db.events.head("r").hash)),
            (lambda: db.events.append_many("r", [("t", 1)] * 2), lambda v: [a.sequence for a in v] == [3, 4]),
            (lambda: db.transact("r", step, timeout_s=0.3), lambda v: v == "result of the function"),
        ]
        for call, check in calls:
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(inmem.CommitUnknownError) as first:
                    call()
                with pytest.raises(inmem.CommitUnknownError) as second:
                    first.value.resend(0.05)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert check(second.value.resend(20.0))
        assert pending[0].sequence == 5
        assert db.events.count("r") == len(log) + 4
        assert db.kv.list("r") == ["k", "m", "n", "z"]


def test_a_transaction_that_counts_a_large_run_commits(db: inmem.Database) -> None:
    """More records than the writer walks: only an untouched run may be counted, but that may."""
    run = new_run()
    with db.pipeline() as pipe:
        for i in range(0, 21_000, 1000):
            pipe.kv.put_many(run, {f"k{j:06}": j for j in range(i, i + 1000)})
    with db.transaction(run) as txn:
        count = txn.kv.count()
        txn.at("elsewhere").kv.put("count", count)
    assert db.kv.get("elsewhere", "count") == 21_000
