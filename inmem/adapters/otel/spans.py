"""A run, its traces and its events as spans. Nothing is read or sent here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

import inmem
from inmem.adapters.otel import names
from inmem.adapters.otel.attributes import as_text, passed_on
from inmem.adapters.otel.stored_span import StoredSpan, event_of, link_of

EVENTS_PER_SPAN: Final = 128  # what the SDK allows by default
ENDED: Final = frozenset({
    inmem.RunStatus.COMPLETED, inmem.RunStatus.FAILED, inmem.RunStatus.CANCELLED, inmem.RunStatus.ARCHIVED,
})
_NS: Final = 1000  # in a microsecond
_UNSET: Final = Status(StatusCode.UNSET)
_SCOPE: Final = InstrumentationScope("inmem", inmem.__version__, names.SCHEMA_URL)


def resource_of(given: Resource | None) -> Resource:
    """What the spans are of: as given, or by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, or `inmem`."""
    if given is not None:
        return given
    said = OTELResourceDetector().detect().attributes
    made = {SERVICE_NAME: "inmem", **said}
    # Of what the SDK adds, no id of this process: the next one that sends the same spans has another.
    sdk = {name: it for name, it in Resource.create().attributes.items() if name.startswith("telemetry.")}
    return Resource({**sdk, **made})


class RunSpans:
    """Makes the spans of one run."""

    def __init__(
        self, namespace: inmem.Namespace, run: str, *, content: bool, resource: Resource
    ) -> None:
        self._namespace = namespace
        self._run = run
        self._content = content
        self._resource = resource
        self._about: dict[str, Any] = {names.CONVERSATION: run, "inmem.run.id": run}

    def of_run(
        self, record: inmem.RunMetadata | None, first_us: int, last_us: int, events: Sequence[inmem.Event]
    ) -> ReadableSpan:
        """The span of the run itself; `first_us` and `last_us` are those of what it holds."""
        agent = self._namespace.agent
        attributes: dict[str, Any] = {
            names.OPERATION: "invoke_agent", **self._about, "inmem.tenant": self._namespace.tenant,
            "inmem.app": self._namespace.app, "inmem.agent": agent,
        }
        name, links, status = "invoke_agent", [], _UNSET
        if agent != "default":
            name = f"invoke_agent {agent}"
            attributes[names.AGENT_NAME] = agent
        if record is not None:
            attributes |= passed_on(record.metadata, content=self._content)
            attributes["inmem.run.status"] = record.status.value
            if record.tags:
                attributes["inmem.tags"] = record.tags
            if record.metadata and self._content:
                attributes["inmem.content.metadata"] = as_text(record.metadata)
            if record.parent_run is not None:
                above = self._context(run=record.parent_run)
                links.append(link_of(above, {"inmem.link": "parent_run", "inmem.run.id": record.parent_run}))
            if record.error is not None:
                status = Status(StatusCode.ERROR, record.error)
                attributes[names.ERROR_TYPE] = "_OTHER"  # a run's error is a text without a type
            first_us = min(record.created_at, first_us or record.created_at)
            last_us = record.completed_at or max(last_us, record.updated_at)
        return self._span(
            name, "", None, first_us, max(first_us, last_us), attributes, links=links, status=status,
            events=events,
        )

    def of_events(self, events: Sequence[inmem.Event]) -> ReadableSpan:
        """A span below the run's for events that have no place in that one."""
        first, last = events[0], events[-1]
        attributes = {
            **self._about, "inmem.events.first": first.sequence, "inmem.events.count": len(events)
        }
        part = f"\0events\0{first.sequence // EVENTS_PER_SPAN}"  # no trace has an id with NUL in it
        return self._span(
            "events", part, self._context(), first.timestamp, last.timestamp, attributes, events=events
        )

    def of_trace(self, trace: inmem.Trace) -> ReadableSpan:
        """The span of a trace."""
        body, start, end = trace.body, trace.timestamp, trace.timestamp
        kind, status = SpanKind.INTERNAL, _UNSET
        name = trace.type_name
        attributes = {
            **passed_on(trace.metadata, content=self._content), **self._about, "inmem.trace.id": trace.id,
            "inmem.trace.type": trace.type_name,
        }
        if trace.tags:
            attributes["inmem.tags"] = trace.tags
        if isinstance(body, inmem.ToolCall):
            name = f"execute_tool {body.tool_name}"
            attributes |= {names.OPERATION: "execute_tool", names.TOOL_NAME: body.tool_name}
            start = max(1, end - _duration_us(body.duration_ms))
        elif isinstance(body, inmem.Query):
            name, kind = "retrieval", SpanKind.CLIENT
            attributes |= {
                names.OPERATION: "retrieval", "inmem.query.type": body.query_type,
                names.RESULTS_COUNT: body.results_count,
            }
        elif isinstance(body, inmem.ErrorTrace):
            status = Status(StatusCode.ERROR, body.message)
            attributes |= {names.ERROR_TYPE: body.error_type, "inmem.error.recoverable": body.recoverable}
        elif isinstance(body, inmem.Thought) and type(body.confidence) in (int, float):
            attributes["inmem.thought.confidence"] = body.confidence
        if self._content:
            attributes |= _content_of(trace)
        above = self._context(trace.parent_id or "")
        return self._span(name, trace.id, above, start, end, attributes, kind=kind, status=status)

    def _span(
        self, name: str, part: str, above: SpanContext | None, start_us: int, end_us: int,
        attributes: Mapping[str, Any], *, kind: SpanKind = SpanKind.INTERNAL, status: Status = _UNSET,
        links: Sequence[Link] = (), events: Sequence[inmem.Event] = (),
    ) -> ReadableSpan:
        return StoredSpan(
            (0, 0, 0), name, self._context(part), above, self._resource, attributes,
            [self._event(event) for event in events],
            links, kind, status=status, start_time=start_us * _NS, end_time=end_us * _NS,
            instrumentation_scope=_SCOPE,
        )

    def _event(self, event: inmem.Event) -> Event:
        attributes: dict[str, Any] = {"inmem.event.sequence": event.sequence}
        if self._content and event.payload is not None:
            attributes["inmem.content.payload"] = as_text(event.payload)
        return event_of(event.event_type, attributes, event.timestamp * _NS)

    def _context(self, part: str = "", *, run: str | None = None) -> SpanContext:
        return names.context_of(str(self._namespace), run or self._run, part)


