"""The check: silent about what is right, whatever goes on; and every kind of damage has its line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checking import fill, problem_of
from support import control_state, stop_writer, wait_until

import inmem
from inmem.errors import CorruptionError, InvalidInputError
from inmem.keys import TypeTag
from inmem.maintenance import check_report as reports
from inmem.maintenance import log_check as logs
from inmem.maintenance import prefix_check as prefixes
from inmem.maintenance import table_check as tables
from inmem.maintenance.check import check
from inmem.maintenance.check_report import CheckReport, check_in_process
from inmem.storage.wal.files import segment_files

CONFIG = Path(__file__).parents[2] / "config" / "test.toml"  # segments of 64 KiB
RUN = "run-1"
# KV, events with their index, a cell; two traces with type, parent and time each, and three tags;
# two runs with their status, a tag each, and one parent; what is left of gone-1: an entry and a mark.
RECORDS = 2 * (10 + 24 + 1 + 2 + 6 + 3 + 1 + 2) + 1 + 2


@pytest.fixture
def stopped(store_path: Path) -> Path:
    """A store whose writer has left cleanly: the log is all there is."""
    fill(store_path)
    stop_writer(store_path)
    return store_path


def entries(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*")}


class TestNothingWrong:
    @pytest.mark.parametrize("durability", ["memory", "buffered", "sync"])
    def test_a_served_store(self, store_path: Path, durability: str) -> None:
        fill(store_path, durability=durability)
        with inmem.open(store_path) as db:
            report = db.check()
        assert report.ok and report.problems == [] and report.notes == []
        assert (report.records, report.logs, report.events) == (RECORDS, 2, 24)
        assert report.version > 0
        assert (report.wal_records > 0) is (durability != "memory")

    def test_a_stopped_store(self, stopped: Path) -> None:
        before = entries(stopped)
        report = check_in_process(stopped)
        assert report.problems == []
        assert report.notes == ["no image in memory: the log was replayed into a private one"]
        assert (report.records, report.logs, report.events) == (RECORDS, 2, 24)
        assert entries(stopped) == before

    def test_a_store_whose_writer_was_killed(self, killed: Path) -> None:
        before, image = entries(killed), Path(control_state(killed).image)
        report = check_in_process(killed)
        assert report.problems == [] and report.notes == []
        assert report.events == 24
        assert entries(killed) == before and image.is_dir()

    def test_a_memory_store_that_has_ended(self, store_path: Path) -> None:
        fill(store_path, durability="memory")
        stop_writer(store_path)
        report = check(store_path)
        assert report.ok and report.records == 0
        assert "nothing to check" in report.notes[0]

    def test_an_empty_store_and_one_without_a_writer_ever(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            assert db.check() == replace(db.check(), records=0, problems=[])
        stop_writer(store_path)
        assert check(store_path).problems == []

    def test_a_copy_is_judged_by_its_own_log_and_not_by_the_original_s_image(
        self, killed: Path, scratch: Path
    ) -> None:
        copy = scratch / "copy"
        shutil.copytree(killed, copy)
        with inmem.open(killed) as db:
            db.kv.put(RUN, "only", "in the original")
            report = check(copy)
        assert report.problems == []
        assert report.notes == [
            "the image in memory belongs to another database, boot or directory: "
            "the log was replayed into a private one"
        ]
        assert report.records == RECORDS

    def test_leftovers_of_expiry_are_no_problem(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            for ttl in (100, 200, None, 300):
                db.kv.put(RUN, "again and again", 1, ttl=ttl)
            db.kv.put(RUN, "dropped", 1, ttl=100)
            db.kv.delete(RUN, "dropped")
            assert db.check().problems == []

    def test_expiring_keys_are_kept_in_memory_only_if_one_is_missing(
        self, store_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(store_path)
        monkeypatch.setattr(tables.TableCheck, "_name_missing", lambda *_: pytest.fail("none is missing"))
        assert check(store_path).ok


class TestWhileCommitsGoOn:
    def test_writes_rotations_and_expiry_raise_no_alarm(self, store_path: Path) -> None:
        """Each check meets a log that grows, segments that begin, an image that moves on."""
        done = threading.Event()
        failures: list[BaseException] = []
        with inmem.open(store_path, config=CONFIG) as db:

            def write(name: str) -> None:
                n = 0
                try:
                    while not done.is_set():
                        with db.transaction(name) as txn:
                            txn.kv.put(f"key-{n % 50}", "x" * 500, ttl=None if n % 2 else 0.05)
                            txn.events.append(f"type-{n % 3}", n)
                        n += 1
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=write, args=(f"run-{i}",)) for i in range(2)]
            for thread in threads:
                thread.start()
            try:
                reports = [db.check()]
                segments = len(segment_files(store_path / "wal"))
                wait_until(
                    lambda: len(segment_files(store_path / "wal")) > segments + 1 or failures, "a new segment"
                )
                reports += [db.check() for _ in range(3)]
            finally:
                done.set()
                for thread in threads:
                    thread.join()
        assert failures == []
        assert [report.problems for report in reports] == [[]] * 4
        versions = [report.version for report in reports]
        assert versions == sorted(versions) and versions[0] < versions[-1]

    def test_the_snapshot_is_renewed_between_runs(
        self, store_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is committed behind the check's back into runs to come is seen, and right."""
        monkeypatch.setattr("inmem.reading.source._RENEW_S", 0.0)
        fill(store_path)
        with inmem.open(store_path) as db:
            db.events.append("run-3", "before")
            taken: list[str] = []
            close = prefixes.PrefixCheck.finish

            def finish(run: Any) -> list[str]:
                if run.prefix.endswith(b"run-1"):
                    taken.append(db.events.append("run-3", "meanwhile").hash.hex())
                return close(run)

            monkeypatch.setattr(prefixes.PrefixCheck, "finish", finish)
            report = check(store_path)
        assert len(taken) == 1
        assert report.problems == []
        assert (report.events, report.logs) == (26, 3)

    def test_a_snapshot_is_not_renewed_within_a_run(
        self, store_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Events and their index are compared at one moment, or they could not be."""
        monkeypatch.setattr("inmem.reading.source._RENEW_S", 0.0)
        fill(store_path)
        with inmem.open(store_path) as db:
            appended: list[int] = []
            take = prefixes.PrefixCheck.take

            def taking(run: Any, tag: int, rest: bytes, record: bytes) -> str | None:
                if tag == TypeTag.EVENT_BY_TYPE and rest.endswith(bytes(8)):
                    db.events.append(run.prefix.decode().rpartition("/")[2], "meanwhile")
                    appended.append(1)
                return take(run, tag, rest, record)

            monkeypatch.setattr(prefixes.PrefixCheck, "take", taking)
            report = check(store_path)
            assert len(appended) == 2 and db.events.count(RUN) == 13
        assert report.problems == []
        assert report.events == 24

    def test_a_torn_tail_of_a_write_under_way_is_read_again(
        self, store_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(store_path)
        readings: list[int] = []
        real = logs.scan

        def scan(*arguments: Any) -> Any:
            readings.append(1)
            if len(readings) < 3:
                raise CorruptionError("the file became shorter while it was read")
            return real(*arguments)

        monkeypatch.setattr(logs, "scan", scan)
        with inmem.open(store_path):
            assert check(store_path).problems == []
        assert len(readings) == 3

    def test_a_live_log_that_stays_wrong_is_wrong(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            db.kv.put(RUN, "key", "x" * 200)
            db.sync()
            db.kv.put(RUN, "key", "y" * 200)
            flip(segment_files(store_path / "wal")[0][1], 200)
            assert "wrong checksum" in problem_of(db.check())


def flip(file: Path, offset: int) -> None:
    """One bit."""
    with file.open("r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 0x10]))


class TestDamagedLog:
    def test_a_flipped_bit_in_the_middle(self, stopped: Path) -> None:
        file = segment_files(stopped / "wal")[0][1]
        flip(file, file.stat().st_size // 2)
        assert str(file) in check_in_process(stopped).problems[0]

    def test_a_flipped_bit_before_what_a_later_record_says_is_durable(self, store_path: Path) -> None:
        with inmem.open(store_path, durability="sync") as db:
            for n in range(20):
                db.kv.put(RUN, "key", n)
        stop_writer(store_path)
        file = segment_files(store_path / "wal")[0][1]
        flip(file, file.stat().st_size // 2)
        assert "says that version" in problem_of(check_in_process(store_path))

    def test_a_flipped_bit_in_the_last_record(self, stopped: Path) -> None:
        file = segment_files(stopped / "wal")[0][1]
        flip(file, file.stat().st_size - 3)
        first, second = check(stopped).problems
        assert "torn tail" in first and "left cleanly" in first
        assert "was durable" in second

    def test_a_missing_end(self, stopped: Path) -> None:
        file = segment_files(stopped / "wal")[0][1]
        os.truncate(file, file.stat().st_size - 10)
        assert len(check(stopped).problems) == 2

    @pytest.mark.parametrize("what", ["segment", "directory"])
    def test_no_log_at_all(self, stopped: Path, what: str) -> None:
        for _, file in segment_files(stopped / "wal"):
            file.unlink()
        if what == "directory":
            (stopped / "wal").rmdir()
        report = check_in_process(stopped)
        assert any("was durable" in p or "No such file" in p for p in report.problems), report

    def test_a_missing_segment(self, store_path: Path) -> None:
        with inmem.open(store_path, config=CONFIG) as db:
            for n in range(400):
                db.kv.put(RUN, f"key-{n}", "x" * 500)
        stop_writer(store_path)
        segments = segment_files(store_path / "wal")
        assert len(segments) > 2
        segments[1][1].unlink()
        assert "is missing" in problem_of(check(store_path))

    def test_a_torn_tail_after_a_kill_is_only_noted(self, killed: Path) -> None:
        file = segment_files(killed / "wal")[0][1]
        with file.open("ab") as f:
            f.write(b"\xf1WR\x0dhalf a rec")
        report = check(killed)
        assert report.problems == []
        assert "torn tail of 14 bytes" in report.notes[0]

    def test_a_log_that_ends_before_the_image(self, killed: Path) -> None:
        file = segment_files(killed / "wal")[0][1]
        os.truncate(file, file.stat().st_size // 2)
        report = check(killed)
        assert any("at which the image stands" in problem for problem in report.problems)


class TestTheProcess:
    def test_no_database(self, scratch: Path) -> None:
        with pytest.raises(InvalidInputError, match="holds no inmem database"):
            check_in_process(scratch / "nothing")
        assert not (scratch / "nothing").exists()

    def test_a_damaged_identity_is_an_error_with_its_fields(self, stopped: Path) -> None:
        (stopped / "settings.json").write_text("{}")
        with pytest.raises(CorruptionError) as caught:
            check_in_process(stopped)
        assert caught.value.file == str(stopped / "settings.json") and caught.value.offset == 0
        shutil.rmtree(stopped)

    def test_what_an_older_release_left_is_removed_by_the_next_open(self, stopped: Path) -> None:
        child = subprocess.Popen(["true"])
        child.wait()
        dead, alive = stopped / f"check-{child.pid}.scratch", stopped / "check-1.scratch"
        for path in (dead, alive):
            path.mkdir()
            (path / "data.mdb").touch()
        (stopped / ".settings.json.1.tmp").touch()
        with inmem.open(stopped):
            assert not dead.exists() and alive.exists()
        assert not list(stopped.glob(".*"))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_an_interrupted_check_leaves_nothing(self, stopped: Path, number: int) -> None:
        before = entries(stopped)
        code = (
            "import sys, time; from pathlib import Path; from inmem.maintenance import check as m\n"
            "m.TableCheck.run = lambda self: (print('here', flush=True), time.sleep(60))\n"
            "sys.exit(m.main(Path(sys.argv[1])))"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(stopped)], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            assert entries(stopped) == before
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 128 + number and out == b""
        assert entries(stopped) == before

    def test_a_check_that_dies_of_what_it_reads_is_a_finding(
        self, stopped: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def dies(number: int) -> Callable[[], None]:
            code = f"import os; os.kill(os.getpid(), {number})"
            return lambda: monkeypatch.setattr(reports, "_PROGRAM", ["-c", code])

        dies(signal.SIGSEGV)()
        assert "SIGSEGV" in problem_of(check_in_process(stopped))
        dies(signal.SIGKILL)()
        with pytest.raises(inmem.InmemError, match="ended with status -9"):
            check_in_process(stopped)

    def test_the_document_is_the_report(self, stopped: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "inmem.maintenance", "check", str(stopped)],
            capture_output=True, check=True,
        )  # fmt: skip
        assert CheckReport(**json.loads(done.stdout)) == check(stopped)
        assert done.stderr == b""
