"""The value codec: what users store comes back with the same type and value.

Invariant: `decode(encode(v))` equals `v` in type and value at every depth, or
`encode` raises before anything is sent. Bytes are MessagePack
(https://github.com/msgpack/msgpack/blob/master/spec.md) with its bin, str,
int, float, nil, bool, array and map types only. Knows nothing of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias, Union

import msgpack

from inmem.errors import CorruptionError, InvalidValueError, LimitError, type_name

Value: TypeAlias = Union[bool, int, float, str, bytes, "list[Value]", "dict[str, Value]", None]

MAX_VALUE_BYTES: Final = 16 * 1024 * 1024  # one value must fit a message with room to spare
MAX_DEPTH: Final = 128  # far below msgpack's and Python's own recursion limits

_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1
_SHORT: Final = 64 * 1024  # longer text goes through a packer of its own, whose buffer is then freed
_MANY: Final = 16  # from here on one pass over the types in C beats a loop in Python

_FIXED: Final = frozenset((float, bool, type(None)))  # every value of these types can be stored
_INTS: Final = frozenset((int, bool))


def _packer() -> Any:
    return msgpack.Packer(use_bin_type=True, strict_types=True)


def _pack_alone(value: Any) -> Any:
    return _packer().pack(value)


# The packer in C handles a scalar in one call under the GIL, so threads may share it; the one in
# Python may be interrupted half way. Containers never share: a finalizer could run in between.
_pack_scalar = _packer().pack if msgpack.Packer.__module__ == "msgpack._cmsgpack" else _pack_alone


def encode(value: Any, argument: str = "value") -> bytes:
    """The value as bytes. Cost: about 0.2 µs for a scalar, then linear in the elements.

    >>> decode(encode({"plan": ["search", 1, 2.0, None, b"raw"]}))
    {'plan': ['search', 1, 2.0, None, b'raw']}

    Raises:
        InvalidValueError: a type that would not come back as it is (tuple,
            set, bytearray, subclass), an int beyond 64 bits, a key that is
            no `str`, a lone surrogate, nesting beyond 128; the message names
            the path inside the value.
        LimitError: over 16 MiB encoded.
    """
    data: bytes
    kind = type(value)
    if kind is list or kind is dict:
        _check(value, argument)
        try:
            data = _pack_alone(value)
        except (ValueError, OverflowError, TypeError):
            _check(value, argument, text=True)
            raise _invalid("was changed while it was encoded", argument, "") from None
    elif kind is str or kind is bytes:
        size = len(value)
        if size > MAX_VALUE_BYTES:
            raise _too_big(size, argument)
        try:
            data = _pack_scalar(value) if size < _SHORT else _pack_alone(value)
        except UnicodeEncodeError:
            raise _invalid(_SURROGATE, argument, "") from None
    elif kind is int:
        if not _INT_MIN <= value <= _INT_MAX:
            raise _invalid(_WIDE, argument, "")
        data = _pack_scalar(value)
    elif kind in _FIXED:
        data = _pack_scalar(value)
    else:
        raise _foreign(value, argument, "")
    if len(data) > MAX_VALUE_BYTES:
        raise _too_big(len(data), argument)
    return data


def encode_by(default: Callable[[Any], Any] | None, value: Any, argument: str = "value") -> bytes:
    """The bytes of a value that `encode` refuses, with what `default` gives for each part that it refuses.

    Raises:
        InvalidValueError: there is no default, or what it gives is refused too.
        LimitError: over 16 MiB encoded.
        Exception: whatever `default` raises.
    """
    return encode(value if default is None else _converted(value, default, 0), argument)


def _converted(value: Any, default: Callable[[Any], Any], depth: int, *, is_given: bool = False) -> Any:
    kind = type(value)
    if depth <= MAX_DEPTH and kind is list:
        return [_converted(item, default, depth + 1) for item in value]
    if depth <= MAX_DEPTH and kind is dict:
        return {name: _converted(item, default, depth + 1) for name, item in value.items()}
    if is_given or kind in _FIXED or kind is bytes or kind is list or kind is dict:
        return value
    if (kind is int and _INT_MIN <= value <= _INT_MAX) or (kind is str and not _has_surrogate(value)):
        return value
    return _converted(default(value), default, depth, is_given=True)


def encode_checked(value: Any, argument: str = "value") -> bytes:
    """The bytes of what `decode` gave, or was put together from such parts.

    Raises:
        LimitError: over 16 MiB encoded.
    """
    data: bytes = _pack_alone(value)
    if len(data) > MAX_VALUE_BYTES:
        raise _too_big(len(data), argument)
    return data


class DamagedValueError(CorruptionError, ValueError):
    """Stored bytes are no value."""


def decode(data: bytes) -> Any:
    """The value that `encode` was given. Cost: about 0.5 µs for a scalar."""
    try:
        return msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise DamagedValueError(f"a stored value cannot be decoded: {error}") from None


def text_of(stored: bytes) -> str:
    """A name in stored bytes as text. Only damage, or a foreign hand, leaves one that is not UTF-8."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        raise DamagedValueError(f"a stored name is not UTF-8: {stored[:100]!r}") from None


def _check(value: Any, argument: str, *, text: bool = False) -> None:
    """Raise for the first thing, in document order, that a container must not hold.

    Without `text` lone surrogates are left to the packer, which sees them
    anyway. The walk keeps its own stack, so that depth is a limit of ours and
    not of the interpreter, and joins the names on it to a path only for an
    error.
    """
    # Every element takes a byte or more. Counting them ends the walk of a small value that would
    # unfold into an enormous one, as lists that hold one list many times over do.
    budget = MAX_VALUE_BYTES
    walks: list[Iterator[tuple[Any, Any]]] = []  # what is left of the containers around this one
    names: list[Any] = []  # from the outermost container to this one
    container = value
    while True:
        if len(walks) == MAX_DEPTH:
            raise _invalid(f"is nested deeper than {MAX_DEPTH}", argument, _path(names))
        budget -= len(container)
        if type(container) is dict:
            for key in container:
                if type(key) is not str:
                    problem = f"has a key of type {type_name(key)}; keys must be str"
                    raise _invalid(problem, argument, _path(names))
                budget -= len(key)
                if text and _has_surrogate(key):
                    raise _invalid(_SURROGATE, argument, _path(names, key))
            walks.append(iter(container.items()))
        else:
            walks.append(iter(()) if _all_numbers(container) else enumerate(container))

        while walks:
            for name, item in walks[-1]:
                kind = type(item)
                if kind is str or kind is bytes:
                    budget -= len(item)
                    if text and kind is str and _has_surrogate(item):
                        raise _invalid(_SURROGATE, argument, _path(names, name))
                elif kind is list or kind is dict:
                    break
                elif kind is int:
                    if not _INT_MIN <= item <= _INT_MAX:
                        raise _invalid(_WIDE, argument, _path(names, name))
                elif kind not in _FIXED:
                    raise _foreign(item, argument, _path(names, name))
            else:
                walks.pop()
                if budget < 0:
                    raise _too_big(MAX_VALUE_BYTES - budget, argument)
                if not walks:
                    return
                names.pop()
                continue
            names.append(name)
            container = item
            break


_SURROGATE: Final = "has a lone surrogate, which UTF-8 cannot hold"
_SHORT_NAME: Final = 60  # of a place in a value, as an expression that is read easily
_WIDE: Final = "is an int outside the 64-bit signed range: store its str()"


def _foreign(value: Any, argument: str, path: str) -> InvalidValueError:
    from inmem.conversions import conversion_of  # loads much, and is needed on the way to an error only

    problem = f"is a {type_name(value)}, which would not come back as one"
    name = argument + path
    conversion = conversion_of(value, name if len(name) <= _SHORT_NAME else "it")
    return _invalid(problem if conversion is None else f"{problem}: store {conversion}", argument, path)


def _all_numbers(items: list[Any]) -> bool:
    if len(items) < _MANY:
        return False
    kinds = set(map(type, items))
    return kinds <= _FIXED or (kinds <= _INTS and min(items) >= _INT_MIN and max(items) <= _INT_MAX)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _path(names: list[Any], *last: Any) -> str:
    return "".join([f"[{name!r}]" for name in (*names, *last)])


def _too_big(size: int, argument: str) -> LimitError:
    return LimitError(
        f"{argument} is {size} bytes or more encoded, the limit is {MAX_VALUE_BYTES}",
        what=argument,
        size=size,
        limit=MAX_VALUE_BYTES,
    )


def _invalid(problem: str, argument: str, path: str) -> InvalidValueError:
    where = argument + (path if len(path) <= 200 else path[:100] + "..." + path[-97:])
    return InvalidValueError(f"{where} {problem}", argument=argument, path=path)
