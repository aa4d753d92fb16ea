"""One run, read: its entries, cells, events and traces.

Whatever a run holds, a listing keeps one page of it in memory, and gives the
first item before it has looked for the last. Each listing can go on from
where an earlier one stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from inmem import values
from inmem.keys import (
    Namespace,
    TypeTag,
    check_run_id,
    encode_label,
    encode_prefix,
    encode_sequence,
    range_of,
)
from inmem.primitives import server
from inmem.primitives.cells import rules as cell_rules
from inmem.primitives.events import rules as event_log
from inmem.primitives.events.rules import ChainVerification, Event
from inmem.primitives.runs.rules import RunMetadata, run_key, unpack
from inmem.primitives.traces import rules as trace_rules
from inmem.primitives.traces.rules import Trace
from inmem.reading.moment import Reads, readable
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


class StoredRun:
    """One run; or `@agent`, `@app`, `@tenant`: what runs share."""

    def __init__(self, reads: Reads, namespace: Namespace, name: str) -> None:
        self.reads = reads
        self.namespace = namespace
        self.name = name
        if name.startswith("@"):
            self.prefix = namespace.shared_prefix(name[1:])
        else:
            self.prefix = namespace.run_prefix(check_run_id(name))

    def metadata(self) -> RunMetadata | None:
        """The run's own record; None if it was never created, or is no run."""
        return None if self.name.startswith("@") else metadata_of(self.reads, self.namespace, self.name)

    def is_empty(self) -> bool:
        """Whether nothing is stored in the run. A record of its own does not count."""
        return self.reads.first(self.prefix + b"\0", self.prefix + b"\1") is None

    def counts(self) -> dict[str, int]:
        """How many records of each primitive there are. Cost: about 0.5 µs a record."""
        return {
            name: self.length() if one.is_log else sum(1 for _ in self.records(one.tag))
            for name, one in server.counted()
        }

    def record(self, tag: int, rest: bytes) -> bytes | None:
        """The live record of one name under a type tag."""
        return self.reads.read(b"%b\0%c%b" % (self.prefix, tag, rest))

    def records(
        self, tag: int, prefix: bytes = b"", *, start_after: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Names and live records under a type tag, those whose names begin with `prefix`."""
        start, end = range_of(self.prefix, tag, prefix)
        if start_after is not None:
            place = b"%b\0%c%b" % (self.prefix, tag, start_after)
            start, end = (start, min(end, place)) if reverse else (max(start, place + b"\0"), end)
        skip = len(self.prefix) + 2
        for key, record in self.reads.walk(start, end, reverse=reverse) if start < end else ():
            yield key[skip:], record

    # --- events -------------------------------------------------------------------------

    def events(
        self, start: int = 0, event_type: str | None = None, *, reverse: bool = False
    ) -> Iterator[Logged]:
        """The events from a sequence on, of one type if one is named.

        Raises:
            RunDeletedError: the run was deleted in the middle of it.
        """
        sequence = encode_sequence(start, "from")
        log, end = range_of(self.prefix, TypeTag.EVENT)
        place = None
        if event_type is None:
            for key, record in self.reads.walk(log + sequence, end, reverse=reverse):
                place = key[-8:]
                yield self._event(key, record)
        else:
            head = b"%b\0%c%b\0" % (self.prefix, TypeTag.EVENT_BY_TYPE, encode_label(event_type, "type"))
            for key, _ in self.reads.walk(head + sequence, head + b"\xff" * 9, reverse=reverse):
                found = self.reads.read(log + key[-8:])
                if found is not None:
                    place = key[-8:]
                    yield self._event(key, found)
        self._check_not_deleted(log, place)

    def _check_not_deleted(self, log: bytes, place: bytes | None) -> None:
        """Events go with their whole run only: the last one that was read must be there still."""
        if place is not None and self.reads.read(log + place) is None:
            raise event_log.deleted_in_the_middle(int.from_bytes(place, "big"))

    def _event(self, key: bytes, record: bytes) -> Logged:
        sequence = int.from_bytes(key[-8:], "big")
        with readable(f"event {sequence} of {self.name}"):
            stored = event_log.unpack(sequence, payload_of(record))
            return Logged(stored.to_event(), len(stored.payload))

    def length(self) -> int:
        """How many events there are. Cost: that of one read."""
        last = self.reads.first(*range_of(self.prefix, TypeTag.EVENT), reverse=True)
        return int.from_bytes(last[0][-8:], "big") + 1 if last else 0

    def head(self) -> Event | None:
        """The last event."""
        last = self.reads.first(*range_of(self.prefix, TypeTag.EVENT), reverse=True)
        return self._event(*last).event if last else None

    def verify(self, anchor: tuple[int, bytes] | None = None) -> ChainVerification:
        """The verdict on the whole log, as far as it goes when it is reached. Raises as `events`."""
        return event_log.verify(self._links(), anchor)

    def _links(self) -> Iterator[tuple[int, bytes]]:
        name = None
        for name, record in self.records(TypeTag.EVENT):
            yield int.from_bytes(name, "big"), payload_of(record)
        self._check_not_deleted(range_of(self.prefix, TypeTag.EVENT)[0], name)

    # --- cells and entries ----------------------------------------------------------------

    def cells(self, prefix: str | None = None, *, start_after: str | None = None) -> Iterator[Cell]:
        """The cells in order of their names."""
        for name, record in self._named(TypeTag.STATE, prefix, start_after):
            payload = payload_of(record)
            with readable(f"cell {name!r} of {self.name}"):
                value = values.decode(cell_rules.value_in(payload))
            version = cell_rules.version_in(payload)
            yield Cell(name, value, version, timestamp_of(record), len(payload) - 8)

    def entries(self, prefix: str | None = None, *, start_after: str | None = None) -> Iterator[Entry]:
        """The entries in order of their keys."""
        for key, record in self._named(TypeTag.KV, prefix, start_after):
            yield self._entry(key, record)

    def entry(self, key: str) -> Entry | None:
        """One entry."""
        record = self.record(TypeTag.KV, key.encode())
        return None if record is None else self._entry(key, record)

    def _entry(self, key: str, record: bytes) -> Entry:
        payload = payload_of(record)
        with readable(f"the value of {key!r} in {self.name}"):
            value = values.decode(payload)
        expiry = expires_at(record)
        ttl_s = max(0.0, (expiry - self.reads.now_us()) / 1e6) if expiry else None
        return Entry(key, value, version_of(record), timestamp_of(record), ttl_s, len(payload))

    def _named(
        self, tag: TypeTag, prefix: str | None, start_after: str | None
    ) -> Iterator[tuple[str, bytes]]:
        after = None if start_after is None else encode_prefix(start_after, "start_after")
        for name, record in self.records(tag, encode_prefix(prefix), start_after=after):
            yield name.decode("utf-8", "backslashreplace"), record

    # --- traces -------------------------------------------------------------------------

    def trace(self, trace_id: bytes) -> Trace | None:
        """One trace."""
        record = self.record(TypeTag.TRACE, trace_id)
        if record is None:
            return None
        with readable(f"trace {trace_id.decode(errors='backslashreplace')} of {self.name}"):
            return trace_rules.unpack(trace_id.decode(), payload_of(record))

    def traces(
        self, index: TypeTag = TypeTag.TRACE_BY_TIME, name: str = "", *, since: int = 0, until: int = _TIMES,
        start_after: Trace | None = None, reverse: bool = False,
    ) -> Iterator[Trace]:
        """The traces under a name of an index, in order of time; all of them by default.

        An index entry that its record denies is damage, and is passed over.
        """
        head = b"%b\0%c" % (self.prefix, index)
        if index != TypeTag.TRACE_BY_TIME:
            head += name.encode() + b"\0"
        start = head + since.to_bytes(8, "big")
        end = head + (until.to_bytes(8, "big") if until < _TIMES else b"\xff" * _PLACE_BYTES)
        if start_after is not None:
            place = head + start_after.timestamp.to_bytes(8, "big") + start_after.id.encode()
            start, end = (start, min(end, place)) if reverse else (max(start, place + b"\0"), end)
        skip = len(head) + 8
        for key, _ in self.reads.walk(start, end, reverse=reverse) if start < end else ():
            trace = self.trace(key[skip:])
            if trace is not None:
                yield trace

    def traces_below(
        self, trace_id: str, *, start_after: Trace | None = None, reverse: bool = False
    ) -> Iterator[Trace]:
        """The traces directly below another; without an id those below none."""
        below = self.traces(TypeTag.TRACE_BY_PARENT, trace_id, start_after=start_after, reverse=reverse)
        for child in below:
            if (child.parent_id or "") == trace_id:
                yield child

    def trace_types(self, limit: int) -> tuple[dict[str, int], bool]:
        """How many traces each type has, of the first types in order; whether that is all of them."""
        counts: dict[str, int] = {}
        head = b"%b\0%c" % (self.prefix, TypeTag.TRACE_BY_TYPE)
        start, end = range_of(self.prefix, TypeTag.TRACE_BY_TYPE)
        while True:
            first = self.reads.first(start, end)
            if first is None or len(counts) == limit:
                return counts, first is None
            label = first[0][len(head) :].partition(b"\0")[0]
            places = self.records(TypeTag.TRACE_BY_TYPE, label + b"\0")
            counts[label.decode("utf-8", "backslashreplace")] = sum(1 for _ in places)
            start = head + label + b"\1"


def metadata_of(reads: Reads, namespace: Namespace, run_id: str) -> RunMetadata | None:
    """A run's own record."""
    record = reads.read(run_key(namespace.prefix(), check_run_id(run_id)))
    with readable(f"run {run_id}"):
        return None if record is None else unpack(run_id, payload_of(record))
