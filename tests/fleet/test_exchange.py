"""Export and import with real processes: equal to the byte, refused by the line, whole or not at all.

INMEM_TEST_EVENTS makes the large run longer (default 10,000 events).
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import alive, control_state, kill, kill_writer, stop_writer, wait_until, writer_pid
from test_trajectories import swe_run, tau_run
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.errors import (
    BusyError,
    CorruptionError,
    FormatVersionError,
    InmemError,
    InvalidInputError,
    RunDeletedError,
    RunExistsError,
    RunNotFoundError,
)
from inmem.exchange import count_runs, discard_import, export_runs, import_runs, unfinished_imports
from inmem.exchange import recorded as recorded_runs
from inmem.exchange.import_ import RunLoader
from inmem.exchange.line_reader import LineReader, LineRecord, RunStart
from inmem.exchange.recorded import import_recorded, rebuild
from inmem.host.control import VERSION, Control
from inmem.keys import Namespace
from workers.judge.values import same

EVENTS = int(os.environ.get("INMEM_TEST_EVENTS", "10000"))
GOLDEN = Path(__file__).parent / "export_v1.jsonl"  # what `fill` makes, from the first release that exports
LARGE = 6000  # records: several commits of an import
ODD = [
    None, True, 1, 1.0, -0.0, float("nan"), float("inf"), -(1 << 63), (1 << 63) - 1, 5e-324, b"", b"\xff\0",
    "", "\u2028\x85\x7f\0\n\U0001f600", {"$bytes": "eA=="}, {"$$": {"$float": "nan"}}, [[], {}, [None]],
    {"b": 1, "a": {"": b"x"}},
]  # fmt: skip


def exported(database: Any, *runs: str, **more: Any) -> bytes:
    out = io.BytesIO()
    export_runs(database, out, list(runs) or None, **more)
    return out.getvalue()


def fill(db: inmem.Database) -> None:
    """Something of everything, in several runs."""
    db.runs.create_run(run_id="parent", tags=["b", "\u00e4", "a"], metadata={"odd": ODD})
    db.runs.create_run(run_id="child", parent_run="parent")
    db.runs.fail_run("child", "no \u2028 luck")
    db.runs.create_run(run_id="Archived")
    db.runs.archive_run("Archived")
    for run in ("parent", "never-created"):
        for number, value in enumerate(ODD):
            db.kv.put(run, f"odd/\u00fc{number}", value)
            db.cells.set(run, f"cell-{number % 3}", value)
            db.events.append(run, "odd", value)
        db.events.append_many(run, [("many\u2029", {"n": n}) for n in range(5)])
        db.kv.put(run, "lease", "x", ttl=3600.5)
        db.cells.init(run, "gone", 1)
        db.cells.set(run, "gone", 2)
        db.cells.delete(run, "gone")
    root = db.traces.record(
        "parent", inmem.Thought("t", 0.5), tags=["x", "y"], metadata={"odd": ODD}, timestamp=9
    )
    for number in range(3):
        below = db.traces.record_child("parent", root, inmem.Custom("Mine", ODD), timestamp=9 - number)
        db.traces.record_child("parent", below, inmem.ToolCall("t", {"a": b"1"}, [1.0], 2.5), timestamp=1)
        db.traces.record_child("parent", below, inmem.Query("q", None, 3))
    db.traces.record("parent", inmem.Decision("?", [1, "2"], None, "so"), id="decision")
    db.traces.record("parent", inmem.ErrorTrace("E", "m", True))


def recorded(folder: Path) -> tuple[list[Path], Path]:
    """Recorded runs as files: of SWE-agent, and as chat messages."""
    swe, chats = folder / "a.traj", folder / "chats.json"
    swe.write_text(json.dumps(swe_run(4)))
    chats.write_text(json.dumps([tau_run(), tau_run(task_id=2, reward=0.0)]))
    return [swe], chats


@pytest.fixture
def two(scratch: Path) -> Iterator[tuple[inmem.Database, inmem.Database]]:
    with inmem.open(scratch / "one") as one, inmem.open(scratch / "two") as two:
        yield one, two


class TestRoundTrip:
    def test_equal_to_the_byte(self, two: tuple[inmem.Database, inmem.Database], scratch: Path) -> None:
        one, other = two
        fill(one)
        swe, chats = recorded(scratch)
        import_recorded(one, swe, "swe-agent")
        import_recorded(one, [chats], "openai-chat")
        first, second = scratch / "1.jsonl", scratch / "2.jsonl"
        report = export_runs(one, first)
        assert report.bytes == first.stat().st_size and report.runs == count_runs(one) == 7
        done = import_runs(other, first)
        assert (done.runs, done.records) == (report.runs, report.records)
        export_runs(other, second)
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_mode & 0o777 == 0o600
        assert other.check().problems == []
        self.assert_same(one, other)

    def assert_same(self, one: inmem.Database, other: inmem.Database) -> None:
        """By the facades, which know nothing of exports."""
        for run in one.runs.list_runs(include_archived=True):
            assert repr(other.runs.get_run(run)) == repr(one.runs.get_run(run))  # NaN differs from itself
            assert repr(other.traces.list(run)) == repr(one.traces.list(run))
        for run in (*one.runs.list_runs(include_archived=True), "never-created"):
            left, right = list(one.events.iter(run)), list(other.events.iter(run))
            assert [e.hash for e in left] == [e.hash for e in right] and len(left) == len(right)
            assert other.events.verify_chain(run).is_valid
            assert same(dict(one.kv.list_with_values(run)), dict(other.kv.list_with_values(run)))
            for name in one.cells.list(run):
                before, after = one.cells.read(run, name), other.cells.read(run, name)
                assert before is not None and after is not None and same(before.value, after.value)
                assert (before.version, before.updated_at) == (after.version, after.updated_at)
        assert one.kv.ttl("parent", "lease") == pytest.approx(other.kv.ttl("parent", "lease"), abs=5)
        # Versions that deleted cells had are remembered: none comes twice.
        assert other.cells.init("parent", "gone", 1) == one.cells.init("parent", "gone", 1)
        assert other.events.append("parent", "on").sequence == one.events.append("parent", "on").sequence
        assert [r.run_id for r in other.runs.get_child_runs("parent")] == ["child"]

    def test_a_file_of_version_1_is_read_and_written_as_ever(self, db: inmem.Database) -> None:
        """Of a store with sha256 chains, which this one does not have: a log keeps its own."""
        import_runs(db, GOLDEN)
        assert exported(db) == GOLDEN.read_bytes()
        assert db.check().problems == []
        db.events.append("parent", "more")
        assert db.events.verify_chain("parent").is_valid

    def test_a_private_replay_gives_the_same_and_starts_no_writer(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            fill(db)
            shared = exported(db)
        stop_writer(store_path)
        state = control_state(store_path)
        assert exported(store_path) == shared
        assert (writer_pid(store_path), control_state(store_path)) == (0, state)
        assert not list(store_path.glob("*.scratch"))
        assert count_runs(store_path) == 4

    def test_beside_a_writer_nothing_is_disturbed(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            fill(db)
            shared = exported(db)
            pid, version = writer_pid(store_path), db.status().version
            done = command("export", store_path, "-o", "-")
            assert done.stdout == shared
            assert (writer_pid(store_path), db.status().version) == (pid, version)

    def test_a_memory_store_that_is_gone(self, store_path: Path) -> None:
        with inmem.open(store_path, durability="memory") as db:
            db.kv.put("r", "k", 1)
            assert b'"kv"' in exported(db)
        stop_writer(store_path)
        with pytest.raises(InvalidInputError, match="nothing is left"):
            exported(store_path)

    def test_one_run_is_one_moment(self, two: tuple[inmem.Database, inmem.Database]) -> None:
        one, _ = two
        over = threading.Event()

        def agent() -> None:
            with inmem.open(one.path) as db:
                while not over.is_set():
                    db.transact("r", step)

        def step(txn: Any) -> None:
            number = txn.kv.get("n", 0) + 1
            txn.kv.put("n", number)
            txn.events.append("step", number)
            txn.cells.set("n", number)

        thread = threading.Thread(target=agent)
        thread.start()
        try:
            wait_until(lambda: one.kv.get("r", "n"), "the agent has begun")
            seen: set[int] = set()
            while len(seen) < 3:
                wait_until(lambda: one.kv.get("r", "n") not in seen, "the agent goes on")
                lines = [json.loads(line) for line in exported(one, "r").splitlines()]
                (kv,) = [line["value"] for line in lines if line.get("kind") == "kv"]
                (cell,) = [line["value"] for line in lines if line.get("kind") == "cell"]
                assert kv == cell == sum(line.get("kind") == "event" for line in lines)
                seen.add(kv)
        finally:
            over.set()
            thread.join()

    def test_chosen_runs_other_names_and_namespaces(self, two: tuple[Any, Any], scratch: Path) -> None:
        one, other = two
        fill(one)
        file = scratch / "f.jsonl"
        assert export_runs(one, file, ["parent", "child", "parent"]).runs == 2
        with pytest.raises(RunNotFoundError, match="nobody"):
            export_runs(one, scratch / "no.jsonl", ["parent", "nobody"])
        assert not (scratch / "no.jsonl").exists()
        import_runs(other, file, rename={"parent": "elder"})
        assert other.runs.get_run("child").parent_run == "elder"
        assert other.events.verify_chain("elder").is_valid
        assert import_runs(other, file, rename={"child": "kid"}).unchanged == []
        with inmem.open(other.path, tenant="t", app="a", agent="g") as elsewhere:
            import_runs(elsewhere, file)
            assert exported(elsewhere) == file.read_bytes()
        assert exported(other.path, namespace=Namespace("t", "a", "g")) == file.read_bytes()
        with inmem.open(other.path, agent="third") as third:
            for wrong in ({"absent": "x"}, {"parent": "child"}, {"parent": "x", "child": "x"}):
                with pytest.raises(InvalidInputError, match=r"no run absent|two runs"):
                    import_runs(third, file, rename=wrong)
            assert count_runs(third) == 0

    def test_deep_traces(self, two: tuple[Any, Any], scratch: Path) -> None:
        one, other = two
        file = scratch / "deep.jsonl"
        ids = [f"t{n}" for n in range(2000)]
        one.traces.record_many("deep", [
            inmem.NewTrace(inmem.Thought("x"), id=name, parent_id=above)
            for above, name in zip([None, *ids], ids, strict=False)
        ])
        export_runs(one, file)
        import_runs(other, file)
        assert exported(other) == file.read_bytes()


class TestRefused:
    @pytest.fixture
    def file(self, scratch: Path) -> Path:
        with inmem.open(scratch / "source") as db:
            db.runs.create_run(run_id="a", tags=["t"])
            db.kv.put_many("a", {"k1": 1, "k2": "two"})
            db.cells.set("a", "c", 1)
            db.events.append_many("a", [("e", n) for n in range(3)])
            root = db.traces.record("a", inmem.Thought("x"), timestamp=5)
            db.traces.record_child("a", root, inmem.Thought("y"), timestamp=6)
            db.kv.put("b", "k", 2.5)
            export_runs(db, scratch / "good.jsonl")
        return scratch / "good.jsonl"

    def test_every_line_damaged_in_turn(self, file: Path, scratch: Path) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        damaged = scratch / "damaged.jsonl"
        with inmem.open(scratch / "target") as db:
            version = db.status().version
            for number, line in enumerate(lines):
                for what, changed in damages(lines, number).items():
                    damaged.write_bytes(b"".join(changed))
                    with pytest.raises((CorruptionError, FormatVersionError)) as caught:
                        import_runs(db, damaged)
                    told = re.search(rf"^{damaged}, line (\d+): ", caught.value.message)
                    assert told, caught.value
                    # What only a checksum can see is told with the line of the checksum.
                    assert number + 1 <= int(told[1]) + 1 <= len(lines) + 2, (what, line, caught.value)
                    if isinstance(caught.value, CorruptionError):
                        assert caught.value.file == str(damaged) and caught.value.offset is not None
            assert db.status().version == version
            assert (db.runs.list_runs(), unfinished_imports(db), count_runs(db)) == ([], [], 0)
            assert import_runs(db, file).runs == 2

    def test_every_cut_and_every_flipped_byte(self, file: Path) -> None:
        """The reader alone, which is what decides."""
        data = file.read_bytes()
        assert sum(isinstance(part, LineRecord) for part in LineReader(io.BytesIO(data), "x")) == 9
        for end in range(0, len(data), 5):
            with pytest.raises(CorruptionError, match=r"^x, line \d+: "):
                list(LineReader(io.BytesIO(data[:end]), "x"))
        rng = random.Random(20260701)
        for at in range(0, len(data), 3):
            changed = bytearray(data)
            changed[at] ^= 1 << rng.randrange(8)
            with pytest.raises((CorruptionError, FormatVersionError)):
                list(LineReader(io.BytesIO(bytes(changed)), "x"))

    def test_other_versions_and_other_files(self, file: Path, scratch: Path, db: inmem.Database) -> None:
        other = scratch / "other.jsonl"
        other.write_bytes(file.read_bytes().replace(b'"version":1}', b'"version":2}', 1))
        with pytest.raises(FormatVersionError, match=r"line 1: .* version 2, this release reads 1") as caught:
            import_runs(db, other)
        assert (caught.value.found, caught.value.supported) == (2, 1)
        foreign = b'{"schema":"else","version":1}\n'
        for text in (b"", b"\n", b"{}\n", b"PK\x03\x04\n", foreign, b"[1]\n", b"1"):
            other.write_bytes(text)
            with pytest.raises(CorruptionError, match="line 1: "):
                import_runs(db, other)
        with pytest.raises(FileNotFoundError):
            import_runs(db, scratch / "absent.jsonl")

    def test_what_is_there_already(self, file: Path, db: inmem.Database) -> None:
        db.kv.put("b", "k", "else")
        with pytest.raises(RunExistsError, match="run b exists, and is not what") as caught:
            import_runs(db, file)
        assert caught.value.run_id == "b" and "--skip-existing" in caught.value.hint
        assert db.runs.list_runs() == []
        done = import_runs(db, file, skip_existing=True)
        assert (done.runs, done.skipped, done.unchanged) == (1, ["b"], [])
        assert db.kv.get("b", "k") == "else"
        again = import_runs(db, file, skip_existing=True)
        assert (again.runs, again.skipped, again.unchanged) == (0, ["b"], ["a"])
        db.runs.add_tags("a", ["more"])
        with pytest.raises(RunExistsError, match="run a exists"):
            import_runs(db, file)

    def test_a_deleted_run_does_not_come_back(self, file: Path, db: inmem.Database) -> None:
        db.kv.put("b", "k", 1)
        db.runs.delete_run("b")
        with pytest.raises(RunDeletedError) as caught:
            import_runs(db, file)
        assert caught.value.run_id == "b" and "--rename" in caught.value.hint
        assert db.runs.list_runs() == []
        assert import_runs(db, file, rename={"b": "b2"}).runs == 2

    def test_a_log_that_is_damaged_is_not_exported(self, db: inmem.Database, scratch: Path) -> None:
        # Another program may send whatever MessagePack can say: the bytes that were hashed are kept.
        from inmem.client.direct import commit_call

        prefix = db.namespace.run_prefix("raw")
        commit_call(db.engine.attachment, "event.append", [prefix, [[b"e", b"\xcd\x00\x07", 0]]], 10.0)
        data = exported(db, "raw")
        assert b'"encoded_payload":{"$bytes":"zQAH"}' in data
        with inmem.open(scratch / "target") as target:
            file = scratch / "raw.jsonl"
            file.write_bytes(data)
            import_runs(target, file)
            assert exported(target) == data and target.events.verify_chain("raw").is_valid
        commit_call(db.engine.attachment, "event.append", [prefix, [[b"e", b"\xc1", 0]]], 10.0)
        with pytest.raises(CorruptionError, match="run raw cannot be exported"):
            export_runs(db, scratch / "no.jsonl", ["raw"])
        assert not list(scratch.glob("*no.jsonl*"))


def damages(lines: list[bytes], at: int) -> dict[str, list[bytes]]:
    line, before, after = lines[at], lines[:at], lines[at + 1 :]
    digit = re.sub(rb"\d(?=\D*$)", lambda m: b"%d" % ((int(m[0]) + 1) % 10), line)
    found = {
        "gone": [*before, *after],
        "twice": [*before, line, line, *after],
        "cut": [*before, line[: len(line) // 2] + b"\n", *after],
        "a digit": [*before, digit, *after],
        "a field more": [*before, line[:-2] + b',"more":1}\n', *after],
        "no JSON": [*before, b"what is this?\n", *after],
        "blank": [*before, b"\n", line, *after],
    }
    if at + 1 < len(lines):
        found["swapped"] = [*before, lines[at + 1], line, *lines[at + 2 :]]
    return found


# --- whole or not at all ---------------------------------------------------------------------------

PROGRAM = [sys.executable, "-W", "error", "-c", "from inmem.cli import main; main()"]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("INMEM_")}


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    line = [*PROGRAM, *map(str, arguments)]
    done = subprocess.run(line, env=environment(), capture_output=True, timeout=100)
    assert done.returncode == code, done.stderr.decode()
    return done


def called(*arguments: object, code: int = 0) -> Any:
    """A command in this process: what it prints and how it ends."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


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
                assert db.events.len("large") == (0 if there is None else LARGE)
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
                return int(txn.events.len())

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
        assert unfinished_imports(db) == [] and db.events.len("large") == 0
        assert db.runs.list_runs() == ["before"] and db.kv.get("after", "k") == 1  # whole, as they come first


