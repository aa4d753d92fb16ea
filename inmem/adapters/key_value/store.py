"""The store of py-key-value: `InmemStore`. See `layout` for what is stored.

Invariant: what a call puts or deletes is one commit, and what a call reads is of one version. A call
finds the collection's run first. Who destroys the collection meanwhile closes that run, so what would be
put there is refused, and the call begins again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
from inmem.adapters.foreign import Packed, clear_parts, sweep_parts, token_of
from inmem.adapters.key_value.layout import (
    GONE,
    JSON,
    OWNERS,
    Collection,
    collection_key,
    collections_prefix,
    entry_key,
    json_of,
    keys_of,
    named_tokens,
    owners_of,
    utf8_of,
)

T = TypeVar("T")

_FOREVER_S: Final = 90 * 366 * 86_400.0  # what expires later expires in the entry alone
_LEAST_S: Final = 0.001  # for which an entry is stored that expires at once
_PARTS_LIVE_S: Final = 3600.0  # longer than what names them: they are stored before
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
        result: T = await db.transact(db.shared("agent"), fn)
        return result

    # --- collections in a transaction ---------------------------------------------------------

    def _found(self, txn: Any, collection: str) -> Collection | None:
        """A collection, if something was put there."""
        named = txn.kv.get(collection_key(self.name, collection))
        return None if named is None else Collection(txn.at(named["run_id"]).kv, named["has_parts"])

    def _begun(self, txn: Any, collection: str, *, has_parts: bool) -> Collection:
        """A collection, made if need be. That it has parts is never taken back."""
        key = collection_key(self.name, collection)
        named = txn.kv.get(key)
        if named is None:
            named = {
                "store": self.name, "collection": collection, "run_id": str(inmem.RunId.new()),
                "has_parts": has_parts,
            }
            txn.kv.put(key, named)
            metadata = {"store": self.name, "collection": collection}
            txn.at(named["run_id"]).runs.create_run(tags=["key_value"], metadata=metadata)
        elif has_parts and not named["has_parts"]:
            named = {**named, "has_parts": True}
            txn.kv.put(key, named)
        return Collection(txn.at(named["run_id"]).kv, named["has_parts"])

    # --- reading ------------------------------------------------------------------------------

    async def _get_managed_entry(self, *, collection: str, key: str) -> ManagedEntry | None:
        # Two reads without a transaction. A collection that is destroyed between them was empty for a moment.
        db = self._db()
        named = await db.shared("agent").kv.get(collection_key(self.name, collection))
        entry = None if named is None else await db.kv.get(named["run_id"], entry_key(key))
        if entry is None or isinstance(entry["value"], str):
            return None if entry is None else self._serialization_adapter.load_json(json_str=entry["value"])
        [found] = await self._get_managed_entries(collection=collection, keys=[key])  # parts of one version
        return found

    async def _get_managed_entries(
        self, *, collection: str, keys: Sequence[str]
    ) -> list[ManagedEntry | None]:
        stored_at = [entry_key(key) for key in keys]

        def read(txn: Any) -> dict[str, str]:
            place = self._found(txn, collection)
            if place is None:
                return {}
            found = place.kv.get_many(stored_at)
            return {key: json_of(entry["value"], place.kv.get) for key, entry in found.items()}

        found = await self._do(read)
        load = self._serialization_adapter.load_json
        return [load(json_str=found[key]) if key in found else None for key in stored_at]

    async def _get_collection_keys(self, *, collection: str, limit: int | None = None) -> list[str]:
        """All keys of one version, or the first ones of them."""

        def read(txn: Any) -> list[str]:
            place = self._found(txn, collection)
            return [] if place is None else keys_of(place.kv, limit)

        return await self._do(read)

    async def _get_collection_names(self, *, limit: int | None = None) -> list[str]:
        """The names of all collections, in the order of their hashes; empty ones too."""
        found = await self._do(
            lambda txn: txn.kv.list_with_values(collections_prefix(self.name), limit=limit)
        )
        return [named["collection"] for _, named in found]

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
        packed = Packed()
        stored = {}
        for key, entry in entries.items():
            text = self._serialization_adapter.dump_json(entry=entry, key=key, collection=collection)
            value = packed.add(JSON, text.encode("utf-8", "surrogatepass"))
            stored[entry_key(key)] = {"key": key, "value": text if token_of(value) is None else value}
        expiry = None if ttl is None or ttl > _FOREVER_S else max(ttl, _LEAST_S)
        has_parts, owners = bool(packed.parts), owners_of(stored)
        if not has_parts and await self._put_at_once(collection, stored, expiry):
            return
        later = None if expiry is None else expiry + _PARTS_LIVE_S

        def put(txn: Any) -> bool:
            place = self._begun(txn, collection, has_parts=has_parts)
            if not packed.are_there(place.kv):
                return False
            if place.has_parts:
                _drop_parts(place.kv, place.kv.get_many(stored))
            place.kv.put_many(stored, ttl=expiry)
            if owners:
                place.kv.put_many(owners, ttl=later)
            return True

        while True:
            for key, data in packed.parts:
                await self._do(self._part_put(collection, key, data, later))
            if await self._do(put):
                return

    async def _put_at_once(self, collection: str, stored: dict[str, Any], ttl: float | None) -> bool:
        """Put entries without a transaction, so that it never conflicts; False if that cannot be done.

        If another program puts the collection's first long value meanwhile, its parts may stay: `cull`
        finds them.
        """
        db = self._db()
        named = await db.shared("agent").kv.get(collection_key(self.name, collection))
        if named is None or named["has_parts"]:
            return False
        try:
            await db.kv.put_many(named["run_id"], stored, ttl=ttl)
        except inmem.RunDeletedError:
            return False
        return True

    def _part_put(
        self, collection: str, key: str, data: bytes, ttl: float | None
    ) -> Callable[[Any], None]:
        def put(txn: Any) -> None:
            self._begun(txn, collection, has_parts=True).kv.put(key, data, ttl=ttl)

        return put

    # --- deletion -----------------------------------------------------------------------------

    async def _delete_managed_entry(self, *, key: str, collection: str) -> bool:
        return await self._delete_managed_entries(keys=[key], collection=collection) > 0

    async def _delete_managed_entries(self, *, keys: Sequence[str], collection: str) -> int:
        """One commit; how many there were."""
        stored_at = [entry_key(key) for key in keys]

        def delete(txn: Any) -> int:
            place = self._found(txn, collection)
            if place is None:
                return 0
            found = place.kv.get_many(stored_at)
            for key in found:
                place.kv.discard(key)
            _drop_parts(place.kv, found)
            return len(found)

        return await self._do(delete)

    async def _delete_collection(self, *, collection: str) -> bool:
        """One commit: the collection is empty at once, and then its space comes back."""
        key = collection_key(self.name, collection)

        def forget(txn: Any) -> list[str]:
            named = txn.kv.get(key)
            return [] if named is None else _forget(txn, {key: named})

        forgotten = await self._do(forget)
        await self._remove(forgotten)
        return bool(forgotten)

    async def _delete_store(self) -> bool:
        """One commit, or one for each 1,000 collections."""

        def forget(txn: Any) -> list[str]:
            found = txn.kv.list_with_values(collections_prefix(self.name), limit=_DESTROYED)
            return _forget(txn, dict(found))

        while forgotten := await self._do(forget):
            await self._remove(forgotten)
        return True

    async def _cull(self) -> None:
        """Remove what programs have left that died in the middle: entries that expire go by themselves."""
        gone: list[str] = await self._do(lambda txn: txn.kv.list(GONE))
        await self._remove([key[len(GONE) :] for key in gone])
        for collection in await self._get_collection_names():

            def sweep(txn: Any, collection: str = collection) -> None:
                place = self._found(txn, collection)
                if place is not None and place.has_parts:
                    sweep_parts(place.kv, named_tokens(place.kv))

            await self._do(sweep)

    async def _remove(self, run_ids: list[str]) -> None:
        """Remove the runs of destroyed collections. Others may be doing that too."""
        db = self._db()
        for run_id in run_ids:
            try:
                await db.runs.delete_run(run_id)
            except (inmem.RunDeletedError, inmem.RunNotFoundError):
                pass  # somebody else was first
            await db.shared("agent").kv.discard(GONE + run_id)


def _forget(txn: Any, named: dict[str, Any]) -> list[str]:
    """Collections are not there any more; the runs that they had, which are marked until they are removed."""
    for key, each in named.items():
        txn.kv.discard(key)
        txn.kv.put(GONE + each["run_id"], {"store": each["store"], "collection": each["collection"]})
    return [each["run_id"] for each in named.values()]


def _drop_parts(kv: Any, entries: dict[str, Any]) -> None:
    """Remove the parts of entries that go, with what says whose they are."""
    for entry in entries.values():
        token = token_of(entry["value"])
        if token is not None:
            clear_parts(kv, entry["value"])
            kv.discard(OWNERS + token)
