"""EventLog: one append-only, hash-chained log per run.

Invariant: sequence, time and hash of an event are given at commit, by the
writer, so appends of many processes form one chain without conflicts. In a
transaction that also reads its log the appends depend on what they follow: it
conflicts if somebody else appended meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, NoReturn, TypeVar

from inmem import values
from inmem.client.retry import deadline_in
from inmem.config import ENTRY_BYTES
from inmem.engines.base import Item, Sink, View
from inmem.errors import AppendOnlyError, InvalidInputError, InvalidValueError
from inmem.host.interrupts import let_through
from inmem.keys import TypeTag, encode_label, encode_sequence, range_of
from inmem.pending import Pending
from inmem.primitives._common import check_limit, deprecated, encoded
from inmem.primitives._paging import past, stream
from inmem.primitives.byrun import ByRun, by_run
from inmem.primitives.events.rules import (
    HASH_BYTES,
    Appended,
    ChainVerification,
    Event,
    unpack,
    verify,
)
from inmem.record import payload_of
from inmem.stepping import FacadeWaits, Streamed, Until
from inmem.writeset import check_weight

A = TypeVar("A")  # where an event went, or what will say so

_AFTER_ALL: Final = b"\xff" * 9  # more than any sequence

class PendingAppend(Pending[Appended]):
    """An event appended in a transaction or pipeline: `sequence` and `hash` are there after the commit.

    In a transaction that reads its log they are there at once.
    """

    __slots__ = ()

    def resolve_part(self, result: Any, position: int) -> None:
        """Where one of the appended events went. An `Appended` is made when it is asked for."""
        first, hashes = result
        self._known = first + position, hashes[position]

    def _made(self, known: tuple[Any, ...]) -> Appended:
        return Appended(*known)

    @property
    def sequence(self) -> int:
        """Where in the log the event went."""
        return self.result().sequence

    @property
    def hash(self) -> bytes:
        """The event's hash, 32 bytes."""
        return self.result().hash

    def __repr__(self) -> str:
        return f"PendingAppend(sequence={self._known[0]})" if self._known else "PendingAppend()"


class _AppendOnly:
    __slots__ = ()

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


