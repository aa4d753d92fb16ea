"""KV rules: what a stored entry is, and what `add` and `merge` do to it.

Invariant: an entry's payload is the encoded value and nothing else, so a
value costs no more than its bytes; version, time and expiry stand in the
record header.
"""

from __future__ import annotations

import math

from inmem import values
from inmem.errors import InvalidValueError

Number = int | float

_MIN, _MAX = -(1 << 63), (1 << 63) - 1


def check_number(value: object, argument: str) -> Number:
    """The value if `add` can work with it.

    Raises:
        InvalidValueError: not an `int` of 64 bits or a `float` (`bool` is neither).
    """
    if type(value) is int:
        if _MIN <= value <= _MAX:
            return value
        raise InvalidValueError(f"{argument} is outside the 64-bit signed range", argument=argument, path="")
    if type(value) is float:
        return value
    raise InvalidValueError(
        f"{argument} must be an int or a float, not {type(value).__name__}", argument=argument, path=""
    )


def add(payload: bytes | None, delta: Number, initial: Number) -> tuple[bytes, Number]:
    """The payload after adding `delta`, and the number it holds; absent counts as `initial`.

    Raises:
        InvalidValueError: the entry holds no number, or the sum leaves 64 bits.
    """
    current = initial if payload is None else check_number(_decode(payload), "the stored value")
    total = current + delta
    if type(total) is int:
        check_number(total, "the sum")
    elif math.isinf(total) and not math.isinf(current) and not math.isinf(delta):
        raise InvalidValueError("the sum is beyond the range of a float", argument="delta", path="")
    return values.encode(total), total


def merge(payload: bytes | None, fields: bytes) -> bytes:
    """The payload after setting `fields`, an encoded `dict`; absent counts as an empty one.

    Raises:
        InvalidValueError: one of the two is no `dict`.
        LimitError: together they are over the limit of a value.
    """
    added = _decode(fields)
    # The limit of a key's type is ours: MessagePack would let `bytes` pass.
    if type(added) is not dict or not all(type(name) is str for name in added):
        raise InvalidValueError("fields must be a dict with str keys", argument="fields", path="")
    if payload is None:
        return fields
    current = _decode(payload)
    if type(current) is not dict:
        raise InvalidValueError(
            f"the stored value must be a dict, not {type(current).__name__}", argument="key", path=""
        )
    current.update(added)
    return values.encode_checked(current)


def _decode(payload: bytes) -> object:
    try:
        return values.decode(payload)
    except (ValueError, TypeError):  # not written by this package: no number, and no reason to fall
        return None
