"""The numbered invariants of cells, traces, runs and of all together, each by its number."""

from __future__ import annotations

import dataclasses
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
from support import Workers, in_parallel, kill_writer, wait_until, writer_pid

import inmem
from inmem import Custom, Decision, ErrorTrace, NewTrace, Query, RunStatus, Thought, ToolCall
from inmem.keys import MAX_KEY_BYTES, Key, TypeTag, owner_of
from inmem.primitives.server import INDEX_TAGS, entries_of
from inmem.record import payload_of

TESTS = Path(__file__).parents[1]


@pytest.fixture
def db(home: Any) -> Iterator[inmem.Database]:
    """A namespace of its own."""
    with home.open(agent=new_run()) as database:
        yield database


def rows(db: inmem.Database) -> dict[bytes, bytes]:
    """All stored records of a database's namespace, raw."""
    found = db.engine.latest().scan(b"\0", b"\xff" * MAX_KEY_BYTES)
    return {bytes(key): bytes(record) for key, record in found if key.startswith(db.namespace.prefix())}


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def fill(db: inmem.Database, run_id: str, name: str = "same") -> None:
    """One name in all five primitives."""
    db.runs.create_run(run_id=run_id, tags=[name], metadata={name: 1})
    db.kv.put(run_id, name, "kv")
    db.events.append(run_id, name, "event")
    db.cells.init(run_id, name, "cell")
    db.traces.record(run_id, Custom(name, "trace"), id=name, tags=[name])


def contents(db: inmem.Database, run_id: str) -> list[Any]:
    """What each of the five primitives says of a run."""
    with db.snapshot(run_id) as view:
        return [
            view.kv.list_with_values(), view.events.read_range(0),
            [(name, view.cells.read(name)) for name in view.cells.list()],
            view.traces.list(), view.runs.get_run(),
        ]


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


class Stop(Exception):
    pass


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


def test_invariant_12_cell_versions_only_grow(db: inmem.Database) -> None:
    rng = random.Random(12)
    highest: dict[str, int] = {}
    for i in range(120):
        name = rng.choice("abc")
        if rng.random() < 0.3:
            db.cells.delete("r", name)
            continue
        version = db.cells.set("r", name, i)
        assert version > highest.get(name, 0)
        for old in range(version):
            if rng.random() < 0.1:
                with pytest.raises(inmem.VersionMismatchError):
                    db.cells.cas("r", name, old, "stale")
        highest[name] = version
    assert db.cells.init("fresh", "a", 1) == 1


