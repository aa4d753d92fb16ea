"""TraceStore: what an agent thought and did, as trees with indices.

Invariant: a trace is written with all of its index entries or not at all; ids
are unique in a run, and a parent exists before its child. The record, its
index keys and its bodies are in `rules`.

Built for debugging, not for volume: each trace is four records (itself and
its places by type, parent and time), and one more for each tag.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from inmem.client.retry import deadline_in
from inmem.config import ENTRY_BYTES
from inmem.engines.base import Sink, View
from inmem.errors import InvalidInputError, TraceNotFoundError
from inmem.keys import RunId, TypeTag, encode_id, encode_label, range_of, shorten
from inmem.primitives._common import check_limit, check_metadata, check_tags, encoded
from inmem.primitives._paging import past, stream
from inmem.primitives._waiting import check_version, each_look
from inmem.primitives.byrun import ByRun, by_run
from inmem.primitives.traces import rules
from inmem.primitives.traces.rules import Body, Trace, TraceTree
from inmem.record import payload_of, version_of
from inmem.stepping import FacadeWaits, Streamed, at_once
from inmem.values import text_of
from inmem.writeset import check_weight

T = TypeVar("T")
Place = Trace | str | None  # a trace or its id, to start after

_AFTER_ALL: Final = b"\xff" * 8  # more than any timestamp
_MAX_TIME: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class NewTrace:
    """One trace to record with `record_many`; see `TraceStore.record` for the fields."""

    body: Body
    id: str | None = None
    parent_id: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = field(default=None)
    timestamp: int | None = None


class TraceReads:
    """Reads of one run's traces."""

    __slots__ = ("_prefix", "_view")

    def __init__(self, view: View, prefix: bytes) -> None:
        self._view = view
        self._prefix = prefix

    def get(self, trace_id: str) -> Trace | None:
        """One trace, None if there is none. Cost: about 5 µs."""
        record = self._view.read(rules.trace_key(self._prefix, encode_id(trace_id, "trace_id")))
        return None if record is None else rules.unpack(trace_id, payload_of(record))

    def query_by_type(
        self, name: str, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces of one type: `ToolCall`, `Decision`, `Query`, `Thought`, `Error` or a custom one.

        `start_after` continues after a trace, or its id (before it, if
        `reverse`), here and in all the queries below. Cost: about 6 µs a trace.

        Raises:
            TraceNotFoundError: there is no trace with the id to start after.
        """
        head = self._of(TypeTag.TRACE_BY_TYPE, encode_label(name, "name"))
        return self._at(head, limit, start_after, reverse)

    def query_by_tag(
        self, tag: str, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces that have a tag. See `query_by_type`."""
        head = self._of(TypeTag.TRACE_BY_TAG, encode_label(tag, "tag"))
        return self._at(head, limit, start_after, reverse)

    def query_by_time(
        self, start: int, end: int, *, limit: int | None = None, start_after: Place = None,
        reverse: bool = False,
    ) -> builtins.list[Trace]:
        """Traces with a timestamp in `[start, end)`, microseconds. See `query_by_type`."""
        return self._at(self._of_all(), limit, start_after, reverse, start, _time(end, "end"))

    def get_children(
        self, parent_id: str, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """The direct children of a trace; none if it has none or does not exist. See `query_by_type`."""
        head = self._of(TypeTag.TRACE_BY_PARENT, encode_id(parent_id, "parent_id"))
        return self._at(head, limit, start_after, reverse)

    def roots(
        self, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """The traces without a parent. See `query_by_type`."""
        return self._at(self._of(TypeTag.TRACE_BY_PARENT, b""), limit, start_after, reverse)

    def list(
        self, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """All traces of a run in order of time. See `query_by_type`."""
        return self._at(self._of_all(), limit, start_after, reverse)

    def iter(
        self, *, type_name: str | None = None, tag: str | None = None, parent_id: str | None = None,
        start: int = 0, end: int | None = None, start_after: Place = None, reverse: bool = False,
    ) -> Iterator[Trace]:
        """Stream traces in order of time, in bounded memory. Cost: about 8 µs a trace.

        All of them, or those of a type, with a tag, or below a parent (the
        empty string: without one); with a timestamp in `[start, end)`,
        microseconds. Takes a new snapshot for each 512 traces or 4 MiB.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     ids = [db.traces.record("run-1", inmem.Thought(text), tags=["plan"]) for text in ("a", "b")]
        ...     [trace.body.content for trace in db.traces.iter("run-1", tag="plan", start_after=ids[0])]
        ['b']

        Raises:
            RunDeletedError: the run was deleted in the middle of it.
            TraceNotFoundError: there is no trace with the id to start after.
            InvalidInputError: more than one of type, tag and parent is given.
        """
        given = [each for each in (type_name, tag, parent_id) if each is not None]
        if len(given) > 1:
            raise InvalidInputError("give one of type_name, tag and parent_id", argument="type_name")
        if type_name is not None:
            head = self._of(TypeTag.TRACE_BY_TYPE, encode_label(type_name, "type_name"))
        elif tag is not None:
            head = self._of(TypeTag.TRACE_BY_TAG, encode_label(tag, "tag"))
        elif parent_id is not None:
            above = b"" if parent_id == "" else encode_id(parent_id, "parent_id")
            head = self._of(TypeTag.TRACE_BY_PARENT, above)
        else:
            head = self._of_all()
        first, last = self._between(head, start_after, reverse, start, end)
        skip = len(head) + 8
        return (
            rules.unpack(text_of(key[len(self._prefix) + 2 :]), payload_of(record))
            for key, record in stream(
                self._view, self._prefix, first, last, reverse=bool(reverse),
                record_key=lambda key: rules.trace_key(self._prefix, key[skip:]),
            )
        )

    def recorded_after(self, version: int) -> builtins.list[tuple[int, str]]:
        """Version and id of each trace of a later commit than `version`, in the order of their commits.

        Keep the last version and pass it next time, and you miss nothing: all
        traces of a commit become visible at once. 0 is before all of them. In
        `Database.wait` it waits for new ones. In a transaction its own traces
        are left out, as they have no version yet. Cost: 0.5 µs for each trace
        of the run.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     ids = [db.traces.record("run-1", inmem.Thought(text)) for text in ("a", "b", "c")]
        ...     [(first, _), *more] = db.traces.recorded_after("run-1", 0)
        ...     [id for _, id in db.traces.recorded_after("run-1", first)] == ids[1:]
        True

        Raises:
            InvalidInputError: the version is no int from 0 to 2**63-1.
        """
        if check_version(version, "version") is None:
            raise InvalidInputError("version must be an int from 0 to 2**63-1, not None", argument="version")
        start, end = range_of(self._prefix, TypeTag.TRACE)
        found = ((version_of(record), key) for key, record in self._view.scan(start, end))
        return sorted((of, text_of(key[len(start) :])) for of, key in found if of > version)

    def count(self) -> int:
        """How many traces a run has. Cost: about 0.3 µs a trace."""
        return self._view.count(*range_of(self._prefix, TypeTag.TRACE))

    def get_tree(self, root_id: str) -> TraceTree:
        """A trace with all that is below it, of any depth, all of one version.

        Raises:
            TraceNotFoundError: there is no such trace.
        """
        encode_id(root_id, "root_id")
        with self._view.moment() as view:
            reads = TraceReads(view, self._prefix)
            root = reads.get(root_id)
            if root is None:
                raise TraceNotFoundError(f"there is no trace {root_id}", trace_id=root_id)
            tree = TraceTree(root)
            waiting = [tree]  # instead of recursion: a tree may be deeper than any stack
            while waiting:
                parent = waiting.pop()
                # An index entry that its record denies is damage, and may lead in a circle.
                parent.children.extend(
                    TraceTree(child) for child in reads.get_children(parent.trace.id)
                    if child.parent_id == parent.trace.id
                )
                waiting += parent.children
        return tree

    def _of(self, tag: TypeTag, name: bytes) -> bytes:
        """What the places of a type, tag or parent begin with; timestamp and id follow."""
        return b"%b\0%c%b\0" % (self._prefix, tag, name)

    def _of_all(self) -> bytes:
        return b"%b\0%c" % (self._prefix, TypeTag.TRACE_BY_TIME)

    def _between(
        self, head: bytes, start_after: Place, reverse: bool, start: int = 0, end: int | None = None
    ) -> tuple[bytes, bytes]:
        """The part of an index that has the timestamps of `[start, end)`, and comes after a trace."""
        first = head + _time(start, "start").to_bytes(8, "big")
        last = head + (_AFTER_ALL if end is None else _time(end, "end").to_bytes(8, "big"))
        if isinstance(start_after, str):
            trace_id, start_after = start_after, self.get(encode_id(start_after, "start_after").decode())
            if start_after is None:
                raise TraceNotFoundError(f"there is no trace {trace_id} to start after", trace_id=trace_id)
        if start_after is None:
            return past(first, last, None, reverse)
        if not isinstance(start_after, Trace):
            raise InvalidInputError("start_after must be a Trace or the id of one", argument="start_after")
        place = start_after.timestamp.to_bytes(8, "big") + start_after.id.encode()
        return past(first, last, head + place, reverse)

    def _at(
        self, head: bytes, limit: int | None, start_after: Place, reverse: bool, start: int = 0,
        end: int | None = None,
    ) -> builtins.list[Trace]:
        """The traces that a part of an index names."""
        check_limit(limit)
        skip = len(head) + 8
        with self._view.moment() as view:
            first, last = TraceReads(view, self._prefix)._between(head, start_after, reverse, start, end)
            entries = view.scan(first, last, limit=limit, reverse=bool(reverse))
            ids = [key[skip:] for key, _ in entries]
            records = view.read_many([rules.trace_key(self._prefix, trace_id) for trace_id in ids])
        return [
            rules.unpack(text_of(trace_id), payload_of(record))
            for trace_id, record in zip(ids, records, strict=True) if record is not None
        ]


class Traces(TraceReads):
    """One run's traces."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, prefix: bytes) -> None:
        super().__init__(view, prefix)
        self._sink = sink

    def record(
        self, body: Body, *, id: str | None = None, parent_id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        """Record a trace and return its id. Cost: one round trip.

        Without an `id` a time-ordered one is made. `timestamp` (microseconds)
        defaults to the time of the commit. Tags are 1-128 bytes each.

        Raises:
            TraceExistsError: the id is taken.
            TraceNotFoundError: there is no such parent.
            InvalidInputError: body, id, tags, metadata or timestamp are wrong.
            RunDeletedError: the run was deleted.
        """
        return self._record([NewTrace(body, id, parent_id, tags, metadata, timestamp)], lambda ids: ids[0])

    def record_child(
        self, parent_id: str, body: Body, *, id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        """Record a trace below another, which must exist. Cost and errors: those of `record`."""
        encode_id(parent_id, "parent_id")
        return self._record([NewTrace(body, id, parent_id, tags, metadata, timestamp)], lambda ids: ids[0])

    def record_many(self, traces: Iterable[NewTrace]) -> builtins.list[str]:
        """Record many traces as one atomic commit, parents before children; their ids."""
        return self._record(traces, lambda ids: ids)

    def _record(self, traces: Iterable[NewTrace], result: Callable[[builtins.list[str]], T]) -> T:
        news = _new_traces(traces)
        items = [_item(self._sink, new) for new in news]
        ids = result([item[0] for item in items])
        check_weight(ENTRY_BYTES * sum(map(rules.entries_of, items)))
        # With ids made here and no parents nothing that is stored is in their way.
        is_sure = all(new.id is None and new.parent_id is None for new in news)
        recorded: T = self._sink.ask(
            "trace.record", [self._prefix, items], lambda _: ids, shows_time=False, is_sure=is_sure
        ) if items else self._sink.drive(at_once(ids))
        return recorded


class RunTraces(Traces):
    """One run's traces outside a transaction: each recording is a commit of its own."""

    __slots__ = ("_waits",)

    def __init__(self, view: View, sink: Sink, prefix: bytes, waits: FacadeWaits) -> None:
        super().__init__(view, sink, prefix)
        self._waits = waits

    def follow(self, *, start_after: str | None = None, timeout_s: float | None = None) -> Iterator[Trace]:
        """All traces, then those that come, each once, in the order of their commits.

        `start_after` is the id of a trace: what was recorded in later commits
        follows. Cost: a look at all traces of the run for each wake, 0.5 µs
        each; with many of them looks are rarer. See `Database.wait`.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     first = db.traces.record("run-1", inmem.Thought("look it up"))
        ...     second = db.traces.record("run-1", inmem.Thought("done"), timestamp=1)
        ...     following = db.traces.follow("run-1", timeout_s=5)
        ...     [next(following).body.content, next(following).body.content]
        ['look it up', 'done']

        Raises:
            WaitTimeoutError: nothing has come for `timeout_s` seconds.
            RunDeletedError: the run was deleted.
            TraceNotFoundError: there is no trace with the id to start after.
        """
        floor = 0
        if start_after is not None:
            record = self._view.read(rules.trace_key(self._prefix, encode_id(start_after, "start_after")))
            if record is None:
                raise TraceNotFoundError(
                    f"there is no trace {start_after} to start after", trace_id=start_after
                )
            floor = version_of(record)
        deadline_in(timeout_s)
        traces: Iterator[Trace] = self._waits.stream(self._follow(floor, timeout_s))
        return traces

    def _follow(self, floor: int, timeout_s: float | None) -> Streamed[Trace]:
        def look(view: Any) -> builtins.list[tuple[int, str]]:
            found: builtins.list[tuple[int, str]] = view.traces.recorded_after(floor)
            return found

        def traces(found: builtins.list[tuple[int, str]]) -> Iterator[Trace]:
            nonlocal floor
            for version, trace_id in found:
                trace = self.get(trace_id)
                if trace is not None:
                    yield trace
                floor = version

        return each_look(look, timeout_s, traces)


class TraceStore(ByRun[RunTraces]):
    """Reasoning traces per run: typed, tagged, timed, nested.

    Recording a trace is one round trip, and writes four records and one for
    each tag. Use traces to understand what an agent did, and the event log for
    volume. The cost of a query depends on what it finds, not on the size of the
    run. Results are in order of timestamp, then id.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     step = db.traces.record("run-1", inmem.Thought("look it up"), tags=["plan"])
    ...     call = db.traces.record_child("run-1", step, inmem.ToolCall("search", {"q": "inmem"}))
    ...     [(depth, trace.type_name) for depth, trace in db.traces.get_tree("run-1", step).walk()]
    [(0, 'Thought'), (1, 'ToolCall')]
    """

    __slots__ = ()

    KIND = "traces"

    record = by_run(RunTraces.record)
    record_child = by_run(RunTraces.record_child)
    record_many = by_run(RunTraces.record_many)
    get = by_run(RunTraces.get)
    query_by_type = by_run(RunTraces.query_by_type)
    query_by_tag = by_run(RunTraces.query_by_tag)
    query_by_time = by_run(RunTraces.query_by_time)
    get_children = by_run(RunTraces.get_children)
    get_tree = by_run(RunTraces.get_tree)
    roots = by_run(RunTraces.roots)
    list = by_run(RunTraces.list)
    iter = by_run(RunTraces.iter)
    count = by_run(RunTraces.count)
    recorded_after = by_run(RunTraces.recorded_after)
    follow = by_run(RunTraces.follow)


def _new_traces(traces: Iterable[NewTrace]) -> builtins.list[NewTrace]:
    if isinstance(traces, str | bytes) or not isinstance(traces, Iterable):
        raise InvalidInputError("traces must be an iterable of NewTrace", argument="traces")
    checked = list(traces)
    for i, new in enumerate(checked):
        if not isinstance(new, NewTrace):
            raise InvalidInputError(
                f"traces[{i}] must be a NewTrace, not {type(new).__name__}", argument="traces"
            )
    return checked


def _item(sink: Sink, new: NewTrace) -> builtins.list[Any]:
    """The procedure's arguments for one trace, checked."""
    body = rules.check_body(new.body)
    kind, fields = rules.fields_of(body)
    trace_id = str(RunId.new()) if new.id is None else encode_id(new.id, "id").decode()
    parent_id = "" if new.parent_id is None else encode_id(new.parent_id, "parent_id").decode()
    return [
        trace_id, parent_id,
        0 if new.timestamp is None else _time(new.timestamp, "timestamp", 1),  # 0: now
        kind, rules.type_name_of(body), check_tags(new.tags), encoded(sink, fields, "body"),
        encoded(sink, check_metadata(new.metadata), "metadata"),
    ]


def _time(value: object, argument: str, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value <= _MAX_TIME:
        raise InvalidInputError(
            f"{argument} must be an int of microseconds from {lowest} to 2**63-1, not {shorten(value)}",
            argument=argument,
        )
    return value
