"""pytest's plugin: stores for tests, a clock that tests move, and a writer that they kill.

pytest finds it by itself where inmem is installed. It imports nothing of
inmem before a test asks for one of its fixtures.

Invariant: what a fixture has made is gone when it ends, and what a test has
left open in it fails that test. The store that all tests share lies where
only the process that began the run removes it: workers of xdist come and go.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from inmem import Database

_PLACE: Final = "inmem_place"  # the name of the run's directory, as the workers of xdist are told of it
_LEAVE_S: Final = 30.0  # in which a writer must have gone
_MOVE_S: Final = 10.0
_STEP_US: Final = 12 * 3600 * 1_000_000  # of the clock: a leap of more than a day is taken for a mistake
_POLL_S: Final = 0.005
STEPS: Final = ("logged", "synced", "published", "answering")  # of a commit, where a writer can be killed

_place: Final = pytest.StashKey[str]()  # the name of the directory of the run's shared store


def pytest_configure(config: pytest.Config) -> None:
    """Say what the directory of the run's shared store is called, if a test wants one."""
    told = getattr(config, "workerinput", {}).get(_PLACE)
    config.stash[_place] = told or f"inmem-{os.getpid()}-{secrets.token_hex(4)}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist."""
    node.workerinput[_PLACE] = node.config.stash[_place]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it: all workers have ended."""
    if _place not in config.stash or hasattr(config, "workerinput"):
        return
    try:
        place = Path(tempfile.gettempdir(), config.stash[_place])
    except FileNotFoundError:  # there is no directory that can be written to: nothing was made
        return
    if place.exists():
        _removed(place)


# --- fixtures -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _inmem_shared(pytestconfig: pytest.Config) -> Iterator[Path]:
    import inmem

    place = Path(tempfile.gettempdir(), pytestconfig.stash[_place])
    place.mkdir(mode=0o700, exist_ok=True)
    with inmem.open(place / "store", durability="memory"):  # as long as this is open its writer stays
        yield place / "store"


@pytest.fixture
def inmem_db(_inmem_shared: Path) -> Iterator[Database]:
    """A handle with a namespace of its own, in a store that all tests of the run share.

    It costs some milliseconds: the writer is started once. What a test
    writes stays until the end of the run, in memory.
    """
    import inmem

    with inmem.open(_inmem_shared, app="pytest", agent=secrets.token_hex(8)) as database:
        yield database


@pytest.fixture
def inmem_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path for a store of this test's own, which is not there yet: `inmem.open(inmem_path)`.

    At the end its writer is stopped and everything removed. The test fails if
    a process, this one too, still has the store open then.
    """
    from inmem.host.clock import VARIABLE

    place = Path(tempfile.mkdtemp(prefix="inmem-test-")).resolve()  # as the kernel names open files
    clock = place / "clock"
    clock.write_bytes(bytes(8))
    monkeypatch.setenv(VARIABLE, str(clock))
    path = place / "store"
    yield path
    left = _holders(path)
    if left:
        gc.collect()  # a handle that nobody has any more is none that was left open
        left = _holders(path)
    _removed(place)
    if left:
        who = ", ".join(left)
        pytest.fail(f"the store was left open by {who}: close it, or end the process", pytrace=False)


@pytest.fixture
def inmem_fresh(inmem_path: Path) -> Iterator[Database]:
    """A handle of a store of this test's own, durable as by default. Cost: the start of a writer, 0.2 s."""
    import inmem

    with inmem.open(inmem_path) as database:
        yield database


@pytest.fixture
def inmem_clock(inmem_path: Path) -> InmemClock:
    """The clock of the store at `inmem_path`, and so of `inmem_fresh`. It can be moved on."""
    return InmemClock(inmem_path)


@pytest.fixture
def inmem_writer(inmem_path: Path) -> Iterator[InmemWriter]:
    """The writer of the store at `inmem_path`, and so of `inmem_fresh`. It can be killed and stopped."""
    writer = InmemWriter(inmem_path)
    yield writer
    writer.close()


# --- what they give -----------------------------------------------------------------------------


