"""What a session does in the store: each piece is a function of one transaction, for threads and loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import inmem
from inmem.adapters.foreign import Packed, clear_parts
from inmem.adapters.openai_agents.layout import (
    ITEMS,
    PARTS,
    STATE,
    TAG,
    UNREADABLE,
    indices_in,
    item_key,
    loaded,
    stored_as,
)

MANY: Final = 3000  # items that one commit adds, at most
SWEPT: Final = 1000  # and that it removes beside

Entry = tuple[str, Any]
Prune = Callable[[Any], bool]


class Batch(NamedTuple):
    """Items that one commit adds, and the parts of the long ones, which are stored before."""

    entries: list[Any]
    parts: dict[str, bytes]


class Suffix(NamedTuple):
    """The newest entries of a session, and whether there are no others."""

    entries: list[Entry]
    items: list[Any]
    is_complete: bool


def batches_of(items: Sequence[Any]) -> list[Batch]:
    """The items, as they are stored. More than `MANY` take several commits.

    Raises:
        InvalidValueError: an item cannot be JSON.
    """
    made = []
    for start in range(0, len(items), MANY):
        packed = Packed()
        some = items[start : start + MANY]
        entries = [stored_as(item, f"items[{start + n}]", packed) for n, item in enumerate(some)]
        made.append(Batch(entries, dict(packed.parts)))
    return made


class SessionWork:
    """The work of one session, in the transactions of its run."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id

    # --- reading --------------------------------------------------------------------------

    def get(self, limit: int | None) -> Callable[[Any], list[Any]]:
        """The newest items, the oldest of them first; all without a limit."""

        def get(txn: Any) -> list[Any]:
            found: list[Any] = []
            for _, item in _newest_first(txn, limit):
                if item is not UNREADABLE:
                    found.append(item)
                    if len(found) == limit:
                        break
            return found[::-1]

        return get

    def suffix(self, limit: int) -> Callable[[Any], Suffix]:
        """The newest entries, the oldest of them first."""

        def suffix(txn: Any) -> Suffix:
            found = []
            for each in _newest_first(txn, limit + 1):
                found.append(each)
                if len(found) > limit:
                    break
            some = found[:limit][::-1]
            return Suffix([entry for entry, _ in some], [item for _, item in some], len(found) <= limit)

        return suffix

    # --- writing --------------------------------------------------------------------------

    def put_parts(self, batch: Batch) -> Iterator[Callable[[Any], None]]:
        """Store the parts of long items, one in each commit: before what names them."""
        for key, data in batch.parts.items():

            def put(txn: Any, key: str = key, data: bytes = data) -> None:
                self._begun(txn)
                txn.kv.put(key, data)

            yield put

    def add(self, batch: Batch) -> Callable[[Any], bool | None]:
        """Add items. None: their parts are gone, since the session was cleared; nothing is done."""

        def add(txn: Any) -> bool | None:
            if not _has_parts(txn, batch):
                return None
            first, after = self._begun(txn)
            self._put(txn, first, after, batch)
            return True

        return add

    def _begun(self, txn: Any) -> tuple[int, int]:
        """First and next index of the session, which is made if need be."""
        state = txn.kv.get(STATE)
        if state is not None:
            return indices_in(state)
        txn.runs.create_run(tags=[TAG], metadata={"session_id": self._session_id}, exist_ok=True)
        txn.kv.put(STATE, {"first": 0, "next": 0})
        return 0, 0

    def _put(self, txn: Any, first: int, after: int, batch: Batch) -> None:
        txn.kv.put_many({item_key(after + n): entry for n, entry in enumerate(batch.entries)})
        txn.kv.put(STATE, {"first": first, "next": after + len(batch.entries)})

    def pop(self, txn: Any) -> Any:
        """Remove the newest item, and what is unreadable after it; None if there is none."""
        for removed, ((key, stored), item) in enumerate(_newest_first(txn, 1), 1):
            _remove(txn, key, stored)
            if item is not UNREADABLE:
                return item
            if removed == MANY:
                raise inmem.LimitError(
                    f"the newest {MANY} entries of session {self._session_id!r} are no items",
                    what="entries", size=removed, limit=MANY, hint="Look at them: inmem kv ls.",
                )
        return None

    def clear(self, txn: Any) -> bool:
        """Remove all items from sight; whether some of their entries are left to be swept."""
        if txn.kv.get(STATE) is None:
            return False
        _, after = self._begun(txn)
        txn.kv.put(STATE, {"first": after, "next": after})
        return _sweep(txn, after)

    def replace_all(self, batch: Batch) -> Callable[[Any], bool | None]:
        """Items in place of all others; whether entries are left to be swept. None: see `add`."""

        def replace_all(txn: Any) -> bool | None:
            if not _has_parts(txn, batch):
                return None
            _, after = self._begun(txn)
            self._put(txn, after, after, batch)
            return _sweep(txn, after, batch)

        return replace_all

    def sweep(self, txn: Any) -> bool:
        """Remove entries of before the session was cleared; whether more are left."""
        first, _ = self._begun(txn)
        return _sweep(txn, first, None)

    def replace(
        self, expected: Sequence[Entry], batch: Batch, prune: Prune | None
    ) -> Callable[[Any], bool | None]:
        """Items in place of the newest ones, if these are as expected. None: see `add`.

        `prune` tells of the oldest items, one after the other, whether they go too.
        """

        def replace(txn: Any) -> bool | None:
            now = []
            for entry, _ in _newest_first(txn, len(expected)):
                now.append(entry)
                if len(now) == len(expected):
                    break
            if now[::-1] != [*expected]:
                return False
            if not _has_parts(txn, batch):
                return None
            for key, stored in expected:
                _remove(txn, key, stored)
            first, after = self._begun(txn)
            if prune is not None:
                for key, stored in _oldest_first(txn, first, expected[0][0]):
                    item = loaded(stored, txn.kv.get)
                    if item is UNREADABLE or not prune(item):
                        break
                    _remove(txn, key, stored)
            self._put(txn, first, after, batch)
            return True

        return replace


