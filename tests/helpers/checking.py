"""Stores with something of everything, for checks to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import kill_writer

import inmem
from inmem.maintenance.check_report import CheckReport

RUN = "run-1"


def fill(path: Path, *, durability: str | None = None) -> None:
    """A small store with something of everything."""
    with inmem.open(path, durability=durability) as db:
        for run in (RUN, "run-2"):
            db.kv.put_many(run, {f"key-{n}": n for n in range(5)})
            db.kv.put_many(run, {f"brief-{n}": "soon gone" for n in range(5)}, ttl=3600)
            db.events.append_many(run, [(f"type-{n % 3}", {"n": n}) for n in range(12)])
            db.cells.init(run, "phase", "working")
            top = db.traces.record(run, inmem.Thought("top"), id="top", tags=["a", "b"])
            db.traces.record_child(run, top, inmem.Custom("step", {"n": 1}), id="child", tags=["a", "a"])
            db.runs.create_run(run_id=run, tags=["x"], parent_run=None if run == RUN else RUN)
        for gone in ("gone-1", "gone-2"):
            db.kv.put(gone, "key", 1)
            db.cells.set(gone, "cell", 1)
        db.cells.delete("gone-1", "cell")
        db.runs.delete_run("gone-2")


@pytest.fixture
def killed(store_path: Path) -> Path:
    """A store whose writer was killed: its image is still in memory, and nobody serves it."""
    fill(store_path)
    kill_writer(store_path)
    return store_path


def problem_of(report: CheckReport) -> str:
    """The one problem of a report."""
    assert len(report.problems) == 1, report.problems
    return report.problems[0]
