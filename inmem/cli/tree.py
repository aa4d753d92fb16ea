"""Trees, drawn while they are read.

Invariant: what is kept is one iterator for each level, so neither depth nor
width of a tree matters, and the first line comes before the last is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

_MAX_DEPTH: Final = 12  # levels that get an indentation of their own; beyond them the depth is written


def drawn(tops: Iterator[T], below: Callable[[T], Iterator[T]]) -> Iterator[tuple[T, str, int]]:
    """(what, what to draw before it, depth) of whole trees, parents before children.

    >>> trees = {"a": ["b", "c"], "b": ["d"]}
    >>> for name, guides, depth in drawn(iter("a"), lambda name: iter(trees.get(name, []))):
    ...     print(guides + name)
    a
    ├─ b
    │  └─ d
    └─ c
    """
    for top in tops:
        yield top, "", 0
        # One item is looked ahead: the last child is drawn otherwise.
        waiting = [_with_last(below(top))]
        guides = [""]
        while waiting:
            item = next(waiting[-1], None)
            if item is None:
                waiting.pop()
                guides.pop()
                continue
            what, is_last = item
            depth = len(waiting)
            deep = f"({depth}) " if depth > _MAX_DEPTH else ""
            yield what, guides[-1] + ("└─ " if is_last else "├─ ") + deep, depth
            waiting.append(_with_last(below(what)))
            guides.append(guides[-1] if deep else guides[-1] + ("   " if is_last else "│  "))


def _with_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    for first in itertools.islice(items, 1):
        current = first
        for following in items:
            yield current, False
            current = following
        yield current, True
