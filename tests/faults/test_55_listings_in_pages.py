"""Every listing can be gone on with from where it stopped, and has a streaming form in bounded memory."""

from __future__ import annotations

import inspect
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inmem
from inmem.errors import RunDeletedError
from inmem.primitives import _paging
from inmem.primitives.cells.facade import CellReads
from inmem.primitives.events.facade import EventReads
from inmem.primitives.kv.facade import KVReads
from inmem.primitives.runs import reads as run_reads
from inmem.primitives.runs.reads import RunReads
from inmem.primitives.traces.facade import TraceReads

RUN = "run"
COUNT = 23


def key_of(item: Any) -> Any:
    """What an item of a listing is known by."""
    if isinstance(item, inmem.Event):
        return item.sequence
    if isinstance(item, inmem.Trace):
        return item.id
    if isinstance(item, inmem.RunMetadata):
        return item.run_id
    return item[0] if isinstance(item, tuple) else item


# facade, method, arguments; then the streaming form's name and arguments
LISTINGS: list[tuple[str, str, tuple[Any, ...], str, dict[str, Any]]] = [
    ("kv", "list", ("k",), "iter", {"prefix": "k"}),
    ("kv", "list_with_values", (), "iter", {}),
    ("kv", "list_versioned", (), "iter", {}),
    ("cells", "list", ("c",), "iter", {"prefix": "c"}),
    ("events", "query_by_type", ("even",), "iter", {"event_type": "even"}),
    ("traces", "list", (), "iter", {}),
    ("traces", "roots", (), "iter", {"parent_id": ""}),
    ("traces", "get_children", ("root",), "iter", {"parent_id": "root"}),
    ("traces", "query_by_type", ("Thought",), "iter", {"type_name": "Thought"}),
    ("traces", "query_by_tag", ("odd",), "iter", {"tag": "odd"}),
    ("traces", "query_by_time", (1000, 1015), "iter", {"start": 1000, "end": 1015}),
    ("runs", "query_runs", (), "iter_runs", {}),
    ("runs", "list_runs", (), "iter_runs", {}),
    ("runs", "get_child_runs", (RUN,), "iter_runs", {"parent_run": RUN, "include_archived": True}),
]
NAMES = [f"{kind}.{name}" for kind, name, *_ in LISTINGS]


@pytest.fixture(scope="module")
def store() -> Iterator[inmem.Database]:
    with inmem.open() as db:
        scope = db.run(RUN)
        scope.runs.create_run()
        scope.kv.put_many({f"k{n:03}": n for n in range(COUNT)} | {"other": 1})
        scope.events.append_many([("odd" if n % 2 else "even", n) for n in range(COUNT)])
        scope.traces.record(inmem.Thought("root"), id="root", timestamp=1)
        for n in range(COUNT):
            scope.cells.init(f"c{n:03}", n)
            scope.traces.record(
                inmem.Thought(str(n)), id=f"t{COUNT - n}", tags=["odd"] if n % 2 else [],
                parent_id="root" if n % 3 else None, timestamp=1000 + n // 2,  # some at the same time
            )
            db.runs.create_run(run_id=f"child-{COUNT - n}", parent_run=RUN, tags=["x"])
            if n % 4 == 0:
                db.runs.complete_run(f"child-{COUNT - n}")
        db.runs.archive_run("child-3")
        yield db


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_paging, "CHUNK", 4)
    monkeypatch.setattr(run_reads, "CHUNK", 4)


