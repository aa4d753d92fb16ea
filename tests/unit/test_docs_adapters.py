"""docs/adapters.md has the numbers of the last recorded run, of every adapter that there is."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("adapters_table", ROOT / "tests/adapters/table.py")
assert SPEC is not None and SPEC.loader is not None
table: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(table)
RECORD = json.loads(table.RECORD.read_text())


def test_the_page_is_that_of_the_record() -> None:
    assert table.PAGE.read_text() == table.page_of(RECORD)
    assert table.main(["--check"]) == 0


def test_another_record_makes_another_page() -> None:
    changed = copy.deepcopy(RECORD)
    changed["modules"]["test_dogpile"]["engines"]["local"]["passed"] += 1
    assert table.page_of(changed) != table.page_of(RECORD)
    changed = copy.deepcopy(RECORD)
    changed["versions"]["huey"] = "0"
    assert table.page_of(changed) != table.page_of(RECORD)


def test_no_adapter_and_no_module_of_tests_is_left_out() -> None:
    shared = {"__init__", "foreign", "places"}
    adapters = {
        path.stem for path in (ROOT / "inmem/adapters").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert adapters - shared == {each.module for each in table.ADAPTERS}
    starts = (*(each.tests for each in table.ADAPTERS), table.COMMON)
    modules = {path.stem for path in (ROOT / "tests/adapters").glob("test_*.py")}
    assert {name for name in modules if not name.startswith(starts)} == set()
    for each in table.ADAPTERS:
        assert (ROOT / f"docs/guide/{each.guide}.md").is_file()


def test_nothing_failed_in_the_record() -> None:
    for name, module in RECORD["modules"].items():
        assert not any(ended.get("failed") for ended in module["engines"].values()), name
