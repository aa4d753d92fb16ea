"""Every bad argument of every public method: a typed error that names it, and nothing stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bad_arguments import (
    BAD_ATTEMPTS,
    BAD_DURABILITIES,
    BAD_RUNS,
    BAD_TIMEOUTS,
    HUGE,
    METHODS,
    NO_STR,
    Opaque,
    refused,
    shown,
)
from forms import Bound, new_run
from hypothesis import given, settings
from hypothesis import strategies as st

import inmem

ODD = [HUGE, -HUGE, Opaque(), object(), len, ...]  # by index: hypothesis prints what it draws from


CASES = [
    pytest.param(form, kind, name, good, argument, values, id=f"{form}.{kind}.{name}({argument})")
    for form, kinds in METHODS.items() for kind, methods in kinds.items() for name, good, bad in methods
    for argument, values in (bad | ({"run_id": BAD_RUNS} if form in ("facade", "pipeline") else {})).items()
]


@pytest.fixture(scope="module")
def db() -> Iterator[inmem.Database]:
    with inmem.open() as database:
        yield database


def run_cases(
    db: inmem.Database,
    form: str,
    kind: str,
    name: str,
    good: dict[str, Any],
    argument: str,
    values: list[Any],
) -> int:
    run = new_run()
    if form == "facade":
        target: Any = getattr(db, kind)
    elif form == "scope":
        target = getattr(db.run(run), kind)
    else:
        holder: Any = {
            "transaction": lambda: db.transaction(run),
            "snapshot": lambda: db.snapshot(run),
            "pipeline": db.pipeline,
        }[form]()
        target = getattr(holder, kind)
    takes_run = form in ("facade", "pipeline")
    for value in values:
        arguments = ({"run_id": run} if takes_run else {}) | good | {argument: value}
        refused(lambda arguments=arguments: getattr(target, name)(**arguments), argument, shown(value))
    if form in ("transaction", "snapshot"):
        (
            holder.commit if form == "transaction" else holder.close
        )()  # all was refused: there is nothing to commit
    elif form == "pipeline":
        holder.flush()
    assert db.kv.count(run) == 0
    assert db.events.count(run) == 0
    return len(values)


@pytest.mark.parametrize(("form", "kind", "name", "good", "argument", "values"), CASES)
def test_methods(
    db: inmem.Database,
    form: str,
    kind: str,
    name: str,
    good: dict[str, Any],
    argument: str,
    values: list[Any],
) -> None:
    version = db.status().version
    count = run_cases(db, form, kind, name, good, argument, values)
    assert db.status().version == version
    assert count > 5


@pytest.mark.parametrize("form", METHODS)
def test_the_good_arguments_are_good(db: inmem.Database, form: str) -> None:
    """Else the tests above would pass for another reason."""
    for kind, methods in METHODS[form].items():
        for name, good, _ in methods:
            run = new_run()
            if form in ("facade", "pipeline"):
                holder: Any = db if form == "facade" else db.pipeline()
                target: Any = Bound(getattr(holder, kind), run)
            else:
                holder = {"scope": db.run, "transaction": db.transaction, "snapshot": db.snapshot}[form](run)
                target = getattr(holder, kind)
            getattr(target, name)(**good)
            if form == "pipeline":
                holder.flush()
            elif form == "transaction":
                holder.commit()
            elif form == "snapshot":
                holder.close()


TABLE: list[tuple[str, Callable[[inmem.Database, Any], Any], str, list[Any]]] = [
    ("run", lambda db, v: db.run(v), "run_id", BAD_RUNS),
    ("run after shared", lambda db, v: (db.shared("agent"), db.run(v)), "run_id", ["@agent"]),
    ("shared", lambda db, v: db.shared(v), "level", [*NO_STR, "", "run", "Agent", "@"]),
    ("transaction", lambda db, v: db.transaction(v), "run_id", BAD_RUNS),
    ("transaction", lambda db, v: db.transaction("r", durability=v), "durability", BAD_DURABILITIES),
    ("transaction", lambda db, v: db.transaction("r", timeout_s=v), "timeout_s", BAD_TIMEOUTS),
    ("scope.transaction", lambda db, v: db.run("r").transaction(timeout_s=v), "timeout_s", BAD_TIMEOUTS),
    (
        "scope.transaction",
        lambda db, v: db.run("r").transaction(durability=v),
        "durability",
        BAD_DURABILITIES,
    ),
    ("snapshot", lambda db, v: db.snapshot(v), "run_id", BAD_RUNS),
    ("pipeline", lambda db, v: db.pipeline(durability=v), "durability", BAD_DURABILITIES),
    ("transact", lambda db, v: db.transact(v, lambda txn: 0), "run_id", BAD_RUNS),
    ("transact", lambda db, v: db.transact("r", v), "fn", [None, 7, "f", []]),
    ("transact", lambda db, v: db.transact("r", put, max_attempts=v), "max_attempts", BAD_ATTEMPTS),
    ("transact", lambda db, v: db.transact("r", put, timeout_s=v), "timeout_s", [None, *BAD_TIMEOUTS]),
    ("transact", lambda db, v: db.transact("r", put, durability=v), "durability", BAD_DURABILITIES),
    ("scope.transact", lambda db, v: db.run("r").transact(put, max_attempts=v), "max_attempts", BAD_ATTEMPTS),
    ("kv.transaction", lambda db, v: db.kv.transaction("r", v), "fn", [None, 7, "f"]),
    ("txn.at", lambda db, v: at(db.transaction("r"), v), "run_id", BAD_RUNS),
    ("view.at", lambda db, v: at(db.snapshot("r"), v), "run_id", BAD_RUNS),
    ("transactional", lambda db, v: inmem.transactional(put)(v), "argument", [None, 7, "r", b"r"]),
    ("Namespace", lambda db, v: inmem.Namespace(tenant=v), "tenant", [*NO_STR, "", "a/b", "@", "x" * 33]),
    ("Namespace", lambda db, v: inmem.Namespace(agent=v), "agent", [*NO_STR, "", "a/b", "@", "x" * 33]),
    ("RunId", lambda db, v: inmem.RunId(v), "run_id", BAD_RUNS),
]


def put(txn: Any) -> None:
    txn.kv.put("k", "must not be stored")


def at(holder: Any, run: Any) -> Any:
    try:
        return holder.at(run)
    finally:
        getattr(holder, "abort", None) and holder.abort()
        getattr(holder, "close", None) and holder.close()


@pytest.mark.parametrize(("call", "argument", "values"), [
    pytest.param(call, argument, values, id=f"{name}({argument})") for name, call, argument, values in TABLE
])
def test_the_rest(
    db: inmem.Database, call: Callable[[inmem.Database, Any], Any], argument: str, values: list[Any]
) -> None:
    version = db.status().version
    for value in values:
        refused(lambda value=value: call(db, value), argument, shown(value))
    assert db.status().version == version
    assert db.kv.count("r") == 0


def test_a_scope_of_another_database(db: inmem.Database) -> None:
    with inmem.open() as other:
        foreign = other.run("r")
        for call in (
            lambda: db.transaction(foreign), lambda: db.snapshot(foreign), lambda: db.transact(foreign, put),
            lambda: at(db.transaction("r"), foreign), lambda: db.pipeline().kv.put(foreign, "k", 1),
        ):
            error = refused(call, "run_id")
            assert "another database" in str(error)


OPENING: list[tuple[str, list[Any]]] = [
    ("path", [7, 1.5, True, b"/tmp/x", [], HUGE, "", "a\0b", "\ud800", Opaque()]),
    ("durability", BAD_DURABILITIES),
    ("tenant", [*NO_STR, "", "a/b", "x" * 33]),
    ("app", [*NO_STR, "", "a/b", "x" * 33]),
    ("agent", [*NO_STR, "", "@", "x" * 33]),
    ("config", [7, 1.5, True, b"x", [], HUGE, "", "a\0b", "/nowhere/at/all.toml", "/", "\ud800", Opaque()]),
    ("timeout_s", BAD_TIMEOUTS),
]


@pytest.mark.parametrize(("argument", "values"), OPENING, ids=[name for name, _ in OPENING])
def test_open(argument: str, values: list[Any], scratch: Path) -> None:
    for value in values:
        options = {"path": scratch / "never", argument: value}
        refused(lambda options=options: inmem.open(**options), argument, shown(value))
    assert list(scratch.iterdir()) == []


def test_a_config_that_is_wrong(scratch: Path) -> None:
    for text in (
        "store = 1",
        "[store]\nquota_bytes = 'x'",
        "[nonsense]\nx = 1",
        "[store]\nlinger_s = nan",
        "= =",
    ):
        path = scratch / "bad.toml"
        path.write_text(text)
        refused(lambda path=path: inmem.open(scratch / "never", config=path), "", text)
    assert [p.name for p in scratch.iterdir()] == ["bad.toml"]


def test_durations_may_be_timedeltas(db: inmem.Database) -> None:
    run = new_run()
    db.transact(run, lambda txn: txn.kv.put("a", 1), timeout_s=timedelta(seconds=5))  # type: ignore[arg-type]
    with db.transaction(run, timeout_s=timedelta(seconds=5)) as txn:  # type: ignore[arg-type]
        txn.kv.put("b", 1)
    with inmem.open(timeout_s=timedelta(seconds=9)) as other:  # type: ignore[arg-type]
        assert other.settings.timeout_s == 9.0
    assert db.kv.list(run) == ["a", "b"]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=4)
    | st.text(st.characters(codec=None), max_size=4) | st.integers(0, len(ODD) - 1).map(lambda i: ODD[i]),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner, inner) | st.dictionaries(
        st.text(max_size=2) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


CALLS = [
    (form, kind, name, good, argument)
    for form, kinds in METHODS.items() for kind, methods in kinds.items() for name, good, bad in methods
    for argument in bad
]


@settings(max_examples=400)
@given(case=st.sampled_from(CALLS), value=junk, run=st.just("good") | junk)
def test_arbitrary_arguments(db: inmem.Database, case: tuple[Any, ...], value: Any, run: Any) -> None:
    """Accepted or refused, but never an error of the internals."""
    form, kind, name, good, argument = case
    try:
        if form in ("facade", "pipeline"):
            holder: Any = db if form == "facade" else db.pipeline()
            getattr(getattr(holder, kind), name)(run, **good | {argument: value})
            if form == "pipeline":
                holder.flush()
        else:
            holder = {"scope": db.run, "transaction": db.transaction, "snapshot": db.snapshot}[form](run)
            try:
                getattr(getattr(holder, kind), name)(**good | {argument: value})
            finally:
                getattr(holder, "abort", None) and holder.abort()
                getattr(holder, "close", None) and holder.close()
    except inmem.InmemError as error:
        assert len(str(error)) < 500


class TestClosed:
    def closed(self, call: Callable[[], Any], what: str) -> None:
        try:
            result = call()
        except inmem.ClosedError as error:
            assert error.hint
            return
        raise AssertionError(f"{what} worked after close: {result!r}")

    @pytest.mark.parametrize("form", ["facade", "scope", "transaction", "snapshot", "pipeline"])
    def test_every_method(self, db: inmem.Database, form: str) -> None:
        run = new_run()
        if form == "facade":
            holder: Any = inmem.open()
        elif form == "scope":
            owner = inmem.open()
            holder = owner.run(run)
        else:
            holder = {"transaction": lambda: db.transaction(run), "snapshot": lambda: db.snapshot(run),
                      "pipeline": db.pipeline}[form]()
        targets = {kind: getattr(holder, kind) for kind in ("kv", "events")}
        if form == "facade":
            holder.close()
            holder.close()
        elif form == "scope":
            owner.close()
        elif form == "transaction":
            holder.kv.put("k", 1)
            holder.events.append("t")
            holder.commit()
        elif form == "snapshot":
            holder.close()
            holder.close()
        else:
            with holder:
                holder.kv.put(run, "k", 1)
        for kind, methods in METHODS[form].items():
            for name, good, _ in methods:
                given_run = {"run_id": run} if form in ("facade", "pipeline") else {}

                def call(kind: str = kind, name: str = name, arguments: Any = given_run | good) -> Any:
                    result = getattr(targets[kind], name)(**arguments)
                    return list(result) if isinstance(result, Iterator) else result

                self.closed(call, f"{kind}.{name}")
        if form == "transaction":
            self.closed(holder.commit, "commit")
            holder.abort()

    @pytest.mark.parametrize("call", [
        lambda db: db.run("r"), lambda db: db.shared("agent"), lambda db: db.transaction("r"),
        lambda db: db.snapshot("r"), lambda db: db.pipeline(), lambda db: db.status(), lambda db: db.sync(),
        lambda db: db.transact("r", put), lambda db: db.run("known").kv.get("k"),
        lambda db: db.kv.get("known", "k"), lambda db: db.events.count("known"),
    ])
    def test_the_database(self, call: Any) -> None:
        database = inmem.open()
        database.kv.put("known", "k", 1)
        database.close()
        self.closed(lambda: call(database), "a call")

    def test_in_another_thread(self) -> None:
        """Its session outlives nothing: the error is ours, not that of a socket."""
        database = inmem.open()
        scope = database.run("r")
        ready, go, errors = threading.Event(), threading.Event(), []

        def work() -> None:
            scope.kv.put("k", 1)
            ready.set()
            go.wait(10)
            for call in (lambda: scope.kv.put("k", 2), lambda: scope.kv.get("k"), lambda: scope.kv.list()):
                try:
                    call()
                except Exception as error:
                    errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert ready.wait(10)
        database.close()
        go.set()
        thread.join(20)
        assert [type(error) for error in errors] == [inmem.ClosedError] * 3
