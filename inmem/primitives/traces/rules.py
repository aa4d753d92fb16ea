"""Trace rules: the six bodies, the record and its index keys.

Invariant: a trace's index keys follow from its record alone, so any index can
be rebuilt from the traces. Indices order by timestamp, then id.

Payload of a trace record, MessagePack:
`[kind, type name, parent id or "", timestamp, [tag, ...], body, metadata]`
with `kind` one of BODIES' numbers; body (a map of the dataclass's fields) and
metadata are encoded values, opaque here and in the writer.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgpack

from inmem import values
from inmem.errors import InvalidInputError
from inmem.host.interrupts import let_through
from inmem.keys import TypeTag, encode_label


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool and, once known, its result; `duration_ms` in milliseconds."""

    tool_name: str
    arguments: Any
    result: Any = None
    duration_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice between options, and why."""

    question: str
    options: list[Any]
    chosen: Any
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A search or lookup, and how much it found."""

    query_type: str
    query: Any
    results_count: int


@dataclass(frozen=True, slots=True)
class Thought:
    """A step of reasoning."""

    content: str
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class ErrorTrace:
    """Something that went wrong; its type name is `Error`."""

    error_type: str
    message: str
    recoverable: bool


@dataclass(frozen=True, slots=True)
class Custom:
    """Anything else, under a type name of the user's."""

    trace_type: str
    data: Any


Body: TypeAlias = ToolCall | Decision | Query | Thought | ErrorTrace | Custom

# The numbers are stored: one is never used again for another body.
BODIES: Final[dict[int, type[Any]]] = {
    1: ToolCall, 2: Decision, 3: Query, 4: Thought, 5: ErrorTrace, 6: Custom
}
_KINDS: Final = {cls: kind for kind, cls in BODIES.items()}
_FIELDS: Final = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in _KINDS}
_NAMES: Final = {ToolCall: "ToolCall", Decision: "Decision", Query: "Query", Thought: "Thought",
                 ErrorTrace: "Error"}
BODY_NAMES: Final[dict[str, type[Any]]] = {name: cls for cls, name in _NAMES.items()} | {"Custom": Custom}
RESERVED_NAMES: Final = frozenset(_NAMES.values())
_STR_FIELDS: Final = {ToolCall: "tool_name", Decision: "question", Query: "query_type", Thought: "content",
                      ErrorTrace: "error_type"}


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded trace; `timestamp` in microseconds, `type_name` is what `query_by_type` finds."""

    id: str
    parent_id: str | None
    body: Body
    timestamp: int
    tags: tuple[str, ...]
    metadata: dict[str, Any]

    @property
    def type_name(self) -> str:
        """`ToolCall`, `Decision`, `Query`, `Thought`, `Error`, or a custom trace's own type."""
        return type_name_of(self.body)


