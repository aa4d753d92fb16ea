"""Runs with something of everything, to be exported."""

from __future__ import annotations

import io
from typing import Any

import inmem
from inmem.exchange import export_runs

ODD = [
    None, True, 1, 1.0, -0.0, float("nan"), float("inf"), -(1 << 63), (1 << 63) - 1, 5e-324, b"", b"\xff\0",
    "", "\u2028\x85\x7f\0\n\U0001f600", {"$bytes": "eA=="}, {"$$": {"$float": "nan"}}, [[], {}, [None]],
    {"b": 1, "a": {"": b"x"}},
]  # fmt: skip


def exported(database: Any, *runs: str, **more: Any) -> bytes:
    out = io.BytesIO()
    export_runs(database, out, list(runs) or None, **more)
    return out.getvalue()


def fill(db: inmem.Database) -> None:
    """Something of everything, in several runs."""
    db.runs.create_run(run_id="parent", tags=["b", "\u00e4", "a"], metadata={"odd": ODD})
    db.runs.create_run(run_id="child", parent_run="parent")
    db.runs.fail_run("child", "no \u2028 luck")
    db.runs.create_run(run_id="Archived")
    db.runs.archive_run("Archived")
    for run in ("parent", "never-created"):
        for number, value in enumerate(ODD):
            db.kv.put(run, f"odd/\u00fc{number}", value)
            db.cells.set(run, f"cell-{number % 3}", value)
            db.events.append(run, "odd", value)
        db.events.append_many(run, [("many\u2029", {"n": n}) for n in range(5)])
        db.kv.put(run, "lease", "x", ttl=3600.5)
        db.cells.init(run, "gone", 1)
        db.cells.set(run, "gone", 2)
        db.cells.delete(run, "gone")
    root = db.traces.record(
        "parent", inmem.Thought("t", 0.5), tags=["x", "y"], metadata={"odd": ODD}, timestamp=9
    )
    for number in range(3):
        below = db.traces.record_child("parent", root, inmem.Custom("Mine", ODD), timestamp=9 - number)
        db.traces.record_child("parent", below, inmem.ToolCall("t", {"a": b"1"}, [1.0], 2.5), timestamp=1)
        db.traces.record_child("parent", below, inmem.Query("q", None, 3))
    db.traces.record("parent", inmem.Decision("?", [1, "2"], None, "so"), id="decision")
    db.traces.record("parent", inmem.ErrorTrace("E", "m", True))


def fill_little(db: inmem.Database) -> None:
    """A few records of each kind in two runs."""
    db.runs.create_run(run_id="a", tags=["t"])
    db.kv.put_many("a", {"k1": 1, "k2": "two"})
    db.cells.set("a", "c", 1)
    db.events.append_many("a", [("e", n) for n in range(3)])
    root = db.traces.record("a", inmem.Thought("x"), timestamp=5)
    db.traces.record_child("a", root, inmem.Thought("y"), timestamp=6)
    db.kv.put("b", "k", 2.5)
