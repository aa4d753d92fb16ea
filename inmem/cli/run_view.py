"""What one run holds, streamed: events, cells, entries, traces.

Invariant: whatever a run holds, each of these keeps one chunk of it in
memory, and gives the first before it has looked for the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from inmem import values
from inmem.cli.view import View, readable
from inmem.keys import TypeTag, encode_label, encode_prefix, encode_sequence, range_of
from inmem.model import cell as cell_rules
from inmem.model import event_log
from inmem.model import trace as trace_rules
from inmem.model.event_log import ChainVerification, Event
from inmem.model.trace import Trace
from inmem.record import expires_at, payload_of, timestamp_of, version_of

_TIMES: Final = 1 << 63
_PLACE_BYTES: Final = 8 + 65  # timestamp, and more than any id


class Entry(NamedTuple):
    """An entry of the KV store; `ttl_s` is None if it does not expire, `size` is of the encoded value."""

    key: str
    value: object
    version: int
    timestamp: int
    ttl_s: float | None
    size: int


class Cell(NamedTuple):
    """A cell with its name; `size` is of the encoded value."""

    name: str
    value: object
    version: int
    updated_at: int
    size: int


class Logged(NamedTuple):
    """An event, and the size of its encoded payload."""

    event: Event
    size: int


class RunView:
    """One run, or `@agent`, `@app`, `@tenant`: what runs share."""

    def __init__(self, view: View, name: str) -> None:
        self.view = view
        self.name = name
        self.prefix = view.prefix(name)
        self._events, self._events_end = range_of(self.prefix, TypeTag.EVENT)

    # --- events -------------------------------------------------------------------------

    def event_range(self, start: int = 0, event_type: str | None = None) -> tuple[bytes, bytes]:
        """The keys from a sequence on: of the log, or of its index by a type."""
        sequence = encode_sequence(start, "from")
        if event_type is None:
            return self._events + sequence, self._events_end
        head = b"%b\0%c%b\0" % (self.prefix, TypeTag.EVENT_BY_TYPE, encode_label(event_type, "type"))
        return head + sequence, head + b"\xff" * 9

    def events(
        self, start: int = 0, event_type: str | None = None, *, reverse: bool = False
    ) -> Iterator[Logged]:
        """The events from a sequence on, of one type if one is named."""
        for key, record in self.view.walk(*self.event_range(start, event_type), reverse=reverse):
            if event_type is None:
                yield self._event(key, record)
                continue
            found = self.view.read(self._events + key[-8:])
            if found is not None:
                yield self._event(key, found)

    def _event(self, key: bytes, record: bytes) -> Logged:
        sequence = int.from_bytes(key[-8:], "big")
        with readable(f"event {sequence} of {self.name}"):
            stored = event_log.unpack(sequence, payload_of(record))
            return Logged(stored.to_event(), len(stored.payload))

    def length(self) -> int:
        """How many events there are. Cost: that of one read."""
        with self.view.moment() as moment:
            last = moment.scan(self._events, self._events_end, limit=1, reverse=True)
        return int.from_bytes(last[0][0][-8:], "big") + 1 if last else 0

    def head(self) -> Event | None:
        """The last event."""
        return next((logged.event for logged in self.events(reverse=True)), None)

    def verify(self, anchor: tuple[int, bytes] | None = None) -> ChainVerification:
        """The verdict on the whole log, as far as it goes when it is reached."""
        return event_log.verify(
            (
                (int.from_bytes(key[-8:], "big"), payload_of(record))
                for key, record in self.view.walk(self._events, self._events_end)
            ),
            anchor,
        )

    # --- cells and entries ----------------------------------------------------------------

    def cells(self, prefix: str | None = None) -> Iterator[Cell]:
        """The cells in order of their names."""
        for name, record in self._named(TypeTag.STATE, prefix):
            payload = payload_of(record)
            with readable(f"cell {name!r} of {self.name}"):
                value = values.decode(cell_rules.value_in(payload))
            version = cell_rules.version_in(payload)
            yield Cell(name, value, version, timestamp_of(record), len(payload) - 8)

    def entries(self, prefix: str | None = None) -> Iterator[Entry]:
        """The entries in order of their keys."""
        for key, record in self._named(TypeTag.KV, prefix):
            yield self.entry_of(key, record)

    def entry_of(self, key: str, record: bytes) -> Entry:
        """The entry that a record holds."""
        payload = payload_of(record)
        with readable(f"the value of {key!r} in {self.name}"):
            value = values.decode(payload)
        expiry = expires_at(record)
        ttl_s = max(0.0, (expiry - self.view.now_us()) / 1e6) if expiry else None
        return Entry(key, value, version_of(record), timestamp_of(record), ttl_s, len(payload))

    def _named(self, tag: TypeTag, prefix: str | None) -> Iterator[tuple[str, bytes]]:
        skip = len(self.prefix) + 2
        for key, record in self.view.walk(*range_of(self.prefix, tag, encode_prefix(prefix))):
            yield key[skip:].decode("utf-8", "backslashreplace"), record

    # --- traces -------------------------------------------------------------------------

    def trace(self, trace_id: bytes) -> Trace | None:
        """One trace."""
        record = self.view.read(trace_rules.trace_key(self.prefix, trace_id))
        if record is None:
            return None
        with readable(f"trace {trace_id.decode(errors='backslashreplace')} of {self.name}"):
            return trace_rules.unpack(trace_id.decode(), payload_of(record))

    def traces(
        self, index: TypeTag = TypeTag.TRACE_BY_TIME, name: str = "", *, since: int = 0, until: int = _TIMES,
        reverse: bool = False,
    ) -> Iterator[Trace]:
        """The traces under a name of an index, in order of time; all of them by default.

        An index entry that its record denies is damage, and is passed over.
        """
        head = b"%b\0%c" % (self.prefix, index)
        if index != TypeTag.TRACE_BY_TIME:
            head += name.encode() + b"\0"
        start = head + since.to_bytes(8, "big")
        end = head + (until.to_bytes(8, "big") if until < _TIMES else b"\xff" * _PLACE_BYTES)
        skip = len(head) + 8
        for key, _ in self.view.walk(start, end, reverse=reverse):
            trace = self.trace(key[skip:])
            if trace is not None:
                yield trace

    def traces_below(self, trace_id: str, *, reverse: bool = False) -> Iterator[Trace]:
        """The traces directly below another; without an id those below none."""
        for child in self.traces(TypeTag.TRACE_BY_PARENT, trace_id, reverse=reverse):
            if (child.parent_id or "") == trace_id:
                yield child

    def trace_types(self, limit: int) -> tuple[dict[str, int], bool]:
        """How many traces each type has, of the first types in order; whether that is all of them."""
        counts: dict[str, int] = {}
        head = b"%b\0%c" % (self.prefix, TypeTag.TRACE_BY_TYPE)
        start, end = range_of(self.prefix, TypeTag.TRACE_BY_TYPE)
        while True:
            with self.view.moment() as moment:
                first = moment.scan(start, end, limit=1)
            if not first or len(counts) == limit:
                return counts, not first
            label = first[0][0][len(head) :].partition(b"\0")[0]
            places = self.view.walk(*range_of(self.prefix, TypeTag.TRACE_BY_TYPE, label + b"\0"))
            counts[label.decode("utf-8", "backslashreplace")] = sum(1 for _ in places)
            start = head + label + b"\1"

    # --- the run ------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many records of each primitive there are. Cost: about 0.5 µs a record."""
        return {
            "kv": self._count(TypeTag.KV),
            "events": self.length(),
            "cells": self._count(TypeTag.STATE),
            "traces": self._count(TypeTag.TRACE_BY_TIME),
        }

    def _count(self, tag: TypeTag) -> int:
        return sum(1 for _ in self.view.walk(*range_of(self.prefix, tag)))

    def is_empty(self) -> bool:
        """Whether nothing at all is stored under this name; a record of its own does not count."""
        start, end = self.prefix + b"\0", self.prefix + b"\1"
        with self.view.moment() as moment:
            return not moment.scan(start, end, limit=1)
