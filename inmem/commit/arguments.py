"""Checks of procedure arguments: what a correct client never gets wrong.

Invariant: a procedure changes nothing before its arguments have passed. The
facades check first, with the user's names for things; these keep the store
whole whatever arrives.
"""

from __future__ import annotations

from typing import Any

from inmem import values
from inmem.errors import InvalidInputError
from inmem.keys import MAX_KEY_BYTES, MAX_NAME_BYTES, check_tag_count, encode_label

MAX_PREFIX_BYTES = MAX_KEY_BYTES - MAX_NAME_BYTES - 2


def check_type(name: str, value: object, kind: type) -> None:
    """Refuse a value that is not exactly of a type."""
    if type(value) is not kind:
        raise InvalidInputError(f"{name} must be {kind.__name__}, not {type(value).__name__}", argument=name)


def check_prefix(prefix: object, argument: str = "prefix") -> bytes:
    """A run's or a namespace's prefix."""
    check_type(argument, prefix, bytes)
    assert isinstance(prefix, bytes)
    if not 0 < len(prefix) <= MAX_PREFIX_BYTES or 0 in prefix or not prefix.isascii():
        raise InvalidInputError(f"{argument} is empty, too long, has NUL or is not ASCII", argument=argument)
    return prefix


def check_namespace(namespace: object) -> bytes:
    """A namespace's prefix: tenant, app and agent. Less of it would reach other agents' runs."""
    checked = check_prefix(namespace, "namespace")
    if checked.count(b"/") != 2 or not all(checked.split(b"/")):
        raise InvalidInputError("namespace is not tenant/app/agent", argument="namespace")
    return checked


def check_name(name: object, limit: int, argument: str = "name") -> str:
    """A name given as UTF-8 bytes; as text."""
    check_type(argument, name, bytes)
    assert isinstance(name, bytes)
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{argument} is no UTF-8", argument=argument) from None
    if not 0 < len(name) <= limit or "\0" in text:
        raise InvalidInputError(f"{argument} is empty, too long or has NUL", argument=argument)
    return text


def check_labels(labels: object, argument: str = "tags") -> list[str]:
    """Tags: a list of distinct labels."""
    check_type(argument, labels, list)
    assert isinstance(labels, list)
    check_tag_count(len(labels))
    for label in labels:
        encode_label(label, argument)
    if len(set(labels)) != len(labels):
        raise InvalidInputError(f"{argument} repeats itself", argument=argument)
    return labels


def check_time(value: object, argument: str = "timestamp") -> int:
    """A time in microseconds that fits 63 bits."""
    check_type(argument, value, int)
    assert isinstance(value, int)
    if not 0 <= value < 1 << 63:
        raise InvalidInputError(f"{argument} is outside 0 to 2**63-1", argument=argument)
    return value


def check_map(payload: object, argument: str) -> dict[str, Any]:
    """An encoded map; decoded."""
    check_type(argument, payload, bytes)
    assert isinstance(payload, bytes)
    try:
        value = values.decode(payload)
    except ValueError as error:
        raise InvalidInputError(f"{argument} does not decode: {error}", argument=argument) from None
    check_type(argument, value, dict)
    return value  # type: ignore[no-any-return]

