"""A run to an exporter: all of it once, or as its commits come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import groupby, islice
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter

import inmem
from inmem.adapters.otel import names
from inmem.adapters.otel.recorded import Resources, kept_in, span_of
from inmem.adapters.otel.sending import BATCH_SPANS, Sending, batches_of, check_exporter, seconds_of
from inmem.adapters.otel.spans import ENDED, EVENTS_PER_SPAN, RunSpans, resource_of
from inmem.adapters.otel.waiting import waiting_in

CURSOR_PREFIX: Final = "otel/cursor/"
RETRY_S: Final = 30.0
_CURSOR_CHARS: Final = 200
_SHORT_LOOK_S: Final = 0.002  # a look that takes no longer is made as often as something changes
_REST: Final = 4  # times as long as a longer look took, before the next one
_REST_MAX_S: Final = 1.0


class StoredSpans:
    """Reads the spans of one run."""

    def __init__(
        self, db: inmem.Database, run: str, *, content: bool, resource: Resource | None
    ) -> None:
        db.run(run)  # refuses what is no run
        self._db = db
        self._run = run
        self._content = content
        own = resource_of(resource)
        self._resources = Resources(db.run(run).kv, own)
        self._spans = RunSpans(db.namespace, run, content=content, resource=own)

    def trace(self, trace: inmem.Trace) -> ReadableSpan:
        """The span of a trace: that which it was recorded from, if it was."""
        kept = kept_in(trace)
        return self._spans.of_trace(trace) if kept is None else self._restored(kept)

    def traces(self) -> Iterator[ReadableSpan]:
        """Those of all traces, in order of time, and of recorded spans that wait for their parents."""
        yield from map(self.trace, self._db.traces.iter(self._run))
        yield from map(self._restored, waiting_in(self._db, self._run))

    def events(self, first: int, *, whole: bool) -> Iterator[ReadableSpan]:
        """Those of events beyond the ones in the run's span, from a sequence on; `whole` ones only."""
        log = self._db.events.iter(self._run, start=first)
        while some := list(islice(log, EVENTS_PER_SPAN)):
            if len(some) == EVENTS_PER_SPAN or not whole:
                yield self._spans.of_events(some)

    def run(self) -> Iterator[ReadableSpan]:
        """That of the run; none if it was made for spans of others, which have a root of their own."""
        db, run = self._db, self._run
        record = db.runs.get_run(run)
        events = db.events.read_range(run, 0, EVENTS_PER_SPAN)
        if record is not None and names.TRACE_KEY in record.metadata and not events:
            return
        head = db.events.head(run)
        traces = db.traces.list(run, limit=1) + db.traces.list(run, limit=1, reverse=True)
        times = [each.timestamp for each in traces]
        times += [each.timestamp for each in (*events[:1], head) if each is not None]
        if record is not None or times:
            yield self._spans.of_run(record, min(times, default=0), max(times, default=0), events)

    def _restored(self, kept: dict[str, Any]) -> ReadableSpan:
        return span_of(kept, self._resources.get(kept["resource"]), content=self._content)


def export(
    db: inmem.Database, run: str, exporter: SpanExporter, *, content: bool = False,
    resource: Resource | None = None, retry_s: float | timedelta = RETRY_S,
) -> int:
    """Export a run with its traces and events as spans; how many there were.

    Prompts, arguments, results and payloads are left out unless `content` is
    asked for. A batch that the exporter refuses is tried again for `retry_s`
    seconds. Ids follow from namespace, run and trace: what is exported twice
    has the same ids. The run should have ended; the span of one that has not
    ends with what is there so far. Cost: about 20 µs a span and what the
    exporter takes, in batches of up to 512, in bounded memory.

    >>> import inmem
    >>> from inmem.adapters.otel import export
    >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    >>> memory = InMemorySpanExporter()
    >>> with inmem.open() as db:
    ...     run = db.runs.create_run(run_id="run-1")
    ...     call = db.traces.record("run-1", inmem.ToolCall("search", {"q": "inmem"}, 3, duration_ms=12))
    ...     run = db.runs.complete_run("run-1")
    ...     export(db, "run-1", memory)
    2
    >>> [span.name for span in memory.get_finished_spans()]
    ['execute_tool search', 'invoke_agent']

    Raises:
        RunNotFoundError: the run was never created, and holds nothing.
        SpansNotSentError: the exporter has refused a batch for `retry_s` seconds.
        RunDeletedError: the run was deleted meanwhile.
        InvalidInputError: an argument is wrong.
    """
    check_exporter(exporter)
    stored = StoredSpans(db, run, content=content, resource=resource)
    sending = Sending(exporter, seconds_of(retry_s, "retry_s"))

    def spans() -> Iterator[ReadableSpan]:
        yield from stored.traces()
        yield from stored.events(EVENTS_PER_SPAN, whole=False)
        yield from stored.run()

    for batch in batches_of(spans()):
        sending.send(batch)
    if not sending.count and db.runs.get_run(run) is None:
        raise inmem.RunNotFoundError(f"there is no run {run} in {db.namespace}", run_id=run)
    return sending.count