class EventReads(_AppendOnly):
    """Reads of one run's log."""

    __slots__ = ("_by_type", "_end", "_prefix", "_start", "_view")

    def __init__(self, view: View, prefix: bytes) -> None:
        self._view = view
        self._prefix = prefix
        self._start, self._end = range_of(prefix, TypeTag.EVENT)
        self._by_type = b"%b\0%c" % (prefix, TypeTag.EVENT_BY_TYPE)

    def read(self, sequence: int) -> Event | None:
        """One event, None beyond the end. Cost: about 4 µs."""
        record = self._view.read(self._start + encode_sequence(sequence))
        return None if record is None else unpack(sequence, payload_of(record)).to_event()

    def read_range(
        self, start: int, end: int | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> list[Event]:
        """The events of `[start, end)`, all of one version. Cost: about 3 µs an event."""
        first = self._start + encode_sequence(start, "start")
        last = self._end if end is None else self._start + encode_sequence(end, "end")
        check_limit(limit)
        items = self._view.scan(first, max(first, last), limit=limit, reverse=bool(reverse))
        return [_event(item) for item in items]

    def head(self) -> Event | None:
        """The last event, None for an empty log."""
        found = self._view.scan(self._start, self._end, limit=1, reverse=True)
        return _event(found[0]) if found else None

    def count(self) -> int:
        """How many events there are. Cost: that of one read, however long the log."""
        found = self._view.scan(self._start, self._end, limit=1, reverse=True)
        return int.from_bytes(found[0][0][-8:], "big") + 1 if found else 0

    def iter(
        self, start: int = 0, *, event_type: str | None = None, reverse: bool = False
    ) -> Iterator[Event]:
        """Stream events from `start` on, of one type if one is given, in bounded memory.

        Takes a new snapshot for each 512 events or 4 MiB, so events appended
        meanwhile are seen too, and nothing is pinned for long.

        Raises:
            RunDeletedError: the run was deleted in the middle of it.
        """
        first = encode_sequence(start, "start")
        if event_type is None:
            return (_event(item) for item in self._stream(first, reverse=bool(reverse)))
        head = self._typed(event_type)
        return (
            _event(item) for item in stream(
                self._view, self._prefix, head + first, head + _AFTER_ALL, reverse=bool(reverse),
                record_key=lambda key: self._start + key[-8:],
            )
        )

    def _stream(self, first: bytes = bytes(8), *, reverse: bool = False) -> Iterator[Item]:
        return stream(self._view, self._prefix, self._start + first, self._end, reverse=reverse)

    def _typed(self, event_type: str) -> bytes:
        """What the places of a type's events begin with; 8 bytes of sequence follow."""
        return self._by_type + encode_label(event_type, "event_type") + b"\0"

    def len(self) -> int:
        """Deprecated, and goes with the next release: `count`."""
        deprecated("len", "count")
        return self.count()

    def read_by_type(
        self, event_type: str, *, limit: int | None = None, start_after: int | None = None,
        reverse: bool = False,
    ) -> list[Event]:
        """Deprecated, and goes with the next release: `query_by_type`."""
        deprecated("read_by_type", "query_by_type")
        return self.query_by_type(event_type, limit=limit, start_after=start_after, reverse=reverse)

    def query_by_type(
        self, event_type: str, *, limit: int | None = None, start_after: int | None = None,
        reverse: bool = False,
    ) -> list[Event]:
        """Events of one type in sequence order. Cost: linear in the result, not in the log.

        `start_after` continues after a sequence (before it, if `reverse`).
        """
        head = self._typed(event_type)
        check_limit(limit)
        place = None if start_after is None else head + encode_sequence(start_after, "start_after")
        start, end = past(head, head + _AFTER_ALL, place, reverse)
        with self._view.moment() as view:
            entries = view.scan(start, end, limit=limit, reverse=bool(reverse))
            keys = [self._start + key[-8:] for key, _ in entries]
            records = view.read_many(keys)
        found = zip(keys, records, strict=True)
        return [_event((key, record)) for key, record in found if record is not None]

    def verify_chain(self, anchor: tuple[int, bytes] | None = None) -> ChainVerification:
        """Check sequences, times and hashes of the whole log. Cost: about 4 µs an event.

        `anchor` is a `(sequence, hash)` that you have kept elsewhere. With it,
        a log that was cut or replaced is noticed too.

        Raises:
            RunDeletedError: the run was deleted in the middle of it.
        """
        if anchor is not None:
            if not isinstance(anchor, tuple | list) or len(anchor) != 2:
                raise InvalidInputError("anchor must be (sequence, hash)", argument="anchor")
            sequence, digest = anchor
            encode_sequence(sequence, "anchor")
            if not isinstance(digest, bytes) or len(digest) != HASH_BYTES:
                raise InvalidInputError(f"anchor's hash must be {HASH_BYTES} bytes", argument="anchor")
        return verify(
            ((int.from_bytes(key[-8:], "big"), payload_of(record)) for key, record in self._stream()), anchor
        )


class EventWrites(Generic[A]):
    """Appends to one run's log."""

    __slots__ = ()

    _prefix: bytes
    _sink: Sink

    def append(self, event_type: str, payload: Any = None) -> A:
        """Append an event; its sequence and hash. Never conflicts. Cost: one round trip.

        In a transaction it conflicts only if the log is also read.

        Raises:
            InvalidKeyError: the type is empty, over 128 bytes or has NUL.
            InvalidValueError, LimitError: the payload cannot be stored.
            RunDeletedError: the run was deleted.
            CommitUnknownError: no answer before the deadline.
        """
        label = encode_label(event_type, "event_type")
        try:  # as `encoded`, without its call
            data = values.encode(payload, "payload")
        except InvalidValueError as error:
            let_through(error)
            data = values.encode_by(self._sink.default, payload, "payload")
        items = [[label, data, 0]]
        appended: A = self._sink.join(
            "event.append", self._prefix, items, _appended, PendingAppend, is_one=True
        )
        return appended

    def append_many(self, events: Iterable[tuple[str, Any]]) -> list[A]:
        """Append `(type, payload)` pairs as one atomic commit, in order. Cost: one round trip."""
        appended: list[A] = self._sink.join(
            "event.append", self._prefix, _items(self._sink, events), _appended, PendingAppend
        )
        return appended


class Events(EventReads, EventWrites[A]):
    """One run's log."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, prefix: bytes) -> None:
        super().__init__(view, prefix)
        self._sink = sink


class RunEvents(Events[Appended]):
    """One run's log outside a transaction: each append is a commit of its own."""

    __slots__ = ("_waits",)

    def __init__(self, view: View, sink: Sink, prefix: bytes, waits: FacadeWaits) -> None:
        super().__init__(view, sink, prefix)
        self._waits = waits

    def follow(
        self, start: int = 0, *, event_type: str | None = None, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """The events from `start` on, of one type if one is given, then those that come: each once, in order.

        In bounded memory, and without polling: see `Database.wait`. Cost: 3 µs
        an event, and 60 µs each time that it has to wait.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     appended = db.events.append("run-1", "started")
        ...     for event in db.events.follow("run-1", timeout_s=5):
        ...         print(event.sequence, event.event_type)
        ...         if event.event_type == "done":
        ...             break
        ...         appended = db.events.append("run-1", "done")
        0 started
        1 done

        Raises:
            WaitTimeoutError: nothing has come for `timeout_s` seconds.
            RunDeletedError: the run was deleted.
        """
        encode_sequence(start, "start")
        if event_type is not None:
            encode_label(event_type, "event_type")
        deadline_in(timeout_s)
        events: Iterator[Event] = self._waits.stream(self._follow(start, event_type, timeout_s))
        return events

    def _follow(self, start: int, event_type: str | None, timeout_s: float | None) -> Streamed[Event]:
        def has_more(view: Any) -> bool:
            if event_type is None:
                return bool(view.events.read_range(start, limit=1))
            after = start - 1 if start else None
            return bool(view.events.query_by_type(event_type, limit=1, start_after=after))

        while True:
            for event in self.iter(start, event_type=event_type):
                yield event
                start = event.sequence + 1
            yield Until(has_more, timeout_s)


class TransactionEvents(Events[PendingAppend]):
    """One run's log inside a transaction: appends wait for the commit."""

    __slots__ = ()


class PipedEvents(EventWrites[PendingAppend]):
    """One run's log in a pipeline: appends alone."""

    __slots__ = ("_prefix", "_sink")

    def __init__(self, sink: Sink, prefix: bytes) -> None:
        self._sink = sink
        self._prefix = prefix


class EventLog(ByRun[RunEvents], _AppendOnly):
    """An append-only, hash-chained log per run.

    Sequences start at 0 and have no gaps, whatever fails. Many processes can
    append to one log: all appends succeed, in one order. Events cannot be
    changed or deleted. Types are 1-128 bytes, payloads any value.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     db.events.append("run-1", "started", {"by": "planner"}).sequence
    ...     db.events.verify_chain("run-1").is_valid
    0
    True
    """

    __slots__ = ()

    KIND = "events"

    append = by_run(RunEvents.append)
    append_many = by_run(RunEvents.append_many)
    read = by_run(RunEvents.read)
    read_range = by_run(RunEvents.read_range)
    head = by_run(RunEvents.head)
    count = by_run(RunEvents.count)
    len = by_run(RunEvents.len)
    iter = by_run(RunEvents.iter)
    query_by_type = by_run(RunEvents.query_by_type)
    read_by_type = by_run(RunEvents.read_by_type)
    verify_chain = by_run(RunEvents.verify_chain)
    follow = by_run(RunEvents.follow)


class PipelineEvents(ByRun[PipedEvents]):
    """Appends of a pipeline; see `EventLog`."""

    __slots__ = ()

    KIND = "events"

    append = by_run(PipedEvents.append)
    append_many = by_run(PipedEvents.append_many)


def _appended(result: Any, position: int) -> Appended:
    first, hashes = result
    return Appended(first + position, hashes[position])


def _event(item: Item) -> Event:
    key, record = item
    return unpack(int.from_bytes(key[-8:], "big"), payload_of(record)).to_event()


def _items(sink: Sink, events: Iterable[tuple[str, Any]]) -> list[list[Any]]:
    if isinstance(events, str | bytes) or not isinstance(events, Iterable):
        raise InvalidInputError("events must be an iterable of (type, payload)", argument="events")
    items = []
    for i, pair in enumerate(events):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidInputError(f"events[{i}] must be (type, payload)", argument="events")
        event_type, payload = pair
        items.append([
            encode_label(event_type, f"events[{i}][0]"), encoded(sink, payload, f"events[{i}][1]"), 0
        ])
    check_weight(2 * ENTRY_BYTES * len(items))
    return items
