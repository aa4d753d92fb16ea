"""The writer of the demonstration's store, which is killed once.

Invariant: a signal goes through a descriptor of a process that was the writer
of this store after the descriptor was opened; and only if no writer served
the store before the demonstration opened it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from typing import Final

import inmem

_DIE_S: Final = 10.0  # for the kernel to end a process
_BEATS: Final = "heartbeats"


def why_not(path: str | None) -> str:
    """Why the writer of a store must be left alone; empty if the demonstration will have started it."""
    if path is None:
        return ""
    if "://" in path:
        return "a store on a server has no writer"
    try:
        inmem.open(path, create=False, autostart=False).close()
    except (inmem.WriterUnavailableError, inmem.InvalidInputError):
        return ""  # nobody serves it, or nothing is there
    return "another program started it"


class WriterKill:
    """The kill of a writer, and the first commit that is answered after it."""

    def __init__(self, database: inmem.Database, run: str) -> None:
        self._database = database
        self._run = run
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.pid = 0
        self.back_s: float | None = None
        self.error: inmem.InmemError | None = None
        self._killed_at = 0.0

    def strike(self) -> None:
        """SIGKILL the writer and see it dead. The first commit after it is waited for by a thread.

        Raises:
            WriterUnavailableError: the writer has changed meanwhile, or does not die.
        """
        self.pid = self._database.status().writer_pid
        descriptor = os.pidfd_open(self.pid)
        try:
            # Asked after opening: so the descriptor is of the writer.
            if self._database.status().writer_pid != self.pid:
                raise inmem.WriterUnavailableError("the writer has changed by itself")
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            self._killed_at = time.monotonic()
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(1e3 * _DIE_S):
                raise inmem.WriterUnavailableError(f"writer {self.pid} was killed, and is there")
        finally:
            os.close(descriptor)
        self._thread.start()

    def _beat(self) -> None:
        try:
            self._database.kv.add(self._run, _BEATS)
        except inmem.InmemError as error:
            self.error = error
        else:
            self.back_s = time.monotonic() - self._killed_at

    def end(self) -> None:
        """Wait for the thread: it uses the database."""
        if self._thread.ident is not None:
            self._thread.join()
