"""Traces, as the server table describes them: an export has parents before their children."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from inmem.jsonvalues import to_json
from inmem.keys import TypeTag, encode_id
from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import (
    Document,
    LineForm,
    RecordsOfRun,
    RecordType,
    check_each,
    name_problem,
)
from inmem.primitives.traces import rules as trace
from inmem.record import payload_of

_BODY_NAMES: Final = {body: name for name, body in trace.BODY_NAMES.items()}


def _check(rest: bytes, payload: bytes) -> str | None:
    problem = name_problem(rest)
    if problem is None:
        trace.unpack(rest.decode(), payload)
    return problem


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    count = 0
    for count, one in enumerate(_depth_first(run), 1):  # noqa: B007
        body = {name: getattr(one.body, name) for name in type(one.body).__dataclass_fields__}
        yield {
            "id": one.id, "parent_id": one.parent_id, "body_type": _BODY_NAMES[type(one.body)],
            "body": to_json(body), "tags": list(one.tags), "metadata": to_json(one.metadata),
            "timestamp": one.timestamp,
        }
    stored = sum(1 for _ in run.records(TypeTag.TRACE))
    if stored != count:
        raise ValueError(f"the indices lead to {count} of {stored} traces")


def _depth_first(run: RecordsOfRun) -> Iterator[trace.Trace]:
    """All traces, siblings in order of time.

    Where to go on follows from the last trace, so memory grows with neither depth nor width.
    """
    at = _child(run, None, None)
    while at is not None:
        yield at
        following = _child(run, at.id, None)
        while following is None and at is not None:
            following = _child(run, at.parent_id, at)
            at = None if at.parent_id is None else _trace(run, at.parent_id.encode())
        at = following


def _child(run: RecordsOfRun, parent_id: str | None, after: trace.Trace | None) -> trace.Trace | None:
    """The first child of a parent after another child; None: the parent of the roots."""
    head = (parent_id or "").encode() + b"\0"
    place = None if after is None else head + after.timestamp.to_bytes(8, "big") + after.id.encode()
    for name, _ in run.records(TypeTag.TRACE_BY_PARENT, head, start_after=place):
        found = _trace(run, name[len(head) + 8 :])
        if found is not None and found.parent_id == parent_id:
            return found
    return None


def _trace(run: RecordsOfRun, trace_id: bytes) -> trace.Trace | None:
    record = run.record(TypeTag.TRACE, trace_id)
    return None if record is None else trace.unpack(trace_id.decode(), payload_of(record))


def _parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    above: list[str] = []  # ids from a root down to the last trace
    places: list[tuple[int, str]] = []  # of each of these among its siblings

    def descend(parent: Any, place: tuple[int, str]) -> None:
        """Go to where the trace is: depth first, siblings in order of time, then id."""
        depth = 0
        if parent is not None:
            while above and above[-1] != parent:
                above.pop()
            depth = len(above)
            if not depth:
                fields.fail(f"the parent of trace {place[1]} is not above it")
        del above[depth:]
        if len(places) > depth and places[depth] >= place:
            fields.fail(f"trace {place[1]} does not come after its sibling before it")
        places[depth:] = [place]
        above.append(place[1])

    def parse(document: Document) -> list[Any]:
        fields.exactly(
            document, "kind", "id", "parent_id", "body_type", "body", "tags", "metadata", "timestamp"
        )
        trace_id: str = fields.checked(lambda: encode_id(document["id"], "id").decode())
        timestamp = fields.integer(document, "timestamp")
        parent = document["parent_id"]
        descend(parent, (timestamp, trace_id))
        body = fields.checked(lambda: _body(document["body_type"], document["body"]))
        kind, encoded = fields.checked(lambda: trace.pack_body(body))
        return [
            trace_id, parent or "", timestamp, kind, trace.type_name_of(body),
            fields.labels(document["tags"]), encoded, fields.mapping(document["metadata"], "metadata"),
        ]

    return parse


def _body(name: Any, body: Any) -> trace.Body:
    """The body of a trace, as its facade would take it."""
    kind = trace.BODY_NAMES.get(name) if type(name) is str else None
    if kind is None:
        raise ValueError(f"there is no body_type {name!r:.40}")
    if type(body) is not dict or body.keys() != kind.__dataclass_fields__.keys():
        raise ValueError(f"the fields of body are not those of a {name}")
    return trace.check_body(kind(**body))


TRACE: Final = RecordType(
    tag=TypeTag.TRACE, name="trace", counted="traces", check=check_each(_check),
    index_tags=frozenset({
        TypeTag.TRACE_BY_TYPE, TypeTag.TRACE_BY_TAG, TypeTag.TRACE_BY_PARENT, TypeTag.TRACE_BY_TIME
    }),
    index_keys=trace.index_keys,
    lines=LineForm("trace", "import.traces", _documents, _parser, since=1),
)
RECORD_TYPES: Final = (TRACE,)
