"""OpenTelemetry on inmem: runs exported as spans, spans recorded as traces. Extra `otel`."""

from inmem.adapters.otel.exporting import export as export
from inmem.adapters.otel.exporting import follow as follow
from inmem.adapters.otel.names import SCHEMA_URL as SCHEMA_URL
from inmem.adapters.otel.names import span_context as span_context
from inmem.adapters.otel.recorder import InmemSpanExporter as InmemSpanExporter
from inmem.adapters.otel.sending import SpansNotSentError as SpansNotSentError
from inmem.adapters.otel.waiting import settle as settle

__all__ = [
    "SCHEMA_URL", "InmemSpanExporter", "SpansNotSentError", "export", "follow", "settle", "span_context",
]
