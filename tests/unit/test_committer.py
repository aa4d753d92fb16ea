"""The committer: groups, order, exactly once, and what it does when the log or the memory fails."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgpack
import pytest
from committing import (
    NS,
    SECOND,
    START_US,
    Bench,
    Client,
    RecordingLog,
    append,
    body,
    call,
    delete,
    error_of,
    kv_key,
    put,
    results_of,
)

from inmem.commit.decide import decide
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import ConflictError, InvalidInputError, InvariantError, StoreFullError
from inmem.keys import Key, TypeTag, range_of
from inmem.storage import environment
from inmem.storage.environment import Table
from inmem.storage.store import PublishError
from inmem.storage.wal.log import Wal, WalBrokenError
from inmem.storage.wal.scan import scan
from inmem.wire import APPLIED, FAILED, REFUSED, RESEND
from inmem.writer.committer import Answer, NoLog, Request
from inmem.writeset import OP_PUT

RUN = NS.run_prefix("r")
KV = range_of(RUN, TypeTag.KV)


def key(name: str) -> bytes:
    return kv_key("r", name)


def refusal(answer: Any) -> str:
    assert answer.status == REFUSED
    code: str = msgpack.unpackb(answer.result)[0]
    return code


class TestGroup:
    def test_each_commit_of_a_group_has_its_version(self, bench: Bench) -> None:
        client = bench.client()
        start = bench.committer.version
        answers = bench.commit(*[client.request(body(put(key(f"k{i}"), i))) for i in range(5)])
        assert [a.version for a in answers] == [start + i for i in range(1, 6)]
        assert [a.sequence for a in answers] == [1, 2, 3, 4, 5]
        assert bench.store.position is not None
        assert bench.store.position.version == start + 5
        assert {k: v for k, (v, _) in bench.live().items()} == {key(f"k{i}"): start + 1 + i for i in range(5)}
        assert len(bench.log.records) == 2, "the registration, and the group"

    def test_later_requests_see_earlier_ones(self, bench: Bench) -> None:
        a, b = bench.client("a"), bench.client("b")
        answers = bench.commit(
            a.request(body(call("kv.add", key("n"), 1, 0))), b.request(body(call("kv.add", key("n"), 1, 0))),
            a.request(body(append("r", ("x", 1)))), b.request(body(append("r", ("x", 2)))),
        )
        assert [results_of(answer)[0] for answer in answers[:2]] == [1, 2]
        assert [results_of(answer)[0][0] for answer in answers[2:]] == [0, 1]

    def test_good_and_bad_mixed(self, bench: Bench) -> None:
        client = bench.client()
        client.send(put(key("a"), 1))
        version = bench.committer.version
        stranger = Request(b"?" * 16, 1, 1, body(put(key("s"), 1)))
        answers = bench.commit(
            client.request(body(put(key("b"), 1))),
            client.request(body(put(key("c"), 1), reads={key("a"): 77})),
            client.request(b"\xc1 no request"),
            client.request(body(call("kv.add", key("a"), "x", 0))),
            stranger,
            client.request(body(call("nonsense"))),
            client.request(body(put(key("d"), 1), reads={key("b"): version + 1})),
            Request(client.session, 100, 1, body()),
        )
        assert [a.status for a in answers] == [
            APPLIED, FAILED, FAILED, FAILED, REFUSED, FAILED, APPLIED, RESEND
        ]
        assert [a.version for a in answers] == [version + 1, 0, 0, 0, 0, 0, version + 2, 8]
        assert isinstance(error_of(answers[1]), ConflictError)
        assert isinstance(error_of(answers[2]), InvalidInputError)
        assert set(bench.live()) == {key("a"), key("b"), key("d")}
        counters = bench.committer.counters
        assert (counters.commits, counters.conflicts, counters.failures) == (3, 1, 4)

    def test_of_two_that_read_the_same_the_first_wins(self, bench: Bench) -> None:
        a, b = bench.client("a"), bench.client("b")
        answers = bench.commit(
            a.request(body(put(key("n"), "a"), reads={key("n"): 0})),
            b.request(body(put(key("n"), "b"), reads={key("n"): 0})),
        )
        assert [answer.status for answer in answers] == [APPLIED, FAILED]
        assert bench.value(key("n")) == "a"

    def test_write_skew_and_phantoms_within_a_group_are_refused(self, bench: Bench) -> None:
        a, b = bench.client("a"), bench.client("b")
        start = bench.committer.version
        skew = bench.commit(
            a.request(body(put(key("x"), 1), reads={key("y"): 0})),
            b.request(body(put(key("y"), 1), reads={key("x"): 0})),
        )
        assert [answer.status for answer in skew] == [APPLIED, FAILED]
        phantom = bench.commit(
            a.request(body(put(key("p1"), 1), ranges=[(*KV, 1)], snapshot=start + 1)),
            b.request(body(put(key("p2"), 1), ranges=[(*KV, 1)], snapshot=start + 1)),
        )
        assert [answer.status for answer in phantom] == [APPLIED, FAILED]

    def test_an_empty_group_publishes_a_registration(self, bench: Bench) -> None:
        before = bench.committer.version
        bench.client()
        assert bench.committer.version == before + 1
        assert len(list(bench.store.items(Table.SESSIONS))) == 1
        bench.commit()
        assert bench.committer.version == before + 1, "and nothing when nothing waits"

    def test_failures_alone_are_not_written(self, bench: Bench) -> None:
        client = bench.client()
        records = len(bench.log.records)
        for _ in range(3):
            assert client.send(put(key("a"), 1), reads={key("a"): 5}).status == FAILED
        assert len(bench.log.records) == records
        assert bench.sessions.last_sequence(client.session) == 3

    def test_steps_come_in_order(self, bench: Bench) -> None:
        bench.client()
        bench.steps.clear()
        bench.client("d").send(put(key("a"), 1))
        assert bench.steps == ["logged", "synced", "published"] * 2

    def test_operations_are_counted_in_the_writer_too(self, bench: Bench) -> None:
        raw = msgpack.packb([0, 0, [], [], [delete(key("a"))] * (MAX_TRANSACTION_OPS + 1)])
        assert error_of(bench.client().send_body(raw)).code == "limit"

    def test_a_range_that_was_removed_is_a_change(self, bench: Bench) -> None:
        client = bench.client()
        version = client.send(put(key("a"), 1), put(key("b"), 1)).version
        client.send(delete(key("a")))
        assert client.send(put(key("x"), 1), ranges=[(*KV, 2)], snapshot=version).status == FAILED
        assert client.send(put(key("x"), 1), ranges=[(*KV, 1)], snapshot=version).status == APPLIED

    def test_a_commit_of_several_runs_is_seen_by_the_scans_of_each(self, bench: Bench) -> None:
        bench.committer._recent._limit = 1
        client = bench.client()
        snapshot = bench.committer.version
        client.send(*[put(kv_key(run, "k"), 1) for run in ("r", "s", "t")])
        for run in ("r", "s", "t"):
            scanned = (*range_of(NS.run_prefix(run), TypeTag.KV), 0)
            answer = client.send(put(kv_key("mine", "k"), 1), ranges=[scanned], snapshot=snapshot)
            assert answer.status == FAILED, run


class TestTurns:
    """Who has lost often goes first."""

    def lose(self, client: Client, times: int, name: str = "k") -> list[dict[str, Any]]:
        """Transactions whose read of a key is out of date; the fields of their errors."""
        answers = [client.send(put(key(name), 0), reads={key(name): 1_000_000}) for _ in range(times)]
        assert {answer.status for answer in answers} == {FAILED}
        problems = [msgpack.unpackb(answer.result) for answer in answers]
        assert {code for code, _, _ in problems} == {"conflict"}
        return [fields for _, _, fields in problems]

    def modify(self, bench: Bench, client: Client, name: str = "k") -> Answer:
        """A transaction that has read the key as it is."""
        version = bench.live()[key(name)][0]
        return client.send(put(key(name), 1), reads={key(name): version})

    def test_the_eighth_conflict_in_a_row_gives_the_turn(self, bench: Bench) -> None:
        loser, other = bench.client("loser"), bench.client("other")
        other.send(put(key("k"), 0))
        told = self.lose(loser, 8)
        assert [bool(fields["is_next"]) for fields in told] == [False] * 7 + [True]
        refused = self.modify(bench, other)
        assert refused.status == FAILED and msgpack.unpackb(refused.result)[0] == "conflict"
        assert other.send(put(key("k"), 5)).status == APPLIED, "a blind write waits for nobody"
        other.send(put(key("else"), 0))
        assert self.modify(bench, other, "else").status == APPLIED, "nor does another key"
        assert self.modify(bench, loser).status == APPLIED
        assert self.modify(bench, other).status == APPLIED, "the turn is over"

    def test_a_turn_ends_by_itself(self, bench: Bench) -> None:
        loser, other = bench.client("loser"), bench.client("other")
        other.send(put(key("k"), 0))
        self.lose(loser, 8)
        bench.now += 4_999
        assert self.modify(bench, other).status == FAILED
        bench.now += 1
        assert self.modify(bench, other).status == APPLIED

    def test_a_success_between_them_begins_the_count_anew(self, bench: Bench) -> None:
        loser = bench.client("loser")
        loser.send(put(key("k"), 0))
        for _ in range(3):
            assert not any(fields["is_next"] for fields in self.lose(loser, 7))
            loser.send(put(key("k"), 0))

    def test_who_has_lost_far_less_does_not_come_first(self, bench: Bench) -> None:
        most, less = bench.client("most"), bench.client("less")
        self.lose(most, 20)
        bench.now += 10_000
        assert not any(fields["is_next"] for fields in self.lose(less, 14)), "14 are under 3/4 of 20"
        assert self.lose(less, 1)[0]["is_next"]

    def test_the_memory_of_losses_is_bounded(self, bench: Bench) -> None:
        turns = bench.committer._turns
        for number in range(10_000):
            turns.lost(number.to_bytes(16, "big"), ConflictError("lost", key=key("k")), bench.now)
        assert len(turns._losses) <= 4096


class TestGuard:
    @pytest.mark.parametrize("tag", [t for t in TypeTag if t in (
        TypeTag.EVENT, TypeTag.EVENT_BY_TYPE, TypeTag.STATE, TypeTag.STATE_MARK
    )])
    @pytest.mark.parametrize("others", [0, 1])
    def test_only_procedures_write_what_has_rules(self, bench: Bench, tag: TypeTag, others: int) -> None:
        guarded = bytes(Key.of(RUN, tag, b"k" * 8))
        client = bench.client()
        for op in ([OP_PUT, guarded, b"x", 0], delete(guarded)):
            answer = client.send(*[put(key("a"), 1)] * others, op)
            assert isinstance(error_of(answer), InvariantError)
            assert bench.live() == {}


class TestExactlyOnce:
    def test_a_duplicate_gets_the_answer_of_the_first_time(self, bench: Bench) -> None:
        client = bench.client()
        request = client.request(body(call("kv.add", key("n"), 1, 0)))
        [first] = bench.commit(request)
        assert bench.commit(request, request) == [first, first]
        bench.restart()
        assert bench.commit(request) == [first], "the next writer knows it too"
        assert bench.value(key("n")) == 1
        assert bench.committer.counters.repeated == 1

    def test_twice_in_one_group(self, bench: Bench) -> None:
        request = bench.client().request(body(call("kv.add", key("n"), 1, 0)))
        first, second = bench.commit(request, request)
        assert first == second
        assert bench.value(key("n")) == 1

    def test_a_failure_stays_one(self, bench: Bench) -> None:
        """It was answered: even if it would succeed by now, it must not be applied."""
        client, other = bench.client(), bench.client("other")
        coming = bench.committer.version + 1
        request = client.request(body(put(key("a"), "late"), reads={key("a"): coming}))
        [first] = bench.commit(request)
        assert first.status == FAILED
        assert other.send(put(key("a"), 1)).version == coming
        assert bench.commit(request) == [first]
        assert bench.value(key("a")) == 1

    def test_the_same_sequence_with_other_content(self, bench: Bench) -> None:
        client = bench.client()
        bench.commit(client.request(body(put(key("a"), 1))))
        [answer] = bench.commit(Request(client.session, 1, 1, body(put(key("a"), 2))))
        assert refusal(answer) == "digest_mismatch"
        assert bench.value(key("a")) == 1

    def test_an_unknown_session_is_refused_and_nothing_applied(self, bench: Bench) -> None:
        [answer] = bench.commit(Request(b"?" * 16, 1, 1, body(put(key("a"), 1))))
        assert refusal(answer) == "session_unknown"
        assert bench.live() == {}

    def test_a_gap_names_where_to_resend_from(self, bench: Bench) -> None:
        client = bench.client()
        requests = [client.request(body(put(key("a"), i))) for i in range(4)]
        assert [(a.status, a.version) for a in bench.commit(*requests[2:])] == [(RESEND, 1)] * 2
        bench.commit(requests[0])
        assert [(a.status, a.version) for a in bench.commit(requests[3])] == [(RESEND, 2)]
        assert [a.status for a in bench.commit(*requests[1:])] == [APPLIED] * 3
        assert bench.value(key("a")) == 3

    def test_too_many_unanswered_commits(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "small", max_in_flight=3)
        client = bench.client()
        requests = [client.request(body(put(key("a"), i))) for i in range(5)]
        answers = bench.commit(*requests)
        assert [a.status for a in answers] == [APPLIED] * 3 + [REFUSED, RESEND]
        assert refusal(answers[3]) == "busy"
        again = [r._replace(answered_below=4) for r in requests[3:]]
        assert [a.status for a in bench.commit(*again)] == [APPLIED] * 2
        bench.close()

    def test_a_writer_killed_between_publishing_and_answering(self, bench: Bench) -> None:
        client = bench.client()
        requests = [client.request(body(call("kv.add", key("n"), 1, 0))) for _ in range(4)]
        lost = bench.commit(*requests[:2])  # these answers never arrive
        bench.restart()
        assert bench.commit(*requests)[:2] == lost
        assert bench.value(key("n")) == 4

    def test_a_session_that_said_goodbye_is_unknown(self, bench: Bench) -> None:
        client = bench.client()
        request = client.request(body(put(key("a"), 1)))
        bench.commit(request)
        bench.sessions.drop(client.session)
        assert refusal(bench.commit(request)[0]) == "session_unknown"
        bench.client("later")
        assert client.session not in [bytes(i) for i, _ in bench.store.items(Table.SESSIONS)]


class TestPublishFails:
    def test_the_group_is_cut_and_tried_one_by_one(self, bench: Bench) -> None:
        client = bench.client()
        before = bench.committer.version
        bench.store.plan = [True]
        answers = bench.commit(*[client.request(body(call("kv.add", key("n"), 1, 0))) for _ in range(3)])
        assert [results_of(a) for a in answers] == [[1], [2], [3]]
        assert [a.version for a in answers] == [before + 1, before + 2, before + 3]
        assert bench.log.cuts == 1
        assert [version for version, _ in bench.log.records[-3:]] == [before + 1, before + 2, before + 3]
        assert bench.committer.counters.commits == 3

    @pytest.mark.parametrize("bad", [0, 1, 2])
    def test_the_one_that_does_not_fit_fails_alone(self, bench: Bench, bad: int) -> None:
        client = bench.client()
        plan: list[bool | None] = [None] * 3
        plan[bad] = True
        bench.store.plan = [True, *plan]
        answers = bench.commit(*[client.request(body(put(key(f"k{i}"), i))) for i in range(3)])
        assert [a.status for a in answers] == [FAILED if i == bad else APPLIED for i in range(3)]
        assert isinstance(error_of(answers[bad]), StoreFullError)
        assert set(bench.live()) == {key(f"k{i}") for i in range(3) if i != bad}
        bench.store.plan = []
        assert client.send(put(key(f"k{bad}"), 1)).status == APPLIED

    def test_a_failure_is_kept_for_duplicates(self, bench: Bench) -> None:
        client = bench.client()
        bench.store.plan = [True]
        request = client.request(body(put(key("a"), 1)))
        [first] = bench.commit(request)
        assert bench.commit(request) == [first]
        assert bench.live() == {}

    def test_another_error_of_the_image_ends_the_writer(self, bench: Bench) -> None:
        client = bench.client()
        bench.store.plan = [False]
        request = client.request(body(put(key("a"), 1)))
        version = bench.committer.version
        with pytest.raises(PublishError):
            bench.commit(request)
        assert bench.committer.version == version
        assert bench.commit(request)[0].status == APPLIED, "and left nothing half done"

    def test_counters_and_outcomes_are_as_before(self, bench: Bench) -> None:
        client = bench.client()
        bench.store.plan = [False]
        with pytest.raises(PublishError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.committer.counters.commits == 0
        assert bench.sessions.last_sequence(client.session) == 0

    def test_fences_are_as_before(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A deletion that was not published must not close the run."""
        client = bench.client()
        bench.store.plan = [False]
        monkeypatch.setattr(
            "inmem.writer.committer.decide",
            lambda *args, **kwargs: decide(*args, **kwargs)._replace(fences=[b"fence"]),
        )
        with pytest.raises(PublishError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.committer._fences == set()
        bench.commit(client.request(body(put(key("a"), 1)))._replace(sequence=1))
        assert bench.committer._fences == {b"fence"}

    def test_a_registration_that_was_not_published_is_undone(self, bench: Bench) -> None:
        bench.client()
        bench.sessions.register(b"n" * 16, bench.now)
        bench.store.plan = [True]
        assert bench.commit() == []
        assert b"n" * 16 not in bench.sessions

    def test_a_memory_that_is_really_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "MAP_BYTES", 1 << 20)
        bench = Bench(tmp_path / "tiny", quota=1 << 40)
        client = bench.client()
        giant = "g" * (2 << 20)
        answers = bench.commit(
            client.request(body(put(key("a"), 1))), client.request(body(put(key("b"), giant))),
            client.request(body(put(key("c"), 1))),
        )
        assert [a.status for a in answers] == [APPLIED, FAILED, APPLIED]
        assert isinstance(error_of(answers[1]), StoreFullError)
        assert set(bench.live()) == {key("a"), key("c")}
        client.answered_below = client.next
        filled = 0
        while client.send(put(key(f"f{filled}"), "x" * 30_000)).status == APPLIED:
            filled += 1
        assert filled > 5
        assert client.send(delete(key("f0"))).status == APPLIED
        bench.assert_log_is_image()
        bench.close()


