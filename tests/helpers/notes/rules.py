"""What a note is: a text of one color under a name, found by color."""

from __future__ import annotations

from typing import Final

import msgpack

NOTE: Final = 0x0E  # the tags, as `TypeTag` would have them
NOTE_BY_COLOR: Final = 0x1E
COLORS: Final = ("blue", "red")


def note_key(prefix: bytes, name: bytes) -> bytes:
    """Where a note is."""
    return b"%b\0%c%b" % (prefix, NOTE, name)


def index_keys(prefix: bytes, name: bytes, payload: bytes) -> list[bytes]:
    """The index key of a note: by its color."""
    _, color = unpack(payload)
    return [b"%b\0%c%b\0%b" % (prefix, NOTE_BY_COLOR, color.encode(), name)]


def pack(text: str, color: str) -> bytes:
    """The payload of a note."""
    data: bytes = msgpack.packb([text, color])
    return data


def unpack(payload: bytes) -> tuple[str, str]:
    """Text and color."""
    text, color = msgpack.unpackb(payload)
    return text, color
