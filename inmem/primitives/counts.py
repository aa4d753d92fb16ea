"""How many records of each kind: a map of names and numbers, and its form in a message.

In messages and results the counts of the first release's kinds keep their
places in an array, so that programs of that release can be talked to. A map
of other kinds follows, if there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

FIRST: Final = ("kv", "cells", "events", "traces")  # their places in an import
FIRST_DELETED: Final = ("kv", "events", "cells", "traces")  # and in the result of a deletion


def pack(counts: Mapping[str, int]) -> list[Any]:
    """The counts of an import as an array.

    >>> pack({"events": 3}), pack({"kv": 1, "notes": 2})
    ([0, 0, 3, 0], [1, 0, 0, 0, {'notes': 2}])
    """
    others = others_in(counts)
    return [*(counts.get(name, 0) for name in FIRST), *([others] if others else [])]


def unpack(data: Any) -> dict[str, int]:
    """The counts of an array that `pack` made; those above 0.

    Raises:
        ValueError: it made no such array.
    """
    if type(data) is not list or not len(FIRST) <= len(data) <= len(FIRST) + 1:
        raise ValueError("not the counts of an import")
    others = check(data[len(FIRST)]) if len(data) > len(FIRST) else {}
    return check({**dict(zip(FIRST, data, strict=False)), **others})


def others_in(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of kinds that the first release did not have; those above 0."""
    return {name: count for name, count in counts.items() if count and name not in FIRST}


def shown_of(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What people are shown: the first release's kinds, and what there is of others."""
    return [(name, count) for name, count in counts.items() if count or name in FIRST]


def check(counts: Any) -> dict[str, int]:
    """The map if it holds counts; those above 0.

    Raises:
        ValueError: it is something else.
    """
    if type(counts) is not dict:
        raise ValueError("not a map of counts")
    for name, count in counts.items():
        if type(name) is not str or type(count) is not int or count < 0:
            raise ValueError("not a map of counts")
    return {name: count for name, count in counts.items() if count}


def add(counts: Mapping[str, int], name: str, count: int) -> dict[str, int]:
    """The counts with so many more under a name."""
    return dict(counts) if not count else {**counts, name: counts.get(name, 0) + count}
