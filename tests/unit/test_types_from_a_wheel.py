"""What a user's type checker makes of inmem when it is installed, from a wheel, beside the user's program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import inmem

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "typed" / "user_program.py"
WRONG = """
def wrong(db: inmem.Database) -> None:
    inmem.nothing
    db.nothing
    db.kv.put("run")
"""
TIMEOUT_S = 110


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and nothing else."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "inmem", source / "inmem", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    told = run(*pip, "wheel", "--no-deps", "--wheel-dir", place, source, cwd=place)
    wheels = list(place.glob("*.whl"))
    if not wheels and re.search(r"setuptools|No matching distribution|ConnectionError", told):
        pytest.skip(f"no wheel can be built without what pip fetches for that: {told[-200:]}")
    assert len(wheels) == 1, told
    venv.create(place / "venv", with_pip=False)
    found = place / "venv" / "bin" / "python"
    told = run(*pip, "--python", found, "install", "--no-deps", "--no-index", wheels[0], cwd=place)
    assert "Successfully installed" in told, told
    return found


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest, python: Path) -> list[str]:
    """A type checker as a user calls it."""
    if request.param == "mypy":
        cache = str(python.parents[1] / "mypy")
        if (ROOT / ".mypy_cache").is_dir():  # what it says of the standard library
            shutil.copytree(ROOT / ".mypy_cache", cache)
        mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache]
        return [*mypy, "--python-executable", str(python)]
    where = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    pyright = shutil.which("pyright", path=where)
    if pyright is None:
        pytest.skip("there is no pyright: pip install 'pyright[nodejs]'")
    return [pyright, "--pythonpath", str(python)]


def test_a_user_s_program_is_checked_in_full(checker: list[str], tmp_path: Path) -> None:
    shutil.copy(PROGRAM, tmp_path)
    told = run(*checker, PROGRAM.name, cwd=tmp_path)
    assert re.search(r"^Success: no issues|^0 errors, 0 warnings", told, re.MULTILINE), told


def test_mistakes_are_found(checker: list[str], tmp_path: Path) -> None:
    text = PROGRAM.read_text(encoding="utf-8") + WRONG
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    told = run(*checker, "program.py", cwd=tmp_path)
    first = text.count("\n", 0, text.index("    inmem.nothing")) + 1
    wrong = {int(line) for line in re.findall(r"^.*program\.py:(\d+):.*error", told, re.MULTILINE)}
    assert wrong == {first, first + 1, first + 2}, told


def test_every_public_name_has_a_type(checker: list[str], tmp_path: Path) -> None:
    names = [name for name in inmem.__all__ if name != "Value"]  # an alias, which is used as a type below
    lines = ["import inmem", *(f"reveal_type(inmem.{name})" for name in names)]
    lines += ["def one(value: inmem.Value) -> None:", "    reveal_type(value)"]
    (tmp_path / "names.py").write_text("\n".join(lines), encoding="utf-8")
    told = run(*checker, "names.py", cwd=tmp_path)
    types = re.findall(r'Revealed type is "(.*)"$|Type of ".*" is "(.*)"$', told, re.MULTILINE)
    known = [left or right for left, right in types]
    assert len(known) == len(names) + 1, told
    assert not {"Any", "Unknown"}.intersection(known), told
