"""What a RunIndex promises, through every form to write and every form to read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forms import ElsewhereForm, Form, ScopeForm, SnapshotForm, TransactionForm, new_run

import inmem
from inmem import RunStatus


class BoundRuns:
    """The facade with the run id filled in where a call is about one run."""

    def __init__(self, facade: inmem.RunIndex, run_id: str) -> None:
        self._facade = facade
        self._run_id = run_id

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._facade, name)
        if name in ("query_runs", "list_runs", "get_stats"):
            return method
        if name == "create_run":
            return functools.partial(method, run_id=self._run_id)
        return functools.partial(method, self._run_id)


class RunFacadeForm(Form):
    name = "facade"

    def __call__(self, fn: Callable[[Any], Any]) -> Any:
        return fn(BoundRuns(self.db.runs, self.run_id))


WRITERS = (RunFacadeForm, ScopeForm, TransactionForm, ElsewhereForm)
READERS = (RunFacadeForm, ScopeForm, TransactionForm, ElsewhereForm, SnapshotForm)
WITHIN = "within"


class Runs:
    """A namespace of its own, one form to write and one to read; `at` gives those of another run."""

    def __init__(self, db: inmem.Database, param: Any) -> None:
        self.db = db
        self._param = param
        self._txn = db.transaction("base") if param == WITHIN else None

    def write(self, run_id: str, fn: Callable[[Any], Any]) -> Any:
        if self._txn is not None:
            return fn(self._txn.at(run_id).runs)
        return self._param[0](self.db, run_id, "runs")(fn)

    def read(self, run_id: str, fn: Callable[[Any], Any]) -> Any:
        if self._txn is not None:
            return self.write(run_id, fn)
        return self._param[1](self.db, run_id, "runs")(fn)

    def create(self, run_id: str, **options: Any) -> inmem.RunMetadata:
        run: inmem.RunMetadata = self.write(run_id, lambda runs: runs.create_run(**options))
        return run

    def find(self, **conditions: Any) -> list[str]:
        return [run.run_id for run in self.read("any", lambda runs: runs.query_runs(**conditions))]

    def close(self) -> None:
        if self._txn is not None:
            self._txn.commit()


PAIRS = [(writer, reader) for writer in WRITERS for reader in READERS]


@pytest.fixture
def db(home: Any) -> Iterator[inmem.Database]:
    with home.open(agent=new_run()) as database:
        yield database


@pytest.fixture(params=[*PAIRS, WITHIN], ids=[f"{w.name}-{r.name}" for w, r in PAIRS] + [WITHIN])
def store(request: pytest.FixtureRequest, db: inmem.Database) -> Iterator[Runs]:
    some = Runs(db, request.param)
    yield some
    some.close()


def test_a_new_run(store: Runs) -> None:
    store.create("up")
    made = store.create("r", parent_run="up", tags=["b", "a", "b"], metadata={"k": [1]})
    found = store.read("r", lambda runs: runs.get_run())
    for run in (made, found):
        assert (run.run_id, run.parent_run, run.status, run.tags) == ("r", "up", RunStatus.ACTIVE, ("b", "a"))
        assert (run.metadata, run.error, run.version, run.completed_at) == ({"k": [1]}, None, 1, None)
        assert run.created_at == run.updated_at
    assert store.find() == ["up", "r"]


def test_what_is_absent(store: Runs) -> None:
    assert store.read("r", lambda runs: runs.get_run()) is None
    for call in (lambda r: r.query_runs(), lambda r: r.list_runs(), lambda r: r.get_child_runs()):
        assert store.read("r", call) == []
    assert store.read("r", lambda runs: runs.get_stats()) == inmem.RunStats(0, dict.fromkeys(RunStatus, 0))
    for call in (
        lambda r: r.update_status(RunStatus.PAUSED), lambda r: r.complete_run(), lambda r: r.fail_run("e"),
        lambda r: r.cancel_run(), lambda r: r.pause_run(), lambda r: r.resume_run(),
        lambda r: r.archive_run(),
        lambda r: r.add_tags(["t"]), lambda r: r.update_metadata({}),
    ):
        with pytest.raises(inmem.RunNotFoundError) as caught:
            store.write("r", call)
        assert caught.value.run_id == "r"
    assert store.find(include_archived=True) == []


def test_creating_it_again_changes_nothing(store: Runs) -> None:
    store.create("r", tags=["kept"])
    with pytest.raises(inmem.RunExistsError) as caught:
        store.create("r", tags=["new"])
    assert caught.value.run_id == "r"
    assert store.read("r", lambda runs: runs.get_run()).tags == ("kept",)
    assert store.find(tags=["new"]) == []


def test_a_parent_must_exist_and_be_another(store: Runs) -> None:
    with pytest.raises(inmem.RunNotFoundError) as caught:
        store.create("r", parent_run="up")
    assert caught.value.run_id == "up"
    with pytest.raises(inmem.InvalidRunIdError, match="parent_run"):
        store.create("r", parent_run="r")
    assert store.find() == []


STEPS: list[tuple[str, tuple[Any, ...], RunStatus]] = [
    ("pause_run", (), RunStatus.PAUSED), ("resume_run", (), RunStatus.ACTIVE),
    ("fail_run", ("it broke",), RunStatus.FAILED), ("archive_run", (), RunStatus.ARCHIVED),
]


def test_a_life(store: Runs) -> None:
    store.create("r", tags=["a"])
    store.write("r", lambda runs: runs.add_tags(["b", "a"]))
    store.write("r", lambda runs: runs.update_metadata({"k": 1}))
    store.write("r", lambda runs: runs.update_metadata({"l": 2}))
    for i, (method, arguments, status) in enumerate(STEPS):
        made = store.write("r", lambda runs, m=method, a=arguments: getattr(runs, m)(*a))
        found = store.read("r", lambda runs: runs.get_run())
        for run in (made, found):
            assert (run.status, run.version, run.tags, run.metadata) == (
                status, 5 + i, ("a", "b"), {"k": 1, "l": 2}
            )
            assert run.error == ("it broke" if i >= 2 else None)
            assert (run.completed_at is not None) == (i >= 2)
        assert store.find(status=status) == ["r"]
        assert store.find() == ([] if status is RunStatus.ARCHIVED else ["r"])
        stats = store.read("r", lambda runs: runs.get_stats())
        assert stats == inmem.RunStats(1, {s: int(s is status) for s in RunStatus})


@pytest.mark.parametrize("method", ["complete_run", "cancel_run"])
def test_other_ends(store: Runs, method: str) -> None:
    store.create("r")
    ended = store.write("r", lambda runs: getattr(runs, method)())
    assert ended.completed_at is not None
    with pytest.raises(inmem.InvalidTransitionError) as caught:
        store.write("r", lambda runs: runs.resume_run())
    assert (caught.value.from_status, caught.value.to_status) == (ended.status, "active")
    assert store.read("r", lambda runs: runs.get_run()).version == 2


def test_a_status_may_be_given_by_its_value(store: Runs) -> None:
    store.create("r")
    assert store.write("r", lambda runs: runs.update_status("paused")).status is RunStatus.PAUSED
    assert store.find(status="paused") == ["r"]


RUNS: dict[str, dict[str, Any]] = {
    "up": {"tags": ["x"]}, "a": {"tags": ["x", "y"], "parent_run": "up"},
    "ab": {"tags": ["xy"], "parent_run": "up"},
    "a.b": {"tags": ["y"], "parent_run": "a"}, "z": {},
}


@pytest.fixture
def filled(store: Runs) -> Runs:
    for run_id, options in RUNS.items():
        store.create(run_id, **options)
    store.write("ab", lambda runs: runs.pause_run())
    store.write("z", lambda runs: runs.archive_run())
    return store


@pytest.mark.parametrize(("conditions", "expected"), [
    ({}, ["up", "a", "ab", "a.b"]),
    ({"include_archived": True}, ["up", "a", "ab", "a.b", "z"]),
    ({"status": RunStatus.ARCHIVED}, ["z"]), ({"status": RunStatus.PAUSED}, ["ab"]),
    ({"status": RunStatus.FAILED}, []),
    ({"tags": ["x"]}, ["up", "a"]), ({"tags": ["y", "x"]}, ["a"]), ({"tags": ("x",)}, ["up", "a"]),
    ({"tags": {"x"}}, ["up", "a"]), ({"tags": ["q"]}, []), ({"tags": ["x", "xy"]}, []),
    ({"parent_run": "up"}, ["a", "ab"]), ({"parent_run": "u"}, []),
    ({"parent_run": "up", "tags": ["x"]}, ["a"]), ({"parent_run": "up", "status": RunStatus.PAUSED}, ["ab"]),
    ({"status": RunStatus.ACTIVE, "tags": ["y"]}, ["a", "a.b"]),
    ({"limit": 2}, ["up", "a"]), ({"limit": 2, "reverse": True}, ["a.b", "ab"]), ({"limit": 0}, []),
    ({"limit": 1, "tags": ["y"], "reverse": True}, ["a.b"]), ({"limit": 9}, ["up", "a", "ab", "a.b"]),
    ({"created_after": 0}, ["up", "a", "ab", "a.b"]), ({"created_before": 0}, []),
    ({"created_after": (1 << 63) - 1}, []), ({"created_after": 5, "created_before": 5}, []),
    ({"created_after": 9, "created_before": 5}, []),
])
def test_queries(filled: Runs, conditions: dict[str, Any], expected: list[str]) -> None:
    assert filled.find(**conditions) == expected
    query = inmem.RunQuery(**conditions)
    assert [run.run_id for run in filled.read("any", lambda runs: runs.query_runs(query))] == expected


@pytest.mark.parametrize("form", ["facade", "scope", "transaction", "snapshot"])
def test_list_runs_and_query_runs_agree(home: Any, form: str) -> None:
    """They find the same runs: the ids in order, and the records as the runs were created."""
    with home.open(agent=f"agree-{form}") as db:
        for run in ("d", "b", "a", "c", "e"):
            db.runs.create_run(run_id=run)
        db.kv.put("used", "k", 1)
        db.runs.archive_run("b")
        db.runs.fail_run("c", "x")
        db.runs.delete_run("e")

        def compare(runs: Any) -> None:
            for archived, ids in ((False, ["a", "c", "d"]), (True, ["a", "b", "c", "d"])):
                records = runs.query_runs(include_archived=archived)
                assert runs.list_runs(include_archived=archived) == sorted(r.run_id for r in records) == ids
                assert [*runs.iter_runs(include_archived=archived)] == records
                assert runs.list_runs(include_archived=archived, reverse=True) == ids[::-1]
                assert [r.run_id for r in records] == [run for run in "dbac" if run in ids]
                every = runs.list_runs(include_archived=archived, include_uncreated=True)
                assert every == [*ids, "used"], "which has no record that could be found"

        if form == "facade":
            compare(db.runs)
        elif form == "scope":
            compare(db.run("a").runs)
        elif form == "transaction":
            db.transact("a", lambda txn: compare(txn.runs))
        else:
            with db.snapshot("a") as view:
                compare(view.runs)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_limit_bounds_what_is_read_of_runs_never_created(reverse: bool) -> None:
    """Pages of them cost what they hold, however many runs there are before and after."""
    names = [f"run-{number:03}" for number in range(300)]
    with inmem.open() as db:
        for name in (*names, "run-1", "run-1.0"):
            db.kv.put(name, "k", 1)
        db.shared("agent").kv.put("k", 1)
        names = sorted([*names, "run-1", "run-1.0"], reverse=reverse)
        found: list[str] = []
        with db.snapshot("x") as view:
            looks = count_scans(view.runs)
            while True:
                looks.clear()
                page = view.runs.list_runs(
                    include_uncreated=True, limit=7, reverse=reverse, start_after=found[-1] if found else None
                )
                assert len(looks) < 20, "it reads no further"
                if not page:
                    break
                found += page
        assert found == names == db.runs.list_runs(include_uncreated=True, reverse=reverse)


def count_scans(runs: Any) -> list[int]:
    """Notes each range that these runs read from now on."""
    looks: list[int] = []
    view = runs._view
    scan = view.scan

    def counted(*arguments: Any, **options: Any) -> Any:
        looks.append(1)
        return scan(*arguments, **options)

    view.scan = counted
    return looks


def test_times_of_creation_are_a_half_open_range(filled: Runs) -> None:
    times = {run_id: filled.read(run_id, lambda runs: runs.get_run()).created_at for run_id in RUNS}
    expected = [n for n in ("up", "a", "ab", "a.b") if times["a"] <= times[n] < times["a.b"]]
    assert filled.find(created_after=times["a"], created_before=times["a.b"]) == expected
    assert "a.b" not in filled.find(created_before=times["a.b"])
    assert "a.b" in filled.find(created_after=times["a.b"])


@pytest.mark.parametrize(("options", "expected"), [
    ({}, ["a", "a.b", "ab", "up"]), ({"include_archived": True}, ["a", "a.b", "ab", "up", "z"]),
    ({"limit": 2}, ["a", "a.b"]), ({"reverse": True, "limit": 1}, ["up"]), ({"limit": 0}, []),
])
def test_ids_in_byte_order(filled: Runs, options: dict[str, Any], expected: list[str]) -> None:
    assert filled.read("any", lambda runs: runs.list_runs(**options)) == expected


def test_runs_that_were_never_created_are_found_by_their_data(db: inmem.Database) -> None:
    for run_id in ("up", "ab", "z"):
        db.runs.create_run(run_id=run_id)
    db.runs.archive_run("z")
    db.events.append("a.a", "step")
    db.cells.init("up", "cell", 1)
    db.kv.put("z", "key", 1)
    db.shared("agent").kv.put("key", 1)
    with db.transaction("a") as txn:
        txn.kv.put("key", 1)
        for reads in (txn.runs, txn.at("up").runs):
            assert reads.list_runs(include_uncreated=True) == ["a", "a.a", "ab", "up"]
    expected = ["a", "a.a", "ab", "up", "z"]
    with db.snapshot("any") as view:
        for runs in (view.runs, db.runs, db.run("any").runs):
            assert runs.list_runs(include_uncreated=True, include_archived=True) == expected
            assert runs.list_runs(include_uncreated=True) == expected[:-1], "z is archived"
            assert runs.list_runs(include_uncreated=True, reverse=True, limit=2) == ["up", "ab"]
            assert runs.list_runs(include_uncreated=True, limit=0) == []
            assert runs.list_runs() == ["ab", "up"]
    with pytest.raises(inmem.ConflictError), db.transaction("b") as txn:
        txn.kv.put("seen", txn.runs.list_runs(include_uncreated=True))
        db.kv.put("c", "key", 1)  # a run that was not there


def test_children(filled: Runs) -> None:
    def children(run_id: str, **options: Any) -> list[str]:
        return [run.run_id for run in filled.read(run_id, lambda runs: runs.get_child_runs(**options))]

    assert children("up") == ["a", "ab"]
    assert children("up", reverse=True, limit=1) == ["ab"]
    assert children("a") == ["a.b"]
    assert children("z") == []
    filled.write("a.b", lambda runs: runs.archive_run())
    assert children("a") == ["a.b"], "archived ones too"


def test_stats(filled: Runs) -> None:
    assert filled.read("any", lambda runs: runs.get_stats()) == inmem.RunStats(
        5, dict.fromkeys(RunStatus, 0) | {RunStatus.ACTIVE: 3, RunStatus.PAUSED: 1, RunStatus.ARCHIVED: 1}
    )


def test_options_in_one_object(db: inmem.Database) -> None:
    db.runs.create_run(run_id="up")
    options = inmem.CreateRunOptions("r", "up", ("t",), {"k": 1})
    assert db.runs.create_run_with_options(options) == db.runs.get_run("r")
    made = db.runs.create_run_with_options(inmem.CreateRunOptions())
    assert len(made.run_id) == 36


def test_a_made_up_id_is_time_ordered(db: inmem.Database) -> None:
    ids = [db.runs.create_run().run_id for _ in range(3)]
    assert len({*ids}) == 3
    assert [run.run_id for run in db.runs.query_runs()] == ids


def test_deletion(db: inmem.Database) -> None:
    db.runs.create_run(run_id="r", tags=["t"])
    db.runs.create_run(run_id="down", parent_run="r")
    for run_id in ("r", "r.s"):
        db.kv.put(run_id, "k", 1)
        db.events.append(run_id, "t")
        db.cells.init(run_id, "c", 1)
        db.traces.record(run_id, inmem.Thought("x"))
    assert db.runs.delete_run("r") == inmem.DeletedRun("r", 1, 1, 1, 1, True)
    assert db.runs.get_run("r") is None
    assert (db.runs.list_runs(), db.runs.query_runs(tags=["t"])) == (["down"], [])
    assert [run.run_id for run in db.runs.get_child_runs("r")] == ["down"], "its children stay"
    for call in (
        lambda: db.kv.put("r", "k", 1), lambda: db.kv.delete("r", "k"), lambda: db.events.append("r", "t"),
        lambda: db.cells.set("r", "c", 1), lambda: db.cells.delete("r", "c"),
        lambda: db.run("r").runs.pause_run(), lambda: db.repair_indices("r"),
        lambda: db.traces.record("r", inmem.Thought("x")), lambda: db.runs.create_run(run_id="r"),
        lambda: db.runs.delete_run("r"), lambda: db.run("r").runs.delete_run(),
    ):
        with pytest.raises(inmem.RunDeletedError) as caught:
            call()
        assert caught.value.run_id == "r"
    assert db.run("r.s").runs.delete_run() == inmem.DeletedRun("r.s", 1, 1, 1, 1, False)
    with pytest.raises(inmem.RunNotFoundError):
        db.runs.delete_run("never")
    assert db.kv.put("never", "k", 1)


def test_a_deletion_is_no_part_of_a_transaction(db: inmem.Database) -> None:
    db.runs.create_run(run_id="r")
    with db.transaction("r") as txn, pytest.raises(inmem.InvariantError, match="delete_run"):
        txn.runs.delete_run()
    assert db.runs.get_run("r") is not None


def test_a_snapshot_cannot_write_and_records_are_frozen(db: inmem.Database) -> None:
    db.runs.create_run(run_id="r")
    with db.snapshot("r") as view:
        run = view.runs.get_run()
        assert run is not None
        with pytest.raises(AttributeError):
            run.status = RunStatus.FAILED  # type: ignore[misc]
        for method in ("create_run", "update_status", "delete_run", "add_tags", "archive_run"):
            assert not hasattr(view.runs, method)


def test_a_shared_scope_is_no_run_but_can_look_for_some(db: inmem.Database) -> None:
    db.runs.create_run(run_id="r")
    scope = db.shared("agent")
    with scope.transaction() as txn, scope.snapshot() as view:
        for runs in (scope.runs, txn.runs, view.runs):
            assert runs.list_runs() == ["r"]
            assert runs.get_stats().total == 1
            for call in (runs.get_run, runs.get_child_runs):
                with pytest.raises(inmem.InvalidRunIdError):
                    call()
        for call in (txn.runs.create_run, scope.runs.create_run, scope.runs.pause_run, scope.runs.delete_run):
            with pytest.raises(inmem.InvalidRunIdError):
                call()
    assert db.runs.list_runs() == ["r"]


class TestInsideATransaction:
    @pytest.mark.parametrize("read", [
        lambda r: r.get_run(), lambda r: r.query_runs(), lambda r: r.query_runs(tags=["t"]),
        lambda r: r.list_runs(),
        lambda r: r.query_runs(status=RunStatus.PAUSED), lambda r: r.query_runs(parent_run="up"),
        lambda r: r.get_stats(),
    ])
    def test_whatever_is_read_is_a_dependency(self, db: inmem.Database, read: Any) -> None:
        db.runs.create_run(run_id="up")
        txn = db.transaction("r")
        read(txn.runs)
        txn.kv.put("k", 1)
        db.runs.create_run(run_id="r", tags=["t"], parent_run="up")
        db.runs.pause_run("r")
        with pytest.raises(inmem.ConflictError):
            txn.commit()

    def test_other_queries_are_none(self, db: inmem.Database) -> None:
        txn = db.transaction("r")
        txn.runs.query_runs(tags=["other"])
        txn.runs.query_runs(status=RunStatus.FAILED)
        txn.runs.get_child_runs("elsewhere")
        txn.kv.put("k", 1)
        db.runs.create_run(run_id="new", tags=["t"])
        txn.commit()

    def test_of_two_changes_of_status_one_conflicts(self, db: inmem.Database) -> None:
        db.runs.create_run(run_id="r")
        one, two = db.transaction("r"), db.transaction("r")
        one.runs.pause_run()
        two.runs.complete_run()
        one.commit()
        with pytest.raises(inmem.ConflictError):
            two.commit()
        assert db.runs.get_run("r").status is RunStatus.PAUSED  # type: ignore[union-attr]

    def test_metadata_that_grows_too_big_is_refused_at_once(self, db: inmem.Database) -> None:
        half = "x" * (9 * 1024 * 1024)
        db.runs.create_run(run_id="r", metadata={"k": half})
        with db.transaction("r") as txn:
            txn.runs.add_tags(["kept"])
            with pytest.raises(inmem.LimitError):
                txn.runs.update_metadata({"l": half})
            run = txn.runs.get_run()
            assert run is not None
            assert (sorted(run.metadata), run.version) == (["k"], 2)
        assert db.runs.query_runs(tags=["kept"])[0].version == 2
