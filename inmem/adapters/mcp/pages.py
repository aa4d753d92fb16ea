"""What tools and resources read of a store, page by page.

Each function reads one view, so what it answers is of one moment. It reads little more than it answers:
items one after the other, until the page is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final, TypeVar

import inmem
from inmem.adapters.mcp.shown import (
    CellPage,
    CellShown,
    EntryPage,
    EntryShown,
    EventPage,
    EventShown,
    JobPage,
    JobShown,
    LeasePage,
    LeaseShown,
    QueuePage,
    QueueShown,
    RunContents,
    RunIdPage,
    RunPage,
    RunShown,
    TracePage,
    TraceShown,
    fitting,
)

View = inmem.Snapshot | inmem.Transaction
T = TypeVar("T")

LIMIT: Final = 50  # items of a page, if nothing else is asked for
MAX_LIMIT: Final = 500
_AT_ONCE: Final = 4  # items that are read together: each may be of 16 MiB
_NAMES: Final = 100  # of what a run contains


# --- runs ---------------------------------------------------------------------------------------


def runs(view: View, cursor: str | None = None, limit: int = LIMIT, **conditions: Any) -> RunPage:
    """Runs in the order of their creation, by the conditions of `query_runs`."""
    after = None if cursor is None else _run_at(cursor)
    found = view.runs.iter_runs(limit=limit + 1, start_after=after, **conditions)
    last: list[inmem.RunMetadata] = []

    def items() -> Iterator[RunShown]:
        for run in found:
            last[:] = [*last[-1:], run]
            yield RunShown.of(run)

    page, has_more = fitting(items(), limit)
    return RunPage(runs=page, next_cursor=_place_of(last[0]) if has_more else None)


def _place_of(run: inmem.RunMetadata) -> str:
    return f"{run.created_at}:{run.run_id}"


def _run_at(cursor: str) -> inmem.RunMetadata:
    """A place in the order of creation. The run may be deleted by now, so its id is not enough."""
    time, _, run_id = cursor.partition(":")
    created_at = number_in(cursor, time)
    return inmem.RunMetadata(
        run_id=inmem.RunId(run_id), parent_run=None, status=inmem.RunStatus.ACTIVE, created_at=created_at,
        updated_at=0, completed_at=None, tags=(), metadata={}, error=None, version=0,
    )


def run_ids(view: View, cursor: str | None = None, limit: int = LIMIT) -> RunIdPage:
    """Ids of all runs, also of those that hold data and were never created."""
    found = view.runs.list_runs(
        limit=limit + 1, start_after=cursor, include_archived=True, include_uncreated=True
    )
    return RunIdPage(
        runs=[*found[:limit]], next_cursor=found[limit - 1] if len(found) > limit else None
    )


def run_ids_with(view: View, prefix: str, limit: int) -> RunIdPage:
    """The first ids that begin with a text."""
    found: list[str] = []
    with suppress(inmem.InvalidRunIdError):  # no id begins with such a text
        if prefix and view.runs.get_run(prefix) is not None:
            found.append(prefix)
        later = view.runs.list_runs(limit=limit + 1, start_after=prefix or None)
        found += [each for each in later if each.startswith(prefix)]
    return RunIdPage(runs=found[:limit], next_cursor=found[limit - 1] if len(found) > limit else None)


def run(view: View, run_id: str, offset: int = 0) -> RunContents:
    """A run's record and what it contains.

    Raises:
        RunNotFoundError: it was never created and holds nothing.
    """
    is_shared = run_id.startswith("@")
    record = None if is_shared else view.runs.get_run(run_id)
    contents = RunContents(
        record=None if record is None else RunShown.of(record, offset),
        events=view.events.count(), queues=view.queues.list()[:_NAMES],
        first_keys=view.kv.list(limit=_NAMES), first_cells=view.cells.list(limit=_NAMES),
        has_traces=bool(view.traces.list(limit=1)),
    )
    if record is None and not is_shared and contents == _EMPTY and not view.leases.list(limit=1):
        raise inmem.RunNotFoundError(
            f"there is no run {run_id}", run_id=run_id, hint="List those that are there with runs_ids.",
        )
    return contents


_EMPTY: Final = RunContents(record=None, events=0, queues=[], first_keys=[], first_cells=[], has_traces=False)


# --- entries, cells, leases: in order of their names ----------------------------------------------


def entries(
    view: View, prefix: str | None = None, cursor: str | None = None, limit: int = LIMIT
) -> EntryPage:
    """Keys with their values, in order."""
    keys = view.kv.list(prefix, limit=limit + 1, start_after=cursor)
    page, has_more = fitting(_of_each(keys, view.kv.get_versioned, EntryShown.of), limit)
    return EntryPage(entries=page, next_cursor=page[-1].key if has_more else None)


def entry(view: View, key: str, offset: int = 0) -> EntryShown:
    """One key with its value.

    Raises:
        NotFoundError: there is no such key.
    """
    found = view.kv.get_versioned(key)
    if found is None:
        raise inmem.NotFoundError(f"the run has no key {key!r}", hint="List its keys with kv_list.")
    return EntryShown.of(key, found, offset)


def cells(view: View, prefix: str | None = None, cursor: str | None = None, limit: int = LIMIT) -> CellPage:
    """Cells, in order of their names."""
    names = view.cells.list(prefix, limit=limit + 1, start_after=cursor)
    page, has_more = fitting(_of_each(names, view.cells.read, CellShown.of), limit)
    return CellPage(cells=page, next_cursor=page[-1].name if has_more else None)


def cell(view: View, name: str, offset: int = 0) -> CellShown:
    """One cell.

    Raises:
        CellNotFoundError: there is no such cell.
    """
    found = view.cells.read(name)
    if found is None:
        raise inmem.CellNotFoundError(
            f"the run has no cell {name!r}", name=name, hint="List its cells with cells_list."
        )
    return CellShown.of(name, found, offset)


def leases(
    view: View, prefix: str | None = None, cursor: str | None = None, limit: int = LIMIT
) -> LeasePage:
    """Leases, in order of their names."""
    found = view.leases.list(prefix, limit=limit + 1, start_after=cursor)
    page, has_more = fitting(map(LeaseShown.of, found), limit)
    return LeasePage(leases=page, next_cursor=page[-1].name if has_more else None)


def _of_each(
    names: list[str], read: Callable[[str], Any], make: Callable[[str, Any], T]
) -> Iterator[T]:
    """What is shown of each name, read when it is asked for."""
    for name in names:
        found = read(name)
        if found is not None:  # an entry may expire between the two reads
            yield make(name, found)


# --- events and traces: in the order in which they came --------------------------------------------


def events(
    view: View, event_type: str | None = None, newest_first: bool = False, cursor: str | None = None,
    limit: int = LIMIT,
) -> EventPage:
    """Events of the log, of one type or of all."""
    place = None if cursor is None else number_in(cursor, cursor)

    def after(at: int | None) -> list[inmem.Event]:
        if event_type is not None:
            return view.events.query_by_type(
                event_type, limit=_AT_ONCE, start_after=at, reverse=newest_first
            )
        if newest_first:
            return view.events.read_range(0, at, limit=_AT_ONCE, reverse=True)
        return view.events.read_range(0 if at is None else at + 1, limit=_AT_ONCE)

    found = _batches(after, lambda event: event.sequence, place)
    page, has_more = fitting(map(EventShown.of, found), limit)
    return EventPage(events=page, next_cursor=str(page[-1].sequence) if has_more else None)


def event(view: View, sequence: int, offset: int = 0) -> EventShown:
    """One event.

    Raises:
        NotFoundError: the log is shorter.
    """
    found = view.events.read(sequence)
    if found is None:
        raise inmem.NotFoundError(
            f"the run has no event {sequence}", hint=f"Its log has {view.events.count()} events."
        )
    return EventShown.of(found, offset)


def traces(
    view: View, type_name: str | None = None, tag: str | None = None, parent_id: str | None = None,
    newest_first: bool = False, cursor: str | None = None, limit: int = LIMIT,
) -> TracePage:
    """Traces in order of time: all, or those of one type, with one tag, or below one parent.

    Raises:
        InvalidInputError: more than one of these conditions is given.
    """
    conditions = {"type": type_name, "tag": tag, "parent_id": parent_id}
    given = [name for name, value in conditions.items() if value is not None]
    if len(given) > 1:
        raise inmem.InvalidInputError(
            f"give one of type, tag and parent_id, not {' and '.join(given)}", argument=given[1]
        )

    def after(at: str | None) -> list[inmem.Trace]:
        where: dict[str, Any] = {"limit": _AT_ONCE, "start_after": at, "reverse": newest_first}
        if type_name is not None:
            return view.traces.query_by_type(type_name, **where)
        if tag is not None:
            return view.traces.query_by_tag(tag, **where)
        if parent_id is not None:
            return view.traces.get_children(parent_id, **where)
        return view.traces.list(**where)

    found = _batches(after, lambda trace: trace.id, cursor)
    page, has_more = fitting(map(TraceShown.of, found), limit)
    return TracePage(traces=page, next_cursor=page[-1].id if has_more else None)


def trace(view: View, trace_id: str, offset: int = 0) -> TraceShown:
    """One trace.

    Raises:
        TraceNotFoundError: there is no such trace.
    """
    found = view.traces.get(trace_id)
    if found is None:
        raise inmem.TraceNotFoundError(
            f"the run has no trace {trace_id!r}", trace_id=trace_id, hint="List its traces with traces_list."
        )
    return TraceShown.of(found, offset)


def _batches(after: Callable[[Any], list[T]], place_of: Callable[[T], Any], place: Any) -> Iterator[T]:
    """Items behind a place, some at a time."""
    while True:
        found = after(place)
        yield from found
        if len(found) < _AT_ONCE:
            return
        place = place_of(found[-1])


# --- queues -------------------------------------------------------------------------------------


def queues(view: View, cursor: str | None = None, limit: int = LIMIT) -> QueuePage:
    """The run's queues with how many jobs they have, in order of their names."""
    names = [name for name in view.queues.list() if cursor is None or name > cursor]

    def items() -> Iterator[QueueShown]:
        for name in islice(names, limit + 1):
            counts = view.queues.counts(name)
            yield QueueShown(
                queue=name, ready=counts.ready, delayed=counts.delayed, claimed=counts.claimed,
                dead=counts.dead,
            )

    page, has_more = fitting(items(), limit)
    return QueuePage(queues=page, next_cursor=page[-1].queue if has_more else None)


def jobs(
    view: View, queue: str, state: str = "ready", cursor: str | None = None, limit: int = LIMIT
) -> JobPage:
    """The ready jobs that are taken next, or the dead ones in the order in which they were put."""
    listed = view.queues.peek if state == "ready" else view.queues.dead
    after = None if cursor is None else _job_at(cursor, queue)

    def items() -> Iterator[JobShown]:
        asked, place = 1, after
        while True:  # payloads may be long: twice as many at a time, until they fill a page
            found = listed(queue, limit=asked, start_after=place)
            yield from map(JobShown.of, found)
            if len(found) < asked:
                return
            asked, place = min(2 * asked, limit + 1), found[-1]

    page, has_more = fitting(items(), limit)
    return JobPage(jobs=page, next_cursor=f"{page[-1].priority}:{page[-1].id}" if has_more else None)


def _job_at(cursor: str, queue: str) -> inmem.JobInfo:
    """A place in the order of a queue. The job may be done by now, so its id is not enough."""
    priority, _, job_id = cursor.partition(":")
    sign, digits = (-1, priority[1:]) if priority.startswith("-") else (1, priority)
    return inmem.JobInfo(
        id=inmem.JobId(job_id), queue=queue, state="", payload=None, result=None,
        priority=sign * number_in(cursor, digits), attempt=0, max_attempts=0, key=None, time=0, worker="",
        enqueued_at=0, errors=(),
    )


def job(view: View, job_id: str, offset: int = 0) -> JobShown:
    """One job.

    Raises:
        JobNotFoundError: there is no such job.
    """
    found = view.queues.get(job_id)
    if found is None:
        raise inmem.JobNotFoundError(
            f"the run has no job {job_id!r}", job_id=job_id,
            hint="It was never put, or it is done and has left no result.",
        )
    return JobShown.of(found, offset)


def number_in(cursor: str, text: str) -> int:
    """A number in a cursor.

    Raises:
        InvalidInputError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise inmem.InvalidInputError(
            f"cursor must be the next_cursor of an earlier answer, not {cursor[:40]!r}", argument="cursor"
        )
    return int(text)
