"""What the documents show runs: programs, commands, targets, and the files that they point to."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import run_script
from pytest_runs import run_pytest
from support import stop_writer
from typer.main import get_command

import inmem
from inmem.cli.app import app
from inmem.config import MIB, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for tag, text in FENCE.findall(document.read_text(encoding="utf-8")) if tag == language]


def lines() -> list[list[str]]:
    """The words of each line of shell, without its comment."""
    found = [
        shlex.split(line, comments=True)
        for document in DOCUMENTS
        for block in blocks(document, "sh")
        for line in block.splitlines()
    ]
    return [words for words in found if words]


def below(command: Any, *words: str) -> dict[tuple[str, ...], Any]:
    """Each command that does something, under its words: `("kv", "get")`."""
    subs = getattr(command, "commands", None)
    if subs is None:
        return {words: command}
    return {key: leaf for name, sub in subs.items() for key, leaf in below(sub, *words, name).items()}


COMMANDS = below(get_command(app))


def resolved(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Which command the words after `inmem` mean, and what is left of them."""
    for name in (tuple(words[:2]), tuple(words[:1])):
        if name in COMMANDS:
            return name, words[len(name) :]
    assert words[0] == "config", f"inmem {' '.join(words)}: no such command"
    return ("config", "show"), words[1:]


def plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("INMEM_")}


def start(program: Path) -> subprocess.Popen[str]:
    """A program of its own, as a reader would run it."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", program.name], cwd=program.parent, env=plain(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "", err
    return out


def written(document: Path, folder: Path) -> list[Path]:
    """The programs of a document as files, named by their first line where that is a name."""
    programs = []
    for number, text in enumerate(blocks(document, "python")):
        name = re.match(r"# (\w+\.py)\n", text)
        program = folder / (name[1] if name else f"block_{number}.py")
        program.write_text(text, encoding="utf-8")
        programs.append(program)
    return programs


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_program_runs(document: Path, scratch: Path) -> None:
    """Those of the README as a reader starts them, tests by pytest, others forked off: see `forked`."""
    try:
        for program in written(document, scratch):
            if program.name.startswith("test_"):
                code, said = run_pytest(program.parent, scratch, program.name)
                assert code == 0 and " passed" in said, said
            elif document.parent == ROOT:
                output(start(program))
            else:
                done = run_script(program, env=plain())
                assert (done.returncode, done.stderr) == (0, ""), done.stderr
    finally:
        stop_writer(scratch / "data")


def test_the_programs_of_the_readme_share_a_run(scratch: Path) -> None:
    """As it says: started in any order and as often as you like, each booking has a number of its own."""
    plan, book = written(ROOT / "README.md", scratch)
    assert [plan.name, book.name] == ["plan.py", "book.py"]
    try:
        booking = [start(book) for _ in range(4)]  # they wait for the goal
        output(start(plan))
        told = [output(process) for process in booking]
        numbers = [int(number) for text in told for number in re.findall(r"booked number (\d+)", text)]
        assert sorted(numbers) == [1, 2, 3, 4]
        assert all("goal: {'city': 'Oslo', 'nights': 3}" in text for text in told)
        with inmem.open(scratch / "data") as db:
            events = [event.event_type for event in db.events.iter("trip-to-oslo")]
        assert sorted(events) == ["booked"] * 4 + ["planned"]
    finally:
        stop_writer(scratch / "data")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_a_program_that_fails_is_noticed(scratch: Path) -> None:
    program = scratch / "wrong.py"
    program.write_text("import inmem\nwith inmem.open('./data') as db:\n    assert db.kv.count('r') == 1\n")
    try:
        with pytest.raises(AssertionError, match="AssertionError"):
            output(start(program))
    finally:
        stop_writer(scratch / "data")


def test_every_command_that_is_shown_exists() -> None:
    shown = set()
    for words in lines():
        if words[0] == "inmem":
            name, rest = resolved(words[1:])
            COMMANDS[name].make_context(" ".join(name), rest)  # as if it ran: options, arguments, their types
            shown.add(name)
    assert shown == set(COMMANDS), "all of them are shown, and no other"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    asked = [words[1] for words in lines() if words[0] == "make"]
    assert asked and set(asked) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_in_the_text_exists(document: Path) -> None:
    """`inmem config` in a sentence: there is such a command, with these options."""
    text = document.read_text(encoding="utf-8")
    for shown in re.findall(r"`inmem ([^`]+)`", text):
        name, rest = resolved(shlex.split(shown))
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= options | {"--help", "-h"}, shown


def test_a_command_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no such command"):
        resolved(["remember", "./data"])
    name, rest = resolved(["status", "./data", "--loud"])
    with pytest.raises(Exception, match="--loud"):
        COMMANDS[name].make_context("status", rest)


def test_every_module_that_is_named_as_a_program_exists() -> None:
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert {"workers.fleet", "workers.replay"} <= modules
    assert all(importlib.util.find_spec(module) for module in modules - {"venv"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_is_pointed_to_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    for target in filter(None, targets):
        assert (document.parent / target).exists(), target
    for name in re.findall(r"`(inmem/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_says_what_bounds_the_log() -> None:
    """Something in the package removes segments, beyond a size that is the default of a setting."""
    sources = [path for path in (ROOT / "inmem").rglob("*.py") if path.name != "wal.py"]
    released = any(re.search(r"\b_?(log|wal)\.release\(", path.read_text("utf-8")) for path in sources)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    limit = f"when it is larger than {Settings().checkpoint_wal_bytes // MIB} MiB and than the data"
    assert released and limit in text
    assert "grows with every commit" not in text
