"""Worker processes: started, listened to, and gone at the end, whatever happens.

Invariant: when a pool is closed, none of its processes is left; and a worker
whose parent dies ends by itself.

Every worker has a pipe of its own. A queue shared by all would hold a lock
that a killed worker takes with it; a pipe shows the death of either end as
the end of the file. Interrupts are the parent's business: workers ignore
SIGINT and are told to stop, so that a Ctrl-C, which a terminal sends to the
whole process group, is handled once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Final

STOP_GRACE_S: Final = 5.0  # from asking a worker to stop until it is terminated
TERM_GRACE_S: Final = 2.0  # from terminating until killing
ORPHAN_GRACE_S: Final = 10.0  # a worker without a parent ends itself after this, whatever it does
PROGRESS_INTERVAL_S: Final = 0.1  # between two words of one worker
START_METHODS: Final = ("spawn", "forkserver", "fork")


class Interrupted(Exception):
    """A signal asked the program to end; `signum` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class TimedOut(Exception):
    """The time allowed for the program is over."""


class Stopped(Exception):
    """In a worker: the parent asked it to stop, or is gone."""


class Interrupt:
    """SIGINT and SIGTERM as a flag, seen at points where it is safe to stop.

    A `KeyboardInterrupt` can rise between any two instructions, inside the
    opening of a store too; here the handler only takes note, and `fileno()`
    becomes readable so that a wait ends at once. Use it in the main thread.
    """

    signals: Final = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, deadline_s: float | None = None) -> None:
        self.signum: int | None = None
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s

    def __enter__(self) -> Interrupt:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old_handlers = [signal.signal(number, self._note) for number in self.signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self.signals, self._old_handlers, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._reader.close()
        self._writer.close()

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = self.signum or signum

    def fileno(self) -> int:
        return self._reader.fileno()

    def check(self) -> None:
        """Return if nothing happened.

        Raises:
            Interrupted: a signal came.
            TimedOut: the deadline passed.
        """
        if self.signum is not None:
            raise Interrupted(self.signum)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimedOut("the time allowed for this run is over")

    def wait(self, objects: Sequence[Any], most_s: float) -> list[Any]:
        """`connection.wait` that ends early on a signal or at the deadline."""
        if self._deadline is not None:
            most_s = max(0.0, min(most_s, self._deadline - time.monotonic()))
        ready = connection.wait([*objects, self.fileno()], most_s)
        return [one for one in ready if not isinstance(one, int)]


class Link:
    """A worker's end: it reports through it and learns that it must stop."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._next = 0.0  # when progress may be told again
        self._stopping = threading.Event()
        threading.Thread(target=self._watch, name="parent-watch", daemon=True).start()

    def progress(self, payload: Any, *, last: bool = False) -> None:
        """Tell the parent how far this worker is; only now and then, unless it is the last word."""
        now = time.monotonic()
        if last or now >= self._next:
            self._next = now + PROGRESS_INTERVAL_S
            self.send("progress", payload)

    def send(self, kind: str, payload: Any) -> None:
        try:
            self._conn.send((kind, payload))
        except OSError:
            raise Stopped from None

    def check(self) -> None:
        """Return unless the worker must stop. Cost: an attribute read.

        Raises:
            Stopped: the parent said so, or is gone.
        """
        if self._stopping.is_set():
            raise Stopped

    def _watch(self) -> None:
        # Nothing but "stop" ever comes this way, and the end of the file says that the
        # parent is gone. The sentinel covers `fork`, where a sibling may hold the pipe open.
        parent = multiprocessing.parent_process()
        sentinels = [] if parent is None else [parent.sentinel]
        connection.wait([self._conn, *sentinels])
        self._stopping.set()
        orphaned = bool(connection.wait(sentinels, STOP_GRACE_S)) if sentinels else False
        if orphaned:
            time.sleep(ORPHAN_GRACE_S)
            os._exit(1)


def start_process(
    context: Any, name: str, target: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, Connection]:
    """Start `target(link, *arguments)` in a process: it, and this end of its pipe."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_bootstrap, args=(theirs, target, arguments), name=name)
    # A signal that comes now waits until the child ignores it: it must not die of it half-imported.
    # The tracker of `multiprocessing` unblocks signals when it starts, so it starts first.
    resource_tracker.ensure_running()
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, Interrupt.signals)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    theirs.close()
    return process, ours


