"""A receiver of OTLP over HTTP, which decodes what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True)
class Received:
    """A span as it came."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    status: tuple[str, str]
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    links: list[tuple[str, str, dict[str, Any]]]
    scope: tuple[str, str, str]
    resource: dict[str, Any]


@dataclass
class Receiver:
    """What came, in requests; `refusing` is how many requests are refused first."""

    url: str = ""
    requests: list[list[Received]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    refusing: int = 0

    @property
    def spans(self) -> list[Received]:
        """All spans."""
        return [span for request in self.requests for span in request]

    def ids(self) -> list[str]:
        """The ids of all spans, in the order in which they came."""
        return [span.span_id for span in self.spans]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Receive on a port of this machine."""
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # and a connection for each request: the end waits for nobody

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, answer = 200, ExportTraceServiceResponse().SerializeToString()
            if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
                status = 404
            elif found.refusing:
                found.refusing -= 1
                status = 400  # the SDK's exporter does not try again
            else:
                found.headers.append({name.lower(): value for name, value in self.headers.items()})
                found.requests.append(list(decoded(body)))
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Quietly."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def decoded(body: bytes) -> Iterator[Received]:
    """The spans of a request."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            scope = (of_scope.scope.name, of_scope.scope.version, of_scope.schema_url)
            for span in of_scope.spans:
                yield Received(
                    span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name,
                    Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"), span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    (
                        Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                        span.status.message,
                    ),
                    attributes_of(span.attributes),
                    [(one.name, one.time_unix_nano, attributes_of(one.attributes)) for one in span.events],
                    [(one.trace_id.hex(), one.span_id.hex(), attributes_of(one.attributes))
                     for one in span.links],
                    scope, attributes_of(of_resource.resource.attributes),
                )  # fmt: skip


def attributes_of(pairs: Any) -> dict[str, Any]:
    """Attributes as a dict."""
    return {pair.key: value_of(pair.value) for pair in pairs}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)
