"""Runs as spans: what each span is, in memory and as OTLP over HTTP."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from homes import Fresh

import inmem

pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from otlp_receiver import Received, Receiver, receiver

from inmem.adapters.otel import SCHEMA_URL, SpansNotSentError, export, span_context
from inmem.adapters.otel.otlp import otlp_exporter
from inmem.exchange.recorded.formats import find_files, parse_file
from inmem.exchange.recorded.storing import store_step
from inmem.exchange.recorded.trajectory import Trajectory

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SECRET = "what nobody asked for"


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


@pytest.fixture
def otlp() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def sender(otlp: Receiver) -> Iterator[SpanExporter]:
    """The SDK's exporter to the receiver."""
    with otlp_exporter(otlp.url) as exporter:
        yield exporter


def exported(db: inmem.Database, run: str, **more: Any) -> list[ReadableSpan]:
    memory = InMemorySpanExporter()
    count = export(db, run, memory, **more)
    spans = list(memory.get_finished_spans())
    assert count == len(spans)
    return spans


def ids_of(db: inmem.Database, run: str, trace: str = "") -> tuple[str, str]:
    """Trace and span id as the documentation has them."""
    name = f"{db.namespace}\0{run}".encode()
    whole = hashlib.sha256(name).digest()
    own = hashlib.sha256(name + b"\0" + trace.encode()).digest()[:8] if trace else whole[16:24]
    return whole[:16].hex(), own.hex()


def by_name(spans: Sequence[Any]) -> dict[str, Any]:
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


def fill(db: inmem.Database, run: str) -> None:
    """A run with each body, in which all words are secret."""
    db.runs.create_run(run_id="above")
    db.runs.create_run(
        run_id=run, parent_run="above", tags=["nightly"],
        metadata={"gen_ai.provider.name": "openai", "gen_ai.system_instructions": SECRET, "own": SECRET},
    )
    log, traces = db.run(run).events, db.run(run).traces
    log.append("started", {"goal": SECRET})
    traces.record(inmem.Thought(SECRET, 0.5), id="thought", tags=["plan", "first"], timestamp=1_000_000)
    call = inmem.ToolCall("search", {"q": SECRET}, [SECRET, 1, b"\0"], 250.5)
    usage = {"gen_ai.usage.input_tokens": 7, "gen_ai.tool.call.id": "call-1", "gen_ai.input.messages": SECRET}
    traces.record_child("thought", call, id="call", timestamp=5_000_000, metadata=usage)
    error = inmem.ErrorTrace("Timeout", "too slow", True)
    traces.record_child("call", error, id="error", timestamp=5_000_001)
    traces.record(inmem.Query("vector", {"text": SECRET}, 3), id="query", timestamp=6_000_000)
    traces.record(inmem.Decision(SECRET, [SECRET], SECRET, SECRET), id="decision", timestamp=7_000_000)
    traces.record(inmem.Custom("plan", {"steps": [SECRET]}), id="custom", timestamp=8_000_000)
    log.append("ended")


def check_filled(db: inmem.Database, run: str, spans: Sequence[Received]) -> None:
    """All that is known of the spans of `fill`, whichever way they came."""
    found = by_name(spans)
    names = {
        "thought": "Thought", "call": "execute_tool search", "error": "Error", "query": "retrieval",
        "decision": "Decision", "custom": "plan",
    }
    top = "invoke_agent" if db.namespace.agent == "default" else f"invoke_agent {db.namespace.agent}"
    assert set(found) == {*names.values(), top}
    run_ids = ids_of(db, run)
    parents = {"call": "thought", "error": "call"}
    times = {  # nanoseconds; a call ends at its time
        "thought": (10**9, 10**9), "call": (5 * 10**9 - 250_500_000, 5 * 10**9), "query": (6 * 10**9,) * 2,
        "error": (5_000_001_000,) * 2, "decision": (7 * 10**9,) * 2, "custom": (8 * 10**9,) * 2,
    }
    for trace, name in names.items():
        span = found[name]
        assert (span.trace_id, span.span_id) == ids_of(db, run, trace)
        assert span.parent_id == (ids_of(db, run, parents[trace])[1] if trace in parents else run_ids[1])
        assert (span.start, span.end) == times[trace]
        assert span.kind == ("CLIENT" if trace == "query" else "INTERNAL")
        assert span.status == (("ERROR", "too slow") if trace == "error" else ("UNSET", ""))
        assert span.attributes["inmem.trace.id"] == trace and span.attributes["inmem.run.id"] == run
        assert span.attributes["gen_ai.conversation.id"] == run
        assert span.events == span.links == []
    record, head = db.runs.get_run(run), db.events.read(run, 0)
    assert record is not None and head is not None
    whole = found[top]
    assert (whole.trace_id, whole.span_id, whole.parent_id, whole.kind) == (*run_ids, "", "INTERNAL")
    assert (whole.start, whole.end) == (10**9, record.completed_at * 1000)  # type: ignore[operator]
    assert whole.status == ("ERROR", "it broke")
    assert [(name, at) for name, at, _ in whole.events] == [
        (event.event_type, event.timestamp * 1000) for event in db.events.iter(run)
    ]
    [(trace_id, span_id, about)] = whole.links
    assert (trace_id, span_id) == ids_of(db, "above") and about["inmem.run.id"] == "above"
    assert {span.scope for span in spans} == {("inmem", inmem.__version__, SCHEMA_URL)}


