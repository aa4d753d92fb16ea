"""The fleet programs as a user starts them, and what is left of them afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
from support import wait_until

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"
WAIT_S = 60.0
PROGRAMS = ["fleet.program", "fleet.replay", "stress.program", "chaos.program"]
IMPORTS = ["workers.cli", *(f"workers.{name}" for name in PROGRAMS)]  # before commands are forked off
LINGER_S = "0.2"  # of writers: tests that wait for one to leave need not wait for long


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """`wait_until`, with more time: programs have to start."""
    return wait_until(condition, what, timeout_s)


@dataclass
class Site:
    """A place for one test: its own temporary directory, and a mark on all that it starts.

    The mark is a variable that every process inherits, detached ones too; so
    a process that was left behind is found whoever its parent is. A process
    that was forked off has no such mark, and is known by its session.
    """

    tmp: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    settings: dict[str, str] = field(default_factory=lambda: {"INMEM_LINGER_S": LINGER_S})
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    sessions: set[int] = field(default_factory=set)  # of commands that were forked off

    def __post_init__(self) -> None:
        self.tmp.mkdir(exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        own = {"TMPDIR": str(self.tmp), "FLEET_TEST_MARK": self.mark, "COLUMNS": "200"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("INMEM_")}
        return inherited | self.settings | own

    def command(self, module: str, *arguments: object) -> list[str]:
        return [sys.executable, "-W", "error", "-m", module, *map(str, arguments)]

    def run(self, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """The command to its end. It is forked off (see `forked`), and what it starts are real processes."""
        work = {"kind": "module", "words": [module, *map(str, arguments)], "imports": IMPORTS}
        work["session"] = True
        return forked.run(
            work, cwd=ROOT, env=self.environment, timeout=110, began=self.sessions.add
        )  # fmt: skip

    def run_really(self, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """The command to its end, begun as a user begins it."""
        return subprocess.run(
            self.command(module, *arguments),
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip

    def run_json(
        self, module: str, *arguments: object, code: int = 0, really: bool = False
    ) -> dict[str, Any]:
        done = (self.run_really if really else self.run)(module, *arguments, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        data: dict[str, Any] = json.loads(done.stdout)
        return data

    def start(self, module: str, *arguments: object, **more: Any) -> subprocess.Popen[str]:
        """The command in a session of its own, so that a signal to its group stays there."""
        process = subprocess.Popen(
            self.command(module, *arguments),
            cwd=ROOT, env=self.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip
        self.started.append(process)
        return process

    def close(self) -> None:
        """End what a failed test has left running; what is well leaves by itself."""
        for process in self.started:
            process.kill()
            process.communicate()
        try:
            wait_for(lambda: not self.processes(), "the last process", 20)
        finally:
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # A store with a path stays, but what it has in memory goes with its writer.
        for settings in self.tmp.parent.rglob("settings.json"):
            name = json.loads(settings.read_text())["database_id"]
            wait_for(lambda name=name: not self.images(name), f"memory of {settings.parent} freed", 20)

    def processes(self) -> dict[int, list[str]]:
        """Living processes with the mark: process id and command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_ours(entry):
                try:
                    found[int(entry.name)] = (entry / "cmdline").read_text().split("\0")
                except OSError:
                    continue
        return found

    def _is_ours(self, entry: Path) -> bool:
        try:
            # A process that waits to be reaped has an empty environment here.
            if f"FLEET_TEST_MARK={self.mark}".encode() in (entry / "environ").read_bytes():
                return True
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            return int(session) in self.sessions and state != "Z"
        except OSError:
            return False

    def agents(self, parent: int) -> list[int]:
        """The worker processes of a command."""
        return [
            pid
            for pid, words in self.processes().items()
            if any("spawn_main" in word for word in words) and parent_of(pid) == parent
        ]

    def images(self, database_id: str) -> list[Path]:
        """What a database has in shared memory."""
        return [
            path
            for base in Path("/dev/shm").glob("inmem*")
            for path in [base, *base.rglob("*")]
            if database_id[:16] in path.name
        ]

    def assert_nothing_left(self, database_id: str = "") -> None:
        """No process, no file; the last may take as long as the writer lingers."""
        wait_for(lambda: not self.processes(), f"processes gone: {self.processes()}", 20)
        assert list(self.tmp.iterdir()) == []
        if database_id:
            assert self.images(database_id) == []

    def database_id(self) -> str:
        """Of the only throw-away store of this site."""
        (settings,) = self.tmp.glob("*/settings.json")
        name: str = json.loads(settings.read_text())["database_id"]
        return name


def parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
