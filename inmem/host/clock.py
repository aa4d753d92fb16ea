"""The store's clock: one time for all processes, which never goes backwards.

Invariant: store time is boot time plus an offset that the writer publishes
and only raises. Boot time counts through suspend and does not jump. So a wall
clock that is set back changes nothing; one that is set forward raises the
offset at the writer's next tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Microseconds = Callable[[], int]


def boot_us() -> int:
    """Microseconds since boot, the same in every process of the machine."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def wall_us() -> int:
    """Microseconds since the Unix epoch, by the wall clock."""
    return time.time_ns() // 1000


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
        self.offset = max(floor_us + 1 - boot(), wall() - boot())
        if offset is not None:  # readers of this boot have seen times with this offset
            self.offset = max(self.offset, offset)

    def now_us(self) -> int:
        """Store time in microseconds since the Unix epoch."""
        return self._boot() + self.offset

    def follow_wall(self) -> int:
        """Raise the offset if the wall clock is ahead; returns it."""
        self.offset = max(self.offset, self._wall() - self._boot())
        return self.offset
