"""The check that nothing is left behind finds what is, blames nobody else, and cleans up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from left_behind import VARIABLE
from support import TESTS, alive, kill, wait_until

import inmem

REAL_PROGRAMS = True  # signs of programs are what is tested

LEAVES = '''
import os, subprocess, sys, tempfile
from pathlib import Path
import pytest

KEPT = []
ROOT = os.geteuid() == 0
WAITING = [sys.executable, "-c", "import time; time.sleep(600)"]

def test_a_child():
    KEPT.append(subprocess.Popen(WAITING))
    Path("child").write_text(str(KEPT[-1].pid))

def test_a_process_that_has_detached():
    subprocess.run(["sh", "-c", '"$@" >/dev/null 2>&1 & echo $! > detached', "sh", *WAITING], check=True)

def test_a_store_of_a_killed_program():
    code = """
import inmem, os
db = inmem.open()
os.environ.clear()
db.kv.put("r", "k", 1)
pid = db.status().writer_pid
os.kill(pid, 9)
print(db.path, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().startswith(os.environ["TMPDIR"] + "/inmem-"), done.stderr

def test_a_mount():
    if ROOT:
        where = tempfile.mkdtemp()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)

def test_a_descriptor(tmp_path):
    KEPT.append(os.open(tmp_path, os.O_RDONLY))
'''

LEAVES_NOTHING = '''
import os, subprocess, sys, time
from pathlib import Path
import inmem

def test_an_orderly_store(store_path, workers):
    with inmem.open(store_path) as db, inmem.open() as other:
        assert db.kv.put("r", "k", 1) and other.kv.put("r", "k", 1)
        Path("serving").touch()
        deadline = time.monotonic() + 30
        while not Path("go").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert db.kv.get("r", "k") == 1 and db.kv.add("r", "n") == 1 and other.kv.get("r", "k") == 1
'''


@contextmanager
def running(place: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A run of the tests in `code`, with the fixtures of this suite."""
    place.mkdir()
    file = place / "test_it.py"
    file.write_text(code)
    places = [str(place) for place in (TESTS, TESTS / "helpers", TESTS.parent)]
    paths = [*places, *filter(None, [os.environ.get("PYTHONPATH")])]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider",
         "--rootdir", str(place), "-c", str(TESTS.parent / "pyproject.toml"), str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "INMEM_TEST_PATIENCE_S": "3"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_is_left_behind_is_named_and_removed(scratch: Path) -> None:
    """Two runs of one user at the same time: one leaves everything that can be left, the other nothing."""
    place = scratch / "leaving"
    with running(scratch / "orderly", LEAVES_NOTHING) as orderly:
        serving = scratch / "orderly" / "serving"
        wait_until(lambda: orderly.poll() is not None or serving.exists(), "it serves")
        assert orderly.poll() is None, orderly.communicate()[0]
        with running(place, LEAVES) as leaving:
            said, _ = leaving.communicate(timeout=60)
        (scratch / "orderly" / "go").touch()
        other, _ = orderly.communicate(timeout=60)
    assert orderly.returncode == 0, f"a run that leaves nothing is not blamed, and not harmed:\n{other}"

    assert "5 passed" in said and "left behind by these tests" in said, said
    for pid in (int((place / name).read_text()) for name in ("child", "detached")):
        assert f"process {pid}:" in said
        wait_until(lambda p=pid: not alive(p), "it was ended")
    assert re.search(r"in memory: /\S+\.image, of /\S+/inmem-", said), said
    assert re.search(r"store without an owner: /\S+/inmem-", said)
    assert os.geteuid() != 0 or "mount: " in said
    assert "left open by the tests of this module" in said and re.search(r"1 x /\S*test_a_descriptor", said)
    root = re.search(r"store without an owner: (/\S+)/inmem-", said)
    assert root is not None and not Path(root[1]).exists() and root[1] not in Path("/proc/mounts").read_text()
    for image in re.findall(r"in memory: (/\S+),", said):
        assert not Path(image).exists()


def test_the_sign_of_this_run_reaches_detached_writers(store_path: Path) -> None:
    """The sign by which processes are told apart is in the environment of a writer."""
    with inmem.open(store_path) as db:
        environment = Path(f"/proc/{db.status().writer_pid}/environ").read_bytes()
    assert f"{VARIABLE}={os.environ[VARIABLE]}".encode() in environment.split(b"\0")


def test_a_kill_is_a_kill() -> None:
    """The helper of these tests does what it says: or else they would prove little."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    kill(child.pid)
    assert child.wait(5) == -signal.SIGKILL
