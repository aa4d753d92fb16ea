"""Sessions: each sequence is decided once, in order, and its answer is kept until it is had."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from inmem.config import MIN_SESSION_IDLE_S
from inmem.errors import BusyError, CorruptionError
from inmem.wire import APPLIED, FAILED
from inmem.writer import outcomes
from inmem.writer.outcomes import FORGOTTEN, FULL, GAP, MISMATCH, UNKNOWN, Outcome, Sessions

A, B = b"a" * 16, b"b" * 16
S = 1_000_000
NOW = 1_000_000 * S
TTL_S = 3600.0


def sessions(*records: tuple[bytes, bytes], limit: int = 4) -> Sessions:
    return Sessions(records, ttl_s=TTL_S, max_in_flight=limit)


def outcome(digest: int = 7, version: int = 1) -> Outcome:
    return Outcome(digest, APPLIED, version, b"\x90")


def registered(limit: int = 4) -> Sessions:
    some = sessions(limit=limit)
    some.register(A, NOW)
    some.written()
    return some


def decide(some: Sessions, sequence: int, below: int = 1, digest: int = 7) -> None:
    assert some.find(A, sequence, below, digest) is None
    some.record(A, sequence, below, NOW, outcome(digest, sequence))


class TestOrder:
    def test_unknown_sessions_are_refused(self) -> None:
        assert registered().find(B, 1, 1, 7) == UNKNOWN

    def test_the_first_sequence_is_one(self) -> None:
        some = registered()
        assert some.find(A, 1, 1, 7) is None
        assert some.find(A, 2, 1, 7) == GAP
        assert some.find(A, 0, 0, 7) == FORGOTTEN

    def test_sequences_follow_on_each_other(self) -> None:
        some = registered()
        for sequence in (1, 2, 3):
            decide(some, sequence)
            assert some.last_sequence(A) == sequence
        assert some.find(A, 5, 1, 7) == GAP

    def test_a_duplicate_gets_the_same_outcome(self) -> None:
        some = registered()
        decide(some, 1)
        decide(some, 2)
        for _ in range(2):
            assert some.find(A, 1, 1, 7) == outcome(7, 1)
            assert some.find(A, 2, 2, 7) == outcome(7, 2)

    def test_other_content_under_a_known_sequence_is_an_error(self) -> None:
        some = registered()
        decide(some, 1)
        assert some.find(A, 1, 1, 8) == MISMATCH

    def test_an_answer_that_the_client_has_is_forgotten(self) -> None:
        some = registered()
        for sequence in (1, 2):
            decide(some, sequence)
        decide(some, 3, below=3)
        assert some.find(A, 1, 1, 7) == FORGOTTEN
        assert some.find(A, 2, 1, 7) == FORGOTTEN
        assert some.find(A, 3, 3, 7) == outcome(7, 3)

    def test_sequences_that_the_client_has_answers_for_are_not_missed(self) -> None:
        """Failures of an earlier writer were not written down, and need not be."""
        some = registered()
        decide(some, 1)
        assert some.find(A, 6, 5, 7) == GAP
        decide(some, 6, below=6)
        assert some.last_sequence(A) == 6
        assert some.find(A, 7, 6, 7) is None

    def test_answered_below_does_not_go_back(self) -> None:
        some = registered()
        decide(some, 1)
        decide(some, 2, below=2)
        decide(some, 3, below=1)
        assert some.find(A, 1, 1, 7) == FORGOTTEN


class TestInFlight:
    def test_unanswered_commits_are_bounded(self) -> None:
        some = registered(limit=3)
        for sequence in (1, 2, 3):
            decide(some, sequence)
        assert some.find(A, 4, 1, 7) == FULL
        assert some.find(A, 2, 1, 7) == outcome(7, 2), "what is known is still answered"
        assert some.find(A, 4, 2, 7) is None, "and one answer had makes room"

    def test_outcomes_kept_never_exceed_the_limit(self) -> None:
        some = registered(limit=3)
        for sequence in range(1, 100):
            decide(some, sequence, below=max(1, sequence - 2))
            assert len(some._sessions[A].outcomes) <= 3

    @pytest.mark.parametrize("claim", [5, 10**6, (1 << 64) - 1])
    def test_a_claim_to_answers_of_the_future_does_not_end_the_bound(self, claim: int) -> None:
        some = registered(limit=3)
        for sequence in range(1, 50):
            found = some.find(A, sequence, claim, 7)
            if found is None:
                some.record(A, sequence, claim, NOW, outcome())
            assert len(some._sessions[A].outcomes) <= 3

    @pytest.mark.parametrize("claim", [3, 10**6])
    def test_such_a_claim_keeps_the_newest_answer(self, claim: int) -> None:
        some = registered()
        some.record(A, 1, claim, NOW, outcome())
        assert some.find(A, 1, claim, 7) == outcome()


class TestChanges:
    def test_a_record_comes_back_as_it_was(self) -> None:
        some = registered()
        decide(some, 1)
        some.record(A, 2, 2, NOW, Outcome(9, FAILED, 0, b"why"))
        again = sessions(*[(i, r) for i, r in some.changes() if r is not None])
        assert again.find(A, 2, 2, 9) == Outcome(9, FAILED, 0, b"why")
        assert again.find(A, 1, 1, 7) == FORGOTTEN
        assert again.last_sequence(A) == 2
        assert again._sessions[A].active_s == NOW // S

    def test_changes_are_listed_once(self) -> None:
        some = sessions()
        some.register(A, NOW)
        assert some.must_write
        assert [i for i, _ in some.changes()] == [A]
        some.written()
        assert (some.changes(), some.must_write) == ([], False)
        some.drop(A)
        assert some.changes() == [(A, None)]

    def test_dropping_the_unknown_changes_nothing(self) -> None:
        some = sessions()
        some.drop(B)
        assert some.changes() == []

    @pytest.mark.parametrize("record", [
        b"", b"\xc1", msgpack.packb(1), msgpack.packb([1, 2, 3]), msgpack.packb([1, 2, 3, 4]),
        msgpack.packb([1, 2, 3, [[1, 2]]]), msgpack.packb([1, 2, 3, [1]]), msgpack.packb([1, 2, 3, [[]]]),
    ], ids=repr)
    def test_a_damaged_record_is_corruption(self, record: bytes) -> None:
        with pytest.raises(CorruptionError):
            sessions((A, record))


class TestUndo:
    def test_a_group_that_was_not_published_leaves_the_new_sessions_alone(self) -> None:
        some = registered()
        decide(some, 1)
        some.written()
        decide(some, 2, below=2)
        some.register(B, NOW)
        some.undo()
        assert some.last_sequence(A) == 1
        assert some.find(A, 1, 1, 7) == outcome(7, 1), "the answer that the group dropped is back"
        assert some.find(A, 2, 2, 7) is None
        assert B in some and some.must_write, "it has said hello, and is told that it is known"

    def test_a_dropped_session_is_back(self) -> None:
        some = registered()
        decide(some, 1)
        some.written()
        some.drop(A)
        some.undo()
        assert some.find(A, 1, 1, 7) == outcome(7, 1)

    def test_undo_reaches_back_to_the_last_settling_only(self) -> None:
        some = registered()
        decide(some, 1)
        some.settle()
        decide(some, 2)
        some.undo()
        assert some.last_sequence(A) == 1

    def test_what_was_settled_is_still_to_be_written(self) -> None:
        some = registered()
        decide(some, 1)
        some.settle()
        assert [i for i, _ in some.changes()] == [A]


class TestAge:
    def test_idle_sessions_expire(self) -> None:
        some = registered()
        some.register(B, NOW + 100 * S)
        some.written()
        some.expire(NOW + int(TTL_S * S))
        assert len(some) == 2
        some.expire(NOW + int(TTL_S * S) + 1 * S)
        assert A not in some
        assert B in some
        assert some.changes() == [(A, None)]

    def test_a_commit_keeps_a_session_young(self) -> None:
        some = registered()
        some.record(A, 1, 1, NOW + 50 * S, outcome())
        some.expire(NOW + int(TTL_S * S) + 20 * S)
        assert A in some

    def test_room_is_made_by_the_longest_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outcomes, "MAX_SESSIONS", 2)
        some = sessions()
        some.register(A, NOW)
        some.register(B, NOW + 5 * S)
        with pytest.raises(BusyError) as caught:
            some.register(b"c" * 16, NOW + (MIN_SESSION_IDLE_S - 1) * S)
        assert caught.value.limit == 2
        assert (A in some, B in some, len(some)) == (True, True, 2)
        some.register(b"c" * 16, NOW + MIN_SESSION_IDLE_S * S)
        assert (A in some, B in some, len(some)) == (False, True, 2)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 1)), max_size=60))
def test_no_sequence_is_decided_twice_and_none_out_of_order(requests: list[tuple[int, int, int]]) -> None:
    some = registered(limit=3)
    decided: dict[int, int] = {}
    for sequence, below, digest in requests:
        found = some.find(A, sequence, below, digest)
        if found is None:
            assert sequence not in decided
            assert sequence > max(decided, default=0)
            decided[sequence] = digest
            some.record(A, sequence, below, NOW, outcome(digest, sequence))
        elif isinstance(found, Outcome):
            assert decided[sequence] == digest == found.digest
        elif found == MISMATCH:
            assert decided[sequence] != digest
        elif found == GAP:
            assert sequence > some.last_sequence(A) + 1


class UndoMachine(RuleBasedStateMachine):
    """Whatever a group does to the sessions, `undo` brings back what was there; new ones stay."""

    @initialize()
    def begin(self) -> None:
        self.some = sessions(limit=3)
        self.before = self.image()

    def image(self) -> dict[bytes, tuple[object, ...]]:
        return {
            i: (s.last, s.answered_below, s.active_s, dict(s.outcomes))
            for i, s in self.some._sessions.items()
        }

    @rule(session=st.sampled_from([A, B]))
    def register(self, session: bytes) -> None:
        if session not in self.some:
            self.some.register(session, NOW)

    @rule(session=st.sampled_from([A, B]))
    def drop(self, session: bytes) -> None:
        self.some.drop(session)

    @rule(session=st.sampled_from([A, B]), lag=st.integers(0, 3))
    def commit(self, session: bytes, lag: int) -> None:
        if session in self.some:
            sequence = self.some.last_sequence(session) + 1
            below = max(1, sequence - lag)
            if self.some.find(session, sequence, below, 7) is None:
                self.some.record(session, sequence, below, NOW, outcome())

    @rule(way=st.sampled_from(["written", "settle"]))
    def keep(self, way: str) -> None:
        getattr(self.some, way)()
        self.before = self.image()

    @rule()
    def undo(self) -> None:
        new = {i: (0, 0, NOW // S, {}) for i in self.image() if i not in self.before}
        self.some.undo()  # of those before, one that was dropped and said hello again is the one before
        assert self.image() == self.before | new
        assert self.some.must_write or not new
        self.before = self.image()

    @invariant()
    def what_is_to_be_written_is_all_that_differs(self) -> None:
        changed = dict(self.some.changes())
        for session_id, record in changed.items():
            assert (record is None) == (session_id not in self.some)


TestUndoMachine = UndoMachine.TestCase
