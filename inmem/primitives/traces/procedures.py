"""Procedures of traces: a trace and all its index entries are written together, or none is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit.arguments import check_labels, check_prefix, check_time, check_type
from inmem.commit.footprint import Footprint
from inmem.commit.workspace import Workspace
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import InvalidInputError, LimitError, TraceExistsError, TraceNotFoundError
from inmem.keys import TypeTag, encode_id, encode_label, range_of
from inmem.primitives.importing import importing_records, parts, past
from inmem.primitives.traces import rules as trace

_TAGS: Final = (
    TypeTag.TRACE, TypeTag.TRACE_BY_TYPE, TypeTag.TRACE_BY_PARENT, TypeTag.TRACE_BY_TIME,
    TypeTag.TRACE_BY_TAG,
)


def record(workspace: Workspace, prefix: bytes, items: list[Any]) -> list[int]:
    """Record `[id, parent or "", timestamp (0: now), kind, type name, tags, body, metadata]` items.

    The result are the timestamps. Those given here never go back within the run.
    """
    check_prefix(prefix)
    check_type("items", items, list)
    if len(items) > MAX_TRANSACTION_OPS:
        raise LimitError(
            f"{len(items)} traces of one call, the limit is {MAX_TRANSACTION_OPS}",
            what="traces of one call", size=len(items), limit=MAX_TRANSACTION_OPS,
        )
    workspace.expect(sum(map(trace.entries_of, items)))
    return [_record(workspace, prefix, item) for item in items]


def _record(workspace: Workspace, prefix: bytes, item: Any) -> int:
    check_type("items", item, list)
    if len(item) != 8:
        raise InvalidInputError("a trace must be an array of 8", argument="items")
    trace_id, parent_id, timestamp, kind, type_name, tags, body, metadata = item
    key = trace.trace_key(prefix, encode_id(trace_id, "id"))
    workspace.check_open(key)
    encode_label(type_name, "type")
    check_type("kind", kind, int)
    if kind not in trace.BODIES:
        raise InvalidInputError(f"there is no kind {kind} of trace", argument="kind")
    check_type("parent_id", parent_id, str)
    check_type("body", body, bytes)
    check_type("metadata", metadata, bytes)
    if workspace.record(key) is not None:
        raise TraceExistsError(f"trace {trace_id} exists", trace_id=trace_id)
    if parent_id:
        parent = trace.trace_key(prefix, encode_id(parent_id, "parent_id"))
        if workspace.record(parent) is None:
            raise TraceNotFoundError(f"there is no trace {parent_id} to be the parent", trace_id=parent_id)
    if not check_time(timestamp):
        workspace.check_order(key)
    when = timestamp or workspace.stamp_us
    payload = trace.pack(kind, type_name, parent_id, when, check_labels(tags), body, metadata)
    workspace.put(key, payload)
    workspace.put_index(trace.index_keys_of(prefix, trace_id.encode(), type_name, parent_id, when, tags))
    return when


def import_traces(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Traces as `trace.record` takes them, each with its timestamp; parents before children."""
    with importing_records(workspace, prefix, token, "traces", items):
        for item in items:
            past(parts(item, 8)[2])
        record(workspace, prefix, items)


def footprint(prefix: bytes, *_: Any) -> Footprint:
    """Of a record: the run's traces, and all their indices."""
    return _footprint(prefix)


@functools.lru_cache(maxsize=256)  # each record in a transaction asks
def _footprint(prefix: bytes) -> Footprint:
    return Footprint.of(*(range_of(prefix, tag) for tag in _TAGS))


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "import.traces": import_traces,
    "trace.record": record,
}

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {"trace.record": footprint}