@dataclass(slots=True)
class SentSoFar:
    """How far a follower has come: what is stored under its cursor."""

    of: str  # the id of the run's span: an entry that was copied into another run says nothing
    version: int = 0  # all traces of commits up to it were sent
    traces: int = 0  # how many these are
    events: int = EVENTS_PER_SPAN  # the first event that was not sent, but for those of the run's span
    ended: bool = False  # the run's span was sent


@dataclass(frozen=True, slots=True)
class SeenOfRun:
    """What one look at a run has found."""

    newer: list[tuple[int, str]]  # version and id of traces
    length: int  # of the log
    ended: bool


class RunFollower:
    """Sends what commits bring, and stores where it is."""

    def __init__(self, db: inmem.Database, run: str, stored: StoredSpans, sending: Sending, key: str) -> None:
        self._db = db
        self._run = run
        self._stored = stored
        self._sending = sending
        self._key = key
        self._of = f"{names.span_context(db, run).span_id:016x}"
        self._rest_s = 0.0
        self._entry: int | None = None  # the version of the stored cursor
        self._sent = self._begin()

    def _begin(self) -> SentSoFar:
        """Where the last follower stopped; the beginning if this is not what it has seen."""
        found = self._db.kv.get_versioned(self._run, self._key)
        if found is None:
            return SentSoFar(self._of)
        self._entry = found.version
        if isinstance(found.value, dict) and found.value.keys() == asdict(SentSoFar("")).keys():
            sent = SentSoFar(**found.value)
            with self._db.snapshot(self._run) as view:  # versions of another store mean nothing here
                there = view.traces.count() - len(view.traces.recorded_after(sent.version))
            if sent.of == self._of and there == sent.traces:
                return sent
        return SentSoFar(self._of)

    def follow(self, timeout_s: float | None) -> None:
        """Until the run has ended and all of it was sent."""
        while True:
            seen = self._db.wait(self._run, self._look, timeout_s=timeout_s)
            if seen.newer:
                self._send_traces(seen.newer)
            if not self._sent.ended and seen.length - self._sent.events >= EVENTS_PER_SPAN:
                self._send_events()
            if seen.ended:
                if not self._sent.ended:
                    self._send_run()
                return
            time.sleep(self._rest_s)

    def _look(self, view: inmem.Snapshot) -> SeenOfRun | None:
        began = time.monotonic()
        record = view.runs.get_run()
        ended = record is not None and record.status in ENDED
        newer, length = view.traces.recorded_after(self._sent.version), view.events.count()
        took_s = time.monotonic() - began
        self._rest_s = min(_REST_MAX_S, _REST * took_s) if took_s > _SHORT_LOOK_S else 0.0
        has_events = not self._sent.ended and length - self._sent.events >= EVENTS_PER_SPAN
        return SeenOfRun(newer, length, ended) if newer or has_events or ended else None

    def _send_traces(self, newer: list[tuple[int, str]]) -> None:
        """Those of whole commits at a time: the cursor is a version."""
        ids: list[str] = []
        last = 0
        for version, commit in groupby(newer, key=lambda each: each[0]):
            more = [trace_id for _, trace_id in commit]
            if ids and len(ids) + len(more) > BATCH_SPANS:
                self._send_commits(ids, last)
                ids = []
            ids += more
            last = version
        self._send_commits(ids, last)

    def _send_commits(self, ids: list[str], version: int) -> None:
        self._send(self._spans_of(ids))
        self._sent.version = version
        self._sent.traces += len(ids)
        self._keep()

    def _spans_of(self, ids: list[str]) -> Iterator[ReadableSpan]:
        for trace_id in ids:
            trace = self._db.traces.get(self._run, trace_id)
            if trace is not None:  # it is not there any more if the run was deleted
                yield self._stored.trace(trace)

    def _send_events(self) -> None:
        for span in self._stored.events(self._sent.events, whole=True):
            self._send(iter([span]))
            self._sent.events += EVENTS_PER_SPAN
            self._keep()

    def _send_run(self) -> None:
        self._send(self._stored.events(self._sent.events, whole=False))
        self._send(self._stored.run())
        self._sent.ended = True
        self._keep()

    def _send(self, spans: Iterator[ReadableSpan]) -> None:
        for batch in batches_of(spans):
            self._sending.send(batch)

    def _keep(self) -> None:
        """Store the cursor.

        Raises:
            InvariantError: another follower has done so meanwhile.
        """

        def keep(txn: inmem.Transaction) -> None:
            found = txn.kv.get_versioned(self._key)
            if (None if found is None else found.version) != self._entry:
                cursor = self._key.removeprefix(CURSOR_PREFIX)
                raise inmem.InvariantError(
                    f"another follower moves the cursor {cursor!r} of {self._run}",
                    hint="Give each follower a cursor of its own, or run one.",
                )
            txn.kv.put(self._key, asdict(self._sent))
            attempts.append(txn)

        attempts: list[inmem.Transaction] = []
        self._db.transact(self._run, keep)
        self._entry = attempts[-1].version


