"""The types of the public API, as a user's type checker sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = ROOT / "tests" / "typed" / "facades.py"
AWAITED = ROOT / "tests" / "typed" / "awaited_facades.py"


def mypy(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=110,
    )


@pytest.mark.parametrize("file", [CHECKED, AWAITED], ids=lambda file: str(file.stem))
def test_every_form_of_a_facade_is_typed_in_full(tmp_path: Path, file: Path) -> None:
    done = mypy(file)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.py"
    text = file.read_text(encoding="utf-8")
    wrong.write_text(text.replace('txn.kv.delete("k"), bool', 'txn.kv.delete("k"), int'), encoding="utf-8")
    failed = mypy(wrong)
    assert failed.returncode == 1 and 'Expression is of type "bool", not "int"' in failed.stdout