# --- how much it takes -------------------------------------------------------------------------------

MEASURE = """
import sys, threading, pathlib, time
import inmem, inmem.exchange as exchange
def resident():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1])
what, store, file = sys.argv[1:]
peak = base = resident()
def tell(*_):
    global peak
    peak = max(peak, resident())
if what == "export":
    report = exchange.export_runs(pathlib.Path(store), file, progress=tell)
else:
    with inmem.open(store) as db:
        report = exchange.import_runs(db, file, progress=tell)
tell()
print(report.events, peak - base)
"""


@pytest.mark.timeout(120 + EVENTS // 100)
def test_a_large_run_takes_no_memory_of_its_size(scratch: Path) -> None:
    """The file is several times larger than what either may use."""
    file = scratch / "big.jsonl"
    with inmem.open(scratch / "one") as db:
        db.runs.create_run(run_id="big")
        with db.pipeline() as p:
            for number in range(EVENTS):
                p.events.append("big", "step", {"n": number, "text": "x" * 3000})
        for what, store in (("export", "one"), ("import", "two")):
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, what, scratch / store, file],
                env=environment(), capture_output=True, text=True, timeout=100 + EVENTS // 100, check=True,
            )  # fmt: skip
            events, grown_kib = map(int, done.stdout.split())
            print(f"{what}: {events} events, {file.stat().st_size >> 20} MiB, grew by {grown_kib >> 10} MiB")
            assert events == EVENTS and grown_kib < 16 * 1024 < file.stat().st_size // 1024
    with inmem.open(scratch / "two") as db:
        assert db.events.verify_chain("big").length == EVENTS


