"""Throw-away databases that nobody has: their writer removes them, or whoever finds that it was killed.

Invariant: one is removed only by who holds both of its locks alone: it has no client and no writer then.
"""

from __future__ import annotations

from contextlib import closing

from inmem.errors import InmemError
from inmem.host.directory import EPOCH_FILES, DataDirectory, leave_runtime_directory, runtime_place
from inmem.host.files import FileLock, remove_tree
from inmem.host.interrupts import let_through


def remove_if_abandoned(directory: DataDirectory) -> bool:
    """Remove a throw-away database that has no client and no writer, with its files in memory.

    Whether it did so. In doubt it is in use.
    """
    try:
        identity = directory.identity()
        if not identity.ephemeral:
            return False
        stem = directory.stem(identity)
        clients = FileLock(directory.clients_lock)
        with closing(clients), closing(FileLock(directory.writer_lock)) as writer:
            # The clients' lock first: a client that opens it now waits, and then finds it removed.
            if not (clients.try_exclusive() and writer.try_exclusive() and clients.is_current()):
                return False
            directory.remove()
            for image in runtime_place().glob(f"{stem}*.image"):
                remove_tree(image)
            for ending in EPOCH_FILES:
                for left in runtime_place().glob(f"{stem}*.{ending}"):
                    left.unlink(missing_ok=True)
    except (InmemError, OSError) as error:
        let_through(error)
        return False
    leave_runtime_directory()
    return True
