"""`CorruptionError` is said only where stored bytes were found wrong; a second copy of the module says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

import inmem
from inmem.errors import CorruptionError, InvariantError, LimitError, WriterUnavailableError
from inmem.storage.unusable import unusable

ROOT = Path(inmem.__file__).parents[1]

START = """
import sys
sys.path.insert(0, sys.argv[2])
import inmem

def drop():
    for name in [name for name in sys.modules if name.partition(".")[0] == "inmem"]:
        del sys.modules[name]

path = sys.argv[1]
db = inmem.open(path)
db.kv.put("r", "k", 1)
assert db.kv.get("r", "k") == 1
first = inmem
"""

REFUSED = """
try:
    second.open(path).kv.get("r", "k")
except second.InmemError as error:
    assert type(error) is second.InvariantError, (type(error), error)
    assert "another copy of the module inmem" in str(error), error
    assert "salvage" not in error.hint and "backup" not in error.hint, error.hint
else:
    raise AssertionError("two copies share one image")
assert db.kv.get("r", "k") == 1 and db.kv.put("r", "k", 2)
db.close()
with second.open(path) as other:
    assert other.kv.get("r", "k") == 2 and other.kv.add("r", "k") == 3
    assert other.check().problems == []
print("done")
"""

WAYS = {
    "dropped and imported again": "drop()\nimport inmem as second\n" + REFUSED,
    "dropped in part": """
parts = "client", "storage", "engines", "database", "exports", "scopes"
parts = tuple("inmem." + part for part in parts)
for name in [name for name in sys.modules if name == "inmem" or name.startswith(parts)]:
    del sys.modules[name]
import inmem as second
""" + REFUSED,
    "two places on sys.path": "drop()\nsys.path.insert(0, sys.argv[3])\nimport inmem as second\n"
                              "assert second.__file__ != first.__file__\n" + REFUSED,
    "a handle that is dropped": """
del db
drop()
import inmem as second
with second.open(path) as other:
    assert other.kv.get("r", "k") == 1 and other.kv.add("r", "k") == 2
print("done")
""",
    "reloaded": """
import importlib
importlib.reload(inmem)
with inmem.open(path) as other:
    assert other.kv.get("r", "k") == 1 and other.kv.add("r", "k") == 2 and db.kv.get("r", "k") == 2
print("done")
""",
    "another store": """
drop()
import inmem as second
with second.open() as other:
    other.kv.put("r", "k", "other")
    assert other.kv.get("r", "k") == "other" and db.kv.get("r", "k") == 1
print("done")
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_second_copy_of_the_module(scratch: Path, way: str) -> None:
    shutil.copytree(ROOT / "inmem", scratch / "place" / "inmem", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", START + WAYS[way], str(scratch / "data"), str(ROOT), str(scratch / "place")],
        capture_output=True, text=True, timeout=100,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert done.stderr == ""


WRONG = {
    "BadChecksumError", "BadDbiError", "BadValsizeError", "CorruptedError", "CursorFullError",
    "IncompatibleError", "InvalidError", "NotFoundError", "PageFullError", "PageNotFoundError",
    "ProblemError", "VersionMismatchError",
}  # fmt: skip
LIMITS = {"MemoryError", "TlsFullError"}


@pytest.mark.parametrize("name", [name for name in dir(lmdb) if name.endswith("Error")])
def test_what_each_error_of_lmdb_means(name: str) -> None:
    found = unusable(getattr(lmdb, name)("so"), "/image")
    expected = CorruptionError if name in WRONG else LimitError if name in LIMITS else WriterUnavailableError
    assert type(found) is expected, name
    destroys = "salvage" in str(found.hint)
    assert destroys == (expected is CorruptionError), found.hint
    assert type(unusable(lmdb.Error("'x' is already open in this process."), "/image")) is InvariantError
