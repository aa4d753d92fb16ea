"""Which index entries a primary record has: the one place that knows all of them.

Invariant: the index entries of a prefix are exactly what `entries_of` gives
for its primary records. Checks compare with it, repairs restore it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from inmem.keys import TypeTag
from inmem.model import event_log, run, trace

_Entries = Callable[[bytes, bytes, bytes], list[bytes]]

ENTRIES: Final[Mapping[int, _Entries]] = {
    TypeTag.EVENT: event_log.index_keys,
    TypeTag.TRACE: trace.index_keys,
    TypeTag.RUN: run.index_keys,
}
INDEX_TAGS: Final = frozenset({
    TypeTag.EVENT_BY_TYPE,
    TypeTag.TRACE_BY_TYPE, TypeTag.TRACE_BY_TAG, TypeTag.TRACE_BY_PARENT, TypeTag.TRACE_BY_TIME,
    TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG, TypeTag.RUN_BY_PARENT,
})


def entries_of(prefix: bytes, tag: int, rest: bytes, payload: bytes) -> list[bytes]:
    """The index keys of one primary record; none for a primitive without indices.

    Raises:
        ValueError: the payload is not of the tag's type.
    """
    entries = ENTRIES.get(tag)
    try:
        return [] if entries is None else entries(prefix, rest, payload)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a record of its type: {error}") from None
