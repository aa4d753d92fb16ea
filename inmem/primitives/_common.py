"""Checks of arguments that the facades share.

Invariant: a bad argument is refused here, with its name and limit, before
anything is sent.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import FrameType
from typing import Any

from inmem import values
from inmem.config import MAX_TTL_S
from inmem.engines.base import Sink
from inmem.errors import InvalidInputError, InvalidValueError, type_name
from inmem.host.interrupts import let_through
from inmem.keys import check_tag_count, encode_label, encode_name, shorten
from inmem.writeset import OP_PUT


def check_limit(limit: object) -> int | None:
    """The value if it can be a limit.

    Raises:
        InvalidInputError: neither None nor a non-negative int.
    """
    if limit is None or (type(limit) is int and limit >= 0):
        return limit
    raise InvalidInputError(
        f"limit must be None or an int of at least 0, not {shorten(limit)}", argument="limit"
    )


def deprecated(old: str, new: str) -> None:
    """Warn whoever calls a method under its old name, in their own line."""
    frame: FrameType | None = sys._getframe()
    level = 1
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("inmem."):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=level)


def encoded(sink: Sink, value: object, argument: str = "value") -> bytes:
    """A value as bytes; what would be refused goes through the handle's `default`.

    Raises:
        InvalidValueError, LimitError: as `inmem.values.encode`.
    """
    try:
        return values.encode(value, argument)
    except InvalidValueError as error:
        let_through(error)
        return values.encode_by(sink.default, value, argument)


def check_number(value: object, argument: str, what: str = "") -> int:
    """The value if it is an int from 0 to 2**63-1; `what` is what the message calls it.

    Raises:
        InvalidInputError: it is none.
    """
    if type(value) is int and 0 <= value < 1 << 63:
        return value
    raise InvalidInputError(
        f"{what or argument} must be an int from 0 to 2**63-1, not {shorten(value)}", argument=argument
    )


def check_prefix_of(what: str, argument: str, given: object, prefix: bytes) -> None:
    """Refuse what a run has given out, unless it is of the run with this prefix.

    Raises:
        InvalidInputError: it is of another run, or of none.
    """
    if given != prefix:
        owner = given.decode(errors="replace") if isinstance(given, bytes) else shorten(given)
        raise InvalidInputError(f"{what} is of another run: {owner}", argument=argument)


def check_flag(flag: object, argument: str) -> bool:
    """The value if it is True or False.

    Raises:
        InvalidInputError: it is neither.
    """
    if type(flag) is bool:
        return flag
    raise InvalidInputError(f"{argument} must be True or False, not {shorten(flag)}", argument=argument)


def check_tags(tags: object) -> list[str]:
    """The tags as a list, each once, in their order.

    Raises:
        InvalidInputError: not a sequence of `str`.
        InvalidKeyError: a tag is empty, over 128 bytes or has NUL.
        LimitError: there are more than 256.
    """
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        raise InvalidInputError("tags must be a sequence of str", argument="tags")
    # Through the bytes: the `str` of a member of an enum may be another text than what it holds.
    labels = list(dict.fromkeys(encode_label(label, "tags").decode() for label in tags))
    check_tag_count(len(labels))
    return labels


def check_metadata(metadata: object) -> dict[str, Any]:
    """The metadata as a dict; None is an empty one.

    Raises:
        InvalidInputError: not a mapping.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"metadata must be a mapping, not {type_name(metadata)}", argument="metadata"
        )
    return dict(metadata)


def microseconds(value: object, argument: str, *, is_above: bool = False) -> int:
    """A duration in seconds (or a `timedelta`) as microseconds, from 0 or from 1 on, up to a century.

    Raises:
        InvalidInputError: it is none.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 <= seconds <= MAX_TTL_S  # also if it is not a number
        or (is_above and not seconds)
    ):
        lowest = "above 0" if is_above else "0 or more"
        raise InvalidInputError(
            f"{argument} must be {lowest} and at most {MAX_TTL_S} seconds (int, float or timedelta), "
            f"not {shorten(value)}",
            argument=argument,
        )
    return max(int(is_above), round(seconds * 1e6))


def lasting(ttl: object) -> int:
    """A ttl as an operation has it: see `inmem.record.end_of`. 0 for None.

    Raises:
        InvalidInputError: not a positive number of seconds (or `timedelta`) up to a century.
    """
    return 0 if ttl is None else -microseconds(ttl, "ttl", is_above=True)


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


def required(ttl: float | timedelta | None) -> float | timedelta:
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
