"""The launcher: creates a directory and starts its writer, once, whoever asks.

Invariant: a writer is started only under the launch lock and only when the
writer's lock is free, so sixteen clients that find none start one interpreter.
It knows how to start a writer, not what one does.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from inmem.config import Settings
from inmem.errors import BusyError, ForkError, WriterUnavailableError
from inmem.host.clock import boot_us
from inmem.host.control import Control, ControlState, boot_id
from inmem.host.directory import DataDirectory, runtime_directory
from inmem.host.files import FileLock, open_private, python_environment, python_program
from inmem.host.interrupts import Exclusive, Living, let_through
from inmem.wire import from_wire

T = TypeVar("T")

_POLL_S: Final = 0.003
_CRASH_LOOP_S: Final = 1.0  # a writer that lived shorter than this counts as dying
_CRASH_FREE: Final = 5  # so many quick deaths are met without delay
_CRASH_DELAY_S: Final = 0.05
_CRASH_DELAY_MAX_S: Final = 2.0
_SAID_BYTES: Final = 64 * 1024  # of what a writer said that could not start
_START_TRIES: Final = 10  # silent deaths in a row: fewer may be kills, so many mean that it cannot run

# Held while a process is started and what it gets is opened. A fork waits for that moment: the child would
# hold the pipe by which the parent learns that the program runs.
starting = threading.RLock()
_not_for_children: Living[Any] = Living()  # files of launches; a forked child has no part in them
_launches: dict[str, _Launch] = {}  # by directory


class _Launch(Exclusive):
    """The launch of one directory."""

    def what(self) -> str:
        """See `Exclusive`."""
        return "creating this directory or starting its writer"


def expired(deadline: float) -> bool:
    """Whether a deadline (of `time.monotonic`) has passed."""
    return time.monotonic() >= deadline


def under_launch_lock(directory: DataDirectory, deadline: float, action: Callable[[], T]) -> T:
    """Do something while nobody else creates this directory or starts its writer.

    Raises:
        WriterUnavailableError: somebody else holds the lock beyond the deadline.
        BusyError: this thread is in the middle of such a launch.
    """
    launch = _launches.setdefault(str(directory.path), _Launch())
    try:
        done: T = launch.alone(deadline, _locked, directory, deadline, action)
    except BusyError as error:
        let_through(error)
        if not expired(deadline):
            raise
        raise WriterUnavailableError(
            f"another thread has been starting the writer of {directory.path} for too long",
            path=str(directory.path),
        ) from None
    return done


def _locked(directory: DataDirectory, deadline: float, action: Callable[[], T]) -> T:
    pid = os.getpid()
    with starting:
        lock = _not_for_children.add(FileLock(directory.launch_lock))
    try:
        while not lock.try_exclusive():
            if expired(deadline):
                raise WriterUnavailableError(
                    f"another process has been starting the writer of {directory.path} for too long",
                    path=str(directory.path),
                )
            time.sleep(_POLL_S)
        return action()
    except OSError as error:
        if os.getpid() != pid:  # and its files were closed
            raise ForkError("a signal handler forked while its thread was starting a writer") from error
        raise
    finally:
        lock.close()


def after_fork_in_child() -> None:
    """Leave to the parent what it launches."""
    for file in _not_for_children:
        file.close()
    _launches.clear()


def create_directory(
    directory: DataDirectory, settings: Settings, deadline: float, *, ephemeral: bool = False
) -> None:
    """Make a directory a database, unless it is one already.

    Raises:
        WriterUnavailableError, BusyError: as `under_launch_lock`.
        PermissionDeniedError, InvalidInputError: it cannot be one; see `DataDirectory.prepare`.
    """
    if directory.exists():
        return
    runtime_directory()  # refused early if somebody else has taken the name
    directory.prepare()

    def create() -> None:
        if not directory.exists():
            directory.create(settings, ephemeral=ephemeral)

    under_launch_lock(directory, deadline, create)


def running_writer(directory: DataDirectory, control: Control) -> ControlState | None:
    """The writer that serves now, or None."""
    state = control.read()
    if state is None or not state.pid or state.boot != boot_id():
        return None
    return state if _lock_is_held(directory) else None


def _lock_is_held(directory: DataDirectory) -> bool:
    lock = FileLock(directory.writer_lock)
    try:
        if lock.try_shared():
            lock.release()
            return False
        return True
    finally:
        lock.close()


def ensure_writer(
    directory: DataDirectory, control: Control, deadline: float, *, autostart: bool, stays: bool = False
) -> ControlState:
    """The writer that serves now; started first if there is none, which `stays` without clients.

    Raises:
        WriterUnavailableError: none could be had before the deadline.
        InmemError: whatever kept a started writer from serving.
    """
    deaths = 0
    if directory.exists():
        directory.check_own()
    while True:
        state = running_writer(directory, control)
        if state is not None:
            return state
        if not directory.exists():
            raise WriterUnavailableError(
                f"{directory.path} was removed", path=str(directory.path), hint="Open it again to create it."
            )
        if not autostart and not _lock_is_held(directory):
            raise WriterUnavailableError(
                f"no writer serves {directory.path} and autostart is off", path=str(directory.path)
            )
        if autostart:
            started = under_launch_lock(
                directory, deadline, lambda: _launch_if_needed(directory, control, deadline, stays)
            )
            if started is not None:
                deaths += not started
                if deaths >= _START_TRIES or (deaths and expired(deadline)):
                    raise WriterUnavailableError(
                        f"the writer of {directory.path} died while it started; see {directory.log_file}",
                        path=str(directory.path),
                    )
                continue
        # A writer has the lock and is recovering: it will say when it is ready.
        if expired(deadline):
            raise WriterUnavailableError(
                f"the writer of {directory.path} was not ready in time", path=str(directory.path)
            )
        time.sleep(_POLL_S)


def _launch_if_needed(
    directory: DataDirectory, control: Control, deadline: float, stays: bool
) -> bool | None:
    """Start a writer and say whether it served; None if another one serves or is about to."""
    if running_writer(directory, control) is not None or _lock_is_held(directory):
        return None
    _hold_back(directory, deadline)
    return _launch(directory, deadline, stays)


def _hold_back(directory: DataDirectory, deadline: float) -> None:
    """Wait before yet another start if writers keep dying."""
    record = directory.path / "launches"
    now = boot_us()
    try:
        count, last = (int(word) for word in record.read_text().split())
    except (FileNotFoundError, ValueError) as error:
        let_through(error)
        count, last = 0, 0
    count = count + 1 if 0 <= now - last < _CRASH_LOOP_S * 1e6 else 0
    if count > _CRASH_FREE:
        delay = min(_CRASH_DELAY_S * 2 ** min(count - _CRASH_FREE, 10), _CRASH_DELAY_MAX_S)
        time.sleep(max(0.0, min(delay, deadline - time.monotonic())))
    with open_private(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        file.write(f"{count} {boot_us()}".encode())


def _launch(directory: DataDirectory, deadline: float, stays: bool) -> bool:
    """Start a detached writer and wait until it serves or says why not; False if it died silently."""
    with starting:
        python = python_program()
        ours, theirs = map(_not_for_children.add, map(_above_standard, socket.socketpair()))
        with theirs, open_private(directory.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log:
            said = os.fstat(log.fileno()).st_size
            ready = 3 if theirs.fileno() != 3 else 4
            words = [python, "-m", "inmem.writer", str(directory.path), "--ready-fd", str(ready)]
            environment = python_environment() | {"PYTHONSAFEPATH": "1"}  # nothing from where we stand
            streams = [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
            try:
                # Not by `subprocess`: where gevent replaces it, it runs what a fork has to do, which closes
                # these files. Others that are open here the writer closes itself.
                process = os.posix_spawnp(
                    python, words + ["--stay"] * stays, environment, setsid=True, setsigmask=(),
                    file_actions=[
                        *streams, (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), ready),
                    ],
                )
            except OSError as error:
                let_through(error)
                raise WriterUnavailableError(
                    f"the writer could not be started: {error}", path=str(directory.path)
                ) from error
    with ours:
        try:
            line = _read_line(ours, deadline)
        finally:
            status = _ended(process)  # it has detached: what we started ends at once
    if line is None:
        raise WriterUnavailableError(
            f"the writer of {directory.path} was not ready in time", path=str(directory.path)
        )
    try:
        message = json.loads(line)
    except ValueError as error:
        let_through(error)
        if status > 0:  # it is no writer yet; one that is killed may be luckier the next time
            raise _not_started(directory, status, said) from error
        return False
    if "error" in message:
        refusal = from_wire(message["error"])
        if refusal.code != "busy":  # busy: another writer was faster, which is as good
            raise refusal
    return True


def _ended(process: int) -> int:
    """Wait for a process that we started; its exit code, 0 if somebody else has asked for it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except ChildProcessError as error:
        let_through(error)
        return 0


def _above_standard(end: socket.socket) -> socket.socket:
    """A socket whose number is none of the standard streams, which may be closed in this process."""
    if end.fileno() > 2:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))


def _not_started(directory: DataDirectory, status: int, said: int) -> WriterUnavailableError:
    """The error for a program that ended before it was a writer: what it said last."""
    with open_private(directory.log_file, os.O_RDONLY) as log:
        log.seek(said)
        lines = log.read(_SAID_BYTES).decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), f"it said nothing, status {status}")
    return WriterUnavailableError(
        f"the writer of {directory.path} could not start: {last.strip()[:500]}", path=str(directory.path),
        hint=f"See all that it said in {directory.log_file}.",
    )


def _read_line(source: socket.socket, deadline: float) -> bytes | None:
    """Everything up to a newline or the end; None when the deadline passes first."""
    data = b""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while not data.endswith(b"\n"):
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poll.poll(left_ms):
            return None
        chunk = source.recv(65536)
        if not chunk:
            break
        data += chunk
    return data
