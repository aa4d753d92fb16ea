"""Queues in checks, index repair, exports, imports, backups, recovery and salvage."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import control_state, kill_writer, stop_writer

import inmem
from inmem.errors import CorruptionError, JobLostError
from inmem.exchange import export_runs, import_runs
from inmem.keys import Key, Namespace, TypeTag
from inmem.maintenance.backup import backup
from inmem.maintenance.check import check
from inmem.maintenance.check_report import check_in_process
from inmem.maintenance.restore import restore
from inmem.maintenance.salvage import salvage
from inmem.primitives.queues import rules
from inmem.record import pack
from inmem.storage.environment import Table
from inmem.storage.store import Store
from inmem.storage.wal.files import segment_files
from inmem.storage.wal.format import DELETE, PUT

RUN = "run"
PREFIX = Namespace().run_prefix(RUN)
STATES = ("ready", "delayed", "claimed", "dead", "done")


def fill(db: inmem.Database, run_id: str = RUN) -> dict[str, Any]:
    """A queue with a job in each state, one of each with a key; the jobs that are claimed."""
    queues = db.run(run_id).queues
    held = {}
    for number, state in enumerate(STATES):
        for key in (None, f"key-{state}"):
            delay_s = 1000 if state == "delayed" else 0
            queues.put("mail", {"n": number}, delay_s=delay_s, key=key, priority=9 - number, max_attempts=3)
            if state in ("claimed", "dead", "done"):
                job = queues.claim("mail", lease_s=1000, worker="w")
                assert job is not None
                if state == "claimed":
                    held[job.id] = job
                elif state == "dead":
                    queues.nack(job, error="broke", retry=False)
                else:
                    queues.ack(job, ["result", number])
    queues.put("empty", 1)
    queues.purge("empty")
    return held


# Jobs are claimed in the order of their priority: what was put first is claimed first.
def shown(db: inmem.Database, run_id: str = RUN) -> Any:
    """All that queues say of themselves."""
    queues = db.run(run_id).queues
    jobs = [info for n in range(12) if (info := queues.get(f"mail/{n}")) is not None]
    return (
        queues.list(), jobs, queues.counts("mail"), queues.peek("mail", limit=9), queues.dead("mail"),
    )


def still_works(db: inmem.Database, held: dict[str, Any] | None, run_id: str = RUN) -> None:
    """Claims hold, keys are taken, numbers go on, and jobs come in their order."""
    queues = db.run(run_id).queues
    info = {state: [j for j in shown(db, run_id)[1] if j.state == state] for state in STATES}
    keyed = [job for state in ("ready", "delayed", "claimed") for job in info[state] if job.key]
    assert [queues.put("mail", 1, key=job.key) for job in keyed] == [job.id for job in keyed]
    assert queues.put("mail", "new", priority=-9) == "mail/10" and queues.put("empty", 1) == "empty/1"
    for job in (held or {}).values():
        queues.ack(job)
    order = [job.id for job in queues.peek("mail", limit=9)]
    assert [job.id for job in queues.claim_many("mail", 9)] == order
    queues.requeue(info["dead"][0].id)
    assert db.check().problems == []


def damage(path: Path, *ops: tuple[Any, ...]) -> None:
    """Change the image that a killed writer has left."""
    store = Store(Path(control_state(path).image), max_readers=1024, quota_bytes=1 << 30)
    txn = store.begin()
    txn.apply(ops)
    assert store.position is not None
    txn.publish(store.position)
    store.close()


@pytest.fixture
def killed(store_path: Path) -> tuple[Path, Any, dict[str, Any]]:
    """A store whose writer was killed, what it shows, and its claimed jobs."""
    with inmem.open(store_path) as db:
        held = fill(db)
        assert db.check().problems == []
        before = shown(db)
    kill_writer(store_path)
    return store_path, before, held


def place(tag: int, number: int) -> bytes:
    return rules.head_of(PREFIX, tag, b"mail") + rules.number_bytes(number)


class TestCheckAndRepair:
    def test_nothing_is_wrong_with_what_is_right(self, db: inmem.Database) -> None:
        fill(db)
        report = db.check()
        assert report.problems == []
        assert db.repair_indices(RUN).added == db.repair_indices(RUN).removed == 0

    @pytest.mark.parametrize("tag", [
        TypeTag.JOB_READY, TypeTag.JOB_DUE, TypeTag.JOB_CLAIMED, TypeTag.JOB_DEAD, TypeTag.JOB_BY_KEY
    ])  # fmt: skip
    @pytest.mark.parametrize("kind", ["removed", "added"])
    def test_a_damaged_order_is_found_and_repaired(
        self, killed: tuple[Path, Any, dict[str, Any]], tag: int, kind: str
    ) -> None:
        path, before, held = killed
        with inmem.open(path) as db:
            start, end = rules.span_of(PREFIX, tag, b"mail")
            entry = db.engine.latest().scan(start, end, limit=1)[0][0]
        kill_writer(path)
        if kind == "removed":
            damage(path, (DELETE, int(Table.DATA), entry))
        else:
            damage(path, (PUT, int(Table.DATA), entry[:-8] + rules.number_bytes(77), pack(1, 1, 0, b"")))
        (problem,) = check_in_process(path).problems
        assert f"the index {TypeTag(tag).name} has" in problem
        with inmem.open(path) as db:
            report = db.repair_indices(RUN)
            assert (report.added, report.removed) == ((1, 0) if kind == "removed" else (0, 1))
            assert db.check().problems == [] and shown(db) == before
            still_works(db, held)

    @pytest.mark.parametrize("tag", [TypeTag.JOB_READY, TypeTag.JOB_DUE, TypeTag.JOB_CLAIMED])
    @pytest.mark.parametrize("number", [77, 4, 8])  # none, one that is claimed or dead, and one that is done
    def test_a_claim_passes_over_what_an_order_has_without_need(
        self, killed: tuple[Path, Any, dict[str, Any]], tag: int, number: int
    ) -> None:
        """Or two workers would have one job, or none would get any."""
        path, before, held = killed
        rank = bytes(4) if tag == TypeTag.JOB_READY else (1).to_bytes(8, "big")
        stray = rules.head_of(PREFIX, tag, b"mail") + rank + rules.number_bytes(number)
        damage(path, (PUT, int(Table.DATA), stray, pack(1, 1, 0, b"")))
        with inmem.open(path) as db:
            ready = [job.id for job in before[1] if job.state == "ready"]
            assert [job.id for job in db.queues.claim_many(RUN, "mail", 9)] == ready
            assert db.check().problems == []
            assert db.queues.claim(RUN, "mail") is None
            for job in held.values():
                db.queues.ack(job)

    @pytest.mark.parametrize("payload", [
        b"", bytes(20), rules.JobState(9, 0, 0, 1, 0, 0, 0, b"", "", []).pack(),
        rules.JobState(0, 0, 0, 1, 0, 0, 0, b"", "", [])._replace(key="text").pack(),  # type: ignore[arg-type]
        rules.JobState(0, 0, 0, 1, 0, 0, 0, b"", "", [])._replace(errors=[1]).pack(),  # type: ignore[list-item]
        rules.JobState(0, 0, 0, 1, 0, 0, 0, b"", "", []).pack() + b"\xc0",
    ])  # fmt: skip
    def test_a_damaged_state_is_found_and_never_misread(
        self, killed: tuple[Path, Any, dict[str, Any]], payload: bytes
    ) -> None:
        path = killed[0]
        key = place(TypeTag.JOB_STATE, 0)
        damage(path, (PUT, int(Table.DATA), key, pack(1, 1, 0, payload)))
        problems = check_in_process(path).problems
        assert any(problem.startswith(f"{Key(key)!r}: does not decode") for problem in problems)
        with inmem.open(path) as db:
            with pytest.raises(CorruptionError, match="job mail/0"):
                db.queues.get(RUN, "mail/0")
            with pytest.raises(CorruptionError):
                db.repair_indices(RUN)
            with pytest.raises(CorruptionError):
                export_runs(db, io.BytesIO())
            assert db.queues.get(RUN, "mail/3") is not None

    def test_a_state_that_says_something_else_has_its_orders_mended(
        self, killed: tuple[Path, Any, dict[str, Any]]
    ) -> None:
        path = killed[0]
        state = rules.JobState(rules.DEAD, 5, 1, 3, 0, 7, 0, b"", "w", ["damaged"])
        damage(path, (PUT, int(Table.DATA), place(TypeTag.JOB_STATE, 0), pack(1, 1, 0, state.pack())))
        assert len(check_in_process(path).problems) == 2
        with inmem.open(path) as db:
            report = db.repair_indices(RUN)
            assert (report.added, report.removed) == (1, 1) and db.check().problems == []
            assert db.queues.dead(RUN, "mail")[0].errors == ("damaged",)
            db.queues.requeue(RUN, "mail/0")
            assert db.queues.get(RUN, "mail/0").state == "ready"  # type: ignore[union-attr]

    @pytest.mark.parametrize(("tag", "record"), [
        (TypeTag.JOB, b"short"), (TypeTag.JOB, bytes(8) + b"\xc1"),
        (TypeTag.JOB_QUEUE, bytes(7)), (TypeTag.JOB_QUEUE, bytes(9)),
    ])
    def test_damaged_records_are_found(
        self, killed: tuple[Path, Any, dict[str, Any]], tag: int, record: bytes
    ) -> None:
        key = rules.queue_key(PREFIX, b"mail") if tag == TypeTag.JOB_QUEUE else place(tag, 1)
        damage(killed[0], (PUT, int(Table.DATA), key, pack(1, 1, 0, record)))
        (problem,) = check_in_process(killed[0]).problems
        assert problem.startswith(f"{Key(key)!r}: ")

    @pytest.mark.parametrize("tag", [TypeTag.JOB, TypeTag.JOB_STATE])
    def test_half_of_a_job_is_found(self, killed: tuple[Path, Any, dict[str, Any]], tag: int) -> None:
        damage(killed[0], (DELETE, int(Table.DATA), place(tag, 1)))
        problems = check_in_process(killed[0]).problems
        states, bodies = (9, 10) if tag == TypeTag.JOB_STATE else (10, 9)
        counts = f"{states} records JOB_STATE and {bodies} JOB"
        assert any(f"there are {counts}, or of others" in problem for problem in problems)


class TestCopies:
    def test_a_killed_writer_is_recovered(self, killed: tuple[Path, Any, dict[str, Any]]) -> None:
        path, before, held = killed
        with inmem.open(path) as db:
            assert shown(db) == before
            still_works(db, held)

    def test_a_clean_stop_and_a_checkpoint(self, store_path: Path) -> None:
        with inmem.open(store_path) as db:
            held = fill(db)
            db.checkpoint()
            before = shown(db)
        stop_writer(store_path)
        with inmem.open(store_path) as db:
            assert shown(db) == before
            still_works(db, held)

    def test_backup_and_restore(self, store_path: Path, scratch: Path) -> None:
        with inmem.open(store_path) as db:
            held = fill(db)
            before = shown(db)
        stop_writer(store_path)
        backup(store_path, scratch / "file")
        assert check(scratch / "file").problems == []
        restore(scratch / "file", scratch / "new")
        with inmem.open(scratch / "new") as db:
            assert shown(db) == before
            still_works(db, held)

    def test_salvage(self, store_path: Path, scratch: Path) -> None:
        def size() -> int:
            return sum(file.stat().st_size for _, file in segment_files(store_path / "wal"))

        with inmem.open(store_path) as db:
            held = fill(db)
            before = shown(db)
            start = size()
            db.queues.put(RUN, "mail", "damaged")
            hole = size() - 10
            db.queues.put("other", "mail", "lost")
        stop_writer(store_path)
        ((_, log),) = segment_files(store_path / "wal")
        data = bytearray(log.read_bytes())
        assert start < hole < len(data)
        data[hole] ^= 0xFF
        log.write_bytes(data)
        report = salvage(store_path, scratch / "new")
        assert report.problems == []
        assert {kind for kinds in report.lost_runs.values() for kind in kinds} == {"job", "queue"}
        with inmem.open(scratch / "new") as db:
            assert shown(db) == before
            still_works(db, held)


def exported(db: inmem.Database, *runs: str) -> bytes:
    out = io.BytesIO()
    export_runs(db, out, [*runs] or None)
    return out.getvalue()


class TestExchange:
    def test_there_and_back_equal_to_the_byte(self, scratch: Path) -> None:
        file = scratch / "1.jsonl"
        with inmem.open(scratch / "one") as one, inmem.open(scratch / "two") as two:
            held = fill(one)
            one.queues.put("other", "q", "x" * 100_000)
            report = export_runs(one, file)
            assert (report.counts["jobs"], report.counts["queues"]) == (11, 3)
            assert import_runs(two, file).counts == report.counts
            assert exported(two) == file.read_bytes()
            assert import_runs(two, file).unchanged == ["other", RUN]
            assert shown(two) == shown(one)
            import_runs(two, file, rename={RUN: "copy"})
            assert shown(two, "copy")[2] == shown(one)[2]
            with pytest.raises(JobLostError):  # of the first store, and nobody's in the second
                two.queues.ack(next(iter(held.values())))
            still_works(two, None)
            still_works(one, held)
        head, *lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert head == {"schema": "inmem-export", "version": 2}
        (end,) = [line for line in lines if line["kind"] == "end" and line["run_id"] == RUN]
        assert (end["jobs"], end["queues"]) == (10, 2)

    def test_runs_without_queues_are_of_the_first_version(self, db: inmem.Database) -> None:
        fill(db)
        db.kv.put("plain", "k", 1)
        assert b'"version":1' in exported(db, "plain").partition(b"\n")[0]
        assert b'"version":2' in exported(db, RUN).partition(b"\n")[0]

    def test_a_job_that_no_worker_can_have_yet(self, db: inmem.Database) -> None:
        """What is claimed stays claimed in a copy until the claim runs out."""
        db.queues.put(RUN, "q", 1)
        db.queues.claim(RUN, "q", lease_s=0.05)
        with inmem.open() as other:
            import_runs(other, io.BytesIO(exported(db)))
            job = other.queues.claim(RUN, "q", wait_s=30)
            assert job is not None and job.attempt == 2

    CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
        "state": lambda job: job.update(state="gone"),
        "priority": lambda job: job.update(priority=1 << 31),
        "attempt": lambda job: job.update(attempt=1 << 16),
        "max_attempts": lambda job: job.update(max_attempts=0),
        "number": lambda job: job.update(number=-1),
        "queue": lambda job: job.update(queue="q" * 101),
        "key": lambda job: job.update(key="k" * 201),
        "errors": lambda job: job.update(errors="broke"),
        "worker": lambda job: job.update(worker=5),
        "time": lambda job: job.update(time=-1),
        "token": lambda job: job.update(token=1.5),
        "enqueued_at": lambda job: job.update(enqueued_at=None),
        "payload": lambda job: job.update(payload={"$x": 1}),
        "one more": lambda job: job.update(more=1),
        "one less": lambda job: job.pop("time"),
        "too many errors": lambda job: job.update(errors=["e"] * 9),
        "no error": lambda job: job.update(errors=[5]),
    }

    @pytest.mark.parametrize("change", CHANGES)
    def test_lines_that_no_export_writes_are_refused(self, db: inmem.Database, change: str) -> None:
        fill(db)
        lines = exported(db).splitlines()
        at = next(n for n, line in enumerate(lines) if b'"kind":"job"' in line)
        document = json.loads(lines[at])
        self.CHANGES[change](document)
        lines[at] = json.dumps(document, separators=(",", ":")).encode()
        with inmem.open() as other:
            with pytest.raises(CorruptionError, match=f"line {at + 1}"):
                import_runs(other, io.BytesIO(b"\n".join(lines) + b"\n"))
            assert other.queues.list(RUN) == []

    def test_jobs_out_of_order_and_twice_are_refused(self, db: inmem.Database) -> None:
        fill(db)
        lines = exported(db).splitlines()
        jobs = [n for n, line in enumerate(lines) if b'"kind":"job"' in line]
        for first, second in ((jobs[1], jobs[0]), (jobs[0], jobs[0])):
            changed = [*lines]
            changed[jobs[0]], changed[jobs[1]] = lines[first], lines[second]
            with inmem.open() as other, pytest.raises(CorruptionError):
                import_runs(other, io.BytesIO(b"\n".join(changed) + b"\n"))
