"""The value codec: what users store comes back with the same type and value.

Invariant: `decode(encode(v))` equals `v` in type and value at every depth, or
`encode` raises before anything is sent. Bytes are MessagePack
(https://github.com/msgpack/msgpack/blob/master/spec.md) with its bin, str,
int, float, nil, bool, array and map types only. Knows nothing of keys.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, Union

import msgpack

from inmem.errors import InvalidValueError, LimitError

Value: TypeAlias = Union[bool, int, float, str, bytes, "list[Value]", "dict[str, Value]", None]

MAX_VALUE_BYTES: Final = 16 * 1024 * 1024  # one value must fit a message with room to spare
MAX_DEPTH: Final = 128  # far below msgpack's and Python's own recursion limits

_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1

_packb = msgpack.Packer(use_bin_type=True, strict_types=True, autoreset=True).pack


def encode(value: Any, argument: str = "value") -> bytes:
    """The value as bytes. Cost: about 1 µs for a scalar, linear in the elements.

    Raises:
        InvalidValueError: a type that would not come back as it is (tuple,
            set, bytearray, subclass), an int beyond 64 bits, a key that is
            no `str`, a lone surrogate, nesting beyond 128; the message names
            the path inside the value.
        LimitError: over 16 MiB encoded.
    """
    kind = type(value)
    if kind is list or kind is dict:
        _check_container(value, argument)
    elif not (kind is bytes or kind is float or kind is bool or value is None):
        _check_scalar(value, kind, argument, "")
    # A Packer instance is not shared between threads: pack() is one C call under the GIL.
    data: bytes = _packb(value) if kind is not list and kind is not dict else msgpack.packb(value)
    if len(data) > MAX_VALUE_BYTES:
        raise LimitError(
            f"{argument} is {len(data)} bytes encoded, the limit is {MAX_VALUE_BYTES}",
            what=argument,
            size=len(data),
            limit=MAX_VALUE_BYTES,
        )
    return data


def decode(data: bytes) -> Any:
    """The value that `encode` was given. Cost: about 0.5 µs for a scalar."""
    return msgpack.unpackb(data)


def _check_scalar(value: Any, kind: type, argument: str, path: str) -> None:
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _invalid("has a lone surrogate, which UTF-8 cannot hold", argument, path) from None
    elif kind is int:
        if not _INT_MIN <= value <= _INT_MAX:
            raise _invalid("is an int outside the 64-bit signed range", argument, path)
    elif not (kind is bytes or kind is float or kind is bool or value is None):
        raise _invalid(f"is a {kind.__name__}, which would not come back as one", argument, path)


def _check_container(value: Any, argument: str) -> None:
    # An explicit stack, so that depth is a limit of ours and not of the interpreter.
    stack: list[tuple[Any, str, int]] = [(value, "", 1)]
    while stack:
        container, path, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise _invalid(f"is nested deeper than {MAX_DEPTH}", argument, path)
        if type(container) is dict:
            for key in container:
                if type(key) is not str:
                    raise _invalid(
                        f"has a key of type {type(key).__name__}; keys must be str", argument, path
                    )
                _check_scalar(key, str, argument, f"{path}[{key!r}]")
            items: Any = container.items()
        else:
            items = enumerate(container)
        for name, item in items:
            kind = type(item)
            if kind is list or kind is dict:
                stack.append((item, f"{path}[{name!r}]", depth + 1))
            elif not (kind is float or kind is bool or kind is bytes or item is None):
                if kind is str and item.isascii():
                    continue
                _check_scalar(item, kind, argument, f"{path}[{name!r}]")


def _invalid(problem: str, argument: str, path: str) -> InvalidValueError:
    where = argument + (path if len(path) <= 200 else path[:100] + "..." + path[-97:])
    return InvalidValueError(f"{where} {problem}", argument=argument, path=path)
