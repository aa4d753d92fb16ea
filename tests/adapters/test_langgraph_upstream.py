r"""LangGraph's own tests, with our saver and store: by hand, since they are not installed with it.

Those are in the source distributions of what is installed, and its conformance tests of delta channels
in its repository. All that is there is run:

    mkdir upstream && cd upstream
    pip install --no-deps --target packages pytest-mock pytest-asyncio syrupy pycryptodome redis httpx \
        langgraph-checkpoint-postgres langgraph-checkpoint-sqlite aiosqlite sqlite-vec psycopg-pool
    pip download --no-deps --no-binary :all: langgraph==1.2.24 langgraph-checkpoint==4.3.2 \
        langgraph-checkpoint-sqlite==3.1.2
    for each in *.tar.gz; do tar xzf $each; done
    git clone --depth 1 https://github.com/langchain-ai/langgraph
    cd - && INMEM_UPSTREAM=$PWD/upstream python -m pytest -s tests/adapters/test_langgraph_upstream.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from homes import Home

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
UPSTREAM = os.environ.get("INMEM_UPSTREAM", "")
WORKERS = os.environ.get("INMEM_UPSTREAM_WORKERS", "2")

pytestmark = [
    pytest.mark.skipif(not UPSTREAM, reason="INMEM_UPSTREAM names no directory with LangGraph's sources"),
    pytest.mark.timeout(3600),
]

USES = (  # what a file of tests names, if it makes savers or stores
    "sync_checkpointer", "sync_store", "MemorySaver(", "InMemoryStore(", "SqliteStore", "AsyncSqliteStore",
)

# What fails, and why that is right here.
INSIDE = "it looks inside of another saver or store: its attributes, tables or statements"
KEYS = "it wants odd names in filters refused, which are put into SQL there; here there is no SQL"
ERROR = "it wants asyncio.InvalidStateError; here it is InvariantError"
MISSES = {
    "test_channels": {"test_delta_channel_snapshot_version_based": INSIDE},
    "test_store": {
        "test_vector_store_initialization": INSIDE, "test_nonnull_migrations": INSIDE,
        "test_sql_injection_vulnerability": KEYS,
    },
    "test_async_store": {"test_no_running_loop": ERROR},
}


class Suite(NamedTuple):
    """A part of what is upstream: its directory, its files, and how many tests use our classes at least."""

    pattern: str
    files: str
    least: int


SUITES = {
    "graphs": Suite("langgraph-1.*", "tests/test_*.py", 1500),
    "stores": Suite("langgraph_checkpoint-4.*", "tests/test_store.py", 60),
    "sqlite": Suite("langgraph_checkpoint_sqlite-*", "tests/test_*store.py", 130),
}


def environment(home: Home, *paths: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, [ROOT, HERE / "upstream", *paths, Path(UPSTREAM) / "packages"]))
    more = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ, "PYTHONPATH": f"{path}{os.pathsep}{more}", "INMEM_UPSTREAM_PLACE": str(home.place),
        "NO_DOCKER": "true", "PYTHONDONTWRITEBYTECODE": "1",
    }


def is_expected(file: str, name: str) -> bool:
    return name.partition("[")[0] in MISSES.get(file, {})


@pytest.mark.parametrize("name", SUITES)
def test_upstream(home: Home, name: str, tmp_path: Path) -> None:
    suite = SUITES[name]
    found = [path for path in Path(UPSTREAM).glob(suite.pattern) if path.is_dir()]
    if not found:
        pytest.skip(f"there is no {suite.pattern} in INMEM_UPSTREAM")
    [directory] = found
    files = [
        str(path.relative_to(directory)) for path in sorted(directory.glob(suite.files))
        if any(word in path.read_text("utf-8") for word in USES)
    ]
    told = tmp_path / "told.xml"
    ended = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "langgraph_plugin", "-p", "no:cacheprovider", "-q",
            "-n", WORKERS, "-o", "addopts=", "--timeout", "120", f"--junitxml={told}",
            f"--basetemp={tmp_path / 'p'}", *files,
        ],
        cwd=directory, env=environment(home), capture_output=True, text=True,
    )
    assert told.exists(), ended.stdout + ended.stderr
    passed, failed, missed = count(told)
    print(f"\n{directory.name} on {home.name}: {passed} passed, {len(missed)} differ as expected: {missed}")
    assert not failed, "\n".join(failed) + ended.stdout[-20_000:]
    assert passed >= suite.least


def count(told: Path) -> tuple[int, list[str], list[str]]:
    """Of the tests that use our classes: how many passed, which failed, which were expected to."""
    passed, failed, missed = 0, [], []
    for case in ElementTree.parse(told).getroot().iter("testcase"):
        file, name = (case.get("classname") or "a skipped.file").split(".")[1], case.get("name", "")
        ours = sum(int(each.get("value", 0)) for each in case.iter("property") if each.get("name") == "inmem")
        has_failed = case.find("failure") is not None or case.find("error") is not None
        if has_failed:
            (missed if is_expected(file, name) else failed).append(f"{file}::{name}")
        elif ours and case.find("skipped") is None:
            passed += 1
    return passed, failed, missed


def test_conformance_of_the_repository(home: Home) -> None:
    package = Path(UPSTREAM) / "langgraph" / "libs" / "checkpoint-conformance"
    if not package.is_dir():
        pytest.skip("there is no checkout of LangGraph in INMEM_UPSTREAM")
    ended = subprocess.run(
        [sys.executable, HERE / "upstream" / "langgraph_conformance.py"], env=environment(home, package),
        capture_output=True, text=True,
    )
    assert ended.returncode == 0, ended.stderr
    results: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    print(f"\nconformance of the repository on {home.name}: {results}")
    for of_kind in results.values():
        assert all(passed == there for passed, there in of_kind.values()), ended.stdout
        assert of_kind["delta_channel_history"] == [8, 8]
        assert sum(passed for passed, _ in of_kind.values()) == 89
