"""KVStore: a dictionary per run.

Invariant: one entry is one record, whose payload is the encoded value; all
forms of the store (facade, scope, snapshot, transaction, pipeline) read and
encode through `KVReads` and `_entry`, so a rule holds in each of them.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from inmem import values
from inmem.client.transaction import Deferred, Item, Pending, Reader, Transaction
from inmem.errors import InvalidInputError
from inmem.keys import TypeTag, encode_name, encode_prefix, range_of
from inmem.model import kv as rules
from inmem.primitives._common import Autocommit, Host, check_limit, expiry_us
from inmem.record import expires_at, pack, payload_of, timestamp_of, version_of
from inmem.values import decode
from inmem.writeset import OP_CALL, OP_PUT, WriteSet, encode_single

T = TypeVar("T")
Ttl = float | timedelta | None


@dataclass(frozen=True, slots=True)
class Versioned:
    """A value with the commit version and time (microseconds) at which it was written."""

    value: Any
    version: int
    timestamp: int


class KVReads:
    """Reads of one run's entries, through any kind of reader."""

    __slots__ = ("_head", "_prefix", "_reader")

    def __init__(self, reader: Reader, prefix: bytes) -> None:
        self._reader = reader
        self._prefix = prefix
        self._head = b"%b\0%c" % (prefix, TypeTag.KV)

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a key, or `default`. See `KVStore.get`."""
        record = self._reader.read(self._head + encode_name(key))
        return default if record is None else decode(payload_of(record))

    def get_versioned(self, key: str) -> Versioned | None:
        """The value with its version and time. See `KVStore.get_versioned`."""
        record = self._reader.read(self._head + encode_name(key))
        if record is None:
            return None
        return Versioned(decode(payload_of(record)), version_of(record), timestamp_of(record))

    def exists(self, key: str) -> bool:
        """Whether there is an entry. See `KVStore.exists`."""
        return self._reader.read(self._head + encode_name(key)) is not None

    def ttl(self, key: str) -> float | None:
        """Seconds until the entry expires. See `KVStore.ttl`."""
        record = self._reader.read(self._head + encode_name(key))
        expiry = expires_at(record) if record is not None else 0
        return max(0.0, (expiry - self._reader.now_us()) / 1e6) if expiry else None

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The entries that exist among `keys`. See `KVStore.get_many`."""
        wanted = {key: self._head + encode_name(key, "keys") for key in _strings(keys, "keys")}
        with self._reader.view() as view:
            found = {key: view.read(stored) for key, stored in wanted.items()}
        return {key: decode(payload_of(r)) for key, r in found.items() if r is not None}

    def list(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[str]:
        """Keys in order. See `KVStore.list`."""
        skip = len(self._head)
        return [key[skip:].decode() for key, _ in self._scan(prefix, limit, start_after, reverse)]

    def list_with_values(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[tuple[str, Any]]:
        """Keys and values in order. See `KVStore.list_with_values`."""
        skip = len(self._head)
        return [
            (key[skip:].decode(), decode(payload_of(record)))
            for key, record in self._scan(prefix, limit, start_after, reverse)
        ]

    def count(self, prefix: str | None = None) -> int:
        """How many entries there are. See `KVStore.count`."""
        return self._reader.count(*range_of(self._prefix, TypeTag.KV, encode_prefix(prefix)))

    def _scan(
        self, prefix: str | None, limit: int | None, start_after: str | None, reverse: bool
    ) -> builtins.list[Item]:
        check_limit(limit)
        start, end = range_of(self._prefix, TypeTag.KV, encode_prefix(prefix))
        if start_after is not None:
            after = self._head + encode_name(start_after, "start_after")
            if reverse:
                end = min(end, after)
            else:
                start = max(start, after + b"\0")
        return self._reader.scan(start, max(start, end), limit=limit, reverse=bool(reverse))


class ScopedKV(KVReads):
    """One run's entries outside a transaction: each write is a commit of its own."""

    __slots__ = ("_commit", "_transact")

    def __init__(
        self, reader: Reader, commit: Autocommit, prefix: bytes, transact: Callable[..., Any]
    ) -> None:
        super().__init__(reader, prefix)
        self._commit = commit
        self._transact = transact

    def put(self, key: str, value: Any, *, ttl: Ttl = None) -> int:
        """Write an entry. See `KVStore.put`."""
        stored = self._head + encode_name(key)
        expires = expiry_us(ttl, self._commit.now_us()) if ttl is not None else 0
        return self._commit.put(stored, values.encode(value), expires)

    def put_with_ttl(self, key: str, value: Any, ttl: float | timedelta) -> int:
        """Write an entry that expires. See `KVStore.put_with_ttl`."""
        return self.put(key, value, ttl=_required(ttl))

    def put_many(self, mapping: Mapping[str, Any], *, ttl: Ttl = None) -> int:
        """Write many entries as one commit. See `KVStore.put_many`."""
        ops = _entries(self._head, mapping, expiry_us(ttl, self._commit.now_us()))
        return self._commit.send(WriteSet(ops=ops).encode())

    def add(self, key: str, delta: rules.Number = 1, *, initial: rules.Number = 0) -> rules.Number:
        """Add to a number in the writer. See `KVStore.add`."""
        arguments = _addition(self._head, key, delta, initial)
        total: rules.Number = self._commit.call("kv.add", *arguments)
        return total

    def merge(self, key: str, fields: Mapping[str, Any]) -> int:
        """Set fields of a `dict` in the writer. See `KVStore.merge`."""
        call = [OP_CALL, "kv.merge", [self._head + encode_name(key), _fields(fields)]]
        return self._commit.send(encode_single(call))

    def delete(self, key: str) -> bool:
        """Remove an entry. See `KVStore.delete`."""
        return bool(self._commit.call("kv.delete", self._head + encode_name(key)))

    def transaction(self, fn: Callable[[Any], T]) -> T:
        """Run `fn(txn)` as a transaction, with retries. See `KVStore.transaction`."""
        result: T = self._transact(fn)
        return result


class PendingNumber(Pending):
    """The result of `txn.kv.add`: `value` is there after the commit."""

    __slots__ = ()

    @property
    def value(self) -> rules.Number:
        """The number after the addition."""
        number: rules.Number = self.result()
        return number

    def __repr__(self) -> str:
        return f"PendingNumber({self._result!r})"


class TransactionKV(KVReads):
    """One run's entries inside a transaction or a pipeline: writes wait for the commit."""

    __slots__ = ("_txn",)

    def __init__(self, txn: Transaction, prefix: bytes) -> None:
        super().__init__(txn, prefix)
        self._txn = txn

    def put(self, key: str, value: Any, *, ttl: Ttl = None) -> None:
        """Write an entry at commit. See `KVStore.put`."""
        expires = expiry_us(ttl, self._txn.now_us()) if ttl is not None else 0
        self._txn.put(self._head + encode_name(key), values.encode(value), expires)

    def put_with_ttl(self, key: str, value: Any, ttl: float | timedelta) -> None:
        """Write an entry that expires. See `KVStore.put_with_ttl`."""
        self.put(key, value, ttl=_required(ttl))

    def put_many(self, mapping: Mapping[str, Any], *, ttl: Ttl = None) -> None:
        """Write many entries at commit. See `KVStore.put_many`."""
        for _, key, payload, expires in _entries(self._head, mapping, expiry_us(ttl, self._txn.now_us())):
            self._txn.put(key, payload, expires)

    def add(self, key: str, delta: rules.Number = 1, *, initial: rules.Number = 0) -> PendingNumber:
        """Add to a number at commit; conflicts only if the entry is also read. See `KVStore.add`."""
        arguments = _addition(self._head, key, delta, initial)

        def after(record: bytes | None) -> bytes:
            payload, _ = rules.add(None if record is None else payload_of(record), delta, initial)
            return pack(0, 0, 0 if record is None else expires_at(record), payload)

        pending = PendingNumber()
        self._call(arguments[0], "kv.add", arguments, after, pending.resolve)
        return pending

    def merge(self, key: str, fields: Mapping[str, Any]) -> None:
        """Set fields of a `dict` at commit; conflicts only if the entry is also read. See `KVStore.merge`."""
        stored, encoded = self._head + encode_name(key), _fields(fields)

        def after(record: bytes | None) -> bytes:
            payload = rules.merge(None if record is None else payload_of(record), encoded)
            return pack(0, 0, 0 if record is None else expires_at(record), payload)

        self._call(stored, "kv.merge", [stored, encoded], after, lambda result: None)

    def _call(
        self, stored: bytes, procedure: str, arguments: builtins.list[Any],
        after: Callable[[bytes | None], bytes], resolve: Callable[[Any], None],
    ) -> None:
        """Run a procedure on an entry at commit, and let own reads see what it makes of the record."""
        txn = self._txn
        earlier = txn.own(stored)
        shown: bytes | Deferred
        if isinstance(earlier, Deferred):
            before = earlier.apply  # bound now: `earlier` is another one at the next call
            shown = Deferred(lambda record: after(before(record)))
        elif txn.was_read(stored):
            shown = after(txn.read(stored))
        else:
            shown = Deferred(after)
        txn.call(procedure, arguments, resolve)
        txn.show(stored, shown)

    def delete(self, key: str) -> bool:
        """Remove an entry at commit; reads whether there is one. See `KVStore.delete`."""
        stored = self._head + encode_name(key)
        existed = self._txn.read(stored) is not None
        if existed:
            self._txn.delete(stored)
        return existed

    def discard(self, key: str) -> None:
        """Remove an entry at commit, without a look at whether there is one."""
        self._txn.delete(self._head + encode_name(key))


class KVStore:
    """A dictionary per run: `str` keys, typed values, versions, expiry.

    Keys are 1-320 bytes of UTF-8, values as in `inmem.Value`, at most 16 MiB.
    Reads see the newest commit and cost a few microseconds, without a
    message; writes are one round trip and durable as the database's mode
    says. The facade holds the database and no other state.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     version = db.kv.put("run-1", "color", "green")
    ...     db.kv.get("run-1", "color")
    'green'
    """

    __slots__ = ("_database",)

    def __init__(self, database: Host) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"KVStore({self._database!r})"

    def _scope(self, run_id: str) -> ScopedKV:
        scope: ScopedKV = self._database.run(run_id).kv
        return scope

    def get(self, run_id: str, key: str, default: Any = None) -> Any:
        """The value under a key, or `default` if there is none. Cost: about 2 µs.

        Raises:
            InvalidRunIdError, InvalidKeyError: the name cannot be one.
            ClosedError: the database is closed.
        """
        return self._scope(run_id).get(key, default)

    def get_versioned(self, run_id: str, key: str) -> Versioned | None:
        """The value with the version and time (microseconds) of its commit; None if absent."""
        return self._scope(run_id).get_versioned(key)

    def exists(self, run_id: str, key: str) -> bool:
        """Whether there is an entry under a key."""
        return self._scope(run_id).exists(key)

    def put(self, run_id: str, key: str, value: Any, *, ttl: Ttl = None) -> int:
        """Write an entry and return the commit version. Cost: one round trip.

        Reads nothing, so it never conflicts. `ttl` (seconds or `timedelta`)
        makes it expire; without one an earlier expiry is cleared.

        Raises:
            InvalidValueError: the value would not come back with its type.
            LimitError: it is over 16 MiB encoded.
            StoreFullError: the quota is used up.
            RunDeletedError: the run was deleted.
            CommitUnknownError: no answer before the deadline.
        """
        return self._scope(run_id).put(key, value, ttl=ttl)

    def put_with_ttl(self, run_id: str, key: str, value: Any, ttl: float | timedelta) -> int:
        """Like `put` with `ttl`, which here must be given."""
        return self._scope(run_id).put_with_ttl(key, value, ttl)

    def add(
        self, run_id: str, key: str, delta: rules.Number = 1, *, initial: rules.Number = 0
    ) -> rules.Number:
        """Add to a number and return the new one. Cost: one round trip.

        The addition happens in the writer, on the current value, so it never
        conflicts however many processes count. An absent entry counts as
        `initial`. An expiry that is set stays.

        Raises:
            InvalidValueError: the entry or an argument is no number, or the
                sum leaves the 64-bit range; nothing is changed.
        """
        return self._scope(run_id).add(key, delta, initial=initial)

    def merge(self, run_id: str, key: str, fields: Mapping[str, Any]) -> int:
        """Set fields of an entry that is a `dict`, and return the commit version. Cost: one round trip.

        This happens in the writer, on the current value, as `dict.update`
        would do it: fields that are not named stay, whoever wrote them, and
        many processes may set fields of one entry without a conflict. An
        absent entry counts as an empty `dict`. An expiry that is set stays.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     first = db.kv.put("run-1", "job", {"state": "queued", "tries": 0})
        ...     second = db.kv.merge("run-1", "job", {"state": "running"})
        ...     db.kv.get("run-1", "job")
        {'state': 'running', 'tries': 0}

        Raises:
            InvalidInputError: `fields` is no mapping.
            InvalidValueError: the entry is no `dict`, or a field cannot be
                stored; nothing is changed.
            LimitError: the value would be over 16 MiB encoded.
        """
        return self._scope(run_id).merge(key, fields)

    def ttl(self, run_id: str, key: str) -> float | None:
        """Seconds until the entry expires; None if it does not, or is absent."""
        return self._scope(run_id).ttl(key)

    def delete(self, run_id: str, key: str) -> bool:
        """Remove an entry; whether there was one. Never conflicts. Cost: one round trip."""
        return self._scope(run_id).delete(key)

    def list(
        self, run_id: str, prefix: str | None = None, *, limit: int | None = None,
        start_after: str | None = None, reverse: bool = False,
    ) -> builtins.list[str]:
        """Keys that start with `prefix`, in byte order. Cost: about 1 µs a key.

        `start_after` continues after a key (before it, if `reverse`).
        """
        return self._scope(run_id).list(
            prefix, limit=limit, start_after=start_after, reverse=reverse
        )

    def list_with_values(
        self, run_id: str, prefix: str | None = None, *, limit: int | None = None,
        start_after: str | None = None, reverse: bool = False,
    ) -> builtins.list[tuple[str, Any]]:
        """Like `list`, with the values, all of one version."""
        return self._scope(run_id).list_with_values(
            prefix, limit=limit, start_after=start_after, reverse=reverse
        )

    def count(self, run_id: str, prefix: str | None = None) -> int:
        """How many entries start with `prefix`. Cost: about 0.3 µs an entry."""
        return self._scope(run_id).count(prefix)

    def get_many(self, run_id: str, keys: Iterable[str]) -> dict[str, Any]:
        """The entries that exist among `keys`, all of one version."""
        return self._scope(run_id).get_many(keys)

    def put_many(self, run_id: str, mapping: Mapping[str, Any], *, ttl: Ttl = None) -> int:
        """Write many entries as one atomic commit; its version. Cost: one round trip."""
        return self._scope(run_id).put_many(mapping, ttl=ttl)

    def transaction(self, run_id: str, fn: Callable[[Any], T]) -> T:
        """Run `fn(txn)` as `Database.transact` does, and return its result."""
        return self._scope(run_id).transaction(fn)


def _fields(fields: Mapping[str, Any]) -> bytes:
    if not isinstance(fields, Mapping):
        raise InvalidInputError(f"fields must be a mapping, not {type(fields).__name__}", argument="fields")
    return values.encode(dict(fields), "fields")


def _entries(head: bytes, mapping: Mapping[str, Any], expires: int) -> list[list[Any]]:
    if not isinstance(mapping, Mapping):
        raise InvalidInputError(
            f"mapping must be a mapping, not {type(mapping).__name__}", argument="mapping"
        )
    return [
        [OP_PUT, head + encode_name(key, "mapping key"), values.encode(value, f"mapping[{key!r}]"), expires]
        for key, value in mapping.items()
    ]


def _addition(head: bytes, key: str, delta: object, initial: object) -> list[Any]:
    return [
        head + encode_name(key), rules.check_number(delta, "delta"), rules.check_number(initial, "initial")
    ]


def _required(ttl: Ttl) -> float | timedelta:
    if ttl is None:
        raise InvalidInputError("ttl must be given", argument="ttl")
    return ttl


def _strings(items: Iterable[str], argument: str) -> Iterable[str]:
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidInputError(f"{argument} must be an iterable of str", argument=argument)
    return items
