"""An import whose importer or writer is killed: the run is not there until it is whole."""

from __future__ import annotations

import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exchanging import PROGRAM, environment
from exporting import exported
from support import alive, kill, kill_writer, stop_writer, wait_until, writer_pid

import inmem
from inmem.errors import BusyError, InmemError, RunNotFoundError
from inmem.exchange import count_runs, discard_import, export_runs, import_runs, unfinished_imports
from inmem.exchange.import_ import RunLoader
from inmem.exchange.line_reader import LineReader, LineRecord, RunStart
from inmem.host.control import VERSION, Control

LARGE = 6000  # records: several commits of an import


def importer(store: Path, file: Path) -> subprocess.Popen[bytes]:
    """`inmem import` as a process of its own."""
    return subprocess.Popen(
        [*PROGRAM, "import", str(store), str(file)], env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def version(store: Path) -> int:
    control = Control(store / "control")
    try:
        return control.words[VERSION]
    finally:
        control.close()


def wait_for_commits(store: Path, process: subprocess.Popen[bytes], limit: int) -> None:
    """Wait until the import has come to a version, or to its end."""
    wait_until(lambda: version(store) >= limit or process.poll() is not None, f"version {limit}")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of one large run and of two small ones around it."""
    file = tmp_path_factory.mktemp("large") / "large.jsonl"
    with inmem.open() as db:
        db.runs.create_run(run_id="large", tags=["t"])
        db.kv.put("after", "k", 1)
        db.runs.create_run(run_id="before")
        with db.pipeline() as p:
            for number in range(LARGE):
                p.kv.put("large", f"key-{number % 1000:05}", number)
                p.events.append("large", "step", {"n": number})
        db.cells.set("large", "c", 1)
        db.traces.record_many(
            "large", [inmem.NewTrace(inmem.Thought(str(n)), id=f"t{n}") for n in range(500)]
        )
        export_runs(db, file)
    return file


def assert_closed(db: inmem.Database, run: str = "large") -> None:
    """A run that is half there: not found, not exported, and nobody writes into it."""
    assert unfinished_imports(db) == [run]
    assert run not in db.runs.list_runs() and db.runs.get_run(run) is None
    attempts: list[Callable[[], Any]] = [
        lambda: db.kv.put(run, "key-00001", "mine"), lambda: db.kv.add(run, "n"),
        lambda: db.kv.delete(run, "key-00001"), lambda: db.events.append(run, "mine"),
        lambda: db.cells.set(run, "c", 1), lambda: db.traces.record(run, inmem.Thought("mine")),
        lambda: db.runs.create_run(run_id=run), lambda: db.runs.delete_run(run),
        lambda: db.transact(run, lambda txn: txn.kv.put("k", 1), max_attempts=2),
    ]
    for attempt in attempts:
        with pytest.raises((BusyError, RunNotFoundError)):
            attempt()
    with pytest.raises(BusyError, match="being imported"):
        exported(db, run)
    assert f'"run_id":"{run}"'.encode() not in exported(db)
    assert db.check().problems == []


@pytest.mark.timeout(180)
def test_the_importer_is_killed_again_and_again(large: Path, scratch: Path, rng: random.Random) -> None:
    store = scratch / "target"
    with inmem.open(store) as db:
        closed = 0
        for _ in range(5):
            begun, after = version(store), rng.randrange(1, 8)
            process = importer(store, large)
            try:
                wait_for_commits(store, process, begun + after)
            finally:
                kill(process.pid, wait=False)
                process.communicate()
            if unfinished_imports(db):
                closed += 1
                if closed == 1:
                    assert_closed(db)
            else:
                # Killed before the mark or after the record: the run is not there, or all of it.
                there = db.runs.get_run("large")
                assert db.events.count("large") == (0 if there is None else LARGE)
        assert closed > 0, "never killed in the middle: the test proves nothing"
        done = import_runs(db, large)
        assert done.cleared in ([], ["large"])
        assert exported(db) == large.read_bytes()
        assert db.check().problems == []
        assert import_runs(db, large).runs == 0


@pytest.mark.timeout(180)
def test_the_writer_is_killed_during_the_import(large: Path, scratch: Path) -> None:
    store = scratch / "target"
    with inmem.open(store) as db:
        begun = version(store)
        process = importer(store, large)
        kills = 0
        try:
            for more in (2, 2):
                limit = max(begun, version(store)) + more
                wait_for_commits(store, process, limit)
                if process.poll() is None:
                    kill_writer(store)
                    kills += 1
        finally:
            _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
        assert kills > 0
        assert exported(db) == large.read_bytes()
        assert db.check().problems == []


@pytest.mark.timeout(180)
def test_both_are_killed_and_the_store_is_recovered_from_its_log(large: Path, scratch: Path) -> None:
    store = scratch / "target"
    with inmem.open(store) as db:
        half_import(db, large)
        db.kv.put("other", "k", 1)
    pid = writer_pid(store)
    stop_writer(store)  # the image is gone with it: what comes next is what the log says
    assert not alive(pid)
    with pytest.raises(BusyError):
        exported(store, "large")
    with inmem.open(store) as db:
        assert_closed(db)
        assert db.kv.get("other", "k") == 1
        db.checkpoint()
        kill_writer(store)
        assert_closed(db)
        discard_import(db, "large")
        assert count_runs(db) == 1 and unfinished_imports(db) == []
        with pytest.raises(RunNotFoundError, match="no import of run large"):
            discard_import(db, "large")
        assert db.kv.put("large", "k", 1)


def half_import(db: inmem.Database, file: Path, records: int = 3500) -> RunLoader:
    """What a killed import leaves of the large run; whoever holds this is it."""
    loader: RunLoader | None = None
    taken = 0
    with file.open("rb") as stream:
        for part in LineReader(stream, "x"):
            if isinstance(part, RunStart) and part.run_id == "large":
                loader = RunLoader(db, db.engine.attachment.session().take(), "large", part, {})
            elif loader is not None and isinstance(part, LineRecord):
                loader.take(part)
                taken += 1
                if taken == records:
                    break
    assert loader is not None
    loader._send()
    while loader._sent:
        loader._settle()
    return loader


def test_a_later_import_takes_over_and_the_earlier_one_fails(large: Path, db: inmem.Database) -> None:
    earlier = half_import(db, large)
    done = import_runs(db, large)
    assert done.cleared == ["large"]
    earlier._call("import.entries", earlier._prefix, earlier._token, [])
    earlier._send()
    with pytest.raises(InmemError, match=r"given up|began later"):
        earlier._settle()
    earlier.abort(ValueError())
    assert exported(db) == large.read_bytes()


def test_an_agent_that_retries_goes_on_in_a_run_that_is_whole(large: Path, db: inmem.Database) -> None:
    half_import(db, large)
    found: list[Any] = []

    def agent() -> None:
        with inmem.open(db.path) as mine:
            def step(txn: Any) -> int:
                txn.kv.put("mine", 1)
                return int(txn.events.count())

            found.append(mine.transact("large", step, max_attempts=10_000, timeout_s=60))

    thread = threading.Thread(target=agent)
    thread.start()
    failures = db.status().failures
    wait_until(lambda: db.status().failures > failures, "the agent was refused")
    import_runs(db, large)
    thread.join()
    assert found == [LARGE]


def test_what_goes_wrong_half_way_leaves_nothing(large: Path, scratch: Path) -> None:
    config = scratch / "small.toml"
    config.write_text("[store]\nquota_bytes = 4194304\n")
    with inmem.open(scratch / "target", config=config) as db:
        with db.pipeline() as p:
            for number in range(1200):
                p.kv.put("there", f"{number}", b"x" * 1000)
        with pytest.raises(InmemError) as caught:
            import_runs(db, large)
        assert caught.value.code == "store_full"
        assert unfinished_imports(db) == [] and db.events.count("large") == 0
        assert db.runs.list_runs() == ["before"] and db.kv.get("after", "k") == 1  # whole, as they come first