FORMS: dict[str, Callable[[inmem.Database], Any]] = {
    "scope": lambda db: db.run(RUN),
    "snapshot": lambda db: db.snapshot(RUN),
    "transaction": lambda db: db.transaction(RUN),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("listing", LISTINGS, ids=NAMES)
def test_pages_and_streams_give_the_whole(
    store: inmem.Database, listing: tuple[Any, ...], form: str, reverse: bool
) -> None:
    kind, name, arguments, streaming, conditions = listing
    holder = FORMS[form](store)
    facade = getattr(holder, kind)
    ask = getattr(facade, name)
    whole = ask(*arguments, reverse=reverse)
    assert len(whole) > 5
    for size in (1, 3, 4, len(whole), 100):
        pages, place = [], None
        while page := ask(*arguments, limit=size, start_after=place, reverse=reverse):
            assert len(page) <= size
            pages += page
            # By what an item is known by, and by the item itself where that is taken.
            place = page[-1] if isinstance(page[-1], inmem.Trace | inmem.RunMetadata) and size == 3 \
                else key_of(page[-1])
        assert pages == whole
    streamed = [*getattr(facade, streaming)(**conditions, reverse=reverse)]
    order = sorted if name == "list_runs" else list  # which is in another order
    assert order(map(key_of, streamed)) == order(map(key_of, whole))
    if form != "scope":
        (holder.close if form == "snapshot" else holder.abort)()


BY_OTHER_MEANS = ("read_range", "read_by_type")  # one has a start; the other is an older name


def test_no_listing_is_left_out() -> None:
    """What takes a limit takes a start as well, and is in the table above."""
    known = {tuple(name.split(".")) for name in NAMES}
    first = {"kv": KVReads, "events": EventReads, "cells": CellReads}
    for kind, reads in (first | {"traces": TraceReads, "runs": RunReads}).items():
        for name, method in inspect.getmembers(reads, inspect.isfunction):
            parameters = inspect.signature(method).parameters
            if name[0] != "_" and "limit" in parameters and name not in BY_OTHER_MEANS:
                assert "start_after" in parameters and (kind, name) in known, (kind, name)
    assert {"limit", "start_after"} <= set(inmem.RunQuery.__slots__)


@pytest.mark.parametrize("kind", ["kv", "cells", "traces"])
def test_a_run_that_is_deleted_in_the_middle(store: inmem.Database, kind: str) -> None:
    """The events' streams: see test_47."""
    silent = 0
    for after in range(1, 10):
        scope = store.run(f"deleted-{kind}-{after}")
        scope.kv.put_many({f"k{n}": n for n in range(9)})
        for n in range(9):
            scope.cells.init(f"c{n}", n)
            scope.traces.record(inmem.Thought(str(n)))
        read = 0
        try:
            for _ in getattr(scope, kind).iter():
                read += 1
                if read == after:
                    scope.runs.delete_run()
            assert read == 9, "a silent end"
            silent += 1
        except RunDeletedError as error:
            assert read < 9 and error.run_id == scope.run_id
    assert silent == 1  # of 9 with pages of 4: it had read all when it was deleted


def test_a_stream_that_is_emptied_by_hand_ends(store: inmem.Database) -> None:
    scope = store.run("emptied")
    scope.kv.put_many({f"k{n}": n for n in range(9)})
    seen = []
    for key, _ in scope.kv.iter():
        seen.append(key)
        for n in range(9):
            scope.kv.delete(f"k{n}")
    assert seen == ["k0", "k1", "k2", "k3"]  # the page that was read


def test_a_run_that_changes_while_runs_are_streamed_comes_once(store: inmem.Database) -> None:
    with inmem.open(store.path, agent="changing") as db:
        names = [db.runs.create_run(run_id=f"r{n:02}").run_id for n in range(20)]
        seen = []
        for run in db.runs.iter_runs():
            seen.append(run.run_id)
            db.runs.complete_run(run.run_id)  # it moves to another index
            ahead = names[len(seen) + 5 : len(seen) + 6]
            if ahead and db.runs.get_run(ahead[0]).status == "active":  # type: ignore[union-attr]
                db.runs.pause_run(ahead[0])
                db.runs.resume_run(ahead[0])
        assert seen == names


def test_a_page_can_be_gone_on_with_when_its_last_run_is_deleted(store: inmem.Database) -> None:
    with inmem.open(store.path, agent="deleting") as db:
        for n in range(6):
            db.runs.create_run(run_id=f"r{n}")
        page = db.runs.query_runs(limit=3)
        db.runs.delete_run("r2")
        assert [run.run_id for run in db.runs.query_runs(start_after=page[-1])] == ["r3", "r4", "r5"]
        assert db.runs.list_runs(start_after="r2") == ["r3", "r4", "r5"]
        with pytest.raises(inmem.RunNotFoundError, match="r2 to start after"):
            db.runs.query_runs(start_after="r2")
        with pytest.raises(inmem.TraceNotFoundError, match="none to start after"):
            db.traces.list(RUN, start_after="none")


@pytest.mark.parametrize("kind", ["kv", "cells", "traces", "events"])
def test_streams_are_bounded_by_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # pages as they are
    large = b"x" * (1 << 20)
    with inmem.open() as db:
        scope = db.run("large")
        write: dict[str, Callable[[int], Any]] = {
            "kv": lambda n: scope.kv.put(f"k{n}", large),
            "cells": lambda n: scope.cells.set(f"k{n}", large),
            "traces": lambda n: scope.traces.record(inmem.Custom("large", {"data": large})),
            "events": lambda n: scope.events.append("large", large),
        }
        for n in range(40):
            write[kind](n)
        arguments: dict[str, Any] = {"event_type": "large"} if kind == "events" else {}
        tracemalloc.start()
        try:
            count = sum(1 for _ in getattr(scope, kind).iter(**arguments))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    print(f"40 MiB of {kind}: {peak / (1 << 20):.0f} MiB at most")
    assert count == 40 and peak < 20 << 20