def test_each_span_over_http(
    db: inmem.Database, otlp: Receiver, sender: SpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    fill(db, "run-1")
    db.runs.fail_run("run-1", "it broke")
    assert export(db, "run-1", sender) == 7
    check_filled(db, "run-1", otlp.spans)
    assert SECRET not in repr(otlp.requests)
    spans = by_name(otlp.spans)
    assert spans["retrieval"].resource["service.name"] == "inmem"
    assert spans["retrieval"].resource["deployment.environment.name"] == "test"
    about = {name: span.attributes for name, span in spans.items()}
    assert about["execute_tool search"] == {
        "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search", "inmem.trace.id": "call",
        "gen_ai.conversation.id": "run-1", "inmem.run.id": "run-1", "inmem.trace.type": "ToolCall",
        "gen_ai.usage.input_tokens": 7, "gen_ai.tool.call.id": "call-1",
    }
    assert about["retrieval"]["gen_ai.operation.name"] == "retrieval"
    assert about["retrieval"]["inmem.query.type"] == "vector"
    assert about["retrieval"]["inmem.query.results_count"] == 3
    assert about["Error"]["error.type"] == "Timeout" and about["Error"]["inmem.error.recoverable"] is True
    assert about["Thought"]["inmem.thought.confidence"] == 0.5
    assert about["Thought"]["inmem.tags"] == ["plan", "first"]
    [top] = [span.attributes for name, span in spans.items() if name.startswith("invoke_agent")]
    assert top["gen_ai.operation.name"] == "invoke_agent" and top["inmem.run.status"] == "failed"
    assert top["gen_ai.provider.name"] == "openai" and top["error.type"] == "_OTHER"
    assert (top["inmem.tenant"], top["inmem.app"], top["inmem.agent"]) == (
        "default", "default", db.namespace.agent
    )  # fmt: skip

    export(db, "run-1", sender, content=True)
    check_filled(db, "run-1", otlp.spans[7:])
    about = {name: span.attributes for name, span in by_name(otlp.spans[7:]).items()}
    call = about["execute_tool search"]
    assert json.loads(call["gen_ai.tool.call.arguments"]) == {"q": SECRET}
    assert json.loads(call["gen_ai.tool.call.result"]) == [SECRET, 1, "AA=="]
    assert call["gen_ai.input.messages"] == SECRET
    assert json.loads(about["retrieval"]["gen_ai.retrieval.query.text"]) == {"text": SECRET}
    assert about["Thought"]["inmem.content.thought"] == SECRET
    assert about["Decision"]["inmem.content.chosen"] == about["Decision"]["inmem.content.reasoning"] == SECRET
    assert json.loads(about["plan"]["inmem.content.data"]) == {"steps": [SECRET]}
    [top_span] = [span for span in otlp.spans[7:] if span.name.startswith("invoke_agent")]
    assert json.loads(top_span.events[0][2]["inmem.content.payload"]) == {"goal": SECRET}
    assert json.loads(top_span.attributes["inmem.content.metadata"])["own"] == SECRET


def test_what_a_run_is_by_its_status(db: inmem.Database) -> None:
    statuses = {
        "c": db.runs.complete_run, "x": db.runs.cancel_run, "p": db.runs.pause_run, "r": db.runs.archive_run,
        "a": db.runs.get_run,
    }
    for run, change in statuses.items():
        db.runs.create_run(run_id=run)
        change(run)
        [span] = exported(db, run)
        record = db.runs.get_run(run)
        assert record is not None and span.attributes is not None
        assert span.attributes["inmem.run.status"] == record.status.value
        assert span.status.status_code is StatusCode.UNSET and "error.type" not in span.attributes
        assert span.start_time == record.created_at * 1000
        assert span.end_time == (record.completed_at or record.updated_at) * 1000


def test_a_run_that_was_never_created(db: inmem.Database) -> None:
    with pytest.raises(inmem.RunNotFoundError):
        export(db, "nowhere", InMemorySpanExporter())
    db.traces.record("data", inmem.Thought("x"), id="t", timestamp=5)
    db.traces.record("data", inmem.ToolCall("x", {}, 1), id="u", timestamp=9)
    thought, call, run = exported(db, "data")
    assert (run.start_time, run.end_time, run.parent) == (5000, 9000, None)
    assert thought.parent == call.parent == run.context
    assert (call.start_time, call.end_time) == (9000, 9000)
    db.events.append("log", "only")
    [alone] = exported(db, "log")
    assert alone.start_time == alone.end_time == db.events.head("log").timestamp * 1000  # type: ignore[union-attr]


def test_ids_are_those_of_the_namespace(db: inmem.Database) -> None:
    other = span_context(db, "run-1", "t")
    assert f"{other.trace_id:032x}", f"{other.span_id:016x}" == ids_of(db, "run-1", "t")
    parts = [("run-1", None), ("run-1", "t"), ("run-1", "u"), ("run-2", None), ("run-2", "t"), ("run-", "1t")]
    assert len({span_context(db, *part).span_id for part in parts}) == len(parts)
    assert len({span_context(db, *part).trace_id for part in parts}) == 3


def test_many_events_are_all_there_once(db: inmem.Database) -> None:
    for run, count in (("few", 128), ("one-more", 129), ("many", 1000)):
        db.runs.create_run(run_id=run)
        db.events.append_many(run, [(f"e{n}", {"n": n}) for n in range(count)])
        db.runs.complete_run(run)
        spans = exported(db, run)
        *more, whole = spans
        assert whole.name.startswith("invoke_agent") and len(spans) == 1 + (count - 1) // 128
        assert all(span.parent == whole.context and len(span.events) <= 128 for span in more)
        every = [whole, *more]
        assert [event.name for span in every for event in span.events] == [f"e{n}" for n in range(count)]
        assert len({span.context.span_id for span in every}) == len(every)  # type: ignore[union-attr]
        again = [span.context for span in exported(db, run)]
        assert again == [span.context for span in spans]


class Batches(SpanExporter):
    """Keeps sizes of batches; refuses the first ones."""

    def __init__(self, refusing: int = 0) -> None:
        self.refusing = refusing
        self.sizes: list[int] = []
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.refusing:
            self.refusing -= 1
            return SpanExportResult.FAILURE
        self.sizes.append(len(spans))
        self.spans += spans
        return SpanExportResult.SUCCESS


def test_batches_and_long_values(db: inmem.Database) -> None:
    for _ in range(3):
        db.traces.record_many("big", [inmem.NewTrace(inmem.Thought("x" * 10_000)) for _ in range(400)])
    batches = Batches()
    assert export(db, "big", batches) == 1201
    assert batches.sizes == [512, 512, 177]
    batches = Batches()
    assert export(db, "big", batches, content=True) == 1201
    assert max(batches.sizes) <= 100 and sum(batches.sizes) == 1201
    db.traces.record("long", inmem.ToolCall("t", {}, "y" * 20_000_00), id="t")
    [call, _] = exported(db, "long", content=True)
    text = call.attributes["gen_ai.tool.call.result"]  # type: ignore[index]
    assert isinstance(text, str) and len(text) == 16_384 and text.endswith("y…")


def test_what_is_refused_is_tried_again(
    db: inmem.Database, otlp: Receiver, sender: SpanExporter
) -> None:
    db.traces.record("run", inmem.Thought("x"))
    batches = Batches(refusing=2)
    assert export(db, "run", batches, retry_s=30) == 2 and batches.sizes == [2]
    otlp.refusing = 1
    with pytest.raises(SpansNotSentError) as caught:
        export(db, "run", sender, retry_s=0)
    assert caught.value.retryable and "2 spans" in str(caught.value) and otlp.requests == []


@pytest.mark.parametrize("value", [-1, "1", None, float("nan"), float("inf"), True])
def test_times_that_are_none(db: inmem.Database, value: Any) -> None:
    with pytest.raises(inmem.InvalidInputError) as caught:
        export(db, "run", Batches(), retry_s=value)
    assert caught.value.argument == "retry_s"


def test_arguments_that_are_wrong(db: inmem.Database) -> None:
    with pytest.raises(inmem.InvalidInputError, match="exporter"):
        export(db, "run", object())  # type: ignore[arg-type]
    with pytest.raises(inmem.InvalidRunIdError):
        export(db, "no run", Batches())


def test_a_resource_of_the_caller(db: inmem.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db.traces.record("run", inmem.Thought("x"))
    mine = Resource({"service.name": "mine"})
    assert {span.resource for span in exported(db, "run", resource=mine)} == {mine}
    monkeypatch.setenv("OTEL_SERVICE_NAME", "by variable")
    assert exported(db, "run")[0].resource.attributes["service.name"] == "by variable"


def test_metadata_that_is_no_attribute_or_no_span(db: inmem.Database) -> None:
    odd = {"gen_ai.a": {"x": 1}, "gen_ai.b": [1, "x"], "gen_ai.c": ["x", "y"], "gen_ai.d": None, "gen_ai": 1}
    traces = db.run("run").traces
    traces.record(inmem.Thought("x"), metadata=odd, timestamp=1)
    traces.record(inmem.Thought("x"), metadata={"otel.span": {"trace": "no"}}, timestamp=2)
    traces.record(inmem.ToolCall("x", {}, 1, -5.0), timestamp=3)
    first, second, third, _ = exported(db, "run")
    found = {name for name in first.attributes or {} if name.startswith("gen_ai")}
    assert found == {"gen_ai.c", "gen_ai.conversation.id"}
    assert second.name == "Thought" and third.start_time == third.end_time


def test_real_runs(db: inmem.Database, otlp: Receiver, sender: SpanExporter) -> None:
    """Recorded runs of agents: all of them with INMEM_EXHAUSTIVE, a few without."""
    if not DATA.is_dir():
        pytest.skip(f"no recorded runs at {DATA}: nothing real to export")
    files = find_files(DATA)
    is_all = bool(os.environ.get("INMEM_EXHAUSTIVE"))
    for path in files if is_all else [file for file in files if file.suffix == ".traj"][:3]:
        for _, parsed in parse_file(path, path.name):
            assert isinstance(parsed, Trajectory)
            for step in parsed.steps:
                store_step(db, parsed, step)
    runs = db.runs.list_runs()
    assert len(runs) == (213 if is_all else 3)
    for run in runs:
        otlp.requests.clear()
        export(db, run, sender, content=True)
        traces = {trace.id: trace for trace in db.traces.iter(run)}
        spans = {span.span_id: span for span in otlp.spans}
        assert len(spans) == len(otlp.spans)
        of_traces = {ids_of(db, run, name)[1]: trace for name, trace in traces.items()}
        extra = [span for name, span in spans.items() if name not in of_traces]
        [top] = [span for span in extra if not span.parent_id]
        assert {span.name for span in extra} - {top.name} <= {"events"}
        assert sum(len(span.events) for span in extra) == db.events.count(run)
        for span_id, trace in of_traces.items():
            above = ids_of(db, run, trace.parent_id)[1] if trace.parent_id else top.span_id
            assert spans[span_id].parent_id == above and above in spans
            assert (spans[span_id].status[0] == "ERROR") == isinstance(trace.body, inmem.ErrorTrace)
            assert spans[span_id].kind == SpanKind.INTERNAL.name
        record = db.runs.get_run(run)
        assert record is not None
        assert (top.status[0] == "ERROR") == (record.status is inmem.RunStatus.FAILED)
