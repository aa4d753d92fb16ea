"""What a TraceStore promises, through every form to write and every form to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from forms import READERS, WITHIN, ElsewhereForm, FacadeForm, Form, ScopeForm, TransactionForm, new_run, pair

import inmem
from inmem import Custom, Decision, ErrorTrace, NewTrace, Query, Thought, ToolCall

WRITERS = (FacadeForm, ScopeForm, TransactionForm, ElsewhereForm)
PAIRS = [(writer, reader) for writer in WRITERS for reader in READERS]
IDS = [f"{writer.name}-{reader.name}" for writer, reader in PAIRS] + [WITHIN]
BODIES: dict[str, Any] = {
    "ToolCall": ToolCall("search", {"q": ["x", 1, b"\0", None]}, [1.5, True], 12.25),
    "Decision": Decision("which?", ["a", {"b": 1}], "a", "it is first"),
    "Query": Query("vector", {"text": "x"}, 3),
    "Thought": Thought("hm", 0.5),
    "Error": ErrorTrace("Timeout", "too slow", True),
    "plan": Custom("plan", {"steps": [1, 2]}),
}


@pytest.fixture(params=[*PAIRS, WITHIN], ids=IDS)
def store(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Iterator[Any]:
    some = pair(shared_db, request.param, "traces")
    yield some
    some.close()


@pytest.fixture(params=WRITERS, ids=lambda form: form.name)
def writer(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "traces")
    return form


def names(traces: list[inmem.Trace]) -> list[str]:
    return [trace.id for trace in traces]


def test_each_body_comes_back_and_is_found_by_its_type(store: Any) -> None:
    for name, body in BODIES.items():
        trace_id = store.write(lambda traces, body=body: traces.record(body))
        found = store.read(lambda traces, trace_id=trace_id: traces.get(trace_id))
        assert (found.id, repr(found.body), found.type_name) == (trace_id, repr(body), name)
        assert (found.parent_id, found.tags, found.metadata) == (None, (), {})
        assert names(store.read(lambda traces, name=name: traces.query_by_type(name))) == [trace_id]
    assert store.read(lambda traces: traces.count()) == 6


def test_all_fields(store: Any) -> None:
    store.write(lambda traces: traces.record(Thought("up"), id="up"))
    trace_id = store.write(lambda traces: traces.record(
        Thought("x"), id="t:1", parent_id="up", tags=["b", "a", "b"], metadata={"k": [1]}, timestamp=5,
    ))
    assert trace_id == "t:1"
    assert store.read(lambda traces: traces.get("t:1")) == inmem.Trace(
        "t:1", "up", Thought("x"), 5, ("b", "a"), {"k": [1]}
    )


def test_what_is_absent(store: Any) -> None:
    assert store.read(lambda traces: traces.get("t")) is None
    for call in (
        lambda t: t.query_by_type("Thought"), lambda t: t.query_by_tag("x"), lambda t: t.get_children("t"),
        lambda t: t.query_by_time(0, (1 << 63) - 1), lambda t: t.roots(), lambda t: t.list(),
    ):
        assert store.read(call) == []
    assert store.read(lambda traces: traces.count()) == 0
    with pytest.raises(inmem.TraceNotFoundError) as caught:
        store.read(lambda traces: traces.get_tree("t"))
    assert caught.value.trace_id == "t"
    assert store.write(lambda traces: traces.record_many([])) == []


def test_made_up_ids_are_different_and_in_order(store: Any) -> None:
    ids = store.write(lambda traces: traces.record_many(NewTrace(Thought(str(i))) for i in range(5)))
    assert len(set(ids)) == 5
    assert all(len(trace_id) == 36 for trace_id in ids)
    assert sorted(names(store.read(lambda traces: traces.list()))) == sorted(ids)


def test_what_was_recorded_after_a_version(store: Any, request: pytest.FixtureRequest) -> None:
    def after(version: int) -> list[tuple[int, str]]:
        return store.read(lambda traces: traces.recorded_after(version))

    assert after(0) == []
    store.write(lambda traces: traces.record(Thought("late"), id="z", timestamp=9))
    store.write(lambda traces: traces.record_many([NewTrace(Thought("x"), id=name) for name in "ba"]))
    store.write(lambda traces: traces.record(Thought("early"), id="c", timestamp=1))
    found = after(0)
    if request.node.callspec.params["store"] == WITHIN:
        assert found == [], "what a transaction records has no version before its end"
        return
    assert [name for _, name in found] == ["z", "a", "b", "c"]
    first, second, same, last = [version for version, _ in found]
    assert first < second == same < last
    assert after(first) == found[1:] and after(second - 1) == found[1:]
    assert after(second) == found[3:] and after(last) == []


def test_an_id_that_is_taken(store: Any) -> None:
    store.write(lambda traces: traces.record(Thought("kept"), id="t", tags=["kept"]))
    for call in (
        lambda traces: traces.record(Thought("new"), id="t", tags=["new"]),
        lambda traces: traces.record_many([NewTrace(Thought("new"), id=name) for name in ("n", "t")]),
        lambda traces: traces.record_many([NewTrace(Thought("new"), id="m")] * 2),
        lambda traces: traces.record_child("t", Thought("new"), id="t"),
    ):
        with pytest.raises(inmem.TraceExistsError):
            store.write(call)
    assert store.read(lambda traces: (traces.count(), traces.query_by_tag("new"))) == (1, [])
    assert store.read(lambda traces: traces.get("t")).body == Thought("kept")
    assert store.read(lambda traces: names(traces.list())) == ["t"]


def test_a_parent_that_does_not_exist(store: Any) -> None:
    for call in (
        lambda traces: traces.record(Thought("x"), parent_id="up"),
        lambda traces: traces.record_child("up", Thought("x")),
        lambda traces: traces.record(Thought("x"), id="up", parent_id="up"),
        lambda traces: traces.record_many(
            [NewTrace(Thought("x"), parent_id="up"), NewTrace(Thought("x"), id="up")]
        ),
    ):
        with pytest.raises(inmem.TraceNotFoundError) as caught:
            store.write(call)
        assert caught.value.trace_id == "up"
    assert store.read(lambda traces: (traces.count(), traces.list())) == (0, [])
    assert store.read(lambda traces: traces.get_children("up")) == []


def test_parents_may_come_earlier_in_one_call(store: Any) -> None:
    store.write(lambda traces: traces.record_many([
        NewTrace(Thought("a"), id="a"), NewTrace(Thought("b"), id="b", parent_id="a"),
        NewTrace(Thought("c"), id="c", parent_id="b"),
    ]))
    tree = store.read(lambda traces: traces.get_tree("a"))
    assert [(depth, trace.id) for depth, trace in tree.walk()] == [(0, "a"), (1, "b"), (2, "c")]


PLACES = [("d", 1), ("a", 2), ("b", 2), ("c", 2), ("a.b", 3), ("a-", 3)]  # not in their order
ORDER = ["d", "a", "b", "c", "a-", "a.b"]


@pytest.fixture
def filled(store: Any) -> Any:
    store.write(lambda traces: traces.record(Thought("up"), id="up", timestamp=1000))
    some = [NewTrace(Thought("x"), name, "up", ("tag",), None, time) for name, time in reversed(PLACES)]
    store.write(lambda traces: traces.record_many(some))
    return store


@pytest.mark.parametrize(
    ("limit", "reverse"), [(None, False), (None, True), (0, False), (2, False), (3, True), (9, True)]
)
def test_order_limit_and_reverse_of_every_query(filled: Any, limit: int | None, reverse: bool) -> None:
    options: dict[str, Any] = {"limit": limit, "reverse": reverse}

    def part(expected: list[str]) -> list[str]:
        return (expected[::-1] if reverse else expected)[:limit]

    for call, expected in (
        (lambda t: t.query_by_tag("tag", **options), ORDER),
        (lambda t: t.get_children("up", **options), ORDER),
        (lambda t: t.query_by_type("Thought", **options), [*ORDER, "up"]),
        (lambda t: t.list(**options), [*ORDER, "up"]),
        (lambda t: t.roots(**options), ["up"]),
        (lambda t: t.query_by_time(2, 3, **options), ["a", "b", "c"]),
        (lambda t: t.query_by_time(0, 1001, **options), [*ORDER, "up"]),
        (lambda t: t.query_by_time(3, 3, **options), []), (lambda t: t.query_by_time(3, 2, **options), []),
    ):
        assert names(filled.read(call)) == part(expected)


def test_names_that_begin_alike_are_kept_apart(store: Any) -> None:
    store.write(lambda traces: traces.record_many([
        NewTrace(Custom(kind, 1), kind, None, (kind,)) for kind in ("a", "ab", "a.", "A")
    ]))
    store.write(lambda traces: traces.record_many([
        NewTrace(Custom("leaf", 1), f"under-{kind}", kind) for kind in ("a", "ab", "a.", "A")
    ]))
    for kind in ("a", "ab", "a.", "A"):
        for call, expected in (
            (lambda t, kind=kind: t.query_by_type(kind), kind),
            (lambda t, kind=kind: t.query_by_tag(kind), kind),
            (lambda t, kind=kind: t.get_children(kind), f"under-{kind}"),
        ):
            assert names(store.read(call)) == [expected]


def test_a_tree(store: Any) -> None:
    for parent, name in ((None, "0"), ("0", "01"), ("0", "00"), ("01", "010"), ("00", "001"), ("00", "000")):
        store.write(lambda traces, parent=parent, name=name: traces.record(
            Thought(name), id=name, parent_id=parent, timestamp=7))
    store.write(lambda traces: traces.record(Thought("other"), id="1"))
    tree = store.read(lambda traces: traces.get_tree("0"))
    assert [(depth, trace.id) for depth, trace in tree.walk()] == [
        (0, "0"), (1, "00"), (2, "000"), (2, "001"), (1, "01"), (2, "010"),
    ]
    assert [child.trace.id for child in tree.children] == ["00", "01"]
    assert store.read(lambda traces: [t.id for _, t in traces.get_tree("00").walk()]) == ["00", "000", "001"]
    assert names(store.read(lambda traces: traces.roots())) == ["0", "1"]


def test_without_a_time_it_is_now(writer: Form) -> None:
    writer.db.kv.put("clock", "k", 1)
    before = writer.db.kv.get_versioned("clock", "k").timestamp  # type: ignore[union-attr]
    trace_id = writer(lambda traces: traces.record(Thought("x")))
    writer.db.kv.put("clock", "k", 1)
    after = writer.db.kv.get_versioned("clock", "k").timestamp  # type: ignore[union-attr]
    found = writer.db.traces.get(writer.run_id, trace_id)
    assert found is not None
    assert before <= found.timestamp <= after


def test_tags_may_come_from_anywhere(writer: Form) -> None:
    for i, tags in enumerate((("a", "b"), ["a", "b"], iter(["a", "b"]), {"a": 1, "b": 2})):
        writer(lambda traces, i=i, tags=tags: traces.record(Thought("x"), id=f"t{i}", tags=tags))
        assert writer.db.traces.get(writer.run_id, f"t{i}").tags == ("a", "b")  # type: ignore[union-attr]


def test_the_longest_names(writer: Form) -> None:
    longest = "i" * 64
    writer(lambda traces: traces.record(Custom("\u00e9" * 64, 1), id=longest, tags=["x" * 128]))
    writer(lambda traces: traces.record_child(longest, Thought("x"), timestamp=(1 << 63) - 1))
    traces = writer.db.traces
    assert names(traces.query_by_type(writer.run_id, "\u00e9" * 64)) == [longest]
    assert names(traces.query_by_tag(writer.run_id, "x" * 128)) == [longest]
    assert len(traces.get_children(writer.run_id, longest)) == 1


def test_traces_are_frozen_and_a_snapshot_cannot_write(shared_db: inmem.Database) -> None:
    run = new_run()
    shared_db.traces.record(run, Thought("x"), id="t")
    with shared_db.snapshot(run) as view:
        found = view.traces.get("t")
        assert found is not None
        with pytest.raises(AttributeError):
            found.timestamp = 7  # type: ignore[misc]
        for method in ("record", "record_child", "record_many"):
            assert not hasattr(view.traces, method)


class TestInsideATransaction:
    @pytest.fixture
    def run_id(self) -> str:
        return new_run()

    def test_a_refusal_that_is_caught_leaves_nothing_to_be_seen(
        self, shared_db: inmem.Database, run_id: str
    ) -> None:
        shared_db.traces.record(run_id, Thought("x"), id="taken")
        with shared_db.transaction(run_id) as txn:
            with pytest.raises(inmem.TraceExistsError):
                txn.traces.record_many(
                    [NewTrace(Thought("x"), id="n", tags=["t"]), NewTrace(Thought("x"), id="taken")]
                )
            assert txn.traces.get("n") is None
            assert txn.traces.query_by_tag("t") == []
            assert txn.traces.count() == 1
            txn.traces.record(Thought("x"), id="n")
        assert shared_db.traces.count(run_id) == 2

    def test_blind_records_meet_no_conflict(self, shared_db: inmem.Database, run_id: str) -> None:
        txn = shared_db.transaction(run_id)
        root = txn.traces.record(Thought("mine"))
        txn.traces.record_child(root, Thought("below"))
        shared_db.traces.record(run_id, Thought("theirs"))
        txn.commit()
        assert shared_db.traces.count(run_id) == 3

    @pytest.mark.parametrize("read", [
        lambda t: t.count(), lambda t: t.list(), lambda t: t.roots(), lambda t: t.query_by_type("Thought"),
        lambda t: t.query_by_tag("tag"), lambda t: t.get("new"), lambda t: t.get_children("up"),
        lambda t: t.get_tree("up"), lambda t: t.query_by_time(0, 100),
    ])
    def test_whatever_is_read_is_a_dependency(
        self, shared_db: inmem.Database, run_id: str, read: Any
    ) -> None:
        shared_db.traces.record(run_id, Thought("up"), id="up", timestamp=1)
        txn = shared_db.transaction(run_id)
        read(txn.traces)
        txn.kv.put("k", 1)
        shared_db.traces.record_many(run_id, [
            NewTrace(Thought("x"), "new", "up", ("tag",), None, 5), NewTrace(Thought("x"), "root"),
        ])
        with pytest.raises(inmem.ConflictError):
            txn.commit()

    def test_other_queries_are_none(self, shared_db: inmem.Database, run_id: str) -> None:
        shared_db.traces.record(run_id, Thought("up"), id="up", timestamp=1)
        txn = shared_db.transaction(run_id)
        txn.traces.query_by_type("ToolCall")
        txn.traces.query_by_tag("other")
        txn.traces.get_children("elsewhere")
        txn.traces.query_by_time(0, 3)
        txn.kv.put("k", 1)
        shared_db.traces.record(run_id, Thought("x"), parent_id="up", tags=["tag"], timestamp=3)
        txn.commit()
