"""Where the items of `InmemStore` are, and what they look like there.

All are entries of one run, `langgraph-store` unless the program names another:

    i/<label>.<label>..<key>   {"namespace", "key", "value", "created_at", "updated_at"}, and if there are
                               any "ttl_minutes" and "vectors", how many vectors belong to it
    v/<label>.<label>..<key>   the vectors of an item: of each the bytes of its unit vector, as float32

Labels have no dots and are never empty, so the first two dots end them: all
items below a namespace are one range. A long label, a long key and the end of
a namespace of many labels are stored as `~` and a hash; so the item says its
namespace and key itself. Values are stored as they are, so they can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from langgraph.store.base import Item, SearchItem

from inmem.adapters.foreign import hashed, readable

ITEMS: Final = "i/"
VECTORS: Final = "v/"
_HASHED: Final = "~"
_END: Final = ".."
_AFTER_END: Final = "./"  # the text that comes right after all that begin with two dots
_LABEL_BYTES: Final = 48
_LABELS_BYTES: Final = 160  # of all labels of a namespace; with two hashes, 48 + 33 + 33 + 4 more at most
_KEY_BYTES: Final = 96

Namespace = tuple[str, ...]


def place_of_item(namespace: Namespace, key: str) -> str:
    """Where an item and its vectors are, below `ITEMS` and `VECTORS`."""
    return "".join((".".join(_labels(namespace)), _END, readable(key, _KEY_BYTES, "")))


def begin_of(namespace: Namespace) -> str:
    """What the places of all items of a namespace, and of those below it, begin with.

    Others may begin so too: see whether `is_below` before you take an item.
    """
    labels = _labels(namespace)
    if labels and labels[-1].startswith(_HASHED * 2):
        labels = labels[:-1]  # the hash of all others, of which there are more here than in the items below
    return "".join(label + "." for label in labels)


def is_below(namespace: Namespace, prefix: Namespace) -> bool:
    """Whether a namespace is another one, or below it."""
    return namespace[: len(prefix)] == prefix


def namespace_at(place: str) -> Namespace | None:
    """The namespace of a place; None if only the item there tells."""
    labels = place.partition(_END)[0].split(".")
    return None if any(label.startswith(_HASHED) for label in labels) else tuple(filter(None, labels))


def after_namespace(place: str) -> str:
    """A text after all places of the namespace that a place is in, and before those of the next one."""
    return place.partition(_END)[0] + _AFTER_END


def item_of(record: dict[str, Any]) -> Item:
    """An item as LangGraph has it."""
    return Item(
        value=record["value"], key=record["key"], namespace=tuple(record["namespace"]),
        created_at=datetime.fromisoformat(record["created_at"]),
        updated_at=datetime.fromisoformat(record["updated_at"]),
    )


def found_item(record: dict[str, Any], score: float | None) -> SearchItem:
    """An item that was searched for."""
    return SearchItem(
        tuple(record["namespace"]), record["key"], record["value"],
        datetime.fromisoformat(record["created_at"]), datetime.fromisoformat(record["updated_at"]), score,
    )


def _labels(namespace: Namespace) -> Sequence[str]:
    found = [*_short_labels(namespace)]
    return found if len(found) == len(namespace) else [*found, _HASHED * 2 + hashed("\0".join(namespace))]


def _short_labels(namespace: Namespace) -> Iterator[str]:
    """The labels as far as there is room for them."""
    left = _LABELS_BYTES
    for label in namespace:
        short = readable(label, _LABEL_BYTES, "")
        left -= len(short.encode()) + 1
        if left < 0:
            return
        yield short
