"""Who reads a row of docs/RELIABILITY.md finds its tests, who reads a test of a fault finds its row."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
FAULTS = "tests/faults"
MAX_LINES = 500


def rows_of(text: str) -> dict[str, set[str]]:
    """The files that each numbered row names, by row; where there is no directory, it is `tests/faults`."""
    rows: dict[str, set[str]] = {}
    for line in text.splitlines():
        if found := re.match(r"\| (\d+[a-z]?) \|", line):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            names = re.findall(r"`((?:[\w/]+/)?test_\w+\.py)`", cells[3])
            rows[found[1]] = {name if "/" in name else f"{FAULTS}/{name}" for name in names}
    return rows


def row_of(file: str) -> str:
    """The row that a file of a fault has in its name, as the table writes it; empty without one."""
    found = re.match(r"test_(\d\d)([a-z]?)_[a-z]\w*\.py$", file.rpartition("/")[2])
    return f"{int(found[1])}{found[2]}" if found else ""


def disagreements(rows: dict[str, set[str]], files: Collection[str]) -> list[str]:
    """What the table and the files do not say of each other."""
    found = [f"row {row} names no test" for row, names in rows.items() if not names]
    for row, names in rows.items():
        found += [f"row {row} names {name}, which is not there" for name in sorted(names - set(files))]
    for file in sorted(files):
        if file.startswith(f"{FAULTS}/"):
            row = row_of(file)
            if not row:
                found.append(f"{file} has no row in its name")
            elif file not in rows.get(row, ()):
                found.append(f"row {row} does not name {file}")
    return found


def test_the_table_and_the_files_agree() -> None:
    rows = rows_of((ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8"))
    files = {path.relative_to(ROOT).as_posix() for path in TESTS.rglob("test_*.py")}
    assert set(map(str, range(1, 28))) <= set(rows)
    assert disagreements(rows, files) == []


TABLE = """
| # | fault | promise | tests | figure |
|---|---|---|---|---|
| 1 | kill | stays | `test_01_kill.py`, `tests/unit/test_a.py`; also `workers/chaos/` | `test_02.py` |
| 22a | clock | goes on | `test_22a_clock.py` | 1 |
| \u2013 | other | works | `test_other.py` | 1 |
"""
FILES = {f"{FAULTS}/test_01_kill.py", "tests/unit/test_a.py", f"{FAULTS}/test_22a_clock.py"}


@pytest.mark.parametrize(
    ("table", "files", "expected"),
    [
        (TABLE, FILES, []),
        (TABLE, FILES - {"tests/unit/test_a.py"}, ["row 1 names tests/unit/test_a.py, which is not there"]),
        (TABLE, FILES | {f"{FAULTS}/test_22a_more.py"}, [f"row 22a does not name {FAULTS}/test_22a_more.py"]),
        (TABLE, FILES | {f"{FAULTS}/test_03_no.py"}, [f"row 3 does not name {FAULTS}/test_03_no.py"]),
        (TABLE, FILES | {f"{FAULTS}/test_kill.py"}, [f"{FAULTS}/test_kill.py has no row in its name"]),
        (TABLE.replace("`test_22a_clock.py`", "row 1"), FILES,
         ["row 22a names no test", f"row 22a does not name {FAULTS}/test_22a_clock.py"]),
    ],
)  # fmt: skip
def test_the_checker_of_rows(table: str, files: set[str], expected: list[str]) -> None:
    assert disagreements(rows_of(table), files) == expected


def test_no_file_of_tests_is_too_long() -> None:
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
