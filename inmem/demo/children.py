"""The processes of the fleet, as their parent has them.

Invariant: a signal goes only to a process that was started here and was not
reaped: its id cannot be another one's. When the block ends none is left.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any, Final, Self

from inmem.demo.link import DemoTask
from inmem.host.files import python_environment, python_program

_LEAVE_S: Final = 10.0  # from asking a process to stop until it is terminated
_TERM_S: Final = 2.0  # from terminating it until it is killed
_SHOWN: Final = 4000  # characters of what a process wrote to standard error


class ChildFailedError(Exception):
    """A process of the fleet has ended although nobody asked it to."""


@dataclass(slots=True)
class FleetChild:
    """One place in the fleet, and the process that has it now."""

    name: str
    role: str
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    errors: IO[bytes] | None = None
    is_ready: bool = False
    is_expected_to_end: bool = False
    doing: str = "starts"
    done: int = 0  # what was acknowledged to it
    token: int = 0  # of the lease that it holds
    kills: int = 0
    rest: bytes = field(default=b"", repr=False)

    @property
    def pid(self) -> int:
        """Of its process; 0 without one."""
        return self.process.pid if self.process is not None else 0


class FleetProcesses:
    """Starts, hears and ends them. Use it as a context manager."""

    def __init__(self, module: Sequence[str], task: DemoTask) -> None:
        """`module` has the words for Python; `task` is that of all, without role and name."""
        self._words = [python_program(), *module]
        self._task = task
        self._selector = selectors.DefaultSelector()
        self.all: list[FleetChild] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.all:
            self.ask_to_stop(child)
        self._wait(_LEAVE_S)
        for end in (signal.SIGTERM, signal.SIGKILL):
            for child in self.all:
                if child.process is not None and child.process.poll() is None:
                    child.process.send_signal(end)
            self._wait(_TERM_S)
        for child in self.all:
            if child.process is not None:
                child.process.wait()
            self._forget(child)
        self._selector.close()

    def add(self, name: str, role: str) -> FleetChild:
        """One more place, with a process in it."""
        child = FleetChild(name, role)
        self.all.append(child)
        self.start(child)
        return child

    def start(self, child: FleetChild) -> None:
        """Start a process for a place that has none."""
        child.starts += 1
        holder = f"{child.name}#{child.starts}"
        task = replace(self._task, role=child.role, name=child.name, holder=holder)
        child.errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        child.is_ready, child.doing, child.token, child.rest = False, "starts", 0, b""
        child.process = subprocess.Popen(
            self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=child.errors, bufsize=0,
            env=python_environment(),
            process_group=0,  # a Ctrl-C of the terminal is for the parent, which ends the others
        )
        assert child.process.stdin is not None and child.process.stdout is not None
        os.set_blocking(child.process.stdout.fileno(), False)
        self._selector.register(child.process.stdout, selectors.EVENT_READ, child)
        with suppress(BrokenPipeError):  # it has ended already: that is found when it is heard
            child.process.stdin.write(task.encode())

    def kill(self, child: FleetChild) -> list[dict[str, Any]]:
        """SIGKILL the process of a place, and see it dead; what it had told and nobody had heard yet."""
        assert child.process is not None
        child.process.kill()
        child.process.wait()
        child.kills += 1
        told = list(self._documents(child, is_killed=True))
        self._forget(child)
        child.doing = "was killed"
        return told

    def ask_to_stop(self, child: FleetChild) -> None:
        """Let a process end, once it is done with what it does."""
        child.is_expected_to_end = True
        if child.process is not None and child.process.stdin is not None:
            child.process.stdin.close()

    def hear(self, most_s: float) -> Iterator[tuple[FleetChild, dict[str, Any]]]:
        """What they have told, within so many seconds.

        Raises:
            ChildFailedError: one has failed, or has ended too early.
        """
        for key, _ in self._selector.select(most_s):
            child: FleetChild = key.data
            for document in self._documents(child):
                if document["kind"] == "error":
                    raise ChildFailedError(f"{child.name} has failed: {document['text']}")
                yield child, document

    def _documents(self, child: FleetChild, *, is_killed: bool = False) -> Iterator[dict[str, Any]]:
        assert child.process is not None and child.process.stdout is not None
        while True:
            try:
                data = os.read(child.process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not data:
                break
            *lines, child.rest = (child.rest + data).split(b"\n")
            yield from map(json.loads, lines)
        if is_killed:
            return
        code = child.process.wait()
        said = self._forget(child)
        if not child.is_expected_to_end or code or child.rest:
            raise ChildFailedError(f"{child.name} has ended with exit code {code}. {said}".rstrip())

    def _forget(self, child: FleetChild) -> str:
        """Close the files of a process that has ended; what it wrote to standard error."""
        process, child.process = child.process, None
        if process is None:
            return ""
        assert process.stdin is not None and process.stdout is not None and child.errors is not None
        self._selector.unregister(process.stdout)
        process.stdin.close()
        process.stdout.close()
        child.doing = "has ended"
        with child.errors as file:
            file.seek(0)
            return file.read().decode(errors="replace")[-_SHOWN:]

    def _wait(self, most_s: float) -> None:
        """Until all have ended; what they say meanwhile is read, or a full pipe would stop them."""
        deadline = time.monotonic() + most_s
        running = [each.process for each in self.all if each.process is not None]
        while any(each.poll() is None for each in running) and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.02):
                if not os.read(key.fd, 1 << 16):
                    time.sleep(0.005)  # it is about to end
