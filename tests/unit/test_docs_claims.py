"""Claims that went stale once: each is held against the code, or against the page's own examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inmem.cli import config
from inmem.errors import StoreFullError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def first_private_store(text: str) -> int | None:
    """Where the first example begins that opens a store without a path."""
    return next((found.start() for found in FENCE.finditer(text) if "inmem.open()" in found[1]), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_with_private_stores_says_so_above(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    at = first_private_store(text)
    if at is not None:
        line = text[:at].rstrip().splitlines()[-1]
        assert "without a path is private, and thrown away" in line, f"{page.name}: {line}"


def test_there_are_such_pages() -> None:
    assert sum(first_private_store(page.read_text(encoding="utf-8")) is not None for page in PAGES) >= 6


def test_the_page_names_what_config_set_changes() -> None:
    section = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("### config set\n")[2]
    named = set(re.findall(r"`(\w+)`", section.partition("```")[0])) - {"buffered", "sync"}
    assert named == set(vars(config)["_CHANGEABLE"])


def test_nobody_is_told_to_raise_the_quota_of_a_store() -> None:
    assert "fixed at creation" in StoreFullError.default_hint