def _newest_first(txn: Any, page: int | None) -> Iterator[tuple[Entry, Any]]:
    """Entries with their items, from the newest back. So many are read at once."""
    state = txn.kv.get(STATE)
    if state is None or page == 0:
        return
    least, after = item_key(indices_in(state)[0]), None
    while True:
        entries = txn.kv.list_with_values(ITEMS, limit=page, reverse=True, start_after=after)
        for key, stored in entries:
            if key < least:
                return
            yield (key, stored), loaded(stored, txn.kv.get)
        if page is None or len(entries) < page:
            return
        after = entries[-1][0]


def _oldest_first(txn: Any, first: int, end: str) -> Iterator[Entry]:
    """At most `SWEPT` of the oldest entries, before a key."""
    keys = txn.kv.list_with_values(ITEMS, limit=SWEPT, start_after=item_key(first - 1) if first else None)
    return ((key, stored) for key, stored in keys if key < end)


def _remove(txn: Any, key: str, stored: Any) -> None:
    """Remove an entry with its parts."""
    txn.kv.discard(key)
    clear_parts(txn.kv, stored)


def _has_parts(txn: Any, batch: Batch) -> bool:
    """Whether the parts of a batch are there: clearing removes those that nothing names yet."""
    return all(txn.kv.exists(key) for key in batch.parts)


_NO_BATCH: Final = Batch([], {})


def _sweep(txn: Any, first: int, kept: Batch | None = _NO_BATCH) -> bool:
    """Remove entries of items before an index; whether more are left.

    Without items from there on but those `kept`, parts go that nothing else
    names: of these items, and of programs that died before they named them.
    """
    keys = [key for key in txn.kv.list(ITEMS, limit=SWEPT) if key < item_key(first)]
    for key in keys:
        txn.kv.discard(key)
    if kept is not None:
        for key in txn.kv.list(PARTS, limit=SWEPT):
            if key not in kept.parts:
                txn.kv.discard(key)
    return len(keys) == SWEPT
