"""What tests with real processes share: workers, waiting, writers, and what must not be left.

A worker imports one function, calls it and writes down what came back. It is
a process with an environment of its own, and never inherits anything from the
test: see `forked`.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked import Forked

from inmem.errors import InmemError
from inmem.host.control import Control
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock

TESTS = Path(__file__).parents[1]
PLACES = [str(TESTS), str(TESTS / "crash"), str(TESTS / "faults")]  # of what workers run, beside the helpers
DEADLINE_S = 30.0
_POLL_S = 0.002
_REST = 8
_LONGEST_POLL_S = 0.1


def some_of(count: int, *axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations of axes: all with INMEM_EXHAUSTIVE, else so many, in which each value of an axis comes.
    Each process of a run makes the same choice.
    """
    every = list(itertools.product(*axes))
    if os.environ.get("INMEM_EXHAUSTIVE") or count >= len(every):
        return every
    lists = [list(axis) for axis in axes]
    assert count >= max(map(len, lists)), "each value comes"
    dice = random.Random(count)
    while True:
        chosen = dice.sample(every, count)
        if all(value in column for axis, column in zip(lists, zip(*chosen, strict=True), strict=True)
               for value in axis):  # fmt: skip
            return chosen


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of a condition; fails the test when the deadline passes first.

    It rests for several times as long as a look took: what is waited for needs the processor itself.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(min(max(_POLL_S, (now - began) * _REST), _LONGEST_POLL_S))


# --- processes ----------------------------------------------------------------------------------


