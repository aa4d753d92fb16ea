"""Every bad argument of every public method: a typed error that names it, and nothing stored."""

from __future__ import annotations

import decimal
import math
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from forms import Bound, new_run
from hypothesis import given, settings
from hypothesis import strategies as st

import inmem
from inmem.config import MAX_TTL_S


class Opaque:
    """An object of the user's, whose repr does not even work."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


HUGE = 10**5000  # Python refuses to print it
NO_STR = [None, 7, 1.5, True, b"bytes", [], {}, ("t",), HUGE, -HUGE, Opaque(), object]
BAD_RUNS = [*NO_STR, "", " ", "a/b", "r\u00e9", "r\n", "x" * 65, "@agent", "x" * 10**6, "\ud800"]
BAD_NAMES = [*NO_STR, "", "\0", "a\0b", "\ud800", "x" * 321, "\u00e9" * 161, "x" * 10**6]
BAD_LABELS = [*NO_STR, "", "\0", "\ud800", "x" * 129, "\u00e9" * 65]
BAD_PREFIXES = [x for x in BAD_NAMES if x is not None and x != ""]
BAD_VALUES = [
    (1, 2),
    {1},
    object(),
    Opaque(),
    HUGE,
    1 << 63,
    -(1 << 63) - 1,
    {1: 2},
    {b"k": 1},
    bytearray(b"x"),
    "\ud800",
    [[(1,)]],
    {"a": {"b": {3}}},
    1j,
    decimal.Decimal(1),
    timedelta(1),
    len,
    int,
]
BAD_TTLS = [
    0,
    -1,
    0.0,
    -0.5,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    HUGE,
    -HUGE,
    MAX_TTL_S + 1,
    "10",
    b"10",
    [],
    {},
    timedelta(0),
    timedelta(seconds=-1),
    timedelta.max,
    decimal.Decimal(1),
    1j,
    Opaque(),
]
BAD_LIMITS = [-1, -HUGE, 1.0, True, False, "1", b"1", [], math.nan, Opaque()]
BAD_SEQUENCES = [None, -1, 1 << 63, HUGE, -HUGE, 1.0, True, "0", b"0", [], Opaque()]
BAD_NUMBERS = [None, True, "1", b"1", [], {}, 1 << 63, -(1 << 63) - 1, HUGE, 1j, decimal.Decimal(1), Opaque()]
BAD_ENDS = [x for x in BAD_SEQUENCES if x is not None]
BAD_KEYS = [
    None,
    7,
    "text",
    b"bytes",
    [1],
    [None],
    [b"k"],
    [""],
    ["ok", "a\0b"],
    [["k"]],
    [HUGE],
    True,
    Opaque(),
]
BAD_MAPPINGS = [
    None, 7, "text", [("k", 1)], {1: 1}, {None: 1}, {b"k": 1}, {"": 1}, {"ok": 1, "a\0": 1}, {"k": {1}},
    {"ok": 1, "k": HUGE}, {("t",): 1}, Opaque(),
]
BAD_FIELDS = [
    None, 7, "text", [("k", 1)], {1: 1}, {None: 1}, {b"k": 1}, {"k": {1}}, {"ok": 1, "k": HUGE}, {("t",): 1},
    {"\ud800": 1}, Opaque(),
]
BAD_EVENTS = [
    None,
    7,
    "text",
    b"bytes",
    ["ab"],
    [1],
    [None],
    [("t",)],
    [("t", 1, 2)],
    [("", 1)],
    [("t", {1})],
    [(1, 1)],
    [("ok", 1), ("\0", 1)],
    [{"t": 1}],
    [("x" * 129, 1)],
    True,
    Opaque(),
]
BAD_ANCHORS = [
    7, "text", b"x", (), (1,), (1, 2, 3), (0, "x" * 32), (0, b"x"), (-1, bytes(32)), (1.0, bytes(32)),
    (None, bytes(32)), (0, None), {}, {0: 1, 2: 3}, True, Opaque(), HUGE,
]
BAD_TIMEOUTS = [
    0,
    -1,
    0.0,
    math.nan,
    math.inf,
    True,
    "1",
    b"1",
    [],
    HUGE,
    -HUGE,
    1e10,
    timedelta(0),
    timedelta.max,
    Opaque(),
]
BAD_DURABILITIES = [7, "", "SYNC", "fast", b"sync", [], True, HUGE, Opaque()]
BAD_ATTEMPTS = [None, 0, -1, 1.0, True, "1", HUGE * -1, math.nan, [], Opaque()]

# facade, method, good arguments, {argument: bad values}
KV_READS = [
    ("get", {"key": "k"}, {"key": BAD_NAMES}),
    ("get_versioned", {"key": "k"}, {"key": BAD_NAMES}),
    ("exists", {"key": "k"}, {"key": BAD_NAMES}),
    ("ttl", {"key": "k"}, {"key": BAD_NAMES}),
    ("get_many", {"keys": ["k"]}, {"keys": BAD_KEYS}),
    ("count", {"prefix": "k"}, {"prefix": BAD_PREFIXES}),
    *[
        (
            name,
            {"prefix": "k", "start_after": "zz"},
            {
                "prefix": BAD_PREFIXES,
                "limit": BAD_LIMITS,
                "start_after": [x for x in BAD_NAMES if x is not None],
            },
        )
        for name in ("list", "list_with_values")
    ],
]
KV_WRITES = [
    ("put", {"key": "k", "value": 1}, {"key": BAD_NAMES, "value": BAD_VALUES, "ttl": BAD_TTLS}),
    ("put_with_ttl", {"key": "k", "value": 1, "ttl": 9},
     {"key": BAD_NAMES, "value": BAD_VALUES, "ttl": [None, *BAD_TTLS]}),
    ("put_many", {"mapping": {"k": 1}}, {"mapping": BAD_MAPPINGS, "ttl": BAD_TTLS}),
    ("add", {"key": "k"}, {"key": BAD_NAMES, "delta": BAD_NUMBERS, "initial": BAD_NUMBERS}),
    ("merge", {"key": "k", "fields": {"a": 1}}, {"key": BAD_NAMES, "fields": BAD_FIELDS}),
    ("delete", {"key": "k"}, {"key": BAD_NAMES}),
]
EVENT_READS = [
    ("read", {"sequence": 0}, {"sequence": BAD_SEQUENCES}),
    ("read_range", {"start": 0}, {"start": BAD_SEQUENCES, "end": BAD_ENDS, "limit": BAD_LIMITS}),
    ("iter", {"start": 0}, {"start": BAD_SEQUENCES}),
    ("read_by_type", {"event_type": "t"}, {"event_type": BAD_LABELS, "limit": BAD_LIMITS}),
    ("verify_chain", {}, {"anchor": BAD_ANCHORS}),
]
EVENT_WRITES = [
    ("append", {"event_type": "t"}, {"event_type": BAD_LABELS, "payload": BAD_VALUES}),
    ("append_many", {"events": [("t", 1)]}, {"events": BAD_EVENTS}),
]
METHODS = {
    "facade": {"kv": KV_READS + KV_WRITES, "events": [
        ("head", {}, {}), ("len", {}, {}), *EVENT_READS, *EVENT_WRITES]},
    "scope": {"kv": KV_READS + KV_WRITES, "events": EVENT_READS + EVENT_WRITES},
    "transaction": {"kv": KV_READS + KV_WRITES, "events": EVENT_READS + EVENT_WRITES},
    "snapshot": {"kv": KV_READS, "events": EVENT_READS},
    "pipeline": {"kv": KV_WRITES, "events": EVENT_WRITES},
}
CASES = [
    pytest.param(form, kind, name, good, argument, values, id=f"{form}.{kind}.{name}({argument})")
    for form, kinds in METHODS.items() for kind, methods in kinds.items() for name, good, bad in methods
    for argument, values in (bad | ({"run_id": BAD_RUNS} if form in ("facade", "pipeline") else {})).items()
]


@pytest.fixture(scope="module")
def db() -> Iterator[inmem.Database]:
    with inmem.open() as database:
        yield database


def refused(call: Callable[[], Any], argument: str, what: str = "") -> inmem.InmemError:
    """The error of a call, which must be ours and name the argument."""
    try:
        result = call()
    except inmem.InmemError as error:
        named = getattr(error, "argument", None) or getattr(error, "what", None) or ""
        assert argument in named or argument in str(error), (what, error)
        assert error.hint
        assert len(str(error)) < 500
        return error
    raise AssertionError(f"{what} was accepted: {result!r:.100}")


def shown(value: object) -> str:
    try:
        return repr(value)[:40]
    except Exception:
        return f"<{type(value).__name__}>"


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
    assert db.events.len(run) == 0
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


ODD = [HUGE, -HUGE, Opaque(), object(), len, ...]  # by index: hypothesis prints what it draws from
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
                    return list(result) if name == "iter" else result

                self.closed(call, f"{kind}.{name}")
        if form == "transaction":
            self.closed(holder.commit, "commit")
            holder.abort()

    @pytest.mark.parametrize("call", [
        lambda db: db.run("r"), lambda db: db.shared("agent"), lambda db: db.transaction("r"),
        lambda db: db.snapshot("r"), lambda db: db.pipeline(), lambda db: db.status(), lambda db: db.sync(),
        lambda db: db.transact("r", put), lambda db: db.run("known").kv.get("k"),
        lambda db: db.kv.get("known", "k"), lambda db: db.events.len("known"),
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
