"""What tools and resources answer: models whose schemas clients are given, and how they are made.

Invariant: no answer is longer than `PAGE_CHARS` by more than its last item, and no item shows more than
`VALUE_CHARS` of its values. A value that is longer is given in parts of its JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, Field

import inmem
from inmem.exchange import to_json

M = TypeVar("M", bound=BaseModel)

VALUE_CHARS: Final = 16_000  # of the JSON text of one value
PAGE_CHARS: Final = 48_000  # of the JSON text of the items of one page

Time = Annotated[str, Field(description="A time in UTC, to the microsecond.")]
Value = Annotated[Any, Field(description="The value as JSON; null if it is too long, see `cut`.")]


class CutText(BaseModel):
    """What stands for a value that is too long to be shown: a part of its JSON text."""

    text: str = Field(description="The part of the value's JSON text that begins at `offset`.")
    offset: int = Field(description="Where this part begins, in characters.")
    size: int = Field(description="How many characters the whole JSON text has.")
    next_offset: int | None = Field(
        description="To read on, give this as `offset` to the tool that reads one item; null at the end."
    )


Cut = Annotated[
    CutText | None, Field(description="Null if the values are shown whole; else a part of their JSON text.")
]
Next = Annotated[
    str | None, Field(description="Give this as `cursor` to get the next page; null if this was the last.")
]


class EntryShown(BaseModel):
    """A key with its value."""

    key: str
    value: Value
    cut: Cut
    version: int = Field(description="The version of the commit that wrote it.")
    written_at: Time

    @classmethod
    def of(cls, key: str, found: inmem.Versioned, offset: int = 0) -> EntryShown:
        """As an answer shows it."""
        value, cut = shown(found.value, offset)
        return cls(
            key=key, value=value, cut=cut, version=found.version, written_at=time_of(found.timestamp)
        )


class EntryPage(BaseModel):
    """Keys with their values."""

    entries: list[EntryShown]
    next_cursor: Next


class EventShown(BaseModel):
    """An event of a run's log."""

    sequence: int = Field(description="Its place in the log, from 0 on.")
    event_type: str
    payload: Value
    cut: Cut
    time: Time

    @classmethod
    def of(cls, found: inmem.Event, offset: int = 0) -> EventShown:
        """As an answer shows it."""
        payload, cut = shown(found.payload, offset)
        return cls(
            sequence=found.sequence, event_type=found.event_type, payload=payload, cut=cut,
            time=time_of(found.timestamp),
        )


class EventPage(BaseModel):
    """Events of a run's log."""

    events: list[EventShown]
    next_cursor: Next


class CellShown(BaseModel):
    """A cell: a value that is changed by comparing its version."""

    name: str
    value: Value
    cut: Cut
    version: int = Field(description="Grows with each change. `cells_set` compares it.")
    changed_at: Time

    @classmethod
    def of(cls, name: str, found: inmem.State, offset: int = 0) -> CellShown:
        """As an answer shows it."""
        value, cut = shown(found.value, offset)
        return cls(
            name=name, value=value, cut=cut, version=found.version, changed_at=time_of(found.updated_at)
        )


class CellPage(BaseModel):
    """Cells of a run."""

    cells: list[CellShown]
    next_cursor: Next


class TraceShown(BaseModel):
    """A trace: one thing that an agent did or thought."""

    id: str
    parent_id: str | None
    type: str = Field(description="ToolCall, Decision, Query, Thought, Error, or a type of its own.")
    body: Value = Field(description="What it says; its fields depend on the type. Null if cut.")
    metadata: Value = Field(description="An object. Null if cut.")
    cut: Cut
    tags: list[str]
    time: Time

    @classmethod
    def of(cls, found: inmem.Trace, offset: int = 0) -> TraceShown:
        """As an answer shows it."""
        body = {name: getattr(found.body, name) for name in found.body.__slots__}
        (body_json, metadata), cut = shown_together({"body": body, "metadata": found.metadata}, offset)
        return cls(
            id=found.id, parent_id=found.parent_id, type=found.type_name, body=body_json, metadata=metadata,
            cut=cut, tags=[*found.tags], time=time_of(found.timestamp),
        )


class TracePage(BaseModel):
    """Traces of a run, in order of time."""

    traces: list[TraceShown]
    next_cursor: Next


class RunShown(BaseModel):
    """A run: one task of an agent, with all that it stores."""

    run: str = Field(description="Its id, as the other tools take it.")
    status: str = Field(description="active, paused, completed, failed, cancelled or archived.")
    parent_run: str | None
    tags: list[str]
    metadata: Value = Field(description="An object. Null if cut.")
    error: str | None = Field(description="Why it failed. Null if it did not, or if cut.")
    cut: Cut
    created_at: Time
    updated_at: Time
    completed_at: Time | None

    @classmethod
    def of(cls, found: inmem.RunMetadata, offset: int = 0) -> RunShown:
        """As an answer shows it."""
        whole = {"metadata": found.metadata, "error": found.error}
        (metadata, error), cut = shown_together(whole, offset)
        return cls(
            run=found.run_id, status=found.status.value, parent_run=found.parent_run, tags=[*found.tags],
            metadata=metadata, error=error, cut=cut, created_at=time_of(found.created_at),
            updated_at=time_of(found.updated_at),
            completed_at=None if found.completed_at is None else time_of(found.completed_at),
        )


