"""Spans that no tracer has made: what every release of the SDK and its exporters expects of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext


class StoredSpan(ReadableSpan):
    """A span out of a store; `dropped` is how many attributes, events and links it once had beyond a limit.

    Earlier releases look for those numbers in the collections themselves, and exporters ask for them.
    """

    def __init__(self, dropped: Sequence[int], *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        """How many attributes."""
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        """How many events."""
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        """How many links."""
        return self._dropped[2]


def event_of(name: str, attributes: Mapping[str, Any], at_ns: int) -> Event:
    """An event of a span."""
    return Event(name, BoundedAttributes(attributes=attributes), at_ns)


def link_of(context: SpanContext, attributes: Mapping[str, Any]) -> Link:
    """A link of a span."""
    return Link(context, BoundedAttributes(attributes=attributes))
