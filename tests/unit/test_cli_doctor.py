"""`inmem doctor`: what will hurt is found, with what to do, and looking changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from small_disks import needs_root, tmpfs
from support import copied, kill_writer, stop_writer, wait_until, writer_pid
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.config import MIB
from inmem.errors import CorruptionError, FormatVersionError, StoreFullError
from inmem.host.directory import DataDirectory
from inmem.maintenance import condition, machine
from inmem.maintenance.condition import judge_status, look_at_directory
from inmem.maintenance.diagnosis import Diagnosis
from inmem.maintenance.machine import judge_room, look_at_machine
from inmem.storage.checkpoint import newest_checkpoint

HEALTHY: dict[str, Any] = {
    "serving": True, "image_bytes": 10 * MIB, "image_file_bytes": 12 * MIB, "quota_bytes": 100 * MIB,
    "memory_free_bytes": 1000 * MIB, "wal_bytes": MIB, "clock_ahead_s": 0.0, "oldest_snapshot_age_s": None,
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped store with a checkpoint; tests copy it, or only look at it."""
    path = tmp_path_factory.mktemp("doctor") / "store"
    path.parent.chmod(0o700)
    config = path.with_name("small.toml")
    config.write_text(f"[store]\nquota_bytes = {8 * MIB}\n")
    with inmem.open(path, config=config) as db:
        db.kv.put("run-1", "key", 1)
        db.checkpoint()
        db.kv.put("run-1", "key", 2)
    stop_writer(path)
    return path


@pytest.fixture
def store(sample: Path, scratch: Path) -> Iterator[Path]:
    """A store of the test's own."""
    path = copied(sample, scratch / "store")
    yield path
    stop_writer(path)


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting the writer's interpreter takes most of the time, and is the same each time."""
    monkeypatch.setattr(machine, "_look_at_program", lambda diagnosis: None)


def doctor(*arguments: object, code: int = 0, **variables: str | None) -> Any:
    done = CliRunner(env={"COLUMNS": "300", "INMEM_PATH": None} | variables).invoke(
        app, ["doctor", *map(str, arguments)]
    )
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def problems(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["about"], one["text"], one["hint"]) for one in told["findings"] if one["is_problem"]]


def files_of(path: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(path.rglob("*"))}


class TestAWellStore:
    def test_what_is_told_of_a_served_one(self, store: Path) -> None:
        with inmem.open(store):
            told = doctor("-d", store, "--json")
            text = doctor("-d", store)
            pid = writer_pid(store)
        assert told["ok"] and not problems(told)
        machine_, directory = told["machine"], told["directory"]
        assert machine_["packages"]["lmdb"] == version("lmdb") and machine_["inmem"] == inmem.__version__
        assert machine_["writer"]["lmdb"].count(".") == 2 and machine_["writer"]["zmq"].count(".") == 2
        assert machine_["memory"]["free_bytes"] <= machine_["memory"]["bytes"]
        assert machine_["open_files"]["open"] > 2
        assert directory["status"]["writer_pid"] == pid and directory["format"] == 1
        assert directory["checkpoint"]["version"] > 0 and directory["checkpoint"]["age_s"] < 3600
        assert f"process {pid}" in text and "nothing that will hurt was found" in text
        assert machine_["writer"]["zmq"] in text

    @pytest.mark.usefixtures("no_program")
    def test_looking_changes_nothing_and_starts_no_writer(self, store: Path) -> None:
        before = files_of(store)
        told = doctor("-d", store, "--json")
        assert told["ok"] and told["directory"]["status"]["serving"] is False
        assert files_of(store) == before and writer_pid(store) == 0

    @pytest.mark.usefixtures("no_program")
    def test_one_that_was_killed_is_a_note(self, store: Path) -> None:
        db = inmem.open(store)
        kill_writer(store)
        db.close()
        told = doctor("-d", store, "--json")
        assert told["ok"] and "killed" in " ".join(one["text"] for one in told["findings"])
        assert "note: writer: the last one was killed" in doctor("-d", store)

    def test_help_has_an_example(self) -> None:
        text = doctor("--help")
        assert "Example: inmem doctor -d ./data" in text and "--json" in text and "INMEM_PATH" in text


