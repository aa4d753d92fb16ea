"""`inmem backup`, `restore`, `checkpoint`, `salvage`, and `check` of a backup, as a user types them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import copied, kill_writer, stop_writer, writer_pid
from test_cli import inmem_command
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.storage.checkpoint import checkpoint_files
from inmem.storage.wal.files import segment_files

COMMANDS = {
    "backup": "inmem backup ./data.backup -d ./data",
    "restore": "inmem restore ./data.backup -d ./data",
    "checkpoint": "inmem checkpoint -d ./data",
    "salvage": "inmem salvage ./salvaged -d ./data",
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


def here(*arguments: object, code: int = 0, **variables: str) -> str:
    """What a command prints if it is called in this process, which spares the start of another."""
    plain = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "INMEM_PATH": None}
    done = CliRunner(env=plain | variables).invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def told(*arguments: object, code: int = 0, **variables: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(here(*arguments, "--json", code=code, **variables))
    return data


def test_help_has_an_example_of_each() -> None:
    overview = here("--help")
    for command, example in COMMANDS.items():
        text = here(command, "--help")
        assert f"Example: {example}" in text and "--json" in text and f" {command} " in overview
        assert "INMEM_PATH" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("backup",), "FILE"), (("backup", "one"), "INMEM_PATH"), (("restore", "one"), "INMEM_PATH"),
        (("checkpoint",), "INMEM_PATH"), (("salvage", "one"), "INMEM_PATH"),
    ],
)  # fmt: skip
def test_too_few_paths_are_wrong_usage(arguments: tuple[str, ...], problem: str) -> None:
    assert problem in here(*arguments, code=2)


def test_there_and_back(sample: Path, scratch: Path) -> None:
    file, path = scratch / "file", scratch / "new"
    done = inmem_command("backup", file, "-d", sample)
    assert done.stdout.startswith("version ") and str(file) in done.stdout and done.stderr == ""
    stop_writer(sample)
    done = inmem_command("backup", scratch / "quiet", "-d", sample, "--no-writer")
    assert writer_pid(sample) == 0 and done.stderr == ""
    second = scratch / "second"
    data = told("backup", second, INMEM_PATH=str(sample))
    assert data["bytes"] == file.stat().st_size == second.stat().st_size

    text = here("check", file)
    assert "note: a copy of database" in text and text.endswith("nothing wrong was found\n")
    data = told("check", file)
    assert data["ok"] and data["events"] == 20 and data["checkpoint"] == data["version"]

    assert "durability sync" in inmem_command("restore", file, "-d", path).stdout
    assert told("check", "-d", path)["events"] == 20
    variable = scratch / "by-variable"
    data = told("restore", file, INMEM_PATH=str(variable))
    assert data["durability"] == "sync" and data["path"] == str(variable)
    with inmem.open(scratch / "by-variable") as db:
        assert db.kv.get("run-1", "key") == 19


def test_what_exists_is_one_line_with_a_hint(sample: Path, scratch: Path) -> None:
    (scratch / "file").write_text("precious")
    for command in (("backup", scratch / "file", "-d", sample), ("restore", scratch / "file", "-d", sample),
                    ("salvage", scratch, "-d", sample)):  # fmt: skip
        assert "Name a new" in here(*command, code=1)
    done = inmem_command("backup", scratch / "file", "-d", sample, code=1)
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert told("backup", scratch / "file", "-d", sample, code=1)["error"]["code"] == "already_exists"
    assert os.listdir(scratch) == ["file"]


def test_what_is_no_database_or_no_backup(scratch: Path) -> None:
    missing = scratch / "missing"
    for command in (("backup", scratch / "f", "-d", missing), ("salvage", scratch / "d", "-d", missing),
                    ("checkpoint", missing)):  # fmt: skip
        assert "holds no inmem database" in here(*command, code=1)
    assert "does not exist" in here("restore", missing, scratch / "d", code=1)
    (scratch / "text").write_text("some text that is no backup")
    (scratch / "text").chmod(0o600)
    assert "no checkpoint or backup" in here("restore", scratch / "text", scratch / "d", code=1)
    assert "no checkpoint or backup" in here("check", scratch / "text", code=1)
    assert os.listdir(scratch) == ["text"]


def test_checkpoint(sample: Path, scratch: Path) -> None:
    path = scratch / "store"
    copied(sample, path)
    done = inmem_command("checkpoint", "-d", path)
    assert "the log has " in done.stdout and len(checkpoint_files(path / "checkpoints")) == 1
    data = told("checkpoint", "-d", path)
    assert data["entries"] > 20 and data["wal_bytes"] < 2000
    assert f"checkpoint at {data['version']}" in here("check", "-d", path)
    stop_writer(path)
    with inmem.open(scratch / "memory", durability="memory"):
        done = here("checkpoint", "-d", scratch / "memory", code=1)
    assert "has no log" in done and "backup" in done


def test_salvage(sample: Path, scratch: Path) -> None:
    path = scratch / "store"
    copied(sample, path)
    ((_, log),) = segment_files(path / "wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    assert f"problem: {log} at " in here("check", "-d", path, code=1)
    text = inmem_command("salvage", scratch / "new", "-d", path).stdout
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "the log" in rows["taken from"] and "nothing wrong" in rows["check"]
    assert "left out of" in text and log.name in text
    assert "lost of default/default/default/run-1: event, kv" in text
    assert "are lost" in text
    report = told("salvage", scratch / "another", "-d", path)
    assert report["complete"] is False and report["problems"] == []
    assert report["dropped"][0]["file"] == str(log) and report["version"] < report["published"]


def test_salvage_from_memory_is_said(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put("run-1", "key", 1)
        assert "a writer serves" in here("salvage", scratch / "new", "-d", store_path, code=1)
        kill_writer(store_path)
    text = here("salvage", scratch / "new", "-d", store_path)
    assert "the image in memory" in text and "nothing was left out" in text
