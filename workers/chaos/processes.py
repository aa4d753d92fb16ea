"""The worker processes of a chaos: killed, replaced, stopped, continued, and gone at the end.

Invariant: a signal goes only to processes that were started here, through a
descriptor of each; who is killed is replaced at once; and after `close` none
of the processes is left, stopped ones included. A worker that ends unasked,
or says that it failed, is a failure of the run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from workers.pool import Interrupt, heard, start_process

JOIN_S: Final = 10.0  # for the kernel to end a process that was killed


@dataclass(slots=True)
class Member:
    """One worker process; `number` is its own, `place` is its predecessor's."""

    number: int
    place: int
    process: Any
    conn: Connection
    descriptor: int
    progress: Any = None
    result: Any = None
    done: bool = False
    killed: bool = False
    timer: threading.Timer | None = None  # stopped until it fires


class KillableWorkers:
    """Starts `target(link, task, number)` in a process for each place."""

    def __init__(self, target: Callable[..., Any], task: Any, places: int) -> None:
        self._target = target
        self._task = task
        self._lock = threading.Lock()  # between a timer and the end of the process that it is to continue
        self._context: Any = multiprocessing.get_context("forkserver")  # a replacement has to be quick
        self._context.set_forkserver_preload([target.__module__])
        self.members: list[Member] = []  # all that there ever were, in order of their numbers
        self._at: list[Member] = []  # who is at each place
        self.failures: dict[int, str] = {}
        try:
            for place in range(places):
                self._at.append(self._start(place))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> KillableWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, place: int) -> Member:
        number = len(self.members)
        process, conn = start_process(
            self._context, f"chaos-{number}", self._target, (self._task, number)
        )
        member = Member(number, place, process, conn, os.pidfd_open(process.pid))
        self.members.append(member)
        return member

    # --- disturbances ---------------------------------------------------------------------

    def kill(self, choice: float) -> bool:
        """SIGKILL one worker, stopped or not, and start another in its place; False if there is none."""
        member = self._pick(choice)
        if member is None:
            return False
        self._end(member)
        self._at[member.place] = self._start(member.place)
        return True

    def stop(self, choice: float, seconds: float) -> bool:
        """SIGSTOP one worker, and SIGCONT it after so long, whatever the caller waits for meanwhile."""
        member = self._pick(choice)
        if member is None or member.timer is not None:
            return False
        # A timer and not the caller: the worker may have been stopped while it was starting the next
        # writer, and then the caller waits for that writer.
        timer = threading.Timer(seconds, self._continue, (member,))
        timer.daemon = True
        with suppress(ProcessLookupError), self._lock:
            signal.pidfd_send_signal(member.descriptor, signal.SIGSTOP)
            member.timer = timer
            timer.start()
        return True

    def _pick(self, choice: float) -> Member | None:
        there = [member for member in self._at if not member.done and not member.killed]
        return there[int(choice * len(there))] if there else None

    def _continue(self, member: Member) -> None:
        with self._lock:
            timer, member.timer = member.timer, None
            if timer is not None and member.descriptor >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(member.descriptor, signal.SIGCONT)
        if timer is not None:
            timer.cancel()

    def _end(self, member: Member) -> None:
        member.killed = True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(member.descriptor, signal.SIGKILL)
        self._reap(member)

    def _reap(self, member: Member) -> None:
        self._continue(member)
        member.process.join(JOIN_S)
        member.conn.close()
        with self._lock:
            os.close(member.descriptor)
            member.descriptor = -1
        member.process.close()

    # --- listening --------------------------------------------------------------------------

    def listen(self, interrupt: Interrupt, most_s: float) -> None:
        """Take in what workers say, for so long at most: returns when something was said.

        Raises:
            Interrupted, TimedOut: as `interrupt` says.
        """
        interrupt.check()
        talking = {member.conn: member for member in self._at if not (member.done or member.killed)}
        for conn in interrupt.wait(list(talking), max(0.0, most_s)):
            self._hear(talking[conn])

    def _hear(self, member: Member) -> None:
        kind, payload = heard(member.conn, member.process)
        if kind == "progress":
            member.progress = payload
            return
        member.done = True
        if kind == "done":
            member.result = payload
        else:
            self.failures[member.number] = str(payload)

    @property
    def stopped(self) -> int:
        """How many are stopped."""
        return sum(member.timer is not None for member in self._at)

    def told(self) -> tuple[int, int, int]:
        """Asked, acknowledged and reruns, of all that there ever were, as far as they said."""
        known = [member.progress for member in self.members if member.progress is not None]
        asked, acknowledged, reruns = (sum(part) for part in zip((0, 0, 0), *known, strict=True))
        return asked, acknowledged, reruns

    # --- the end ------------------------------------------------------------------------------

    def drain(self, interrupt: Interrupt, deadline_s: float) -> None:
        """Continue all, ask all to finish what they do, and wait for their results."""
        for member in self._at:
            self._continue(member)
            with suppress(OSError):
                member.conn.send("stop")
        deadline = time.monotonic() + deadline_s
        while waiting := [member for member in self._at if not member.done]:
            if time.monotonic() >= deadline:
                for member in waiting:
                    self.failures[member.number] = f"has not finished {deadline_s:g} s after it was asked to"
                return
            self.listen(interrupt, 0.5)

    def close(self) -> None:
        """No process is left. Those that are done end by themselves."""
        for member in self.members:
            if member.descriptor < 0:
                continue
            if not member.done:
                self._end(member)
                continue
            member.process.join(JOIN_S)
            if member.process.is_alive():
                self._end(member)
            else:
                self._reap(member)
