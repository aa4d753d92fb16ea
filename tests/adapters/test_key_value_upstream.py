"""py-key-value's own tests of stores, which are in its repository and in no wheel.

To run them, on both engines:

    git clone https://github.com/strawgate/py-key-value /tmp/py-key-value
    pip install pytest-asyncio dirty-equals pydantic    # in an environment of its own
    INMEM_UPSTREAM=/tmp/py-key-value python -m pytest -p no:asyncio tests/adapters/test_key_value_upstream.py
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from homes import Home
from recorded_runs import SUITE
from suites import run_suite

NEEDED = ("key_value", "pytest_asyncio", "dirty_equals", "pydantic")


@pytest.mark.timeout(300)
def test_upstreams_tests_of_stores(
    home: Home, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    checkout = Path(os.environ.get("INMEM_UPSTREAM", "/nowhere"))
    if not (checkout / "tests/stores/base.py").is_file():
        pytest.skip("INMEM_UPSTREAM names no checkout of py-key-value")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    counts = run_suite(
        "key_value_upstream.py", tmp_path, paths=(checkout,), environment={"INMEM_TESTED": str(home.place)},
        settings="asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n",
    )
    assert counts["passed"] >= 132 and counts["skipped"] == 2 and counts["failed"] == 0
    of = counts["passed"] + counts["skipped"]
    record_property(SUITE, {"name": "tests/stores of its repository", "passed": counts["passed"], "of": of})