def _duration_us(duration_ms: float | None) -> int:
    """What a tool call says that it took; nothing if it says none, or something that is no time."""
    if duration_ms is None or type(duration_ms) not in (int, float) or not 0 <= duration_ms < 1e15:
        return 0
    return round(duration_ms * 1000)


def _content_of(trace: inmem.Trace) -> dict[str, Any]:
    """What was asked and answered, and all else that a trace says in words."""
    body = trace.body
    if isinstance(body, inmem.ToolCall):
        found = {names.TOOL_ARGUMENTS: body.arguments, names.TOOL_RESULT: body.result}
    elif isinstance(body, inmem.Query):
        found = {names.QUERY_TEXT: body.query}
    elif isinstance(body, inmem.Thought):
        found = {"inmem.content.thought": body.content}
    elif isinstance(body, inmem.Decision):
        found = {
            "inmem.content.question": body.question, "inmem.content.options": body.options,
            "inmem.content.chosen": body.chosen, "inmem.content.reasoning": body.reasoning,
        }
    elif isinstance(body, inmem.Custom):
        found = {"inmem.content.data": body.data}
    else:
        found = {}
    if trace.metadata:
        found["inmem.content.metadata"] = trace.metadata
    return {name: as_text(value) for name, value in found.items() if value is not None}
