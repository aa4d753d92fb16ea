"""Data goes one way: from the facade to the engine, to storage or to the writer; nothing turns back.

Calls are recorded while a store is used. A read and a write call only into
layers below, and none of the facades' layers is entered from below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from architecture.test_imports import RANK, part_of

import inmem

RUN = "flow"
# What each call passes through, in this order, after the facade. The writer is another process.
READS = {
    "get": lambda db: db.kv.get(RUN, "key"),
    "read": lambda db: db.cells.read(RUN, "cell"),
    "list": lambda db: db.kv.list(RUN),
    "events": lambda db: db.events.read(RUN, 0),
    "trace": lambda db: db.traces.query_by_type(RUN, "thought"),
    "runs": lambda db: db.runs.list_runs(),
}
WRITES = {
    "put": lambda db: db.kv.put(RUN, "key", 1),
    "add": lambda db: db.kv.add(RUN, "number"),
    "append": lambda db: db.events.append(RUN, "happened"),
    "set": lambda db: db.cells.set(RUN, "cell", 1),
    "record": lambda db: db.traces.record(RUN, inmem.Thought("so")),
}


def edges(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """The calls from one module of the package into another, in their order."""
    found = []

    def seen(frame: FrameType, event: str, arg: Any) -> None:
        below = frame.f_back
        if event != "call" or below is None:
            return
        to, by = (each.f_globals.get("__name__", "") for each in (frame, below))
        if to.startswith("inmem.") and by.startswith("inmem.") and to != by:
            found.append((by, to))

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


# Functions that were handed down with a call, by and of which part: the scope of a run, for the form with the
# run first; the call that has its turn; what becomes of a result; a snapshot when one is needed.
HANDED_DOWN = {
    ("primitives.facades", "database"), ("host", "client"), ("client", "primitives.facades"),
    ("client", "engines"),
}


@pytest.fixture
def used(db: inmem.Database) -> inmem.Database:
    """A store in which every call has been made once, so that nothing has to be set up."""
    for call in (*WRITES.values(), *READS.values()):
        call(db)
    return db


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_calls_go_down(used: inmem.Database, name: str) -> None:
    found = edges(lambda: (READS | WRITES)[name](used))
    assert found, "nothing was recorded"
    up = {
        (by, to) for by, to in found
        if RANK[part_of(to)] > RANK[part_of(by)] and (part_of(by), part_of(to)) not in HANDED_DOWN
    }
    assert not up, "\n".join(f"{by} calls {to}" for by, to in sorted(up))
    parts = [part_of(to) for _, to in found]
    below = parts[next(n for n, part in enumerate(parts) if part in ("client", "engines", "storage")) :]
    assert not {"writer", "database", "scopes"} & set(below), "it turned back"
    assert ("storage" in parts) == (name in READS)
