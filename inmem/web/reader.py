"""What the page shows, as documents: rows in words, in bounded pages.

Invariant: every text has been made harmless, as in the report, and each
document has a bounded size. Nothing here changes anything.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final, TypeVar

from inmem.cli.durations import duration_s, took
from inmem.cli.gist import in_lines, line_of, trace_line, words_of
from inmem.cli.shown import LINE, Details, about, kind_of, name_of, tags_of
from inmem.cli.stored_queues import queues_in
from inmem.cli.text import full_time, plain, span
from inmem.database import Database, Status
from inmem.errors import InvalidInputError, RunNotFoundError
from inmem.jsonvalues import to_json
from inmem.keys import TypeTag
from inmem.primitives.events.rules import Event
from inmem.primitives.leases import rules as lease_rules
from inmem.primitives.queues.reads import in_state
from inmem.primitives.queues.shown import JobInfo
from inmem.primitives.runs.rules import RunMetadata, RunStatus
from inmem.primitives.traces.rules import Trace
from inmem.reading.moment import readable
from inmem.reading.named_source import NamedSource
from inmem.reading.run import StoredRun, metadata_of
from inmem.reading.runs import RunFinder, uncreated_runs
from inmem.record import payload_of, version_of
from inmem.version import __version__

T = TypeVar("T")

MOST: Final = 5_000  # rows of one page
_SCANNED: Final = 20_000  # rows that are looked at for one page of a search
_SEARCH_S: Final = 1.0
_VALUE: Final = 200_000  # characters of a value that is shown alone
_EDITED: Final = 1_000_000  # bytes of a value that the page offers to change
_UNCREATED: Final = 50
_LOOKED_AT: Final = 2_000
_CHILDREN: Final = 200
_JOBS: Final = 100


class PageReader:
    """Reads one namespace of a store for the page. Its methods may be called by several threads."""

    def __init__(self, database: Database, may_write: bool) -> None:
        self._db = database
        engine = database.engine
        self._source = NamedSource("page", engine.stored, engine.latest().now_us, database.namespace)
        self._may_write = may_write

    # --- the store ----------------------------------------------------------------------

    def store(self) -> dict[str, Any]:
        """What does not change while the page is open."""
        return {
            "name": plain(self._db.name), "version": __version__, "namespace": str(self._db.namespace),
            "durability": self._db.engine.durability, "write": self._may_write,
            "local": self._db.engine.path is not None,
        }

    def status(self) -> Status:
        """What the writer says of itself."""
        return self._db.status()

    def runs(
        self, *, words: str = "", status: str = "", tag: str = "", parent: str = "", after: str = "",
        limit: int = 200,
    ) -> dict[str, Any]:
        """A page of runs, the newest first; `next` goes on after it.

        Raises:
            InvalidInputError: a status that there is none of, or `after` names a run that is gone.
        """
        namespace = self._db.namespace
        wanted = words.lower().split()
        finder = RunFinder(
            self._source, namespace, status=_status(status), tags=(tag,) if tag else (),
            parent=parent or None, archived=not status,
        )
        start = metadata_of(self._source, namespace, after) if after else None
        if after and start is None:
            raise InvalidInputError(f"run {plain(after)} is gone", argument="after")
        now_us = self._source.now_us()
        found: list[dict[str, Any]] = []
        last, is_whole = "", True
        for run in _searched(finder.find(start_after=start)):
            if run is None or len(found) == limit:
                is_whole = False
                break
            last = run.run_id
            if all(any(word in text.lower() for text in (run.run_id, *run.tags)) for word in wanted):
                found.append(self._run_row(run, now_us))
        document: dict[str, Any] = {"runs": found, "next": "" if is_whole else last}
        if not (after or status or tag or parent):
            uncreated = uncreated_runs(self._source, namespace, _LOOKED_AT)
            names = [name for name in uncreated if all(word in name.lower() for word in wanted)]
            document["uncreated"] = names[:_UNCREATED]
            document["shared"] = [
                name for name in ("@agent", "@app", "@tenant") if not self._source.run(name).is_empty()
            ]
        return document

    def stats(self) -> dict[str, int]:
        """How many runs have each status."""
        found = self._db.runs.get_stats()
        return {status.value: count for status, count in found.by_status.items() if count}

    def _run_row(self, run: RunMetadata, now_us: int) -> dict[str, Any]:
        return {
            "id": run.run_id, "status": run.status.value, "tags": [plain(tag) for tag in run.tags],
            "created": run.created_at, "updated": run.updated_at, "took": took(run, now_us),
            "parent": run.parent_run or "", "error": in_lines(run.error or "", LINE),
        }

    # --- one run ------------------------------------------------------------------------

    def run(self, name: str) -> dict[str, Any]:
        """A run: what its record says, and how much it holds.

        Raises:
            RunNotFoundError: there is nothing under that name.
        """
        with self._source.moment() as moment:
            store = StoredRun(moment, self._db.namespace, name)
            run = store.metadata()
            if run is None and not name.startswith("@") and store.is_empty():
                raise RunNotFoundError(f"there is no run {plain(name)}", run_id=name)
            counts, version = store.counts(), moment.version
        first, last = self._span(name)
        document: dict[str, Any] = {
            "run": name, "status": "", "error": "", "facts": [], "about": about(run), "counts": counts,
            "first": first, "last": last, "now": self._source.now_us(), "version": version, "children": [],
            "tags": [], "parent": "",
        }
        if run is None:
            what = "what runs share" if name.startswith("@") else "it was never created"
            return document | {"facts": [["status", what]]}
        finder = RunFinder(self._source, self._db.namespace, parent=name, archived=True)
        children = list(itertools.islice(finder.find(oldest_first=True), _CHILDREN))
        ended = full_time(run.completed_at) if run.completed_at is not None else "not yet"
        return document | {
            "status": run.status.value, "error": in_lines(run.error or "", _VALUE),
            "tags": [plain(tag) for tag in run.tags], "parent": run.parent_run or "",
            "children": [[child.run_id, child.status.value] for child in children],
            "facts": [
                ["created", full_time(run.created_at)], ["ended", ended],
                ["took", took(run, document["now"])],
                ["last change", f"{full_time(run.updated_at)} (number {run.version})"],
            ],
        }

    def _span(self, name: str) -> tuple[int, int]:
        """When the first and the last event or trace was, 0 without any."""
        store = self._source.run(name)
        events = [next(store.events(), None), next(store.events(reverse=True), None)]
        traces = [next(store.traces(), None), next(store.traces(reverse=True), None)]
        times = [each.event.timestamp for each in events if each is not None]
        times += [each.timestamp for each in traces if each is not None]
        return (min(times), max(times)) if times else (0, 0)

    def events(self, name: str, *, start: int = 0, limit: int = 500, words: str = "") -> dict[str, Any]:
        """Events from a sequence on; of a search `next` is where to go on, -1 at the end."""
        store = self._source.run(name)
        wanted = words.lower().split()
        rows: list[list[Any]] = []
        end = -1
        for logged in _searched(store.events(start)):
            if logged is None or len(rows) == limit:
                end = start
                break
            start = logged.event.sequence + 1
            row = self._event_row(logged.event)
            if all(word in f"{row[2]} {row[3]}".lower() for word in wanted):
                rows.append(row)
        return {"rows": rows, "next": end, "count": store.length()}

    def _event_row(self, event: Event) -> list[Any]:
        return [event.sequence, event.timestamp, plain(event.event_type), line_of(event.payload, LINE)]

    def event(self, name: str, sequence: int) -> dict[str, Any]:
        """One event with its details."""
        logged = _found(next(self._source.run(name).events(sequence), None), f"event {sequence}")
        return {"row": self._event_row(logged.event), "details": Details(_VALUE).event(logged.event)}

    def traces(self, name: str, *, after: str = "", limit: int = MOST) -> dict[str, Any]:
        """Traces in order of time, from after one on; `next` is the id to go on after, empty at the end."""
        store = self._source.run(name)
        place = _found(store.trace(after.encode()), f"trace {plain(after)}") if after else None
        return _paged(store.traces(start_after=place), limit, self._trace_row)

    def _trace_row(self, trace: Trace) -> list[Any]:
        own = duration_s(trace)
        return [
            trace.id, trace.parent_id or "", trace.timestamp, None if own is None else round(own * 1e6),
            kind_of(trace), name_of(trace), trace_line(trace, LINE), tags_of(trace),
        ]

    def trace(self, name: str, trace_id: str) -> dict[str, Any]:
        """One trace with its details."""
        trace = _found(self._source.run(name).trace(trace_id.encode()), f"trace {plain(trace_id)}")
        return {"row": self._trace_row(trace), "details": Details(_VALUE).trace(trace)}

    def entries(self, name: str, *, prefix: str = "", after: str = "", limit: int = 200) -> dict[str, Any]:
        """Entries of the KV store in order of their keys; `next` is the key to go on after."""
        found = self._source.run(name).entries(prefix or None, start_after=after or None)
        return _paged(
            found, limit,
            lambda e: [e.key, e.version, e.timestamp, words_of(e.value, LINE), e.ttl_s, e.size],
        )

    def entry(self, name: str, key: str) -> dict[str, Any]:
        """One entry with its value; as JSON too, which says it exactly, where it may be changed."""
        entry = _found(self._source.run(name).entry(key), f"key {plain(key)}")
        expires = "never" if entry.ttl_s is None else f"in {span(entry.ttl_s)}"
        details = [
            ["value", Details(_VALUE).value(entry.value)], ["written", full_time(entry.timestamp)],
            ["version", f"{entry.version:,}"], ["expires", expires], ["size", f"{entry.size:,} bytes"],
        ]
        document: dict[str, Any] = {"details": details, "version": entry.version}
        if self._may_write and entry.size <= _EDITED:
            document["json"] = json.dumps(to_json(entry.value), ensure_ascii=False, indent=2)
        return document

    def cells(self, name: str, *, after: str = "", limit: int = 200) -> dict[str, Any]:
        """Cells in order of their names; `next` is the name to go on after."""
        found = self._source.run(name).cells(start_after=after or None)
        return _paged(found, limit, lambda c: [c.name, c.version, c.updated_at, words_of(c.value, LINE)])

    def cell(self, name: str, cell: str) -> dict[str, Any]:
        """One cell with its value."""
        found = next((c for c in self._source.run(name).cells(cell) if c.name == cell), None)
        known = _found(found, f"cell {plain(cell)}")
        details = [
            ["value", Details(_VALUE).value(known.value)], ["version", f"{known.version:,}"],
            ["changed", full_time(known.updated_at)],
        ]
        return {"details": details, "version": known.version}

    def leases(self, name: str) -> dict[str, Any]:
        """Who holds which lease, for how long and with which token."""
        rows = []
        for key, record in itertools.islice(self._source.run(name).records(TypeTag.LEASE), MOST):
            with readable(f"a lease of {name}"):
                lease = lease_rules.unpack(payload_of(record))
            if lease.holder:
                texts = [plain(part.decode("utf-8", "backslashreplace")) for part in (key, lease.holder)]
                rows.append([*texts, lease.acquired_at, lease.expires_at, lease.token, version_of(record)])
        return {"rows": rows, "now": self._source.now_us()}

    def queues(self, name: str) -> dict[str, Any]:
        """The queues with their counts."""
        with self._source.moment() as moment:
            reads = queues_in(moment, self._source.run(name).prefix)
            rows = [[queue, asdict(reads.counts(queue))] for queue in reads.list()]
        return {"rows": rows, "now": self._source.now_us()}

    def jobs(self, name: str, queue: str, state: str) -> dict[str, Any]:
        """The first jobs of a queue in a state: ready, delayed, claimed or dead.

        Raises:
            InvalidInputError: there is no such state.
        """
        with self._source.moment() as moment:
            jobs = in_state(queues_in(moment, self._source.run(name).prefix), queue, state, _JOBS)
        return {"rows": [_job_row(job) for job in jobs], "most": _JOBS}


def _paged(found: Iterator[T], limit: int, row: Callable[[T], list[Any]]) -> dict[str, Any]:
    """Rows, and the first thing of the last one, after which to go on. One value at a time is in memory."""
    rows: list[list[Any]] = []
    for each in found:
        if len(rows) == limit:
            return {"rows": rows, "next": rows[-1][0] if rows else ""}
        rows.append(row(each))
    return {"rows": rows, "next": ""}


def _job_row(job: JobInfo) -> dict[str, Any]:
    details = Details(_VALUE)
    return {
        "id": str(job.id), "state": job.state, "line": line_of(job.payload, LINE), "priority": job.priority,
        "attempt": job.attempt, "most": job.max_attempts, "time": job.time, "worker": plain(job.worker),
        "put": job.enqueued_at, "key": plain(job.key or ""),
        "details": [
            ["payload", details.value(job.payload)],
            *[["error", in_lines(error, _VALUE)] for error in job.errors],
        ],
    }


def _status(name: str) -> RunStatus | None:
    if not name:
        return None
    try:
        return RunStatus(name)
    except ValueError:
        known = ", ".join(status.value for status in RunStatus)
        problem = f"status must be one of {known}, not {plain(name)}"
        raise InvalidInputError(problem, argument="status") from None


def _searched(found: Iterator[T]) -> Iterator[T | None]:
    """What is found, and None when a search has looked at enough for one page."""
    until = time.monotonic() + _SEARCH_S
    for number, each in enumerate(found):
        if number == _SCANNED or time.monotonic() > until:
            yield None
            return
        yield each


def _found(thing: T | None, what: str) -> T:
    if thing is None:
        raise RunNotFoundError(f"there is no {what}")
    return thing
