"""Spans of other libraries as traces, and back.

Invariant: `span_of(trace_of(kept_of(span)))` is the span: its ids, parents, times in nanoseconds, status,
attributes, events, links, scope and, with what `resource_of` gives, its resource.

A trace holds in its body what people look for, and all else in its metadata under `otel.span`:

    trace, span   ids, 32 and 16 hexadecimal digits      parent       [id, is remote], or nil
    flags, state  of the context                         name, kind   of the span
    start, end    nanoseconds                            status       [code, description]
    attributes    those that the body has not            events       [name, nanoseconds, attributes], ...
    links         [trace, span, is remote, flags, state, attributes], ...
    scope         [name, version, schema URL, attributes], or nil
    resource      a hash: see `Resources`                dropped      [attributes, events, links]
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgpack
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

import inmem
from inmem.adapters.otel import names
from inmem.adapters.otel.attributes import restored, stored, without_content
from inmem.adapters.otel.stored_span import StoredSpan, event_of, link_of

Kept = dict[str, Any]  # what is stored of a span

RESOURCE_PREFIX: Final = "otel/resource/"
_NS: Final = 1000
_FIELDS: Final = frozenset({
    "trace", "span", "parent", "flags", "state", "name", "kind", "start", "end", "status", "attributes",
    "events", "links", "scope", "resource", "dropped",
})
_TYPE_BYTES: Final = 128  # of the type of a custom trace
_RESERVED: Final = frozenset({"ToolCall", "Decision", "Query", "Thought", "Error"})
_SPAN: Final = "Span"  # the type of what is no operation of the GenAI conventions


def key_of(kept: Kept) -> str:
    """The id of the trace of a span."""
    return f"{kept['trace']}.{kept['span']}"


def parent_key_of(kept: Kept) -> str | None:
    """The id of the trace that it is to be below, None for a root."""
    return f"{kept['trace']}.{kept['parent'][0]}" if kept["parent"] else None


def resource_entry(resource: Resource) -> tuple[str, list[Any]]:
    """The hash of a resource, and what is stored under it."""
    value = [stored(resource.attributes), resource.schema_url or ""]
    return hashlib.sha256(msgpack.packb(value)).hexdigest()[:32], value


def kept_of(span: ReadableSpan, resource: str) -> Kept:
    """What is stored of a span; `resource` is a hash."""
    context = span.get_span_context()
    assert context is not None, "a span of an SDK has ids"
    scope = span.instrumentation_scope
    start = span.start_time or 0
    return {
        "trace": f"{context.trace_id:032x}", "span": f"{context.span_id:016x}",
        "parent": [f"{span.parent.span_id:016x}", span.parent.is_remote] if span.parent else None,
        "flags": int(context.trace_flags), "state": context.trace_state.to_header(),
        "name": stored(span.name), "kind": span.kind.name, "start": start, "end": span.end_time or start,
        "status": [span.status.status_code.name, stored(span.status.description)],
        "attributes": stored(span.attributes or {}),
        "events": [[stored(e.name), e.timestamp, stored(e.attributes or {})] for e in span.events],
        "links": [
            [f"{one.context.trace_id:032x}", f"{one.context.span_id:016x}", one.context.is_remote,
             int(one.context.trace_flags), one.context.trace_state.to_header(), stored(one.attributes or {})]
            for one in span.links
        ],
        "scope": None if scope is None else [
            stored(scope.name), stored(scope.version), scope.schema_url,
            stored(getattr(scope, "attributes", None) or {}),  # of later releases of the SDK
        ],
        "resource": resource,
        "dropped": [span.dropped_attributes, span.dropped_events, span.dropped_links],
    }  # fmt: skip


def trace_of(kept: Kept, parent_id: str | None) -> inmem.NewTrace:
    """The trace of what is stored of a span, below another one or as a root.

    A tool call has the time of its end, as one that is recorded with its result; all else that of its start.
    """
    body, rest = _body_of(kept)
    metadata: dict[str, Any] = {names.SPAN_KEY: kept | {"attributes": rest}}
    duration_ms = max(0, kept["end"] - kept["start"]) / 1e6
    at = kept["end"] if isinstance(body, inmem.ToolCall) else kept["start"]
    if not isinstance(body, inmem.ToolCall):
        metadata["duration_ms"] = duration_ms
    tags = ("error",) if kept["status"][0] == StatusCode.ERROR.name else ()
    return inmem.NewTrace(body, key_of(kept), parent_id, tags, metadata, max(1, at // _NS))


def _body_of(kept: Kept) -> tuple[Any, dict[str, Any]]:
    """The body, and the attributes that it has not."""
    rest = dict(kept["attributes"])
    operation = rest.get(names.OPERATION)
    if operation == "execute_tool" and isinstance(rest.get(names.TOOL_NAME), str):
        name = rest.pop(names.TOOL_NAME)
        arguments, result = rest.pop(names.TOOL_ARGUMENTS, None), rest.pop(names.TOOL_RESULT, None)
        duration_ms = max(0, kept["end"] - kept["start"]) / 1e6
        return inmem.ToolCall(name, arguments, result, duration_ms), rest
    if operation == "retrieval" and (count := _count_of(rest)) is not None:
        source = rest.get(names.DATA_SOURCE)
        kind = source if isinstance(source, str) else kept["name"]
        return inmem.Query(kind, rest.pop(names.QUERY_TEXT, None), count), rest
    kind = operation if isinstance(operation, str) and operation not in _RESERVED else _SPAN
    if not 0 < len(kind.encode()) <= _TYPE_BYTES or "\0" in kind:
        kind = _SPAN
    return inmem.Custom(kind, {"name": kept["name"], "attributes": rest}), {}


def _count_of(attributes: Mapping[str, Any]) -> int | None:
    """How much a retrieval has found, if it says so."""
    count = attributes.get(names.RESULTS_COUNT)
    documents = attributes.get(names.DOCUMENTS)
    if type(count) is int:
        return count
    return len(documents) if isinstance(documents, list) else None


def kept_in(trace: inmem.Trace) -> Kept | None:
    """What is stored of the span that a trace was recorded from; None for one of a program's own."""
    kept = trace.metadata.get(names.SPAN_KEY)
    if not isinstance(kept, dict) or not kept.keys() >= _FIELDS:
        return None
    body, attributes = trace.body, dict(kept["attributes"])
    if isinstance(body, inmem.ToolCall):
        mine = {
            names.TOOL_NAME: body.tool_name, names.TOOL_ARGUMENTS: body.arguments,
            names.TOOL_RESULT: body.result,
        }
    elif isinstance(body, inmem.Query):
        mine = {names.QUERY_TEXT: body.query}
    elif isinstance(body, inmem.Custom) and isinstance(body.data, dict):
        mine = body.data.get("attributes", {})
    else:
        return None
    return kept | {"attributes": attributes | {name: it for name, it in mine.items() if it is not None}}


