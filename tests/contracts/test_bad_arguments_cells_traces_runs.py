"""Every bad argument of cells, traces and runs: a typed error that names it, and nothing stored."""

from __future__ import annotations

import decimal
import inspect
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from forms import new_run
from hypothesis import given, settings
from hypothesis import strategies as st

import inmem
from inmem import Custom, Decision, ErrorTrace, NewTrace, Query, RunStatus, Thought, ToolCall
from inmem.storage.environment import Table


class Opaque:
    """An object of the user's, whose repr does not even work."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


HUGE = 10**5000  # Python refuses to print it
NO_STR = [None, 7, 1.5, True, b"bytes", [], {}, ("t",), HUGE, -HUGE, Opaque(), object]
BAD_IDS = [*NO_STR, "", " ", "a/b", "a\0", "r\u00e9", "r\n", "@agent", "x" * 65, "x" * 10**6, "\ud800"]
BAD_RUNS = BAD_IDS
BAD_NAMES = [*NO_STR, "", "\0", "a\0b", "\ud800", "x" * 321, "\u00e9" * 161, "x" * 10**6]
BAD_LABELS = [*NO_STR, "", "\0", "\ud800", "x" * 129, "\u00e9" * 65]
BAD_PREFIXES = [x for x in BAD_NAMES if x is not None and x != ""]
BAD_VALUES = [
    (1, 2), {1}, object(), Opaque(), HUGE, 1 << 63, -(1 << 63) - 1, {1: 2}, bytearray(b"x"), "\ud800",
    [[(1,)]], {"a": {"b": {3}}}, 1j, decimal.Decimal(1), timedelta(1), len, int,
]
BAD_LIMITS = [-1, -HUGE, 1.0, True, False, "1", b"1", [], math.nan, Opaque()]
BAD_VERSIONS = [None, -1, 1 << 63, HUGE, -HUGE, 1.0, True, "1", b"1", [], Opaque()]
BAD_TIMES = [-1, 1 << 63, HUGE, -HUGE, 1.0, True, "1", b"1", [], math.nan, Opaque()]
BAD_FUNCTIONS = [None, 7, "fn", [], Opaque()]
BAD_TAGS = [
    None, 7, HUGE, True, "text", b"bytes", [1], [None], [b"a"], [["a"]], [""], ["a\0"], ["ok", "x" * 129],
    ["\ud800"], [Opaque()], Opaque(), {1: 1},
]
BAD_METADATA = [7, HUGE, True, "text", b"bytes", [("k", 1)], {1: 1}, {b"k": 1}, {"k": {1}}, {"k": HUGE},
                {"\ud800": 1}, {None: 1}, Opaque()]
BAD_BODIES: list[Any] = [
    None, 7, HUGE, "text", b"bytes", {"content": "x"}, [], Opaque(), Thought,
    Thought(7), Thought(Opaque()),  # type: ignore[arg-type]
    Thought("\ud800"), Thought("x", Opaque()), ToolCall(None, {}),  # type: ignore[arg-type]
    ToolCall("t", {1}), ToolCall("t", {}, HUGE),
    Decision("q", ("a",), 1), Decision("q", [{1: 1}], 1), Query("t", 1, HUGE), Query("t", 1, True),
    Decision("q", None, 1), Query("t", 1, None),  # type: ignore[arg-type]
    Query("t", Opaque(), 1), ErrorTrace("t", "m", 1), ErrorTrace("t", Opaque(), True),  # type: ignore[arg-type]
    Custom("", 1), Custom("a\0", 1), Custom("x" * 129, 1), Custom("Thought", 1), Custom("Error", 1),
    Custom(Opaque(), 1), Custom("t", Opaque()),  # type: ignore[arg-type]
]
GOOD = NewTrace(Thought("must not be stored"))
BAD_TRACES = [
    None, 7, HUGE, "text", b"bytes", Opaque(), GOOD, [None], ["ab"], [Thought("x")], [GOOD, None],
    [GOOD, Opaque()], [GOOD, {}],
]
BAD_ATTEMPTS = [None, 0, -1, 1.0, True, "1", HUGE * -1, [], Opaque()]
BAD_TIMEOUTS = [None, 0, -1, 0.0, math.nan, math.inf, True, "1", HUGE, 1e10, timedelta(0), Opaque()]
BAD_STATUSES = [None, "", "Active", "ACTIVE", "done", 7, True, b"active", [], {}, HUGE, Opaque(), RunStatus]
BAD_ERRORS = [7, HUGE, True, b"bytes", [], {}, "\ud800", Opaque()]
BAD_FLAGS = [None, 0, 1, "yes", b"", [], HUGE, Opaque()]
BAD_PARENTS = [x for x in BAD_IDS if x is not None]

LISTING = {"limit": BAD_LIMITS, "start_after": BAD_PARENTS}
RECORD = {
    "body": BAD_BODIES, "id": BAD_PARENTS, "parent_id": BAD_PARENTS, "tags": BAD_TAGS,
    "metadata": BAD_METADATA, "timestamp": [*BAD_TIMES, 0],
}
BODY = {"body": Thought("must not be stored")}


def same(state: inmem.State) -> tuple[Any, None]:
    return state.value, None


BAD_AFTER = [x for x in BAD_NAMES if x is not None]
Method = tuple[str, dict[str, Any], dict[str, list[Any]]]
CELL_READS: list[Method] = [
    ("read", {"name": "c"}, {"name": BAD_NAMES}), ("exists", {"name": "c"}, {"name": BAD_NAMES}),
    ("list", {}, {"prefix": BAD_PREFIXES, "limit": BAD_LIMITS, "start_after": BAD_AFTER}),
    ("iter", {}, {"prefix": BAD_PREFIXES, "start_after": BAD_AFTER}),
]
CELL_WRITES: list[Method] = [
    ("init", {"name": "new", "value": 1}, {"name": BAD_NAMES, "value": BAD_VALUES, "exist_ok": BAD_FLAGS}),
    ("set", {"name": "new", "value": 1}, {"name": BAD_NAMES, "value": BAD_VALUES}),
    ("cas", {"name": "c", "expected_version": 1, "value": 2},
     {"name": BAD_NAMES, "expected_version": BAD_VERSIONS, "value": BAD_VALUES}),
    ("delete", {"name": "new"}, {"name": BAD_NAMES}),
    ("transition", {"name": "c", "fn": same}, {"name": BAD_NAMES, "fn": BAD_FUNCTIONS}),
]
BOUNDED: list[Method] = [
    ("transition", {"name": "c", "fn": same}, {"max_attempts": BAD_ATTEMPTS, "timeout_s": BAD_TIMEOUTS}),
]
GIVEN_LABELS = [x for x in BAD_LABELS if x is not None]
TRACE_READS: list[Method] = [
    ("get", {"trace_id": "t"}, {"trace_id": BAD_IDS}),
    ("query_by_type", {"name": "Thought"}, {"name": BAD_LABELS} | LISTING),
    ("query_by_tag", {"tag": "x"}, {"tag": BAD_LABELS} | LISTING),
    ("query_by_time", {"start": 0, "end": 1},
     {"start": [None, *BAD_TIMES], "end": [None, *BAD_TIMES]} | LISTING),
    ("get_children", {"parent_id": "t"}, {"parent_id": BAD_IDS} | LISTING),
    ("get_tree", {"root_id": "t"}, {"root_id": BAD_IDS}),
    ("roots", {}, LISTING), ("list", {}, LISTING),
    ("recorded_after", {"version": 0}, {"version": [x for x in BAD_VERSIONS if x != 0]}),
    ("iter", {},
     {"type_name": GIVEN_LABELS, "tag": GIVEN_LABELS, "parent_id": [x for x in BAD_PARENTS if x != ""],
      "start": BAD_TIMES, "end": [x for x in BAD_TIMES if x is not None], "start_after": BAD_PARENTS}),
]
TRACE_WRITES: list[Method] = [
    ("record", BODY, RECORD),
    ("record_child", BODY | {"parent_id": "t"}, RECORD | {"parent_id": BAD_IDS}),
    ("record_many", {"traces": [GOOD]}, {"traces": BAD_TRACES}),
]
CONDITIONS = {
    "status": [x for x in BAD_STATUSES if x is not None], "tags": BAD_TAGS, "created_after": BAD_TIMES,
    "created_before": BAD_TIMES, "parent_run": BAD_PARENTS, "limit": BAD_LIMITS, "start_after": BAD_PARENTS,
}
RUN_READS: list[Method] = [
    *((name, {}, CONDITIONS | {"query": [7, "text", {}, [], True, HUGE, RunStatus.ACTIVE, Opaque()],
                               "nonsense": [1, None]}) for name in ("query_runs", "iter_runs")),
    ("list_runs", {}, LISTING), ("get_child_runs", {}, LISTING),
]
RUN_WRITES: list[Method] = [
    ("create_run", {},
     {"parent_run": BAD_PARENTS, "tags": BAD_TAGS, "metadata": BAD_METADATA, "exist_ok": BAD_FLAGS}),
    ("update_status", {"status": RunStatus.PAUSED}, {"status": BAD_STATUSES, "error": BAD_ERRORS}),
    ("fail_run", {"error": "broke"}, {"error": [None, "", *BAD_ERRORS]}),
    ("add_tags", {"tags": ["t"]}, {"tags": BAD_TAGS}),
    ("update_metadata", {"metadata": {}}, {"metadata": [None, *BAD_METADATA]}),
]
BARE = ("complete_run", "cancel_run", "pause_run", "resume_run", "archive_run", "delete_run", "get_run")
OF_RUN: list[Method] = [
    ("get_run", {}, {"run_id": BAD_PARENTS}), ("get_child_runs", {}, {"run_id": BAD_PARENTS}),
]
GIVEN_TIMEOUTS = [x for x in BAD_TIMEOUTS if x is not None]
CELL_WAITS: list[Method] = [
    ("wait", {"name": "c", "after": 7},
     {"name": BAD_NAMES, "after": [x for x in BAD_VERSIONS if x is not None], "timeout_s": GIVEN_TIMEOUTS}),
]
TRACE_WAITS: list[Method] = [("follow", {}, {"start_after": BAD_PARENTS, "timeout_s": GIVEN_TIMEOUTS})]
RUN_WAITS: list[Method] = [
    ("wait", {"until": list(RunStatus)},
     {"until": [x for x in BAD_STATUSES if x is not RunStatus], "timeout_s": GIVEN_TIMEOUTS}),
]
BAD_HOLDERS = [*(x for x in NO_STR if x is not None), "", "\ud800", "x" * 257, "\u00e9" * 129]
BAD_OLDER = [x for x in BAD_TIMEOUTS if x not in (0, timedelta(0))] + [None]
GIVEN_WAITS = [x for x in GIVEN_TIMEOUTS if x not in (0, timedelta(0))]
CLAIM = {"ttl_s": BAD_TIMEOUTS, "holder": BAD_HOLDERS, "wait_s": GIVEN_WAITS}
RUN_WAITS += [
    ("claim", {"ttl_s": 9}, CLAIM),
    ("stale", {}, {"older_than_s": BAD_OLDER}),
    ("fail_stale", {}, {"error": [None, "", *BAD_ERRORS], "older_than_s": BAD_OLDER}),
    ("prune", {}, {
        "status": [*BAD_STATUSES, "active", [RunStatus.FAILED, RunStatus.PAUSED]],
        "older_than_s": BAD_OLDER, "keep_last": [-1, 1.0, "1", True, None],
    }),
]
METHODS: dict[str, dict[str, list[Method]]] = {
    "facade": {
        "cells": CELL_READS + CELL_WRITES + BOUNDED + CELL_WAITS,
        "traces": [*TRACE_READS, ("count", {}, {}), *TRACE_WRITES, *TRACE_WAITS],
        "runs": [*RUN_READS, *RUN_WRITES, *((name, {}, {}) for name in BARE), *RUN_WAITS],
    },
    "scope": {
        "cells": CELL_READS + CELL_WRITES + BOUNDED + CELL_WAITS,
        "traces": TRACE_READS + TRACE_WRITES + TRACE_WAITS,
        "runs": [*RUN_READS, *OF_RUN, *RUN_WRITES, *RUN_WAITS],
    },
    "snapshot": {"cells": CELL_READS, "traces": TRACE_READS,
                 "runs": [*RUN_READS, *OF_RUN]},
}
METHODS["transaction"] = {
    "cells": CELL_READS + CELL_WRITES, "traces": TRACE_READS + TRACE_WRITES,
    "runs": [*RUN_READS, *OF_RUN, *RUN_WRITES],
}
# Of the facade: about all runs.
WHOLE = ("query_runs", "iter_runs", "list_runs", "get_stats", "stale", "fail_stale", "prune")
OWN = "own-run"


def bad_of(form: str, kind: str, name: str, bad: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if form != "facade" or (kind == "runs" and name in WHOLE):
        return bad
    return bad | {"run_id": BAD_PARENTS if name == "create_run" else BAD_RUNS}


CASES = [
    pytest.param(form, kind, name, good, argument, values, id=f"{form}.{kind}.{name}({argument})")
    for form, kinds in METHODS.items() for kind, methods in kinds.items() for name, good, bad in methods
    for argument, values in bad_of(form, kind, name, bad).items()
]


@pytest.fixture(scope="module")
def db() -> Iterator[inmem.Database]:
    with inmem.open() as database:
        yield database


def rows(db: inmem.Database) -> dict[bytes, bytes]:
    snapshot = db.engine.attachment.image.snapshot(30.0)
    try:
        return {bytes(key): bytes(record) for key, record in snapshot.table(Table.DATA)}
    finally:
        snapshot.close()


def shown(value: object) -> str:
    try:
        return repr(value)[:40]
    except Exception:
        return f"<{type(value).__name__}>"


def refused(call: Callable[[], Any], argument: str, value: Any) -> inmem.InmemError:
    """The error of a call, which must be ours and name the argument."""
    try:
        result = call()
    except inmem.InmemError as error:
        named = getattr(error, "argument", None) or getattr(error, "what", None) or ""
        assert argument in named or argument in str(error), (shown(value), error)
        assert error.hint
        assert len(str(error)) < 500
        return error
    except Exception as error:
        raise AssertionError(f"{argument}={shown(value)}: {type(error).__name__}: {error!s:.200}") from None
    raise AssertionError(f"{argument}={shown(value)} was accepted: {result!r:.100}")


def prepared(db: inmem.Database) -> str:
    """A run with something in each of the three."""
    run = new_run()
    db.cells.init(run, "c", 1)
    db.traces.record(run, Thought("x"), id="t")
    return run


def holder_of(db: inmem.Database, form: str, run: str) -> Any:
    return {"facade": lambda: db, "scope": lambda: db.run(run), "transaction": lambda: db.transaction(run),
            "snapshot": lambda: db.snapshot(run)}[form]()


def arguments_of(form: str, kind: str, name: str, run: str) -> dict[str, Any]:
    return {"run_id": run} if form == "facade" and not (kind == "runs" and name in WHOLE) else {}


@pytest.mark.parametrize(("form", "kind", "name", "good", "argument", "values"), CASES)
def test_methods(
    db: inmem.Database, form: str, kind: str, name: str, good: dict[str, Any], argument: str,
    values: list[Any],
) -> None:
    run = prepared(db)
    if kind == "runs" and name != "create_run":
        db.runs.create_run(run_id=run)
    before, version = rows(db), db.status().version
    holder = holder_of(db, form, run)
    method = getattr(getattr(holder, kind), name)
    for value in values:
        arguments = arguments_of(form, kind, name, run) | good | {argument: value}
        refused(lambda arguments=arguments: method(**arguments), argument, value)
    if form == "transaction":
        holder.commit()  # all was refused: there is nothing to commit
        assert holder.version is None
    elif form == "snapshot":
        holder.close()
    assert (rows(db), db.status().version) == (before, version)


@pytest.mark.parametrize("form", METHODS)
def test_the_good_arguments_are_good(db: inmem.Database, form: str) -> None:
    """Else the tests above would pass for another reason."""
    for kind, methods in METHODS[form].items():
        for name, good, _ in methods:
            run = prepared(db)
            if kind == "runs" and name != "create_run":
                db.runs.create_run(run_id=run)
            if name == "resume_run":
                db.runs.pause_run(run)
            holder = holder_of(db, form, run)
            getattr(getattr(holder, kind), name)(**arguments_of(form, kind, name, run) | good)
            if form in ("transaction", "snapshot"):
                (holder.commit if form == "transaction" else holder.close)()


@pytest.mark.parametrize("form", METHODS)
def test_no_method_and_no_argument_is_left_out(db: inmem.Database, form: str) -> None:
    holder = holder_of(db, form, prepared(db))
    # Anything goes for a flag of a listing; conditions are given one by one.
    plain = {"reverse", "include_archived", "include_uncreated", "conditions"}
    for kind, methods in METHODS[form].items():
        target = getattr(holder, kind)
        public = {n for n in dir(target) if not n.startswith("_") and callable(getattr(target, n))}
        public -= {"create_run_with_options", "get_stats", "count", "newer"}
        if form != "facade":
            public -= set(BARE) - {"get_run"}
        assert public <= {name for name, _, _ in methods} | {"delete_run"}, kind
        for name in public - {"delete_run"}:
            tried = {a for n, _, bad in methods if n == name for a in bad_of(form, kind, name, bad)}
            parameters = set(inspect.signature(getattr(target, name)).parameters) - plain
            assert parameters - tried == set(), (kind, name)
    for closing in ("abort", "close"):
        if form in ("transaction", "snapshot") and hasattr(holder, closing):
            getattr(holder, closing)()


FIELDS = [(name, RECORD[name]) for name in RECORD]


@pytest.mark.parametrize(("field", "values"), FIELDS, ids=[name for name, _ in FIELDS])
@pytest.mark.parametrize("form", ["facade", "scope", "transaction"])
def test_fields_of_new_traces(db: inmem.Database, form: str, field: str, values: list[Any]) -> None:
    """And of many the good ones are not recorded either."""
    run = prepared(db)
    holder = holder_of(db, form, run)
    for value in values:
        new = NewTrace(**BODY | {field: value})
        arguments = arguments_of(form, "traces", "record_many", run)
        refused(
            lambda arguments=arguments, new=new: holder.traces.record_many(traces=[GOOD, new], **arguments),
            field, value,
        )
        if form == "transaction":
            assert holder.traces.count() == 1
    if form == "transaction":
        holder.abort()
    assert db.traces.count(run) == 1


def test_options_that_are_none(db: inmem.Database) -> None:
    for options in (None, 7, HUGE, "text", {}, [], {"run_id": "r"}, inmem.CreateRunOptions, Opaque()):
        refused(lambda options=options: db.runs.create_run_with_options(options), "options", options)


@pytest.mark.parametrize(("field", "values"), [
    ("run_id", BAD_PARENTS), ("parent_run", BAD_PARENTS), ("tags", BAD_TAGS), ("metadata", BAD_METADATA),
])
def test_options_with_a_bad_field(db: inmem.Database, field: str, values: list[Any]) -> None:
    before = rows(db)
    for value in values:
        options = inmem.CreateRunOptions(**{field: value})
        refused(lambda options=options: db.runs.create_run_with_options(options), field, value)
    assert rows(db) == before


@pytest.mark.parametrize("field", CONDITIONS)
def test_a_query_with_a_bad_field(db: inmem.Database, field: str) -> None:
    for value in CONDITIONS[field]:
        query = inmem.RunQuery(**{field: value})
        refused(lambda query=query: db.runs.query_runs(query), field, value)
    refused(lambda: db.runs.query_runs(inmem.RunQuery(), limit=1), "RunQuery", "both")


@pytest.mark.parametrize("run_id", [*BAD_PARENTS[:6], 7, "a/b"])
def test_repair_of_a_bad_run(db: inmem.Database, run_id: Any) -> None:
    refused(lambda: db.repair_indices(run_id), "run_id", run_id)


ODD = [HUGE, -HUGE, Opaque(), object(), len, ..., RunStatus.PAUSED, GOOD, Thought("x")]  # by index
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
    for argument in bad_of(form, kind, name, bad)
]


def _lasts(timeout_s: Any) -> bool:
    """Whether a wait would take this, and wait."""
    if isinstance(timeout_s, timedelta):
        return timeout_s > timedelta(0)
    return timeout_s is None or (isinstance(timeout_s, int | float) and not timeout_s <= 0)


@settings(max_examples=500)
@given(case=st.sampled_from(CALLS), value=junk, second=junk, which=st.integers(0, 9))
def test_arbitrary_arguments(
    db: inmem.Database, case: tuple[Any, ...], value: Any, second: Any, which: int
) -> None:
    """Accepted or refused, but never an error of the internals; whatever is stored can be listed again."""
    form, kind, name, good, argument = case
    holder = holder_of(db, form, OWN)
    arguments = arguments_of(form, kind, name, OWN) | good | {argument: value}
    names = sorted(arguments)
    if which < len(names):
        arguments[names[which]] = second
    if name == "wait" and _lasts(arguments.get("timeout_s")):
        arguments["timeout_s"] = 0.001
    try:
        getattr(getattr(holder, kind), name)(**arguments)
        if form == "transaction":
            holder.commit()
    except inmem.InmemError as error:
        assert len(str(error)) < 500
    finally:
        if form == "transaction":
            holder.abort()
        elif form == "snapshot":
            holder.close()
    with db.snapshot(OWN) as view:
        assert len(view.traces.list()) == view.traces.count()
        assert len(view.runs.query_runs(include_archived=True)) == view.runs.get_stats().total
        assert all(view.cells.read(cell) is not None for cell in view.cells.list())


@pytest.mark.parametrize("form", ["facade", "transaction", "snapshot"])
def test_after_the_end_every_method_says_so(form: str) -> None:
    database = inmem.open()
    run = prepared(database)
    holder = holder_of(database, form, run)
    targets = {kind: getattr(holder, kind) for kind in METHODS[form]}
    with inmem.open(database.path):  # keeps what is shared alive
        (holder.abort if form == "transaction" else holder.close if form == "snapshot" else database.close)()
        for kind, methods in METHODS[form].items():
            for name, good, _ in methods:
                arguments = arguments_of(form, kind, name, run) | good
                with pytest.raises(inmem.ClosedError):
                    result = getattr(targets[kind], name)(**arguments)
                    list(result) if name in ("iter", "iter_runs") else result
    database.close()
