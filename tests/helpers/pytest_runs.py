"""Runs of pytest of their own, with the plugin of inmem."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

PLUGIN = "inmem.adapters.pytest_plugin"


def run_pytest(place: Path, scratch: Path, *words: str) -> tuple[int, str]:
    """Run the tests in a directory; how it ended, and what it said. Temporary files go to `scratch`."""
    known = [] if entry_points(group="pytest11", name="inmem") else ["-p", PLUGIN]  # an older installation
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(place)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *known, *words], cwd=place, text=True, timeout=100,
        env={**os.environ, "TMPDIR": str(scratch)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout
