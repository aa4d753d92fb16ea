"""Values as text, so that equal text means equal value and equal type.

Invariant: `canonical(a) == canonical(b)` exactly if a and b are the same value
at every depth with the same types: `True` is not `1`, `1.0` is not `1`,
`bytes` is not `str`, while the order of a dict's keys does not matter and NaN
equals NaN. Knows neither store nor fleet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def canonical(value: Any) -> str:
    """The value as text. Cost: that of `json.dumps`.

    >>> canonical({"b": 1, "a": [True, 1.0, b"x"]})
    '{"a":[true,1.0,{"\\\\u0000bytes":"78"}],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_bytes)


def _bytes(value: Any) -> Any:
    if type(value) is bytes:
        return {"\0bytes": value.hex()}
    raise TypeError(f"{type(value).__name__} is not a value of the store")


def same(left: Any, right: Any) -> bool:
    """True if both are equal in value and in type, at every depth."""
    return canonical(left) == canonical(right)


def digest_of(values: Iterable[Any]) -> str:
    """One SHA-256 over a sequence of values, as hex; streams."""
    state = hashlib.sha256()
    for value in values:
        state.update(canonical(value).encode())
        state.update(b"\n")
    return state.hexdigest()


def shorten(value: Any, limit: int = 120) -> str:
    """A value's repr, cut for a message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 20]}... ({len(text)} characters)"