def follow(
    db: inmem.Database, run: str, exporter: SpanExporter, *, cursor: str = "default", content: bool = False,
    resource: Resource | None = None, retry_s: float | timedelta = RETRY_S,
    timeout_s: float | None = None,
) -> int:
    """Export a run's traces as their commits come, until it has ended; how many spans this call has sent.

    It sleeps while nothing comes. Where it is is kept in the run, under the
    name `cursor`: a follower that is started again goes on there. After each
    batch that the exporter has taken the cursor moves on. One that is killed
    between the two sends that batch twice, with the same ids, and nothing
    else: up to 512 traces, or those of one commit if it has more; one span of
    128 events; or, when the run has ended, the run's span with the events
    before it. Events go with the run's span, in the end; those beyond the
    first 128 in spans of their own, when there are 128 more. What is appended
    to the log after the end is not sent; traces that are recorded after it
    are sent by the next call.

    Cost: those of `export`, a commit for each batch, and a look at all traces
    of the run for each wake, 0.5 µs each; with many of them looks are rarer.

    >>> import inmem
    >>> from inmem.adapters.otel import follow
    >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    >>> memory = InMemorySpanExporter()
    >>> with inmem.open() as db:
    ...     run = db.runs.create_run(run_id="run-1")
    ...     thought = db.traces.record("run-1", inmem.Thought("look it up"))
    ...     run = db.runs.complete_run("run-1")
    ...     follow(db, "run-1", memory), follow(db, "run-1", memory)
    (2, 0)

    Raises:
        WaitTimeoutError: nothing has come for `timeout_s` seconds.
        SpansNotSentError: the exporter has refused a batch for `retry_s` seconds.
        RunDeletedError: the run was deleted.
        InvariantError: another follower moves the same cursor.
        InvalidInputError: an argument is wrong.
    """
    check_exporter(exporter)
    if not isinstance(cursor, str) or not 0 < len(cursor.encode("utf-8", "replace")) <= _CURSOR_CHARS:
        raise inmem.InvalidInputError(f"cursor must be a str of 1-{_CURSOR_CHARS} bytes", argument="cursor")
    stored = StoredSpans(db, run, content=content, resource=resource)
    sending = Sending(exporter, seconds_of(retry_s, "retry_s"))
    RunFollower(db, run, stored, sending, CURSOR_PREFIX + cursor).follow(timeout_s)
    return sending.count
