"""`inmem tail`: all that happens in a run, as it happens, on both engines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from homes import Home, home
from support import kill_writer, wait_until

import inmem
from inmem.cli.tail import KINDS, _Tail
from inmem.keys import TypeTag
from inmem.reading.named_source import NamedSource
from inmem.reading.run import StoredRun

__all__ = ["home"]
MAIN = "from inmem.cli import main; main()"


@contextmanager
def tailed(place: Any, *arguments: str) -> Iterator[list[dict[str, Any]]]:
    """A list of what `inmem tail --json` prints, which grows."""
    found: list[dict[str, Any]] = []
    command = [sys.executable, "-c", MAIN, "tail", *arguments, "--json", "-d", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def read() -> None:
            assert process.stdout is not None
            found.extend(json.loads(line) for line in iter(process.stdout.readline, ""))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield found
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            reader.join(30)
            assert not reader.is_alive()


def told(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Kind, name (but that of a trace is drawn), words and value."""
    names = ["" if one["kind"] == "trace" else one["name"] for one in found]
    return [(one["kind"], name, one["what"], one["value"]) for one, name in zip(found, names, strict=True)]


def test_what_is_there_and_what_comes(home: Home) -> None:
    with home.open() as db:
        db.runs.create_run(run_id="trip")
        run = db.run("trip")
        run.events.append("planned", {"n": 1})
        run.kv.put("goal", "Oslo")
        with tailed(home.place, "trip") as found:
            wait_until(lambda: len(found) == 3, "what is there")
            assert told(found) == [
                ("run", "trip", "active", None),
                ("event", "0", "planned", {"n": 1}),
                ("kv", "goal", "", "Oslo"),
            ]
            steps = [
                (lambda: run.kv.put("goal", "Rome"), ("kv", "goal", "", "Rome")),
                (lambda: run.events.append("left", 2), ("event", "1", "left", 2)),
                (lambda: run.cells.set("phase", "b"), ("cell", "phase", "version 1", "b")),
                (
                    lambda: run.traces.record(inmem.Thought("why?")),
                    ("trace", "", "Thought", {"content": "why?"}),
                ),
                (lambda: run.queues.put("work", 1), ("job", "work/0", "ready", None)),
                (
                    lambda: run.queues.claim("work", worker="w"),
                    ("job", "work/0", "claimed by w, attempt 1 of 5", None),
                ),
                (lambda: run.kv.put("goal", "Rome"), ("kv", "goal", "", "Rome")),
                (lambda: db.runs.fail_run("trip", "no train"), ("run", "trip", "failed: no train", None)),
            ]
            for number, (step, line) in enumerate(steps, 4):
                step()
                wait_until(lambda number=number: len(found) >= number, line)
                assert told(found)[number - 1 :] == [line]
            lease = run.leases.acquire("owner", ttl_s=9, holder="me")
            wait_until(lambda: told(found)[-1][0] == "lease", "the lease")
            assert told(found)[-1] == ("lease", "owner", f"held by me, token {lease.token}", None)


def test_some_kinds_and_no_more_than_wanted(home: Home) -> None:
    with home.open() as db:
        run = db.run("some")
        run.events.append_many([("e", n) for n in range(30)])
        run.kv.put("k", 1)
        with tailed(home.place, "some", "--kind", "event", "--last", "2", "--limit", "3") as found:
            wait_until(lambda: len(found) == 2, "the last two")
            run.kv.put("k", 2)
            run.events.append_many([("e", 30), ("e", 31)])
            wait_until(lambda: len(found) == 3, "one more")
        assert [one["value"] for one in found] == [28, 29, 30]


def test_over_the_death_of_a_writer(scratch: Path) -> None:
    with inmem.open(scratch / "store") as db:
        run = db.run("trip")
        run.events.append("a", 0)
        with tailed(scratch / "store", "trip", "--kind", "event") as found:
            for n in range(1, 4):
                wait_until(lambda n=n: len(found) == n, f"event {n}")
                kill_writer(scratch / "store")
                run.events.append("a", n)
            wait_until(lambda: len(found) == 4, "the last event")
        assert [one["value"] for one in found] == [0, 1, 2, 3]


def test_a_run_that_is_deleted_ends_it(home: Home) -> None:
    with home.open() as db:
        db.run("gone").events.append("a", 0)
        with tailed(home.place, "gone") as found:
            wait_until(lambda: found, "the first")
            db.runs.delete_run("gone")
            wait_until(lambda: "error" in found[-1], "the end")
        assert found[-1]["error"]["code"] == "run_deleted"


@pytest.mark.parametrize(
    ("words", "said"), [(["none"], "no run none"), (["trip", "--kind", "odd"], "no kind odd")]
)
def test_what_is_asked_for_wrongly(scratch: Path, words: list[str], said: str) -> None:
    with inmem.open(scratch / "store") as db:
        db.kv.put("trip", "k", 1)
        command = [sys.executable, "-c", MAIN, "tail", *words, "-d", str(scratch / "store")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2) and said in done.stderr


def looked_at(db: inmem.Database, run: str) -> _Tail:
    """What `inmem tail` looks with, in this process."""
    engine = db.engine
    source = NamedSource("test", engine.stored, engine.latest().now_us, db.namespace)
    return _Tail(source, run, {*KINDS, "run"}, None)  # type: ignore[arg-type]  # nothing is printed


def test_a_look_that_fails_in_the_middle_passes_nothing_over(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.open() as db:
        run = db.run("middle")
        run.events.append("first", 0)
        tail = looked_at(db, "middle")
        assert len(tail._new(10)) == 1
        run.events.append("second", 1)
        run.kv.put_many({"a": 1, "b": 2})
        records = StoredRun.records

        def failing(self: StoredRun, tag: int, *args: Any, **options: Any) -> Iterator[tuple[bytes, bytes]]:
            for record in records(self, tag, *args, **options):
                yield record
                if tag == TypeTag.KV:
                    raise inmem.SnapshotTooOldError("it took too long")

        with monkeypatch.context() as patched:
            patched.setattr(StoredRun, "records", failing)
            with pytest.raises(inmem.SnapshotTooOldError):
                tail._new(None)
        names = [tail._happened(each).name for each in tail._new(None)]
        assert names == ["1", "a", "b"] and tail._new(None) == []


def test_what_was_removed_is_not_kept_in_memory(home: Home) -> None:
    with home.open() as db:
        run = db.run("removed")
        tail = looked_at(db, "removed")
        for n in range(5):
            run.kv.put(f"key/{n}", n)
            assert len(tail._new(None)) == 1
            run.kv.delete(f"key/{n}")
        assert tail._new(None) == [] and tail._versions["kv"] == {}


def test_the_first_look_reads_the_values_that_it_shows(home: Home) -> None:
    with home.open() as db:
        run = db.run("values")
        for n in range(30):
            run.kv.put(f"key/{n:02}", "x" * 10_000)
        found = looked_at(db, "values")._new(3)
        assert [each.name for each in found] == [b"key/27", b"key/28", b"key/29"]
