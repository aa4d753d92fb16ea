"""What may be given for a run's id, ids of other systems, and creating what may be there already."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from forms import new_run
from hypothesis import given, settings
from hypothesis import strategies as st

import inmem
from inmem import exchange
from inmem.keys import RunId, check_run_id

# --- a scope in place of an id ---------------------------------------------------------------------

CALLS: dict[str, Any] = {
    "kv.put": lambda db, run: db.kv.put(run, "k", 1) > 0, "kv.get": lambda db, run: db.kv.get(run, "k"),
    "events": lambda db, run: (db.events.append(run, "t").sequence, db.events.count(run)),
    "cells": lambda db, run: (db.cells.set(run, "c", 1), db.cells.read(run, "c").value),
    "traces": lambda db, run: (db.traces.record(run, inmem.Thought("x"), id="t"), db.traces.count(run)),
    "create": lambda db, run: db.runs.create_run(run_id=run).run_id,
    "get_run": lambda db, run: db.runs.get_run(run).run_id,
    "complete": lambda db, run: str(db.runs.complete_run(run).status),
    "transact": lambda db, run: db.transact(run, lambda txn: txn.kv.get("k")),
    "children": lambda db, run: db.runs.get_child_runs(run),
    "run": lambda db, run: db.run(run).kv.get("k"),
    "delete": lambda db, run: db.runs.delete_run(run).kv,
}


@pytest.mark.parametrize("agent", ["default", "other"])
def test_a_scope_stands_for_its_run(home: Any, agent: str) -> None:
    with home.open() as db, home.open(agent=agent) as other:
        name, scope = new_run(), other.run(new_run())
        found = {call: (CALLS[call](db, scope), CALLS[call](other, name)) for call in CALLS}
    assert found.pop("create") == (scope.run_id, name) and found.pop("get_run") == (scope.run_id, name)
    assert {call: by_scope for call, (by_scope, _) in found.items()} == \
        {call: by_name for call, (_, by_name) in found.items()}


RUNS_CALLS: dict[str, Any] = {
    "get_run": lambda runs, run: runs.get_run(run),
    "children": lambda runs, run: [found.run_id for found in runs.get_child_runs(run)],
    "query": lambda runs, run: [found.run_id for found in runs.query_runs(parent_run=run)],
    "RunQuery": lambda runs, run: [
        found.run_id for found in runs.query_runs(inmem.RunQuery(parent_run=run, start_after=run))
    ],
    "iter": lambda runs, run: [found.run_id for found in runs.iter_runs(start_after=run)],
    "list": lambda runs, run: runs.list_runs(start_after=run),
    "list all": lambda runs, run: runs.list_runs(start_after=run, include_uncreated=True),
    "children after": lambda runs, run: [found.run_id for found in runs.get_child_runs(run, start_after=run)],
}
RUNS_FORMS: dict[str, Any] = {
    "facade": lambda db, fn: fn(db.runs),
    "scope": lambda db, fn: fn(db.run("of-the-scope").runs),
    "transaction": lambda db, fn: db.transact("of-the-scope", lambda txn: fn(txn.runs)),
    "snapshot": lambda db, fn: fn(db.snapshot("of-the-scope").runs),
}


@pytest.mark.parametrize("form", RUNS_FORMS)
def test_a_scope_stands_for_its_run_wherever_runs_are_asked_for(home: Any, form: str) -> None:
    agent = f"scopes-{form}"
    with home.open(agent=agent) as db, home.open(agent="other") as other, inmem.open() as foreign:
        for run, parent in (("a", None), ("b", "a"), ("c", "a"), ("d", None)):
            db.runs.create_run(run_id=run, parent_run=parent)
        ask = RUNS_FORMS[form]
        for name, call in RUNS_CALLS.items():
            by_name = ask(db, lambda runs, call=call: call(runs, "a"))
            assert by_name and ask(db, lambda runs, call=call: call(runs, db.run("a"))) == by_name, name
            for scope, what in ((foreign.run("a"), "a scope of another database"),
                                (other.run("a"), "a run of another namespace")):
                takes_run_first = form == "facade" and name in ("get_run", "children", "children after")
                if takes_run_first and scope.namespace != db.namespace_prefix:
                    continue  # it is asked of the scope's own namespace, as of all facades
                with pytest.raises(inmem.InvalidInputError, match=f"is {what}"):
                    ask(db, lambda runs, call=call, scope=scope: call(runs, scope))
            with pytest.raises(inmem.InvalidRunIdError):
                ask(db, lambda runs, call=call: call(runs, db.shared("agent")))


@pytest.mark.parametrize("form", ["facade", "options", "scope", "transaction"])
def test_a_scope_may_be_the_parent(shared_db: inmem.Database, form: str) -> None:
    parent, child = shared_db.run(new_run()), new_run()
    parent.runs.create_run()
    if form == "facade":
        made = shared_db.runs.create_run(run_id=child, parent_run=parent)
    elif form == "options":
        options = inmem.CreateRunOptions(run_id=shared_db.run(child), parent_run=parent)
        made = shared_db.runs.create_run_with_options(options)
    elif form == "scope":
        made = shared_db.run(child).runs.create_run(parent_run=parent)
    else:
        made = shared_db.transact(child, lambda txn: txn.runs.create_run(parent_run=parent))
    assert made.parent_run == parent.run_id and made == shared_db.runs.get_run(child)
    with pytest.raises(inmem.InvalidRunIdError, match="parent_run is the run itself"):
        parent.runs.create_run(parent_run=parent)


def test_a_scope_stands_for_its_run_in_exports_and_imports(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    with inmem.open(tmp_path / "store") as db, inmem.open(tmp_path / "store", agent="other") as other:
        db.kv.put("a", "k", 1)
        assert exchange.export_runs(db, file, [db.run("a")]).kv == 1
        with pytest.raises(inmem.InvalidInputError, match="another namespace"):
            exchange.export_runs(db, file, [other.run("a")])
        assert exchange.import_runs(db, file, rename={"a": db.run("b")}).kv == 1
        assert db.kv.get("b", "k") == 1
        with pytest.raises(inmem.RunNotFoundError, match="no import of run a "):
            exchange.discard_import(db, db.run("a"))


def test_scopes_of_elsewhere_are_refused(home: Any) -> None:
    with home.open() as db, home.open(agent="other") as other, inmem.open() as foreign:
        scope = foreign.run("r")
        for call in (lambda: db.kv.put(scope, "k", 1), lambda: db.runs.create_run(run_id=scope),
                     lambda: db.runs.create_run(parent_run=scope), lambda: db.runs.get_run(scope)):
            with pytest.raises(inmem.InvalidInputError, match="of another database"):
                call()
        with pytest.raises(inmem.InvalidInputError, match="parent_run is a run of another namespace"):
            db.runs.create_run(parent_run=other.run("r"))
        parent, child = db.runs.create_run(run_id=new_run()), new_run()
        made = db.runs.create_run(run_id=child, parent_run=db.run(parent.run_id))
        assert made.parent_run == parent.run_id
        for not_a_run in (db, db.kv, object(), 7):
            with pytest.raises(inmem.InvalidRunIdError):
                db.kv.get(not_a_run, "k")  # type: ignore[arg-type]


# --- what may be there already ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["scope", "transaction"])
def test_init_leaves_a_cell_that_exists(shared_db: inmem.Database, form: str) -> None:
    scope = shared_db.run(new_run())

    def call(fn: Any) -> Any:
        return fn(scope) if form == "scope" else scope.transact(fn)

    assert call(lambda s: s.cells.init("c", 1, exist_ok=True)) == 1
    scope.cells.set("c", 2)
    assert call(lambda s: s.cells.init("c", 3, exist_ok=True)) == 2
    assert scope.cells.read("c").value == 2  # type: ignore[union-attr]
    with pytest.raises(inmem.CellExistsError):
        call(lambda s: s.cells.init("c", 3))
    assert call(lambda s: (s.cells.delete("c"), s.cells.init("c", 3, exist_ok=True))[1]) == 3


@pytest.mark.parametrize("form", ["facade", "options", "scope", "transaction"])
def test_create_run_leaves_a_run_that_exists(shared_db: inmem.Database, form: str) -> None:
    run = new_run()
    scope = shared_db.run(run)

    def create(**given: Any) -> inmem.RunMetadata:
        if form == "facade":
            return shared_db.runs.create_run(run_id=run, **given)
        if form == "options":
            return shared_db.runs.create_run_with_options(inmem.CreateRunOptions(run_id=run, **given))
        if form == "scope":
            return scope.runs.create_run(**given)
        return scope.transact(lambda txn: txn.runs.create_run(**given))

    first = create(tags=["a"], metadata={"n": 1}, exist_ok=True)
    assert first == scope.runs.get_run()
    changed = scope.runs.pause_run()
    again = create(tags=["b"], metadata={"n": 2}, parent_run="never-made", exist_ok=True)
    assert again == changed == scope.runs.get_run()
    with pytest.raises(inmem.RunExistsError):
        create()
    scope.runs.delete_run()
    with pytest.raises(inmem.RunDeletedError):
        create(exist_ok=True)
    for wrong in (1, None, "yes"):
        with pytest.raises(inmem.InvalidInputError, match="exist_ok"):
            create(exist_ok=wrong)


def test_a_transaction_that_found_it_there_depends_on_it(shared_db: inmem.Database) -> None:
    scope = shared_db.run(new_run())
    scope.cells.init("c", 1)
    with pytest.raises(inmem.ConflictError), scope.transaction() as txn:
        txn.cells.init("c", 2, exist_ok=True)
        txn.kv.put("k", 1)
        scope.cells.delete("c")


# --- ids of other systems ----------------------------------------------------------------------------


@given(text=st.text(min_size=1, max_size=200).filter(lambda t: t.isprintable() or t.isascii()))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_legal_id(text: str) -> None:
    run_id = RunId.from_external(text)
    assert check_run_id(run_id) == run_id and not run_id.startswith("-")
    assert RunId.from_external(text) == run_id and run_id.external == text
    for copied in (pickle.loads(pickle.dumps(run_id)), copy.deepcopy(run_id)):  # noqa: S301
        assert (copied, copied.external) == (run_id, text)


def test_ids_of_other_systems() -> None:
    texts = [
        "user@example.com/thread 1", "user@example.com/thread 2", "user example.com thread 1", "USER", "user",
        "{0f8fad5b-d9cb-469f-a165-70867728950e}", "日本", "日本 ", "-o", "--help", "..",
        "a" * 64, "a" * 65, "a\0b",
    ]
    ids = [RunId.from_external(text) for text in texts]
    assert len(set(ids)) == len(texts)
    assert ids[0].startswith("user-example.com-thread-1-") and len(ids[-2]) == 64
    assert ids[0] == "user-example.com-thread-1-c468c495289b43e09db7", "it is the same for ever"
    for wrong in ("", None, 7, b"bytes", "\ud800"):
        with pytest.raises(inmem.InvalidRunIdError):
            RunId.from_external(wrong)  # type: ignore[arg-type]


@given(text=st.text(min_size=1, max_size=100).filter(lambda t: t.isprintable() or t.isascii()))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_a_legal_id_of_a_namespace(text: str) -> None:
    ids = [RunId.from_external(text, namespace=name) for name in ("", "a", "b", "n" * 32)]
    assert [check_run_id(each) for each in ids] == ids and len(set(ids)) == 4
    assert [each.partition(":")[0] for each in ids[1:]] == ["a", "b", "n" * 32]
    assert {each.external for each in ids} == {text}
    copied = pickle.loads(pickle.dumps(ids[1]))  # noqa: S301
    assert (copied, copied.external) == (ids[1], text)


def test_namespaces_of_ids_of_other_systems() -> None:
    named = RunId.from_external("user@example.com/thread 1", namespace="crm")
    assert named == "crm:user-example.com-thread-1-f0db20b379455cced680", "it is the same for ever"
    assert named != RunId.from_external("crm\0user@example.com/thread 1")
    for wrong in (None, 7, "a b", "a/b", "n" * 33, "\ud800"):
        with pytest.raises(inmem.InvalidInputError, match="namespace") as refused:
            RunId.from_external("text", namespace=wrong)  # type: ignore[arg-type]
        assert refused.value.argument == "namespace"


def test_the_text_is_kept_with_the_run(shared_db: inmem.Database) -> None:
    text = f"user@example.com/{new_run()}"
    run_id = RunId.from_external(text)
    run = shared_db.runs.create_run(run_id=run_id, metadata={"model": "m"})
    assert run.metadata == {"external_id": text, "model": "m"}
    assert shared_db.runs.get_run(RunId.from_external(text)) == run
    own = shared_db.runs.create_run(run_id=RunId.from_external(text + "2"), metadata={"external_id": "mine"})
    assert own.metadata == {"external_id": "mine"}
    assert shared_db.runs.create_run(run_id=new_run()).metadata == {}


def test_a_refused_id_names_the_way(shared_db: inmem.Database) -> None:
    for call in (lambda: shared_db.kv.get("a b", "k"), lambda: shared_db.runs.create_run(run_id="user@host")):
        with pytest.raises(inmem.InvalidRunIdError) as refused:
            call()
        assert "RunId.from_external" in str(refused.value.hint)


# --- a backup by the handle -------------------------------------------------------------------------


def test_backup_by_the_handle(tmp_path: Path) -> None:
    from inmem.maintenance.restore import restore

    with inmem.open() as db:
        version = db.kv.put("r", "k", 1)
        report = db.backup(tmp_path / "copy")
        assert isinstance(report, inmem.BackupReport) and report.version >= version
        db.kv.put("r", "k", 2)
        with pytest.raises(inmem.AlreadyExistsError):
            db.backup(str(tmp_path / "copy"))
        with pytest.raises(inmem.InvalidInputError):
            db.backup("file:///copy")
    restore(tmp_path / "copy", tmp_path / "restored")
    with inmem.open(tmp_path / "restored", create=False) as db:
        assert db.kv.get("r", "k") == 1
