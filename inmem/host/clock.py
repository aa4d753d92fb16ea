"""The store's clock: one time for all processes, which never goes backwards.

Invariant: store time is boot time plus an offset that the writer publishes
and only raises, but for `set_back`. Boot time counts through suspend and does
not jump. So a wall clock that is set back changes nothing; one that is set
forward raises the offset at the writer's next tick. A leap of more than a day
is taken for a mistake at first: it counts once it has lasted for a minute.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from typing import Final

Microseconds = Callable[[], int]

VARIABLE: Final = "INMEM_MOVED_CLOCK"  # names the file of a `MovedClock`, for writers of tests

FAR_US: Final = 60 * 1_000_000  # between store time and wall clock: ordinary corrections stay below
_LEAP_US: Final = 86_400 * 1_000_000
_LASTING_US: Final = 60 * 1_000_000


def boot_us() -> int:
    """Microseconds since boot, the same in every process of the machine."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class MovedClock:
    """By how much a test has moved the wall clock on: 8 bytes of a file, microseconds, little-endian."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._ahead = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)

    def ahead_us(self) -> int:
        """Read anew at each call."""
        return int.from_bytes(self._ahead[:8], "little")


_moved = MovedClock(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def wall_us() -> int:
    """Microseconds since the Unix epoch, by the wall clock."""
    now = time.time_ns() // 1000
    return now if _moved is None else now + _moved.ahead_us()


class StoreClock:
    """The writer's side of the clock: owns the offset.

    `floor_us` is the latest time that the store has recorded. Store time
    continues above it, even if the wall clock was set back in between.
    """

    def __init__(
        self, floor_us: int, *, offset: int | None = None, wall: Microseconds = wall_us,
        boot: Microseconds = boot_us,
    ) -> None:
        self._wall = wall
        self._boot = boot
        self._leap_at: int | None = None  # since when the wall clock is far ahead, boot time
        self.offset = floor_us + 1 - boot()
        if offset is None:
            self.offset = max(self.offset, wall() - boot())
        else:  # readers of this boot have seen times with this offset
            self.offset = max(self.offset, offset)
            self.follow_wall()

    def now_us(self) -> int:
        """Store time in microseconds since the Unix epoch."""
        return self._boot() + self.offset

    def ahead_us(self) -> int:
        """How far store time is ahead of the wall clock; below 0 during a leap that does not count yet."""
        return self.now_us() - self._wall()

    def follow_wall(self) -> int:
        """Raise the offset if the wall clock is ahead; returns it."""
        now = self._boot()
        wanted = self._wall() - now
        if wanted - self.offset > _LEAP_US:
            if self._leap_at is None:
                self._leap_at = now
            if now - self._leap_at < _LASTING_US:
                return self.offset
        self._leap_at = None
        self.offset = max(self.offset, wanted)
        return self.offset

    def set_back(self) -> int:
        """Go back to the wall clock; returns the offset. The owner sees to what was timed by the old one."""
        self._leap_at = None
        self.offset = min(self.offset, self._wall() - self._boot())
        return self.offset
