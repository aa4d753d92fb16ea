"""Time on a line: where on it a moment is drawn.

Invariant: order is kept, and what happened has nearly all of the line. Long
times in which nothing did are cut short: traces may carry the times of a
recording, events those of its replay, and both have to be seen.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

_LONG: Final = 0.15  # a gap is cut short that is longer than this part of the whole
_WIDTH: Final = 0.02  # of a gap that was cut short, as a part of the line


class Scale:
    """Made of the intervals (microseconds) that have to be seen.

    >>> scale = Scale([(0, 10), (10, 20), (1_000_000, 1_000_020)])
    >>> [round(scale.place(us), 2) for us in (0, 10, 20, 1_000_000, 1_000_020)]
    [0.0, 0.24, 0.49, 0.51, 1.0]
    >>> scale = Scale([(0, 0), (10, 10), (1_000_000, 1_000_000)])
    >>> [round(scale.place(us), 2) for us in (0, 10, 1_000_000)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, intervals: Iterable[tuple[int, int]]) -> None:
        merged: list[list[int]] = []
        for begin, end in sorted(intervals):
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([begin, end])
        between = [(a[1], b[0]) for a, b in itertools.pairwise(merged)]
        self.first = merged[0][0] if merged else 0
        self.last = merged[-1][1] if merged else 0
        # Longest first: without the longest, another one may be long.
        left = self.last - self.first
        cut: list[tuple[int, int]] = []
        for begin, end in sorted(between, key=lambda gap: gap[0] - gap[1]):
            if end - begin <= _LONG * left or len(cut) * _WIDTH > 0.5:
                break
            cut.append((begin, end))
            left -= end - begin
        cut.sort()
        self._starts: list[int] = []  # of the stretches in which the line is even
        self._places: list[float] = []
        self._speeds: list[float] = []
        self.gaps: list[tuple[float, float]] = []
        # Where there is nothing but moments, the gaps between them have the whole line.
        width = _WIDTH if left > 0 or not cut else 1.0 / len(cut)
        room = 1.0 - width * len(cut)
        speed = room / left if left > 0 else 0.0
        place, at = 0.0, self.first
        for begin, end in cut:
            self._stretch(at, place, speed)
            place += (begin - at) * speed
            self._stretch(begin, place, width / (end - begin))
            self.gaps.append((place, place + width))
            place += width
            at = end
        self._stretch(at, place, speed)

    def _stretch(self, start: int, place: float, speed: float) -> None:
        self._starts.append(start)
        self._places.append(place)
        self._speeds.append(speed)

    def place(self, us: int) -> float:
        """Where a moment is, from 0 to 1."""
        stretch = max(0, bisect_right(self._starts, us) - 1)
        place = self._places[stretch] + (us - self._starts[stretch]) * self._speeds[stretch]
        return min(1.0, max(0.0, place))

    def ticks(self, count: int) -> list[tuple[float, int]]:
        """Places that are evenly far apart, and the moments that they stand for."""
        if self.last <= self.first:
            return [(0.0, self.first)] if self._starts and self.first else []
        found = []
        for number in range(count):
            place = number / (count - 1)
            stretch = max(0, bisect_right(self._places, place) - 1)
            speed = self._speeds[stretch]
            us = self._starts[stretch] + (round((place - self._places[stretch]) / speed) if speed else 0)
            found.append((place, min(us, self.last)))
        return found
