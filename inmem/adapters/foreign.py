"""What all adapters share: names and values of others, which know none of the limits of this store.

Names become hashes here, or run ids in `inmem.RunId.from_external`. The original is kept beside the
data. What lies under a prefix is removed by `kv.clear`: in one commit up to 4,000 entries, and outside
of transactions in batches of that many.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Collection
from typing import Any, Final

import inmem

PART_BYTES: Final = 4 * 1024 * 1024  # of a value that is stored in parts
WHOLE_BYTES: Final = 8 * 1024 * 1024  # of the values of one commit: what does not fit is stored so
_PARTS: Final = "p/"
_HASHED: Final = "~"  # begins what stands for a name
_TOKEN_CHARS: Final = 100  # at most


def hashed(name: str) -> str:
    """A name of any length and any characters as 32 that a key can have. Keep the original in the value.

    It is BLAKE2b of 16 bytes: no two names of a store have the same.
    """
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=4096)
def readable(name: str, most: int, without: str = "/") -> str:
    """A name as a part of a key: itself if it is short, else `~` and its hash, 33 characters.

    It is itself if it has at most `most` bytes, does not begin with `~`, and has no NUL and none of the
    characters that part it from others. So no two names have the same, and each part is of bounded size.
    """
    try:
        is_short = len(name.encode()) <= most
    except UnicodeEncodeError:  # half of a surrogate pair
        is_short = False
    is_itself = is_short and name[:1] != _HASHED and not any(each in name for each in "\0" + without)
    return name if is_itself else _HASHED + hashed(name)


class Packed:
    """Values of one commit as they are stored: `[type, bytes]`, or `[type, token, number of parts]`.

    The parts of a long one are entries of their own, under `p/token/number`, and must be stored before
    what names them. Parts that nothing names are of a program that died in the middle, or is still in the
    middle of it. So who sweeps them may take the second for the first; `are_there` tells. Tokens
    start with `area`.
    """

    def __init__(self, area: str = "") -> None:
        self.parts: list[tuple[str, bytes]] = []
        self._area = area
        self._left = WHOLE_BYTES

    def add(self, kind: str, data: bytes) -> list[Any]:
        """What is stored for a value."""
        if len(data) <= self._left:
            self._left -= len(data)
            return [kind, data]
        token = self._area + os.urandom(12).hex()
        starts = range(0, len(data), PART_BYTES)
        self.parts += [(part_key(token, n), data[at : at + PART_BYTES]) for n, at in enumerate(starts)]
        return [kind, token, len(starts)]

    def are_there(self, kv: Any) -> bool:
        """Whether all parts are still stored. Ask in the transaction that names them.

        It then conflicts with whoever removes them meanwhile. If they are not there, store them again.
        """
        return all(kv.exists(key) for key, _ in self.parts)


def unpacked(entry: Any, read: Callable[[str], Any]) -> tuple[str, bytes]:
    """Type and bytes of a stored value; `read` gives the part under a key.

    Raises:
        CorruptionError: it is none, or a part is missing.
    """
    match entry:
        case [str() as kind, bytes() as data]:
            return kind, data
        case [str() as kind, str() as token, int() as count] if _is_token(token):
            parts: list[bytes] = []
            while len(parts) < count:
                part = read(part_key(token, len(parts)))
                if type(part) is not bytes:
                    raise foreign(f"part {len(parts)} of {count}", part)
                parts.append(part)
            return kind, b"".join(parts)
    raise foreign("a value", entry)


def foreign(what: str, found: object) -> inmem.CorruptionError:
    """What is raised where something else is stored than an adapter has put there."""
    shown = "missing" if found is None else f"{found!r:.80}"
    return inmem.CorruptionError(
        f"{what} is {shown}, which no adapter stores",
        hint="Another program has changed it: look at it with `inmem kv`, and delete what is left.",
    )


def part_key(token: str, number: int) -> str:
    """Where a part of a value is."""
    return f"{_PARTS}{token}/{number:06}"


def part_keys(entry: list[Any]) -> list[str]:
    """Where the parts of a value are that is stored so."""
    _, token, count = entry
    return [part_key(token, n) for n in range(count)]


def token_of(entry: Any) -> str | None:
    """The token of a stored value that has parts; None if it has none."""
    match entry:
        case [str(), str() as token, int()] if _is_token(token):
            return token
    return None


def _is_token(text: str) -> bool:
    return 0 < len(text) <= _TOKEN_CHARS and text.isascii() and text.isprintable() and "/" not in text


def clear_parts(kv: Any, entry: Any) -> None:
    """Remove the parts of a stored value, if it has some. It reads nothing, so it never conflicts."""
    token = token_of(entry)
    if token is not None:
        kv.clear(f"{_PARTS}{token}/")


def sweep_parts(kv: Any, named: Collection[str]) -> None:
    """Remove, in a transaction, the parts that have none of these tokens.

    It conflicts with whoever stores parts meanwhile. It may take away parts that are about to be named:
    see `Packed.are_there`.
    """
    for key in kv.list(_PARTS):
        if key.split("/")[1] not in named:
            kv.discard(key)
