"""The five primitives in one transaction, over several runs, in composed functions and in snapshots."""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forms import new_run
from support import writer_pid

import inmem
from inmem import NewTrace, RunStatus, Thought


@pytest.fixture
def db(home: Any) -> Iterator[inmem.Database]:
    """A namespace of its own."""
    with home.open(agent=new_run(), app=new_run()) as database:
        yield database


def work(txn: Any, n: int) -> None:
    """A step that reads and writes all five, as the two ways to hold a run offer it."""
    state = txn.cells.read("n")
    assert (state.value if state else 0) == n == txn.kv.count() == txn.events.count() == txn.traces.count()
    txn.kv.put(f"k{n}", n)
    txn.events.append("step", n)
    if state is None:
        txn.cells.init("n", 1)
    else:
        txn.cells.cas("n", state.version, n + 1)
    roots = txn.traces.roots()
    txn.traces.record(Thought(str(n)), parent_id=roots[0].id if roots else None, tags=["t"])
    if txn.runs.get_run() is None:
        txn.runs.create_run(tags=["t"])
    txn.runs.update_metadata({"n": n + 1})
    # All of it is seen at once.
    assert txn.kv.count() == txn.events.count() == txn.traces.count() == txn.cells.read("n").value == n + 1
    assert len(txn.traces.query_by_tag("t")) == n + 1
    assert [event.payload for event in txn.events.read_range(0)] == list(range(n + 1))
    assert txn.runs.get_run().metadata == {"n": n + 1}


def totals(view: Any) -> list[Any]:
    state, run = view.cells.read("n"), view.runs.get_run()
    return [
        view.kv.count(), view.events.count(), state.value if state else 0, view.traces.count(),
        run.metadata["n"] if run else 0,
    ]


def test_one_transaction_over_many_runs(db: inmem.Database) -> None:
    runs = ["a", "a.b", "b"]
    for n in range(3):
        with db.transaction("a") as txn:
            for run_id in runs:
                work(txn.at(run_id), n)
            shared = txn.at(db.shared("app"))
            shared.kv.put("total", shared.kv.get("total", 0) + len(runs))
            shared.events.append("step", n)
            shared.cells.set("n", n)
            shared.traces.record(Thought("shared"))
            assert [run.run_id for run in txn.runs.query_runs(tags=["t"])] == runs
            assert txn.runs.get_stats().by_status[RunStatus.ACTIVE] == 3
        for run_id in runs:
            assert totals(db.run(run_id)) == [n + 1] * 5
    scope = db.shared("app")
    assert (scope.kv.get("total"), scope.events.count(), scope.traces.count()) == (9, 3, 3)
    assert scope.cells.read("n").version == 3  # type: ignore[union-attr]
    assert db.runs.list_runs() == runs


def test_all_of_many_runs_or_nothing(db: inmem.Database) -> None:
    with pytest.raises(inmem.CellExistsError), db.transaction("a") as txn:
        for run_id in ("a", "b"):
            work(txn.at(run_id), 0)
        txn.at("b").cells.init("n", 1)
    txn = db.transaction("a")
    for run_id in ("a", "b"):
        work(txn.at(run_id), 0)
    db.events.append("b", "meanwhile")
    version = db.status().version
    with pytest.raises(inmem.ConflictError):
        txn.commit()
    for run_id in ("a", "b"):
        assert db.kv.count(run_id) == db.traces.count(run_id) == 0
        assert db.cells.list(run_id) == []
    assert db.runs.list_runs() == []
    assert db.status().version == version
    assert [event.event_type for event in db.events.read_range("b", 0)] == ["meanwhile"]


def test_a_parent_run_may_be_created_in_the_same_transaction(db: inmem.Database) -> None:
    with db.transaction("up") as txn:
        txn.runs.create_run()
        for run_id in ("down-1", "down-2"):
            txn.at(run_id).runs.create_run(parent_run="up", tags=["child"])
        assert [run.run_id for run in txn.runs.get_child_runs()] == ["down-1", "down-2"]
        txn.at("down-1").runs.fail_run("broke")
    assert [run.status for run in db.runs.get_child_runs("up")] == [RunStatus.FAILED, RunStatus.ACTIVE]


