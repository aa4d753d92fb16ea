"""Records how the tests of adapters ended, on each engine, for docs/adapters.md. See tests/adapters/table.py.

A run replaces what the file has of the modules that it ran to their end, and leaves the rest.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest

RECORD: Final = Path(__file__).parents[1] / "adapters/recorded.json"
SUITE: Final = "suite of another project"  # a property of a test that ran one
ENGINES: Final = ("local", "postgres")
PACKAGES: Final = (
    "langgraph", "langgraph-checkpoint", "langgraph-checkpoint-conformance", "openai-agents",
    "py-key-value-aio", "huey", "dogpile.cache", "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http", "mcp", "pytest", "psycopg",
)


def engine_of(nodeid: str) -> str:
    """The engine in the name of a test; `any` where it has none."""
    words = nodeid.partition("[")[2].rstrip("]").split("-")
    return next((engine for engine in ENGINES if engine in words), "any")


def versions() -> dict[str, str]:
    """What is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}


class Recording:
    """Counts the outcomes of tests, by module and engine."""

    def __init__(self) -> None:
        self.modules: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.suites: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        module = Path(report.location[0]).stem
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            self.modules[module][engine_of(report.nodeid)][report.outcome] += 1
        if report.when == "call" and report.passed:
            for name, found in report.user_properties:
                if name == SUITE and isinstance(found, dict):
                    self.suites[module].append({"engine": engine_of(report.nodeid), **found})

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return  # interrupted: counts would be of a part
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {"modules": {}, "versions": {}}
        for module, engines in self.modules.items():
            record["modules"][module] = {
                "day": time.strftime("%Y-%m-%d", time.gmtime()), "engines": engines,
                "suites": sorted(self.suites[module], key=lambda each: (each["name"], each["engine"])),
            }
        record["versions"] = versions()
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
