"""A recorded agent run as steps, and the source record from its events.

Invariant: a mapping, not a selection. `rebuild` gives back, from the events
of a run alone, the record that was read, equal in every value. Traces, state
and status say the same again, for who looks for something.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inmem.exchange.storable import restore
from inmem.primitives.traces.facade import NewTrace

Event = tuple[str, Any]  # type, payload


@dataclass(frozen=True, slots=True)
class TrajectoryStep:
    """What one transaction stores: events and traces, and what changes with them in KV and cells."""

    index: int
    events: tuple[Event, ...]
    kv: dict[str, Any]
    state: dict[str, Any]  # the agent's, after the step
    status: Any  # "running", and with the last step how it ended
    traces: tuple[NewTrace, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One recorded run, ready to be stored."""

    run_id: str  # from format, name and content: the same record has the same id anywhere
    name: str
    source_format: str
    digest: str  # of the source record
    outcome: str  # "completed", "failed" or "unknown"
    error: str | None  # of one that failed
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    steps: tuple[TrajectoryStep, ...]
    record: Any  # the source record as it was read
    notes: tuple[str, ...]  # what could not be kept in its plain form


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file, or a record in one, that is no trajectory, and why."""

    source: str
    reason: str


def rebuild(events: Iterable[Event]) -> Any:
    """The source record, from the events of a run."""
    record: Any = {}
    messages: list[Any] = []
    elements: dict[int, dict[str, Any]] = {}
    lists: list[str] = []
    bare = False
    for event_type, payload in events:
        if event_type == "source":
            record, lists = restore(payload["record"]), payload["lists"]
            if record is None:
                record, bare = {}, True
        elif event_type in ("thought", "action", "observation", "context"):
            elements.setdefault(payload["step"], {}).update(restore(payload["fields"]))
        elif event_type != "tool_call":
            messages.append(restore(payload["message"]))
    for key in lists:
        record[key] = messages if key != "trajectory" else [elements[step] for step in sorted(elements)]
    return messages if bare else record