class TestTheMachine:
    def test_without_a_directory_it_is_about_the_machine(self) -> None:
        told = doctor("--json")
        assert told["ok"] and told["directory"] is None
        assert told["machine"]["writer"]["inmem"] == inmem.__version__

    @pytest.mark.parametrize(
        ("program", "said"),
        [("/bin/false", "cannot load what a writer needs"), ("/nowhere/python", "No such file")],
    )
    def test_an_interpreter_that_cannot_be_a_writer(self, sample: Path, program: str, said: str) -> None:
        about, text, hint = problems(doctor("-d", sample, "--json", code=1, INMEM_PYTHON=program))[0]
        assert about == "the writer's program" and said in text and hint

    def test_an_interpreter_with_another_release(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "__version__", "9.9.9")
        diagnosis = Diagnosis()
        look_at_machine(diagnosis)
        assert "and this is 9.9.9" in diagnosis.symptoms[0].text and not diagnosis.is_well

    @pytest.mark.parametrize(
        ("limit", "about", "hint"),
        [("-n 100", "open files", "ulimit -n"), ("-v 30000000", "address space", "ulimit -v"),
         ("-f 1000", "files", "ulimit -f")],
    )  # fmt: skip
    def test_limits_that_are_too_low(self, sample: Path, limit: str, about: str, hint: str) -> None:
        program = f"{sys.executable} -c 'from inmem.cli import main; main()'"
        call = f"ulimit {limit}; exec {program} doctor --json -d {sample}"
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, done.stderr
        found = {one[0]: one[2] for one in problems(json.loads(done.stdout))}
        assert hint in found[about]

    def test_memory_has_to_hold_two_images(self) -> None:
        diagnosis = Diagnosis()
        judge_room(diagnosis, "/dev/shm", 200 * MIB, 100 * MIB)
        assert not diagnosis.symptoms
        judge_room(diagnosis, "/dev/shm", 64 * MIB, 100 * MIB)
        [note] = diagnosis.symptoms
        assert "64 MiB free" in note.text and "--shm-size" in note.hint and not note.is_problem

    def test_a_place_in_memory_that_is_not_ours(self, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (scratch / "inmem-0").symlink_to(scratch)
        monkeypatch.setattr(machine, "runtime_place", lambda: scratch / "inmem-0")
        monkeypatch.setattr(machine, "_look_at_program", lambda diagnosis: None)
        diagnosis = Diagnosis()
        look_at_machine(diagnosis)
        notes, found = sorted(diagnosis.symptoms, key=lambda one: one.is_problem)
        assert "/dev/shm is missing" in notes.text and found.is_problem and found.about == "memory"


@pytest.mark.usefixtures("no_program")
class TestTheDirectory:
    def one(self, path: Path) -> tuple[str, str, str]:
        found = problems(doctor("-d", path, "--json", code=1))
        assert len(found) == 1, found
        text = doctor("-d", path, code=1)
        assert f"problem: {found[0][0]}: " in text and "1 problems" in text
        return found[0]

    def test_there_is_none(self, scratch: Path) -> None:
        about, text, hint = self.one(scratch / "nowhere")
        assert about == "directory" and "holds no inmem database" in text and "inmem serve" in hint

    def test_it_has_another_format(self, store: Path) -> None:
        settings = json.loads((store / "settings.json").read_text())
        (store / "settings.json").write_text(json.dumps(settings | {"format": 99}))
        _, text, hint = self.one(store)
        assert "has format 99" in text and hint == FormatVersionError.default_hint

    def test_its_control_file_is_damaged(self, store: Path) -> None:
        good = (store / "control").read_bytes()
        (store / "control").write_bytes(b"x" * 100)
        about, text, hint = self.one(store)
        (store / "control").write_bytes(good)
        assert about == "writer" and "control" in text and hint == CorruptionError.default_hint

    def test_it_is_a_copy(self, sample: Path, scratch: Path) -> None:
        shutil.copytree(sample, scratch / "copy")
        if look(scratch / "copy").is_well:
            pytest.skip("directories here have no lasting numbers: a copy cannot be told")
        _, text, hint = self.one(scratch / "copy")
        assert "is a copy" in text and "inmem restore" in hint

    def test_its_checkpoint_is_damaged_or_of_another(self, store: Path) -> None:
        file = newest_checkpoint(store / "checkpoints")
        assert file is not None
        good = file.read_bytes()
        file.write_bytes(good[:30] + b"\xff" + good[31:])
        assert self.one(store)[0] == "checkpoint"
        file.write_bytes(good)
        settings = json.loads((store / "settings.json").read_text())
        (store / "settings.json").write_text(json.dumps(settings | {"database_id": "ab" * 16}))
        assert "is of another database" in self.one(store)[1]

    @needs_root
    def test_files_belong_to_another_user(self, store: Path) -> None:
        os.chown(newest_checkpoint(store / "checkpoints") or "", 12345, -1)
        about, text, _ = problems(doctor("-d", store, "--json", code=1))[0]
        assert about == "directory" and text.startswith("1 files belong to another user")

    @needs_root
    def test_its_disk_is_full_and_forgets(self, sample: Path, scratch: Path) -> None:
        with tmpfs(scratch / "disk", 4 * MIB) as disk:
            told = doctor("-d", copied(sample, disk / "store"), "--json", code=1)
        [(about, _, hint)] = problems(told)
        assert about == "disk" and hint == "Free space on the disk."
        assert "nothing is left after a reboot" in told["findings"][0]["text"]

    @pytest.mark.parametrize(
        ("kind", "said"),
        [("nfs4", "other machines"), ("fuse.sshfs", "other machines"), ("overlay", "container"), ("ext4", ""),
         ("", "")],
    )  # fmt: skip
    def test_kinds_of_file_systems_are_notes(
        self, sample: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
    ) -> None:
        monkeypatch.setattr(condition, "file_system", lambda device: kind)
        diagnosis = look(sample)
        assert diagnosis.is_well and [said in one.text for one in diagnosis.symptoms] == [True] * bool(said)


def look(path: Path) -> Diagnosis:
    diagnosis, directory = Diagnosis(), DataDirectory(path)
    look_at_directory(diagnosis, directory, directory.identity())
    return diagnosis


class TestTheWriter:
    @pytest.mark.parametrize(
        ("fields", "about", "hint"),
        [
            ({}, "", ""),
            ({"image_bytes": 95 * MIB}, "quota", StoreFullError.default_hint),
            ({"memory_free_bytes": 11 * MIB}, "memory", "--shm-size"),
            ({"memory_free_bytes": 80 * MIB}, "memory", "--shm-size"),
            ({"clock_ahead_s": 3600.0}, "clock", "inmem clock --set-back"),
            ({"oldest_snapshot_age_s": 300.0}, "snapshots", "let it go on, or end it"),
            ({"wal_bytes": 300 * MIB}, "log", "inmem checkpoint"),
        ],
    )
    def test_what_it_says_of_itself(
        self, sample: Path, fields: dict[str, Any], about: str, hint: str
    ) -> None:
        diagnosis, directory = Diagnosis(), DataDirectory(sample)
        judge_status(diagnosis, directory, directory.identity(), HEALTHY | fields)
        assert [one.about for one in diagnosis.symptoms] == [about] * bool(about)
        assert all(hint in one.hint and one.is_problem for one in diagnosis.symptoms)

    def test_a_clock_ahead_is_seen_without_a_writer(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = condition.wall_us()
        monkeypatch.setattr(condition, "wall_us", lambda: now - 3600 * 1_000_000)
        monkeypatch.setattr(machine, "_look_at_program", lambda diagnosis: None)
        with inmem.open(store) as db:
            db.kv.put("run-1", "key", 3)
        stop_writer(store)
        [(about, text, hint)] = problems(doctor("-d", store, "--json", code=1))
        assert about == "clock" and "3,6" in text and "inmem clock" in hint

    def test_the_next_image_has_to_have_room(
        self, sample: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        diagnosis, directory = Diagnosis(), DataDirectory(sample)
        monkeypatch.setattr(condition, "free_bytes", lambda place: MIB)
        status = {"serving": False, "epoch": 1, "left": "cleanly", "in_memory": False, "wal_bytes": 0}
        identity = directory.identity()
        judge_status(diagnosis, directory, identity, status)
        found = [(one.is_problem, one.about) for one in diagnosis.symptoms]
        assert found == [(False, "memory"), (True, "disk")]
        wanted = replace(identity, stored=dict(identity.stored) | {"image_dir": str(scratch)})
        judge_status(diagnosis := Diagnosis(), directory, wanted, status)
        assert [(one.is_problem, one.about) for one in diagnosis.symptoms] == [(True, "memory")]

    @pytest.mark.usefixtures("no_program")
    def test_one_that_does_not_answer(self, store: Path) -> None:
        with inmem.open(store):
            pid = writer_pid(store)
            os.kill(pid, signal.SIGSTOP)
            try:
                told = doctor("-d", store, "--json", "--timeout", "0.3", code=1)
            finally:
                os.kill(pid, signal.SIGCONT)
        [(about, _, hint)] = problems(told)
        assert about == "writer" and hint and told["directory"]["checkpoint"] is not None

    @pytest.mark.usefixtures("no_program")
    def test_what_ended_the_last_one(self, store: Path) -> None:
        log = store / "writer.log"
        with log.open("a") as out:
            out.write("time=now level=warning pid=1 event=limited what=files\n")
            out.write("time=now level=critical pid=1 event=failed problem=\"\x1b[31mdisk\u202e\"\n")
        told = doctor("-d", store, "--json", code=1)
        assert "ended by itself: failed" in problems(told)[0][1] and len(told["directory"]["journal"]) == 2
        shown = doctor("-d", store, code=1)
        assert "\\u001b[31mdisk\\u202e" in shown and "\x1b" not in shown
        with inmem.open(store):  # one that came after it serves: what was before is past
            wait_until(lambda: writer_pid(store), "a writer serves")
            assert doctor("-d", store, "--json")["directory"]["journal"] == []
