"""`inmem backup`, `restore`, `checkpoint`, `salvage`, and `check` of a backup, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import kill_writer, stop_writer, writer_pid
from test_cli import document, inmem_command
from typer.testing import CliRunner, Result

import inmem
from inmem.cli.app import app
from inmem.storage.checkpoint import checkpoint_files
from inmem.storage.wal_files import segment_files

COMMANDS = {
    "backup": "inmem backup ./data ./data.backup",
    "restore": "inmem restore ./data.backup ./data",
    "checkpoint": "inmem checkpoint ./data",
    "salvage": "inmem salvage ./data ./salvaged",
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stopped store; tests copy it, or only read it."""
    path = tmp_path_factory.mktemp("sample") / "store"
    with inmem.open(path, durability="sync") as db:
        for n in range(20):
            db.kv.put("run-1", "key", n)
            db.events.append("run-1", "note", n)
    stop_writer(path)
    yield path


def here(*arguments: object, code: int = 0) -> Result:
    """A command in this process, for what is decided before anything is done."""
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "INMEM_PATH": None})
    done = runner.invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_help_has_an_example_of_each() -> None:
    overview = here("--help").output
    for command, example in COMMANDS.items():
        text = here(command, "--help").output
        assert f"Example: {example}" in text and "--json" in text and f" {command} " in overview
        assert "INMEM_PATH" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("backup",), "PATH"), (("backup", "one"), "INMEM_PATH"), (("restore", "one"), "PATH"),
        (("checkpoint",), "PATH"), (("salvage", "one"), "INMEM_PATH"),
    ],
)  # fmt: skip
def test_too_few_paths_are_wrong_usage(arguments: tuple[str, ...], problem: str) -> None:
    assert problem in here(*arguments, code=2).output


def test_there_and_back(sample: Path, scratch: Path) -> None:
    file, path = scratch / "file", scratch / "new"
    done = inmem_command("backup", sample, file)
    assert done.stdout.startswith("version ") and str(file) in done.stdout and done.stderr == ""
    assert writer_pid(sample) == 0
    second = scratch / "second"
    data = json.loads(inmem_command("backup", second, "--json", INMEM_PATH=str(sample)).stdout)
    assert data["bytes"] == file.stat().st_size == second.stat().st_size

    text = inmem_command("check", file).stdout
    assert "note: a copy of database" in text and text.endswith("nothing wrong was found\n")
    data = document("check", file)
    assert data["ok"] and data["events"] == 20 and data["checkpoint"] == data["version"]

    assert "durability sync" in inmem_command("restore", file, path).stdout
    assert document("check", path)["events"] == 20
    variable = scratch / "by-variable"
    data = json.loads(inmem_command("restore", file, "--json", INMEM_PATH=str(variable)).stdout)
    assert data["durability"] == "sync" and data["path"] == str(variable)
    with inmem.open(scratch / "by-variable") as db:
        assert db.kv.get("run-1", "key") == 19


def test_what_exists_is_one_line_with_a_hint(sample: Path, scratch: Path) -> None:
    (scratch / "file").write_text("precious")
    for command in (("backup", sample, scratch / "file"), ("restore", scratch / "file", sample),
                    ("salvage", sample, scratch)):  # fmt: skip
        assert "Name a new" in here(*command, code=1).output
    done = inmem_command("backup", sample, scratch / "file", code=1)
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert document("backup", sample, scratch / "file", code=1)["error"]["code"] == "already_exists"
    assert os.listdir(scratch) == ["file"]


def test_what_is_no_database_or_no_backup(scratch: Path) -> None:
    missing = scratch / "missing"
    for command in (("backup", missing, scratch / "f"), ("salvage", missing, scratch / "d"),
                    ("checkpoint", missing)):  # fmt: skip
        assert "holds no inmem database" in here(*command, code=1).output
    assert "does not exist" in here("restore", missing, scratch / "d", code=1).output
    (scratch / "text").write_text("some text that is no backup")
    (scratch / "text").chmod(0o600)
    assert "no checkpoint or backup" in here("restore", scratch / "text", scratch / "d", code=1).output
    assert "no checkpoint or backup" in inmem_command("check", scratch / "text", code=1).stdout
    assert os.listdir(scratch) == ["text"]


def test_checkpoint(sample: Path, scratch: Path) -> None:
    path = scratch / "store"
    shutil.copytree(sample, path)
    done = inmem_command("checkpoint", path)
    assert "the log has " in done.stdout and len(checkpoint_files(path / "checkpoints")) == 1
    data = document("checkpoint", path)
    assert data["entries"] > 20 and data["wal_bytes"] < 2000
    assert f"checkpoint at {data['version']}" in inmem_command("check", path).stdout
    stop_writer(path)
    with inmem.open(scratch / "memory", durability="memory"):
        done = here("checkpoint", scratch / "memory", code=1)
    assert "has no log" in done.output and "backup" in done.output


def test_salvage(sample: Path, scratch: Path) -> None:
    path = scratch / "store"
    shutil.copytree(sample, path)
    ((_, log),) = segment_files(path / "wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    assert inmem_command("check", path, code=1).stdout.count("problem: ") == 2
    text = inmem_command("salvage", path, scratch / "new").stdout
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "the log" in rows["taken from"] and "nothing wrong" in rows["check"]
    assert "left out of" in text and log.name in text
    assert "lost of default/default/default/run-1: event, kv" in text
    assert "are lost" in text
    report = document("salvage", path, scratch / "another")
    assert report["complete"] is False and report["problems"] == []
    assert report["dropped"][0]["file"] == str(log) and report["version"] < report["published"]
    assert document("check", scratch / "new")["ok"]


def test_salvage_from_memory_is_said(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put("run-1", "key", 1)
        assert "a writer serves" in inmem_command("salvage", store_path, scratch / "new", code=1).stderr
        kill_writer(store_path)
    text = inmem_command("salvage", store_path, scratch / "new").stdout
    assert "the image in memory" in text and "nothing was left out" in text
