"""The numbered invariants of cells, traces, runs and of all together, each by its number."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import invariant_workers
import pytest
from forms import new_run
from invariants import Stop, contents, fill, rows
from support import Workers, in_parallel, in_threads, kill_writer, wait_until, writer_pid

import inmem
from inmem import Custom, Decision, ErrorTrace, NewTrace, Query, Thought, ToolCall
from inmem.keys import Key, TypeTag

TESTS = Path(__file__).parents[1]


@pytest.fixture
def db(home: Any) -> Iterator[inmem.Database]:
    """A namespace of its own."""
    with home.open(agent=new_run()) as database:
        yield database


def test_invariant_01_of_the_five_primitives_none_sees_keys_of_another(db: inmem.Database) -> None:
    fill(db, "r")
    for name in ("\x01", "\x03same", "\x13mark", "mark"):
        db.kv.put("r", name, 1)
        db.cells.set("r", name, 1)
    kv, events, cells, traces, run = contents(db, "r")
    names = ["\x01", "\x03same", "\x13mark", "mark", "same"]
    assert [name for name, _ in kv] == [name for name, _ in cells] == names
    assert [event.payload for event in events] == ["event"]
    assert [trace.id for trace in traces] == ["same"]
    assert run.tags == ("same",)
    assert db.runs.list_runs() == ["r"]


def test_invariant_02_the_same_name_in_two_runs_is_two_things(db: inmem.Database) -> None:
    runs = ["a", "a.b", "a-", "ab", "A"]
    for run_id in runs:
        fill(db, run_id)
    for run_id in runs:
        db.cells.set(run_id, "same", run_id)
        db.traces.record_child(run_id, "same", Thought(run_id))
        db.runs.update_metadata(run_id, {"mine": run_id})
    for run_id in runs:
        assert db.cells.read(run_id, "same").value == run_id  # type: ignore[union-attr]
        assert [trace.body for trace in db.traces.get_children(run_id, "same")] == [Thought(run_id)]
        assert db.traces.count(run_id) == 2
        assert db.runs.get_run(run_id).metadata == {"same": 1, "mine": run_id}  # type: ignore[union-attr]


def test_invariant_03_facades_of_cells_traces_and_runs_hold_no_state(db: inmem.Database) -> None:
    assert inmem.StateCell(db).init("r", "c", 1) == 1
    assert inmem.StateCell(db).cas("r", "c", 1, 2) == 2
    assert inmem.TraceStore(db).record("r", Thought("x"), id="t") == "t"
    assert inmem.TraceStore(db).count("r") == 1
    assert inmem.RunIndex(db).create_run(run_id="r").run_id == "r"
    assert inmem.RunIndex(db).list_runs() == ["r"]
    for facade in (inmem.StateCell(db), inmem.TraceStore(db), inmem.RunIndex(db)):
        held = [name for cls in type(facade).__mro__ for name in vars(cls).get("__slots__", ())]
        assert held == ["_database"]
        with pytest.raises(AttributeError):
            facade.extra = 1  # type: ignore[union-attr]


def test_invariant_04_values_keep_their_type_in_cells_traces_and_metadata(db: inmem.Database) -> None:
    values = [
        True, 1, 1.0, "1", b"1", None, False, 0, -0.0, "", b"", [True, 1, 1.0], {"k": [b"", "", None, {}]}
    ]
    db.runs.create_run(run_id="r", metadata={str(i): value for i, value in enumerate(values)})
    metadata = db.runs.get_run("r").metadata  # type: ignore[union-attr]
    for i, value in enumerate(values):
        db.cells.set("r", f"c{i}", value)
        trace_id = db.traces.record("r", Custom("t", value), metadata={"k": value})
        trace, state = db.traces.get("r", trace_id), db.cells.read("r", f"c{i}")
        assert trace is not None and state is not None
        assert isinstance(trace.body, Custom)
        for found in (state.value, trace.body.data, trace.metadata["k"], metadata[str(i)]):
            assert (repr(found), type(found)) == (repr(value), type(value))


def test_invariant_05_cells_traces_and_runs_are_listed_in_one_order(db: inmem.Database) -> None:
    rng = random.Random(5)
    names = ["a", "B", "a.b", "a-", "10", "9", "a_"]
    for run_id in ("r1", "r2", "r3"):
        rng.shuffle(names)
        for name in names:
            db.cells.set(run_id, name, 1)
            db.traces.record(run_id, Thought("x"), id=name, timestamp=7)
        assert db.cells.list(run_id) == sorted(names)
        assert [t.id for t in db.traces.list(run_id)] == sorted(names)
    for name in names:
        db.runs.create_run(run_id=name)
    assert db.runs.list_runs() == sorted(names)
    assert [run.run_id for run in db.runs.query_runs()] == names


def change_all(txn: inmem.Transaction) -> None:
    """One change in each of the five primitives."""
    txn.kv.put("new", 1)
    txn.events.append("new")
    txn.cells.set("same", "new")
    txn.cells.init("new", 1)
    txn.traces.record(Thought("new"), id="new", tags=["new"])
    txn.runs.pause_run()


def test_invariant_06_an_aborted_transaction_leaves_nothing_in_any_primitive(db: inmem.Database) -> None:
    fill(db, "r")
    fill(db, "other")
    before = rows(db)

    def step(txn: inmem.Transaction) -> None:
        change_all(txn)
        change_all(txn.at("other"))
        txn.at("third").runs.create_run()
        raise Stop

    with pytest.raises(Stop):
        db.transact("r", step)
    txn = db.transaction("r")
    change_all(txn)
    txn.abort()
    txn = db.transaction("r")
    change_all(txn)
    db.runs.add_tags("r", [])  # read by pause_run: conflict
    with pytest.raises(inmem.ConflictError):
        txn.commit()
    after = rows(db)
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed == {Key.run(db.namespace, "r")}
    assert db.cells.init("r", "new", 1) == 1
    assert db.events.append("r", "t").sequence == 1


def test_invariant_22_a_commit_over_all_five_is_seen_whole_or_not_at_all(db: inmem.Database) -> None:
    db.runs.create_run(run_id="r", metadata={"n": 0})
    db.cells.init("r", "n", 0)
    stop = threading.Event()
    seen: set[int] = set()

    def work(worker: int) -> None:
        if worker == 0:
            try:
                for i in range(1, 40):
                    with db.transaction("r") as txn:
                        txn.kv.put(f"k{i:03}", i)
                        txn.events.append("t", i)
                        txn.cells.cas("n", i, i)
                        txn.traces.record(Thought(str(i)), tags=["t"])
                        txn.runs.update_metadata({"n": i})
            finally:
                stop.set()
            return
        while not stop.is_set():
            with db.snapshot("r") as view:
                run, state = view.runs.get_run(), view.cells.read("n")
                assert run is not None and state is not None
                n = run.metadata["n"]
                assert view.kv.count() == view.events.count() == state.value == n
                assert view.traces.count() == len(view.traces.query_by_tag("t")) == n
                seen.add(n)

    in_threads(3, work)
    assert len(seen) > 1, "the readers saw something happen"


def test_invariant_23_events_and_traces_carry_all_that_a_replay_needs(db: inmem.Database) -> None:
    """A run is done once, then rebuilt in another from its log and its traces alone."""
    rng = random.Random(23)
    db.runs.create_run(run_id="done", tags=["t"])
    parent: str | None = None
    for i in range(30):

        def step(txn: inmem.Transaction, i: int = i, parent: str | None = parent) -> str:
            key, value = rng.choice("abc"), rng.choice([i, 1.5, None, b"raw", ["x", {"k": True}]])
            body = rng.choice([
                ToolCall("search", {"q": i}, [value], 0.5), Decision("which", [1, "2"], "2", "because"),
                Query("kv", key, i), Thought("hm", None), ErrorTrace("E", "m", bool(i % 2)),
                Custom("own", value),
            ])
            trace_id = txn.traces.record(
                body, parent_id=parent, tags=[key, "all"], metadata={"step": i, "value": value}
            )
            txn.kv.put(key, value)
            txn.cells.set("last", [i, value])
            txn.events.append("put", {"key": key, "value": value, "trace": trace_id})
            return trace_id

        recorded = db.transact("done", step)
        parent = recorded if i % 3 else None
    events, traces = db.events.read_range("done", 0), db.traces.list("done")

    by_id = {trace.id: trace for trace in traces}
    for i, event in enumerate(events):
        trace = by_id[event.payload["trace"]]
        with db.transaction("again") as txn:
            txn.traces.record(trace.body, id=trace.id, parent_id=trace.parent_id, tags=trace.tags,
                              metadata=trace.metadata, timestamp=trace.timestamp)
            txn.kv.put(event.payload["key"], event.payload["value"])
            txn.cells.set("last", [trace.metadata["step"], event.payload["value"]])
            txn.events.append(event.event_type, event.payload)
        assert event.sequence == i
    assert db.traces.list("again") == traces
    roots = db.traces.roots("done")
    assert 1 < len(roots) < 30
    for root in roots:
        trees = [list(db.traces.get_tree(run_id, root.id).walk()) for run_id in ("done", "again")]
        assert trees[0] == trees[1]
    again = db.events.read_range("again", 0)
    assert [(e.sequence, e.event_type, e.payload) for e in again] == [
        (e.sequence, e.event_type, e.payload) for e in events
    ]
    assert db.kv.list_with_values("again") == db.kv.list_with_values("done")
    mine, theirs = db.cells.read("again", "last"), db.cells.read("done", "last")
    assert mine is not None and theirs is not None
    assert (mine.value, mine.version) == (theirs.value, theirs.version)
    # Order and identity are in what was recorded, not in when it is read.
    assert [trace.metadata["step"] for trace in traces] == list(range(30))
    assert all(event.timestamp > 0 and len(event.hash) == 32 for event in events)


OPERATIONS: list[tuple[str, Callable[[inmem.Database], Any]]] = [
    ("KV", lambda db: db.kv.put("r", "k", 1)), ("KV", lambda db: db.kv.add("r", "n")),
    ("KV", lambda db: db.kv.delete("r", "same")), ("EVENT", lambda db: db.events.append("r", "t", 1)),
    ("STATE", lambda db: db.cells.set("r", "c", 1)), ("STATE", lambda db: db.cells.cas("r", "same", 1, 2)),
    ("STATE", lambda db: db.cells.transition("r", "same", lambda s: (1, 1))),
    ("STATE", lambda db: db.cells.delete("r", "same")),
    ("TRACE", lambda db: db.traces.record("r", Thought("x"), tags=["t"])),
    ("TRACE", lambda db: db.traces.record_many("r", [NewTrace(Thought("x"))])),
    ("RUN", lambda db: db.runs.add_tags("r", ["new"])), ("RUN", lambda db: db.runs.complete_run("r")),
    ("RUN", lambda db: db.runs.archive_run("r")),
    ("RUN", lambda db: db.runs.create_run(run_id="s", parent_run="r")),
]


def test_invariant_24_none_of_the_five_touches_the_data_of_another(db: inmem.Database) -> None:
    fill(db, "r")
    for primitive, operation in OPERATIONS:
        before = rows(db)
        operation(db)
        after = rows(db)
        changed = {Key(k).split_key()[1] for k in before | after if before.get(k) != after.get(k)}
        assert changed, primitive
        assert {TypeTag(tag).name.split("_")[0] for tag in changed} == {primitive}


def test_invariant_25_histories_of_several_processes_are_serial(store_path: Path, workers: Workers) -> None:
    """The log of a transaction that read everything gives the order: replayed in it, all is as it was."""
    with inmem.open(store_path) as db:
        done = in_parallel(workers, invariant_workers.move, 3, store_path, 25)
        events = db.events.read_range("bank", 0)
        assert sorted(number for numbers in done for number in numbers) == list(range(75))
        balances = dict.fromkeys(invariant_workers.ACCOUNTS, 0)
        for event in events:
            index, i, source, target = event.payload
            assert done[index][i] == event.sequence
            balances[source] -= 1
            balances[target] += 1
        assert dict(db.kv.list_with_values("bank")) == balances


def test_invariant_26_no_acknowledged_commit_is_lost_or_doubled(store_path: Path, workers: Workers) -> None:
    """In none of the primitives, over the death of three writers under three programs."""
    with inmem.open(store_path) as db:
        for index in range(3):
            workers.start(invariant_workers.count, index, store_path, 60)
        for at in (10, 25, 40):
            wait_until(lambda at=at: (workers.check(), workers.words.total(3) >= at * 2)[1], "work goes on")
            kill_writer(store_path)
        acked = [step for steps in workers.results() for step in steps]
        assert len(acked) == 180
        assert sorted(total for total, _, _, _ in acked) == list(range(1, 181))
        assert sorted(sequence for _, sequence, _, _ in acked) == list(range(180))
        assert db.kv.get("r", "n") == db.events.count("r") == db.traces.count("r") == 180
        assert {trace.id for trace in db.traces.list("r")} == {trace_id for _, _, _, trace_id in acked}
        for index in range(3):
            state = db.cells.read("r", f"c{index}")
            assert state is not None
            assert (state.value, state.version) == (59, 60)
        assert db.events.verify_chain("r").is_valid
        assert db.check().problems == []


def test_invariant_27_reads_go_on_while_the_writer_is_stopped_or_dead(store_path: Path) -> None:
    with inmem.open(store_path), inmem.open(store_path, timeout_s=0.3) as db:
        fill(db, "r")
        before = contents(db, "r")
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(inmem.CommitUnknownError) as caught:
                db.kv.put("r", "late", 1)
            for _ in range(50):
                assert contents(db, "r") == before
            with db.transaction("r") as txn:  # which only reads: it sends nothing
                assert txn.cells.read("same").value == "cell"  # type: ignore[union-attr]
            with inmem.open(store_path) as other:
                assert contents(other, "r") == before
        finally:
            os.kill(pid, signal.SIGCONT)
        assert caught.value.resend(20.0) == db.kv.get_versioned("r", "late").version  # type: ignore[union-attr]
        before = contents(db, "r")
        assert kill_writer(store_path) == pid
        for _ in range(50):
            assert contents(db, "r") == before
        assert writer_pid(store_path) == 0, "reading starts no writer"


def test_every_invariant_has_a_test_that_bears_its_number() -> None:
    names = [
        name for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"def (test_invariant_\w+)", path.read_text())
    ]
    numbers = {int(name.removeprefix("test_invariant_")[:2]) for name in names}
    assert numbers == set(range(1, 28))
    assert all(re.fullmatch(r"test_invariant_\d\d_\w+", name) for name in names)