def test_at_is_the_same_transaction_however_often(db: inmem.Database) -> None:
    with db.transaction("a") as txn:
        txn.at("b").kv.put("k", 1)
        assert txn.at("b").kv.get("k") == 1
        assert txn.at("b").at("a").run_id == "a"
        txn.at("b").at("a").kv.put("k", 2)
        assert txn.kv.get("k") == 2
        pending = txn.at("b").cells.set("c", 1)
        appended = txn.at("b").events.append("t")
    assert (pending.version, appended.sequence) == (1, 0)
    assert txn.at("b").version == txn.version


@inmem.transactional
def deposit(target: Any, amount: int) -> int:
    """Add to a balance and note it in log and traces."""
    balance: int = target.kv.get("balance", 0) + amount
    target.kv.put("balance", balance)
    target.events.append("deposit", amount)
    target.traces.record(Thought(f"{amount}"))
    return balance


@inmem.transactional
def transfer(target: Any, other: str, amount: int) -> tuple[int, int]:
    """Composed of two deposits, in two runs."""
    return deposit(target, -amount), deposit(target.at(other), amount)


class TestComposition:
    def test_of_a_scope_it_commits(self, db: inmem.Database) -> None:
        assert deposit(db.run("a"), 5) == 5
        assert transfer(db.run("a"), "b", 2) == (3, 2)
        assert (db.kv.get("a", "balance"), db.kv.get("b", "balance")) == (3, 2)
        assert (db.events.count("a"), db.events.count("b"), db.traces.count("b")) == (2, 1, 1)
        assert (deposit.__name__, deposit.__doc__) == (
            "deposit", "Add to a balance and note it in log and traces."
        )

    def test_of_a_transaction_it_waits_for_the_whole(self, db: inmem.Database) -> None:
        txn = db.transaction("a")
        assert transfer(txn, "b", 2) == (-2, 2)
        assert transfer(txn, other="b", amount=1) == (-3, 3)
        assert not db.kv.exists("a", "balance")
        txn.abort()
        assert (db.events.count("a"), db.events.count("b")) == (0, 0)
        with db.transaction("a") as txn:
            transfer(txn, "b", 2)
            transfer(txn, "b", 1)
        assert (db.kv.get("a", "balance"), db.kv.get("b", "balance"), db.events.count("b")) == (-3, 3, 2)

    def test_of_a_scope_it_is_tried_again(self, db: inmem.Database) -> None:
        attempts = []

        @inmem.transactional
        def disturbed(txn: Any) -> int:
            attempts.append(txn)
            found: int = deposit(txn, 1)
            if len(attempts) < 3:
                db.kv.add("a", "balance", 10)
            return found

        assert disturbed(db.run("a")) == 21
        assert len(attempts) == 3
        assert (db.kv.get("a", "balance"), db.events.count("a"), db.traces.count("a")) == (21, 1, 1)

    def test_in_a_shared_scope(self, db: inmem.Database) -> None:
        assert transfer(db.shared("agent"), "b", 1) == (-1, 1)
        assert db.shared("agent").kv.get("balance") == -1


def test_a_snapshot_is_one_moment_of_all_five_and_of_other_runs(db: inmem.Database) -> None:
    for run_id in ("a", "b"):
        with db.transaction(run_id) as txn:
            work(txn, 0)
    with db.snapshot("a") as view:
        version = view.version
        for run_id in ("a", "b"):
            with db.transaction(run_id) as txn:
                work(txn, 1)
        db.runs.archive_run("a")
        db.runs.delete_run("b")
        db.shared("app").kv.put("k", 1)
        for run_id in ("a", "b"):
            assert totals(view.at(run_id)) == [1] * 5
        assert view.runs.list_runs() == ["a", "b"]
        assert [run.run_id for run in view.runs.query_runs(status=RunStatus.ACTIVE)] == ["a", "b"]
        assert view.runs.get_stats().total == 2
        assert not view.at(db.shared("app")).kv.exists("k")
        assert view.version == version
    with db.snapshot("a") as view:
        assert totals(view) == [2] * 5
        assert (totals(view.at("b")), view.runs.list_runs()) == ([0] * 5, [])


