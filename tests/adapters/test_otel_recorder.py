"""Spans of others in a store: below their parents, once, and the same when they are exported again."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from homes import Fresh
from support import Workers, in_threads

import inmem

pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")

import otel_workers
from opentelemetry import trace as api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from inmem.adapters.otel import InmemSpanExporter, export, follow, settle

FAR = SpanContext(7, 9, True, TraceFlags(1), TraceState([("vendor", "x")]))


@pytest.fixture
def place(fresh: Fresh) -> dict[str, Any]:
    return {name: str(value) for name, value in fresh().items()}


@pytest.fixture
def db(place: dict[str, Any]) -> Iterator[inmem.Database]:
    with inmem.open(**place) as database:
        yield database


class Program:
    """A tracer whose spans go to memory too."""

    def __init__(self, *processors: Any, **more: Any) -> None:
        self.memory = InMemorySpanExporter()
        resource = Resource({"service.name": "shop", "cpus": (1, 2)}, "https://schema/1")
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False, **more)
        for processor in (*processors, SimpleSpanProcessor(self.memory)):
            self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("agent", "1.2", schema_url="https://schema/2")

    def spans(self) -> list[ReadableSpan]:
        return list(self.memory.get_finished_spans())


def work(tracer: api.Tracer) -> None:
    """Spans with all that a span can have."""
    about = {"a": True, "b": [1.5], "c": "\u00fc", "d": 1 << 62}
    with tracer.start_as_current_span("run it", attributes=about):
        tool = {
            "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search",
            "gen_ai.tool.call.arguments": '{"q": 1}', "gen_ai.tool.call.result": "found",
        }
        name = "execute_tool search"
        with tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=tool) as span:
            span.add_event("tried", {"n": 1, "words": ("x", "y")}, timestamp=1_234_567_891)
            span.set_status(Status(StatusCode.OK))
        links = [Link(FAR, {"why": "before"})]
        with tracer.start_as_current_span("chat", links=links, attributes={"gen_ai.operation.name": "chat"}):
            pass
        found = {"gen_ai.operation.name": "retrieval", "inmem.query.results_count": 3,
                 "gen_ai.data_source.id": "faq", "gen_ai.retrieval.query.text": "who?"}  # fmt: skip
        tracer.start_span("retrieval", attributes=found, start_time=5_000_000_001).end(6_000_000_002)
        try:
            with tracer.start_as_current_span("parse", kind=SpanKind.PRODUCER):
                raise ValueError("no number")
        except ValueError:
            pass


def exact(span: ReadableSpan) -> dict[str, Any]:
    """All that a span is."""
    assert span.context is not None
    scope = span.instrumentation_scope
    return {
        "name": span.name, "context": span.context, "parent": span.parent, "kind": span.kind,
        "start": span.start_time, "end": span.end_time, "attributes": dict(span.attributes or {}),
        "events": [(e.name, e.timestamp, dict(e.attributes or {})) for e in span.events],
        "links": [(one.context, dict(one.attributes or {})) for one in span.links],
        "status": (span.status.status_code, span.status.description), "scope": scope,
        "resource": (dict(span.resource.attributes), span.resource.schema_url),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
    }


def exact_all(spans: Sequence[ReadableSpan]) -> list[dict[str, Any]]:
    return sorted(map(exact, spans), key=lambda each: int(each["context"].span_id))


def exported(db: inmem.Database, run: str, **more: Any) -> list[ReadableSpan]:
    memory = InMemorySpanExporter()
    export(db, run, memory, **more)
    return list(memory.get_finished_spans())


def only_run(db: inmem.Database) -> inmem.RunMetadata:
    [run] = db.runs.query_runs(tags=["otel"])
    return run


def drawn(db: inmem.Database, run: str) -> list[tuple[int, str]]:
    """The trees of a run: depth and name of each span."""
    names = []
    for root in db.traces.roots(run):
        for depth, trace in db.traces.get_tree(run, root.id).walk():
            names.append((depth, trace.metadata["otel.span"]["name"]))
    return names


@pytest.mark.parametrize("kind", [SimpleSpanProcessor, BatchSpanProcessor])
def test_what_was_recorded_is_exported_again(db: inmem.Database, kind: Any) -> None:
    limits = SpanLimits(max_span_attributes=4, max_events=4)
    program = Program(kind(InmemSpanExporter(db)), span_limits=limits)
    work(program.tracer)
    program.provider.shutdown()
    run = only_run(db)
    assert exact_all(exported(db, run.run_id, content=True)) == exact_all(program.spans())
    memory = InMemorySpanExporter()
    assert follow(db, run.run_id, memory, content=True) == 5
    assert exact_all(memory.get_finished_spans()) == exact_all(program.spans())
    hidden = [span.attributes or {} for span in exported(db, run.run_id)]
    assert not any(name.startswith(("gen_ai.tool.call", "gen_ai.retrieval")) for it in hidden for name in it)
    assert {"gen_ai.tool.name": "search", "gen_ai.operation.name": "execute_tool"} in hidden


def test_what_is_stored_can_be_read(db: inmem.Database) -> None:
    program = Program(SimpleSpanProcessor(InmemSpanExporter(db)))
    work(program.tracer)
    run = only_run(db)
    assert run.status is inmem.RunStatus.COMPLETED and run.metadata["name"] == "run it"
    traces = {trace.metadata["otel.span"]["name"]: trace for trace in db.traces.iter(run.run_id)}
    by_name = {span.name: span for span in program.spans()}
    call, span = traces["execute_tool search"], by_name["execute_tool search"]
    took_ms = (span.end_time - span.start_time) / 1e6  # type: ignore[operator]
    assert call.body == inmem.ToolCall("search", '{"q": 1}', "found", took_ms)
    assert call.timestamp == span.end_time // 1000  # type: ignore[operator]
    assert traces["retrieval"].body == inmem.Query("faq", "who?", 3)
    assert traces["retrieval"].metadata["duration_ms"] == (1_000_000_001 / 1e6)
    assert traces["retrieval"].timestamp == 5_000_000
    assert traces["chat"].type_name == "chat" and traces["run it"].type_name == "Span"
    assert traces["run it"].body.data == {  # type: ignore[union-attr]
        "name": "run it", "attributes": {"a": True, "b": [1.5], "c": "\u00fc", "d": 1 << 62}
    }
    assert [trace.id for trace in db.traces.query_by_tag(run.run_id, "error")] == [traces["parse"].id]
    assert [depth for depth, _ in drawn(db, run.run_id)] == [0, 1, 1, 1, 1]
    kept = db.kv.list(run.run_id)
    assert len(kept) == 1 and kept[0].startswith("otel/resource/")


def test_a_root_that_failed(db: inmem.Database) -> None:
    program = Program(SimpleSpanProcessor(InmemSpanExporter(db)))
    with pytest.raises(ValueError), program.tracer.start_as_current_span("root"):
        raise ValueError("no way")
    run = only_run(db)
    assert run.status is inmem.RunStatus.FAILED and run.error == "ValueError: no way"
    long = program.tracer.start_span("x" * 100_000)
    long.set_status(Status(StatusCode.ERROR, "y" * 100_000))
    long.end()
    [failed] = [run for run in db.runs.query_runs(tags=["otel"]) if run.error != "ValueError: no way"]
    assert failed.error == "y" * 1000 and failed.metadata["name"] == "x" * 1000


def test_spans_wait_for_their_parents(db: inmem.Database) -> None:
    exporter = InmemSpanExporter(db)
    program = Program(SimpleSpanProcessor(exporter))
    with program.tracer.start_as_current_span("root") as root:
        run = f"otel-{root.get_span_context().trace_id:032x}"
        for number in range(140):  # more than a commit takes
            with program.tracer.start_as_current_span(f"step {number}"):
                program.tracer.start_span("leaf").end()
        assert db.traces.count(run) == 0 and len(db.kv.list(run, "otel/waiting/")) == 280
        assert exact_all(exported(db, run)) == exact_all(program.spans()), "they can be exported already"
        record = db.runs.get_run(run)
        assert record is not None and record.status is inmem.RunStatus.ACTIVE
        late = program.tracer.start_span("late")
    late.end()
    assert db.kv.list(run, "otel/waiting/") == []
    names = drawn(db, run)
    assert names[:3] == [(0, "root"), (1, "step 0"), (2, "leaf")] and len(names) == 282
    assert [depth for depth, _ in names].count(1) == 141
    assert only_run(db).status is inmem.RunStatus.COMPLETED
    assert exact_all(exported(db, run)) == exact_all(program.spans())


def test_what_is_handed_in_again_is_recorded_once(db: inmem.Database) -> None:
    program = Program()
    work(program.tracer)
    spans, exporter = program.spans(), InmemSpanExporter(db)
    child, root = spans[0], spans[-1]
    for some in ([child], [child], [root, child], spans, spans[::-1], [root] * 3):
        assert exporter.export(some) is SpanExportResult.SUCCESS
    run = only_run(db)
    assert exact_all(exported(db, run.run_id, content=True)) == exact_all(spans)
    assert db.kv.list(run.run_id, "otel/waiting/") == []
    exporter.shutdown()
    assert exporter.export(spans) is SpanExportResult.FAILURE


def test_several_programs_hand_in_one_trace(db: inmem.Database) -> None:
    program = Program()
    with program.tracer.start_as_current_span("root") as root:
        run = f"otel-{root.get_span_context().trace_id:032x}"
        for _ in range(20):
            with program.tracer.start_as_current_span("step"):
                for _ in range(4):
                    program.tracer.start_span("leaf").end()
    spans = program.spans()

    def hand_in(index: int) -> None:
        exporter = InmemSpanExporter(db)
        for span in spans[index::4]:
            assert exporter.export([span]) is SpanExportResult.SUCCESS

    in_threads(4, hand_in)
    names = drawn(db, run)
    assert [names.count(one) for one in ((0, "root"), (1, "step"), (2, "leaf"))] == [1, 20, 80]
    assert db.kv.list(run, "otel/waiting/") == []


def test_parents_that_never_come(db: inmem.Database) -> None:
    exporter = InmemSpanExporter(db)
    program = Program(SimpleSpanProcessor(exporter))
    with program.tracer.start_as_current_span("never handed in") as root:
        run = f"otel-{root.get_span_context().trace_id:032x}"
        with program.tracer.start_as_current_span("step"):
            program.tracer.start_span("leaf").end()
        assert db.traces.count(run) == 0
        exporter.shutdown()
        assert drawn(db, run) == [(0, "step"), (1, "leaf")] and settle(db, run) == 0
    far = api.set_span_in_context(api.NonRecordingSpan(FAR))
    with Program(SimpleSpanProcessor(InmemSpanExporter(db))).tracer.start_as_current_span("server", far):
        pass
    run = f"otel-{7:032x}"
    assert drawn(db, run) == [(0, "server")], "the parent is of another program: nobody waits for it"
    [span] = exported(db, run)
    assert span.parent is not None and span.parent.span_id == 9 and span.parent.is_remote


def test_a_program_that_is_killed(db: inmem.Database, place: dict[str, Any], workers: Workers) -> None:
    worker = workers.start(otel_workers.trace_and_die, place, 200)
    assert worker.process.wait(60) == -signal.SIGKILL
    run = only_run(db).run_id
    assert len(exported(db, run)) == 201
    assert settle(db, run) == 201 and db.kv.list(run, "otel/waiting/") == []
    names = drawn(db, run)
    assert names[0] == (0, "step") and names.count((1, "call 7")) == 1 and len(names) == 201


def test_a_run_of_the_callers(db: inmem.Database) -> None:
    db.runs.create_run(run_id="mine")
    program = Program(SimpleSpanProcessor(InmemSpanExporter(db, run="mine")))
    work(program.tracer)
    record = db.runs.get_run("mine")
    assert record is not None and record.status is inmem.RunStatus.ACTIVE
    assert len(drawn(db, "mine")) == 5 and db.runs.query_runs(tags=["otel"]) == []
    spans = exported(db, "mine", content=True)
    assert exact_all(spans[:-1]) == exact_all(program.spans()) and spans[-1].name.startswith("invoke_agent")
    named = Program(SimpleSpanProcessor(InmemSpanExporter(db, run=lambda span: f"by-{span.name}")))
    named.tracer.start_span("name").end()
    assert db.traces.count("by-name") == 1 and db.runs.get_run("by-name") is None
    for bad in ("no run", 5, [], ""):
        with pytest.raises(inmem.InvalidInputError):
            InmemSpanExporter(db, run=bad)  # type: ignore[arg-type]


def test_what_cannot_be_recorded(db: inmem.Database, caplog: pytest.LogCaptureFixture) -> None:
    program = Program()
    odd = {"lone \ud800": "\ud800", "huge": 1 << 70, "long": "x" * 2_000_000, "bytes": b"\0\xff"}
    tracer = program.tracer
    good = tracer.start_span("good")
    good.end()
    big = tracer.start_span("big", attributes={f"a{n}": "y" * 1_000_000 for n in range(20)})
    big.end()
    strange = tracer.start_span("strange \ud800", attributes=odd)
    strange.end()
    exporter = InmemSpanExporter(db, run="all")
    assert exporter.export(program.spans()) is SpanExportResult.FAILURE
    assert "the span 'big' cannot be recorded" in caplog.text
    found = {trace.body.data["name"]: trace for trace in db.traces.iter("all")}  # type: ignore[union-attr]
    assert set(found) == {"good", "strange \\ud800"}
    kept = found["strange \\ud800"].body.data["attributes"]  # type: ignore[union-attr]
    assert kept["lone \\ud800"] == "\\ud800" and kept["huge"] == str(1 << 70)
    assert len(kept["long"]) == 1_000_000
    db.runs.create_run(run_id="gone")
    db.runs.delete_run("gone")
    assert InmemSpanExporter(db, run="gone").export(program.spans()[:1]) is SpanExportResult.FAILURE
    assert "were not recorded in gone" in caplog.text
    caplog.clear()  # the tracebacks hold what was open


def test_a_real_instrumented_program(db: inmem.Database, place: dict[str, Any], workers: Workers) -> None:
    """Client and server of the MCP SDK, which makes spans itself, in two processes: one trace."""
    pytest.importorskip("mcp.server.mcpserver", reason="mcp is not installed")
    trace_id = workers.start(otel_workers.call_tools, place).result()
    run = f"otel-{trace_id}"
    traces = list(db.traces.iter(run))
    spans = {span.context.span_id: span for span in exported(db, run, content=True)}  # type: ignore[union-attr]
    [root] = [span for span in spans.values() if span.parent is None]
    assert root.name == "plan a trip"
    assert all(span.parent.span_id in spans for span in spans.values() if span.parent is not None)
    calls = [trace for trace in traces if isinstance(trace.body, inmem.ToolCall)]
    assert [call.body.tool_name for call in calls] == ["add", "fail"]  # type: ignore[union-attr]
    assert [call.tags for call in calls] == [(), ("error",)]
    services = {span.name: span.resource.attributes["service.name"] for span in spans.values()}
    assert services["tools/call add"] and set(services.values()) == {"client", "server"}
    record = db.runs.get_run(run)
    assert record is not None and record.status is inmem.RunStatus.COMPLETED
    assert db.kv.list(run, "otel/waiting/") == []
