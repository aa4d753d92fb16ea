"""Writers and helpers of maintenance that are forked off: starting Python is most of what a short test does.

Thousands of tests open a store of their own, which starts a writer, and
hundreds check one, which starts a helper. These are processes of their own as
before, with the words, environment and files that they are given: see
`forked`. What is left out is how Python starts and ends. So real programs are
started where that may matter: in modules that say `REAL_PROGRAMS = True`, for
whatever would make the start of Python another one (its variables, limits,
namespaces, signals), by all programs but commands that are forked off
themselves, and everywhere with INMEM_EXHAUSTIVE.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import forked
from forked import Forked, Source, programs

from inmem.host.files import python_environment
from inmem.maintenance import process

_DECIDING = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "TZ", "INMEM_FAILPOINT", "INMEM_PYTHON")
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_STATUS = ("Uid", "Gid", "Groups", "SigIgn", "Cap", "NoNewPrivs", "Seccomp:")

_plain = os.posix_spawnp


def starts_alike(program: Any, environment: Mapping[str, str], source: Source) -> bool:
    """Whether a program would start as the source does, whatever a test has changed."""
    return not programs.real and program == sys.executable and surroundings(environment) == source.like


def surroundings(environment: Mapping[str, str]) -> str:
    """What a program inherits that could make the start of Python another one."""
    status = Path("/proc/self/status").read_text().splitlines()
    return repr((
        sorted((name, value) for name, value in environment.items() if name.startswith(_DECIDING)),
        [resource.getrlimit(limit) for limit in _LIMITS],
        [os.stat(f"/proc/self/ns/{name}").st_ino for name in _NAMESPACES],
        sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0),
        [line for line in status if line.startswith(_STATUS)],
        Path("/proc/self/oom_score_adj").read_text(), os.stat("/").st_ino,
    ))  # fmt: skip


def install() -> None:
    """From now on these programs of this process are forked off, while they would start as they do now."""
    environment = python_environment()
    for source, more in ((forked.writers, {"PYTHONSAFEPATH": "1"}), (forked.helpers, {})):
        source.environment = environment | more
        source.like = surroundings(source.environment)
    fork_writers_off(forked.writers)
    fork_helpers_off(forked.helpers)


# --- writers ----------------------------------------------------------------------------------------


def fork_writers_off(source: Source) -> None:
    """By this process, not by its forked children: what launches them calls `os.posix_spawnp`."""
    owner = os.getpid()

    def spawn(program: Any, words: Sequence[Any], environment: Mapping[Any, Any], **how: Any) -> int:
        is_writer = list(words[1:3]) == ["-m", "inmem.writer"] and os.getpid() == owner
        if not is_writer or not starts_alike(program, environment, source):
            return _plain(program, words, environment, **how)
        numbers, files = [], []
        with ExitStack() as stack:
            for action, *rest in how["file_actions"]:
                if action == os.POSIX_SPAWN_DUP2:
                    fd, number = rest
                else:
                    assert action == os.POSIX_SPAWN_OPEN
                    number, *opening = rest
                    fd = os.open(*opening)
                    stack.callback(os.close, fd)
                numbers.append(number)
                files.append(fd)
            work = {"kind": "main", "words": list(words[2:]), "shown": list(words), "numbers": numbers}
            begun = Forked(work | {"session": True}, files, environment, source=source)
        begun.forget()
        return begun.pid

    os.posix_spawnp = spawn


# --- helpers ----------------------------------------------------------------------------------------


class Helper:
    """A helper that was forked off, used as a `subprocess.Popen`."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], errors: Any, source: Source
    ) -> None:
        theirs, ours = os.pipe()
        self.stdin: IO[bytes] = os.fdopen(ours, "wb")
        ours, said = os.pipe()
        self.stdout: IO[bytes] = os.fdopen(ours, "rb")
        work = {"kind": "main", "words": list(words[2:]), "shown": list(words)}
        try:
            self._process = Forked(work, [theirs, said, errors.fileno()], environment, source=source)
        finally:
            os.close(theirs)
            os.close(said)
        self.pid, self.wait, self.kill = self._process.pid, self._process.wait, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def terminate(self) -> None:
        self._process.send_signal(15)

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stdin.close()
        self.wait()


def fork_helpers_off(source: Source) -> None:
    """By this process, not by its forked children."""
    owner = os.getpid()

    def popen(words: Sequence[str], *, stdin: int, stdout: int, stderr: Any, env: Mapping[str, str]) -> Any:
        is_helper = list(words[1:3]) == ["-m", "inmem.maintenance"] and os.getpid() == owner
        if is_helper and starts_alike(words[0], env, source):
            return Helper(words, env, stderr, source)
        return subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, env=env)

    more = {"PIPE": subprocess.PIPE, "TimeoutExpired": subprocess.TimeoutExpired}
    process.subprocess = SimpleNamespace(Popen=popen, **more)  # type: ignore[assignment]
