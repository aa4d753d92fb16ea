"""A follower that exports as commits happen: what it sends, where it goes on, and what is sent twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from homes import Fresh
from support import Workers, wait_until
from typer.testing import CliRunner

import inmem

pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")

import otel_workers
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_receiver import Receiver, receiver

from inmem.adapters.otel import SpansNotSentError, export, follow, span_context
from inmem.cli.app import app
from inmem.exchange import export_runs, import_runs

RUN = "run-1"


@pytest.fixture
def place(fresh: Fresh) -> dict[str, Any]:
    return {name: str(value) for name, value in fresh().items()}


@pytest.fixture
def db(place: dict[str, Any]) -> Iterator[inmem.Database]:
    with inmem.open(**place) as database:
        yield database


@pytest.fixture
def otlp() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def ids(spans: Sequence[ReadableSpan]) -> list[int]:
    return [span.context.span_id for span in spans]  # type: ignore[union-attr]


def all_ids(db: inmem.Database, run: str = RUN) -> list[str]:
    """Ids of all spans that an export of the whole run has."""
    memory = InMemorySpanExporter()
    export(db, run, memory)
    return sorted(f"{one:016x}" for one in ids(memory.get_finished_spans()))


def record(db: inmem.Database, *names: str, **more: Any) -> None:
    """Some traces in one commit."""
    db.traces.record_many(RUN, [inmem.NewTrace(inmem.Thought(name), id=name, **more) for name in names])


class Handed(SpanExporter):
    """Keeps what it is handed, and counts its batches; fails when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.fails:
            return SpanExportResult.FAILURE
        self.batches.append([f"{one:016x}" for one in ids(spans)])
        return SpanExportResult.SUCCESS

    @property
    def ids(self) -> list[str]:
        return [one for batch in self.batches for one in batch]


def test_spans_go_as_commits_come(db: inmem.Database) -> None:
    handed, counts = Handed(), []
    thread = threading.Thread(target=lambda: counts.append(follow(db, RUN, handed, timeout_s=30)))
    thread.start()  # before there is a run
    try:
        for number in range(5):
            record(db, f"t{number}", timestamp=100 - number)  # times go back, commits do not
            sent = f"{span_context(db, RUN, f't{number}').span_id:016x}"
            wait_until(lambda sent=sent: sent in handed.ids, "the span is sent while the run goes on")
        db.events.append_many(RUN, [("e", n) for n in range(300)])
        wait_until(lambda: len(handed.ids) == 6, "the second 128 events are sent, the third are not whole")
        db.runs.create_run(run_id=RUN)
        db.runs.pause_run(RUN)
        db.runs.resume_run(RUN)
        record(db, "last")
    finally:
        db.runs.complete_run(RUN)
        thread.join(30)
    assert not thread.is_alive()
    assert sorted(handed.ids) == all_ids(db) and counts == [len(handed.ids)] == [9]
    assert handed.ids[-1] == f"{span_context(db, RUN).span_id:016x}"


def test_a_follower_goes_on_where_it_was(db: inmem.Database) -> None:
    db.runs.create_run(run_id=RUN)
    first, second, other = Handed(), Handed(), Handed()
    record(db, "a", "b")
    with pytest.raises(inmem.WaitTimeoutError):
        follow(db, RUN, first, timeout_s=0.05)
    assert len(first.ids) == 2
    record(db, "d", "c")
    first.fails = True
    with pytest.raises(SpansNotSentError):
        follow(db, RUN, first, retry_s=0)
    with pytest.raises(inmem.WaitTimeoutError):
        follow(db, RUN, second, timeout_s=0.05)
    assert len(second.ids) == 2
    db.runs.fail_run(RUN, "broke")
    assert follow(db, RUN, second) == 1 and follow(db, RUN, second) == 0
    assert sorted(first.ids + second.ids) == all_ids(db)
    assert follow(db, RUN, other, cursor="other") == 5
    record(db, "late")
    db.events.append_many(RUN, [("late", None)] * 300)
    assert follow(db, RUN, second) == follow(db, RUN, other, cursor="other") == 1
    assert follow(db, RUN, other, cursor="other") == 0


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_one_that_is_killed_sends_its_last_batch_twice(
    db: inmem.Database, place: dict[str, Any], otlp: Receiver, workers: Workers, batch: int
) -> None:
    """Killed when the receiver has the batch and the cursor has not moved."""
    db.runs.create_run(run_id=RUN)
    for at in range(0, 600, 300):
        record(db, *(f"t{at + number}" for number in range(300)))
    record(db, *(f"u{number}" for number in range(10)))
    db.runs.complete_run(RUN)
    worker = workers.start(otel_workers.follow_until, place, RUN, otlp.url, batch)
    assert worker.process.wait(60) == -signal.SIGKILL
    assert [len(request) for request in otlp.requests] == [300, 310, 1][:batch]
    last = {span.span_id for span in otlp.requests[-1]}
    assert workers.start(otel_workers.follow_until, place, RUN, otlp.url, 0).result() > 0
    times = Counter(otlp.ids())
    assert sorted(times) == all_ids(db)
    twice = {one for one, count in times.items() if count > 1}
    assert set(times.values()) <= {1, 2}
    assert twice == last
    by_id: dict[str, Any] = {}
    for span in otlp.spans:
        assert by_id.setdefault(span.span_id, span) == span, "what is sent twice is the same"


