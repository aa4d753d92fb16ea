"""What an EventLog promises, through every form to write and every form to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from forms import IDS, PAIRS, READERS, WITHIN, WRITERS, Form, Within, new_run, pair

import inmem

ZEROS = bytes(32)


@pytest.fixture(params=[*PAIRS, WITHIN], ids=IDS)
def store(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Iterator[Any]:
    some = pair(shared_db, request.param, "events")
    yield some
    some.close()


@pytest.fixture(params=WRITERS, ids=lambda form: form.name)
def writer(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "events")
    return form


@pytest.fixture(params=READERS, ids=lambda form: form.name)
def reader(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "events")
    return form


EVENTS: list[tuple[str, Any]] = [
    ("started", {"by": "planner"}), ("step", 0), ("tool", None), ("step", [1, b"\xff"]), ("step", 2.5),
    ("\u00e9t\u00e9", "text"), ("ste", True), ("done", {}),
]


@pytest.fixture
def filled(store: Any) -> Any:
    store.write(lambda events: events.append(*EVENTS[0]))
    store.write(lambda events: events.append_many(EVENTS[1:5]))
    for event in EVENTS[5:]:
        store.write(lambda events, event=event: events.append(*event))
    return store


def shown(events: list[inmem.Event]) -> list[tuple[int, str, Any]]:
    return [(e.sequence, e.event_type, e.payload) for e in events]


ALL = [(i, *event) for i, event in enumerate(EVENTS)]


def test_an_empty_log(store: Any) -> None:
    assert store.read(lambda events: events.count()) == 0
    assert store.read(lambda events: events.head()) is None
    assert store.read(lambda events: events.read(0)) is None
    assert store.read(lambda events: events.read_range(0)) == []
    assert store.read(lambda events: events.query_by_type("step")) == []
    assert store.read(lambda events: list(events.iter())) == []
    assert store.read(lambda events: events.verify_chain()) == inmem.ChainVerification(True, 0)
    assert store.write(lambda events: events.append_many([])) == []
    assert store.read(lambda events: events.count()) == 0


def test_events_come_back_in_order_with_their_types(filled: Any) -> None:
    found = filled.read(lambda events: events.read_range(0))
    assert shown(found) == ALL
    assert [type(e.payload) for e in found] == [type(payload) for _, payload in EVENTS]


def test_hashes_lead_from_event_to_event(filled: Any) -> None:
    found = filled.read(lambda events: events.read_range(0))
    assert [e.prev_hash for e in found] == [ZEROS, *[e.hash for e in found[:-1]]]
    assert len({e.hash for e in found}) == len(found)
    assert {len(e.hash) for e in found} == {32}
    times = [e.timestamp for e in found]
    assert times == sorted(times)
    assert times[0] > 1_600_000_000_000_000


def test_length_and_head_agree(filled: Any) -> None:
    assert filled.read(lambda events: events.count()) == len(EVENTS)
    head = filled.read(lambda events: events.head())
    assert shown([head]) == ALL[-1:]
    assert head == filled.read(lambda events: events.read(len(EVENTS) - 1))


def test_one_event(filled: Any) -> None:
    for i in range(len(EVENTS)):
        assert shown([filled.read(lambda events, i=i: events.read(i))]) == [ALL[i]]
    for beyond in (len(EVENTS), 10**6, (1 << 63) - 1):
        assert filled.read(lambda events, beyond=beyond: events.read(beyond)) is None


@pytest.mark.parametrize("bounds", [(0, None), (0, 0), (0, 3), (2, 5), (5, 2), (3, 100), (100, None), (7, 8)])
@pytest.mark.parametrize("limit", [None, 0, 1, 3, 100])
def test_ranges(filled: Any, bounds: tuple[int, int | None], limit: int | None) -> None:
    expected = ALL[bounds[0] : bounds[1]] if bounds[1] is None or bounds[0] < bounds[1] else []
    found = filled.read(lambda events: events.read_range(*bounds, limit=limit))
    assert shown(found) == expected[:limit]
    found = filled.read(lambda events: events.read_range(*bounds, limit=limit, reverse=True))
    assert shown(found) == expected[::-1][:limit]


@pytest.mark.parametrize("event_type", ["step", "ste", "steps", "\u00e9t\u00e9", "done", "none"])
def test_by_type(filled: Any, event_type: str) -> None:
    expected = [event for event in ALL if event[1] == event_type]
    for limit in (None, 0, 1, 2, 9):
        found = filled.read(lambda events, limit=limit: events.query_by_type(event_type, limit=limit))
        assert shown(found) == expected[:limit]
        found = filled.read(
            lambda events, limit=limit: events.query_by_type(event_type, limit=limit, reverse=True)
        )
        assert shown(found) == expected[::-1][:limit]


def test_streaming(filled: Any) -> None:
    for start in (0, 3, len(EVENTS), 100):
        assert shown(filled.read(lambda events, start=start: list(events.iter(start)))) == ALL[start:]


def test_the_chain_is_valid_and_anchors_hold(filled: Any) -> None:
    head = filled.read(lambda events: events.head())
    anchor = (head.sequence, head.hash)
    assert filled.read(lambda events: events.verify_chain(anchor)) == inmem.ChainVerification(
        True, len(EVENTS)
    )
    for wrong in ((head.sequence + 1, head.hash), (0, head.hash), (head.sequence, ZEROS)):
        found = filled.read(lambda events, wrong=wrong: events.verify_chain(wrong))
        assert not found.is_valid
        assert found.error


class TestWriters:
    def test_where_an_event_went(self, writer: Form) -> None:
        """What append returns is what is stored; in a transaction it is known after the commit."""
        first = writer(lambda events: [events.append("a", 1), *events.append_many([("b", 2), ("c", 3)])])
        second = writer(lambda events: [events.append("d", 4)])
        log = writer.db.events.read_range(writer.run_id, 0)
        assert [(a.sequence, a.hash) for a in first + second] == [(e.sequence, e.hash) for e in log]

    def test_more_than_one_chunk(self, writer: Form) -> None:
        count = 1300
        writer(lambda events: events.append_many([("t", i) for i in range(count)]))
        events = writer.db.run(writer.run_id).events
        assert [e.payload for e in events.iter()] == list(range(count))
        assert [e.payload for e in events.iter(700)] == list(range(700, count))
        assert events.verify_chain().length == count
        with writer.db.snapshot(writer.run_id) as view:
            assert sum(1 for _ in view.events.iter()) == count

    def test_many_small_appends(self, writer: Form) -> None:
        writer(lambda events: [events.append("t", i) for i in range(250)])
        assert [e.payload for e in writer.db.events.iter(writer.run_id)] == list(range(250))

    def test_one_bad_event_stops_all(self, writer: Form) -> None:
        with pytest.raises(inmem.InvalidValueError, match=r"events\[1\]\[1\]"):
            writer(lambda events: events.append_many([("a", 1), ("b", {1, 2}), ("c", 3)]))
        assert writer.db.events.count(writer.run_id) == 0

    def test_runs_are_apart(self, writer: Form) -> None:
        other = new_run()
        writer(lambda events: events.append("t"))
        assert writer.db.events.count(other) == 0
        assert writer.db.events.append(other, "t").sequence == 0

    def test_there_is_no_update_and_no_delete(self, writer: Form) -> None:
        if writer.name == "pipeline":
            assert not hasattr(writer.db.pipeline().events, "delete")
            return
        for name in ("update", "delete"):
            with pytest.raises(inmem.AppendOnlyError):
                writer(lambda events, name=name: getattr(events, name)(0))


class TestReaders:
    def test_there_is_no_update_and_no_delete(self, reader: Form) -> None:
        for name in ("update", "delete"):
            with pytest.raises(inmem.AppendOnlyError):
                reader(lambda events, name=name: getattr(events, name)(0, "x", payload=1))

    def test_reading_changes_nothing(self, reader: Form) -> None:
        reader.db.events.append(reader.run_id, "t", 1)
        before = reader.db.status().version
        reader(lambda events: [events.head(), events.count(), list(events.iter()), events.verify_chain()])
        assert reader.db.status().version == before


class TestInATransaction:
    def test_pending_until_the_commit(self, shared_db: inmem.Database) -> None:
        run = new_run()
        with shared_db.transaction(run) as txn:
            pending = txn.events.append("t")
            with pytest.raises(inmem.InvariantError, match="after the commit"):
                _ = pending.sequence
            with pytest.raises(inmem.InvariantError, match="after the commit"):
                _ = pending.hash
        assert (pending.sequence, len(pending.hash)) == (0, 32)

    def test_one_that_only_appends_never_conflicts(self, shared_db: inmem.Database) -> None:
        run = new_run()
        with shared_db.transaction(run) as txn:
            mine = txn.events.append("mine")
            shared_db.events.append(run, "other")
        assert mine.sequence == 1
        assert shared_db.events.verify_chain(run).is_valid

    @pytest.mark.parametrize("look", [
        lambda events: events.count(), lambda events: events.head(), lambda events: events.read(0),
        lambda events: events.read_range(0), lambda events: events.query_by_type("t"),
        lambda events: list(events.iter()), lambda events: events.verify_chain(),
    ])
    @pytest.mark.parametrize("before", [0, 2])
    @pytest.mark.parametrize("append_first", [True, False])
    def test_one_that_reads_its_log_pins_the_head(
        self, shared_db: inmem.Database, look: Any, before: int, append_first: bool
    ) -> None:
        run = new_run()
        shared_db.events.append_many(run, [("t", i) for i in range(before)])
        txn = shared_db.transaction(run)
        if append_first:
            txn.events.append("mine")
        look(txn.events)
        txn.events.append("mine")
        shared_db.events.append(run, "other")
        with pytest.raises(inmem.ConflictError):
            txn.commit()
        assert shared_db.events.count(run) == before + 1

    def test_events_seen_before_the_commit_are_those_stored(self, shared_db: inmem.Database) -> None:
        run = new_run()
        shared_db.events.append(run, "first")
        with shared_db.transaction(run) as txn:
            txn.events.append("a", 1)
            assert txn.events.count() == 2
            txn.events.append("b", 2)
            seen = txn.events.read_range(0)
        assert shared_db.events.read_range(run, 0) == seen

    def test_nothing_is_added_after_the_end(self, shared_db: inmem.Database) -> None:
        some = Within(shared_db, "events")
        some.write(lambda events: events.append("t"))
        some.close()
        for late in (
            lambda events: events.append("late"), lambda events: events.append_many([("late", 1)]),
            lambda events: events.count(), lambda events: events.read(0),
        ):
            with pytest.raises(inmem.ClosedError):
                some.write(late)
        assert shared_db.events.count(some.run_id) == 1


def test_a_stream_sees_what_is_appended_meanwhile(shared_db: inmem.Database) -> None:
    run = new_run()
    shared_db.events.append_many(run, [("t", i) for i in range(600)])
    seen = []
    for event in shared_db.events.iter(run):
        seen.append(event.payload)
        if event.sequence == 10:
            shared_db.events.append(run, "t", "later")
    assert seen == [*range(600), "later"]


def test_sha256_chains(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_CHAIN", "sha256")
    with inmem.open() as db:
        db.events.append("r", "a", 1)
        with db.transaction("r") as txn:
            txn.events.append("b", 2)
            seen = txn.events.read_range(0)
        assert db.events.read_range("r", 0) == seen
        assert all(any(event.hash[16:]) for event in seen)
        assert db.events.verify_chain("r") == inmem.ChainVerification(True, 2)
