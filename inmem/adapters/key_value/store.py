"""The store of py-key-value: `InmemStore`. See `layout` for what is stored.

Invariant: what a call puts or deletes is one commit, and what a call reads is of one version. A call
finds the collection's run first. Who destroys the collection meanwhile closes that run, so what would be
put there is refused, and the call begins again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, TypeVar

from key_value.aio._utils.serialization import SerializationAdapter
from key_value.aio.stores.base import (
    SEED_DATA_TYPE,
    BaseContextManagerStore,
    BaseCullStore,
    BaseDestroyCollectionStore,
    BaseDestroyStore,
    BaseEnumerateCollectionsStore,
    BaseEnumerateKeysStore,
    ManagedEntry,
)

import inmem
import inmem.aio
from inmem.adapters.key_value.layout import GONE, collection_in, collections_prefix, forget, place_name
from inmem.adapters.places import (
    NamedPlace,
    PlaceEntries,
    PlaceName,
    entry_key,
    named_in,
    unnamed,
    utf8_of,
    value_in,
)

T = TypeVar("T")

_DESTROYED: Final = 1000  # collections that one commit destroys


class InmemStore(
    BaseContextManagerStore, BaseEnumerateKeysStore, BaseEnumerateCollectionsStore,
    BaseDestroyCollectionStore, BaseDestroyStore, BaseCullStore,
):  # fmt: skip
    """A store of py-key-value in a store of inmem, for many processes and many event loops.

    `store` is a path or URL, as `inmem.open` takes it, or an `AsyncDatabase`.
    A path is opened at the first use, in the event loop of that time, and
    closed by `close` or the end of `async with`. An `AsyncDatabase` stays
    open. Every store of the same `name` in the same namespace has the same
    collections. `put_many` and `delete_many` are one commit, `get_many` and
    `ttl_many` read one version. Names and values may have any length; a
    commit has at most about 9,000 entries. Cost: about 30 µs for `get`, one
    round trip for `put`.

    >>> import asyncio, inmem.aio
    >>> from inmem.adapters.key_value import InmemStore
    >>> async def main():
    ...     async with inmem.aio.open() as db, InmemStore(db) as store:
    ...         await store.put("user:7", {"name": "Ada"}, collection="profiles", ttl=3600)
    ...         return await store.get("user:7", collection="profiles"), await store.collections()
    >>> asyncio.run(main())
    ({'name': 'Ada'}, ['profiles'])

    Raises:
        InvalidInputError: an argument is wrong.
        LimitError: a call has more than one commit can hold; nothing is stored.
        InvariantError: it is used in another event loop than the first one.
        Other errors of `inmem`, as its own calls raise them.
    """

    def __init__(
        self, store: inmem.aio.AsyncDatabase | str | os.PathLike[str], *, name: str = "default",
        default_collection: str | None = None, seed: SEED_DATA_TYPE | None = None,
        serialization_adapter: SerializationAdapter | None = None,
    ) -> None:
        if not isinstance(store, inmem.aio.AsyncDatabase | str | os.PathLike):
            raise inmem.InvalidInputError(
                f"store must be an AsyncDatabase, a path or a URL, not {type(store).__name__}",
                argument="store", hint="Open it with inmem.aio.open(path), or give the path.",
            )
        if not isinstance(name, str) or not name:
            raise inmem.InvalidInputError("name must be a str with something in it", argument="name")
        utf8_of(name, "name")
        self.name = name
        self._place = store
        self._opened = store if isinstance(store, inmem.aio.AsyncDatabase) else None
        super().__init__(
            default_collection=default_collection, seed=seed, stable_api=True,
            serialization_adapter=serialization_adapter, client_provided_by_user=self._opened is not None,
        )

    def __repr__(self) -> str:
        return f"InmemStore({self._place!r}, name={self.name!r})"

    async def _setup(self) -> None:
        if self._opened is None:
            assert not isinstance(self._place, inmem.aio.AsyncDatabase)
            self._opened = await self._exit_stack.enter_async_context(inmem.aio.open(self._place))
        self._shared = self._opened.shared("agent")  # making it takes longer than reading from it

    async def _cleanup_failed_setup(self) -> None:
        await super()._cleanup_failed_setup()
        if not self._client_provided_by_user:
            self._opened = None

    async def _setup_collection(self, *, collection: str) -> None:
        utf8_of(collection, "collection")

    def _db(self) -> inmem.aio.AsyncDatabase:
        assert self._opened is not None, "every call of the base class sets up the store first"
        return self._opened

    async def _do(self, fn: Callable[[Any], T]) -> T:
        db = self._db()
        result: T = await db.transact(self._shared, fn)
        return result

    async def _at(self, name: PlaceName, fn: Callable[[Any], T]) -> T:
        """Do something at a collection. If its run was deleted behind its back, it gets another one."""
        while True:
            try:
                return await self._do(fn)
            except inmem.RunDeletedError as error:
                await self._do(unnamed(name, error.run_id))

    def _name(self, collection: str) -> PlaceName:
        return place_name(self.name, collection)

    # --- reading ------------------------------------------------------------------------------

    async def _get_managed_entry(self, *, collection: str, key: str) -> ManagedEntry | None:
        # Two reads without a transaction. A collection that is destroyed between them was empty for a moment.
        db = self._db()
        named = named_in(await self._shared.kv.get(self._name(collection).key))
        entry = None if named is None else await db.kv.get(named["run_id"], entry_key(key))
        if entry is None:
            return None
        value = value_in(entry)
        if isinstance(value, list):
            [found] = await self._get_managed_entries(collection=collection, keys=[key])  # of one version
            return found
        return self._loaded(value)

    def _loaded(self, value: str | bytes) -> ManagedEntry:
        return self._serialization_adapter.load_json(json_str=str(value))

    async def _get_managed_entries(
        self, *, collection: str, keys: Sequence[str]
    ) -> list[ManagedEntry | None]:
        stored_at, name = [entry_key(key) for key in keys], self._name(collection)

        def read(txn: Any) -> dict[str, str | bytes]:
            place = NamedPlace.found(txn, name)
            return {} if place is None else place.values(stored_at)

        found = await self._at(name, read)
        return [self._loaded(found[key]) if key in found else None for key in stored_at]

    async def _get_collection_keys(self, *, collection: str, limit: int | None = None) -> list[str]:
        """All keys of one version, or the first ones of them."""
        name = self._name(collection)

        def read(txn: Any) -> list[str]:
            place = NamedPlace.found(txn, name)
            return [] if place is None else place.names(limit)

        return await self._at(name, read)

    async def _get_collection_names(self, *, limit: int | None = None) -> list[str]:
        """The names of all collections, in the order of their hashes; empty ones too."""
        found = await self._do(
            lambda txn: txn.kv.list_with_values(collections_prefix(self.name), limit=limit)
        )
        return [collection_in(stored) for _, stored in found]

    # --- writing ------------------------------------------------------------------------------

    async def _put_managed_entry(self, *, collection: str, key: str, managed_entry: ManagedEntry) -> None:
        await self._put(collection, {key: managed_entry}, managed_entry.ttl)

    async def _put_managed_entries(
        self, *, collection: str, keys: Sequence[str], managed_entries: Sequence[ManagedEntry],
        ttl: float | None, created_at: datetime, expires_at: datetime | None,
    ) -> None:  # fmt: skip
        """One commit; of a key that is given twice the last value."""
        await self._put(collection, dict(zip(keys, managed_entries, strict=True)), ttl)

    async def _put(self, collection: str, entries: dict[str, ManagedEntry], ttl: float | None) -> None:
        if not entries:
            return
        dump, name = self._serialization_adapter.dump_json, self._name(collection)
        texts = {key: dump(entry=entry, key=key, collection=collection) for key, entry in entries.items()}
        prepared = PlaceEntries(texts, ttl)
        if not prepared.is_long and await self._put_at_once(name, prepared):
            return
        pieces = prepared.pieces(name)
        piece: Any = next(pieces)
        with suppress(StopIteration):
            while True:
                piece = pieces.send(await self._at(name, piece))

    async def _put_at_once(self, name: PlaceName, prepared: PlaceEntries) -> bool:
        """Put entries without a transaction, so that it never conflicts; False if that cannot be done.

        If another program puts the collection's first long value meanwhile, its parts may stay: `cull`
        finds them.
        """
        db = self._db()
        named = named_in(await self._shared.kv.get(name.key))
        if named is None or named["has_parts"]:
            return False
        try:
            await db.kv.put_many(named["run_id"], prepared.stored, ttl=prepared.ttl)
        except inmem.RunDeletedError:
            return False
        return True

    # --- deletion -----------------------------------------------------------------------------

    async def _delete_managed_entry(self, *, key: str, collection: str) -> bool:
        return await self._delete_managed_entries(keys=[key], collection=collection) > 0

    async def _delete_managed_entries(self, *, keys: Sequence[str], collection: str) -> int:
        """One commit; how many there were."""
        stored_at, name = [entry_key(key) for key in keys], self._name(collection)

        def delete(txn: Any) -> int:
            place = NamedPlace.found(txn, name)
            return 0 if place is None else place.remove(stored_at)

        return await self._at(name, delete)

    async def _delete_collection(self, *, collection: str) -> bool:
        """One commit: the collection is empty at once, and then its space comes back."""
        key = self._name(collection).key

        def destroy(txn: Any) -> list[str]:
            named = named_in(txn.kv.get(key))
            return [] if named is None else forget(txn, {key: named})

        forgotten = await self._do(destroy)
        await self._remove(forgotten)
        return bool(forgotten)

    async def _delete_store(self) -> bool:
        """One commit, or one for each 1,000 collections."""

        def destroy(txn: Any) -> list[str]:
            found = txn.kv.list_with_values(collections_prefix(self.name), limit=_DESTROYED)
            return forget(txn, {key: named_in(stored) for key, stored in found})

        while forgotten := await self._do(destroy):
            await self._remove(forgotten)
        return True

    async def _cull(self) -> None:
        """Remove what programs have left that died in the middle: entries that expire go by themselves."""
        gone: list[str] = await self._do(lambda txn: txn.kv.list(GONE))
        await self._remove([key[len(GONE) :] for key in gone])
        for collection in await self._get_collection_names():
            name = self._name(collection)

            def sweep(txn: Any, name: PlaceName = name) -> None:
                place = NamedPlace.found(txn, name)
                if place is not None:
                    place.sweep()

            await self._at(name, sweep)

    async def _remove(self, run_ids: list[str]) -> None:
        """Remove the runs of destroyed collections. Others may be doing that too."""
        db = self._db()
        for run_id in run_ids:
            try:
                await db.runs.delete_run(run_id)
            except (inmem.RunDeletedError, inmem.RunNotFoundError):
                pass  # somebody else was first
            await self._shared.kv.discard(GONE + run_id)

