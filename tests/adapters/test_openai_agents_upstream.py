"""The SDK's own tests, with its `SQLiteSession` replaced by ours, beside a run with SQLite.

    git clone https://github.com/openai/openai-agents-python /tmp/agents
    pip install httpx inline-snapshot pytest-mock
    INMEM_UPSTREAM=/tmp/agents pytest -s tests/adapters/test_openai_agents_upstream.py

Check out the tag of the installed version, where there is one. What fails
with SQLite too is of another version; what fails with ours alone is told here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from homes import Home
from recorded_runs import SUITE

pytest.importorskip("agents", reason="the extra `openai_agents` is not installed")

UPSTREAM = os.environ.get("INMEM_UPSTREAM")
FILES = [
    "tests/memory", "tests/extensions/memory/test_encrypt_session.py", "tests/test_hitl_session_scenario.py",
    "tests/test_agent_runner.py", "tests/test_agent_runner_streamed.py", "tests/test_max_turns.py",
    "tests/test_programmatic_tool_calling.py", "tests/test_soft_cancel.py",
]
# These look into SQLite: at connections, locks, tables. What they want of any session is in
# test_openai_agents_session.py: of closed handles, of entries that are no items, of calls that are cancelled.
OF_SQLITE = {
    "close_closes_worker_thread_connections", "closed_rejects_empty_add_items",
    "pop_item_skips_corrupt_most_recent", "pop_item_returns_none_after_dropping_only_corrupt_rows",
    "get_items_limit_skips_corrupt_newest_rows", "get_items_session_settings_limit_skips_corrupt_rows",
    "file_lock_is_shared_across_instances", "failed_add_items_releases_write_lock",
    "failed_clear_session_rolls_back", "failed_pop_item_releases_write_lock",
    "rollback_failure_evicts_connection", "close_retries_quarantined_connection",
    *(f"post_commit_cancellation_propagates_after_known_outcome[{each}]" for each in ("add", "pop", "clear")),
}


def run(place: str, kind: str, scratch: Path) -> tuple[set[str], int]:
    """Which tests fail, and how many pass."""
    assert UPSTREAM is not None
    root = Path(__file__).parents[2]
    paths = [root, root / "tests" / "helpers", Path(UPSTREAM)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "INMEM_PLACE": place, "INMEM_KIND": kind,
    }
    words = ["-q", "-p", "upstream_sessions", "-o", "addopts=", "-o", "filterwarnings=default"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, f"--basetemp={scratch / kind}", *FILES], cwd=UPSTREAM,
        env=environment, capture_output=True, text=True, timeout=600,
    )
    summary = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    passed = re.search(r"(\d+) passed", summary)
    assert passed, done.stdout[-4000:] + done.stderr[-4000:]
    print(f"{kind}: {summary}")
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)), int(passed[1])


@pytest.mark.timeout(1800)
@pytest.mark.skipif(UPSTREAM is None, reason="INMEM_UPSTREAM names no checkout of openai-agents-python")
def test_the_sdks_own_tests(
    home: Home, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    expected = {f"tests/memory/test_session.py::test_sqlite_session_{name}" for name in OF_SQLITE}
    of_others, passed = run(str(home.place), "sqlite", scratch)
    for kind in ("threads", "loops"):
        failed, ours = run(str(home.place), kind, scratch)
        assert failed - of_others == expected
        assert ours == passed - len(expected)
        record_property(SUITE, {"name": f"tests of its repository, {kind}", "passed": ours, "of": passed})
