"""EventLog: one append-only, hash-chained log per run.

Invariant: sequence, time and hash of an event are given at commit, by the
writer, so appends of many processes form one chain without conflicts. A
transaction that also reads its log needs them earlier: it pins the head, works
them out itself, and conflicts if somebody else appended meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn

from inmem import values
from inmem.client.transaction import Item, Pending, Reader, Transaction, resolved_as
from inmem.errors import AppendOnlyError, CommitUnknownError, InvalidInputError
from inmem.keys import TypeTag, encode_label, encode_sequence, range_of
from inmem.model.event_log import (
    CHAIN_IDS,
    HASH_BYTES,
    Appended,
    ChainVerification,
    Event,
    StoredEvent,
    follow,
    pack,
    unpack,
    verify,
)
from inmem.primitives._common import Autocommit, Host, check_limit
from inmem.record import pack as pack_record
from inmem.record import payload_of

_CHUNK: Final = 512  # events of one snapshot while streaming: bounds memory and the snapshot's age


class EventReads:
    """Reads of one run's log, through any kind of reader."""

    __slots__ = ("_by_type", "_end", "_prefix", "_reader", "_start")

    def __init__(self, reader: Reader, prefix: bytes) -> None:
        self._reader = reader
        self._prefix = prefix
        self._start, self._end = range_of(prefix, TypeTag.EVENT)
        self._by_type = b"%b\0%c" % (prefix, TypeTag.EVENT_BY_TYPE)

    def _about_to_read(self) -> None:
        """Hook for transactions, whose reads pin the head."""

    def _key(self, sequence: int) -> bytes:
        return self._start + sequence.to_bytes(8, "big")

    def read(self, sequence: int) -> Event | None:
        """One event. See `EventLog.read`."""
        key = self._start + encode_sequence(sequence)
        self._about_to_read()
        record = self._reader.read(key)
        return None if record is None else unpack(sequence, payload_of(record)).to_event()

    def read_range(
        self, start: int, end: int | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> list[Event]:
        """Events of a half-open range. See `EventLog.read_range`."""
        first = self._start + encode_sequence(start, "start")
        last = self._end if end is None else self._start + encode_sequence(end, "end")
        check_limit(limit)
        self._about_to_read()
        items = self._reader.scan(first, max(first, last), limit=limit, reverse=bool(reverse))
        return [_event(item) for item in items]

    def head(self) -> Event | None:
        """The last event. See `EventLog.head`."""
        self._about_to_read()
        found = self._reader.scan(self._start, self._end, limit=1, reverse=True)
        return _event(found[0]) if found else None

    def len(self) -> int:
        """How many events there are. See `EventLog.len`."""
        self._about_to_read()
        found = self._reader.scan(self._start, self._end, limit=1, reverse=True)
        return int.from_bytes(found[0][0][-8:], "big") + 1 if found else 0

    def iter(self, start: int = 0) -> Iterator[Event]:
        """Stream events from a sequence on. See `EventLog.iter`."""
        encode_sequence(start, "start")
        return (_event(item) for item in self._stream(start))

    def _stream(self, start: int) -> Iterator[Item]:
        self._about_to_read()
        while True:
            items = self._reader.scan(self._key(start), self._end, limit=_CHUNK)
            yield from items
            if len(items) < _CHUNK:
                return
            start = int.from_bytes(items[-1][0][-8:], "big") + 1

    def read_by_type(
        self, event_type: str, *, limit: int | None = None, reverse: bool = False
    ) -> list[Event]:
        """Events of one type. See `EventLog.read_by_type`."""
        start = self._by_type + encode_label(event_type, "event_type") + b"\0"
        check_limit(limit)
        self._about_to_read()
        with self._reader.view() as view:
            # The type's name and its NUL end the index's shared part: 8 bytes of sequence follow.
            entries = view.scan(start, start + b"\xff" * 9, limit=limit, reverse=bool(reverse))
            records = [(self._start + key[-8:], view.read(self._start + key[-8:])) for key, _ in entries]
        return [_event((key, record)) for key, record in records if record is not None]

    def verify_chain(self, anchor: tuple[int, bytes] | None = None) -> ChainVerification:
        """Check the whole log. See `EventLog.verify_chain`."""
        if anchor is not None:
            if not isinstance(anchor, tuple | list) or len(anchor) != 2:
                raise InvalidInputError("anchor must be (sequence, hash)", argument="anchor")
            sequence, digest = anchor
            encode_sequence(sequence, "anchor")
            if not isinstance(digest, bytes) or len(digest) != HASH_BYTES:
                raise InvalidInputError(f"anchor's hash must be {HASH_BYTES} bytes", argument="anchor")
        return verify(
            ((int.from_bytes(key[-8:], "big"), payload_of(record)) for key, record in self._stream(0)), anchor
        )

    def update(self, *_: object, **__: object) -> NoReturn:
        """There is no update: raises AppendOnlyError."""
        raise AppendOnlyError("events are never changed")

    def delete(self, *_: object, **__: object) -> NoReturn:
        """There is no delete: raises AppendOnlyError."""
        raise AppendOnlyError("events are never removed one by one")


class ScopedEvents(EventReads):
    """One run's log outside a transaction: each append is a commit of its own."""

    __slots__ = ("_commit",)

    def __init__(self, reader: Reader, commit: Autocommit, prefix: bytes) -> None:
        super().__init__(reader, prefix)
        self._commit = commit

    def append(self, event_type: str, payload: Any = None) -> Appended:
        """Append one event. See `EventLog.append`."""
        items = [[encode_label(event_type, "event_type"), _encode(payload), 0]]
        try:
            return self._append(items)[0]
        except CommitUnknownError as error:
            raise resolved_as(error, lambda appended: appended[0]) from None

    def append_many(self, events: Iterable[tuple[str, Any]]) -> list[Appended]:
        """Append many events as one commit. See `EventLog.append_many`."""
        items = _items(events)
        return self._append(items) if items else []

    def _append(self, items: list[list[Any]]) -> list[Appended]:
        try:
            return _appended(self._commit.call("event.append", self._prefix, items))
        except CommitUnknownError as error:
            raise resolved_as(error, _appended) from None


class PendingAppend(Pending):
    """An event appended in a transaction: `sequence` and `hash` are there after the commit."""

    __slots__ = ()

    @property
    def sequence(self) -> int:
        """Where in the log the event went."""
        sequence: int = self.result()[0]
        return sequence

    @property
    def hash(self) -> bytes:
        """The event's hash, 32 bytes."""
        digest: bytes = self.result()[1]
        return digest

    def __repr__(self) -> str:
        return f"PendingAppend(sequence={self._result[0]})" if self._result else "PendingAppend()"


class _Log:
    """What a transaction has appended to one log."""

    __slots__ = ("head", "items", "pending", "pinned")

    def __init__(self) -> None:
        self.items: list[list[Any]] = []  # the arguments of the one call, added to as we go
        self.pending: list[PendingAppend] = []
        self.pinned = False
        self.head: StoredEvent | None = None

    def resolve(self, result: Any) -> None:
        first, hashes = result
        for i, (pending, digest) in enumerate(zip(self.pending, hashes, strict=True)):
            pending.resolve((first + i, digest))


class TransactionEvents(EventReads):
    """One run's log inside a transaction or a pipeline: appends wait for the commit."""

    __slots__ = ("_chain", "_txn")

    def __init__(self, txn: Transaction, prefix: bytes, chain: str) -> None:
        super().__init__(txn, prefix)
        self._txn = txn
        self._chain = CHAIN_IDS[chain]

    def append(self, event_type: str, payload: Any = None) -> PendingAppend:
        """Append one event at commit. See `EventLog.append`."""
        return self._append([[encode_label(event_type, "event_type"), _encode(payload), 0]])[0]

    def append_many(self, events: Iterable[tuple[str, Any]]) -> list[PendingAppend]:
        """Append many events at commit. See `EventLog.append_many`."""
        return self._append(_items(events))

    def _append(self, items: list[list[Any]]) -> list[PendingAppend]:
        self._txn.check_open()  # what was sent already can not be added to
        log = self._log()
        if items and not log.items:
            self._txn.call("event.append", [self._prefix, log.items], log.resolve)
        pending = [PendingAppend() for _ in items]
        log.items += items
        log.pending += pending
        if log.pinned:
            self._place(log, len(log.items) - len(items))
        return pending

    def _log(self) -> _Log:
        log = self._txn.logs.get(self._prefix)
        if log is None:
            log = self._txn.logs[self._prefix] = _Log()
        return log

    def _about_to_read(self) -> None:
        log = self._log()
        if log.pinned:
            return
        # The range of the head, or of the empty log, becomes a read: nobody else may append now.
        found = self._txn.scan(self._start, self._end, limit=1, reverse=True)
        if found:
            key, record = found[0]
            log.head = unpack(int.from_bytes(key[-8:], "big"), payload_of(record))
        log.pinned = True
        self._place(log, 0)

    def _place(self, log: _Log, begin: int) -> None:
        """Give events from `begin` on their final place, and show them to own reads."""
        now_us = self._txn.now_us()
        for item, pending in zip(log.items[begin:], log.pending[begin:], strict=True):
            event_type, payload, _ = item
            log.head = event = follow(log.head, self._chain, now_us, event_type, payload)
            item[2] = event.timestamp
            pending.resolve((event.sequence, event.hash))
            sequence = encode_sequence(event.sequence)
            self._txn.show(self._start + sequence, pack_record(0, 0, 0, pack(event)))
            self._txn.show(self._by_type + event_type + b"\0" + sequence, pack_record(0, 0, 0, b""))


class EventLog:
    """An append-only, hash-chained log per run.

    Sequences start at 0 and have no gaps, whatever fails; appends of many
    processes to one log all succeed, in one order. There is no update and no
    delete. Types are 1-128 bytes, payloads any value.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     db.events.append("run-1", "started", {"by": "planner"}).sequence
    ...     db.events.verify_chain("run-1").is_valid
    0
    True
    """

    __slots__ = ("_database",)

    def __init__(self, database: Host) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"EventLog({self._database!r})"

    def _scope(self, run_id: str) -> ScopedEvents:
        scope: ScopedEvents = self._database.run(run_id).events
        return scope

    def append(self, run_id: str, event_type: str, payload: Any = None) -> Appended:
        """Append an event; its sequence and hash. Never conflicts. Cost: one round trip.

        Raises:
            InvalidKeyError: the type is empty, over 128 bytes or has NUL.
            InvalidValueError, LimitError: the payload cannot be stored.
            RunDeletedError: the run was deleted.
            CommitUnknownError: no answer before the deadline.
        """
        return self._scope(run_id).append(event_type, payload)

    def append_many(self, run_id: str, events: Iterable[tuple[str, Any]]) -> list[Appended]:
        """Append `(type, payload)` pairs as one atomic commit, in order. Cost: one round trip."""
        return self._scope(run_id).append_many(events)

    def read(self, run_id: str, sequence: int) -> Event | None:
        """One event, None beyond the end. Cost: about 4 µs."""
        return self._scope(run_id).read(sequence)

    def read_range(
        self, run_id: str, start: int, end: int | None = None, *, limit: int | None = None,
        reverse: bool = False,
    ) -> list[Event]:
        """The events of `[start, end)`, all of one version. Cost: about 3 µs an event."""
        return self._scope(run_id).read_range(start, end, limit=limit, reverse=reverse)

    def head(self, run_id: str) -> Event | None:
        """The last event, None for an empty log."""
        return self._scope(run_id).head()

    def len(self, run_id: str) -> int:
        """How many events there are. Cost: that of one read, however long the log."""
        return self._scope(run_id).len()

    def iter(self, run_id: str, start: int = 0) -> Iterator[Event]:
        """Stream events from `start` on, in bounded memory.

        Takes a new snapshot for each 512 events, so events appended
        meanwhile are seen too, and nothing is pinned for long.
        """
        return self._scope(run_id).iter(start)

    def read_by_type(
        self, run_id: str, event_type: str, *, limit: int | None = None, reverse: bool = False
    ) -> list[Event]:
        """Events of one type in sequence order. Cost: linear in the result, not in the log."""
        return self._scope(run_id).read_by_type(event_type, limit=limit, reverse=reverse)

    def verify_chain(self, run_id: str, anchor: tuple[int, bytes] | None = None) -> ChainVerification:
        """Check sequences, times and hashes of the whole log. Cost: about 4 µs an event.

        `anchor` is a `(sequence, hash)` that you kept elsewhere; with it a
        log that was cut or replaced is noticed too, which a bare chain cannot.
        """
        return self._scope(run_id).verify_chain(anchor)

    def update(self, *_: object, **__: object) -> NoReturn:
        """There is no update.

        Raises:
            AppendOnlyError: always.
        """
        raise AppendOnlyError("events are never changed")

    def delete(self, *_: object, **__: object) -> NoReturn:
        """There is no delete; `delete_run` removes a log with its run.

        Raises:
            AppendOnlyError: always.
        """
        raise AppendOnlyError("events are never removed one by one")


def _appended(result: Any) -> list[Appended]:
    first, hashes = result
    return [Appended(first + i, digest) for i, digest in enumerate(hashes)]


def _event(item: Item) -> Event:
    key, record = item
    return unpack(int.from_bytes(key[-8:], "big"), payload_of(record)).to_event()


def _encode(payload: Any) -> bytes:
    return values.encode(payload, "payload")


def _items(events: Iterable[tuple[str, Any]]) -> list[list[Any]]:
    if isinstance(events, str | bytes) or not isinstance(events, Iterable):
        raise InvalidInputError("events must be an iterable of (type, payload)", argument="events")
    items = []
    for i, pair in enumerate(events):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidInputError(f"events[{i}] must be (type, payload)", argument="events")
        event_type, payload = pair
        items.append([
            encode_label(event_type, f"events[{i}][0]"), values.encode(payload, f"events[{i}][1]"), 0
        ])
    return items