# --- recorded runs -----------------------------------------------------------------------------------


class TestRecorded:
    def test_the_formats(self, db: inmem.Database, scratch: Path) -> None:
        swe, chats = recorded(scratch)
        assert import_recorded(db, swe, "swe-agent").new == 1
        assert import_recorded(db, [chats], "openai-chat").new == 2
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        sources: dict[str, Any] = {
            "one.json": {"model": "m", "messages": messages, "more": [1]}, "bare.json": messages,
            "list.json": [{"messages": messages, "id": "x"}, tau_run(task_id=3)],
        }
        for name, source in sources.items():
            (scratch / name).write_text(json.dumps(source))
        (scratch / "lines.jsonl").write_text(
            "\n".join(json.dumps({"messages": messages, "n": n}) for n in range(3)) + "\n\n"
        )
        files = [*(scratch / name for name in sources), scratch / "lines.jsonl"]
        report = import_recorded(db, files, "openai-chat")
        assert (report.files, report.new, report.rejected) == (4, 7, [])
        rebuilt = [rebuild((e.event_type, e.payload) for e in db.events.iter(run)) for run in report.run_ids]
        wanted = [sources["one.json"], messages, *sources["list.json"]]
        wanted += [{"messages": messages, "n": n} for n in range(3)]
        assert all(same(*pair) for pair in zip(rebuilt, wanted, strict=True))
        again = import_recorded(db, files, "openai-chat")
        assert (again.new, again.complete, again.steps) == (0, 7, 0)
        assert len(db.runs.query_runs(tags=["model:m"])) == 1

    def test_what_is_no_run_is_named(self, db: inmem.Database, scratch: Path) -> None:
        bad = scratch / "bad.jsonl"
        bad.write_text('{"messages": []}\n{"role": "user"}\nnot JSON\n{"messages": [{"role": "user"}]}\n')
        report = import_recorded(db, [bad, scratch / "absent.json"], "openai-chat")
        assert report.new == 1
        assert [one.source.rpartition("/")[2] for one in report.rejected] == [
            "bad.jsonl[0]", "bad.jsonl[1]", "bad.jsonl[2]", "absent.json"
        ]
        with pytest.raises(InvalidInputError, match="format must be one of"):
            import_recorded(db, [bad], "else")


    def test_the_names_beside_export_and_import_are_deprecated(self) -> None:
        for name in recorded_runs.__all__:
            with pytest.warns(DeprecationWarning, match=rf"inmem\.exchange\.{name} is deprecated"):
                assert getattr(inmem.exchange, name) is getattr(recorded_runs, name)
        assert not hasattr(inmem.exchange, "nothing_of_the_kind")


