"""What dead stores have left in shared memory, and who clears it away: the next writer of any store.

Invariant: an image goes only if nobody can ever adopt it (its data directory
is gone, or it is a throw-away store without clients) and only an hour after
its last commit, so that a directory that is being moved finds its image again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

from inmem.errors import InmemError
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock
from inmem.storage.environment import origin_of, remove_image
from inmem.writer.journal import Journal

_AGE_S: Final = 3600.0

log = Journal()


def remove_orphans(runtime: Path, age_s: float = _AGE_S) -> int:
    """Remove the images in a runtime directory that nobody can come back for; how many."""
    removed = 0
    for image in runtime.glob("*.image"):
        try:
            idle_s = time.time() - (image / "data.mdb").stat().st_mtime
            origin = origin_of(image)
        except OSError:
            continue  # going, or being made
        if origin is None or idle_s < age_s or not _is_abandoned(origin):
            continue
        stem = image.name.rpartition("-")[0]
        remove_image(image)
        for ending in ("sock", "answers"):
            for left in runtime.glob(f"{stem}-*.{ending}"):
                left.unlink(missing_ok=True)
        removed += 1
        log.info("orphan_removed", of=origin)
    return removed


def _is_abandoned(origin: Path) -> bool:
    """Whether a data directory is gone, or a throw-away one that nobody uses; that one goes too."""
    directory = DataDirectory(origin)
    try:
        if not directory.exists():
            return True
        if not directory.identity().ephemeral:
            return False
        with_clients, with_writer = FileLock(directory.clients_lock), FileLock(directory.writer_lock)
    except (InmemError, OSError):
        return False  # whatever it is, it is somebody's
    try:
        # In this order a client that opens it now waits for us, and then finds it removed.
        if not (with_clients.try_exclusive() and with_writer.try_exclusive()):
            return False
        shutil.rmtree(directory.path, ignore_errors=True)
        return True
    finally:
        with_clients.close()
        with_writer.close()
