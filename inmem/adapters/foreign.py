"""What all adapters share: names and values of others, which know none of the limits of this store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

PART_BYTES: Final = 4 * 1024 * 1024  # of a value that is stored in parts
WHOLE_BYTES: Final = 8 * 1024 * 1024  # what is longer is stored so


def hashed(name: str) -> str:
    """A name of any length and any characters as 32 that a key can have. Keep the original in the value.

    It is BLAKE2b of 16 bytes: no two names of a store have the same.
    """
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Parts:
    """Long values, each in several entries of its own before the entry that names them.

    An entry of a value is `[type, bytes]`, or of a long one `[type, token, number of parts]`; its parts
    are under `p/token/number`. Parts that nothing names are of a program that died in the middle.
    """

    @staticmethod
    def split(kind: str, data: bytes) -> tuple[list[Any], Iterator[tuple[str, bytes]]]:
        """What is stored for a value, and the parts that must be stored before."""
        if len(data) <= WHOLE_BYTES:
            return [kind, data], iter(())
        token = os.urandom(12).hex()
        starts = range(0, len(data), PART_BYTES)
        parts = ((part_key(token, n), data[at : at + PART_BYTES]) for n, at in enumerate(starts))
        return [kind, token, len(starts)], parts

    @staticmethod
    def joined(entry: list[Any], read: Callable[[str], Any]) -> tuple[str, bytes]:
        """Type and bytes of a value; `read` gives the part under a key."""
        if len(entry) == 2:
            return entry[0], entry[1]
        kind, token, count = entry
        return kind, b"".join(read(part_key(token, n)) for n in range(count))


def part_key(token: str, number: int) -> str:
    """Where a part of a value is."""
    return f"p/{token}/{number:06}"
