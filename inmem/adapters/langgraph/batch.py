"""A batch of the store's operations: it reads what is there, then writes, each as one transaction.

Invariant: operations are checked, and values embedded, before anything is
read. Of several puts of one item the last one is stored. What is written does
not depend on what was read, but for the time when an item was created. So
writing reads nothing, and batches that write the same items never conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)

import inmem
from inmem.adapters.langgraph.items import (
    ITEMS,
    VECTORS,
    Namespace,
    after_namespace,
    begin_of,
    found_item,
    is_below,
    item_of,
    namespace_at,
    place_of_item,
)
from inmem.adapters.langgraph.matching import (
    check_condition,
    check_filter,
    literal_prefix,
    matches,
    namespace_matches,
)
from inmem.adapters.langgraph.vectors import ItemEmbedding, cosines

_PAGE: Final = 256  # entries that a scan reads at once
_VECTORS_PAGE: Final = 1024
_DEEPEST: Final = 128  # of a value
_SECONDS_A_MINUTE: Final = 60.0

Record = dict[str, Any]
Found = tuple[str, Record, float | None]  # place, item, score


class StoreBatch:
    """Operations of one batch, and what they need to be embedded.

    Raises:
        InvalidInputError: an operation is wrong; the whole batch is refused.
        InvalidNamespaceError: a label of a namespace is empty, has a dot or is no text.
    """

    def __init__(self, ops: Iterable[Op], embedding: ItemEmbedding | None) -> None:
        self._ops = [_checked(op) for op in ops]
        self._embedding = embedding
        self._puts = {
            place_of_item(op.namespace, op.key): op for op in self._ops if isinstance(op, PutOp)
        }
        self._texts = {
            place: embedding.texts(op) if embedding else [] for place, op in self._puts.items()
        }
        self._values = {
            place: _plain(op.value) for place, op in self._puts.items() if op.value is not None
        }
        self._now = datetime.now(UTC).isoformat()
        self._vectors: dict[str, bytes] = {}
        self._asked: dict[str, bytes] = {}
        self._before: dict[str, Record] = {}

    @property
    def puts(self) -> bool:
        """Whether it stores items."""
        return bool(self._values)

    @property
    def writes(self) -> bool:
        """Whether it stores or deletes items."""
        return bool(self._puts)

    def texts(self) -> list[str]:
        """What is to be embedded of items, each once."""
        return list(dict.fromkeys(text for texts in self._texts.values() for text in texts))

    def queries(self) -> list[str]:
        """What is to be embedded of searches, each once."""
        wanted = [op.query for op in self._ops if isinstance(op, SearchOp) and op.query]
        return list(dict.fromkeys(wanted)) if self._embedding else []

    def embedded(self, texts: list[str], vectors: Any, queries: list[str], of_queries: Any) -> None:
        """Take what came of embedding."""
        if self._embedding:
            self._vectors = self._embedding.packed(texts, vectors)
            self._asked = self._embedding.packed(queries, of_queries)

    def read(self, txn: Any) -> list[Result]:
        """What the operations find; times to live begin anew."""
        kv = txn.kv
        wanted = [*self._values] + [  # a deletion needs no look
            place_of_item(op.namespace, op.key) for op in self._ops if isinstance(op, GetOp)
        ]
        found = kv.get_many([ITEMS + place for place in wanted])
        self._before = {key[len(ITEMS) :]: record for key, record in found.items()}
        return [self._read(kv, op) for op in self._ops]

    def write(self, txn: Any) -> None:
        """Store and delete items."""
        for place, op in self._puts.items():
            self._put(txn.kv, place, op)

    def _read(self, kv: Any, op: Op) -> Result:
        if isinstance(op, GetOp):
            return self._get(kv, op)
        if isinstance(op, SearchOp):
            return self._search(kv, op)
        if isinstance(op, ListNamespacesOp):
            return _namespaces(kv, op)
        return None

    def _get(self, kv: Any, op: GetOp) -> Item | None:
        place = place_of_item(op.namespace, op.key)
        record = self._before.get(place)
        if record is None:
            return None
        if op.refresh_ttl:
            _refresh(kv, place, record)
        return item_of(record)

    # --- searching --------------------------------------------------------------------

    def _search(self, kv: Any, op: SearchOp) -> list[SearchItem]:
        if op.query and self._embedding:
            candidates = _nearest(kv, op.namespace_prefix, self._asked[op.query])
        else:
            at_once = _PAGE if op.filter else min(_PAGE, op.offset + op.limit)
            candidates = _all(kv, op.namespace_prefix, max(1, at_once))
        wanted = (each for each in candidates if not op.filter or matches(each[1]["value"], op.filter))
        found = [*islice(wanted, op.offset, op.offset + op.limit)] if op.limit else []
        for place, record, _ in found:
            if op.refresh_ttl:
                _refresh(kv, place, record)
        return [found_item(record, score) for _, record, score in found]

    # --- writing ------------------------------------------------------------------------

    def _put(self, kv: Any, place: str, op: PutOp) -> None:
        if op.value is None:
            kv.discard(ITEMS + place)
            kv.discard(VECTORS + place)
            return
        before = self._before.get(place)
        vectors = [self._vectors[text] for text in self._texts[place]]
        record: Record = {
            "namespace": [*op.namespace], "key": op.key, "value": self._values[place],
            "created_at": self._now if before is None else before["created_at"], "updated_at": self._now,
        }
        if op.ttl is not None:
            record["ttl_minutes"] = op.ttl
        if vectors:
            record["vectors"] = len(vectors)
        else:  # of what was there before
            kv.discard(VECTORS + place)
        _store(kv, place, record, vectors)


def _store(kv: Any, place: str, record: Record, vectors: list[bytes]) -> None:
    minutes = record.get("ttl_minutes")
    ttl_s = None if minutes is None else minutes * _SECONDS_A_MINUTE
    kv.put(ITEMS + place, record, ttl=ttl_s)
    if vectors:
        kv.put(VECTORS + place, vectors, ttl=ttl_s)


def _refresh(kv: Any, place: str, record: Record) -> None:
    """Let the time to live of an item begin anew, if it has one."""
    if "ttl_minutes" in record:
        _store(kv, place, record, kv.get(VECTORS + place, []) if "vectors" in record else [])


# --- looking through items ----------------------------------------------------------------


def _scan(kv: Any, kind: str, prefix: Namespace, page: int) -> Iterator[tuple[str, Any]]:
    """Places and entries of a kind; more than those below a namespace if it is long."""
    begin = kind + begin_of(prefix)
    after = None
    while True:
        found = kv.list_with_values(begin, start_after=after, limit=page)
        for key, entry in found:
            yield key[len(kind) :], entry
        if len(found) < page:
            return
        after, page = found[-1][0], max(page, _PAGE)


def _all(kv: Any, prefix: Namespace, page: int) -> Iterator[Found]:
    """Items in order of namespace and key."""
    for place, record in _scan(kv, ITEMS, prefix, page):
        if is_below(tuple(record["namespace"]), prefix):
            yield place, record, None


def _nearest(kv: Any, prefix: Namespace, query: bytes) -> Iterator[Found]:
    """Items with vectors, the nearest first; then those that have none."""
    scores: dict[str, float] = {}
    places: list[str] = []
    vectors: list[bytes] = []

    def score() -> None:
        for place, near in zip(places, cosines(query, vectors), strict=True):
            scores[place] = max(near, scores.get(place, near))
        places.clear()
        vectors.clear()

    for place, of_item in _scan(kv, VECTORS, prefix, _PAGE):
        places += [place] * len(of_item)
        vectors += of_item
        if len(vectors) >= _VECTORS_PAGE:
            score()
    score()
    for place in sorted(scores, key=lambda each: (-scores[each], each)):
        record = kv.get(ITEMS + place)
        if record is not None and is_below(tuple(record["namespace"]), prefix):
            yield place, record, scores[place]
    yield from (each for each in _all(kv, prefix, _PAGE) if each[0] not in scores)


def _namespaces(kv: Any, op: ListNamespacesOp) -> list[Namespace]:
    conditions = tuple(op.match_conditions or ())
    found = {
        namespace[: op.max_depth] for namespace in _each_namespace(kv, literal_prefix(conditions))
        if all(namespace_matches(namespace, condition) for condition in conditions)
    }
    return sorted(found)[op.offset : op.offset + op.limit]


def _each_namespace(kv: Any, prefix: Namespace) -> Iterator[Namespace]:
    """All namespaces below one. What a namespace holds beyond a page is passed over."""
    begin = ITEMS + begin_of(prefix)
    after, last = None, None
    while True:
        keys = kv.list(begin, start_after=after, limit=_PAGE)
        for key in keys:
            past = after_namespace(key)
            if past != last:
                last = past
                yield namespace_at(key[len(ITEMS) :]) or tuple(kv.get(key)["namespace"])
        if len(keys) < _PAGE:
            return
        after = last


# --- checks -----------------------------------------------------------------------------------


def _checked(op: Op) -> Op:
    """An operation with tuples for what may have come as lists."""
    if isinstance(op, GetOp | PutOp):
        op = op._replace(namespace=tuple(op.namespace))
    elif isinstance(op, SearchOp):
        op = op._replace(namespace_prefix=tuple(op.namespace_prefix))
    elif not isinstance(op, ListNamespacesOp):
        raise inmem.InvalidInputError(f"there is no operation {type(op).__name__}", argument="ops")
    validate_op_namespace(op)
    _CHECKS[type(op)](op)
    return op


def _check_get(op: GetOp) -> None:
    _check_key(op.key)


def _check_put(op: PutOp) -> None:
    _check_key(op.key)
    if op.value is not None and not isinstance(op.value, Mapping):
        raise _wrong(f"value must be a mapping or None, not {type(op.value).__name__}", "value")
    if op.ttl is not None and not (isinstance(op.ttl, int | float) and op.ttl > 0):
        raise _wrong(f"ttl must be more than 0 minutes, not {op.ttl!r}", "ttl")


def _check_search(op: SearchOp) -> None:
    _check_page(op.limit, op.offset)
    if op.filter:
        check_filter(op.filter)


def _check_listing(op: ListNamespacesOp) -> None:
    _check_page(op.limit, op.offset)
    if op.max_depth is not None and op.max_depth < 1:
        raise _wrong(f"max_depth must be 1 or more, not {op.max_depth!r}", "max_depth")
    for condition in op.match_conditions or ():
        check_condition(condition)


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise _wrong(f"key must be str, not {type(key).__name__}", "key")


def _check_page(limit: int, offset: int) -> None:
    for name, number in (("limit", limit), ("offset", offset)):
        if number < 0:
            raise _wrong(f"{name} must be 0 or more, not {number!r}", name)


def _wrong(problem: str, argument: str) -> inmem.InvalidInputError:
    return inmem.InvalidInputError(problem, argument=argument)


_CHECKS: Final[dict[type, Callable[[Any], None]]] = {
    GetOp: _check_get, PutOp: _check_put, SearchOp: _check_search, ListNamespacesOp: _check_listing,
}


def _plain(value: Any, left: int = _DEEPEST) -> Any:
    """Dicts and lists for what JSON has as such. What is none of them is left to the store to refuse."""
    if left and isinstance(value, Mapping):
        return {name: _plain(each, left - 1) for name, each in value.items()}
    if left and isinstance(value, list | tuple):
        return [_plain(each, left - 1) for each in value]
    return value
