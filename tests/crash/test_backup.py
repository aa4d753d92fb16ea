"""Backup and restore: one moment of a store in use, whole or not there, and back as a new timeline."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN, move
from small_disks import ballast, needs_root, tmpfs
from support import Workers, control_state, kill_writer, processes_of, stop_writer, wait_until, writer_pid

import inmem
from inmem.errors import (
    AlreadyExistsError,
    CorruptionError,
    InmemError,
    InvalidInputError,
    RunDeletedError,
    StoreFullError,
    WriterUnavailableError,
)
from inmem.host import failpoints
from inmem.host.directory import DataDirectory
from inmem.host.files import python_environment
from inmem.maintenance import backup_report as module
from inmem.maintenance.backup import backup
from inmem.maintenance.backup_report import backup_in_process
from inmem.maintenance.check import check
from inmem.maintenance.restore import restore
from inmem.storage.checkpoint import (
    CheckpointHeader,
    CheckpointReader,
    checkpoint_files,
    verify_checkpoint,
    write_checkpoint,
)
from inmem.storage.environment import Table

MIB = 1 << 20


def fill(db: inmem.Database) -> None:
    """Something of everything."""
    for run in (RUN, "other"):
        db.kv.put_many(run, {f"key-{n}": [n, bytes(n)] for n in range(40)})
        db.kv.put(run, "brief", "soon gone", ttl=3600)
        db.events.append_many(run, [(f"type-{n % 3}", {"n": n}) for n in range(20)])
        db.cells.set(run, "phase", "working")
        top = db.traces.record(run, inmem.Thought("top"), tags=["a", "b"])
        db.traces.record_child(run, top, inmem.Custom("step", {"n": 1}))
        db.runs.create_run(run_id=run, tags=["x"])
    db.kv.put("gone", "key", 1)
    db.runs.delete_run("gone")


def content(file: Path) -> tuple[CheckpointHeader, dict[Table, list[tuple[bytes, bytes]]]]:
    tables: dict[Table, list[tuple[bytes, bytes]]] = {table: [] for table in Table}
    with CheckpointReader(file) as reader:
        for table, items in reader.frames():
            tables[table] += items
        return reader.header, tables


def names(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*")}


def seen(db: inmem.Database) -> Any:
    """What a user sees of a filled store."""
    return [
        (
            db.kv.list_with_values(run), [(e.sequence, e.hash, e.payload) for e in db.events.iter(run)],
            db.cells.read(run, "phase"), db.traces.list(run), db.runs.get_run(run),
            db.events.verify_chain(run),
        )
        for run in (RUN, "other")
    ]


# --- backup -----------------------------------------------------------------------------------------


def test_backups_of_a_store_in_use_show_one_moment_each(
    store_path: Path, scratch: Path, workers: Workers
) -> None:
    """Two accounts and a log of moves: in every copy the sums are right, whoever moved meanwhile."""
    with inmem.open(store_path) as db:
        db.kv.put_many(RUN, {"left": 500, "right": 500})
        for index in range(2):
            workers.start(move, index, store_path, 2)
        wait_until(lambda: workers.words[0] and workers.words[1], "both move")
        versions = []
        pid = writer_pid(store_path)
        for number in range(3):
            before = db.kv.put(RUN, "mark", number)
            report = backup_in_process(store_path, scratch / f"b{number}")
            assert report.source == "image" and report.version >= before
            versions.append(report.version)
            assert verify_checkpoint(scratch / f"b{number}")[0].version == report.version
        workers.words.stop()
        workers.results()
        assert versions == sorted(set(versions)) and writer_pid(store_path) == pid
        assert db.check().problems == []
    for number in (0, 2):
        assert check(scratch / f"b{number}").problems == []
        restore(scratch / f"b{number}", scratch / f"restored-{number}")
        with inmem.open(scratch / f"restored-{number}") as copy:
            assert copy.kv.get(RUN, "mark") == number
            moved = sum(event.payload for event in copy.events.iter(RUN))
            assert copy.kv.get_many(RUN, ["left", "right"]) == {"left": 500 - moved, "right": 500 + moved}


@pytest.mark.parametrize(
    ("durability", "state"),
    [("memory", "served"), ("memory", "killed"), ("buffered", "stopped"), ("sync", "killed")],
)
def test_there_and_back(store_path: Path, scratch: Path, durability: str, state: str) -> None:
    """Of every kind of store: the same content, and nobody was started or disturbed for it."""
    file, path = scratch / "file", scratch / "restored"
    with inmem.open(store_path, durability=durability) as db:
        fill(db)
        expected, last = seen(db), db.kv.put(RUN, "last", 1)
        if durability == "sync":
            db.checkpoint()
        if state == "served":
            report = backup_in_process(store_path, file)
    if state != "served":
        (kill_writer if state == "killed" else stop_writer)(store_path)
        before = names(store_path)
        old = os.umask(0)
        try:
            report = backup_in_process(store_path, file)
        finally:
            os.umask(old)
        assert names(store_path) == before and processes_of(store_path) == []
    assert report.source == ("image" if durability == "memory" else "replay")
    assert report.version >= last
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.stat().st_size == report.bytes
    header, tables = content(file)
    assert header.database == DataDirectory(store_path).identity().database_id
    assert sum(map(len, tables.values())) == report.entries and tables[Table.FENCES]
    assert check(file).problems == []

    made = restore(file, path)
    assert made.backup_version == header.version
    assert made.durability == durability.replace("memory", "buffered")
    assert bool(made.notes) is (durability == "memory")
    assert names(path) >= {"settings.json", "control", "wal", "checkpoints"}
    assert check(path).problems == []
    (only,) = checkpoint_files(path / "checkpoints")
    again, restored = content(only)
    assert again.database not in (header.database, bytes(16)) and again.version > header.version
    assert restored.pop(Table.SESSIONS) == [] and tables.pop(Table.SESSIONS)
    assert restored == tables
    with inmem.open(path) as copy:
        assert [view[1:] for view in seen(copy)] == [view[1:] for view in expected]
        assert copy.kv.list_with_values("other") == expected[1][0] and copy.kv.get(RUN, "last") == 1
        assert 3000 < copy.kv.ttl(RUN, "brief") <= 3600
        assert copy.kv.put(RUN, "new", 1) > report.version + 1000, "a version never means two things"
        assert copy.events.append(RUN, "goes on").sequence == 20
        with pytest.raises(RunDeletedError):
            copy.kv.put("gone", "key", 2)
        assert copy.check().problems == []
    kill_writer(path)
    shutil.rmtree(control_state(path).image)
    with inmem.open(path) as copy:  # from checkpoint and log now
        assert copy.kv.get(RUN, "new") == 1 and copy.events.count(RUN) == 21
        copy.checkpoint()
        assert copy.check().problems == []


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stopped store and its backup; tests read them only."""
    path = tmp_path_factory.mktemp("sample")
    with inmem.open(path / "store", durability="sync") as db:
        fill(db)
    stop_writer(path / "store")
    backup(path / "store", path / "file")
    yield path


