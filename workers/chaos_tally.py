"""The sums that a person asks for first: how much was acknowledged, lost, doubled.

Invariant: only what can be counted one by one is counted; a check that finds
something wrong besides says so by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workers.history import Op


@dataclass(slots=True)
class Tally:
    """What was acknowledged and can be counted one by one, and how it fared."""

    acknowledged: int = 0
    open: int = 0  # of killed workers: asked, and never answered
    lost: int = 0
    doubled: int = 0
    errors: int = 0  # answers that no worker should get
    full: int = 0  # answers that the store is full, while it was
    too_old: int = 0  # snapshots that ended before their readers


def each(histories: Iterable[Iterable[Op]], *names: str) -> Iterator[Op]:
    for history in histories:
        for op in history:
            if op.op in names:
                yield op
