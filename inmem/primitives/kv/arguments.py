"""What is given to the methods of KV entries, checked and encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from inmem.engines.base import Sink
from inmem.errors import InvalidInputError
from inmem.keys import encode_name
from inmem.primitives._common import encoded
from inmem.writeset import OP_PUT

Ttl = float | timedelta | None


def fields_of(sink: Sink, fields: Mapping[str, Any]) -> bytes:
    """Fields of a dict, encoded.

    Raises:
        InvalidInputError: they are no mapping.
    """
    if not isinstance(fields, Mapping):
        raise InvalidInputError(f"fields must be a mapping, not {type(fields).__name__}", argument="fields")
    return encoded(sink, dict(fields), "fields")


def entries_of(
    sink: Sink, head: bytes, mapping: Mapping[str, Any], expires: int
) -> list[list[Any]]:
    """Operations that put entries, under keys after a head.

    Raises:
        InvalidInputError: they are no mapping.
    """
    if not isinstance(mapping, Mapping):
        raise InvalidInputError(
            f"mapping must be a mapping, not {type(mapping).__name__}", argument="mapping"
        )
    return [
        [OP_PUT, head + encode_name(key, "mapping key"), encoded(sink, value, f"mapping[{key!r}]"), expires]
        for key, value in mapping.items()
    ]


def required(ttl: Ttl) -> float | timedelta:
    """A time to live that must be given."""
    if ttl is None:
        raise InvalidInputError("ttl must be given", argument="ttl")
    return ttl


def strings(items: Iterable[str], argument: str) -> Iterable[str]:
    """Some strings, and not one of them.

    Raises:
        InvalidInputError: it is one string, or nothing to go through.
    """
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidInputError(f"{argument} must be an iterable of str", argument=argument)
    return items
