"""dogpile.cache on inmem: a backend whose mutexes are leases. Extra `dogpile`.

Invariant: what a call sets is one commit, and what it gets is of one version. A region's data are a place,
see `inmem.adapters.places`: a run with the tag `dogpile` and the region's name in the metadata, which is
told by `dogpile/<hash of the name>` among the entries that all runs of the agent share. Values are what the
region's serializer makes. The run's leases `e/=<key>` are the mutexes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from dogpile.cache import register_backend
from dogpile.cache.api import NO_VALUE, BytesBackend, CacheMutex

import inmem
from inmem.adapters.foreign import hashed
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

_ARGUMENTS: Final = frozenset({"store", "name", "ttl_s", "distributed_lock", "lock_ttl_s", "lock_wait_s"})
_LOCK_TTL_S: Final = 30.0  # after which the mutex of a program that died is free

register_backend("inmem", "inmem.adapters.dogpile", "InmemBackend")  # type: ignore[no-untyped-call]


class InmemBackend(BytesBackend):
    """A backend of dogpile.cache in a store of inmem, for many threads and processes.

    It is called `inmem`, once this module is imported or the package is
    installed. `arguments` has

    - `store`: a path or URL, as `inmem.open` takes it, or a `Database`; without
      it `INMEM_PATH`. A path is opened at the first use.
    - `name`: regions of one name have the same values; default `"default"`.
    - `ttl_s`: seconds after which a value is removed from the store; default
      None, never. It should be more than the region's expiration time, since
      an old value is of use while a new one is made.
    - `distributed_lock`: whether one program at a time makes a value, and not
      one thread of each program; default True.
    - `lock_ttl_s`: seconds after which a mutex is free whose program has died;
      default 30. It is renewed while the program lives.
    - `lock_wait_s`: seconds to wait for a mutex at most, and then go on without
      it; default None, until it is free.

    Others are ignored. Keys and values may have any length. Cost: two reads
    for `get`, one round trip for `set`, two for a mutex.

    >>> import inmem
    >>> from dogpile.cache import make_region
    >>> import inmem.adapters.dogpile
    >>> with inmem.open() as db:
    ...     region = make_region().configure("inmem", expiration_time=60, arguments={"store": db})
    ...     region.get_or_create("answer", lambda: 42), region.get("answer")
    (42, 42)

    Raises:
        InvalidInputError: an argument is wrong.
        Errors of `inmem`, as its own calls raise them.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        given = {key: arguments[key] for key in _ARGUMENTS & arguments.keys()}
        store = given.get("store") or os.environ.get("INMEM_PATH")
        if not isinstance(store, inmem.Database | str | os.PathLike):
            raise inmem.InvalidInputError(
                f"store must be a Database, a path or a URL, not {type(store).__name__}", argument="store",
                hint="arguments={'store': './data'}, or set INMEM_PATH.",
            )
        name = given.get("name", "default")
        if not isinstance(name, str) or not name:
            raise inmem.InvalidInputError("name must be a str with something in it", argument="name")
        utf8_of(name, "name")
        self._place = store
        self._opened = store if isinstance(store, inmem.Database) else None
        self._name = PlaceName(f"dogpile/{hashed(name)}", "dogpile", {"region": name})
        self._ttl_s = _seconds(given, "ttl_s", None)
        self._has_mutexes = bool(given.get("distributed_lock", True))
        self._lock_ttl_s = _seconds(given, "lock_ttl_s", _LOCK_TTL_S) or _LOCK_TTL_S
        self._lock_wait_s = _seconds(given, "lock_wait_s", None)

    def __repr__(self) -> str:
        return f"InmemBackend({self._place!r}, name={self._name.metadata['region']!r})"

    @property
    def db(self) -> inmem.Database:
        """The store; it is opened at the first use."""
        if self._opened is None:
            assert not isinstance(self._place, inmem.Database)
            self._opened = inmem.open(self._place)
        return self._opened

    def close(self) -> None:
        """Close a store that was opened here; the next use opens it again."""
        if not isinstance(self._place, inmem.Database) and self._opened is not None:
            self._opened.close()
            self._opened = None

    def at(self, fn: Callable[[Any], T]) -> T:
        """Do something at the region's place. If its run was deleted behind its back, it gets another one."""
        shared = self.db.shared("agent")
        while True:
            try:
                return self.db.transact(shared, fn)
            except inmem.RunDeletedError as error:
                self.db.transact(shared, unnamed(self._name, error.run_id))

    # --- reading ------------------------------------------------------------------------------

    def get_serialized(self, key: str) -> Any:
        """The value of a key, or `NO_VALUE`."""
        named = self._named()
        entry = None if named is None else self.db.kv.get(named["run_id"], entry_key(key))
        if entry is None:
            return NO_VALUE
        value = value_in(entry)
        if isinstance(value, list):
            return self.get_serialized_multi([key])[0]  # parts of one version
        return value

    def get_serialized_multi(self, keys: Iterable[str]) -> Sequence[Any]:
        """The values of keys, of one version, with `NO_VALUE` for those that have none."""
        stored_at = [entry_key(key) for key in keys]

        def read(txn: Any) -> dict[str, str | bytes]:
            place = NamedPlace.found(txn, self._name)
            return {} if place is None else place.values(stored_at)

        found = self.at(read) if stored_at else {}
        return [found.get(key, NO_VALUE) for key in stored_at]

    def _named(self) -> Any:
        return named_in(self.db.shared("agent").kv.get(self._name.key))

    # --- writing ------------------------------------------------------------------------------

    def set_serialized(self, key: str, value: bytes) -> None:
        """Set the value of a key."""
        self.set_serialized_multi({key: value})

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        """Set the values of keys: one commit."""
        if not mapping:
            return
        prepared = PlaceEntries(mapping, self._ttl_s)
        if not prepared.is_long:
            named = self._named()
            if named is not None and not named["has_parts"]:
                with suppress(inmem.RunDeletedError):
                    self.db.kv.put_many(named["run_id"], prepared.stored, ttl=prepared.ttl)
                    return
        pieces = prepared.pieces(self._name)
        piece: Any = next(pieces)
        with suppress(StopIteration):
            while True:
                piece = pieces.send(self.at(piece))

    def delete(self, key: str) -> None:
        """Remove the value of a key, if there is one."""
        self.delete_multi([key])

    def delete_multi(self, keys: Iterable[str]) -> None:
        """Remove the values of keys: one commit."""
        stored_at = [entry_key(key) for key in keys]

        def remove(txn: Any) -> None:
            place = NamedPlace.found(txn, self._name)
            if place is not None:
                place.remove(stored_at)

        self.at(remove)

    # --- mutexes ------------------------------------------------------------------------------

    def get_mutex(self, key: str) -> LeaseMutex | None:
        """The mutex of a key, which all programs share; None with `distributed_lock=False`."""
        return LeaseMutex(self, entry_key(key)) if self._has_mutexes else None

    def hold(self, lease: str, *, wait: bool) -> inmem.HeldLease:
        """Hold a lease of the region.

        Raises:
            LeaseHeldError: another one has it, and did not give it back in time.
        """
        while True:
            run_id = self.at(lambda txn: _run_of(txn, self._name))
            held = self.db.leases.hold(
                run_id, lease, ttl_s=self._lock_ttl_s, wait_s=self._lock_wait_s if wait else 0.0
            )
            try:
                return held.__enter__()
            except inmem.RunDeletedError:
                self.db.transact(self.db.shared("agent"), unnamed(self._name, run_id))

    def is_held(self, lease: str) -> bool:
        """Whether somebody holds a lease of the region."""
        named = self._named()
        found = None if named is None else self.db.leases.get(named["run_id"], lease)
        return found is not None and found.expires_at > time.time_ns() // 1000


