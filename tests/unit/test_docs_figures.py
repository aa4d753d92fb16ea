"""Each figure in the documents can be had again: by a command that its section names, or from the code.

A figure is a number with a unit. Where it is a setting or a limit, it has to be what the code says; else it
was measured, and its section names what gives it: a benchmark, a target of `make`, or a test.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from inmem.adapters.foreign import WHOLE_BYTES
from inmem.config import MAX_COMMIT_BYTES, MIB, Settings
from inmem.scopes import MAX_ATTEMPTS, TRANSACT_TIMEOUT_S
from inmem.values import MAX_VALUE_BYTES

ROOT = Path(__file__).parents[2]
PERFORMANCE = ROOT / "docs" / "PERFORMANCE.md"
RESULTS = ROOT / "bench" / "results" / "results.md"
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
CHOICE = ROOT / "docs" / "when.md"
CHOSEN = [ROOT / "docs" / name for name in ("caveats.md", "faq.md", "servers.md", "sizing.md")]
PAGES = [ROOT / "README.md", PERFORMANCE, CHOICE, *CHOSEN, *GUIDES]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(
    r"(?<![\w.,])\d[\d.,]* ?(?:[µmn]s|us|s|min|h|[KMGT]i?B|/s|x|%|times|(?:\w+ ){0,2}a second)(?![\w/])"
)
COMMAND = re.compile(
    r"python -m (?P<module>(?:bench|workers|pytest)[\w.]*)|`make (?P<target>[\w-]+)"
    r"|(?P<test>tests/[\w/.*]+\.py)"
)
LIMITS = {
    f"{MAX_COMMIT_BYTES // MIB} MiB", f"{MAX_VALUE_BYTES // MIB} MiB", f"{MAX_ATTEMPTS} times",
    f"{TRANSACT_TIMEOUT_S:g} s", f"{WHOLE_BYTES // MIB} MiB",
}  # fmt: skip
UNITS = {"": 1, "s": 1, "ms": 1, "MiB": MIB, "GiB": 1024 * MIB}
ADDRESSES = "256 GiB of addresses"  # the size of the map, a constant of the storage


def sections(text: str) -> Iterator[tuple[str, str]]:
    """The headings and what is below each, without examples."""
    parts = re.split(r"^#{1,3} (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    yield "the beginning", parts[0]
    yield from zip(parts[1::2], parts[2::2], strict=True)


def commands(text: str) -> list[re.Match[str]]:
    return list(COMMAND.finditer(" ".join(text.split())))


def is_of_the_code(figure: str, paragraph: str) -> bool:
    """Whether it is a limit, or what a setting is that the paragraph names."""
    if figure in LIMITS:
        return True
    number, unit = re.fullmatch(r"([\d.,]+) ?(.*)", figure, re.DOTALL).groups()  # type: ignore[union-attr]
    settings = Settings()
    named = [getattr(settings, name) for name in re.findall(r"`(\w+)`", paragraph) if hasattr(settings, name)]
    return unit in UNITS and float(number.replace(",", "")) * UNITS[unit] in named


def unproven(text: str) -> list[str]:
    """The figures that neither the code nor a command in their section gives."""
    found = []
    for heading, section in sections(text):
        if commands(section):
            continue
        for paragraph in re.split(r"\n\n|\n(?=- |\| )", section):
            flat = " ".join(paragraph.split()).replace(ADDRESSES, "")
            found += [f"{heading}: {one}" for one in FIGURE.findall(flat) if not is_of_the_code(one, flat)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_has_its_command(page: Path) -> None:
    assert not unproven(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("## A\nIt takes 12 µs.", ["A: 12 µs"]),
        ("## A\n`python -m bench.tax`\n## B\n3.5 ms, 24,526 /s", ["B: 3.5 ms", "B: 24,526 /s"]),
        ("## A\nredis: 1.5x", ["A: 1.5x"]),
        ("## A\nThey make it in 3 s.", ["A: 3 s"]),
        ("## A\n`python -m bench.tax` gives 12 µs.\n### B\n8 % more", ["B: 8 %"]),
        ("## A\n35,700 commits a second, 17.3\nMiB", ["A: 35,700 commits a second", "A: 17.3 MiB"]),
        ("## A\nAfter 100 ms (`fsync_interval_ms`) or 31 s (`snapshot_max_age_s`)", ["A: 31 s"]),
        ("## A\n100 ms without a name, 1 GiB of `timeout_s`", ["A: 100 ms", "A: 1 GiB"]),
        ("## A\n```python\nx = '5 ms'\n```\nversion 3.11, 2 cores, 64 MiB (`checkpoint_wal_bytes`)", []),
        ("12 ms before any heading", ["the beginning: 12 ms"]),
    ],
)
def test_one_without_is_found(text: str, figures: list[str]) -> None:
    assert unproven(text) == figures


def test_the_pages_have_figures_that_were_measured() -> None:
    assert len(FIGURE.findall(PERFORMANCE.read_text(encoding="utf-8"))) > 20


@pytest.mark.parametrize("page", sorted({*PAGES, *(ROOT / "docs").glob("*.md")}), ids=lambda page: page.name)
def test_every_command_that_gives_figures_is_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for match in commands(page.read_text(encoding="utf-8")):
        module, target, test = match["module"], match["target"], match["test"]
        if module is not None:
            assert importlib.util.find_spec(module.rstrip(".")), module
        elif test is not None:
            assert list(ROOT.glob(test)), test
        else:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def rows(text: str) -> set[str]:
    """The rows of tables whose first cell is no heading."""
    return {" ".join(line.split()) for line in text.splitlines() if re.match(r"\| [a-z]+: ", line)}


def test_the_table_of_targets_is_that_of_the_report() -> None:
    told = rows(PERFORMANCE.read_text(encoding="utf-8"))
    assert len(told) > 50 and told <= rows(RESULTS.read_text(encoding="utf-8"))


def test_the_rates_of_the_first_page_are_those_of_the_report() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| operations a second |")[2].partition("\n\n")[0]
    report = RESULTS.read_text(encoding="utf-8")
    rates = re.findall(r"\d+(?:,\d{3})+", table)
    assert len(rates) > 40 and not [rate for rate in rates if f"| {rate} " not in report]


def test_the_comparison_has_no_figure_of_its_own() -> None:
    """Whoever chooses sees what was measured, and nothing else."""
    section = CHOICE.read_text(encoding="utf-8").partition("\n## Speed\n")[2].partition("\n## ")[0]
    figures = set(re.findall(r"(?<!\S)\d+(?:,\d{3})+(?!\S)|(?<!\S)\d\.\d+(?!\S)", section))
    sources = PERFORMANCE.read_text(encoding="utf-8") + RESULTS.read_text(encoding="utf-8")
    known = set(re.findall(r"[\d.,]*\d", sources))
    assert len(figures) > 20 and not figures - known - {"0.25"}, figures - known