def _bootstrap(conn: Connection, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The main function of every worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, Interrupt.signals)
    link = Link(conn)
    try:
        kind, payload = "done", target(link, *arguments)
    except Stopped:
        kind, payload = "stopped", "it was stopped before it was done"
    except Exception:
        kind, payload = "error", traceback.format_exc()
    with suppress(Stopped):
        link.send(kind, payload)


def heard(conn: Connection, process: Any) -> tuple[str, Any]:
    """What a worker says: "progress", "done", "error", "stopped", or "lost" if its process has ended."""
    try:
        kind, payload = conn.recv()
        return kind, payload
    except (EOFError, ConnectionResetError):
        process.join(STOP_GRACE_S)
    code = process.exitcode
    if code is not None and code < 0:
        return "lost", f"the process was ended by {signal.Signals(-code).name}"
    return "lost", f"the process ended with exit code {code} and without a result"


@dataclass(slots=True)
class Outcome:
    """What came of the workers: a result for each, or why there is none."""

    results: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def in_order(self) -> list[Any]:
        """The results in order of the workers."""
        return [self.results[worker] for worker in sorted(self.results)]

    def told(self, name: str) -> list[str]:
        """The failures, each with the worker's name and number."""
        return [f"{name} {worker}: {text}" for worker, text in sorted(self.failures.items())]


class WorkerPool:
    """One process for each tuple of arguments; use it with `with`.

    `target(link, *arguments)` runs in each; it must be importable, and its
    result must pickle.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        *,
        name: str = "worker",
        start_method: str = "spawn",
    ) -> None:
        self._target = target
        self._arguments = arguments
        self._name = name
        self._context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            # Imported once for all workers: with a hundred of them that is most of their start.
            self._context.set_forkserver_preload([target.__module__])
        self._processes: list[Any] = []
        self._conns: dict[Connection, int] = {}

    def __enter__(self) -> WorkerPool:
        try:
            for index, arguments in enumerate(self._arguments):
                process, conn = start_process(
                    self._context, f"{self._name}-{index}", self._target, arguments
                )
                self._processes.append(process)
                self._conns[conn] = index
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, on_progress: Callable[[int, Any], None], interrupt: Interrupt) -> Outcome:
        """Wait until every worker is done. The first failure stops the others.

        Raises:
            Interrupted, TimedOut: as `interrupt` says; `close` stops the workers.
        """
        outcome = Outcome()
        open_conns = dict(self._conns)
        while open_conns:
            interrupt.check()
            for conn in interrupt.wait(list(open_conns), 0.5):
                index = open_conns[conn]
                kind, payload = heard(conn, self._processes[index])
                if kind == "progress":
                    on_progress(index, payload)
                    continue
                del open_conns[conn]
                if kind == "done":
                    outcome.results[index] = payload
                    continue
                if kind != "stopped":
                    outcome.failures[index] = payload
                self._ask_to_stop()
        return outcome

    def _ask_to_stop(self) -> None:
        for conn in self._conns:
            with suppress(OSError):
                conn.send("stop")

    def close(self) -> None:
        """Ask, terminate, kill: no process is left. Returns at once if all are done."""
        self._ask_to_stop()
        self._join(STOP_GRACE_S)
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        self._join(TERM_GRACE_S)
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        for conn in self._conns:
            conn.close()
        self._processes.clear()
        self._conns.clear()

    def _join(self, grace_s: float) -> None:
        # A worker that still has something to say must not block on a full pipe.
        deadline = time.monotonic() + grace_s
        waiting = [process for process in self._processes if process.is_alive()]
        conns = list(self._conns)
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            ready = connection.wait([*conns, *(process.sentinel for process in waiting)], left_s)
            for conn in ready:
                if isinstance(conn, Connection):
                    try:
                        conn.recv()
                    except (EOFError, OSError):
                        conns.remove(conn)
            waiting = [process for process in waiting if process.is_alive()]
