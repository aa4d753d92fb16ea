"""How long to look for something before sleeping, by what looking costs at the moment.

Who waits for a few microseconds gives its core away and looks again, and again:
a wake-up costs more. While that core has work of other programs, a look lasts
until these have used their share of time, and all looking counts as time of
who looks: a sleeper would be woken at once. So looking ends with a look that
took that long, and is left out in the next waits; the more of them, the more
often that happens.
"""

from __future__ import annotations

from typing import Final

# Others of one's own kind work for tens of microseconds and sleep. Who computes runs for a tick or more.
SLOW_S: Final = 1e-3
_FIRST_PAUSE: Final = 32  # waits
_LONGEST_PAUSE: Final = 512


class Spinning:
    """The looks of one thread."""

    __slots__ = ("_next_pause", "_pause")

    def __init__(self) -> None:
        self._pause = 0  # waits that are left without looking
        self._next_pause = _FIRST_PAUSE

    def may_look(self) -> bool:
        """Whether to look before sleeping, in the wait that begins."""
        if self._pause:
            self._pause -= 1
            return False
        return True

    def ended(self, *, slow: bool) -> None:
        """A wait has looked; `slow`: the last look took longer than `SLOW_S`."""
        if slow:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
        elif self._next_pause > _FIRST_PAUSE:
            self._next_pause //= 2
