"""What stores that are gone leave in shared memory: the next writer clears it, but not what may come back."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from support import kill, kill_writer, runtime_entries, stop_writer, wait_until, writer_pid

import inmem
from inmem.host.directory import runtime_directory
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


def test_a_throw_away_store_whose_writer_was_killed_goes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_LINGER_S", "60")
    db = inmem.open()
    path = db.path
    db.kv.put("run", "key", 1)
    (image,) = (entry for entry in runtime_entries(path) if entry.suffix == ".image")
    pid = wait_until(lambda: writer_pid(path), "a writer serves")
    kill(pid)
    let_pass(image, HOUR_S + 1)
    remove_orphans(runtime_directory())
    assert path.is_dir(), "its client may go on with it"
    assert db.kv.get("run", "key") == 1

    pid = writer_pid(path)  # 0 unless reading had to start one
    db.close()
    if pid:
        kill(pid)
    let_pass(image, HOUR_S + 1)
    remove_orphans(runtime_directory())
    assert not path.exists() and not image.exists()
