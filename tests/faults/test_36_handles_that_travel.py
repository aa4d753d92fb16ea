"""A handle that travels finds its database, or says that it is gone; only `open` creates one."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import inmem

loads = pickle.loads
KINDS: dict[str, Callable[[inmem.Database], Any]] = {
    "database": lambda db: db,
    "run scope": lambda db: db.run("r"),
    "shared scope": lambda db: db.shared("app"),
    "kv": lambda db: db.kv,
    "events": lambda db: db.events,
    "cells": lambda db: db.cells,
    "traces": lambda db: db.traces,
    "runs": lambda db: db.runs,
    "some of them": lambda db: {"db": db, "scope": db.run("r"), "kv": db.kv},
}
BOUND: dict[str, Callable[[Any, Any, Any], Any]] = {
    "snapshot": lambda view, txn, p: view,
    "view of a snapshot": lambda view, txn, p: view.at("b"),
    "transaction": lambda view, txn, p: txn,
    "scope of a transaction": lambda view, txn, p: txn.at("b"),
    "pipeline": lambda view, txn, p: p,
    "facade of a snapshot": lambda view, txn, p: view.kv,
    "facade of a transaction": lambda view, txn, p: txn.kv,
    "facade of a pipeline": lambda view, txn, p: p.run("r").kv,
}


def removed(path: Path) -> None:
    shutil.rmtree(path)


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir(mode=0o700)


def replaced_by_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a directory")


def made_anew(path: Path) -> None:
    shutil.rmtree(path)
    inmem.open(path).close()


def with_parents(path: Path) -> None:
    shutil.rmtree(path.parent)


FATES = (removed, moved, emptied, replaced_by_a_file, made_anew, with_parents)


def entries(path: Path) -> list[str]:
    return sorted(str(each) for each in path.rglob("*") if "elsewhere" not in each.parts)


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.__name__)
def test_unpickling_creates_nothing(scratch: Path, fate: Callable[[Path], None]) -> None:
    path = scratch / "in" / "store"
    path.parent.mkdir()
    with inmem.open(path, tenant="t") as db:
        db.kv.put("r", "k", 1)
        travelling = [pickle.dumps(make(db)) for make in KINDS.values()]
    fate(path)
    before = entries(scratch)
    word = "anew" if fate is made_anew else "removed"
    for travels in travelling * 2:
        with pytest.raises(inmem.DatabaseGoneError, match=word) as caught:
            loads(travels)
        assert caught.value.path == str(path) and caught.value.code == "database_gone"
    assert entries(scratch) == before


def use(thing: Any, queue: Any) -> None:
    """In another process: what the handle sees, or its error."""
    queue.put(thing.kv.get("r", "k") if isinstance(thing, inmem.Database) else thing.get("r", "k"))


def load(travels: bytes, queue: Any) -> None:
    try:
        queue.put(repr(loads(travels)))
    except inmem.InmemError as error:
        queue.put(type(error).__name__)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_in_another_process(scratch: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    path = scratch / "store"
    with inmem.open(path) as db:
        db.kv.put("r", "k", 1)
        for thing in (db, db.kv):
            child = context.Process(target=use, args=(thing, queue))
            child.start()
            assert queue.get(timeout=60) == 1
            child.join()
        travels = pickle.dumps(db)
    shutil.rmtree(path)
    child = context.Process(target=load, args=(travels, queue))
    child.start()
    assert queue.get(timeout=60) == "DatabaseGoneError"
    child.join()
    assert not path.exists()
    queue.close()
    queue.join_thread()


def test_what_is_there_is_found(scratch: Path) -> None:
    """Also by a handle that was closed, from another directory, and of each namespace; so are copies."""
    path = scratch / "store"
    with inmem.open(path) as one, inmem.open(path, tenant="b") as other:
        for db in (one, other):
            scope, shared = db.run("r"), db.shared("agent")
            scope.kv.put("k", str(db.namespace))
            shared.kv.put("k", "shared " + str(db.namespace))
            for make in (lambda thing: loads(pickle.dumps(thing)), copy.copy, copy.deepcopy):
                again, too = make(scope), make(shared)
                assert again.kv.get("k") == str(db.namespace) and repr(again) == repr(scope)
                assert too.kv.get("k") == "shared " + str(db.namespace) and too.run_id == shared.run_id
                assert again.transact(lambda txn: txn.kv.get("k")) == str(db.namespace)
                assert make(db.kv).get("r", "k") == str(db.namespace)
                with make(db) as handle:
                    assert handle.namespace == db.namespace
        travels = pickle.dumps(other)
    was = os.getcwd()
    os.chdir(scratch)
    try:
        with loads(travels) as handle:
            assert handle.kv.get("r", "k") == "b/default/default"
    finally:
        os.chdir(was)
    with loads(pickle.dumps(handle)) as handle:  # it was closed, which is no reason
        assert handle.kv.get("r", "k") == "b/default/default"


def test_a_throw_away_store_does_not_come_back(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    with inmem.open() as db:
        travels = pickle.dumps(db)
        with loads(travels) as again:
            again.kv.put("r", "k", 1)
        assert db.kv.get("r", "k") == 1
        path = db.path
    shutil.rmtree(path, ignore_errors=True)
    with pytest.raises(inmem.DatabaseGoneError):
        loads(travels)
    assert not path.exists()


@pytest.mark.parametrize("kind", BOUND)
def test_what_is_of_one_process_does_not_travel(db: inmem.Database, kind: str) -> None:
    with db.snapshot("a") as view, db.transaction("a") as txn, db.pipeline() as p:
        thing = BOUND[kind](view, txn, p)
        for make in (pickle.dumps, copy.copy, copy.deepcopy):
            if make is copy.copy and "facade" in kind:
                continue  # a second name for the same
            with pytest.raises((inmem.InvalidInputError, TypeError, pickle.PicklingError)):
                make(thing)
        assert view.kv.get("k") is None and txn.kv.get("k") is None
