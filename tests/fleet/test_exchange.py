"""Export and import with real processes: equal to the byte, refused by the line, whole or not at all.

INMEM_TEST_EVENTS makes the large run longer (default 10,000 events).
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exchanging import command, environment, exported, fill, recorded
from support import control_state, stop_writer, wait_until, writer_pid

import inmem
from inmem.errors import (
    CorruptionError,
    FormatVersionError,
    InvalidInputError,
    RunDeletedError,
    RunExistsError,
    RunNotFoundError,
)
from inmem.exchange import count_runs, export_runs, import_runs, unfinished_imports
from inmem.exchange.line_reader import LineReader, LineRecord
from inmem.exchange.recorded import import_recorded
from inmem.keys import Namespace
from workers.judge.values import same

EVENTS = int(os.environ.get("INMEM_TEST_EVENTS", "10000"))
GOLDEN = Path(__file__).parent / "export_v1.jsonl"  # what `fill` makes, from the first release that exports


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
        other.write_bytes(file.read_bytes().replace(b'"version":1}', b'"version":3}', 1))
        with pytest.raises(FormatVersionError, match=r"line 1: .* version 3, this release reads 2") as caught:
            import_runs(db, other)
        assert (caught.value.found, caught.value.supported) == (3, 2)
        foreign = b'{"schema":"else","version":1}\n'
        for text in (b"", b"\n", b"{}\n", b"PK\n", foreign, b"[1]\n", b"1"):
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
