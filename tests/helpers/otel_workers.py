"""Programs that export, follow and are instrumented; some are killed in it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

import inmem
from inmem.adapters.otel import InmemSpanExporter, follow


class DyingExporter(SpanExporter):
    """Kills its process when the receiver has taken so many batches, before the follower knows it."""

    def __init__(self, url: str, batches: int) -> None:
        self._inner = OTLPSpanExporter(endpoint=f"{url}/v1/traces")
        self._left = batches

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def follow_until(words: Any, place: dict[str, Any], run: str, url: str, batches: int) -> int:
    """Follow a run to its end, or until so many batches were sent."""
    with inmem.open(**place) as db:
        return follow(db, run, DyingExporter(url, batches), timeout_s=60)


def provider_of(db: inmem.Database, service: str) -> TracerProvider:
    """What hands each span to the store when it ends."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(InmemSpanExporter(db)))
    return provider


def call_tools(words: Any, place: dict[str, Any]) -> str:
    """A client of the MCP SDK, which is instrumented, calls tools of a server in a process of its own."""
    from mcp.client import Client
    from mcp.client.stdio import StdioServerParameters

    with inmem.open(**place) as db:
        provider = provider_of(db, "client")
        trace.set_tracer_provider(provider)
        command = [str(Path(__file__)), *(f"{name}={value}" for name, value in place.items())]
        python_path = os.pathsep.join(sys.path)
        server = StdioServerParameters(
            command=sys.executable, args=command, env=os.environ | {"PYTHONPATH": python_path}
        )

        async def work() -> str:
            with trace.get_tracer("agent").start_as_current_span("plan a trip") as root:
                async with Client(server) as client:
                    await client.call_tool("add", {"a": 1, "b": 2})
                    await client.call_tool("fail", {"why": "no such city"})
                return f"{root.get_span_context().trace_id:032x}"

        found = asyncio.run(work())
        provider.shutdown()
        return found


def serve(place: dict[str, Any]) -> None:
    """The server with the tools, on standard input and output."""
    from mcp.server.mcpserver import MCPServer

    with inmem.open(**place) as db:
        provider = provider_of(db, "server")
        trace.set_tracer_provider(provider)
        server = MCPServer("tools")

        @server.tool()
        def add(a: int, b: int) -> int:
            return a + b

        @server.tool()
        def fail(why: str) -> str:
            raise ValueError(why)

        server.run("stdio")
        provider.shutdown()


def trace_and_die(words: Any, place: dict[str, Any], count: int) -> None:
    """Spans that end below one that does not: the program is killed before."""
    db = inmem.open(**place)
    tracer = provider_of(db, "dying").get_tracer("agent")
    with tracer.start_as_current_span("never ends"):
        with tracer.start_as_current_span("step"):
            for number in range(count):
                with tracer.start_as_current_span(f"call {number}"):
                    pass
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(dict(word.split("=", 1) for word in sys.argv[1:]))