@dataclass(frozen=True, slots=True, eq=False)
class TraceTree:
    """A trace with the trees of its children, in order of time.

    It is compared, copied and pickled at any depth: nothing here recurses.
    `dataclasses.asdict` does; where a tree may be deep, use `walk`.
    """

    trace: Trace
    children: list[TraceTree] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[int, Trace]]:
        """(depth, trace) of the whole tree, parents before children."""
        stack = [(0, self)]
        while stack:
            depth, tree = stack.pop()
            yield depth, tree.trace
            stack += [(depth + 1, child) for child in reversed(tree.children)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TraceTree):
            return NotImplemented
        return self is other or list(self.walk()) == list(other.walk())

    def __hash__(self) -> int:
        return hash(self.trace.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return _planted, (list(self.walk()),)

    def __deepcopy__(self, memo: dict[int, Any]) -> TraceTree:
        return _planted(copy.deepcopy(list(self.walk()), memo))

    def __repr__(self) -> str:
        return f"TraceTree({self.trace.id!r}, children={len(self.children)})"


def _planted(rows: list[tuple[int, Trace]]) -> TraceTree:
    """The tree that `walk` gave these of."""
    above: list[TraceTree] = []
    for depth, trace in rows:
        tree = TraceTree(trace)
        if depth:
            above[depth - 1].children.append(tree)
        above[depth:] = [tree]
    return above[0]


def type_name_of(body: Body) -> str:
    """The type name of a body."""
    return body.trace_type if isinstance(body, Custom) else _NAMES[type(body)]


def check_body(body: Any) -> Body:
    """The body if it is one of the six, with fields of the right kind.

    Raises:
        InvalidInputError: it is not; the message names the field.
    """
    kind = type(body)
    if kind not in _KINDS:
        raise InvalidInputError(
            "body must be a ToolCall, Decision, Query, Thought, ErrorTrace or Custom, "
            f"not {kind.__name__}", argument="body",
        )
    if kind is Custom:
        encode_label(body.trace_type, "body.trace_type")
        if body.trace_type in RESERVED_NAMES:
            raise InvalidInputError(
                f"body.trace_type {body.trace_type!r} is the name of a built-in type", argument="body"
            )
        return body  # type: ignore[no-any-return]
    name = _STR_FIELDS[kind]
    if not isinstance(getattr(body, name), str):
        raise InvalidInputError(f"body.{name} must be a str", argument="body")
    if kind is Decision and not isinstance(body.options, list):
        raise InvalidInputError("body.options must be a list", argument="body")
    if kind is Query and type(body.results_count) is not int:
        raise InvalidInputError("body.results_count must be an int", argument="body")
    if kind is ErrorTrace and not (isinstance(body.message, str) and isinstance(body.recoverable, bool)):
        raise InvalidInputError("body.message must be a str and body.recoverable a bool", argument="body")
    return body  # type: ignore[no-any-return]


def fields_of(body: Body) -> tuple[int, dict[str, Any]]:
    """Kind and fields of a checked body."""
    return _KINDS[type(body)], {name: getattr(body, name) for name in _FIELDS[type(body)]}


def pack_body(body: Body) -> tuple[int, bytes]:
    """Kind and encoded fields of a checked body."""
    kind, fields = fields_of(body)
    return kind, values.encode(fields, "body")


def pack(
    kind: int, type_name: str, parent_id: str, timestamp: int, tags: list[str], body: bytes, metadata: bytes
) -> bytes:
    """The payload of a trace record."""
    data: bytes = msgpack.packb((kind, type_name, parent_id, timestamp, tags, body, metadata))
    return data


def unpack(trace_id: str, payload: bytes) -> Trace:
    """The trace of a record's payload.

    Raises:
        ValueError: the bytes are no trace.
    """
    try:
        kind, _, parent_id, timestamp, tags, body, metadata = values.decode(payload)
        return Trace(
            trace_id, parent_id or None, BODIES[kind](**values.decode(body)), timestamp, tuple(tags),
            values.decode(metadata),
        )
    except (TypeError, KeyError, ValueError) as error:
        let_through(error)
        raise values.DamagedValueError(f"not a trace record: {error}") from None


def trace_key(prefix: bytes, trace_id: bytes) -> bytes:
    """Where a trace is."""
    return b"%b\0%c%b" % (prefix, TypeTag.TRACE, trace_id)


def entries_of(item: Any) -> int:
    """How many entries `trace.record` writes for an item: the trace, and what `index_keys` lists."""
    if type(item) is not list or len(item) != 8 or type(item[5]) is not list:
        return 0  # it will be refused
    return 4 + len(item[5])


def index_keys(prefix: bytes, trace_id: bytes, payload: bytes) -> list[bytes]:
    """All index keys of a trace, from its record: by type, parent, time and each tag."""
    _, type_name, parent_id, timestamp, tags, _, _ = values.decode(payload)
    return index_keys_of(prefix, trace_id, type_name, parent_id, timestamp, tags)


def index_keys_of(
    prefix: bytes, trace_id: bytes, type_name: str, parent_id: str, timestamp: int, tags: Iterable[str]
) -> list[bytes]:
    """All index keys of a trace, from what its record holds."""
    place = timestamp.to_bytes(8, "big") + trace_id
    keys = [
        b"%b\0%c%b\0%b" % (prefix, TypeTag.TRACE_BY_TYPE, type_name.encode(), place),
        b"%b\0%c%b\0%b" % (prefix, TypeTag.TRACE_BY_PARENT, parent_id.encode(), place),
        b"%b\0%c%b" % (prefix, TypeTag.TRACE_BY_TIME, place),
    ]
    keys += [b"%b\0%c%b\0%b" % (prefix, TypeTag.TRACE_BY_TAG, tag.encode(), place) for tag in tags]
    return keys
