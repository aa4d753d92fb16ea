"""Each cause of a failure has the hint that helps, whatever command or call meets it."""

from __future__ import annotations

import enum
import os
from pathlib import Path

import pytest
from forked import run_command
from small_disks import MIB, ballast, needs_root, read_only, tmpfs
from support import stop_writer
from unit.test_cli import environment

import inmem

READ_ONLY = "The file system is read-only: mount it writable, or name another place."
GONE = "Change to a directory that is there, and give whole paths."
NO_ROOM = "Free space on the disk."
ABSENT = "Correct the path, or make what it lies in."
KIND = "A part of the path is a file: correct the path."

# What each command says where the store and what it makes lie on a read-only file system; "" where it works.
ON_READ_ONLY = {
    "status": "", "runs --all": "", "kv get r k": "", "check": "", "config": "", "stop": "", "verify r": "",
    "export -o /dev/null": "", "report r -o -": "", "backup {free}/backup": "", "salvage {free}/saved": "",
    "kv put r k 2": READ_ONLY, "kv del r k": READ_ONLY, "start": READ_ONLY, "serve": READ_ONLY,
    "checkpoint": READ_ONLY, "config set log_level debug": READ_ONLY, "import {free}/lines": READ_ONLY,
    "backup {store}/../backup": READ_ONLY, "export -o {store}/../lines": READ_ONLY,
    "report r -o {store}/../page": READ_ONLY, "salvage {store}/../saved": READ_ONLY,
}  # fmt: skip
# And what it says in a directory that was removed: of relative paths, and of whole ones.
IN_A_REMOVED_ONE = {
    "status -d s": GONE, "runs -d s": GONE, "kv put r k 1 -d s": GONE, "serve -d s": GONE, "start -d s": GONE,
    "check -d s": GONE, "stop -d s": GONE, "config -d s": GONE, "top -d s --count 1": GONE,
    "backup b -d {store}": GONE, "export -o f -d {store}": GONE, "report r -d {store}": GONE,
    "import f -d {store}": GONE, "restore b -d {store}2": GONE, "restore {free}/x -d n": GONE,
    "salvage n -d {store}": GONE,
    "kv get r k -d {store}": "", "runs -d {store}": "", "check -d {store}": "", "status -d {store}": "",
    "kv put r k 1 -d {store}": "", "export -o {free}/out -d {store}": "", "backup {free}/b -d {store}": "",
    "start -d {store}": "", "stop -d {store}": "",
}  # fmt: skip
ELSEWHERE = {
    "export -o {free}/none/out -d {store}": ABSENT, "report r -o {free}/none/out -d {store}": ABSENT,
    "import {free}/none -d {store}": ABSENT, "export -o {free}/lines/out -d {store}": KIND,
    "report r -o {free}/lines/out -d {store}": KIND,
    "backup {free}/none/b -d {store}": "Correct the argument",
    "status -d {free}/lines/s": "Name another with -d",
}  # fmt: skip


@pytest.fixture
def store(scratch: Path) -> Path:
    """A store that nobody serves in a directory of its own, and a file of its runs beside that."""
    path, free = scratch / "place" / "store", scratch / "free"
    path.parent.mkdir()
    free.mkdir()
    with inmem.open(path) as db:
        db.kv.put("r", "k", 1)
        db.events.append("r", "step")
        run("export -o {free}/lines -d {store}", path, 0)
    stop_writer(path)
    return path


def run(command: str, store: Path, code: int | None = None) -> tuple[int, str]:
    """The exit code of a command, and what it says on standard error."""
    words = command.format(store=store, free=store.parents[1] / "free").split()
    done = run_command(words, env=environment())
    assert code is None or done.returncode == code, done.stderr
    return done.returncode, done.stderr


def compare(table: dict[str, str], store: Path, more: str = "") -> None:
    """Every command of a table says what the table has, in one line, or works."""
    for command, hint in table.items():
        code, said = run(command + more, store)
        assert "Traceback" not in said and "Errno" not in said and ".tmp" not in said, (command, said)
        if not hint:
            assert code in (0, 3) and "inmem: " not in said, (command, said)
        else:
            assert code == 1 and said.startswith("inmem: ") and said.count("\n") == 1, (command, said)
            assert hint in said, (command, said)


@needs_root
def test_a_read_only_file_system(store: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    with read_only(store.parent):
        compare(ON_READ_ONLY, store, " -d {store}")
        for path in (store, store.parent / "new"):
            with pytest.raises(inmem.PermissionDeniedError) as caught:
                inmem.open(path)
            assert caught.value.hint.startswith(READ_ONLY) and "ead-only" in str(caught.value)
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*")} == before


def test_a_working_directory_that_was_removed(store: Path) -> None:
    gone = store.parent / "gone"
    gone.mkdir()
    home = os.open(".", os.O_RDONLY)
    try:
        os.chdir(gone)
        gone.rmdir()
        compare(IN_A_REMOVED_ONE, store)
        for call in (lambda: inmem.open("relative"), lambda: inmem.open("relative", create=False)):
            with pytest.raises(inmem.InvalidInputError, match="working directory was removed") as caught:
                call()
            assert caught.value.hint == GONE
        with inmem.open(store) as db, inmem.open() as private:
            db.kv.put("r", "k", 2)
            private.kv.put("r", "k", 2)
            assert db.check().ok
    finally:
        os.fchdir(home)
        os.close(home)
        stop_writer(store)


def test_what_is_not_there_and_what_is_of_another_kind(store: Path) -> None:
    compare(ELSEWHERE, store)
    stop_writer(store)


@needs_root
def test_a_full_disk(store: Path, scratch: Path) -> None:
    with tmpfs(scratch / "disk", MIB) as disk:
        ballast(disk, leave=0)
        for command in ("export -o {0}/f", "report r -o {0}/f", "backup {0}/f"):
            _, said = run(command.format(disk) + " -d {store}", store, 1)
            assert NO_ROOM in said and said.count("\n") == 1, said
        assert os.listdir(disk) == ["ballast"]
    stop_writer(store)


class TestValues:
    @pytest.mark.parametrize("name", ["bool", "str", "int", "list", "float", "bytes", "dict"])
    def test_a_type_with_the_name_of_another_is_told_apart(self, db: inmem.Database, name: str) -> None:
        """As numpy has them: its bool is no bool."""
        kind = type(name, (), {"__module__": "numpy"})
        with pytest.raises(inmem.InvalidValueError, match=rf"is a numpy\.{name}, which"):
            db.kv.put("r", "k", kind())
        with pytest.raises(inmem.InvalidInputError, match=rf"a str, not numpy\.{name}|of type numpy\.{name}"):
            db.kv.put("r", kind(), 1)  # type: ignore[arg-type]

    def test_others_have_their_own_name(self, db: inmem.Database) -> None:
        kind = enum.Enum("Color", ["RED"])
        with pytest.raises(inmem.InvalidValueError, match="is a Color, which"):
            db.kv.put("r", "k", kind.RED)
