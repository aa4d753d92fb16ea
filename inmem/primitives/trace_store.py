"""TraceStore: what an agent thought and did, as trees with indices.

Invariant: a trace is written with all of its index entries or not at all; ids
are unique in a run, and a parent exists before its child. The record, its
index keys and its bodies are `model.trace`.

Built for debugging, not for volume: each trace is four records (itself and
its places by type, parent and time), and one more for each tag.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from inmem import values
from inmem.client.transaction import Reader, Transaction
from inmem.errors import InvalidInputError, TraceExistsError, TraceNotFoundError
from inmem.keys import RunId, TypeTag, encode_id, encode_label, range_of, shorten
from inmem.model import trace as rules
from inmem.model.trace import Body, Trace, TraceTree
from inmem.primitives._common import Autocommit, Host, check_limit, check_metadata, check_tags
from inmem.record import pack, payload_of

T = TypeVar("T")

_PLACE_BYTES: Final = 8 + 65  # timestamp, and more than any id
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


class _Item(NamedTuple):
    """The arguments of the procedure, in its order."""

    id: str
    parent_id: str
    timestamp: int
    kind: int
    type_name: str
    tags: list[str]
    body: bytes
    metadata: bytes


class TraceReads:
    """Reads of one run's traces, through any kind of reader."""

    __slots__ = ("_prefix", "_reader")

    def __init__(self, reader: Reader, prefix: bytes) -> None:
        self._reader = reader
        self._prefix = prefix

    def get(self, trace_id: str) -> Trace | None:
        """One trace. See `TraceStore.get`."""
        record = self._reader.read(rules.trace_key(self._prefix, encode_id(trace_id, "trace_id")))
        return None if record is None else rules.unpack(trace_id, payload_of(record))

    def query_by_type(
        self, name: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces of one type. See `TraceStore.query_by_type`."""
        return self._named(TypeTag.TRACE_BY_TYPE, encode_label(name, "name"), limit, reverse)

    def query_by_tag(
        self, tag: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces with a tag. See `TraceStore.query_by_tag`."""
        return self._named(TypeTag.TRACE_BY_TAG, encode_label(tag, "tag"), limit, reverse)

    def query_by_time(
        self, start: int, end: int, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces of a time range. See `TraceStore.query_by_time`."""
        first, last = _time(start, "start"), _time(end, "end")
        head = b"%b\0%c" % (self._prefix, TypeTag.TRACE_BY_TIME)
        return self._at(head + first.to_bytes(8, "big"), head + last.to_bytes(8, "big"), limit, reverse)

    def get_children(
        self, parent_id: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Direct children. See `TraceStore.get_children`."""
        return self._named(TypeTag.TRACE_BY_PARENT, encode_id(parent_id, "parent_id"), limit, reverse)

    def roots(self, *, limit: int | None = None, reverse: bool = False) -> builtins.list[Trace]:
        """Traces without a parent. See `TraceStore.roots`."""
        return self._named(TypeTag.TRACE_BY_PARENT, b"", limit, reverse)

    def list(self, *, limit: int | None = None, reverse: bool = False) -> builtins.list[Trace]:
        """All traces in order of time. See `TraceStore.list`."""
        return self._at(*range_of(self._prefix, TypeTag.TRACE_BY_TIME), limit, reverse)

    def count(self) -> int:
        """How many traces there are. See `TraceStore.count`."""
        return self._reader.count(*range_of(self._prefix, TypeTag.TRACE))

    def get_tree(self, root_id: str) -> TraceTree:
        """A trace with all below it. See `TraceStore.get_tree`."""
        encode_id(root_id, "root_id")
        with self._reader.view() as view:
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

    def _named(self, tag: TypeTag, name: bytes, limit: int | None, reverse: bool) -> builtins.list[Trace]:
        start = b"%b\0%c%b\0" % (self._prefix, tag, name)
        return self._at(start, start + b"\xff" * _PLACE_BYTES, limit, reverse)

    def _at(self, start: bytes, end: bytes, limit: int | None, reverse: bool) -> builtins.list[Trace]:
        """The traces that a range of index entries names; what follows the timestamp is the id."""
        check_limit(limit)
        if start >= end:
            return []
        skip = self._place_of(start)
        found = []
        with self._reader.view() as view:
            for key, _ in view.scan(start, end, limit=limit, reverse=bool(reverse)):
                trace_id = key[skip + 8 :]
                record = view.read(rules.trace_key(self._prefix, trace_id))
                if record is not None:
                    found.append(rules.unpack(trace_id.decode(), payload_of(record)))
        return found

    def _place_of(self, start: bytes) -> int:
        """Where the timestamp begins in the index keys of a range."""
        head = len(self._prefix) + 2
        if start[head - 1] == TypeTag.TRACE_BY_TIME:
            return head
        return start.index(0, head) + 1


class ScopedTraces(TraceReads):
    """One run's traces outside a transaction: each record is a commit of its own."""

    __slots__ = ("_commit",)

    def __init__(self, reader: Reader, commit: Autocommit, prefix: bytes) -> None:
        super().__init__(reader, prefix)
        self._commit = commit

    def record(
        self, body: Body, *, id: str | None = None, parent_id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        """Record a trace. See `TraceStore.record`."""
        return self._send([NewTrace(body, id, parent_id, tags, metadata, timestamp)], lambda ids: ids[0])

    def record_child(
        self, parent_id: str, body: Body, *, id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        """Record a trace below another. See `TraceStore.record_child`."""
        encode_id(parent_id, "parent_id")
        return self._send([NewTrace(body, id, parent_id, tags, metadata, timestamp)], lambda ids: ids[0])

    def record_many(self, traces: Iterable[NewTrace]) -> builtins.list[str]:
        """Record many traces as one commit. See `TraceStore.record_many`."""
        return self._send(traces, lambda ids: ids)

    def _send(self, traces: Iterable[NewTrace], result: Callable[[builtins.list[str]], T]) -> T:
        items = [_item(new, 0) for new in _new_traces(traces)]
        recorded = result([item.id for item in items])
        if items:
            self._commit.call("trace.record", self._prefix, items, convert=lambda _: recorded)
        return recorded


class TransactionTraces(TraceReads):
    """One run's traces inside a transaction: records wait for the commit."""

    __slots__ = ("_txn",)

    def __init__(self, txn: Transaction, prefix: bytes) -> None:
        super().__init__(txn, prefix)
        self._txn = txn

    def record(
        self, body: Body, *, id: str | None = None, parent_id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        """Record a trace at commit. See `TraceStore.record`."""
        return self.record_many([NewTrace(body, id, parent_id, tags, metadata, timestamp)])[0]

    def record_child(
        self, parent_id: str, body: Body, *, id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        """Record a trace below another at commit. See `TraceStore.record_child`."""
        encode_id(parent_id, "parent_id")
        return self.record_many([NewTrace(body, id, parent_id, tags, metadata, timestamp)])[0]

    def record_many(self, traces: Iterable[NewTrace]) -> builtins.list[str]:
        """Record many traces at commit. See `TraceStore.record_many`."""
        txn, prefix = self._txn, self._prefix
        now_us = txn.now_us()
        items = [(_item(new, now_us), new.id is not None) for new in _new_traces(traces)]
        earlier: set[str] = set()  # of these: none is shown before all are found right
        for item, chosen in items:
            key = rules.trace_key(prefix, item.id.encode())
            # An id that was made up here is nobody else's: only a chosen one is looked for.
            if item.id in earlier or ((chosen or txn.was_read(key)) and txn.read(key) is not None):
                raise TraceExistsError(f"trace {item.id} exists", trace_id=item.id)
            parent = item.parent_id
            parent_key = rules.trace_key(prefix, parent.encode())
            if parent and parent not in earlier and txn.read(parent_key) is None:
                raise TraceNotFoundError(f"there is no trace {parent} to be the parent", trace_id=parent)
            earlier.add(item.id)
        if items:
            txn.call("trace.record", [prefix, [item for item, _ in items]], _ignore)
        for item, _ in items:
            payload = rules.pack(
                item.kind, item.type_name, item.parent_id, item.timestamp, item.tags, item.body, item.metadata
            )
            txn.show(rules.trace_key(prefix, item.id.encode()), pack(0, 0, 0, payload))
            for index_key in rules.index_keys(prefix, item.id.encode(), payload):
                txn.show(index_key, pack(0, 0, 0, b""))
        return [item.id for item, _ in items]


class TraceStore:
    """Reasoning traces per run: typed, tagged, timed, nested.

    Recording is one round trip and writes four records and one for each tag:
    use it to understand what an agent did, and the event log for volume.
    Queries cost in proportion to what they find, not to the run. Results are
    in order of timestamp, then id.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     step = db.traces.record("run-1", inmem.Thought("look it up"), tags=["plan"])
    ...     call = db.traces.record_child("run-1", step, inmem.ToolCall("search", {"q": "inmem"}))
    ...     [(depth, trace.type_name) for depth, trace in db.traces.get_tree("run-1", step).walk()]
    [(0, 'Thought'), (1, 'ToolCall')]
    """

    __slots__ = ("_database",)

    def __init__(self, database: Host) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"TraceStore({self._database!r})"

    def _scope(self, run_id: str) -> ScopedTraces:
        scope: ScopedTraces = self._database.run(run_id).traces
        return scope

    def record(
        self, run_id: str, body: Body, *, id: str | None = None, parent_id: str | None = None,
        tags: Sequence[str] = (), metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
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
        return self._scope(run_id).record(
            body, id=id, parent_id=parent_id, tags=tags, metadata=metadata, timestamp=timestamp
        )

    def record_child(
        self, run_id: str, parent_id: str, body: Body, *, id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        """Record a trace below another, which must exist. Cost and errors: those of `record`."""
        return self._scope(run_id).record_child(
            parent_id, body, id=id, tags=tags, metadata=metadata, timestamp=timestamp
        )

    def record_many(self, run_id: str, traces: Iterable[NewTrace]) -> builtins.list[str]:
        """Record many traces as one atomic commit, parents before children; their ids."""
        return self._scope(run_id).record_many(traces)

    def get(self, run_id: str, trace_id: str) -> Trace | None:
        """One trace, None if there is none. Cost: about 5 µs."""
        return self._scope(run_id).get(trace_id)

    def query_by_type(
        self, run_id: str, name: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces of one type: `ToolCall`, `Decision`, `Query`, `Thought`, `Error` or a custom one."""
        return self._scope(run_id).query_by_type(name, limit=limit, reverse=reverse)

    def query_by_tag(
        self, run_id: str, tag: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces that have a tag."""
        return self._scope(run_id).query_by_tag(tag, limit=limit, reverse=reverse)

    def query_by_time(
        self, run_id: str, start: int, end: int, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """Traces with a timestamp in `[start, end)`, microseconds."""
        return self._scope(run_id).query_by_time(start, end, limit=limit, reverse=reverse)

    def get_children(
        self, run_id: str, parent_id: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """The direct children of a trace; none if it has none or does not exist."""
        return self._scope(run_id).get_children(parent_id, limit=limit, reverse=reverse)

    def get_tree(self, run_id: str, root_id: str) -> TraceTree:
        """A trace with all that is below it, of any depth, all of one version.

        Raises:
            TraceNotFoundError: there is no such trace.
        """
        return self._scope(run_id).get_tree(root_id)

    def roots(
        self, run_id: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """The traces without a parent."""
        return self._scope(run_id).roots(limit=limit, reverse=reverse)

    def list(
        self, run_id: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        """All traces of a run in order of time."""
        return self._scope(run_id).list(limit=limit, reverse=reverse)

    def count(self, run_id: str) -> int:
        """How many traces a run has. Cost: about 0.3 µs a trace."""
        return self._scope(run_id).count()


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


def _item(new: NewTrace, default_time: int) -> _Item:
    """The procedure's arguments for one trace, checked."""
    body = rules.check_body(new.body)
    kind, encoded = rules.pack_body(body)
    trace_id = str(RunId.new()) if new.id is None else encode_id(new.id, "id").decode()
    parent_id = "" if new.parent_id is None else encode_id(new.parent_id, "parent_id").decode()
    return _Item(
        trace_id, parent_id,
        default_time if new.timestamp is None else _time(new.timestamp, "timestamp", 1),  # 0: now
        kind, rules.type_name_of(body), check_tags(new.tags), encoded,
        values.encode(check_metadata(new.metadata), "metadata"),
    )


def _time(value: object, argument: str, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value <= _MAX_TIME:
        raise InvalidInputError(
            f"{argument} must be an int of microseconds from {lowest} to 2**63-1, not {shorten(value)}",
            argument=argument,
        )
    return value


def _ignore(_: Any) -> None:
    """The ids were known before."""
