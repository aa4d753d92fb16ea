"""What stores that are gone leave in shared memory: the next writer clears it, but not what may come back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import kill_writer, runtime_entries, stop_writer, wait_until

import inmem
from inmem.host.directory import runtime_directory
from inmem.host.files import is_locked
from inmem.writer.orphans import remove_orphans

HOUR_S = 3600


def killed_store(path: Path) -> tuple[int, list[Path]]:
    """A store whose writer was killed: how many entries it had in memory, and its images."""
    with inmem.open(path) as db:
        db.kv.put("run", "key", "value")
        kill_writer(path)
    entries = runtime_entries(path)
    return len(entries), [entry for entry in entries if entry.suffix == ".image"]


def let_pass(image: Path, seconds: float) -> None:
    """Make an image look as if nothing had been committed for so long."""
    then = time.time() - seconds
    os.utime(image / "data.mdb", (then, then))


def another_writer(path: Path) -> None:
    """Start a writer of an unrelated store, which looks for orphans, and stop it."""
    with inmem.open(path):
        pass
    stop_writer(path)


def test_the_image_of_a_removed_directory_goes_after_an_hour(scratch: Path) -> None:
    count, images = killed_store(scratch / "gone")
    assert count >= 2, "an image and a socket"
    stem = images[0].name.rpartition("-")[0]
    shutil.rmtree(scratch / "gone")

    let_pass(images[0], HOUR_S / 2)
    another_writer(scratch / "first")
    assert images[0].is_dir(), "the directory may be on its way to another place"

    let_pass(images[0], HOUR_S + 1)
    another_writer(scratch / "second")
    assert not list(images[0].parent.glob(f"{stem}-*"))


def test_the_image_of_a_store_that_is_there_stays(scratch: Path) -> None:
    path = scratch / "kept"
    _, images = killed_store(path)
    let_pass(images[0], 100 * HOUR_S)
    another_writer(scratch / "other")
    assert images[0].is_dir()
    with inmem.open(path) as db:
        assert db.kv.get("run", "key") == "value"
    assert "adopted=True" in (path / "writer.log").read_text()


@pytest.mark.parametrize("ends", ["close", "exit", "drop", "last of two"])
def test_a_throw_away_store_whose_writer_was_killed_goes_with_its_last_client(ends: str) -> None:
    program = _PROGRAMS[ends]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        path = Path(child.stdout.readline().strip())
        entries = runtime_entries(path)
        assert len(entries) >= 2 and path.is_dir()
        kill_writer(path)
        wait_until(lambda: not is_locked(path / "writer.lock"), "the writer has let go")
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ended\n"
        left = [entry for entry in [path, *entries] if entry.exists()]
        if ends != "exit":
            assert not left
        child.stdin.close()
        assert child.wait(60) == 0
    assert not [entry for entry in [path, *entries] if entry.exists()]


_OPENED = """import gc, inmem, sys
db = inmem.open()
version = db.kv.put("run", "key", 1)
print(db.path, flush=True)
"""
_ENDED = """print("ended", flush=True)
nothing = sys.stdin.read()
"""
_SHARED = """import inmem, sys
db = inmem.open(sys.argv[1])
print("opened", flush=True)
input()
assert db.kv.put("run", "other", 2) and db.kv.get("run", "key") == 1
"""
_PROGRAMS = {
    "close": _OPENED + "input()\ndb.close()\n" + _ENDED,
    "exit": _OPENED + "input()\n" + _ENDED,
    "drop": _OPENED + "input()\ndel db\ngc.collect()\n" + _ENDED,
    "last of two": _OPENED + (
        "other = inmem.open(db.path)\ninput()\ndb.close()\n"
        "assert other.kv.get('run', 'key') == 1\nother.close()\n"
    ) + _ENDED,
}


def test_a_throw_away_store_that_somebody_else_has_stays() -> None:
    db = inmem.open()
    path = db.path
    db.kv.put("run", "key", 1)
    with subprocess.Popen(
        [sys.executable, "-c", _SHARED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "opened\n"
        kill_writer(path)
        db.close()
        assert path.is_dir() and runtime_entries(path)
        child.communicate("\n", timeout=60)
    assert child.returncode == 0
    wait_until(lambda: not path.exists(), "its writer has removed it")


def test_a_throw_away_store_whose_client_was_killed_too_goes_after_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INMEM_LINGER_S", "60")
    with subprocess.Popen(
        [sys.executable, "-c", _OPENED + "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        path = Path(child.stdout.readline().strip())
        (image,) = (entry for entry in runtime_entries(path) if entry.suffix == ".image")
        kill_writer(path)
        let_pass(image, HOUR_S + 1)
        remove_orphans(runtime_directory())
        assert path.is_dir(), "its client may go on with it"
        child.kill()
    remove_orphans(runtime_directory())
    assert not path.exists() and not image.exists()