def test_nothing_is_ever_replaced(sample: Path, scratch: Path) -> None:
    taken = scratch / "taken"
    taken.write_text("precious")
    (scratch / "link").symlink_to(scratch / "nowhere")
    for file in (taken, scratch / "link", scratch):
        with pytest.raises(AlreadyExistsError, match="exists"):
            backup(sample / "store", file)
    with pytest.raises(InvalidInputError, match="no directory"):
        backup(sample / "store", scratch / "missing" / "file")
    with pytest.raises(InvalidInputError, match="no inmem database"):
        backup(scratch, scratch / "file")
    for path in (taken, scratch / "link", scratch):
        with pytest.raises(AlreadyExistsError, match="is not an empty directory"):
            restore(sample / "file", path)
    with pytest.raises(InvalidInputError, match="does not exist"):
        restore(scratch / "missing", scratch / "new")
    assert names(scratch) == {"taken", "link"} and taken.read_text() == "precious"
    assert (scratch / "link").is_symlink()


def test_a_name_that_is_taken_meanwhile_is_left(
    sample: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is faster, between the first look and the last step."""
    file, path = scratch / "file", scratch / "new"

    def taken(name: str) -> None:
        if name == "backup_copied":
            file.write_text("precious")
        else:
            path.mkdir()
            (path / "precious").touch()

    monkeypatch.setattr(failpoints, "reached", taken)
    with pytest.raises(AlreadyExistsError, match="made meanwhile"):
        backup(sample / "store", file)
    with pytest.raises(AlreadyExistsError):
        restore(sample / "file", path)
    assert names(scratch) == {"file", "new", "new/precious"} and file.read_text() == "precious"


def test_an_empty_directory_takes_a_restored_store(sample: Path, scratch: Path) -> None:
    path = scratch / "empty"
    path.mkdir(mode=0o755)
    restore(sample / "file", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert check(path).problems == []
    with pytest.raises(InvalidInputError, match="no directory"):
        restore(sample / "file", scratch / "deep" / "er")
    assert not (scratch / "deep").exists()


def test_a_damaged_store_gives_no_backup(sample: Path, scratch: Path) -> None:
    """Neither a flipped bit nor a missing end is copied as if nothing were wrong."""
    store = scratch / "store"
    shutil.copytree(sample / "store", store)
    (log,) = (store / "wal").iterdir()
    whole = log.read_bytes()
    for damaged in (whole[:-40], whole[:300] + b"?" + whole[301:], whole[:100]):
        log.write_bytes(damaged)
        with pytest.raises(CorruptionError) as caught:
            backup(store, scratch / "file")
        assert caught.value.file == str(log)
    assert not (scratch / "file").exists() and len(os.listdir(scratch)) == 1


def test_a_memory_store_that_has_ended_cannot_be_backed_up(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path, durability="memory"):
        pass
    stop_writer(store_path)
    with pytest.raises(WriterUnavailableError, match="no image in memory"):
        backup(store_path, scratch / "file")
    assert sorted(os.listdir(scratch)) == ["store"]


@needs_root
def test_no_room_leaves_nothing(scratch: Path, sample: Path) -> None:
    with tmpfs(scratch / "disk", MIB) as disk:
        ballast(disk, leave=8192)
        with pytest.raises(StoreFullError) as caught:
            backup_in_process(sample / "store", disk / "file")
        assert "disk" in caught.value.hint
        with pytest.raises(StoreFullError):
            restore(sample / "file", disk / "new")
        assert os.listdir(disk) == ["ballast"]


@pytest.mark.parametrize("what", ["backup", "restore"])
def test_killed_before_the_last_step(sample: Path, scratch: Path, what: str) -> None:
    """Nothing has the name; the next attempt succeeds and clears up."""
    target = scratch / "target"
    if what == "backup":
        name, source = "backup_copied", sample / "store"
        code = "backup(*map(Path, sys.argv[1:]))"
    else:
        name, source = "restore_built", sample / "file"
        code = "restore(*map(Path, sys.argv[1:]))"
    program = f"import sys; from pathlib import Path; from inmem.maintenance.{what} import {what}; {code}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(target)],
        env=python_environment() | {"INMEM_FAILPOINT": name}, check=False,
    )
    assert done.returncode == -9
    left = [entry.name.startswith(".target.") for entry in scratch.iterdir()]
    assert not target.exists() and left == [True] * (what == "restore")
    (backup if what == "backup" else restore)(source, target)
    assert os.listdir(scratch) == ["target"]
    assert check(target).problems == []


def test_ended_by_a_signal_it_leaves_nothing(sample: Path, scratch: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from inmem.maintenance import backup as m, checkpoint as c\n"
        "c.write_verified = lambda *a: (a[0].write(b'x'), print('here', flush=True), time.sleep(60))\n"
        "sys.exit(m.main(*map(Path, sys.argv[1:])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(sample / "store"), str(scratch / "file")], stdout=subprocess.PIPE,
        env=python_environment(),
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as told:
        assert b"progress" in told.readline() and told.readline() == b"here\n"
        process.terminate()
        assert process.wait(30) == 128 + 15 and told.read() == b""
    assert os.listdir(scratch) == []


def test_a_copy_that_dies_of_what_it_reads(
    sample: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; p, n = os.path.split(sys.argv[2]); open(f'{p}/.{n}.{os.getpid()}.tmp', 'w')\n"
    monkeypatch.setattr(module, "_PROGRAM", ["-c", code + "os.kill(os.getpid(), 11)"])
    with pytest.raises(CorruptionError, match="SIGSEGV"):
        backup_in_process(sample / "store", scratch / "file")
    assert os.listdir(scratch) == []


# --- restore -------------------------------------------------------------------------------------------


def test_a_damaged_backup_makes_no_database(sample: Path, scratch: Path, rng: random.Random) -> None:
    whole = (sample / "file").read_bytes()
    file, path = scratch / "file", scratch / "new"
    offsets = [*range(0, 30, 3), *rng.sample(range(30, len(whole)), 30)]
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << rng.randrange(8)
        for damaged in (bytes(flipped), whole[:offset]):
            file.write_bytes(damaged)
            file.chmod(0o600)
            with pytest.raises(CorruptionError) as caught:
                restore(file, path)
            assert caught.value.file == str(file)
    assert os.listdir(scratch) == ["file"]
    report = check(file)
    assert len(report.problems) == 1 and str(file) in report.problems[0]
    print(f"{2 * len(offsets)} damaged backups, restored 0")


def test_settings_of_another_release_are_refused(sample: Path, scratch: Path) -> None:
    header, _ = verify_checkpoint(sample / "file")
    strange = scratch / "strange"
    write_checkpoint(strange, replace(header, settings=dict(header.settings) | {"novel": 1}), [])
    with pytest.raises(InvalidInputError, match="stored settings"):
        restore(strange, scratch / "new")
    assert "stored settings" in check(strange).problems[0]
    assert os.listdir(scratch) == ["strange"]


def test_what_a_check_finds_in_a_backup(sample: Path, scratch: Path) -> None:
    """Whole frames with wrong content: the same rules as for an image."""
    header, tables = content(sample / "file")
    lacking = [item for item in tables[Table.DATA] if b"\0\x12" not in item[0]]  # the index by type
    file = scratch / "lacking"
    write_checkpoint(file, header, [(Table.DATA, lacking), (Table.EXPIRY, [])])
    problems = check(file).problems
    assert any("EVENT_BY_TYPE" in problem for problem in problems)
    assert any("order of expiry" in problem for problem in problems)


def test_a_restored_store_without_its_checkpoint_is_refused(sample: Path, scratch: Path) -> None:
    """Also before its first writer: its log says that something came before it."""
    path = scratch / "new"
    restore(sample / "file", path)
    (only,) = checkpoint_files(path / "checkpoints")
    data = only.read_bytes()
    only.unlink()
    assert "goes on from" in check(path).problems[0]
    with pytest.raises(CorruptionError, match="there is no checkpoint that it goes on from"):
        inmem.open(path)
    only.write_bytes(data)
    with inmem.open(path) as db:
        assert db.kv.count("other") == 41


def test_the_document_is_the_report(sample: Path, scratch: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "inmem.maintenance", "backup", str(sample / "store"),
         str(scratch / "file")],
        capture_output=True, check=True,
    )  # fmt: skip
    *progress, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(list(said) == ["progress"] for said in progress)
    report = module.BackupReport(**last)
    assert report.file == str(scratch / "file") and report.bytes == (scratch / "file").stat().st_size
    with pytest.raises(InmemError):
        backup_in_process(sample / "store", scratch / "file")
