"""Writes docs/adapters.md from what a run of the adapters' tests has recorded.

    INMEM_ADAPTER_TABLE=1 python -m pytest -n 2 --dist loadfile tests/adapters    # records, in recorded.json
    python tests/adapters/table.py                                                # writes the page

`--check` says whether the page is that of the record. A run of some files replaces these alone.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
RECORD: Final = Path(__file__).parent / "recorded.json"
PAGE: Final = ROOT / "docs/adapters.md"


class Adapter(NamedTuple):
    """One adapter: what it is for, where it is explained, of which packages it is, and what tests it."""

    name: str
    module: str
    guide: str
    packages: tuple[str, ...]
    tests: str  # what the names of the modules of its tests begin with


ADAPTERS: Final = (
    Adapter("LangGraph", "langgraph", "langgraph", ("langgraph", "langgraph-checkpoint"), "test_langgraph"),
    Adapter("OpenAI Agents SDK", "openai_agents", "openai-agents", ("openai-agents",), "test_openai_agents"),
    Adapter("py-key-value, FastMCP", "key_value", "key-value", ("py-key-value-aio",), "test_key_value"),
    Adapter("Huey", "huey", "huey", ("huey",), "test_huey"),
    Adapter("dogpile.cache", "dogpile", "dogpile", ("dogpile.cache",), "test_dogpile"),
    Adapter("OpenTelemetry", "otel", "opentelemetry", ("opentelemetry-sdk",), "test_otel"),
    Adapter("Model Context Protocol", "mcp", "mcp", ("mcp",), "test_mcp"),
    Adapter("pytest", "pytest_plugin", "testing", ("pytest",), "test_pytest_plugin"),
)
COMMON: Final = "test_foreign"  # what all of them stand on

_HEAD: Final = """# Adapters

Each adapter is a module of `inmem.adapters` and an extra of the package: `pip install 'inmem[huey]'`. It
uses the public API only, and imports its framework when it is imported itself. The numbers are those of
the last recorded run, of {days}, with Python {python}: how many tests passed on the local engine, on
PostgreSQL, and of those that concern no engine or both. `python tests/adapters/table.py` writes this page.

## What was run

| adapter | tried with | local | PostgreSQL | others | failed | skipped |
| --- | --- | --- | --- | --- | --- | --- |
"""
_SUITES: Final = """
## Suites of the frameworks

They are run by the same tests, each in its own form. "Of" counts what the suite has: what does not pass is
named in the test. A suite that is in no wheel is run by hand, from a checkout: the test's docstring has the
command.

| adapter | suite | engine | passed | of |
| --- | --- | --- | --- | --- |
"""
_NOT_RUN: Final = """
## Not in this run

"""


def modules_of(record: dict[str, Any], start: str) -> dict[str, Any]:
    """The recorded modules of an adapter's tests."""
    return {name: found for name, found in sorted(record["modules"].items()) if name.startswith(start)}


def page_of(record: dict[str, Any]) -> str:
    """The page that a record comes to."""
    days = sorted({found["day"] for found in record["modules"].values()})
    versions = record["versions"]
    lines = [_HEAD.format(days=" to ".join(dict.fromkeys((days[0], days[-1]))), python=versions["python"])]
    for each in ADAPTERS:
        shown = f"[{each.name}](guide/{each.guide}.md)"
        tried = ", ".join(f"`{name}` {versions[name]}" for name in each.packages)
        lines.append(_row(shown, tried, modules_of(record, each.tests)))
    lines.append(_row("what they share", "", modules_of(record, COMMON)))
    lines.append(_SUITES)
    for each in ADAPTERS:
        for found in modules_of(record, each.tests).values():
            for name, engine, passed, of in _suites(found["suites"]):
                engine = {"local": "local", "postgres": "PostgreSQL"}.get(engine, "local")
                lines.append(f"| {each.name} | {name} | {engine} | {passed:,} | {of:,} |\n")
    skipped = []
    for name, found in sorted(record["modules"].items()):
        ended = sum(map(Counter, found["engines"].values()), Counter())
        if not ended["passed"]:
            skipped.append(f"- `{name}`: {ended['skipped']:,} skipped\n")
    return "".join([*lines, *([_NOT_RUN, *skipped] if skipped else [])])


def _row(shown: str, tried: str, modules: dict[str, Any]) -> str:
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("local", "postgres", "any")}
    for found in modules.values():
        for engine, ended in found["engines"].items():
            counts[engine].update(ended)
    passed = " | ".join(f"{each['passed']:,}" for each in counts.values())
    every = sum(counts.values(), Counter())
    return f"| {shown} | {tried} | {passed} | {every['failed']:,} | {every['skipped']:,} |\n"


def _suites(found: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    """Suites by name and engine: one may be run in pieces."""
    passed: Counter[tuple[str, str]] = Counter()
    of: Counter[tuple[str, str]] = Counter()
    for each in found:
        where = each["name"], each["engine"]
        passed[where] += each["passed"]
        of[where] += each["of"]
    return [(*where, passed[where], of[where]) for where in sorted(of)]


def main(arguments: list[str]) -> int:
    """Write the page, or compare it with `--check`."""
    page = page_of(json.loads(RECORD.read_text()))
    if "--check" in arguments:
        is_current = PAGE.exists() and PAGE.read_text() == page
        print("docs/adapters.md", "is current" if is_current else "is old: run tests/adapters/table.py")
        return 0 if is_current else 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
