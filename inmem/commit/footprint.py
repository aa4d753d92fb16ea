"""The footprint of a call: which keys its procedure may look at, and which it may change."""

from __future__ import annotations

from typing import Final, NamedTuple

Range = tuple[bytes, bytes]


def exactly(key: bytes) -> Range:
    """The range of one key."""
    return key, key + b"\0"


def is_exact(some: Range) -> bool:
    """Whether a range is that of one key."""
    return some[1] == some[0] + b"\0"


def overlap(some: tuple[Range, ...], others: tuple[Range, ...]) -> bool:
    """Whether any range of some overlaps any of the others."""
    for start, end in some:  # a loop: a generator costs more than what it looks at
        for s, e in others:
            if start < e and s < end:
                return True
    return False


class Footprint(NamedTuple):
    """What a call may look at, and what it may change."""

    looks_at: tuple[Range, ...]
    changes: tuple[Range, ...]

    @classmethod
    def of(cls, *ranges: Range) -> Footprint:
        """That of a call that looks at all that it may change."""
        return cls(ranges, ranges)

    def concerns(self, looks_at: tuple[Range, ...], changes: tuple[Range, ...]) -> bool:
        """Whether it matters if this call comes before or after something with that footprint."""
        return overlap(self.changes, looks_at) or overlap(self.looks_at, changes)


class Takes(NamedTuple):
    """Of a call that takes any one of some entries: the best that nobody else is just taking will do.

    All that it changes are records whose keys end as the key of that entry.
    """

    entries: Range
    heads: tuple[bytes, ...]  # of the records that an entry names
    beside: tuple[Range, ...]  # ranges of whose first records it looks at the first


class Looks(NamedTuple):
    """What a procedure most likely looks at: an engine whose records are far away has it at hand then."""

    keys: tuple[bytes, ...] = ()
    starts: tuple[Range, ...] = ()  # ranges whose first records it looks at
    ends: tuple[Range, ...] = ()  # and whose last one
    named: tuple[tuple[Range, bytes], ...] = ()  # under a head and the end of each of those keys
    place: bytes | None = None  # a key that changes whenever something does that it has to look at
    is_of_place: bool = False  # whether all that it changes has keys that end as the place
    takes: Takes | None = None


NAME_BYTES: Final = 8  # of the end of a key that names another record
