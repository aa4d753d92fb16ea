"""A map of an image that is written through: half the cost of a small commit is saved.

Invariant: every byte that is mapped is allocated before. So a write through
the map cannot meet a full memory, which would be a signal and not an error:
LMDB says that the map is full, and the map grows, or the commit is refused.
A process that is killed leaves the image as its last commit left it: LMDB
never writes to a page that a snapshot may see, and names the new root last.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from inmem.config import MAP_BYTES, MIB
from inmem.storage.environment import PAGE_BYTES

_AHEAD: Final = MIB  # the least that is allocated for what comes
_LEAST: Final = 16 * PAGE_BYTES  # less is not worth a new map
_SHARE: Final = 8  # an eighth of the map is its next step: to map it anew costs 50 µs a MiB
_LOW: Final = 4  # the map grows when a quarter of a step is left


class PreparedMap:
    """The map of one image, opened for writing with that size."""

    def __init__(self, file: Path, used: int) -> None:
        """Allocate what is used of the image's file, and something ahead.

        Raises:
            OSError: there is no memory for it.
        """
        # Open for as long as it is mapped: it can grow also when its name is gone.
        self._fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        self._env: Any = None
        self.size = 0
        try:
            self._allocate(used + _AHEAD)
        except BaseException:
            os.close(self._fd)
            raise

    def attach(self, env: Any) -> None:
        """The environment that was opened with `size`."""
        self._env = env

    def room(self) -> int:
        """How many bytes of it are not used yet. Cost: 2 µs."""
        room: int = self.size - (self._env.info()["last_pgno"] + 1) * PAGE_BYTES
        return room

    def look(self) -> int:
        """Grow it if little room is left; how many bytes may be used until the next look.

        Only without a transaction.
        """
        step = max(self.size // _SHARE, _AHEAD)
        if self.room() < step // _LOW:
            self.grow(step)
        return self.room()

    def grow(self, step: int = 0) -> bool:
        """Make it larger, by a step or at least half its size; False where there is no memory.

        Only without a transaction.
        """
        step = min(step or max(self.size // 2, 4 * _AHEAD), MAP_BYTES - self.size) // PAGE_BYTES * PAGE_BYTES
        while step >= _LEAST:
            try:
                self._allocate(self.size + step)
            except OSError:
                step = step // 2 // PAGE_BYTES * PAGE_BYTES
                continue
            self._env.set_mapsize(self.size)
            return True
        return False

    def _allocate(self, size: int) -> None:
        os.posix_fallocate(self._fd, self.size, size - self.size)
        self.size = size

    def touch(self) -> None:
        """Set the time of the file, which writes through a map leave as it is."""
        os.utime(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
