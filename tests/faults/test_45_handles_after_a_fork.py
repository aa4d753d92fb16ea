"""Each kind of handle after fork works, or is `ForkError`, as docs/caveats.md says."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from forks import in_child

import inmem

USES: dict[str, Callable[[inmem.Database], Any]] = {
    "get": lambda db: db.kv.get("r", "k"),
    "list": lambda db: db.kv.list("r"),
    "put": lambda db: db.kv.put("r", "child", 1),
    "scope": lambda db: db.run("r").kv.add("n"),
    "append": lambda db: db.events.append("r", "child"),
    "snapshot": lambda db: db.snapshot("r").kv.list(),
    "transact": lambda db: db.transact("r", lambda txn: txn.kv.put("child", txn.kv.get("k"))),
    "blind transact": lambda db: db.transact("r", lambda txn: txn.kv.put("child", 1)),
    "status": lambda db: db.status(),
    "open again": lambda db: inmem.open(db.path).kv.put("r", "child", 1),
    "open in another namespace": lambda db: inmem.open(db.path, tenant="b").kv.put("r", "child", 1),
}


def piped(db: inmem.Database) -> None:
    with db.pipeline() as p:
        p.kv.put("r", "child", 1)


USES["pipeline"] = piped


def twice(thing: Any) -> None:
    with pytest.raises(inmem.ForkError):
        thing.kv.get("k")
    thing.kv.get("k")


def reading(txn: Any) -> Any:
    txn.kv.get("k")
    return txn


def writing(txn: Any) -> Any:
    txn.kv.put("parent", 1)
    return txn


def iterating(db: inmem.Database) -> Any:
    stream = db.events.iter("r")
    next(stream)
    return stream


INSIDE: dict[str, Callable[[inmem.Database, ExitStack], Any]] = {
    "snapshot": lambda db, stack: stack.enter_context(db.snapshot("r")),
    "nested view": lambda db, stack: stack.enter_context(db.snapshot("r")).at("b"),
    "transaction": lambda db, stack: stack.enter_context(db.transaction("r")),
    "transaction that has read": lambda db, stack: reading(stack.enter_context(db.transaction("r"))),
    "transaction that has written": lambda db, stack: writing(stack.enter_context(db.transaction("r"))),
}
HANDLES: dict[str, Callable[[Any], Any]] = {
    "get": lambda thing: thing.kv.get("k"),
    "list": lambda thing: thing.kv.list(),
    "at": lambda thing: thing.at("c").kv.get("k"),
    "events": lambda thing: thing.events.count(),
    "again": lambda thing: twice(thing),
}


@pytest.fixture
def filled(db: inmem.Database) -> inmem.Database:
    db.kv.put("r", "k", 1)
    db.events.append_many("r", [("t", n) for n in range(3000)])
    db.kv.get("r", "k")
    return db


def stored(db: inmem.Database) -> Any:
    return dict(db.kv.list_with_values("r")), db.events.count("r")


@pytest.mark.parametrize("inside", INSIDE)
def test_a_child_of_what_is_open_is_refused(filled: inmem.Database, inside: str) -> None:
    before = stored(filled)
    with ExitStack() as stack:
        thing = INSIDE[inside](filled, stack)
        for name, use in USES.items():
            assert in_child(lambda use=use: use(filled)) == "ForkError", name
        for name, use in HANDLES.items():
            assert in_child(lambda use=use: use(thing)) == "ForkError", name
        if "transaction" in inside:
            assert in_child(lambda: thing.kv.put("child", 1)) == in_child(thing.commit) == "ForkError"

        def grandchild() -> None:
            assert in_child(lambda: filled.kv.put("r", "child", 1)) == "ForkError"

        assert in_child(grandchild) == "ok"
        assert stored(filled) == before
        assert thing.kv.get("k") in (1, None)
    if inside == "transaction that has written":
        before[0]["parent"] = 1
    assert stored(filled) == before
    assert in_child(lambda: USES["put"](filled)) == "ok", "with nothing open it works"


def test_a_child_of_an_iteration_is_refused(filled: inmem.Database) -> None:
    stream = iterating(filled)
    assert in_child(lambda: list(stream)) in ("ForkError", "ok")
    assert len(list(stream)) == 2999


def test_a_child_of_what_is_over_works(filled: inmem.Database) -> None:
    with filled.snapshot("r") as view, filled.transaction("r") as txn, filled.pipeline() as p:
        txn.kv.put("k", txn.kv.get("k"))
    for name, use in USES.items():
        assert in_child(lambda use=use: use(filled)) == "ok", name
    for thing in (lambda: view.kv.get("k"), lambda: txn.kv.get("k"), lambda: p.kv.put("r", "k", 1)):
        assert in_child(thing) in ("ClosedError", "ForkError")


@pytest.mark.parametrize("sent", [0, 3, 700])
def test_a_pipeline_is_the_parent_s(filled: inmem.Database, sent: int) -> None:
    """Whether something was sent or only noted: the child neither adds to it nor sends it once more."""
    with filled.pipeline() as p:
        for n in range(sent):
            p.events.append("piped", "t", n)

        def leave() -> None:
            with p:
                pass

        calls: list[Callable[[], Any]] = [
            lambda: p.kv.put("r", "child", 1), lambda: p.run("r").kv.put("child", 1),
            lambda: p.events.append("piped", "child"), p.flush, lambda: p.__exit__(None, None, None),
        ]
        for call in calls:
            assert in_child(call) == "ForkError"
        for name, use in USES.items():
            assert in_child(lambda use=use: use(filled)) == "ok", name
    assert [event.payload for event in filled.events.iter("piped")] == list(range(sent))


def use_there(thing: Any, queue: Any) -> None:
    queue.put((thing.kv.get("r", "k"), thing.kv.add("r", "n")))
    thing.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("inside", ["snapshot", "transaction that has read"])
def test_other_ways_to_start_a_child(filled: inmem.Database, method: str, inside: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with ExitStack() as stack:
        thing = INSIDE[inside](filled, stack)
        child = context.Process(target=use_there, args=(filled, queue))
        child.start()
        assert queue.get(timeout=60) == (1, 1)
        child.join()
        with pytest.raises(inmem.InvalidInputError, match="cannot be pickled"):
            pickle.dumps(thing)
    queue.close()
    queue.join_thread()


def test_scopes_and_facades_made_before(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        scope, shared, kv = db.run("r"), db.shared("app"), db.kv
        scope.kv.put("k", 1)
        assert in_child(lambda: scope.kv.put("k", 2)) == in_child(lambda: shared.kv.put("k", 2)) == "ok"
        assert in_child(lambda: kv.put("r", "k2", 2)) == "ok"
        assert scope.kv.get("k") == shared.kv.get("k") == kv.get("r", "k2") == 2
