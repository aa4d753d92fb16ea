"""The form of all commands: how store and run are named, what is cut, character sets, pipes, completion."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import run_command
from support import stop_writer
from test_cli import PROGRAM, environment, inmem_command
from test_cli_look import invoke, lines

import inmem
from inmem.cli.app import app

KEY = "a-key-of-more-than-thirty-two-characters/and-so-on-" + "x" * 60


@pytest.fixture(scope="module")
def store(module_scratch: Path) -> Iterator[Path]:
    path = module_scratch / "data"
    with inmem.open(path) as db:
        for number in range(120):
            db.runs.create_run(run_id=f"run-{number:03}")
        db.runs.create_run(run_id="child", parent_run="run-000")
        run = db.run("run-000")
        run.kv.put_many({KEY: {"text": "y" * 200}, "ü→ключ": "grün … 漢", "short": 1})
        run.cells.init(KEY, 1)
        run.events.append(KEY[:100], 1)
        for number in range(600):
            run.traces.record(inmem.Thought(f"t{number}"), id=f"t{number}")
        db.kv.put("-1", "key", 1)
        db.kv.put("--help", "key", 1)
    stop_writer(path)  # which would leave in the middle
    invoke("start", "-d", path)
    yield path
    stop_writer(path)


class TestNamingTheStore:
    def test_what_lies_here_is_named_in_the_error(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(store.parent)
        done = invoke("runs", code=2)
        assert done.stderr == (
            "inmem: no data directory is named. Name it with -d, or by INMEM_PATH. Here are: ./data.\n"
        )
        error = json.loads(invoke("runs", "--json", code=2).stdout)["error"]
        assert error["code"] == "invalid_input" and "./data" in error["hint"]
        assert f"Near it are: {store}" in invoke("runs", "-d", "dat", code=1).stderr

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("status {}", "status -d {}"), ("runs {}", "runs -d {}"), ("config {}", "config -d {}"),
            ("config show {}", "config show -d {}"), ("check {}", "check -d {}"),
            ("run run-000 {}", "run run-000 -d {}"), ("events run-000 {}", "events run-000 -d {}"),
            ("cells run-000 {}", "cells run-000 -d {}"), ("traces run-000 {}", "traces run-000 -d {}"),
            ("verify run-000 {}", "verify run-000 -d {}"), ("kv ls run-000 {}", "kv ls run-000 -d {}"),
            ("kv get run-000 short {}", "kv get run-000 short -d {}"),
            ("export {} run-001 -o -", "export run-001 -o - -d {}"),
            ("report run-000 {} -o -", "report run-000 -d {} -o -"),
        ],
    )  # fmt: skip
    def test_older_forms_do_the_same_with_a_note(self, store: Path, old: str, new: str) -> None:
        first = inmem_command(*old.format(store).split())
        second = inmem_command(*new.format(store).split())
        note = f"inmem: a data directory is named with an option now: -d {store}\n"
        assert first.stderr.startswith(note) and note not in second.stderr
        for done in (first, second):
            done.stdout = "\n".join(x for x in done.stdout.split("\n") if "since it" not in x)
        if not old.startswith(("report", "status", "run")):  # which tell the time
            assert first.stdout == second.stdout

    def test_older_forms_that_make_something(self, store: Path, scratch: Path) -> None:
        for command in (
            f"backup {store} {scratch}/file", f"restore {scratch}/file {scratch}/new",
            f"export {store} -o {scratch}/lines", f"import {scratch}/other {scratch}/lines",
            f"kv put run-000 key 1 {scratch}/other", f"kv del run-000 key {scratch}/other",
            f"checkpoint {scratch}/new", f"stop {scratch}/other", f"stop {scratch}/new",
            f"config set log_level debug {scratch}/other", f"salvage {scratch}/other {scratch}/saved",
        ):  # fmt: skip
            assert "with an option now" in inmem_command(*command.split()).stderr, command
        done = inmem_command("runs", store, INMEM_PATH=f"{scratch}/./nowhere/")
        assert "with an option now" in done.stderr, "what is given goes before the variable"
        done = inmem_command("runs", store, "-d", scratch / "other", code=2)
        assert "an argument too many" in done.stderr

    def test_usage_shows_the_form(self) -> None:
        for words in ("run", "kv get", "events", "backup", "config set", "status"):
            shown = invoke(*words.split(), "--help").stdout
            assert " -d " in shown and "[OLD]" not in shown.upper()


class TestRuns:
    @pytest.mark.parametrize(
        "command", ["run", "events", "cells", "traces", "verify", "report", "kv ls", "kv get"]
    )
    def test_one_that_is_none_is_an_error_with_near_names(self, store: Path, command: str) -> None:
        key = ["key"] if command == "kv get" else []
        done = invoke(*command.split(), "rum-001", *key, "-d", store, code=1)
        assert "there is no run rum-001" in done.stderr and "run-001" in done.stderr.partition("Near it")[2]
        assert done.stderr.count("\n") == 1 and not done.stdout

    def test_a_created_one_and_what_runs_share_may_be_empty(self, store: Path) -> None:
        for run in ("run-007", "@agent"):
            assert "has no keys" in invoke("kv", "ls", run, "-d", store).stderr

    def test_those_that_were_never_created_are_told_of_and_listed(self, store: Path) -> None:
        assert "never created, --help is one: --all" in invoke("runs", "-d", store).stderr
        assert "never created" not in invoke("runs", "-d", store, "--tag", "x").stderr
        found = lines("runs", "-d", store, "--all")
        assert [run["run_id"] for run in found[-2:]] == ["--help", "-1"] and len(found) == 123
        assert found[-1]["status"] is None and set(found[-1]) == set(found[0])
        shown = invoke("runs", "-d", store, "--all", "--limit", 200).stdout
        assert "-          never                 -1" in shown


class TestWhatIsCut:
    def test_json_is_everything_unless_told_otherwise(self, store: Path) -> None:
        assert len(lines("runs", "-d", store)) == 121 and len(lines("runs", "-d", store, "--limit", 3)) == 3
        assert len(lines("traces", "run-000", "-d", store)) == 600
        assert len(invoke("runs", "-d", store).stdout.splitlines()) == 51

    def test_names_are_whole_and_values_are_cut(self, store: Path) -> None:
        for command in ("kv ls", "cells", "events", "run"):
            shown = inmem_command(*command.split(), "run-000", "-d", store, COLUMNS="80").stdout
            assert (KEY[:100] if command == "events" else KEY) in shown, command


class TestOutput:
    @pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
    @pytest.mark.parametrize(
        "command",
        ["runs --tree", "run run-000", "traces run-000", "kv ls run-000", "kv get run-000 ü→ключ",
         "kv get run-000 кл", "--help", "kv ls --help", "status", "events run-000", "verify run-000"],
    )  # fmt: skip
    def test_every_character_set_will_do(self, store: Path, encoding: str, command: str) -> None:
        named = [] if "--help" in command else ["-d", str(store)]
        variables = environment(PYTHONIOENCODING=encoding)
        done = run_command([*command.split(), *named], env=variables, text=False)
        assert done.returncode == (command == "kv get run-000 кл"), done.stderr
        text = done.stdout.decode(encoding)
        assert "Traceback" not in done.stderr.decode(encoding)
        if command in ("--help", "kv get run-000 ü→ключ"):  # as a process that begins so
            real = subprocess.run(
                [*PROGRAM, *command.split(), *named], capture_output=True, check=False, env=variables
            )
            assert (real.returncode, real.stdout, real.stderr) == (done.returncode, done.stdout, done.stderr)
        if command == "kv get run-000 ü→ключ":
            seen = {"latin-1": '"grün ... \\u6f22"\n', "ascii": '"gr\\u00fcn ... \\u6f22"\n'}
            assert text == seen.get(encoding, '"grün … 漢"\n')

    @pytest.mark.parametrize(
        "command",
        ["kv ls run-000", "traces run-000 --json", "runs", "export -o -", "report run-000 -o -", "status",
         "run run-000 --json", "--help"],
    )  # fmt: skip
    def test_a_closed_pipe_ends_it_without_a_word(self, store: Path, command: str) -> None:
        named = [] if command == "--help" else ["-d", str(store)]
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as out:
            words = [*command.split(), *named]
            if command in ("runs", "--help"):
                done = subprocess.run(
                    [*PROGRAM, *words], stdout=out, stderr=subprocess.PIPE, env=environment(), timeout=60
                )
            else:
                done = run_command(words, stdout=out.fileno(), env=environment(), text=False)
        assert done.returncode in (0, 1) and b"Error" not in done.stderr and b"rror:" not in done.stderr
        assert b"Traceback" not in done.stderr and b"ipe" not in done.stderr, done.stderr


class TestCompletion:
    @pytest.mark.parametrize(
        ("shell", "word"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete")]
    )
    def test_the_script_of_each_shell(self, shell: str, word: str) -> None:
        done = inmem_command(_INMEM_COMPLETE=f"source_{shell}", code=0)
        assert word in done.stdout and "_INMEM_COMPLETE=complete_" in done.stdout and done.stderr == ""

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    @pytest.mark.parametrize(
        ("line", "expected"),
        [("inmem ch", {"check", "checkpoint"}), ("inmem kv ", {"get", "put", "del", "ls"}),
         ("inmem runs --no", {"--no-writer"})],
    )  # fmt: skip
    def test_what_it_completes(self, shell: str, line: str, expected: set[str]) -> None:
        words = line.split(" ")
        variables = {"_INMEM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
        if shell == "bash":
            variables |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        if shell == "fish":
            variables["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
        shown = inmem_command(**variables).stdout
        assert all(word in shown for word in expected), shown

    def test_in_bash_itself(self, scratch: Path) -> None:
        program = scratch / "inmem"
        program.write_text(f"#!/bin/sh\nexec {shlex.join(PROGRAM)} \"$@\"\n")
        program.chmod(0o755)
        script = (
            'eval "$(_INMEM_COMPLETE=source_bash inmem)"; COMP_WORDS=(inmem sal); COMP_CWORD=1\n'
            "$(complete -p inmem | sed 's/.*-F \\([^ ]*\\) .*/\\1/') inmem sal inmem\n"
            'echo "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=False,
            env=environment(PATH=f"{scratch}:{os.environ['PATH']}"),
        )  # fmt: skip
        assert done.stdout == "salvage\n", done

    def test_it_is_offered(self) -> None:
        assert "--install-completion" in invoke("--help").stdout and app.info.name == "inmem"