def test_an_unknown_commit_is_resolved_as_what_its_call_returns(store_path: Path) -> None:
    """The writer is stopped past the deadline; each call's error gives its own result later, once."""
    with inmem.open(store_path), inmem.open(store_path, timeout_s=0.25) as db:
        db.cells.set("r", "c", 1)
        db.cells.set("r", "d", 1)
        db.runs.create_run(run_id="gone")
        db.kv.put("gone", "k", 1)
        pid = writer_pid(store_path)
        scope = db.run("r")
        calls: list[tuple[Callable[[], Any], Callable[[Any], bool]]] = [
            (lambda: db.cells.init("r", "new", 1), lambda v: v == 1),
            (lambda: db.cells.set("r", "c", 2), lambda v: v == 2),
            (lambda: db.cells.cas("r", "c", 2, 3), lambda v: v == 3),
            (lambda: db.cells.delete("r", "d"), lambda v: v is True),
            (lambda: db.cells.transition("r", "c", lambda s: (4, "mine")), lambda v: v == "mine"),
            (lambda: db.traces.record("r", Thought("x"), id="t"), lambda v: v == "t"),
            (lambda: db.traces.record("r", Thought("x")), lambda v: db.traces.get("r", v) is not None),
            (lambda: db.traces.record_child("r", "t", Thought("x"), id="u"), lambda v: v == "u"),
            (lambda: db.traces.record_many("r", [NewTrace(Thought("x"), "v")]), lambda v: v == ["v"]),
            (lambda: db.runs.create_run(run_id="r", tags=["t"]), lambda v: v == db.runs.get_run("r")),
            (lambda: scope.runs.pause_run(), lambda v: v == db.runs.get_run("r")),
            (lambda: db.runs.update_metadata("r", {"k": 1}), lambda v: v == db.runs.get_run("r")),
            (lambda: db.runs.delete_run("gone"), lambda v: v == inmem.DeletedRun("gone", 1, 0, 0, 0, True)),
        ]
        for number, (call, check) in enumerate(calls):
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(inmem.CommitUnknownError) as first:
                    call()
                with pytest.raises(inmem.CommitUnknownError) as second:
                    first.value.resend(0.02)
            finally:
                os.kill(pid, signal.SIGCONT)
            found = second.value.resend(20.0)
            assert check(found), (number, found)
        assert db.cells.read("r", "c").version == 4  # type: ignore[union-attr]
        assert db.traces.count("r") == 4
        assert db.runs.get_run("r").version == 3  # type: ignore[union-attr]


class Name(str, enum.Enum):  # noqa: UP042 - whose str() is not what it holds
    A = "aa"


def test_a_name_is_what_it_holds_and_not_what_its_str_says(db: inmem.Database) -> None:
    db.runs.create_run(run_id="up")
    db.runs.create_run(run_id=Name.A, tags=[Name.A], parent_run="up")
    db.kv.put(Name.A, "k", 1)
    db.traces.record(Name.A, Thought("x"), id=Name.A, tags=[Name.A])
    db.traces.record_child(Name.A, Name.A, Thought("y"), id="below")
    assert db.runs.list_runs() == ["aa", "up"]
    assert [run.tags for run in db.runs.query_runs(tags=[Name.A])] == [("aa",)]
    assert db.kv.get("aa", "k") == 1
    assert db.run(Name.A).prefix == db.run("aa").prefix
    assert [t.id for t in db.traces.query_by_tag("aa", "aa")] == ["aa"]
    assert [t.id for t in db.traces.get_children("aa", "aa")] == ["below"]
    assert type(db.runs.get_run("aa").run_id) is str  # type: ignore[union-attr]
    assert str(inmem.Namespace(agent=Name.A)) == "default/default/aa"
    assert db.runs.delete_run(Name.A).total == 4
