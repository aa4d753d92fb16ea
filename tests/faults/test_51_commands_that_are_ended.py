"""A command that is ended, in whatever way, leaves nothing that the next open does not clear.

The private copy of a store that nobody serves, and the file that a command is
making, have no name until they are whole. A helper ends with the command that
runs it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Forked, run_command
from support import alive, runtime_entries, some_of, stop_writer, wait_until

import inmem
from inmem.host.directory import runtime_directory

ROUNDS = int(os.environ.get("INMEM_TEST_ENDS", "1"))  # of each command, signal and way of reading
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
PROGRAM = [sys.executable, "-c", "from inmem.cli import main; main()"]
COMMANDS = {
    "export": ["-o", "out"], "backup": ["out"], "check": [], "kv ls": ["r", "--full"],
    "report": ["r", "-o", "out"],
}  # fmt: skip


@pytest.fixture(scope="module")
def idle(module_scratch: Path) -> Path:
    """A store of 8,000 entries and events which nobody serves."""
    path = module_scratch / "store"
    with inmem.open(path) as db:
        for start in range(0, 8000, 2000):
            db.kv.put_many("r", {f"k{n}": "x" * 500 for n in range(start, start + 2000)})
            db.events.append_many("r", [("step", {"n": n}) for n in range(2000)])
    stop_writer(path)
    return path


def files(*places: Path) -> dict[Path, int]:
    """All files, and their sizes."""
    return {file: file.stat().st_size for place in places for file in place.rglob("*") if file.is_file()}


def of_group(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def assert_whole(name: str, place: Path) -> None:
    """What a command has made can be used."""
    if name == "report":
        assert (place / "out").read_text(encoding="utf-8").rstrip().endswith("</html>")
        return
    words = {"export": ["import", "out"], "backup": ["restore", "out"]}[name]
    assert run_command([*words, "-d", "whole"], cwd=place).returncode == 0
    with inmem.open(place / "whole") as db:
        assert db.kv.count("r") == 8000
    stop_writer(place / "whole")


@pytest.mark.parametrize(
    ("name", "number", "writer"), some_of(10, COMMANDS, SIGNALS, [(), ("--no-writer",)]), ids=str
)
def test_nothing_is_left(
    idle: Path, scratch: Path, rng: random.Random, name: str, number: int, writer: tuple[str, ...]
) -> None:
    more = () if name == "check" else writer
    before = files(idle)
    ended = 0
    for left in range(ROUNDS):
        place = scratch / f"{left}"
        place.mkdir()
        words = [*name.split(), *COMMANDS[name], "-d", str(idle), *more]
        with open(os.devnull, "r+") as nothing:
            process = Forked(
                {"kind": "command", "words": words, "session": True}, [nothing.fileno()] * 3,
                os.environ | {"TMPDIR": str(place)}, place,
            )  # fmt: skip
        time.sleep(rng.uniform(0.0, 0.5))  # wherever that is: it may have ended, too
        process.send_signal(number)
        code = process.wait(30)
        ended += code in (-number, 128 + number)
        wait_until(lambda group=process.pid: not of_group(group), "its helper ends with it")
        assert set(files(place)) <= {place / "out"}
        if (place / "out").exists():  # the signal came between the file's name and the end of the command
            assert_whole(name, place)
    print(f"{name} {signal.Signals(number).name}: {ended} of {ROUNDS} ended by it")
    with inmem.open(idle) as db:
        assert db.kv.count("r") == 8000
    stop_writer(idle)
    grown = set(files(idle)) - set(before)
    assert {file for file in grown if file.parent.name not in ("wal", "checkpoints")} <= {idle / "writer.log"}
    assert runtime_entries(idle) == []
    assert not [entry for entry in files(runtime_directory()) if "private" in str(entry)]


@pytest.mark.parametrize("command", ["restore", "salvage"])
def test_a_directory_that_is_not_whole_goes_with_the_next_open(
    idle: Path, scratch: Path, command: str
) -> None:
    new = scratch / "new"
    assert run_command(["backup", scratch / "b", "-d", idle, "--no-writer"]).returncode == 0
    words = {"restore": [str(scratch / "b"), "-d", str(new)], "salvage": [str(new), "-d", str(idle)]}[command]
    stop_writer(idle)
    done = subprocess.run(
        [*PROGRAM, command, *words], env=os.environ | {"INMEM_FAILPOINT": "restore_built"}, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode != 0 and list(scratch.glob(".new.*"))
    inmem.open(new).close()
    assert not list(scratch.glob(".new.*"))
    stop_writer(new)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_what_is_read_once_is_kept_aside_without_a_name(idle: Path, scratch: Path, number: int) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "import", "-", "-d", str(scratch / "copy")], stdin=subprocess.PIPE, cwd=scratch,
        env=os.environ | {"TMPDIR": str(scratch)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(b"x" * 5_000_000)  # not before it reads, as a pipe holds 64 KiB
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(number)  # one that comes just before a read is heard with the next
            time.sleep(0.2)
    try:
        assert process.wait(0) in (-number, 128 + number)
    finally:
        process.kill()
        process.wait()
    assert {place.name for place in scratch.iterdir()} <= {"copy"}
    stop_writer(scratch / "copy")