class LeaseMutex(CacheMutex):
    """The mutex of a key. One may be shared by threads, and released by another one than acquired it."""

    def __init__(self, backend: InmemBackend, lease: str) -> None:
        self._backend = backend
        self._lease = lease
        self._held: inmem.HeldLease | None = None  # by whoever acquired this mutex, one at a time

    def acquire(self, wait: bool = True) -> bool:
        """Take the mutex, when it is free or with `wait=False` at once; whether that succeeded."""
        try:
            held = self._backend.hold(self._lease, wait=wait)
        except inmem.LeaseHeldError:
            return False
        self._held = held
        return True

    def release(self) -> None:
        """Give it back. One that ran out because its program was stopped is another's by now, and stays so.

        Raises:
            InvariantError: it was not acquired here.
        """
        held, self._held = self._held, None
        if held is None:
            raise inmem.InvariantError(f"mutex {self._lease!r} is released, but was not acquired")
        held.__exit__(None, None, None)

    def locked(self) -> bool:
        """Whether somebody has it, in this program or in another one."""
        return self._backend.is_held(self._lease)


def _run_of(txn: Any, name: PlaceName) -> str:
    return NamedPlace.begun(txn, name).run_id


def _seconds(given: Mapping[str, Any], argument: str, default: float | None) -> float | None:
    value = given.get(argument, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise inmem.InvalidInputError(
            f"{argument} must be seconds above 0 or None, not {value!r}", argument=argument
        )
    return float(value)