def process_state(pid: int) -> str:
    """What the kernel says of a process, as ps shows it: R runs, T is stopped, Z is a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not: nobody may be there to reap it.

    Its first thread may be a zombie while others still hold its files and locks: then it runs.
    """
    try:
        return process_state(pid) not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int, number: int = signal.SIGKILL, *, wait: bool = True) -> None:
    """Send one process a signal; by default wait until it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    if wait:
        wait_until(lambda: not alive(pid), f"process {pid} ends after signal {number}")


def control_state(path: Path) -> Any:
    """What the control file of a data directory says; None without one."""
    file = Path(path) / "control"
    if not file.exists():
        return None
    control = Control(file)
    try:
        return wait_until(control.read, "the control file is between two updates")
    finally:
        control.close()


def copied(source: Path, target: Path) -> Path:
    """A copy of a data directory, which passes for one that was created where it is."""
    shutil.copytree(source, target)
    settings = target / "settings.json"
    document = json.loads(settings.read_text())
    document["inode"] = target.stat().st_ino
    settings.write_text(json.dumps(document))
    return target


def writer_pid(path: Path) -> int:
    """The process id of the writer that serves, 0 without one."""
    state = control_state(path)
    return state.pid if state is not None and state.pid and alive(state.pid) else 0


def epoch(path: Path) -> int:
    """How many writers the directory has had."""
    state = control_state(path)
    return 0 if state is None else state.epoch


def kill_writer(path: Path) -> int:
    """SIGKILL the writer that serves and wait until it is gone; its process id."""
    pid = wait_until(lambda: writer_pid(path), "a writer serves")
    kill(pid)
    return pid


def stop_writer(path: Path) -> None:
    """Ask the writer to stop, as an operator would, and wait until it has."""
    pid = writer_pid(path)
    if pid:
        kill(pid, signal.SIGTERM)


@contextmanager
def launches_held(path: Path) -> Iterator[None]:
    """No writer of a store is started meanwhile."""
    lock = FileLock(DataDirectory(path).launch_lock)
    try:
        wait_until(lock.try_exclusive, "nobody starts a writer")
        yield
    finally:
        lock.close()


def processes_of(path: Path) -> list[tuple[int, str]]:
    """The running processes that have a path in their command line, this one left out."""
    found = []
    wanted = os.fsencode(path)
    for name in os.listdir("/proc"):  # after each test that has a place of its own: not by `Path`
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb", buffering=0) as file:
                    line = file.read()
            except OSError:
                continue
            if wanted in line and alive(int(name)):
                found.append((int(name), line.replace(b"\0", b" ").decode(errors="replace").strip()))
    return found


# --- what a store leaves in memory ----------------------------------------------------------------


def runtime_entries(path: Path) -> list[Path]:
    """Images and sockets of a data directory in the runtime directories."""
    directory = DataDirectory(path)
    try:
        stem = directory.stem(directory.identity())
    except (InmemError, OSError):
        return []
    places = [Path(f"/dev/shm/inmem-{os.geteuid()}"), Path(f"/tmp/inmem-{os.geteuid()}"), directory.path]
    return [entry for place in places if place.is_dir() for entry in place.glob(f"{stem}*")]


def leftovers(root: Path) -> list[str]:
    """Stop the writers of all stores below a path and name what stays that should not.

    A writer that was killed leaves its image and socket for the next one:
    that is no leftover, and removed here.
    """
    stores = [file.parent for file in sorted(root.rglob("settings.json")) if not file.is_symlink()]
    for store in stores:
        try:
            stop_writer(store)
        except InmemError:
            pass  # a test has damaged the control file
    try:  # a writer that was refused has said so a moment before it ends
        wait_until(lambda: not processes_of(root), "all processes have ended", 3.0)
        found = []
    except AssertionError:
        found = [f"process {pid}: {line}" for pid, line in processes_of(root)]
    for store in stores:
        try:
            state = control_state(store)
        except InmemError:
            state = None
        left_cleanly = state is not None and not state.pid
        for entry in runtime_entries(store):
            if left_cleanly:
                found.append(f"in memory: {entry}")
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    for pid, _ in processes_of(root) if found else []:
        kill(pid)
    return found


# --- shared words -----------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine)
_FUTEX_WAIT = 0
_FUTEX_WAKE = 1
_A_MOMENT = (ctypes.c_long * 2)(0, 500_000_000)


class Words:
    """Words of memory that test and workers share: a stop flag, a gate and one counter each."""

    SIZE = 4096

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, self.SIZE)
            self._map = mmap.mmap(fd, self.SIZE)
        finally:
            os.close(fd)
        self._view = memoryview(self._map)
        self._words = self._view.cast("Q")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._view.release()
        self._map.close()

    def __getitem__(self, index: int) -> int:
        return self._words[index + 8]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index + 8] = value

    def stop(self) -> None:
        """Ask the workers to finish."""
        self._words[0] = 1

    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return bool(self._words[0])

    def open_gate(self, number: int = 1) -> None:
        """Let those through that wait for this gate."""
        self._words[1] = max(self._words[1], number)
        self._futex(_FUTEX_WAKE, 0x7FFF_FFFF)

    def pass_gate(self, number: int = 1) -> None:
        """Wait for a gate; until the moment it opens, so that workers start together."""
        deadline = time.monotonic() + DEADLINE_S
        while (seen := self._words[1]) < number:
            if time.monotonic() > deadline:
                raise AssertionError(f"gate {number} stays shut")
            self._futex(_FUTEX_WAIT, seen)

    def _futex(self, operation: int, value: int) -> None:
        """Sleep while the gates are as they were, for a moment at most; or wake all that sleep so."""
        if _SYS_FUTEX is None:
            time.sleep(0.0005)
        else:
            gates = ctypes.c_void_p(self._address + 8)
            _libc.syscall(_SYS_FUTEX, gates, operation, value, _A_MOMENT, None, 0)

    def total(self, count: int) -> int:
        """The sum of the first `count` counters."""
        return sum(self._words[8 : 8 + count])

    def meet(self, index: int, count: int, number: int, pause_s: float = 0.0) -> None:
        """Wait until `count` workers have come to meeting `number`; needs counters 0 to count.

        With more workers than cores they pause, so that the others can come.
        """
        self[index] = number
        deadline = time.monotonic() + DEADLINE_S
        while any(self[other] < number for other in range(count)):
            if time.monotonic() > deadline:
                raise AssertionError(f"nobody else came to meeting {number}")
            time.sleep(pause_s)


# --- workers ------------------------------------------------------------------------------------


class Worker:
    """One program that runs one function."""

    def __init__(self, process: Forked, name: str, result: Path, errors: Path) -> None:
        self.process = process
        self.name = name
        self._result = result
        self._errors = errors

    @property
    def pid(self) -> int:
        return self.process.pid

    def result(self, deadline_s: float = 90.0) -> Any:
        """What the function returned; fails the test with its traceback if it raised."""
        try:
            status = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {deadline_s} s") from None
        errors = self._errors.read_text(errors="replace")
        assert status == 0, f"{self.name} ended with {status}:\n{errors}"
        return json.loads(self._result.read_text())

    def errors(self) -> str:
        """What it wrote to standard error."""
        return self._errors.read_text(errors="replace")


class Workers:
    """The programs of one test; none is left when the block ends."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.words = Words(scratch / "words")
        self._all: list[Worker] = []

    def start(
        self, target: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None
    ) -> Worker:
        """Call `target(words, *arguments)` in a new program; arguments and result travel as JSON."""
        number = len(self._all)
        name = f"{target.__name__}-{number}"
        result, errors = self.scratch / f"{name}.json", self.scratch / f"{name}.err"
        plain = [str(a) if isinstance(a, Path) else a for a in arguments]
        words = [target.__module__, target.__name__, str(self.words.path), str(result), json.dumps(plain)]
        work = {"kind": "function", "words": words, "places": PLACES, "imports": [target.__module__]}
        with errors.open("wb") as log, open(os.devnull) as nothing:
            files = [nothing.fileno(), log.fileno(), log.fileno()]
            process = Forked(work, files, os.environ | (environment or {}))
        worker = Worker(process, name, result, errors)
        self._all.append(worker)
        return worker

    def results(self, deadline_s: float = 90.0) -> list[Any]:
        """The results of all that were started, in order."""
        deadline = time.monotonic() + deadline_s
        return [worker.result(max(0.1, deadline - time.monotonic())) for worker in self._all]

    def check(self) -> None:
        """Fail at once if a worker has failed."""
        for worker in self._all:
            if worker.process.poll():
                worker.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.words.stop()
        for worker in self._all:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
        self.words.close()


def in_parallel(workers: Workers, target: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """`target(words, index, *arguments)` in `count` programs; their results."""
    for index in range(count):
        workers.start(target, index, *arguments)
    return workers.results()


def be_worker(module: str, function: str, words: str, result: str, arguments: str) -> int:
    """Be a worker; the exit status."""
    try:
        value = getattr(importlib.import_module(module), function)(Words(Path(words)), *json.loads(arguments))
    except BaseException:
        traceback.print_exc()
        return 1
    Path(result).write_text(json.dumps(value))
    return 0


if __name__ == "__main__":  # as the first process of a machine: nothing can be forked off from outside there
    sys.path[:0] = PLACES
    sys.exit(be_worker(*sys.argv[1:]))


def in_threads(count: int, work: Callable[[int], Any], within_s: float = 30.0) -> None:
    """`work(index)` in some threads at once; the first error, if there is one, is raised."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(within_s)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
