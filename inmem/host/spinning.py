"""How long to look for something before sleeping, by what looking costs at the moment.

Who waits for a few microseconds gives its core away and looks again, and again:
a wake-up costs more. While that core has other work, each look lasts until the
other has used its share of time, which counts as time of who looks: a sleeper
would be woken at once. So looking stops where it took long, and is tried again
after some waits; the longer, the more often it was in vain.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

_SLOW_S: Final = 5e-6  # a look takes 1 µs, with a switch to another process 4 µs and more
_FIRST_PAUSE: Final = 128  # waits
_LONGEST_PAUSE: Final = 8192


class Spinning:
    """The looks of one thread."""

    __slots__ = ("_began", "_most", "_next_pause", "_pause")

    def __init__(self, most: int) -> None:
        """`most` is how often to look where that costs nothing."""
        self._most = most
        self._pause = 0  # waits that are left without looking
        self._next_pause = _FIRST_PAUSE
        self._began = 0.0

    def begin(self) -> int:
        """A wait begins: how often to look before sleeping."""
        if self._pause:
            self._pause -= 1
            return 0
        self._began = perf_counter()
        return self._most

    def end(self, looks: int) -> None:
        """So many looks were made since `begin`."""
        if looks <= 0:
            return
        if perf_counter() - self._began > (looks + 1) * _SLOW_S:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
        elif self._next_pause > _FIRST_PAUSE:
            self._next_pause //= 2
