"""The server table: what the store knows of each primitive's records.

Check, index repair, salvage, deletion, export and import go through this
table and know no primitive by name, so a new primitive is one line here. It
imports no facade: the writer loads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from inmem.primitives.cell_records import CELL, CELL_MARK
from inmem.primitives.event_records import EVENT
from inmem.primitives.kv_records import KV
from inmem.primitives.record_type import LineForm, RecordType
from inmem.primitives.run_records import RUN
from inmem.primitives.trace_records import TRACE

RECORD_TYPES: Final[dict[int, RecordType]] = {}  # by type tag, in the order of their lines in an export
INDEX_TAGS: Final[set[int]] = set()


def add(record_type: RecordType) -> None:
    """Enter a record type, after those that are there."""
    RECORD_TYPES[record_type.tag] = record_type
    INDEX_TAGS.update(record_type.index_tags)


for _type in (KV, CELL, CELL_MARK, EVENT, TRACE, RUN):
    add(_type)


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
