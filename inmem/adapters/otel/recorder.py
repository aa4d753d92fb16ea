"""Spans of other libraries into a store.

Invariant: when `export` returns, its spans are stored: as traces, or as entries that wait for their parents.
See `waiting`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

import inmem
from inmem.adapters.otel.recorded import kept_of, resource_entry
from inmem.adapters.otel.waiting import AT_ONCE, record, settle

_logger = logging.getLogger(__name__)


class InmemSpanExporter(SpanExporter):
    """Records spans as traces: a `SpanExporter` for any processor of the SDK.

    Without `run` each trace of OpenTelemetry is a run of its own, `otel-` and
    the trace id: created with the tag `otel` by its first span, completed or
    failed by its root. `run` names one for all spans, or is a function that
    is given a span and names one for it; such a run is neither created nor
    ended here.

    A span is stored when `export` returns. `execute_tool` becomes a
    `ToolCall`, `retrieval` a `Query`, all else a `Custom` trace of the type
    of its operation, or `Span`. The database stays open. Cost: one
    transaction for 128 spans of a run.

    >>> import inmem
    >>> from inmem.adapters.otel import InmemSpanExporter
    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.sdk.trace.export import BatchSpanProcessor
    >>> with inmem.open() as db:
    ...     provider = TracerProvider()
    ...     provider.add_span_processor(BatchSpanProcessor(InmemSpanExporter(db)))
    ...     with provider.get_tracer("mine").start_as_current_span("plan"):
    ...         pass
    ...     provider.shutdown()
    ...     [run] = db.runs.query_runs(tags=["otel"])
    ...     run.status, db.traces.list(run.run_id)[0].body.data["name"]
    (<RunStatus.COMPLETED: 'completed'>, 'plan')

    Raises:
        InvalidInputError: `run` is neither a run's id nor a function.
    """

    def __init__(
        self, db: inmem.Database, *, run: str | Callable[[ReadableSpan], str] | None = None
    ) -> None:
        if isinstance(run, str):
            db.run(run)  # refused here if it can be none
        elif run is not None and not callable(run):
            raise inmem.InvalidInputError("run must be the id of a run or a function", argument="run")
        self._db = db
        self._run = run
        self._lock = threading.Lock()
        self._with_waiting: set[str] = set()  # runs in which spans of this program wait
        self._is_shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Record some spans. One that cannot be recorded is logged, and makes it a failure for all."""
        if self._is_shut:
            _logger.warning("spans came after the shutdown, and are not recorded")
            return SpanExportResult.FAILURE
        by_run: dict[str, list[ReadableSpan]] = {}
        for span in sorted(spans, key=lambda each: each.start_time or 0):  # parents come first
            by_run.setdefault(self._run_of(span), []).append(span)
        is_whole = True
        for run, those in by_run.items():
            for at in range(0, len(those), AT_ONCE):
                is_whole &= self._record(run, those[at : at + AT_ONCE])
        return SpanExportResult.SUCCESS if is_whole else SpanExportResult.FAILURE

    def _run_of(self, span: ReadableSpan) -> str:
        if isinstance(self._run, str):
            return self._run
        if self._run is not None:
            return self._run(span)
        context = span.get_span_context()
        assert context is not None, "a span of an SDK has ids"
        return f"otel-{context.trace_id:032x}"

    def _record(self, run: str, spans: list[ReadableSpan]) -> bool:
        """Whether all were recorded: together, or else those that can be."""
        try:
            entries = {id(span.resource): resource_entry(span.resource) for span in spans}
            new = [kept_of(span, entries[id(span.resource)][0]) for span in spans]
            resources = dict(entries.values())
            waits = record(self._db, run, new, resources, is_ours=self._run is None)
        except (inmem.LimitError, inmem.InvalidInputError):
            if len(spans) == 1:
                _logger.exception("the span %r cannot be recorded in %s", spans[0].name, run)
                return False
            return False not in [self._record(run, [span]) for span in spans]
        except inmem.InmemError:
            _logger.exception("%d spans were not recorded in %s", len(spans), run)
            return False
        if waits:
            with self._lock:
                self._with_waiting.add(run)
        return True

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept back: True."""
        return True

    def shutdown(self) -> None:
        """Record what still waits for a parent; its parent was not handed in."""
        self._is_shut = True
        with self._lock:
            runs, self._with_waiting = sorted(self._with_waiting), set()
        for run in runs:
            try:
                settle(self._db, run)
            except inmem.InmemError:
                _logger.exception("spans still wait in %s", run)
