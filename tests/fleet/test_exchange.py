"""Export and import with real processes: equal to the byte, refused by the line, whole or not at all.

INMEM_TEST_EVENTS makes the large run longer (default 10,000 events).
"""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exchanging import command, environment
from exporting import exported, fill, fill_little
from support import control_state, stop_writer, writer_pid

import inmem
from inmem.errors import (
    CorruptionError,
    FormatVersionError,
    InvalidInputError,
)
from inmem.exchange import count_runs, export_runs, import_runs, unfinished_imports
from inmem.exchange.line_reader import LineReader, LineRecord

EVENTS = int(os.environ.get("INMEM_TEST_EVENTS", "10000"))
GOLDEN = Path(__file__).parent / "export_v1.jsonl"  # what `fill` makes, from the first release that exports


@pytest.fixture
def two(scratch: Path) -> Iterator[tuple[inmem.Database, inmem.Database]]:
    with inmem.open(scratch / "one") as one, inmem.open(scratch / "two") as two:
        yield one, two


class TestRoundTrip:
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

class TestRefused:
    @pytest.fixture
    def file(self, scratch: Path) -> Path:
        with inmem.open(scratch / "source") as db:
            fill_little(db)
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