class RunPage(BaseModel):
    """Runs, in the order in which they were created."""

    runs: list[RunShown]
    next_cursor: Next


class RunIdPage(BaseModel):
    """Ids of runs, in order."""

    runs: list[str]
    next_cursor: Next


class RunContents(BaseModel):
    """A run's record, and how much it stores."""

    record: RunShown | None = Field(description="Null if the run was never created, but holds data.")
    events: int = Field(description="How many events its log has.")
    queues: list[str] = Field(description="The names of its queues, at most 100.")
    first_keys: list[str] = Field(description="The first of its keys, at most 100.")
    first_cells: list[str] = Field(description="The names of its first cells, at most 100.")
    has_traces: bool


class JobShown(BaseModel):
    """A job of a queue."""

    id: str = Field(description="The queue's name, a slash and a number.")
    queue: str
    state: str = Field(description="ready, delayed, claimed, dead or done, as it was written last.")
    payload: Value = Field(description="What is to be done. Null if done or cut.")
    result: Value = Field(description="What a done job has returned. Null if cut.")
    cut: Cut
    priority: int
    attempt: int = Field(description="How often it was claimed.")
    max_attempts: int = Field(description="After so many claims without success it is dead.")
    key: str | None = Field(description="While a job with this key is there, no second one is put.")
    worker: str
    time: Time = Field(description="When it is due, its claim runs out, or it has ended.")
    enqueued_at: Time
    errors: list[str] = Field(description="Why its last attempts have failed.")

    @classmethod
    def of(cls, found: inmem.JobInfo, offset: int = 0) -> JobShown:
        """As an answer shows it."""
        whole = {"payload": found.payload, "result": found.result}
        (payload, result), cut = shown_together(whole, offset)
        return cls(
            id=str(found.id), queue=found.queue, state=found.state, payload=payload, result=result, cut=cut,
            priority=found.priority, attempt=found.attempt, max_attempts=found.max_attempts, key=found.key,
            worker=found.worker, time=time_of(found.time), enqueued_at=time_of(found.enqueued_at),
            errors=[*found.errors],
        )


class JobPage(BaseModel):
    """Jobs of a queue, in the order in which they are taken or were put."""

    jobs: list[JobShown]
    next_cursor: Next


class QueueShown(BaseModel):
    """How many jobs a queue has."""

    queue: str
    ready: int
    delayed: int
    claimed: int
    dead: int = Field(description="Jobs whose attempts have all failed.")


class QueuePage(BaseModel):
    """Queues of a run."""

    queues: list[QueueShown]
    next_cursor: Next


class LeaseShown(BaseModel):
    """A lease: a name that one holder owns until a time."""

    name: str
    holder: str
    token: int = Field(description="Grows with each holder of this name.")
    acquired_at: Time
    expires_at: Time = Field(description="After this time others may take it.")
    claim: str = Field(description="What `leases_renew` and `leases_release` take.")

    @classmethod
    def of(cls, found: inmem.Lease) -> LeaseShown:
        """As an answer shows it."""
        return cls(
            name=found.name, holder=found.holder, token=found.token, acquired_at=time_of(found.acquired_at),
            expires_at=time_of(found.expires_at), claim=f"{found.token}.{found.acquired_at}",
        )


class LeasePage(BaseModel):
    """Leases of a run."""

    leases: list[LeaseShown]
    next_cursor: Next


def shown(value: Any, offset: int = 0) -> tuple[Any, CutText | None]:
    """A value as JSON, or None and a part of its JSON text if that is long or `offset` asks for it."""
    document = to_json(value)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    if not offset and len(text) <= VALUE_CHARS:
        return document, None
    end = offset + VALUE_CHARS
    part = CutText(
        text=text[offset:end], offset=offset, size=len(text), next_offset=end if end < len(text) else None
    )
    return None, part


def shown_together(values: dict[str, Any], offset: int) -> tuple[list[Any], CutText | None]:
    """Several values of one item: all of them, or none and a part of the JSON text of the object of them."""
    document, cut = shown(values, offset)
    return [None] * len(values) if cut else [*document.values()], cut


def time_of(time_us: int) -> str:
    """A time as ISO 8601.

    >>> time_of(1_790_000_000_000_001)
    '2026-09-21T14:13:20.000001Z'
    """
    try:
        seconds, micros = divmod(time_us, 1_000_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06}Z"
    except (OverflowError, ValueError, OSError):  # a trace may be of any time
        return f"{time_us} microseconds after 1970"


def fitting(items: Iterable[M], limit: int) -> tuple[list[M], bool]:
    """The first items that fit into a page, one at least; whether there are more."""
    found: list[M] = []
    room = PAGE_CHARS
    for item in items:
        if len(found) == limit or (found and room <= 0):
            return found, True
        found.append(item)
        room -= len(item.model_dump_json())
    return found, False
