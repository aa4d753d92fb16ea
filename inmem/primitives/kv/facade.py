"""KVStore: a dictionary per run.

Invariant: one entry is one record, whose payload is the encoded value. The
reading half and the writing half are one class each: a snapshot has the first,
a pipeline the second, a run outside or inside a transaction both.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Generic, TypeVar

from inmem import values
from inmem.client.retry import deadline_in
from inmem.config import CLEAR_LIMIT
from inmem.engines.base import Item, Sink, View
from inmem.errors import InvalidValueError
from inmem.host.interrupts import let_through
from inmem.keys import TypeTag, encode_name, encode_prefix, range_of
from inmem.pending import Pending, PendingReal
from inmem.primitives._common import (
    check_limit,
    entries_of,
    fields_of,
    lasting,
    required,
    strings,
)
from inmem.primitives._paging import past, stream
from inmem.primitives._waiting import check_version, differs_from, each_look
from inmem.primitives.byrun import ByRun, OfRun, by_run
from inmem.primitives.kv import rules
from inmem.primitives.kv.versioned import Versioned as Versioned
from inmem.primitives.kv.versioned import versioned
from inmem.primitives.kv.watching import Change as Change
from inmem.primitives.kv.watching import Seen
from inmem.record import expires_at, payload_of
from inmem.stepping import FacadeWaits, Steps
from inmem.values import decode, text_of
from inmem.writeset import OP_CALL, OP_DELETE

T = TypeVar("T")
V = TypeVar("V")  # the version of a commit, None where it is not known yet
N = TypeVar("N")  # a number, or what will have it
B = TypeVar("B")  # whether there was an entry, or what will say so


class PendingNumber(PendingReal[rules.Number]):
    """The result of `kv.add` in a transaction or pipeline: a number after the commit, see `value`."""

    __slots__ = ()


class KVReads:
    """Reads of one run's entries."""

    __slots__ = ("_head", "_prefix", "_view")

    def __init__(self, view: View, prefix: bytes) -> None:
        self._view = view
        self._prefix = prefix
        self._head = b"%b\0%c" % (prefix, TypeTag.KV)

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a key, or `default` if there is none. Cost: about 2 µs.

        Raises:
            InvalidRunIdError, InvalidKeyError: the name cannot be one.
            ClosedError: the database is closed.
        """
        record = self._view.read(self._head + encode_name(key))
        return default if record is None else decode(payload_of(record))

    def get_versioned(self, key: str) -> Versioned | None:
        """The value with the version and time (microseconds) of its commit; None if absent."""
        record = self._view.read(self._head + encode_name(key))
        return None if record is None else versioned(record)

    def exists(self, key: str) -> bool:
        """Whether there is an entry under a key."""
        return self._view.read(self._head + encode_name(key)) is not None

    def ttl(self, key: str) -> float | None:
        """Seconds until the entry expires; None if it does not, or is absent."""
        record = self._view.read(self._head + encode_name(key))
        expiry = expires_at(record) if record is not None else 0
        return max(0.0, (expiry - self._view.now_us()) / 1e6) if expiry else None

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The entries that exist among `keys`, all of one version."""
        wanted = {key: self._head + encode_name(key, "keys") for key in strings(keys, "keys")}
        records = self._view.read_many(builtins.list(wanted.values()))
        found = zip(wanted, records, strict=True)
        return {key: decode(payload_of(record)) for key, record in found if record is not None}

    def list(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[str]:
        """Keys that start with `prefix`, in byte order. Cost: about 1 µs a key.

        `start_after` continues after a key (before it, if `reverse`).
        """
        skip = len(self._head)
        return [text_of(key[skip:]) for key, _ in self._scan(prefix, limit, start_after, reverse)]

    def list_with_values(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[tuple[str, Any]]:
        """Like `list`, with the values, all of one version."""
        skip = len(self._head)
        return [
            (text_of(key[skip:]), decode(payload_of(record)))
            for key, record in self._scan(prefix, limit, start_after, reverse)
        ]

    def list_versioned(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[tuple[str, Versioned]]:
        """Like `list_with_values`, with the version and time of the commit of each.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     first, second = db.kv.put("run-1", "b", "early"), db.kv.put("run-1", "a", "late")
        ...     [(key, found.version == second) for key, found in db.kv.list_versioned("run-1")]
        [('a', True), ('b', False)]
        """
        skip = len(self._head)
        return [
            (text_of(key[skip:]), versioned(record))
            for key, record in self._scan(prefix, limit, start_after, reverse)
        ]

    def iter(
        self, prefix: str | None = None, *, start_after: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """Stream keys and values, in bounded memory. Cost: about 2 µs an entry.

        Takes a new snapshot for each 512 entries or 4 MiB. So it sees changes
        of entries that it has not reached yet, and pins nothing for long.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     version = db.kv.put_many("run-1", {"a": 1, "b": 2})
        ...     [(key, value) for key, value in db.kv.iter("run-1", start_after="a")]
        [('b', 2)]

        Raises:
            RunDeletedError: the run was deleted in the middle of it.
        """
        start, end = self._range(prefix, start_after, reverse)
        skip = len(self._head)
        return (
            (text_of(key[skip:]), decode(payload_of(record)))
            for key, record in stream(self._view, self._prefix, start, end, reverse=bool(reverse))
        )

    def count(self, prefix: str | None = None) -> int:
        """How many entries start with `prefix`. Cost: about 0.3 µs an entry."""
        return self._view.count(*range_of(self._prefix, TypeTag.KV, encode_prefix(prefix)))

    def _records(self, prefix: str | None = None) -> builtins.list[Item]:
        """Keys and records as they are stored, for what compares versions."""
        return self._scan(prefix, None, None, False)

    def _scan(
        self, prefix: str | None, limit: int | None, start_after: str | None, reverse: bool
    ) -> builtins.list[Item]:
        check_limit(limit)
        start, end = self._range(prefix, start_after, reverse)
        return self._view.scan(start, end, limit=limit, reverse=bool(reverse))

    def _range(self, prefix: str | None, start_after: str | None, reverse: bool) -> tuple[bytes, bytes]:
        place = None if start_after is None else self._head + encode_name(start_after, "start_after")
        return past(*range_of(self._prefix, TypeTag.KV, encode_prefix(prefix)), place, reverse)


class KVWrites(Generic[V, N, B]):
    """Writes of one run's entries."""

    __slots__ = ()

    _head: bytes
    _sink: Sink

    def put(self, key: str, value: Any, *, ttl: float | timedelta | None = None) -> V:
        """Write an entry and return the commit version. Cost: one round trip.

        Reads nothing, so it never conflicts. `ttl` (seconds or `timedelta`)
        makes it expire, counted from the commit; without one an earlier expiry is cleared.

        Raises:
            InvalidValueError: the value would not come back with its type.
            LimitError: it is over 16 MiB encoded.
            StoreFullError: the quota is used up.
            RunDeletedError: the run was deleted.
            CommitUnknownError: no answer before the deadline.
        """
        stored = self._head + encode_name(key)
        try:  # as `encoded`, without its call
            data = values.encode(value)
        except InvalidValueError as error:
            let_through(error)
            data = values.encode_by(self._sink.default, value)
        version: V = self._sink.put(stored, data, 0 if ttl is None else lasting(ttl))
        return version

    def put_with_ttl(self, key: str, value: Any, ttl: float | timedelta) -> V:
        """Like `put` with `ttl`, which here must be given."""
        return self.put(key, value, ttl=required(ttl))

    def put_many(self, mapping: Mapping[str, Any], *, ttl: float | timedelta | None = None) -> V:
        """Write many entries as one atomic commit; its version. Cost: one round trip."""
        entries = entries_of(self._sink, self._head, mapping, lasting(ttl))
        version: V = self._sink.write(entries)
        return version

    def add(self, key: str, delta: rules.Number = 1, *, initial: rules.Number = 0) -> N:
        """Add to a number and return the new one. Cost: one round trip.

        The writer adds, to the current value. So it never conflicts, however
        many processes count. An absent entry counts as `initial`. An expiry
        that is set stays. In a transaction it conflicts only if the entry is
        also read.

        Raises:
            InvalidValueError: the entry or an argument is no number, or the
                sum leaves the 64-bit range; nothing is changed.
        """
        arguments = [
            self._head + encode_name(key), rules.check_number(delta, "delta"),
            rules.check_number(initial, "initial"),
        ]
        number: N = self._sink.call("kv.add", arguments, PendingNumber)
        return number

    def merge(self, key: str, fields: Mapping[str, Any]) -> V:
        """Set fields of an entry that is a `dict`, and return the commit version. Cost: one round trip.

        The writer does this, to the current value, like `dict.update`: other
        fields stay as they are, whoever wrote them. So many processes can set
        fields of one entry without a conflict. An absent entry counts as an
        empty `dict`. An expiry that is set stays.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     jobs = db.run("run-1").kv
        ...     first = jobs.put("job", {"state": "queued", "tries": 0})
        ...     second = jobs.merge("job", {"state": "running"})
        ...     jobs.get("job")
        {'state': 'running', 'tries': 0}

        Raises:
            InvalidInputError: `fields` is no mapping.
            InvalidValueError: the entry is no `dict`, or a field cannot be
                stored; nothing is changed.
            LimitError: the value would be over 16 MiB encoded.
        """
        arguments = [self._head + encode_name(key), fields_of(self._sink, fields)]
        version: V = self._sink.write([[OP_CALL, "kv.merge", arguments]])
        return version

    def delete(self, key: str) -> B:
        """Remove an entry; whether there was one. Never conflicts. Cost: one round trip.

        In a transaction this reads whether there is one.
        """
        existed: B = self._sink.ask("kv.delete", [self._head + encode_name(key)], bool)
        return existed

    def discard(self, key: str) -> V:
        """Remove an entry without a look at whether there is one; the commit version."""
        version: V = self._sink.write([[OP_DELETE, self._head + encode_name(key)]])
        return version

    def clear(self, prefix: str | None = None) -> N:
        """Remove the entries whose keys start with `prefix`, or all; how many. Cost: about 5 µs an entry.

        Up to 4,000 entries are one commit, which never conflicts, except in a
        transaction that has also read one of them. Outside of transactions and
        pipelines more entries take several commits, in byte order, and others
        can see that some are gone and some are not.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     version = db.kv.put_many("run-1", {"draft/1": "a", "draft/2": "b", "final": "c"})
        ...     db.kv.clear("run-1", "draft/"), db.kv.list("run-1")
        (2, ['final'])

        Raises:
            LimitError: more than 4,000 in a transaction or pipeline; nothing is removed.
        """
        removed: N = self._sink.call("kv.clear", self._to_clear(prefix, False), PendingNumber)
        return removed

    def _to_clear(self, prefix: str | None, is_part: bool) -> builtins.list[Any]:
        return [self._head[: self._head.index(0)], encode_prefix(prefix), is_part]


class KV(KVReads, KVWrites[V, N, B]):
    """One run's entries."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, prefix: bytes) -> None:
        super().__init__(view, prefix)
        self._sink = sink


class RunKV(KV[int, rules.Number, bool]):
    """One run's entries outside a transaction: each write is a commit of its own."""

    __slots__ = ("_transact", "_waits")

    def __init__(
        self, view: View, sink: Sink, prefix: bytes, transact: Callable[..., Any], waits: FacadeWaits
    ) -> None:
        super().__init__(view, sink, prefix)
        self._transact = transact
        self._waits = waits

    def clear(self, prefix: str | None = None) -> int:
        removed: int = self._sink.drive(self._clearing(self._to_clear(prefix, True)))
        return removed

    clear.__doc__ = KVWrites.clear.__doc__

    def _clearing(self, arguments: builtins.list[Any]) -> Steps[int]:
        removed = 0
        while True:
            some: int = yield self._sink.call("kv.clear", arguments, PendingNumber)
            removed += some
            if some < CLEAR_LIMIT:
                return removed

    def wait(
        self, key: str, *, after: int | None = None, timeout_s: float | None = None
    ) -> Versioned | None:
        """Sleep until the version of an entry is not `after`, and return the entry; None if there is none.

        `after` is a version that you have seen. With None it returns as soon as
        there is an entry. A deletion or an expiry is a change too, and gives
        None. See `Database.wait`.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     seen = db.kv.put("run-1", "color", "green")
        ...     version = db.kv.put("run-1", "color", "blue")
        ...     db.kv.wait("run-1", "color", after=seen, timeout_s=5).value
        'blue'

        Raises:
            WaitTimeoutError: its version was `after` for `timeout_s` seconds.
            RunDeletedError: the run was deleted.
        """
        encode_name(key)

        def look(view: Any) -> tuple[Versioned | None, int | None]:
            found = view.kv.get_versioned(key)
            return found, None if found is None else found.version

        differs = differs_from(check_version(after, "after"), look)
        found: Versioned | None = self._waits.wait(differs, timeout_s, operator.itemgetter(0))
        return found

    def watch(
        self, prefix: str | None = None, *, since: int | None = None, timeout_s: float | None = None
    ) -> Iterator[Change]:
        """What changes among the entries that start with `prefix`: first what is there, then what comes.

        If an entry changes several times in short order, you may get only the
        newest state. You get a deletion or an expiry, as None, only for entries
        that this iterator has given before. `since` is the `version` of a
        `Change`: you get everything that was put after it, but not what was
        deleted in between. Cost: a look at all the entries for each wake, 0.5 µs
        each; with many entries it looks less often.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     version = db.kv.put_many("run-1", {"job-1": "queued", "job-2": "queued"})
        ...     changes = db.kv.watch("run-1", "job-", timeout_s=5)
        ...     first = [next(changes).key, next(changes).key]
        ...     existed = db.kv.delete("run-1", "job-1")
        ...     first, next(changes).versioned
        (['job-1', 'job-2'], None)

        Raises:
            WaitTimeoutError: nothing has changed for `timeout_s` seconds.
            RunDeletedError: the run was deleted.
        """
        encode_prefix(prefix)
        watched = Seen(len(self._head), check_version(since, "since") or 0)
        deadline_in(timeout_s)

        def look(view: Any) -> builtins.list[Change]:
            return watched.changes(view.kv._records(prefix), view.version)

        changes: Iterator[Change] = self._waits.stream(each_look(look, timeout_s, iter))
        return changes

    def transaction(self, fn: Callable[[Any], T]) -> T:
        """Run `fn(txn)` as `Database.transact` does, and return its result."""
        result: T = self._transact(fn)
        return result


class TransactionKV(KV[None, PendingNumber, bool]):
    """One run's entries inside a transaction: writes wait for the commit."""

    __slots__ = ()


class PipedKV(KVWrites[None, PendingNumber, Pending[bool]]):
    """One run's entries in a pipeline: writes alone."""

    __slots__ = ("_head", "_sink")

    def __init__(self, sink: Sink, prefix: bytes) -> None:
        self._sink = sink
        self._head = b"%b\0%c" % (prefix, TypeTag.KV)


class KVStore(ByRun[RunKV]):
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

    __slots__ = ()

    KIND = "kv"

    def get(self, run_id: str | OfRun, key: str, default: Any = None) -> Any:
        """The value under a key, or `default` if there is none. Cost: about 2 µs.

        Raises:
            InvalidRunIdError, InvalidKeyError: the name cannot be one.
            ClosedError: the database is closed.
        """
        return self._database.run(run_id).kv.get(key, default)

    get_versioned = by_run(RunKV.get_versioned)
    exists = by_run(RunKV.exists)
    ttl = by_run(RunKV.ttl)
    get_many = by_run(RunKV.get_many)
    list = by_run(RunKV.list)
    list_with_values = by_run(RunKV.list_with_values)
    list_versioned = by_run(RunKV.list_versioned)
    iter = by_run(RunKV.iter)
    count = by_run(RunKV.count)
    put = by_run(RunKV.put)
    put_with_ttl = by_run(RunKV.put_with_ttl)
    put_many = by_run(RunKV.put_many)
    add = by_run(RunKV.add)
    merge = by_run(RunKV.merge)
    delete = by_run(RunKV.delete)
    discard = by_run(RunKV.discard)
    clear = by_run(RunKV.clear)
    transaction = by_run(RunKV.transaction)
    wait = by_run(RunKV.wait)
    watch = by_run(RunKV.watch)


class PipelineKV(ByRun[PipedKV]):
    """Blind KV writes of a pipeline; see `KVStore`."""

    __slots__ = ()

    KIND = "kv"

    put = by_run(PipedKV.put)
    put_with_ttl = by_run(PipedKV.put_with_ttl)
    put_many = by_run(PipedKV.put_many)
    add = by_run(PipedKV.add)
    merge = by_run(PipedKV.merge)
    delete = by_run(PipedKV.delete)
    discard = by_run(PipedKV.discard)
    clear = by_run(PipedKV.clear)
