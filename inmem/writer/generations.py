"""Generations: when the writer goes on in a copy of the image.

Invariant: commits wait while the image is copied, and readers find the new
image, with all that was published, through the control file. A reader of the
old image keeps what it sees until it reads again.

There are two reasons for a copy: an old snapshot keeps too much of the file
from being used again, or files of the image were removed.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Final

from inmem.config import MIB
from inmem.errors import InmemError, StoreFullError
from inmem.host import failpoints
from inmem.host.control import Control
from inmem.host.files import make_private_dir
from inmem.storage.environment import create_image, free_bytes, remove_image
from inmem.storage.store import PublishError, Store
from inmem.writer.committer import Committer
from inmem.writer.journal import Journal
from inmem.writer.presence import GONE
from inmem.writer.watch import Watch

_RETRY_S: Final = 5.0  # after a copy that found no memory
_TICKS: Final = 18_000  # an hour of ticks: the longest that a snapshot may be open

journal = Journal()


class Generations:
    """The image that commits go to now, and its number."""

    def __init__(
        self, store: Store, number: int, *, stem: str, origin: Path, control: Control, committer: Committer
    ) -> None:
        """`origin` is the data directory; `stem` begins the names of its images."""
        self.store = store
        self.number = number
        self._stem = stem
        self._origin = origin
        self._control = control
        self._committer = committer
        self._files = Watch(store.files)
        self._not_before = 0.0
        self._ticks: deque[tuple[int, float]] = deque(maxlen=_TICKS)  # last transaction at each tick

    def switch_if_pinned(self, now: float) -> None:
        """Switch if an old snapshot pins too much of the image's file."""
        store = self.store
        if now >= self._not_before and store.is_pinned():
            self._switch(f"an old snapshot pins {store.file_bytes - store.live_bytes} bytes", now)

    def switch_if_removed(self, now: float) -> None:
        """Switch if a file of the image was removed or replaced."""
        missing = self._files.missing()
        if missing and now >= self._not_before:
            self._switch(f"{missing[0]} {GONE}", now)

    def _switch(self, why: str, now: float) -> None:
        """Copy the image and go on in the copy. Commits wait, about a second for a gigabyte."""
        old = self.store
        parent = old.path.parent
        path = parent / f"{self._stem}{self.number + 1}.image"
        began = time.monotonic()
        try:
            make_private_dir(parent)
            free = free_bytes(parent)
            if free < old.live_bytes + old.live_bytes // 4 + MIB:
                raise StoreFullError(f"{parent} has {free} bytes free")
            create_image(parent, self._stem, self.number + 1, self._origin)
            store = old.copy_to(path)
        except (PublishError, InmemError, OSError) as error:
            remove_image(path)
            journal.warning("no_switch", problem=f"no switch of generation: {error}", why=why)
            self._not_before = now + _RETRY_S
            return
        failpoints.reached("generation_copied")
        self._committer.move_to(store)
        self.store = store
        self.number += 1
        self._control.update(image=str(path), generation=self.number)
        failpoints.reached("generation_marked")
        self._files = Watch(store.files)
        self._ticks.clear()  # they name transactions of the old image
        old.close()
        remove_image(old.path)
        journal.warning(
            "generation", generation=self.number, bytes=store.file_bytes,
            seconds=time.monotonic() - began, why=why,
        )

    def note_tick(self, now: float) -> None:
        """Remember which transaction was the last at this tick."""
        last = self.store.last_transaction()
        if not self._ticks or last != self._ticks[-1][0]:
            self.store.touch()
        self._ticks.append((last, now))

    def oldest_snapshot_age_s(self) -> float | None:
        """How long the oldest open snapshot has been out of date; None without any snapshot."""
        pinned = self.store.oldest_pinned()
        if pinned is None:
            return None
        later = next((when for last, when in self._ticks if last > pinned), None)
        return 0.0 if later is None else time.monotonic() - later
