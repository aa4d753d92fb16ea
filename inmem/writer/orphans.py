"""Orphans: images in shared memory whose database is gone. The next writer of any database removes them.

Invariant: an image is removed only if nobody can adopt it any more (its data
directory is gone, or belongs to a throw-away database without clients), and
only an hour after its last commit: a directory that is being moved needs it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from inmem.errors import InmemError
from inmem.host.abandoned import remove_if_abandoned
from inmem.host.directory import EPOCH_FILES, DataDirectory
from inmem.storage.environment import origin_of, remove_image
from inmem.writer.journal import Journal

_AGE_S: Final = 3600.0

journal = Journal()


def remove_orphans(runtime: Path, age_s: float = _AGE_S) -> int:
    """Remove the orphaned images of a runtime directory; returns how many."""
    removed = 0
    for image in runtime.glob("*.image"):
        try:
            idle_s = time.time() - (image / "data.mdb").stat().st_mtime
            origin = origin_of(image)
        except OSError:
            continue  # it is being removed, or made
        if origin is None or idle_s < age_s or not _is_abandoned(origin):
            continue
        stem = image.name.rpartition("-")[0]
        remove_image(image)
        for ending in EPOCH_FILES:
            for left in runtime.glob(f"{stem}-*.{ending}"):
                left.unlink(missing_ok=True)
        removed += 1
        journal.info("orphan_removed", of=origin)
    return removed


def _is_abandoned(origin: Path) -> bool:
    """Whether a data directory is gone, or a throw-away one without users, which is then removed."""
    directory = DataDirectory(origin)
    try:
        return not directory.exists() or remove_if_abandoned(directory)
    except InmemError:
        return False  # in doubt it is in use
