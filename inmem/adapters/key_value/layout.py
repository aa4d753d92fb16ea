"""Where the collections of a store are.

A collection is a place of its own, see `inmem.adapters.places`: a run with the tag `key_value`, and with the
names of its store and its own in the metadata. So it is destroyed at once, however large it is, and who
still writes to it is refused. Among the entries that all runs of the agent share, with hashes of the names:

    key_value/c/<store>/<collection>    {"store", "collection", "run_id", "has_parts"}
    key_value/gone/<run id>             a run that was destroyed, until its data are removed

A value is JSON, as the serializer makes it: with its times and, by default, with the names of key and
collection. An entry that expires does so in the store as well.
"""

from __future__ import annotations

from typing import Any, Final

from inmem.adapters.foreign import foreign, hashed
from inmem.adapters.places import PlaceName

_COLLECTIONS: Final = "key_value/c/"
GONE: Final = "key_value/gone/"


def collections_prefix(store: str) -> str:
    """Where the collections of a store are named."""
    return f"{_COLLECTIONS}{hashed(store)}/"


def place_name(store: str, collection: str) -> PlaceName:
    """What the place of a collection is called."""
    key = collections_prefix(store) + hashed(collection)
    return PlaceName(key, "key_value", {"store": store, "collection": collection})


def collection_in(stored: Any) -> str:
    """The name of the collection in what is stored of it.

    Raises:
        CorruptionError: no adapter has stored it.
    """
    match stored:
        case {"collection": str() as name}:
            return name
    raise foreign("the entry of a collection", stored)


def forget(txn: Any, named: dict[str, Any]) -> list[str]:
    """Collections are not there any more; the runs that they had, which are marked until they are removed."""
    for key, each in named.items():
        txn.kv.discard(key)
        txn.kv.put(GONE + each["run_id"], {"store": each.get("store"), "collection": each.get("collection")})
    return [each["run_id"] for each in named.values()]
