"""Runs to export and to import, and the commands that do it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from forked import run_command
from test_trajectories import swe_run, tau_run
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.exchange import export_runs

PROGRAM = [sys.executable, "-W", "error", "-c", "from inmem.cli import main; main()"]


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


def recorded(folder: Path) -> tuple[list[Path], Path]:
    """Recorded runs as files: of SWE-agent, and as chat messages."""
    swe, chats = folder / "a.traj", folder / "chats.json"
    swe.write_text(json.dumps(swe_run(4)))
    chats.write_text(json.dumps([tau_run(), tau_run(task_id=2, reward=0.0)]))
    return [swe], chats


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("INMEM_")}


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = run_command(arguments, env=environment(), text=False, timeout=100)
    assert done.returncode == code, done.stderr.decode()
    return done


def called(*arguments: object, code: int = 0) -> Any:
    """A command in this process: what it prints and how it ends."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result
