"""Spans to an exporter, in batches that any receiver takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, Final

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

import inmem

BATCH_SPANS: Final = 512  # as the SDK's own processor
BATCH_CHARS: Final = 1_000_000  # of text in one batch, roughly: receivers take 4 MiB
_PAUSE_S: Final = (0.2, 30.0)  # before the next attempt: at first, and at most
_logger = logging.getLogger(__name__)


class SpansNotSentError(inmem.RetryableError):
    """The exporter has refused a batch, again and again. What was sent before it stays sent."""

    code = "spans_not_sent"
    default_hint: ClassVar[str] = "See what the exporter logs; start again when the receiver is there."


def check_exporter(exporter: object) -> None:
    """Refuse what is no exporter.

    Raises:
        InvalidInputError: it has no `export`.
    """
    if not callable(getattr(exporter, "export", None)):
        raise inmem.InvalidInputError("exporter must be a SpanExporter", argument="exporter")


def seconds_of(value: float | timedelta, argument: str) -> float:
    """A duration that may be 0.

    Raises:
        InvalidInputError: it is none, or less.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if type(seconds) not in (int, float) or not 0 <= seconds < float("inf"):
        raise inmem.InvalidInputError(f"{argument} must be seconds from 0 on", argument=argument)
    return float(seconds)


def batches_of(spans: Iterator[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    """The spans in batches."""
    batch: list[ReadableSpan] = []
    chars = 0
    for span in spans:
        more = _chars_of(span)
        if batch and (len(batch) == BATCH_SPANS or chars + more > BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append(span)
        chars += more
    if batch:
        yield batch


def _chars_of(span: ReadableSpan) -> int:
    every: list[Any] = [span.attributes, *(event.attributes for event in span.events)]
    return sum(
        len(value) for attributes in every if attributes for value in attributes.values()
        if isinstance(value, str | bytes)
    )


class Sending:
    """Hands batches to an exporter, and counts what it has taken."""

    def __init__(self, exporter: SpanExporter, retry_s: float) -> None:
        self._exporter = exporter
        self._retry_s = retry_s
        self.count = 0

    def send(self, spans: Sequence[ReadableSpan]) -> None:
        """Export a batch; again with growing pauses while the exporter fails, for `retry_s` seconds.

        Raises:
            SpansNotSentError: it still failed then.
        """
        deadline = time.monotonic() + self._retry_s
        pause_s = _PAUSE_S[0]
        while True:
            with _without_instrumentation():
                result = self._exporter.export(tuple(spans))
            if result is SpanExportResult.SUCCESS:
                self.count += len(spans)
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise SpansNotSentError(f"{len(spans)} spans were refused by {type(self._exporter).__name__}")
            _logger.warning("the exporter has refused %d spans; the next attempt follows", len(spans))
            time.sleep(min(pause_s, left_s))
            pause_s = min(_PAUSE_S[1], 2 * pause_s)


@contextmanager
def _without_instrumentation() -> Iterator[None]:
    """What the exporter does makes no spans, as in the SDK's processors."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        detach(token)
