"""The writer of one store: found, signalled, and seen to serve again.

Invariant: a signal goes to a process only through a descriptor of it, and
only after that process was seen to be the writer of this very store. So no
other process is ever signalled, even if it was given the writer's old id.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import inmem

PROBE_RUN: Final = "chaos:probe"
DIE_S: Final = 10.0  # for the kernel to end a process that was killed
STARTING_S: Final = 2.0  # for somebody to notice that the writer is gone and to start another
POLL_S: Final = 0.004


class WriterFault(Exception):
    """There is no writer of this store, or one that cannot be killed."""


class WriterProcess:
    """The process that is the writer at this moment."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self._path = db.name
        self.probes = 0  # probes that were acknowledged

    @contextmanager
    def found(self) -> Iterator[int]:
        """A descriptor of the process that serves."""
        pid = self._db.status().writer_pid
        descriptor = self._opened(pid)
        if descriptor is None:
            raise WriterFault(f"process {pid} is said to be the writer of {self._path}, and is not")
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def kill(self) -> float:
        """SIGKILL the writer, see it dead; the time at which the signal was sent."""
        with self.found() as descriptor:
            return _end(descriptor)

    def kill_next(self, after_s: float) -> float | None:
        """SIGKILL whatever is starting to be the next writer, `after_s` after it was seen.

        The time at which the last signal was sent; None if nothing was to be seen.
        """
        deadline = time.monotonic() + STARTING_S
        while not (starting := self._starting()):
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_S)
        time.sleep(after_s)
        killed_at = None
        for pid in starting:
            descriptor = self._opened(pid)
            if descriptor is not None:  # else it has handed over, or given up
                try:
                    killed_at = _end(descriptor)
                finally:
                    os.close(descriptor)
        return killed_at

    def stop(self, seconds: float) -> bool:
        """SIGSTOP the writer, and SIGCONT it after so long, whatever happens in between."""
        with self.found() as descriptor, suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
            try:
                time.sleep(seconds)
            finally:
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        return True

    def probe(self) -> bool:
        """A commit, sent and answered; False if the answer is that the store is full."""
        try:
            self._db.kv.add(PROBE_RUN, "beats")
        except inmem.StoreFullError:
            return False
        self.probes += 1
        return True

    def _starting(self) -> list[int]:
        """Every process that is, or is about to be, a writer of this store."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if self._is_writer(pid)]

    def _opened(self, pid: int) -> int | None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # Asked after opening: the answer is of the process that the descriptor is of, or that one is dead.
        if self._is_writer(pid):
            return descriptor
        os.close(descriptor)
        return None

    def _is_writer(self, pid: int) -> bool:
        try:
            words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"inmem.writer" in words and os.fsencode(self._path) in words


def _end(descriptor: int) -> float:
    sent_at = time.monotonic()
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(DIE_S * 1000):
        raise WriterFault(f"a writer was killed and is there after {DIE_S:g} s")
    return sent_at
