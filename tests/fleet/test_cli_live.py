"""The commands beside a fleet at work: what they see of it, and that it does not notice them."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from support import alive, kill_writer, stop_writer, wait_until, writer_pid
from unit.test_cli import PROGRAM, environment
from unit.test_cli_look import document, invoke, lines

import inmem
from inmem.host.files import is_locked

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


class Following:
    """`inmem events RUN --follow --json`, running."""

    def __init__(self, run: str, store: Path, *more: str) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [*PROGRAM, "events", run, "-d", str(store), "--follow", "--json", *more], env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        self._out: IO[bytes] = self.process.stdout
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All that was printed until now."""
        while select.select([self._out], [], [], 0)[0]:
            data = self._out.read1(65536)
            if not data:
                break
            *whole, self._rest = (self._rest + data).split(b"\n")
            self.events += map(json.loads, whole)
        return self.events

    def until(self, count: int) -> None:
        wait_until(lambda: len(self.read()) >= count, f"{count} events are seen", WAIT_S)

    def end(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(WAIT_S)
        self.read()
        assert self.process.stderr is not None
        with self._out, self.process.stderr as errors:
            return errors.read().decode()


def private_memory(pid: int) -> bool:
    """Whether a process has a private image."""
    return "memfd:inmem-private" in Path(f"/proc/{pid}/maps").read_text()


@pytest.fixture
def fleet(store_path: Path, scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A fleet of two agents at work on the store."""
    with (scratch / "fleet.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.fleet", "--path", str(store_path), "--workers", "2",
             "--steps", "200", "--quiet"],
            cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_fleet_is_watched_over_the_death_of_its_writer(
    fleet: subprocess.Popen[bytes], store_path: Path, scratch: Path
) -> None:
    wait_until(lambda: writer_pid(store_path), "the fleet has begun", WAIT_S)
    wait_until(lambda: len(agents(store_path)) == 2, "both agents have a run", WAIT_S)
    agent = agents(store_path)[0]
    following = Following(agent, store_path, "--from", "0")
    try:
        following.until(20)
        before = len(following.read())
        kill_writer(store_path)
        for arguments in (("runs", "--tree"), ("run", agent), ("cells", agent), ("traces", agent),
                          ("kv", "ls", agent), ("verify", agent)):  # fmt: skip
            invoke(*arguments, "-d", store_path)
        invoke("report", agent, "-d", store_path, "-o", scratch / "run.html")
        assert fleet.wait(WAIT_S) == 0, (scratch / "fleet.log").read_text()
        total = document("run", agent, "-d", store_path)["counts"]["events"]
        assert total > before, "the agent was done before its writer was killed"
        following.until(total)
    finally:
        errors = following.end()
    assert following.process.returncode == 130 and "Traceback" not in errors
    # Each event once, in order, as it is in the log.
    assert following.events == lines("events", agent, "-d", store_path)
    assert [event["sequence"] for event in following.events] == list(range(total))
    stop_writer(store_path)
    for arguments in (("runs",), ("run", agent), ("events", agent), ("verify", agent)):
        invoke(*arguments, "-d", store_path, "--no-writer")
    assert not writer_pid(store_path)


def agents(path: Path) -> list[str]:
    found = lines("runs", path, "--tag", "fleet-agent")
    return sorted(run["run_id"] for run in found)


class TestFollow:
    def test_an_event_is_seen_as_it_commits(self, store_path: Path) -> None:
        delays = []
        with inmem.open(store_path) as db:
            db.events.append("run-1", "first")
            following = Following("run-1", store_path)
            try:
                following.until(1)
                for number in range(5):
                    began = time.monotonic()
                    db.events.append("run-1", "next", number)
                    following.until(2 + number)
                    delays.append(time.monotonic() - began)
            finally:
                following.end()
        assert [event["payload"] for event in following.events] == [None, 0, 1, 2, 3, 4]
        assert sorted(delays)[len(delays) // 2] < 1.0  # 20 ms where nothing else runs

    @pytest.mark.parametrize("more", [(), ("--type", "first"), ("--from", "1")], ids=" ".join)
    def test_a_run_that_is_deleted_ends_it(self, store_path: Path, more: tuple[str, ...]) -> None:
        with inmem.open(store_path) as db:
            db.events.append_many("run-1", [("first", None), ("first", None)])
            following = Following("run-1", store_path, *more)
            try:
                following.until(2 - ("--from" in more))
                kill_writer(store_path)
                db.runs.delete_run("run-1")
                assert following.process.wait(WAIT_S) == 1
            finally:
                following.end()
            assert following.events[-1]["error"]["code"] == "run_deleted"
            late = Following("run-1", store_path, *more)
            assert late.process.wait(WAIT_S) == 1 and not late.end()
            assert [event["error"]["code"] for event in late.events] == ["run_deleted"]

    def test_a_beginning_that_is_not_there_yet_is_waited_for(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.events.append("run-1", "first")
            following = Following("run-1", store_path, "--from", "3")
            try:
                for number in range(4):
                    time.sleep(0.3)  # some looks at what there is
                    db.events.append("run-1", "next", number)
                following.until(2)
            finally:
                errors = following.end()
        assert [event["sequence"] for event in following.events] == [3, 4] and "shorter" not in errors

    def test_it_neither_keeps_a_writer_nor_starts_one(self, store_path: Path, scratch: Path) -> None:
        config = scratch / "c.toml"
        config.write_text("[store]\nlinger_s = 0.2\n")
        with inmem.open(store_path, config=config) as db:
            db.events.append("run-1", "first")
            pid = writer_pid(store_path)
        following = Following("run-1", store_path, "--type", "first")
        try:
            following.until(1)
            wait_until(lambda: not alive(pid), "the writer leaves although it is followed")
            time.sleep(0.3)  # some looks at a store that nobody serves
            assert following.process.poll() is None and not writer_pid(store_path)
            with inmem.open(store_path) as db:
                db.events.append("run-1", "other")
                db.events.append("run-1", "first")
            following.until(2)
        finally:
            errors = following.end()
        assert [event["sequence"] for event in following.events] == [0, 2] and "Traceback" not in errors

    def test_from_files_to_a_writer_that_comes(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.events.append("run-1", "before")
        stop_writer(store_path)
        following = Following("run-1", store_path)
        try:
            following.until(1)
            assert not writer_pid(store_path) and private_memory(following.process.pid)
            with inmem.open(store_path) as db:
                db.events.append("run-1", "after")
                following.until(2)
                wait_until(lambda: not private_memory(following.process.pid), "its own image is gone")
        finally:
            following.end()

    def test_it_ends_with_the_directory(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.events.append("run-1", "first")
        stop_writer(store_path)
        following = Following("run-1", store_path)
        try:
            following.until(1)
            moved = store_path.rename(store_path.with_name("moved"))
            assert following.process.wait(WAIT_S) == 1
        finally:
            following.end()
        last = following.events[-1]["error"]
        assert "was removed or replaced" in last["message"] and moved.exists()


def test_a_lock_whose_directory_goes_while_it_is_looked_at(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: True)  # as it was a moment ago
    assert not is_locked(scratch / "gone" / "writer.lock")
