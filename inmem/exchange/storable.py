"""JSON text to values that the store keeps exactly, with nothing changed in silence.

Invariant: `restore(convert(v)) == v` for whatever JSON can hold, or `convert`
raises `Unstorable` naming the place. JSON allows three things that a value of
the store does not: integers beyond 64 bits, lone surrogates in strings, and
any depth. The first two are kept in a marked form and told; the third is
refused, as are duplicate keys, of which a reader would see only the last.

    {"$int": "36893488147419103232"}     an integer beyond 64 bits
    {"$utf-8": b"..."}                   a string with lone surrogates
    {"$literal": {...}}                  a dict that looked like one of these
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

MAX_DEPTH: Final = 120  # of a converted value; the store allows 128, events wrap theirs
MAX_BYTES: Final = 15 * 1024 * 1024  # estimated, of one value; the store allows 16 MiB
MAX_FILE_BYTES: Final = 1 << 30  # a file is parsed in memory

_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1
_KINDS: Final[dict[type, str]] = {
    dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"
}
_MARKS: Final = ("$int", "$utf-8", "$literal")


class Unstorable(ValueError):
    """The data cannot be kept as it is; the message says why and where."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        Unstorable: it cannot be read, is empty, is no text, is cut short or
            wrong, repeats a key, or is nested too deeply.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Unstorable(f"larger than {MAX_FILE_BYTES:,} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise Unstorable(f"cannot be read: {error.strerror}") from None
    if not raw.strip():
        raise Unstorable("empty file")
    return parse_json(raw)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, numbered from 0; one is in memory at a time.

    Raises:
        Unstorable: it cannot be read, has no line, or one that is too long.
    """
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_FILE_BYTES):
                if len(line) == MAX_FILE_BYTES:
                    raise Unstorable(f"a line of more than {MAX_FILE_BYTES:,} bytes")
                if line.strip():
                    yield number, line
                    number += 1
    except OSError as error:
        raise Unstorable(f"cannot be read: {error.strerror}") from None
    if not number:
        raise Unstorable("empty file")


def parse_json(raw: bytes) -> Any:
    """What a JSON text holds.

    Raises:
        Unstorable: it is no text, is cut short or wrong, repeats a key, or is
            nested too deeply.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique, parse_int=_parse_int)
    except UnicodeDecodeError as error:
        raise Unstorable(f"not a text file: byte {error.start} is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise Unstorable(
            f"invalid JSON, or cut short: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise Unstorable("nested too deeply to be read") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Unstorable(f"the key {twice!r} is there twice in one object")
    return data


def _parse_int(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        # Python refuses to convert very long digit strings: quadratic time.
        raise Unstorable(f"an integer of {len(digits):,} digits") from None


def convert(value: Any, where: str, told: Callable[[str], None]) -> Any:
    """A copy of parsed JSON that the store keeps exactly; `told` hears what was marked.

    Raises:
        Unstorable: too deep, too big, or a key that has a lone surrogate.
    """
    size = 0

    def walk(item: Any, path: str, depth: int) -> Any:
        nonlocal size
        size += 9
        if depth > MAX_DEPTH:
            raise Unstorable(f"{where}{_cut(path)} is nested deeper than {MAX_DEPTH}")
        if type(item) is dict:
            for key in item:
                if _encoded(key) is None:
                    raise Unstorable(f"{where}{_cut(path)} has a key with a lone surrogate")
            marked = len(item) == 1 and next(iter(item)) in _MARKS
            depth += marked
            items = {key: walk(part, f"{path}[{key!r}]", depth + 1) for key, part in item.items()}
            size += sum(5 + 4 * len(key) for key in items)
            return {"$literal": items} if marked else items
        if type(item) is list:
            return [walk(part, f"{path}[{number}]", depth + 1) for number, part in enumerate(item)]
        if type(item) is int and not _INT_MIN <= item <= _INT_MAX:
            told(f"{where}{_cut(path)}: an integer beyond 64 bits is kept as text")
            return {"$int": str(item)}
        if type(item) is str:
            data = _encoded(item)
            if data is None:
                told(f"{where}{_cut(path)}: a string with lone surrogates is kept as bytes")
                data = item.encode("utf-8", "surrogatepass")
                size += len(data)
                return {"$utf-8": data}
            size += len(data)
        return item

    converted = walk(value, "", 1)
    if size > MAX_BYTES:
        raise Unstorable(f"{where} is too big: about {size:,} bytes, the limit is {MAX_BYTES:,}")
    return converted


def restore(value: Any) -> Any:
    """What `convert` was given."""
    if type(value) is list:
        return [restore(part) for part in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((key, part),) = value.items()
        if key == "$int":
            return int(part)
        if key == "$utf-8":
            return part.decode("utf-8", "surrogatepass")
        if key == "$literal":
            return {name: restore(inner) for name, inner in part.items()}
    return {key: restore(part) for key, part in value.items()}


def _encoded(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def _cut(path: str) -> str:
    return path if len(path) <= 160 else f"{path[:80]}...{path[-77:]}"


def expect(value: Any, kind: type, where: str) -> Any:
    """The value if it is of that kind.

    Raises:
        Unstorable: it is not; the message says what it is, and where.
    """
    if not isinstance(value, kind):
        raise Unstorable(f"{where} is {kind_of(value)}, expected {_KINDS[kind]}")
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "a number")