def test_invariant_12_also_after_recovery(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        for i in range(5):
            db.cells.set("r", "c", i)
        db.cells.delete("r", "c")
        kill_writer(store_path)
        assert db.cells.init("r", "c", "again") == 6
        kill_writer(store_path)
        with pytest.raises(inmem.VersionMismatchError):
            db.cells.cas("r", "c", 5, "stale")
        assert db.cells.cas("r", "c", 6, "new") == 7


def test_invariant_13_no_update_is_lost_under_concurrent_cas(db: inmem.Database) -> None:
    version = db.cells.init("r", "n", 0)
    won: list[list[int]] = [[] for _ in range(4)]

    def work(worker: int) -> None:
        while len(won[worker]) < 40:
            state = db.cells.read("r", "n")
            assert state is not None
            try:
                won[worker].append(db.cells.cas("r", "n", state.version, state.value + 1))
            except inmem.VersionMismatchError as error:
                assert error.expected == state.version
                assert error.actual > state.version

    in_threads(4, work)
    assert sorted(v for versions in won for v in versions) == list(range(version + 1, version + 161))
    state = db.cells.read("r", "n")
    assert state is not None
    assert (state.value, state.version) == (160, version + 160)


def test_invariant_14_a_second_init_fails_and_changes_nothing(db: inmem.Database) -> None:
    winners: list[int] = []

    def work(worker: int) -> None:
        try:
            db.cells.init("r", "c", worker)
            winners.append(worker)
        except inmem.CellExistsError as error:
            assert (error.name, error.version) == ("c", 1)

    in_threads(6, work)
    assert len(winners) == 1
    before = rows(db)
    with db.transaction("r") as txn:
        for cells in (txn.cells, db.run("r").cells):
            with pytest.raises(inmem.CellExistsError):
                cells.init("c", "second")
    assert rows(db) == before
    assert db.cells.read("r", "c").value == winners[0]  # type: ignore[union-attr]


def test_invariant_15_transition_may_run_its_function_again_and_is_still_right(db: inmem.Database) -> None:
    db.cells.init("r", "n", 0)
    seen: list[int] = []

    def increment(state: inmem.State) -> tuple[int, int]:
        seen.append(state.version)
        if len(seen) <= 3:
            db.cells.set("r", "n", state.value + 10)  # somebody else, in between
        return state.value + 1, state.value

    assert db.cells.transition("r", "n", increment) == 30, "the result is that of the run that counted"
    assert seen == [1, 2, 3, 4]
    assert db.cells.read("r", "n").value == 31  # type: ignore[union-attr]

    def work(_: int) -> None:
        for _ in range(40):
            db.cells.transition("r", "n", lambda state: (state.value + 1, None))

    in_threads(4, work)
    assert db.cells.read("r", "n").value == 31 + 160  # type: ignore[union-attr]


A, C, F, X, P, Z = RunStatus
ALLOWED = {(A, C), (A, F), (A, X), (A, P), (A, Z), (P, A), (P, X), (P, Z), (C, Z), (F, Z), (X, Z)}


def test_invariant_16_the_status_table_all_36_pairs(db: inmem.Database) -> None:
    assert [A, C, F, X, P, Z] == [
        RunStatus.ACTIVE, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PAUSED,
        RunStatus.ARCHIVED,
    ]
    allowed = set()
    for before in RunStatus:
        for after in RunStatus:
            for how in ("commit", "transaction"):
                run_id = f"{before}-{after}-{how}"
                db.runs.create_run(run_id=run_id)
                if before is not A:
                    db.runs.update_status(run_id, before)
                old = db.runs.get_run(run_id)
                try:
                    if how == "commit":
                        db.runs.update_status(run_id, after)
                    else:
                        with db.transaction(run_id) as txn:
                            txn.runs.update_status(after)
                    allowed.add((before, after))
                    assert db.runs.get_run(run_id).status is after  # type: ignore[union-attr]
                except inmem.InvalidTransitionError as error:
                    assert (error.from_status, error.to_status) == (before, after)
                    assert db.runs.get_run(run_id) == old
    assert allowed == ALLOWED
    assert {(b, a) for b in RunStatus for a in RunStatus if inmem.is_valid_transition(b, a)} == ALLOWED


def test_invariant_17_what_has_ended_never_comes_back(db: inmem.Database) -> None:
    for ended in (C, F, X, Z):
        run_id = ended.value
        db.runs.create_run(run_id=run_id)
        db.runs.update_status(run_id, ended)
        old = db.runs.get_run(run_id)
        for back in (A, P):
            with pytest.raises(inmem.InvalidTransitionError):
                db.runs.update_status(run_id, back)
            with pytest.raises(inmem.InvalidTransitionError), db.transaction(run_id) as txn:
                txn.runs.update_status(back)
        with pytest.raises(inmem.RunExistsError):
            db.runs.create_run(run_id=run_id)
        assert db.runs.get_run(run_id) == old
        db.runs.delete_run(run_id)
        with pytest.raises(inmem.RunDeletedError):
            db.runs.create_run(run_id=run_id)
        assert db.runs.get_run(run_id) is None


def test_invariant_18_archived_is_terminal_and_its_data_readable(db: inmem.Database) -> None:
    fill(db, "r")
    before = contents(db, "r")
    db.runs.archive_run("r")
    for status in RunStatus:
        with pytest.raises(inmem.InvalidTransitionError):
            db.runs.update_status("r", status)
    assert contents(db, "r")[:4] == before[:4]
    assert db.runs.get_run("r").status is Z  # type: ignore[union-attr]
    assert (db.runs.query_runs(), db.runs.list_runs()) == ([], [])
    assert [run.run_id for run in db.runs.query_runs(include_archived=True)] == ["r"]


NEIGHBOURS = ["a.b", "a-", "ab", "a:", "A", "aa", "a0"]


def test_invariant_19_delete_cascades_spares_others_and_fences(db: inmem.Database) -> None:
    for run_id in ("a", *NEIGHBOURS):
        fill(db, run_id)
    db.shared("agent").kv.put("shared", 1)
    before = rows(db)
    assert db.runs.delete_run("a") == inmem.DeletedRun("a", 1, 1, 1, 1, True)
    owner = db.namespace.run_prefix("a")
    gone = {key for key in before if owner_of(key) == owner}
    gone |= {k for k in before if Key(k).split_key()[0] == db.namespace.prefix()
             and Key(k).split_key()[1] in INDEX_TAGS and Key(k).split_key()[2].split(b"\0", 1)[1][8:] == b"a"}
    assert rows(db) == {key: record for key, record in before.items() if key not in gone}
    txn = db.transaction("ab")
    txn.kv.put("k", 1)
    txn.at("a").events.append("late")
    for call in (txn.commit, lambda: db.cells.set("a", "c", 1), lambda: db.runs.create_run(run_id="a")):
        with pytest.raises(inmem.RunDeletedError):
            call()
    assert not db.kv.exists("ab", "k")


def test_invariant_19_also_after_recovery(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        fill(db, "a")
        fill(db, "ab")
        db.runs.delete_run("a")
        kill_writer(store_path)
        for call in (lambda: db.kv.put("a", "k", 1), lambda: db.runs.create_run(run_id="a")):
            with pytest.raises(inmem.RunDeletedError):
                call()
        assert len(db.kv.list("ab")) == 1
        assert db.check().problems == []


def test_invariant_20_status_changes_commit_or_roll_back_with_the_rest(db: inmem.Database) -> None:
    fill(db, "r")
    with pytest.raises(Stop), db.transaction("r") as txn:
        txn.runs.complete_run()
        txn.kv.put("done", True)
        raise Stop
    assert (db.runs.get_run("r").status, db.kv.exists("r", "done")) == (A, False)  # type: ignore[union-attr]
    txn = db.transaction("r")
    txn.runs.complete_run()
    txn.kv.put("done", txn.kv.get("same"))
    db.kv.put("r", "same", "changed")
    with pytest.raises(inmem.ConflictError):
        txn.commit()
    assert (db.runs.get_run("r").status, db.kv.exists("r", "done")) == (A, False)  # type: ignore[union-attr]
    with db.transaction("r") as txn:
        txn.runs.complete_run()
        txn.kv.put("done", True)
    assert (db.runs.get_run("r").status, db.kv.exists("r", "done")) == (C, True)  # type: ignore[union-attr]
    assert [run.run_id for run in db.runs.query_runs(status=C)] == ["r"]


def test_invariant_21_every_index_equals_what_the_records_ask_for(db: inmem.Database) -> None:
    rng = random.Random(21)
    runs = ["a", "a.b", "ab", "b"]
    for i in range(300):
        run_id = rng.choice(runs)
        step = rng.randrange(7)
        try:
            if step == 0:
                parent_run = rng.choice([None, *runs])
                db.runs.create_run(run_id=run_id, tags=rng.sample("xyz", 2), parent_run=parent_run)
            elif step == 1:
                db.runs.update_status(run_id, rng.choice(list(RunStatus)))
            elif step == 2:
                db.runs.add_tags(run_id, [rng.choice("xyz")])
            elif step == 3:
                db.events.append(run_id, rng.choice("xyz"), i)
            elif step == 4:
                parents = [t.id for t in db.traces.list(run_id)]
                body = rng.choice([Thought("x"), Custom("y", 1)])
                db.traces.record(run_id, body, tags=rng.sample("xyz", 2), timestamp=rng.choice([None, 1, 2]),
                                 parent_id=rng.choice([None, *parents]))
            elif step == 5:
                with db.transaction(run_id) as txn:
                    root = txn.traces.record(Thought("x"), tags=["t"])
                    txn.traces.record_child(root, Thought("y"))
                    txn.runs.add_tags(["t"])
                    txn.events.append("t")
            elif run_id == "ab" and i > 150:
                db.runs.delete_run(run_id)
        except (inmem.AlreadyExistsError, inmem.NotFoundError, inmem.InvariantError, inmem.InvalidRunIdError):
            continue
    stored, expected = set(), set()
    for key, record in rows(db).items():
        prefix, tag, rest = Key(key).split_key()
        if tag in INDEX_TAGS:
            stored.add(key)
        else:
            expected.update(entries_of(prefix, tag, rest, payload_of(record)))
    assert stored == expected
    assert {Key(key).split_key()[1] for key in stored} == INDEX_TAGS, "every index took part"
    assert dataclasses.astuple(db.repair_indices()) == (0, 0, [])
    assert db.check().problems == []


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
                assert view.kv.count() == view.events.len() == state.value == n
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
        assert db.kv.get("r", "n") == db.events.len("r") == db.traces.count("r") == 180
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
