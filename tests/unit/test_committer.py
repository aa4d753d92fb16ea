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
    append,
    body,
    call,
    delete,
    error_of,
    key,
    kv_key,
    put,
    refusal,
    results_of,
)

from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import ConflictError, InvalidInputError, InvariantError
from inmem.keys import Key, TypeTag, range_of
from inmem.storage.environment import Table
from inmem.storage.store import PublishError
from inmem.wire import APPLIED, FAILED, REFUSED, RESEND
from inmem.writer.committer import Answer, Request
from inmem.writeset import OP_PUT

RUN = NS.run_prefix("r")
KV = range_of(RUN, TypeTag.KV)


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
        other.send(put(key("else"), 0))
        assert self.modify(bench, other, "else").status == APPLIED, "nor does another key"
        assert self.modify(bench, loser).status == APPLIED
        assert self.modify(bench, other).status == APPLIED, "the turn is over"

    def test_plain_writes_of_the_key_come_after_the_turn(self, bench: Bench) -> None:
        loser, other = bench.client("loser"), bench.client("other")
        other.send(put(key("k"), 0))
        self.lose(loser, 8)
        held = other.request(body(put(key("k"), 5)))
        (answer,) = bench.commit(held)
        assert answer.status == REFUSED and refusal(answer) == "busy"
        assert self.modify(bench, loser).status == APPLIED
        (answer,) = bench.commit(held)
        assert answer.status == APPLIED, "the same request again, as it was not decided"

    def test_who_lost_for_a_range_or_an_order_holds_all_writes_of_the_bucket(self, bench: Bench) -> None:
        loser, other = bench.client("loser"), bench.client("other")
        for _ in range(8):
            other.send(put(key("k"), 0))
            loser.send(put(key("mine"), 0), ranges=[(*KV, 99)], snapshot=1)
        held = other.request(body(put(key("new"), 5)))
        (answer,) = bench.commit(held)
        assert answer.status == REFUSED
        bench.now += 4_999
        assert bench.commit(held)[0].status == REFUSED
        bench.now += 1
        assert bench.commit(held)[0].status == APPLIED

    def test_plain_writes_wait_for_half_of_the_time_at_most(self, bench: Bench) -> None:
        loser, other = bench.client("loser"), bench.client("other")
        other.send(put(key("k"), 0))
        held_at = []
        plain = other.request(body(put(key("k"), 5)))
        for millisecond in range(200):
            self.lose(loser, 8)
            (answer,) = bench.commit(plain)
            if answer.status == REFUSED:
                held_at.append(millisecond)
            else:
                plain = other.request(body(put(key("k"), 5)))
            bench.now += 1_000
        assert held_at == [start + each for start in range(0, 200, 10) for each in range(5)]

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
            turns.lost(number.to_bytes(16, "big"), ConflictError("lost", key=key("k")), {}, bench.now)
        assert len(turns._losses) <= 4096


class TestRules:
    @pytest.mark.parametrize("tag", [t for t in TypeTag if t in (
        TypeTag.EVENT, TypeTag.EVENT_BY_TYPE, TypeTag.STATE, TypeTag.STATE_MARK
    )])
    @pytest.mark.parametrize("others", [0, 1])
    def test_only_procedures_write_what_has_rules(self, bench: Bench, tag: TypeTag, others: int) -> None:
        ruled = bytes(Key.of(RUN, tag, b"k" * 8))
        client = bench.client()
        for op in ([OP_PUT, ruled, b"x", 0], delete(ruled)):
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
