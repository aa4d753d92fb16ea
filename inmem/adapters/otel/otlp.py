"""The exporter that the command uses: OTLP over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter

import inmem

_PATH: Final = "/v1/traces"


@contextmanager
def otlp_exporter(
    endpoint: str | None = None, headers: Mapping[str, str] | None = None
) -> Iterator[SpanExporter]:
    """An exporter to the OTLP/HTTP receiver at a URL; without a path in it, to its `/v1/traces`.

    Without a URL the OTEL_EXPORTER_OTLP_* variables say where, or it is `http://localhost:4318`.

    Raises:
        InvalidInputError: it is no URL of http or https.
    """
    if endpoint is not None:
        try:
            parts = urlsplit(endpoint)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is none
            is_url = False
        if not is_url:
            raise inmem.InvalidInputError(
                f"endpoint must be a URL of http or https, not {endpoint!r}", argument="endpoint",
                hint="For a receiver on this machine: http://localhost:4318",
            )
        if parts.path in ("", "/"):
            endpoint = urlunsplit(parts._replace(path=_PATH))
    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint, headers=dict(headers) if headers else None)
    try:
        yield exporter
    finally:
        exporter.shutdown()
