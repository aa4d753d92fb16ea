"""In an isolated subinterpreter `import inmem` is refused with the reason, before a library is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import inmem

ROOT = Path(inmem.__file__).parents[1]

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
IMPORT = f'''
import sys
sys.path.insert(0, {sys.argv[1]!r})
try:
    import inmem{sys.argv[2]}
except ImportError as error:
    assert "isolated subinterpreter" in str(error) and "threads or processes" in str(error), error
    assert not {name.partition(".")[0] for name in sys.modules} & {"zmq", "lmdb", "msgpack", "xxhash"}
else:
    raise AssertionError("not refused")
'''
if sys.version_info >= (3, 13):
    import _interpreters
    for _ in range(3):
        one = _interpreters.create("isolated")
        failed = _interpreters.exec(one, IMPORT)
        assert failed is None, failed
        _interpreters.destroy(one)
else:
    import _xxsubinterpreters as interpreters
    for _ in range(3):
        one = interpreters.create(isolated=True)
        interpreters.run_string(one, IMPORT)
        interpreters.destroy(one)
import inmem  # in the main one it is as ever
assert inmem.__version__
print("refused")
"""


def interpreters() -> list[str]:
    """Python 3.12 or later: this one, or what is on the path."""
    names = [sys.executable, *(f"python3.{minor}" for minor in range(12, 16))]
    found = []
    for path in filter(None, map(shutil.which, names)):
        asked = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 12))"]
        if subprocess.run(asked, capture_output=True, timeout=30).returncode == 0:
            found.append(os.path.realpath(path))
    return found


@pytest.mark.parametrize("part", ["", ".errors", ".database", ".exchange"])
def test_an_isolated_subinterpreter_is_refused(part: str) -> None:
    found = interpreters()
    if not found:
        pytest.skip("there is no Python 3.12 or later here, which has isolated subinterpreters")
    for python in found:
        done = subprocess.run(
            [python, "-c", PROGRAM, str(ROOT), part], capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


def test_other_interpreters_are_not() -> None:
    """The main one of any version, and subinterpreters that share all, as web servers make them."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import inmem; print(inmem.open)",
         str(ROOT)], capture_output=True, text=True, timeout=60,
    )
    assert done.stdout.startswith("<function open"), done.stderr
