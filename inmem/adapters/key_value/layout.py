"""Where the collections of a store are, and what they look like there.

A collection is a run of its own, with the tag `key_value`, and with the names of its store and its own in
the metadata. So it is destroyed at once, however large it is, and who still writes to it is fenced. Among
the entries that all runs of the agent share:

    key_value/c/<store>/<collection>    {"store", "collection", "run_id", "has_parts"}
    key_value/gone/<run id>             a run that was destroyed, until its data are removed

Names of stores and collections are hashes there. In the run:

    e/=<key>                the entry of a key: {"key", "value"}
    e/#<hash>               the same, of a key that is too long or has a NUL
    l/<token>               where the entry is whose value has these parts
    p/<token>/<number>      parts of long values, see `inmem.adapters.foreign`

A value is JSON, as the serializer makes it: with its times and, by default, with the names of key and
collection. A short one is stored as text, a long one as what names its parts. An entry that expires does so
in the store as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import inmem
from inmem.adapters.foreign import hashed, token_of, unpacked

_COLLECTIONS: Final = "key_value/c/"
GONE: Final = "key_value/gone/"
ENTRIES: Final = "e/"
_PLAIN: Final = "e/="
_HASHED: Final = "e/#"
OWNERS: Final = "l/"
_PLAIN_BYTES: Final = 256  # of a key that is stored as it is; a key of a store has at most 320
JSON: Final = "json"


class Collection(NamedTuple):
    """A collection as a transaction sees it."""

    kv: Any
    has_parts: bool


def collections_prefix(store: str) -> str:
    """Where the collections of a store are named."""
    return f"{_COLLECTIONS}{hashed(store)}/"


def collection_key(store: str, collection: str) -> str:
    """Where a collection is named."""
    return collections_prefix(store) + hashed(collection)


def entry_key(key: str) -> str:
    """Where an entry is.

    Raises:
        InvalidInputError: the key has a lone surrogate.
    """
    if len(utf8_of(key, "key")) <= _PLAIN_BYTES and "\0" not in key:
        return _PLAIN + key
    return _HASHED + hashed(key)


def utf8_of(name: str, argument: str) -> bytes:
    """A name as bytes.

    Raises:
        InvalidInputError: it has a lone surrogate.
    """
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise inmem.InvalidInputError(
            f"{argument} has a lone surrogate at character {error.start}, which UTF-8 cannot hold",
            argument=argument,
        ) from None


def keys_of(kv: Any, limit: int | None) -> list[str]:
    """The keys of a collection: first hashed ones in the order of their hashes, then the others in order."""
    found: list[str] = [entry["key"] for _, entry in kv.list_with_values(_HASHED, limit=limit)]
    left = None if limit is None else limit - len(found)
    return found + [key[len(_PLAIN) :] for key in kv.list(_PLAIN, limit=left)]


def owners_of(stored: dict[str, Any]) -> dict[str, str]:
    """What says which entries have parts."""
    tokens = {key: token_of(entry["value"]) for key, entry in stored.items()}
    return {OWNERS + token: key for key, token in tokens.items() if token is not None}


def json_of(value: Any, read: Callable[[str], Any]) -> str:
    """A stored value, as JSON."""
    return value if isinstance(value, str) else unpacked(value, read)[1].decode("utf-8", "surrogatepass")


def named_tokens(kv: Any) -> frozenset[str]:
    """The tokens of all values that have parts."""
    owners: list[tuple[str, str]] = kv.list_with_values(OWNERS)
    entries = kv.get_many([key for _, key in owners])
    found = (token_of(entry["value"]) for entry in entries.values())
    return frozenset(token for token in found if token is not None)
