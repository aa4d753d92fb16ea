"""Claims that went stale once: each is held against the code, or against the page's own examples."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from inmem.cli import config
from inmem.conversions import conversion_of
from inmem.errors import StoreFullError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclasses.dataclass
class Trip:
    city: str


class Color(enum.Enum):
    RED = 1


class Number(int):
    pass


class Model:  # as pydantic's
    def model_dump(self, *, mode: str) -> dict[str, Any]:
        return {}


class Array:  # as numpy's
    def tolist(self) -> list[Any]:
        return []


Point = collections.namedtuple("Point", "x y")
REFUSED: dict[str, list[Any]] = {  # by the first cell of a row of docs/values.md
    "`tuple`": [(1, 2)],
    "named tuple": [Point(1, 2)],
    "`set`, `frozenset`": [{1}, frozenset({1})],
    "`datetime`, `date`, `time`": [datetime.datetime.max, datetime.date.max, datetime.time.max],
    "`timedelta`": [datetime.timedelta.max],
    "`Enum`": [Color.RED],
    "dataclass": [Trip("Oslo")],
    "pydantic model": [Model()],
    "array or number of numpy": [Array()],
    "`UUID`, `Decimal`, `Fraction`, `Path`": [
        uuid.UUID(int=1), decimal.Decimal(1), fractions.Fraction(1), Path("/"),
    ],
    "`bytearray`, `memoryview`": [bytearray(b""), memoryview(b"")],
    "`complex`": [1j],
    "`OrderedDict`, `Counter`, `defaultdict`": [
        collections.OrderedDict(), collections.Counter(), collections.defaultdict(int),
    ],
    "a subclass of `int`, `float` or `str`": [Number(1)],
}
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


def test_the_page_of_values_proposes_what_the_error_proposes() -> None:
    page = FENCE.sub("", (ROOT / "docs" / "values.md").read_text(encoding="utf-8"))
    section = page.partition("\n## ")[2]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines()]
    told = {row[0]: row[1].removesuffix(", ...").strip("`") for row in rows if len(row) == 3}
    for kind, values in REFUSED.items():
        for value in values:
            assert conversion_of(value) == told[kind], kind
    assert told.keys() - REFUSED.keys() == {
        "you have", "`int` beyond 64 bits", "a `dict` with keys that are no `str`", "any other object",
    }
    assert conversion_of(object()) is None