def test_one_that_is_killed_at_any_time(
    db: inmem.Database, place: dict[str, Any], otlp: Receiver, workers: Workers, rng: Any
) -> None:
    """While a program writes: no span is lost, and each kill repeats one batch at most."""
    db.runs.create_run(run_id=RUN)
    is_over = threading.Event()

    def write() -> None:
        for number in range(10_000):
            record(db, f"t{number}")
            db.events.append(RUN, "e", number)
            if is_over.is_set() and number >= 200:
                return
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    kills = 20 if os.environ.get("INMEM_EXHAUSTIVE") else 3
    try:
        for _ in range(kills):
            worker = workers.start(otel_workers.follow_until, place, RUN, otlp.url, 0)
            before = len(otlp.requests)
            wait_until(lambda before=before: len(otlp.requests) > before, "something is sent")
            time.sleep(rng.uniform(0, 0.05))  # where it is killed is left to chance
            worker.process.kill()
            worker.process.wait()
    finally:
        is_over.set()
        writer.join(60)
    db.runs.complete_run(RUN)
    assert workers.start(otel_workers.follow_until, place, RUN, otlp.url, 0).result() > 0
    times = Counter(otlp.ids())
    assert sorted(times) == all_ids(db)
    seen: set[str] = set()
    again = 0  # batches with a span that came before
    for request in otlp.requests:
        names = {span.span_id for span in request}
        again += bool(names & seen)
        seen |= names
    assert again <= kills, f"{again} batches came again after {kills} kills"


def test_two_followers_of_one_cursor(db: inmem.Database) -> None:
    db.runs.create_run(run_id=RUN)
    record(db, "a")

    class Overtaken(Handed):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            with pytest.raises(inmem.WaitTimeoutError):
                follow(db, RUN, Handed(), timeout_s=0.01)
            return super().export(spans)

    with pytest.raises(inmem.InvariantError, match="another follower"):
        follow(db, RUN, Overtaken())


def test_a_cursor_of_another_store_or_run(db: inmem.Database, tmp_path: Path, fresh: Fresh) -> None:
    db.runs.create_run(run_id=RUN)
    for number in range(5):
        record(db, f"t{number}")
    with pytest.raises(inmem.WaitTimeoutError):
        follow(db, RUN, Handed(), timeout_s=0.01)
    record(db, "new")
    file = tmp_path / "run.jsonl"
    export_runs(db, file, [RUN], namespace=db.namespace)
    with inmem.open(**fresh()) as other:
        import_runs(other, file, rename={RUN: "copy"})
        other.runs.complete_run("copy")
        handed = Handed()
        assert follow(other, "copy", handed) == 7
        assert sorted(handed.ids) == all_ids(other, "copy")
    db.kv.put(RUN, "otel/cursor/default", "nonsense")
    db.runs.complete_run(RUN)
    assert follow(db, RUN, Handed()) == 7


def test_what_ends_a_follower(db: inmem.Database) -> None:
    with pytest.raises(inmem.WaitTimeoutError):
        follow(db, "nowhere", Handed(), timeout_s=0.01)
    db.runs.create_run(run_id=RUN)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            follow(db, RUN, Handed(), timeout_s=30)
        except inmem.InmemError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    db.runs.delete_run(RUN)
    thread.join(30)
    assert [type(error) for error in failures] == [inmem.RunDeletedError]
    for cursor in ("", "x" * 201, 5, None, "ä" * 101):
        with pytest.raises(inmem.InvalidInputError, match="cursor"):
            follow(db, "run", Handed(), cursor=cursor)  # type: ignore[arg-type]
    with pytest.raises(inmem.InvalidInputError, match="timeout_s"):
        follow(db, "run", Handed(), timeout_s=-1)


def test_the_command(db: inmem.Database, place: dict[str, Any], otlp: Receiver) -> None:
    db.runs.create_run(run_id=RUN)
    record(db, "a", "b")
    db.runs.complete_run(RUN)
    where = ["-d", place["path"], "--agent", place.get("agent", "default")]

    def called(*words: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["otel", *words, *where])
        assert done.exit_code == code, done.output
        return done

    to = ["--endpoint", otlp.url]
    assert called(RUN, *to, "--header", "x-key=a=b").stdout == f"3 spans of {RUN} were sent\n"
    assert otlp.headers[-1]["x-key"] == "a=b" and sorted(otlp.ids()) == all_ids(db)
    assert json.loads(called(RUN, *to, "--follow", "--json").stdout) == {"run": RUN, "spans": 3}
    assert json.loads(called(RUN, *to, "--follow", "--json").stdout) == {"run": RUN, "spans": 0}
    assert json.loads(called(RUN, *to, "-f", "--cursor", "two", "--json").stdout)["spans"] == 3
    assert not any("inmem.content.thought" in span.attributes for span in otlp.spans)
    called(RUN, *to, "--content")
    assert {span.attributes.get("inmem.content.thought") for span in otlp.requests[-1]} == {"a", "b", None}
    assert "there is no run" in called("nowhere", *to, code=1).stderr
    otlp.refusing = 1
    assert "refused" in called(RUN, *to, "--retry-s", "0", code=1).stderr
    for endpoint in ("localhost:4318", "ftp://x", "http://", "http://x:y"):
        assert "endpoint must be a URL" in called(RUN, "--endpoint", endpoint, code=1).stderr
    called(RUN, *to, "--header", "nonsense", code=2)