# --- the commands ------------------------------------------------------------------------------------


class TestCommands:
    @pytest.mark.parametrize("name", ["export", "import"])
    def test_help(self, name: str) -> None:
        assert f"Example: inmem {name} ./data" in called(name, "--help").stdout

    def test_there_and_back(self, scratch: Path) -> None:
        one, two, file = scratch / "one", scratch / "two", scratch / "f.jsonl"
        with inmem.open(one) as db:
            fill(db)
        done = command("export", one, "-o", file)
        assert done.stderr == b"" and b"4 runs" in done.stdout
        report = json.loads(command("import", two, file, "--json").stdout)[0]
        assert (report["runs"], report["unchanged"]) == (4, [])
        assert "there already, and the same: Archived, child" in called("import", two, file).stdout
        again = json.loads(called("export", two, "-o", scratch / "g.jsonl", "--json").stdout)
        assert again["runs"] == 4 and (scratch / "g.jsonl").read_bytes() == file.read_bytes()
        piped = subprocess.run(
            [*PROGRAM, "import", "-", "--rename", "child=kid"], input=file.read_bytes(),
            env=environment() | {"INMEM_PATH": str(two)}, capture_output=True, timeout=60,
        )  # fmt: skip
        assert piped.returncode == 0, piped.stderr
        some = subprocess.run(
            [*PROGRAM, "export", "kid", "-o", "-"], env=environment() | {"INMEM_PATH": str(two)},
            capture_output=True, timeout=60,
        )  # fmt: skip
        assert some.stdout.count(b'"run_id":"kid"') == 2 and some.stderr.count(b"\n") == 1

    def test_failures_are_one_line_with_a_hint(self, scratch: Path) -> None:
        store, file = scratch / "one", scratch / "f.jsonl"
        with inmem.open(store) as db:
            db.kv.put("r", "k", 1)
        called("export", store, "-o", file)
        with inmem.open(store) as db:
            db.kv.put("r", "k", 2)
        for arguments, text in (
            (("import", store, file), "run r exists, and is not what"),
            (("import", store, "--discard", "r"), "no import of run r is unfinished"),
            (("export", store, "nobody", "-o", file), "there is no run nobody"),
            (("export", scratch / "nothing", "-o", file), "holds no inmem database"),
            (("import", store, scratch / "absent"), "No such file"),
            (("export", store, "-o", scratch / "no" / "f"), "No such file"),
        ):
            done = called(*arguments, code=1)
            assert text in done.stderr and done.stderr.count("\n") == 1, done.stderr
            assert done.stdout == ""
            document = json.loads(called(*arguments, "--json", code=1).stdout)
            assert text in document["error"]["message"] and document["error"]["hint"]
        for wrong in (("export", store), ("import", store), ("import", store, file, "--format", "x")):
            called(*wrong, code=2)

    def test_what_is_no_file_is_written_to_and_a_link_is_followed(self, scratch: Path) -> None:
        with inmem.open(scratch / "one") as db:
            db.kv.put("r", "k", 1)
            os.mkfifo(scratch / "pipe")
            reader = threading.Thread(target=lambda: read.append((scratch / "pipe").read_bytes()))
            read: list[bytes] = []
            reader.start()
            export_runs(db, scratch / "pipe")
            reader.join()
            (scratch / "link").symlink_to("f.jsonl")
            export_runs(db, scratch / "link")
        assert (scratch / "link").is_symlink() and (scratch / "f.jsonl").read_bytes() == read[0]
        assert b'"kind":"close"' in read[0]

    def test_ctrl_c_leaves_no_file(self, scratch: Path) -> None:
        store = scratch / "one"
        with inmem.open(store) as db:
            with db.pipeline() as p:
                for number in range(20_000):
                    p.kv.put("r", f"{number}", number)
            process = subprocess.Popen(
                [*PROGRAM, "export", str(store), "-o", str(scratch / "f.jsonl")], env=environment(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            wait_until(lambda: list(scratch.glob(".f.jsonl.*")) or process.poll() is not None, "it has begun")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (0, 130)
        assert not list(scratch.glob(".f.jsonl.*"))
        assert (scratch / "f.jsonl").exists() is (process.returncode == 0)

    def test_recorded_runs(self, scratch: Path) -> None:
        swe, chats = recorded(scratch)
        store = scratch / "one"
        assert "1 new runs" in called("import", store, *swe, "--format", "swe-agent").stdout
        done = called("import", store, chats, *swe, "--format", "openai-chat", code=1)
        assert "2 new runs" in done.stdout and "a.traj is no recorded run" in done.stderr
        assert "--format is deprecated" in done.stderr