def span_of(kept: Kept, resource: Resource, *, content: bool) -> StoredSpan:
    """The span that was recorded; without prompts, arguments and results unless content is asked for."""

    def attributes(of: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = restored(of if content else without_content(of))
        return made

    own = _context(kept["trace"], kept["span"], False, kept["flags"], kept["state"])
    above = None
    if kept["parent"]:
        span_id, is_remote = kept["parent"]
        above = _context(kept["trace"], span_id, is_remote, kept["flags"], kept["state"])
    scope = kept["scope"]
    code, description = kept["status"]
    return StoredSpan(
        kept["dropped"], kept["name"], own, above, resource, attributes(kept["attributes"]),
        [event_of(name, attributes(more), at) for name, at, more in kept["events"]],
        [
            link_of(_context(trace, span, is_remote, flags, state), attributes(more))
            for trace, span, is_remote, flags, state, more in kept["links"]
        ],
        SpanKind[kept["kind"]], status=Status(StatusCode[code], description),
        start_time=kept["start"], end_time=kept["end"],
        instrumentation_scope=None if scope is None else _scope(*scope),
    )  # fmt: skip


def _scope(name: str, version: str | None, schema_url: str | None, attributes: dict[str, Any]) -> Any:
    more = (restored(attributes),) if attributes else ()  # earlier releases of the SDK have none
    return InstrumentationScope(name, version, schema_url, *more)


def _context(trace: str, span: str, is_remote: bool, flags: int, state: str) -> SpanContext:
    return SpanContext(
        int(trace, 16), int(span, 16), is_remote, TraceFlags(flags),
        TraceState.from_header([state]) if state else TraceState(),
    )


class Resources:
    """The resources of the recorded spans of a run, each read once."""

    def __init__(self, kv: Any, own: Resource) -> None:
        self._kv = kv
        self._own = own
        self._known: dict[str, Resource] = {}

    def get(self, digest: str) -> Resource:
        """That which a span names; if it is not there any more, that of the program that exports."""
        if digest not in self._known:
            value = self._kv.get(RESOURCE_PREFIX + digest)
            self._known[digest] = self._own if value is None else Resource(restored(value[0]), value[1])
        return self._known[digest]
