"""`inmem demo`: what it shows, what it finds, and that nothing of it is left."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import HTTPCookieProcessor, build_opener, urlopen

import pytest
from homes import fresh, home
from support import wait_until
from unit.test_cli import PROGRAM, environment

import inmem

__all__ = ["fresh", "home"]

WAIT_S = 100.0
ROOT = Path(__file__).parents[2]
KILLED = {"reviewer", "writer", "worker"}


def of_session(session: int) -> list[int]:
    """The processes of a session; writers are in none, for they begin one of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[3]) == session and words[0] not in "ZX":
                found.append(int(entry.name))
    return found


class Demonstration:
    """`inmem demo` as a program, in a session of its own."""

    def __init__(
        self, *options: str, stdout: Any = subprocess.PIPE, words: Any = (*PROGRAM, "demo"), **variables: str
    ) -> None:
        self.process = subprocess.Popen(
            [*words, *options], env=environment(**variables), stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )

    def end(self) -> tuple[int, str, str]:
        """Its exit code and what it printed; no process of it is left."""
        out, errors = self.process.communicate(timeout=WAIT_S)
        wait_until(lambda: not of_session(self.process.pid), "the processes have ended")
        assert "Traceback" not in errors, errors
        return self.process.returncode, out or "", errors

    def line(self, pattern: str) -> str:
        """Read until a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if re.search(pattern, line):
                return line
        raise AssertionError(f"it ended without {pattern!r}: {self.end()}")


@pytest.fixture
def started() -> Iterator[list[Demonstration]]:
    """Demonstrations that are over when the test is."""
    some: list[Demonstration] = []
    yield some
    for one in some:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


class TestWholeRuns:
    def test_a_short_one_holds(self) -> None:
        code, out, errors = Demonstration("--seconds", "3", "--json", "--seed", "7", "--workers", "3").end()
        told = json.loads(out)
        assert (code, errors, told["problems"], told["ok"]) == (0, "", [], True)
        assert {kill["what"] for kill in told["kills"]} == KILLED
        assert all(kill["back_s"] > 0 for kill in told["kills"])
        assert len({kill["pid"] for kill in told["kills"]}) == len(KILLED)
        assert told["done"] == told["planned"] == told["approved"] > 0 and told["amount"] > 0
        assert len(told["checks"]) == 8
        assert all(check["ok"] and check["compared"] for check in told["checks"])

    def test_a_writer_that_was_there_is_left_alone(self, home: Any) -> None:
        """On each engine: a server has none."""
        with inmem.open(home.place) as db:
            before = db.status().writer_pid
            code, out, _ = Demonstration(
                "--seconds", "1", "--workers", "1", "--path", str(home.place), "--json"
            ).end()
            told = json.loads(out)
            assert (code, told["problems"]) == (0, [])
            assert told["spared"] and {kill["what"] for kill in told["kills"]} == {"reviewer", "worker"}
            assert db.status().writer_pid == before
            run = db.runs.get_run(told["run"])
            assert run is not None and run.status is inmem.RunStatus.COMPLETED
            children = [child.status for child in db.runs.get_child_runs(told["run"])]
            assert children == [inmem.RunStatus.COMPLETED]
            assert db.kv.get(told["run"], "total:amount") == told["amount"]

    def test_without_a_terminal_there_are_lines(self, store_path: Path) -> None:
        code, out, errors = Demonstration("--seconds", "1", "--path", str(store_path)).end()
        assert (code, errors) == (0, "")
        assert "\x1b" not in out
        assert re.search(r"^ +\d\.\d s  \d+ jobs planned, \d+ done", out, re.MULTILINE)
        for what in ("reviewer-[12]", "writer", r"worker-\d"):
            assert re.search(rf"^ +\d+\.\d s  {what} \(process \d+\) was killed$", out, re.MULTILINE), out
        assert len(re.findall("^ok  ", out, re.MULTILINE)) == 8
        assert out.splitlines()[-1].startswith("All of it holds: ")
        with inmem.open(store_path, create=False) as db:
            assert db.runs.get_stats().total == 1 + 4

    def test_in_a_narrow_terminal(self) -> None:
        columns, rows = 40, 12
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        shown = b""
        try:
            one = Demonstration(
                "--seconds", "1", "--workers", "9", stdout=side, TERM="xterm", COLUMNS="", LINES="",
            )
            os.close(side)
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline and select.select([main], [], [], WAIT_S)[0]:
                try:
                    shown += os.read(main, 1 << 16)
                except OSError:  # the other side is closed
                    break
        finally:
            os.close(main)
        code, _, errors = one.end()
        assert (code, errors) == (0, "")
        text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
        assert "inmem demo works" in text and "more" in text
        picture, verdict = text.split("ok  every job", 1)
        lines = re.split(r"[\r\n]+", picture)
        assert max(len(line) for line in lines if ", process " not in line) <= columns
        assert "All of it holds" in verdict

    def test_quiet_is_the_verdict_alone(self) -> None:
        words = [sys.executable, "-m", "inmem.demo"]
        code, out, errors = Demonstration("--seconds", "1", "--workers", "1", "--quiet", words=words).end()
        assert (code, errors) == (0, "") and re.fullmatch(r"All of it holds: .*\n", out)


class TestEndedEarly:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_nothing_is_left(
        self, number: signal.Signals, store_path: Path, started: list[Demonstration]
    ) -> None:
        one = Demonstration("--seconds", "60", "--path", str(store_path))
        started.append(one)
        one.line("jobs planned")
        one.process.send_signal(number)
        code, _, errors = one.end()
        assert code == 128 + number
        assert errors == f"inmem: ended by {number.name}; its processes are gone\n"
        with inmem.open(store_path, create=False) as db:
            (run,) = db.runs.query_runs(tags=["demo"], parent_run=None, limit=1)
            assert run.status is inmem.RunStatus.ACTIVE

    def test_processes_whose_parent_was_killed_end_by_themselves(
        self, store_path: Path, started: list[Demonstration]
    ) -> None:
        one = Demonstration("--seconds", "60", "--path", str(store_path), "--ui", BROWSER="true %s")
        started.append(one)
        one.line("jobs planned")
        # Itself, the page, a planner, four workers, two reviewers.
        assert len(of_session(one.process.pid)) >= 9
        one.process.kill()
        wait_until(lambda: not of_session(one.process.pid), "the processes have ended")
        one.process.communicate()


class TestUsage:
    @pytest.mark.parametrize(
        "options", [("--seconds", "0.5"), ("--workers", "0"), ("--workers", "65"), ("--seed", "x"), ("more",)]
    )
    def test_wrong_options_are_refused(self, options: tuple[str, ...]) -> None:
        code, out, errors = Demonstration(*options).end()
        assert (code, out) == (2, "") and errors

    def test_the_variable_is_not_looked_at(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            code, out, _ = Demonstration(
                "--seconds", "1", "--workers", "1", "--json", INMEM_PATH=str(store_path)
            ).end()
            assert code == 0 and json.loads(out)["store"] is None
            assert db.runs.get_stats().total == 0

    def test_a_place_that_cannot_be_is_an_error(self, scratch: Path) -> None:
        (scratch / "file").write_text("")
        code, out, errors = Demonstration("--path", str(scratch / "file"), "--json").end()
        assert (code, errors) == (1, "") and json.loads(out)["error"]["code"]


class TestThePage:
    def test_it_is_there_while_the_fleet_works(
        self, store_path: Path, scratch: Path, started: list[Demonstration]
    ) -> None:
        opened = scratch / "opened"
        browser = scratch / "browser"
        browser.write_text(f"#!/bin/sh\necho \"$1\" > {opened}\n")
        browser.chmod(0o700)
        one = Demonstration(
            "--seconds", "1", "--workers", "1", "--ui", "--path", str(store_path), BROWSER=f"{browser} %s"
        )
        started.append(one)
        link = one.line("^The page is ").split()[-1]
        with build_opener(HTTPCookieProcessor()).open(link, timeout=WAIT_S) as answer:
            assert answer.status == 200 and b"<html" in answer.read()
        code, out, _ = one.end()
        assert code == 0 and "All of it holds" in out
        page, _, token = opened.read_text().strip().partition("?token=")
        assert page == link.partition("?token=")[0] and token not in ("", link.partition("?token=")[2])
        with pytest.raises(OSError, match="refused"):
            urlopen(link, timeout=WAIT_S)

    def test_without_its_extra_it_says_what_is_missing(self, tmp_path: Path) -> None:
        """Before anything is started."""
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
        code, out, errors = Demonstration("--ui", PYTHONPATH=f"{tmp_path}:{ROOT}").end()
        assert (code, out) == (2, "") and "pip install 'inmem[ui]'" in errors
