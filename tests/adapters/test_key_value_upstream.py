"""py-key-value's own tests of stores, which are in its repository and in no wheel.

To run them, on both engines:

    git clone https://github.com/strawgate/py-key-value /tmp/py-key-value
    pip install pytest-asyncio dirty-equals pydantic    # in an environment of its own
    INMEM_UPSTREAM=/tmp/py-key-value python -m pytest -p no:asyncio tests/adapters/test_key_value_upstream.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from homes import Home

ROOT = Path(__file__).parents[2]
NEEDED = ("key_value", "pytest_asyncio", "dirty_equals", "pydantic")


@pytest.mark.timeout(300)
def test_upstreams_tests_of_stores(home: Home, tmp_path: Path) -> None:
    checkout = Path(os.environ.get("INMEM_UPSTREAM", "/nowhere"))
    if not (checkout / "tests/stores/base.py").is_file():
        pytest.skip("INMEM_UPSTREAM names no checkout of py-key-value")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    shutil.copy(ROOT / "tests/helpers/key_value_upstream.py", tmp_path / "test_store.py")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{checkout}:{ROOT}", "INMEM_TESTED": str(home.place)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_store.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    passed = re.search(r"(\d+) passed, 2 skipped", done.stdout)
    assert done.returncode == 0 and passed, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(passed[1]) >= 132
    print(f"{home.name}: {passed[0]} of upstream's tests")
