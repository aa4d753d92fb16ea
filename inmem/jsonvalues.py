"""Values as JSON and back, exactly.

Invariant: `from_json(to_json(v))` equals `v` in type and value at every depth,
NaN with its bits included, and one value has one text. What JSON has (null,
true, false, text, arrays, objects, integers, finite numbers with a fraction
or an exponent) stands for itself. What it lacks is an object with one key
that begins with `$`:

    {"$bytes": "3q2+7w=="}      bytes, base64 (RFC 4648, section 4)
    {"$float": "inf"}           inf, -inf, nan; another NaN by its bits, 16 hexadecimal digits
    {"$$name": ...}             a dict with one key, and that begins with `$`: here `$name`

So an object with one key that begins with `$` never stands for itself, every
other object does, and no data can be mistaken for a mark.

The text is ASCII: other characters are escaped, so that no editor, terminal
or line splitter changes them. Knows neither files nor stores.
"""

from __future__ import annotations

import binascii
import json
import math
import re
import struct
from typing import Any, Final

from inmem import values

_DOUBLE: Final = struct.Struct(">d")
_NAN: Final = _DOUBLE.pack(math.nan)
_NAMES: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_BITS: Final = re.compile(r"[0-9a-f]{16}\Z")
_PLAIN: Final = frozenset((str, int, bool, type(None)))
# MessagePack without any of these bytes has neither bytes, floats nor a `$`; text may have them too.
_MARKED: Final = re.compile(rb"[$\xc4\xc5\xc6\xca\xcb]")

_encode = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def to_json(value: Any) -> Any:
    """The value with bytes, NaN, infinities and look-alikes marked. Cost: about 0.2 µs an element.

    >>> to_json({"raw": b"abc", "rate": float("inf"), "price": {"$": 1}})
    {'raw': {'$bytes': 'YWJj'}, 'rate': {'$float': 'inf'}, 'price': {'$$': 1}}

    Raises:
        ValueError: something that is no value of the store.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        marked = {key: to_json(item) for key, item in value.items()}
        if len(marked) == 1:
            ((key, item),) = marked.items()
            if key[:1] == "$":
                return {"$" + key: item}
        return marked
    if kind is list:
        return [to_json(item) for item in value]
    if kind is float:
        return value if math.isfinite(value) else {"$float": _named(value)}
    if kind is bytes:
        return {"$bytes": _base64(value)}
    raise ValueError(f"a {kind.__name__} is no value of the store")


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()  # without `base64`, which the writer would load


def needs_marks(encoded: bytes) -> bool:
    """Whether `to_json` might change the value that is encoded so; False is certain."""
    return _MARKED.search(encoded) is not None


def encoded_to_json(encoded: bytes) -> Any:
    """`to_json` of an encoded value."""
    value = values.decode(encoded)
    return to_json(value) if needs_marks(encoded) else value


def _named(value: float) -> str:
    if math.isnan(value):
        bits = _DOUBLE.pack(value)
        return "nan" if bits == _NAN else bits.hex()
    return "inf" if value > 0 else "-inf"


def dumps(document: Any) -> bytes:
    """One line of JSON: compact, ASCII, keys as they come, with its newline."""
    return (_encode(document) + "\n").encode("ascii")


def loads(line: bytes) -> Any:
    """What a line of JSON holds, with its marks taken as what they stand for.

    >>> loads(b'{"raw":{"$bytes":"YWJj"},"price":{"$$":1}}')
    {'raw': b'abc', 'price': {'$': 1}}

    Raises:
        ValueError: not ASCII, not JSON, a key twice in an object, a mark that
            is not known or not written as `to_json` writes it, or nesting too
            deep to be a value.
    """
    try:
        return _DECODER.decode(line.decode("ascii"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not ASCII") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_json(value: Any) -> Any:
    """What `to_json` was given; `loads` does this for a whole line.

    Raises:
        ValueError: a mark that is not known, or not written as `to_json` writes it.
    """
    if type(value) is dict:
        return _object([(key, from_json(item)) for key, item in value.items()])
    return [from_json(item) for item in value] if type(value) is list else value


def _object(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1:
        key, item = pairs[0]
        if key[:1] == "$":
            return {key[1:]: item} if key[1:2] == "$" else _meant(key, item)
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.80} is there twice in one object")
    return found


def _meant(key: str, item: Any) -> Any:
    if type(item) is str and key == "$bytes":
        try:
            data = binascii.a2b_base64(item)
        except ValueError:
            data = None
        if data is not None and _base64(data) == item:
            return data
    elif type(item) is str and key == "$float":
        if item in _NAMES:
            return _NAMES[item]
        value = _DOUBLE.unpack(bytes.fromhex(item))[0] if _BITS.match(item) else 0.0
        if math.isnan(value) and _named(value) == item:
            return value
    else:
        raise ValueError(f"there is no mark {key!r:.80}")
    raise ValueError(f"{item!r:.80} is not what a {key} holds")


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
