"""Recorded runs to import, and the commands that export and import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from forked import run_command
from test_trajectories import swe_run, tau_run
from typer.testing import CliRunner

from inmem.cli.app import app

PROGRAM = [sys.executable, "-W", "error", "-c", "from inmem.cli import main; main()"]


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
