"""Presence: the locks that show that a writer and clients are there, and whose directory it is.

Invariant: a writer whose directory was replaced changes nothing more. A
writer that leaves because no client is left holds the clients' lock until its
process has ended, so that no client comes in between.
"""

from __future__ import annotations

import os
import time
from typing import Final

from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock
from inmem.writer.journal import Journal

GONE: Final = "was removed or replaced"
_LOCK_POLL_S: Final = 0.002
_LOCK_WAIT_S: Final = 5.0  # for a second writer: it sees this one and leaves

journal = Journal()


class Presence:
    """The locks of one writer on its directory."""

    def __init__(self, directory: DataDirectory, lock: FileLock) -> None:
        self._directory = directory
        self._lock = lock
        # Held open: else what replaces it may get its number, and would be taken for it.
        self._held = os.open(directory.path, os.O_PATH | os.O_DIRECTORY)
        self._clients = [FileLock(directory.clients_lock)]  # more than one if the file was replaced
        self.idle_since: float | None = None  # no client was there at any look from then on

    def owns_directory(self) -> bool:
        """Whether the directory is still the one that this writer was started for."""
        try:
            return os.path.samestat(os.stat(self._directory.path), os.fstat(self._held))
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._held)

    def restore_locks(self) -> None:
        """Lock new files if somebody removed the lock files; ends the process if another writer did so."""
        if not self._lock.is_current():
            self._lock_again()
        if not self._clients[-1].is_current():
            journal.warning("file_gone", path=self._directory.clients_lock, problem=GONE)
            self._clients.append(FileLock(self._directory.clients_lock))

    def _lock_again(self) -> None:
        """Lock the file that now has the name. Until then `living_writer` keeps others out."""
        journal.warning("file_gone", path=self._directory.writer_lock, problem=GONE)
        lock = FileLock(self._directory.writer_lock)
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not lock.try_exclusive():
            if time.monotonic() >= deadline:
                journal.critical("leaving", problem="another process holds the lock; nothing is answered")
                os._exit(os.EX_TEMPFAIL)
            time.sleep(_LOCK_POLL_S)
        self._lock.close()
        self._lock = lock

    def is_deserted(self, now: float, linger_s: float) -> bool:
        """Whether no client has been there for `linger_s`. If so, the clients' lock is kept: leave."""
        held = [lock for lock in self._clients if lock.try_exclusive()]
        if len(held) < len(self._clients):
            for lock in held:
                lock.release()
            self.idle_since = None
            return False
        # While the lock is held here no client gets in.
        if self.idle_since is None:
            self.idle_since = now
        if now - self.idle_since >= linger_s:
            return True  # a client that comes now waits for the lock, then starts the next writer
        for lock in held:
            lock.release()
        return False
