"""A scope of another database or namespace is honoured as that, or refused; never taken as another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import inmem
import inmem.exchange

NAMESPACES = ({}, {"tenant": "b"}, {"app": "b"}, {"agent": "b"})


@pytest.fixture
def handles(scratch: Path) -> Iterator[list[inmem.Database]]:
    """Four namespaces in each of two stores; each has the same runs."""
    opened = []
    try:
        for store in ("one", "two"):
            for names in NAMESPACES:
                db = inmem.open(scratch / store, **names)
                opened.append(db)
                db.runs.create_run(run_id="x", metadata={"of": len(opened)})
        yield opened
    finally:
        for db in opened:
            db.close()


def write_all(target: Any, word: str) -> None:
    """Something with each primitive of a run."""
    target.kv.put("k", word)
    target.events.append("said", {"word": word})
    target.cells.set("c", word)
    target.traces.record(inmem.Thought(word), id="t-" + word)
    if target.run_id == "x":
        target.runs.update_metadata({"word": word})
        status = target.runs.get_run().status
        (target.runs.pause_run if status is inmem.RunStatus.ACTIVE else target.runs.resume_run)()


def seen(target: Any) -> list[Any]:
    """What each primitive of a run has."""
    head, cell = target.events.head(), target.cells.read("c")
    run = target.runs.get_run() if target.run_id == "x" else None
    return [
        target.kv.get("k"), head and head.payload["word"], cell and cell.value,
        [trace.id for trace in target.traces.list()],
        run and (str(run.status), run.metadata.get("word"), run.metadata["of"]),
    ]


def scopes_of(db: inmem.Database) -> list[inmem.RunScope]:
    return [db.run("x"), *map(db.shared, ("agent", "app", "tenant"))]


def everything(handles: list[inmem.Database]) -> dict[bytes | tuple[int, bytes], list[Any]]:
    """All that is stored in all scopes, by store and prefix."""
    return {
        (number // len(NAMESPACES), scope.prefix): seen(scope)
        for number, db in enumerate(handles)
        for scope in scopes_of(db)
    }


@contextmanager
def in_transaction(db: inmem.Database, scope: Any) -> Iterator[Any]:
    with db.transaction("x") as txn:
        yield txn.at(scope)


@contextmanager
def in_own_transaction(db: inmem.Database, scope: Any) -> Iterator[Any]:
    with db.transaction(scope) as txn:
        yield txn


@contextmanager
def nested_twice(db: inmem.Database, scope: Any) -> Iterator[Any]:
    with db.transaction("y") as txn, txn.at("z") as inner:
        yield inner.at(scope)


WRITERS: list[Callable[..., Any]] = [in_transaction, in_own_transaction, nested_twice]


@pytest.mark.parametrize("way", WRITERS, ids=lambda way: way.__name__)
def test_writes_go_where_the_scope_belongs(handles: list[inmem.Database], way: Callable[..., Any]) -> None:
    pairs = refused = 0
    for i, db in enumerate(handles):
        for j, other in enumerate(handles):
            scope = scopes_of(other)[(i + j) % 4] if i % 2 else other.run("x")
            before = everything(handles)
            word = f"{i}-{j}"
            pairs += 1
            if i // len(NAMESPACES) != j // len(NAMESPACES):
                with pytest.raises(inmem.InvalidInputError, match="another database"), way(db, scope) as txn:
                    write_all(txn, word)
                refused += 1
                assert everything(handles) == before
                continue
            with way(db, scope) as txn:
                write_all(txn, word)
                inside = seen(txn)
            after = everything(handles)
            place = (j // len(NAMESPACES), scope.prefix)
            assert after[place] == inside and after[place][0] == word
            if scope.run_id == "x":
                assert after[place][4][1:] == (word, j + 1)
            assert {k: v for k, v in after.items() if k != place} == {
                k: v for k, v in before.items() if k != place
            }
    print(f"{pairs} pairs, {refused} refused, taken as another's 0")


def test_reads_see_what_the_scope_belongs_to(handles: list[inmem.Database]) -> None:
    for db in handles:
        for scope in scopes_of(db):
            write_all(scope, f"of-{handles.index(db)}-{scope.name.strip('@')}")
    stored = everything(handles)
    for i, db in enumerate(handles):
        for j, other in enumerate(handles):
            for scope in scopes_of(other):
                if i // len(NAMESPACES) != j // len(NAMESPACES):
                    for call in (db.snapshot, db.transaction, db.scope, partial(db.transact, fn=seen)):
                        with pytest.raises(inmem.InvalidInputError, match="another database"):
                            call(scope)
                    with (
                        db.snapshot("x") as view, db.pipeline() as p,
                        pytest.raises(inmem.InvalidInputError, match="another database"),
                    ):
                        (view.at if j % 2 else p.run)(scope)
                    continue
                expected = stored[j // len(NAMESPACES), scope.prefix]
                with db.snapshot("y") as view:
                    assert seen(view.at(scope)) == seen(view.at("y").at(scope)) == expected
                with db.snapshot(scope) as view:
                    assert seen(view) == expected
                    assert seen(view.at("x")) == stored[j // len(NAMESPACES), other.run("x").prefix]
                assert db.transact(scope, seen) == expected
                with db.pipeline() as p:
                    p.run(scope).kv.put("piped", scope.prefix)
                assert scope.kv.get("piped") == scope.prefix


def test_a_name_is_of_the_namespace_of_what_it_is_given_to(scratch: Path) -> None:
    with inmem.open(scratch / "s", tenant="a") as a, inmem.open(scratch / "s", tenant="b") as b:
        with a.transaction("x") as txn:
            txn.at("y").kv.put("k", "a")
            txn.at(b.run("x")).at("y").kv.put("k", "b")
            txn.at(b.run("x")).at(a.run("z")).at("w").kv.put("k", "a again")
        assert [db.kv.get("y", "k") for db in (a, b)] == ["a", "b"]
        assert [db.kv.get("w", "k") for db in (a, b)] == ["a again", None]


def test_a_scope_of_a_closed_handle_is_refused(scratch: Path) -> None:
    with inmem.open(scratch / "s") as db:
        other = inmem.open(scratch / "s", tenant="b")
        scope = other.run("x")
        other.close()
        with db.snapshot("x") as view, db.transaction("x") as txn, db.pipeline() as p:
            for call in (db.scope, db.snapshot, db.transaction, view.at, txn.at, p.run):
                with pytest.raises(inmem.ClosedError):
                    call(scope)


def test_what_is_no_scope_is_refused_where_a_run_is_wanted(scratch: Path) -> None:
    """Also handles that have a `run_id` or are bound to a run: a view is no run of another view."""
    with (
        inmem.open(scratch / "s") as db, inmem.open(scratch / "s", tenant="b") as other,
        other.snapshot("x") as view, other.transaction("x") as txn, other.pipeline() as p,
    ):
        things = [other, view, txn, p, p.run("x"), other.kv, other.run("x").kv, b"x", 1, None]
        with db.snapshot("x") as my_view, db.transaction("x") as my_txn, db.pipeline() as my_p:
            calls: list[Callable[[Any], Any]] = [
                db.run, db.scope, db.snapshot, db.transaction, my_view.at, my_txn.at, my_p.run,
                lambda thing: db.transact(thing, print), lambda thing: db.kv.get(thing, "k"),
                lambda thing: db.runs.create_run(parent_run=thing) if thing is not None else db.run(thing),
                db.runs.get_run, db.events.head, lambda thing: db.repair_indices(thing or b""),
            ]
            for call in calls:
                for thing in things:
                    with pytest.raises(inmem.InvalidInputError):
                        call(thing)
        other.kv.put("x", "k", "theirs")  # a scope is taken as what it is, and no other's run of that name
        assert (db.kv.get(other.run("x"), "k"), db.kv.get("x", "k")) == ("theirs", None)
        assert db.runs.get_run(other.run("x")) is None and db.run(other.run("x")).kv.get("k") == "theirs"
        assert db.repair_indices(other.run("x")).repaired == []


@pytest.mark.parametrize(
    "make", [inmem.KVStore, inmem.EventLog, inmem.StateCell, inmem.TraceStore, inmem.RunIndex]
)
def test_a_facade_is_made_of_a_database(scratch: Path, make: Callable[[Any], Any]) -> None:
    with inmem.open(scratch / "s") as db, db.snapshot("x") as view, db.transaction("x") as txn:
        make(db)
        for thing in (db.run("x"), view, txn, db.kv, None, "path"):
            with pytest.raises(inmem.InvalidInputError):
                make(thing)


def test_an_export_is_of_the_namespace_that_the_handle_has(scratch: Path) -> None:
    with inmem.open(scratch / "s") as db, inmem.open(scratch / "s", tenant="b") as other:
        other.kv.put("x", "k", 1)
        with pytest.raises(inmem.InvalidInputError, match="namespace"):
            inmem.exchange.export_runs(db, scratch / "out", namespace=other.namespace)
        assert not (scratch / "out").exists()
        with pytest.raises(inmem.InvalidInputError, match="namespace"):
            inmem.exchange.count_runs(db, other.namespace)
        assert inmem.exchange.count_runs(other, other.namespace) == 1
        assert inmem.exchange.count_runs(scratch / "s", other.namespace) == 1
        assert inmem.exchange.count_runs(db) == 0
