"""A copied data directory is noticed before anything is written, and can be made a store of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import run_command
from support import alive, some_of, wait_until, writer_pid

import inmem
from inmem.maintenance.backup_report import backup_in_process
from inmem.maintenance.restore import restore


def cp_a(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def cp_al(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-al", source, target], check=True)


def in_place(source: Path, target: Path) -> None:
    """As `rsync -a`, and as what restores a snapshot: into a directory that is there."""
    target.mkdir(mode=0o700)
    for each in source.iterdir():
        subprocess.run(["cp", "-a", each, target], check=True)


def with_tar(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    subprocess.run(f"tar -C '{source}' -cf - . | tar -C '{target}' -xf -", shell=True, check=True)


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writers are waited for."""
    monkeypatch.setenv("INMEM_LINGER_S", "0.2")


COPIES = [cp_a, cp_al, in_place, with_tar]


def everything(path: Path) -> dict[str, tuple[int, bytes]]:
    """Each file with its inode and content."""
    return {
        str(each.relative_to(path)): (each.stat().st_ino, each.read_bytes())
        for each in sorted(path.rglob("*")) if each.is_file()
    }


def filled(path: Path) -> int:
    """A store with something in it and its writer; that one's process."""
    with inmem.open(path) as db:
        db.kv.put("r", "k", "original")
        db.events.append_many("r", [("t", n) for n in range(100)])
        db.sync()
        return writer_pid(path)


OPEN = "import sys, inmem; inmem.open(sys.argv[1])"
OPENINGS: dict[str, Callable[[Path], object]] = {
    "open": lambda path: inmem.open(path),
    "without creating": lambda path: inmem.open(path, create=False),
    "without a start": lambda path: inmem.open(path, autostart=False),
    "inmem start": lambda path: _refused(run_command(["start", "-d", path])),
}
PROGRAMS: dict[str, Callable[[Path], object]] = {
    "another process": lambda path: _refused(_done(["-c", OPEN, str(path)])),
    "the writer": lambda path: _refused(_done(["-m", "inmem.writer", str(path)])),
}


def _done(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)


def _refused(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode and "is a copy of another data directory" in done.stdout + done.stderr:
        raise inmem.InvalidInputError("is a copy of another data directory", hint="inmem restore")
    raise AssertionError(done)


@pytest.mark.parametrize(("copy", "is_live"), some_of(len(COPIES), COPIES, [True, False]))
def test_a_copy_is_refused_and_nothing_is_written(
    tmp_path: Path, copy: Callable[..., None], is_live: bool
) -> None:
    original, path = tmp_path / "original", tmp_path / "copy"
    pid = filled(original)
    if is_live:
        held = inmem.open(original)
    else:
        wait_until(lambda: not alive(pid), "the writer leaves", 20)
    try:
        copy(original, path)
        before, theirs = everything(path), everything(original / "wal")
        # What has been copied how is nothing that another process would see differently.
        for name, call in (OPENINGS | (PROGRAMS if copy is cp_a else {})).items():
            with pytest.raises(inmem.InvalidInputError, match="is a copy of another data directory") as error:
                call(path)
            assert "inmem restore" in str(error.value.hint)
            if not is_live or copy is not cp_al:  # whose control page the original's writer goes on with
                assert everything(path) == before, name
            assert everything(original / "wal") == theirs, name
    finally:
        if is_live:
            held.close()
    with inmem.open(original) as db:
        assert db.kv.get("r", "k") == "original" and db.check().problems == []


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_becomes_a_store_of_its_own(tmp_path: Path, copy: Callable[..., None]) -> None:
    original, path = tmp_path / "original", tmp_path / "copy"
    pid = filled(original)
    wait_until(lambda: not alive(pid), "the writer leaves", 20)
    copy(original, path)
    backup_in_process(path, tmp_path / "file")
    restore(tmp_path / "file", tmp_path / "own")
    with inmem.open(original) as db, inmem.open(tmp_path / "own") as own:
        own.kv.put("r", "k", "own")
        db.kv.put("r", "k", "still original")
        assert (own.kv.get("r", "k"), db.kv.get("r", "k")) == ("own", "still original")
        assert own.events.count("r") == db.events.count("r") == 100
        assert own.engine.attachment.database_id != db.engine.attachment.database_id  # type: ignore[attr-defined]
    with inmem.open(tmp_path / "own") as own:
        assert own.kv.get("r", "k") == "own" and own.check().problems == []


def test_what_is_no_copy_is_taken(tmp_path: Path) -> None:
    """Renamed, moved with what it lies in, and made by a release that did not note where."""
    path = tmp_path / "a" / "data"
    path.parent.mkdir()
    pid = filled(path)
    wait_until(lambda: not alive(pid), "the writer leaves", 20)
    path.rename(tmp_path / "a" / "renamed")
    (tmp_path / "a").rename(tmp_path / "b")
    at = tmp_path / "b" / "renamed"
    with inmem.open(at) as db:
        assert db.kv.get("r", "k") == "original"
        pid = writer_pid(at)
    wait_until(lambda: not alive(pid), "the writer leaves", 20)
    settings = json.loads((at / "settings.json").read_text())
    assert settings.pop("inode") == os.stat(at).st_ino
    (at / "settings.json").write_text(json.dumps(settings))
    with inmem.open(at) as db:
        assert db.kv.get("r", "k") == "original"


def test_a_store_of_a_moment_before_is_refused_too(tmp_path: Path) -> None:
    """The directory is removed, and a copy of it that was made before put in its place."""
    path, kept = tmp_path / "data", tmp_path / "kept"
    pid = filled(path)
    wait_until(lambda: not alive(pid), "the writer leaves", 20)
    cp_a(path, kept)
    placeholder = path.rename(tmp_path / "old")  # so that its inode is not given again
    cp_a(kept, path)
    with pytest.raises(inmem.InvalidInputError, match="is a copy"):
        inmem.open(path)
    shutil.rmtree(placeholder)