class InmemClock:
    """A store's clock. Times to live, leases and delays of jobs go by it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.parent / "clock"

    def __repr__(self) -> str:
        return f"InmemClock({self._path}, now={self.now()})"

    def now(self) -> float:
        """Store time, seconds since the Unix epoch. The store has to be there."""
        from inmem.host.clock import boot_us
        from inmem.host.control import CLOCK
        from inmem.host.directory import DataDirectory

        control = DataDirectory(self._path).control()
        try:
            return float(boot_us() + control.words[CLOCK]) / 1e6
        finally:
            control.close()

    def advance(self, seconds: float | timedelta) -> None:
        """Move the clock on. When this returns every process sees the new time. The store must be open.

        What waits for a time (a sleeper, a claim) is woken by its next look, within a second.

        Raises:
            InvalidInputError: not above 0; or the store has no writer.
        """
        import inmem

        seconds = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        if type(seconds) not in (int, float) or not 0 < seconds < 1e9:
            problem = f"seconds must be above 0 and below 10**9, not {seconds!r}"
            raise inmem.InvalidInputError(problem, argument="seconds")
        left_us = round(seconds * 1e6)
        with inmem.open(self._path, create=False) as database:
            while left_us > 0:
                step_us = min(left_us, _STEP_US)
                wanted = self.now() + step_us / 1e6
                moved = int.from_bytes(self._file.read_bytes(), "little") + step_us
                with open(self._file, "r+b") as file:  # in place: the writer has it mapped
                    file.write(moved.to_bytes(8, "little"))
                database.status()  # wakes a writer that rests
                problem = "the writer has not followed the clock"
                _until(lambda wanted=wanted: self.now() >= wanted, problem, _MOVE_S)
                left_us -= step_us


class InmemWriter:
    """A store's writer, to be killed, stopped and replaced. Acknowledged commits must survive all of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frozen: int | None = None
        self._before: dict[str, str | None] = {}

    def __repr__(self) -> str:
        return f"InmemWriter({self._path}, pid={self.pid})"

    @property
    def pid(self) -> int | None:
        """Its process id, None if no writer serves."""
        return _writer_pid(self._path)

    def kill(self) -> int:
        """Kill it, as a crash would, and return the process id that it had. The next commit starts another.

        Raises:
            InvariantError: no writer serves.
        """
        return self._end(signal.SIGKILL)

    def leave(self) -> int:
        """Ask it to stop, as `inmem stop` does, and wait until it has. Raises as `kill`."""
        return self._end(signal.SIGTERM)

    def kill_at(self, step: str, *, count: int = 1) -> None:
        """Let the next writer be killed in the middle of its commit number `count`; the one after it lives.

        `step` is where: `logged` (in the log, and nobody can read it), `synced`
        (durable), `published` (others can read it), `answering` (before the
        answer is sent). A writer that serves is stopped first.

        Raises:
            InvalidInputError: there is no such step, or the count is below 1.
        """
        import inmem
        from inmem.host.failpoints import VARIABLE

        if step not in STEPS:
            problem = f"step must be one of {', '.join(STEPS)}, not {step!r}"
            raise inmem.InvalidInputError(problem, argument="step")
        if type(count) is not int or count < 1:
            raise inmem.InvalidInputError(f"count must be an int above 0, not {count!r}", argument="count")
        if self.pid is not None:
            self.leave()
        self._before.setdefault(VARIABLE, os.environ.get(VARIABLE))
        flag = self._path.parent / f"killed-{secrets.token_hex(4)}"
        os.environ[VARIABLE] = f"{step}:{count}:{flag}"

    def freeze(self) -> int:
        """Stop it, as a machine that swaps does: it does nothing until `thaw`. Raises as `kill`."""
        pid = self._there()
        os.kill(pid, signal.SIGSTOP)
        self._frozen = pid
        return pid

    def thaw(self) -> None:
        """Let it go on."""
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            with suppress(ProcessLookupError):
                os.kill(frozen, signal.SIGCONT)

    def close(self) -> None:
        """Undo what lasts: the fixture does it."""
        self.thaw()
        for name, before in self._before.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before

    def _there(self) -> int:
        import inmem

        pid = self.pid
        if pid is None:
            raise inmem.InvariantError("no writer serves", hint="Open the store, and write something.")
        return pid

    def _end(self, number: int) -> int:
        pid = self._there()
        if number == signal.SIGKILL:  # it ends as it is: one that is frozen does nothing more
            self._frozen = None
        self.thaw()
        os.kill(pid, number)
        _until(lambda: self.pid != pid and not _is_alive(pid), f"the writer, process {pid}, has not ended")
        return pid


# --- processes and files ------------------------------------------------------------------------


def _writer_pid(path: Path) -> int | None:
    from inmem.host.directory import DataDirectory
    from inmem.reading.live_image import control_state, is_served

    directory = DataDirectory(path)
    if not directory.exists() or not is_served(directory):
        return None
    control = directory.control()
    try:
        state = control_state(control)
        return state.pid if state is not None else None
    finally:
        control.close()


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _holders(path: Path) -> list[str]:
    """The processes that have a file of the store open, but for its writer."""
    writer, found = _writer_pid(path), []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == writer:
            continue
        with suppress(OSError):  # it has ended, or is another user's
            if any(_target(file).startswith(f"{path}/") for file in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                is_this = int(process.name) == os.getpid()
                found.append("this process" if is_this else f"process {process.name} ({name})")
    return found


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # it was closed meanwhile
        return ""


def _removed(place: Path) -> None:
    """Stop the writer of the store there, and remove it with all that it has in memory."""
    path = place / "store"
    deadline = time.monotonic() + _LEAVE_S
    while (pid := _writer_pid(path)) is not None and time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
        with suppress(AssertionError):
            _until(lambda pid=pid: not _is_alive(pid), "", 5.0)
    shutil.rmtree(place, ignore_errors=False)


def _until(condition: object, problem: str, within_s: float = _LEAVE_S) -> None:
    assert callable(condition)
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(problem)
        time.sleep(_POLL_S)
