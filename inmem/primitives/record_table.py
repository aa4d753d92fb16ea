"""The table of record types, as `server` fills it: what the store knows of each primitive's records.

Whoever needs the table imports `server`, which has it filled. This module is
for what `server` itself imports: the procedures that delete and repair what a
run has, whichever primitive it is of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from inmem.primitives.record_type import LineForm, RecordType

RECORD_TYPES: Final[dict[int, RecordType]] = {}  # by type tag, in the order of their lines in an export
INDEX_TAGS: Final[set[int]] = set()
HANDED_OUT: Final[set[int]] = set()  # tags, see `RecordType`
_UPKEEP_TAGS: Final[set[int]] = set()


def add(record_type: RecordType) -> None:
    """Enter a record type, after those that are there."""
    RECORD_TYPES[record_type.tag] = record_type
    INDEX_TAGS.update(record_type.index_tags)
    HANDED_OUT.update(record_type.handed_out)
    if record_type.is_upkeep:
        _UPKEEP_TAGS.update({record_type.tag}, record_type.index_tags)


def is_upkeep(key: bytes) -> bool:
    """Whether a record is of a type that a full store goes on to write."""
    return key[key.index(0) + 1] in _UPKEEP_TAGS


def is_index(key: bytes) -> bool:
    """Whether an entry is of an index."""
    return key[key.index(0) + 1] in INDEX_TAGS


def counted() -> Iterator[tuple[str, RecordType]]:
    """What is counted in a run, with its record type."""
    return ((one.counted, one) for one in RECORD_TYPES.values() if one.counted is not None)


def record_type_of(tag: int) -> RecordType | None:
    """The record type that a type tag is of, or whose index it is."""
    indexed = (one for one in RECORD_TYPES.values() if tag in one.index_tags)
    return RECORD_TYPES.get(tag) or next(indexed, None)


def line_forms() -> list[tuple[str, LineForm]]:
    """What is counted, with the form of its lines, in the order in which a run's lines come."""
    return [(name, one.lines) for name, one in counted() if one.lines is not None]


def entries_of(prefix: bytes, tag: int, rest: bytes, payload: bytes) -> list[bytes]:
    """The index keys of one primary record; none for a primitive without indices.

    Raises:
        ValueError: the payload is not of the tag's type.
    """
    found = RECORD_TYPES.get(tag)
    if found is None or found.index_keys is None:
        return []
    try:
        return found.index_keys(prefix, rest, payload)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a record of its type: {error}") from None
