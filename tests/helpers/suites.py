"""Suites of other projects, each in a program of its own, with its own settings of pytest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests/helpers"


def run_suite(
    program: str, place: Path, *, settings: str = "", paths: tuple[Path, ...] = (),
    environment: dict[str, str] | None = None, arguments: tuple[str, ...] = (), timeout_s: float = 280.0,
) -> Counter[str]:
    """Run the tests of a file of `tests/helpers` in an empty directory; how many passed and so on.

    Fails with what pytest said if one of them failed.
    """
    shutil.copy(HELPERS / program, place / f"test_{program}")
    (place / "pytest.ini").write_text(f"[pytest]\n{settings}")
    within = os.environ | {"PYTHONPATH": ":".join(map(str, (*paths, ROOT)))} | (environment or {})
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_{program}", *arguments
    ]
    done = subprocess.run(
        command, cwd=place, env=within, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    return Counter({kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", last)})
