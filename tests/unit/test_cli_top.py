"""`inmem top`: what it makes of a writer's counters, and how it takes a writer that goes and comes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import kill_writer, wait_until, writer_pid
from unit.test_cli import PROGRAM, environment, line_of
from unit.test_cli_look import invoke

import inmem
from inmem.cli.top import curve, ending, rates
from inmem.database import Status
from inmem.keys import Namespace
from inmem.writer.committer import Request
from inmem.writer.sampler import Sampler
from inmem.writeset import OP_CALL, OP_PUT, WriteSet

WAIT_S = 30.0


def status(**fields: Any) -> Status:
    zero: dict[str, Any] = dict.fromkeys(Status.__slots__, 0)
    zero |= {"durability": "sync", "hot": {}, "writer_pid": 7, "oldest_snapshot_age_s": None}
    return Status(**zero | fields)


class TestRates:
    def test_they_are_of_the_time_between(self) -> None:
        before = status(
            commits=100, batches=10, conflicts=1, failures=2, groups=10, group_s=1.0, wal_bytes=10
        )
        after = status(
            commits=300, batches=60, conflicts=3, failures=6, groups=60, group_s=1.5, wal_bytes=50
        )
        passed = rates(before, after, 2.0)
        assert passed is not None
        assert (passed.commits, passed.batches, passed.conflicts, passed.failures) == (100, 25, 1, 2)
        assert (passed.batch, passed.group_ms, passed.wal_bytes) == (4.0, 10.0, 20)

    def test_of_an_idle_writer_and_of_two_there_are_none(self) -> None:
        idle = rates(status(), status(), 1.0)
        assert idle is not None and (idle.commits, idle.batch, idle.group_ms) == (0, None, None)
        assert rates(status(), status(epoch=1), 1.0) is None
        assert rates(status(), status(writer_pid=8), 1.0) is None

    def test_a_log_that_was_cut_does_not_shrink_at_a_rate(self) -> None:
        passed = rates(status(wal_bytes=100), status(wal_bytes=10), 1.0)
        assert passed is not None and passed.wal_bytes == 0

    def test_curve_and_ending(self) -> None:
        assert curve([0.0] * 3, 5) == "▁▁▁" and curve([], 5) == "" and len(curve([1.0, 9.0] * 50, 7)) == 7
        assert len(ending("a" * 50, 20)) == 20 and ending("short", 20) == "short"


class TestSampler:
    def body(self, op: list[Any]) -> Request:
        return Request(b"s" * 16, 1, 1, WriteSet(ops=[op]).encode())

    def test_the_busiest_runs_come_first(self) -> None:
        prefix = Namespace().run_prefix("a"), Namespace().run_prefix("b")
        key = prefix[0] + b"\0\x01key"
        sampler = Sampler()
        sampler.look([self.body([OP_PUT, key, b"\xc0", 0])] * 3, 1.0)
        sampler.look([self.body([OP_CALL, "event.append", [prefix[1], []]])], 1.0)
        assert sampler.hottest() == {"default/default/default/a": 0.75, "default/default/default/b": 0.25}
        assert sampler.due > 1.0

    def test_of_what_creates_a_run_it_is_that_run(self) -> None:
        sampler = Sampler()
        arguments = [Namespace().prefix(), "new", "", [], b"\x80"]
        sampler.look([self.body([OP_CALL, "run.create", arguments])], 1.0)
        assert list(sampler.hottest()) == ["default/default/default/new"]

    @pytest.mark.parametrize("body", [b"", b"\xff", b"\x95\x00\x00\x90\x90\x90", b"x" * 10_000])
    def test_what_is_no_commit_is_no_sample(self, body: bytes) -> None:
        sampler = Sampler()
        sampler.look([Request(b"s" * 16, 1, 1, body)], 1.0)
        assert sampler.hottest() == {}

    def test_what_is_old_is_forgotten(self) -> None:
        sampler = Sampler()
        for number in range(2000):
            key = Namespace().run_prefix(f"run-{number}") + b"\0\x01key"
            sampler.look([self.body([OP_PUT, key, b"\xc0", 0])], 1.0)
        assert 0 < len(sampler.hottest()) <= 16
        sampler.forget()
        assert sampler.hottest()  # some of it is of this time
        sampler.forget()
        assert sampler.hottest() == {}


@pytest.fixture
def served(store_path: Path) -> Iterator[Path]:
    invoke("start", "-d", store_path)
    yield store_path
    invoke("stop", "-d", store_path)


class TestTop:
    def test_a_writer_that_goes_and_comes_back(self, served: Path) -> None:
        watching = subprocess.Popen(
            [*PROGRAM, "top", str(served), "--json", "-i", "0.1"], env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        assert watching.stdout is not None

        def until(wanted: Any, what: str) -> dict[str, Any]:
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline:
                document: dict[str, Any] = json.loads(line_of(watching.stdout))
                if wanted(document):
                    return document
            raise AssertionError(what)

        try:
            first = until(lambda told: told["serving"] and told["rates"], "it serves")
            assert first["writer_pid"] == writer_pid(served) and first["rates"]["commits"] == 0
            with inmem.open(served, autostart=False) as db:
                for number in range(20):
                    db.events.append("busy", "step", number)
            busy = until(lambda told: told["serving"] and told["commits"] >= 20, "the commits are seen")
            assert busy["groups"] >= 20 and busy["group_s"] > 0
            assert max(busy["hot"], key=busy["hot"].get) == "default/default/default/busy"
            kill_writer(served)
            assert until(lambda told: not told["serving"], "it is gone")["problem"]
            assert watching.poll() is None
            assert not writer_pid(served)  # looking at a store that is not served starts no writer
            invoke("start", served)
            again = until(lambda told: told["serving"] and told["rates"], "it is back")
            assert again["epoch"] > first["epoch"]
        finally:
            watching.send_signal(signal.SIGINT)
            _, errors = watching.communicate(timeout=WAIT_S)
        assert watching.returncode == 130 and b"Traceback" not in errors

    def test_on_a_screen_it_ends_with_q(self, served: Path) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, 80))
        before = termios.tcgetattr(theirs)
        watching = subprocess.Popen(
            [*PROGRAM, "top", str(served), "-i", "0.2"], stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment(TERM="xterm", COLUMNS="80"), start_new_session=True,
            preexec_fn=_take_the_terminal,
        )  # fmt: skip
        shown = b""

        def read() -> bytes:
            nonlocal shown
            while select.select([ours], [], [], 0)[0]:
                shown += os.read(ours, 65536)
            return shown

        try:
            wait_until(lambda: b"all durable" in read() and b"clients" in shown, "it draws")
            os.write(ours, b"xq")
            wait_until(lambda: (read(), watching.poll() is not None)[1], "it ends")
        finally:
            watching.kill()
            watching.wait()
            after = termios.tcgetattr(theirs)
            os.close(ours)
            os.close(theirs)
        assert watching.returncode == 0 and after == before
        assert f"process {writer_pid(served)}, epoch 1, buffered".encode() in shown

    def test_into_a_file_it_is_text(self, served: Path) -> None:
        shown = invoke("top", served, "--count", "1", "-i", "0.1").stdout
        assert shown.startswith("inmem top ") and "\x1b" not in shown and "commits" in shown

    def test_of_a_store_that_nobody_serves(self, store_path: Path) -> None:
        with inmem.open(store_path):
            pass
        kill_writer(store_path)
        done = invoke("top", "-d", store_path, "--count", "1", "-i", "0.1")
        assert "no writer serves" in done.stdout and not writer_pid(store_path)


def _take_the_terminal() -> None:
    """Make standard input the terminal that controls this session, as a shell does."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