class TestQuota:
    def test_beyond_the_quota_writes_fail_and_deletes_work(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "small", quota=4 << 20)
        client = bench.client()
        done = 0
        while (answer := client.send(put(key(f"k{done:04}"), "x" * 60_000))).status == APPLIED:
            done += 1
        error = error_of(answer)
        assert isinstance(error, StoreFullError)
        assert error.quota_bytes == 4 << 20
        assert error.used_bytes is not None
        assert 20 < done < 70
        version = bench.committer.version
        assert isinstance(error_of(client.send(put(key("k0000"), "x" * 60_000))), StoreFullError)
        assert bench.committer.version == version
        for i in range(10):
            assert client.send(delete(key(f"k{i:04}"))).status == APPLIED
            assert results_of(client.send(call("kv.delete", key(f"k{10 + i:04}")))) == [True]
        assert client.send(put(key("again"), "x" * 60_000)).status == APPLIED
        bench.close()


class TestLogFails:
    def test_a_full_disk_fails_the_group_and_is_survived(self, bench: Bench) -> None:
        client = bench.client()
        bench.log.failures = [OSError(errno.ENOSPC, "planned")]
        requests = [client.request(body(put(key(f"k{i}"), i))) for i in range(3)]
        answers = bench.commit(*requests)
        assert [type(error_of(a)) for a in answers] == [StoreFullError] * 3
        assert bench.live() == {}
        assert bench.commit(*requests) == answers
        client.answered_below = client.next
        assert client.send(put(key("a"), 1)).status == APPLIED

    def test_duplicates_in_a_failed_group_get_their_answers(self, bench: Bench) -> None:
        client = bench.client()
        known = client.request(body(put(key("a"), 1)))
        [first] = bench.commit(known)
        bench.log.failures = [OSError(errno.EIO, "planned")]
        new = client.request(body(put(key("b"), 1)))
        answers = bench.commit(known, new, Request(b"?" * 16, 1, 1, b""), new)
        assert answers[0] == first
        assert isinstance(error_of(answers[1]), StoreFullError)
        assert refusal(answers[2]) == "session_unknown"
        assert answers[3] == answers[1]

    def test_a_broken_log_answers_nothing(self, bench: Bench) -> None:
        client = bench.client()
        bench.log.failures = [WalBrokenError(errno.EIO, "planned")]
        version = bench.committer.version
        with pytest.raises(WalBrokenError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.live() == {}
        assert bench.committer.version == version
        assert bench.sessions.last_sequence(client.session) == 0

    def test_a_failed_sync_publishes_nothing(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "sync", always_sync=True)
        client = bench.client()
        bench.log.sync_failures = [WalBrokenError(errno.EIO, "planned")]
        with pytest.raises(WalBrokenError):
            bench.commit(client.request(body(put(key("a"), 1))))
        assert bench.live() == {}
        assert "published" not in bench.steps[-1:]
        bench.close()

    def test_a_cut_that_fails_ends_the_writer(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        client = bench.client()
        bench.store.plan = [True]

        def broken(mark: Any) -> None:
            raise WalBrokenError(errno.EIO, "planned")

        monkeypatch.setattr(bench.log, "cut", broken)
        with pytest.raises(WalBrokenError):
            bench.commit(client.request(body(put(key("a"), 1))), client.request(body(put(key("b"), 1))))
        assert bench.live() == {}
        del bench.log.records[1:]  # what the cut would have done


class TestDurability:
    @pytest.mark.parametrize("always", [False, True])
    @pytest.mark.parametrize("asked", [False, True])
    def test_synced_before_it_is_published_if_asked(self, tmp_path: Path, always: bool, asked: bool) -> None:
        bench = Bench(tmp_path / "image", always_sync=always)
        client = bench.client()
        synced = bench.log.syncs
        seen: list[tuple[str, int]] = []
        bench.committer._reached = lambda step: seen.append((step, bench.log.durable))
        version = client.send(put(key("a"), 1), sync=asked).version
        assert bench.log.syncs - synced == (always or asked)
        assert (dict(seen)["synced"] == version) == (always or asked)
        assert dict(seen)["logged"] < version
        bench.close()

    def test_one_that_asks_makes_its_group_durable(self, bench: Bench) -> None:
        client = bench.client()
        bench.commit(
            client.request(body(put(key("a"), 1))), client.request(body(put(key("b"), 1)), sync=True)
        )
        assert bench.log.durable == bench.committer.version

    def test_the_answer_of_a_repeated_sync_commit_is_durable(self, bench: Bench) -> None:
        client = bench.client()
        request = client.request(body(put(key("a"), 1)))
        bench.commit(request)
        assert bench.log.durable < bench.committer.version
        bench.commit(request._replace(sync=True))
        assert bench.log.durable == bench.committer.version

    def test_no_log_keeps_nothing(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "memory", log=NoLog(), always_sync=True)
        assert bench.client().send(put(key("a"), 1), sync=True).status == APPLIED
        assert (bench.log.bytes, bench.log.durable_version) == (0, 0)
        bench.close()

    def test_a_real_log_holds_what_the_image_holds(self, tmp_path: Path) -> None:
        database = bytes(range(16))
        wal = Wal.create(tmp_path / "wal", database, segment_bytes=2048)
        bench = Bench(tmp_path / "image", log=wal)
        client = bench.client()
        replay = RecordingLog()
        for i in range(40):
            if i % 7 == 3:
                bench.store.plan = [True, None, True]
            group = [
                client.request(body(put(key(f"k{i}"), i))),
                client.request(body(call("kv.add", key("n"), 1, 0))),
                client.request(body(append("r", ("x", i)))),
            ]
            assert any(answer.status == APPLIED for answer in bench.commit(*group))
            client.answered_below = client.next
            bench.store.plan = []
        wal.sync()
        wal.close()
        result = scan(tmp_path / "wal", database)
        assert len(result.segments) > 2
        replay.records = [(record.version, list(record.ops)) for record in result.iter_records()]
        bench.log = replay
        bench.assert_log_is_image()
        bench.close()


class TestSweep:
    def test_removes_what_has_expired(self, bench: Bench) -> None:
        client = bench.client()
        client.send(*[put(key(f"k{i}"), i, START_US + i * SECOND) for i in range(1, 6)], put(key("stays"), 1))
        assert bench.committer.sweep(bench.now, 100) == 0
        bench.now += 3 * SECOND
        assert bench.committer.sweep(bench.now, 100) == 3
        assert set(bench.records()) == {key("k4"), key("k5"), key("stays")}
        assert bench.committer.counters.expired == 3
        assert bench.committer.sweep(bench.now, 100) == 0

    def test_in_portions(self, bench: Bench) -> None:
        client = bench.client()
        client.send(*[put(key(f"k{i}"), i, START_US + 1) for i in range(10)])
        bench.now += 1
        assert [bench.committer.sweep(bench.now, 4) for _ in range(4)] == [4, 4, 2, 0]
        assert bench.records() == {}

    @pytest.mark.parametrize("later", [0, START_US + 100 * SECOND])
    def test_a_rewritten_key_stays(self, bench: Bench, later: int) -> None:
        client = bench.client()
        client.send(put(key("a"), 1, START_US + SECOND))
        client.send(put(key("a"), 2, later))
        client.send(put(key("b"), 1, START_US + SECOND))
        client.send(delete(key("b")))
        bench.now += 2 * SECOND
        assert bench.committer.sweep(bench.now, 100) == 0, "no entry outlives the value that it was for"
        assert bench.value(key("a")) == 2
        assert bench.committer.counters.expired == 0

    def test_counts_keys_only(self, bench: Bench) -> None:
        """A session that has something to write travels with the sweep, and is no expired key."""
        client = bench.client()
        client.send(put(key("a"), 1, START_US + SECOND))
        assert client.send(put(key("b"), 1), reads={key("b"): 7}).status == FAILED
        bench.now += SECOND
        bench.committer.sweep(bench.now, 100)
        assert bench.committer.counters.expired == 1

    def test_is_no_write_to_who_scans(self, bench: Bench) -> None:
        client = bench.client()
        version = client.send(put(key("a"), 1, START_US + SECOND), put(key("b"), 1)).version
        bench.now += SECOND
        scanned = {"ranges": [(*KV, 1)], "snapshot": version}
        bench.committer.sweep(bench.now, 100)
        assert set(bench.records()) == {key("b")}
        assert client.send(put(kv_key("q", "x"), 1), reads={key("a"): 0}, **scanned).status == APPLIED

    def test_a_sweep_that_fails_changes_nothing(self, bench: Bench) -> None:
        client = bench.client()
        client.send(put(key("a"), 1, START_US + SECOND))
        bench.now += SECOND
        version = bench.committer.version
        bench.store.plan = [True]
        with pytest.raises(PublishError):
            bench.committer.sweep(bench.now, 100)
        bench.log.failures = [OSError(errno.ENOSPC, "planned")]
        with pytest.raises(OSError, match="planned"):
            bench.committer.sweep(bench.now, 100)
        assert bench.committer.version == version
        assert set(bench.records()) == {key("a")}
        assert bench.committer.sweep(bench.now, 100) == 1
        assert client.send(put(key("b"), 1)).status == APPLIED

    def test_a_read_that_expired_is_a_conflict_swept_or_not(self, bench: Bench) -> None:
        client = bench.client()
        expiry = START_US + SECOND
        version = client.send(put(key("a"), 1, expiry)).version
        bench.now = expiry - 1
        assert client.send(put(key("x"), 1), reads={key("a"): version}, expiry=expiry).status == APPLIED
        bench.now = expiry
        for _ in range(2):
            assert client.send(put(key("x"), 1), reads={key("a"): version}, expiry=expiry).status == FAILED
            bench.committer.sweep(bench.now, 100)


class TestRestart:
    def test_versions_go_on(self, bench: Bench) -> None:
        client = bench.client()
        version = client.send(put(key("a"), 1)).version
        bench.restart()
        assert client.send(put(key("b"), 1)).version == version + 1

    def test_a_snapshot_from_before_is_validated_by_a_walk(self, bench: Bench) -> None:
        client = bench.client()
        snapshot = client.send(put(key("a"), 1)).version
        bench.restart()
        assert client.send(put(key("b"), 1), ranges=[(*KV, 1)], snapshot=snapshot).status == APPLIED
        bench.restart()
        assert client.send(put(key("c"), 1), ranges=[(*KV, 1)], snapshot=snapshot).status == FAILED

    def test_fences_stay(self, bench: Bench) -> None:
        bench.fence(RUN)
        bench.restart()
        assert error_of(bench.client().send(put(key("a"), 1))).code == "run_deleted"
