"""Whose directory it is, and who is there: the writer's lock, the clients', and the inode.

Invariant: a writer that this says is no longer the owner changes nothing on
its way out, and one that leaves for want of clients keeps the clients' lock
until it has ended, so that nobody comes in meanwhile.
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
_LOCK_PATIENCE_S: Final = 5.0  # for a writer that was started although this one lives: it looks, and leaves

log = Journal()


class Presence:
    """The hold of one writer on its directory."""

    def __init__(self, directory: DataDirectory, lock: FileLock) -> None:
        self._directory = directory
        self._lock = lock
        self._inode = directory.inode()
        self._clients = [FileLock(directory.clients_lock)]  # more than one if the file was replaced
        self._idle_since: float | None = None

    def owns_directory(self) -> bool:
        """Whether the directory is still the one that this writer was started for."""
        try:
            return self._directory.inode() == self._inode
        except OSError:
            return False

    def look_after_locks(self) -> None:
        """Have both locks under their names again, if somebody removed the files; ends the process
        where another writer has the first."""
        if not self._lock.is_current():
            self._lock_again()
        if not self._clients[-1].is_current():
            log.warning("file_gone", path=self._directory.clients_lock, problem=GONE)
            self._clients.append(FileLock(self._directory.clients_lock))

    def _lock_again(self) -> None:
        """Hold the lock under its name again. Until then `living_writer` keeps others out."""
        log.warning("file_gone", path=self._directory.writer_lock, problem=GONE)
        lock = FileLock(self._directory.writer_lock)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while not lock.try_exclusive():
            if time.monotonic() >= deadline:
                log.critical("leaving", problem="another process holds the lock; nothing is answered")
                os._exit(os.EX_TEMPFAIL)
            time.sleep(_LOCK_POLL_S)
        self._lock.close()
        self._lock = lock

    def is_deserted(self, now: float, linger_s: float) -> bool:
        """Whether no client has been there for so long. Then none gets in any more: the writer leaves."""
        held = [lock for lock in self._clients if lock.try_exclusive()]
        if len(held) < len(self._clients):
            for lock in held:
                lock.release()
            self._idle_since = None
            return False
        # Nobody else has it. While it is ours no client gets in.
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= linger_s:
            return True  # keep the lock: a client that comes now waits, and starts the next writer
        for lock in held:
            lock.release()
        return False
