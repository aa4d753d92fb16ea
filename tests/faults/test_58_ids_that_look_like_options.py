"""Run ids that begin with - are legal: the command takes them after --, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import stop_writer
from unit.test_cli_look import invoke, lines

import inmem

IDS = ["--help", "-o", "-1", "--json", "-", "--", "-d", "--no-such-option"]


@pytest.fixture(scope="module")
def store(module_scratch: Path) -> Iterator[Path]:
    path = module_scratch / "data"
    with inmem.open(path) as db:
        for run_id in IDS:
            run = db.run(run_id)
            run.kv.put("-key", run_id)
            run.events.append("step")
            run.cells.init("cell", 1)
            run.traces.record(inmem.Thought("t"))
    yield path
    stop_writer(path)


@pytest.mark.parametrize("run_id", IDS)
@pytest.mark.parametrize(
    "command", ["run", "events", "cells", "traces", "verify", "kv ls", "kv get", "report -o -", "export -o -"]
)
def test_after_two_dashes_it_is_a_run(store: Path, command: str, run_id: str) -> None:
    words = (*command.split(), "-d", store, "--", run_id, *(["-key"] if command == "kv get" else []))
    done = invoke(*words)
    if command == "kv get":
        assert json.loads(done.stdout) == run_id
    if command in ("run", "report -o -", "export -o -"):
        assert run_id in done.stdout
    if command == "verify":
        assert "whole: 1 events" in done.stdout


@pytest.mark.parametrize("run_id", ["-1", "--no-such-option"])
def test_taken_for_an_option_it_is_told_how(store: Path, run_id: str) -> None:
    refused = " ".join(invoke("run", run_id, "-d", store, code=2).stderr.replace("│", "").split())
    assert "after --:" in refused and f"run -- {run_id}" in refused


@pytest.mark.parametrize("run_id", IDS)
def test_hints_can_be_typed(store: Path, run_id: str) -> None:
    missing = invoke("kv", "get", "-d", store, "--", run_id, "none", code=1).stderr
    assert f"inmem kv ls -- {run_id}" in missing
    invoke("kv", "ls", "-d", store, "--", run_id)


def test_they_are_listed_exported_and_imported(store: Path, scratch: Path) -> None:
    assert [run["run_id"] for run in lines("runs", "--all", "-d", store)] == sorted(IDS)
    invoke("export", "-o", scratch / "f", "-d", store)
    invoke("import", scratch / "f", "-d", scratch / "copy", "--rename", "-1=-2")
    assert [run["run_id"] for run in lines("runs", "--all", "-d", scratch / "copy")] == sorted(
        "-2" if each == "-1" else each for each in IDS
    )
    stop_writer(scratch / "copy")
