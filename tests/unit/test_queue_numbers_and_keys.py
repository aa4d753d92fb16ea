"""What jobs must agree on with their queue and each other: in imports, in checks, and when it is damaged."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from support import kill_writer
from test_queue_storage import PREFIX, RUN, damage, exported, place

import inmem
from inmem.changes import DELETE, PUT, Table
from inmem.client.attachment import Attachment
from inmem.client.direct import commit_call
from inmem.engines.local import attachment_of
from inmem.errors import CorruptionError, InvalidInputError, InvariantError
from inmem.exchange import export_runs, import_runs
from inmem.keys import TypeTag
from inmem.maintenance.check_report import check_in_process
from inmem.primitives.queues import rules
from inmem.record import pack

Lines = list[dict[str, Any]]
DATA = int(Table.DATA)


def written(lines: Lines) -> bytes:
    """An export of these lines, whose counts and checksums are right."""
    def text(line: dict[str, Any]) -> bytes:
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    head, run, *body, end, close = lines
    for counted, kind in (("jobs", "job"), ("queues", "queue")):
        count = sum(line["kind"] == kind for line in body)
        end.pop(counted, None)
        if count:
            end[counted] = count
    of_run = b"".join(map(text, [run, *body]))
    end["checksum"] = xxhash.xxh3_128_hexdigest(of_run)
    whole = text(head) + of_run + text(end)
    return whole + text(close | {"checksum": xxhash.xxh3_128_hexdigest(whole)})


@pytest.fixture
def lines(scratch: Path) -> Lines:
    """The lines of an export: a queue with a ready job, one that is claimed, and one with a key."""
    with inmem.open(scratch / "source") as db:
        queues = db.run(RUN).queues
        queues.put("mail", 0)
        queues.put("mail", 1, priority=1)
        queues.put("mail", 2, key="k")
        assert queues.claim("mail") is not None
        lines = [json.loads(line) for line in exported(db).splitlines()]
    assert [line.get("number", line.get("next")) for line in lines[2:-2]] == [3, 0, 1, 2]
    return lines


class TestImports:
    def test_what_was_exported_is_taken(self, db: inmem.Database, lines: Lines) -> None:
        import_runs(db, io.BytesIO(written(lines)))
        assert db.queues.put(RUN, "mail", 3) == "mail/3"
        assert db.queues.put(RUN, "mail", 3, key="k") == "mail/2"
        assert db.check().problems == []

    CHANGES: dict[str, Callable[[Lines], Any]] = {
        "its next number is that of a job": lambda lines: lines[2].update(next=2),
        "its next number is 0": lambda lines: lines[2].update(next=0),
        "its next number is the last one there is": lambda lines: lines[2].update(next=(1 << 63) - 1),
        "there is no queue": lambda lines: lines.pop(2),
        "it is of another queue": lambda lines: lines[2].update(name="other"),
        "a job has as many attempts as there are": lambda lines: lines[3].update(
            attempt=65_535, max_attempts=65_535
        ),
        "a ready job has had all its attempts": lambda lines: lines[3].update(attempt=5),
        "a claimed job has had more": lambda lines: lines[4].update(attempt=6),
        "a claimed job has had none": lambda lines: lines[4].update(attempt=0),
        "a claimed job has no token": lambda lines: lines[4].update(token=0),
        "a worker is long": lambda lines: lines[4].update(worker="w" * 101),
        "an error is long": lambda lines: lines[4].update(errors=["e" * 501]),
    }

    @pytest.mark.parametrize("change", CHANGES)
    def test_what_no_queue_can_come_to_is_refused(
        self, db: inmem.Database, lines: Lines, change: str
    ) -> None:
        self.CHANGES[change](lines)
        with pytest.raises(CorruptionError):
            import_runs(db, io.BytesIO(written(lines)))
        assert db.queues.list(RUN) == []

    def test_two_live_jobs_with_one_key_are_refused(self, db: inmem.Database, lines: Lines) -> None:
        lines[4].update(key="k")
        with pytest.raises(InvalidInputError, match="job mail/2 has the key of another"):
            import_runs(db, io.BytesIO(written(lines)))
        assert db.queues.list(RUN) == []
        lines[4].update(key="k", state="dead")
        import_runs(db, io.BytesIO(written(lines)))
        assert db.queues.put(RUN, "mail", 3, key="k") == "mail/2"


TOKEN = b"t" * 16
#       queue, number, put at, payload, state, rank, attempt, max_attempts, token, time, key, worker, errors
SOUND = [b"mail", 0, 1, b"\x01", 0, 5, 0, 5, 0, 0, b"", "", []]


class TestProceduresOfImports:
    """They keep the store whole whatever arrives; and nothing that arrives ends the writer."""

    @pytest.fixture
    def call(self, db: inmem.Database) -> Callable[..., Any]:
        attachment: Attachment = attachment_of(db.engine)

        def call(procedure: str, *arguments: Any) -> Any:
            return commit_call(attachment, procedure, [PREFIX, TOKEN, *arguments], 10)[0]

        namespace, _, run_id = PREFIX.rpartition(b"/")
        commit_call(attachment, "import.begin", [namespace, run_id.decode(), TOKEN, 0], 10)
        call("import.queues", [[b"mail", 9]])
        return call

    def test_what_is_sound_is_taken(self, call: Callable[..., Any]) -> None:
        call("import.jobs", [SOUND])

    @pytest.mark.parametrize(("at", "value"), [
        (1, -1), (1, 9), (1, 1 << 63), (2, 0), (2, -1), (3, b""), (3, "x"), (4, 5), (4, -1), (4, "x"),
        (5, -1), (5, 1 << 32), (5, (1 << 32) - 1), (6, -1), (6, 5), (6, 1 << 16), (7, 0), (7, 1 << 16),
        (8, -1), (8, 1 << 63), (9, -1), (9, 1 << 63), (9, None), (10, "x"), (10, b"\xff"),
        (10, b"a\0b"), (10, b"k" * 201), (11, b"x"), (11, "w" * 101), (12, "x"), (12, [1]),
        (12, ["e" * 501]), (12, ["e"] * 9), (0, b"other"), (0, b""),
    ])  # fmt: skip
    def test_what_is_not_sound_is_refused(
        self, db: inmem.Database, call: Callable[..., Any], at: int, value: Any
    ) -> None:
        epoch = db.status().epoch
        item: list[Any] = [*SOUND]
        item[at] = value
        with pytest.raises(InvalidInputError):
            call("import.jobs", [item])
        assert db.status().epoch == epoch

    @pytest.mark.parametrize("queue", [
        [b"mail", 10], [b"other", (1 << 62) + 1], [b"other", -1], [b"", 1], [b"q" * 101, 1]
    ])  # fmt: skip
    def test_queues_too(self, call: Callable[..., Any], queue: list[Any]) -> None:
        with pytest.raises(InvalidInputError):
            call("import.queues", [queue])


@pytest.fixture
def killed(store_path: Path) -> Path:
    """A store with two jobs, one of them with a key, whose writer was killed."""
    with inmem.open(store_path) as db:
        assert db.queues.put(RUN, "mail", "first", key="k") == "mail/0"
        assert db.queues.put(RUN, "mail", "second") == "mail/1"
    kill_writer(store_path)
    return store_path


HEAD = rules.queue_key(PREFIX, b"mail")


class TestDamage:
    @pytest.mark.parametrize("following", [None, 0, 1])
    def test_numbers_that_are_taken(self, killed: Path, following: int | None) -> None:
        """A check finds it, and no job is overwritten."""
        damage(killed, (
            (DELETE, DATA, HEAD) if following is None
            else (PUT, DATA, HEAD, pack(1, 1, 0, rules.number_bytes(following)))
        ))
        (problem,) = check_in_process(killed).problems
        assert "next number" in problem and "mail" in problem
        with inmem.open(killed) as db:
            queues = db.run(RUN).queues
            assert queues.put_many("mail", ["third", "fourth"]) == ["mail/2", "mail/3"]
            assert db.check().problems == []
            assert queues.put("mail", 1, key="k") == "mail/0"
            assert [job.payload for job in queues.claim_many("mail", 9)] == [
                "first", "second", "third", "fourth"
            ]

    def test_no_number_is_left(self, killed: Path) -> None:
        damage(killed, (PUT, DATA, HEAD, pack(1, 1, 0, rules.number_bytes((1 << 63) - 2))))
        with inmem.open(killed) as db:
            job_id = db.queues.put(RUN, "mail", "last")
            epoch = db.status().epoch
            with pytest.raises(InvariantError, match="no numbers left"):
                db.queues.put(RUN, "mail", "one more")
            assert [job.id for job in db.queues.claim_many(RUN, "mail", 9)][-1] == job_id
            assert db.status().epoch == epoch

    def test_two_live_jobs_of_one_key(self, killed: Path) -> None:
        state = rules.JobState(0, 5, 0, 5, 0, 0, 0, b"k", "", [])
        damage(
            killed, (PUT, DATA, place(TypeTag.JOB_STATE, 1), pack(1, 1, 0, state.pack())),
            (PUT, DATA, rules.key_head(PREFIX, b"mail", b"k") + rules.number_bytes(1), pack(1, 1, 0, b"")),
        )
        problems = check_in_process(killed).problems
        assert any("1 jobs have the key of another one" in problem for problem in problems)

    @pytest.mark.parametrize(("attempt", "most"), [(65_535, 65_535), (9, 5)])
    def test_a_job_without_attempts_left_is_dead_at_its_claim(
        self, killed: Path, attempt: int, most: int
    ) -> None:
        state = rules.JobState(0, rules.rank_of(0), attempt, most, 0, 0, 0, b"k", "", ["broke"])
        damage(killed, (PUT, DATA, place(TypeTag.JOB_STATE, 0), pack(1, 1, 0, state.pack())))
        (problem,) = check_in_process(killed).problems
        assert f"it is ready after attempt {attempt}" in problem
        with inmem.open(killed) as db:
            epoch = db.status().epoch
            job = db.queues.claim(RUN, "mail")
            assert job is not None and job.id == "mail/1"
            assert [dead.id for dead in db.queues.dead(RUN, "mail")] == ["mail/0"]
            assert db.status().epoch == epoch and db.check().problems == []

    def test_a_claim_without_an_attempt_is_given_back(self, killed: Path) -> None:
        until = 1 << 60
        state = rules.JobState(rules.CLAIMED, 5, 0, 5, 7, until, 7, b"k", "", [])
        entry = rules.place_in_order(rules.orders_of(PREFIX, b"mail"), rules.number_bytes(0), state)
        damage(
            killed, (PUT, DATA, place(TypeTag.JOB_STATE, 0), pack(1, 1, 0, state.pack())),
            (PUT, DATA, entry, pack(1, 1, 0, b"")),
        )
        with inmem.open(killed) as db:
            epoch = db.status().epoch
            arguments = [PREFIX, b"mail", 7]
            assert commit_call(attachment_of(db.engine), "queue.give_back", arguments, 10)[0] == 1
            assert db.status().epoch == epoch


def test_a_queue_without_jobs_keeps_its_next_number(scratch: Path) -> None:
    file = scratch / "file"
    with inmem.open(scratch / "one") as one, inmem.open(scratch / "two") as two:
        one.queues.put(RUN, "mail", 1)
        one.queues.purge(RUN, "mail")
        export_runs(one, file)
        import_runs(two, file)
        assert two.queues.put(RUN, "mail", 2) == "mail/1" and two.check().problems == []
