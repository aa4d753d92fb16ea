"""docs/MAPPING.md names what exists: a deliverable without a module or a test is not delivered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAPPING = (ROOT / "docs" / "MAPPING.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`((?:inmem|tests|docs|workers|bench)/[^`]+)`", MAPPING)))


def test_there_is_something_to_check() -> None:
    rows = [line for line in MAPPING.splitlines() if line.startswith("| ") and "deliverable" not in line]
    assert len(rows) > 30
    assert all(re.search(r"`(?:inmem|workers|bench|docs)/", row) and "`tests/" in row for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_named_exists(name: str) -> None:
    path, _, inside = name.partition("::")
    assert (ROOT / path).is_file(), path
    if inside:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:def|class) {re.escape(inside)}\b", text, re.MULTILINE), inside


def test_every_invariant_has_a_test_of_its_number() -> None:
    found = {
        int(number)
        for path in (ROOT / "tests").rglob("test_*.py")
        for number in re.findall(r"def test_invariant_(\d\d)_", path.read_text(encoding="utf-8"))
    }
    assert found >= set(range(1, 28))
