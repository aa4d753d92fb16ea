"""The procedure of traces: a trace and all of its index entries, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from committing import NS, Bench, call, error_of, results_of
from hypothesis import given
from hypothesis import strategies as st
from procedures import BAD_IDS, BAD_PREFIXES, BAD_TAGS, RUN, Stored

from inmem import values
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import (
    InmemError,
    InvalidInputError,
    LimitError,
    RunDeletedError,
    TraceExistsError,
    TraceNotFoundError,
)
from inmem.keys import fence_of
from inmem.primitives.server import PROCEDURES
from inmem.primitives.traces import rules as trace
from inmem.primitives.traces.procedures import record
from inmem.primitives.traces.rules import Thought, Trace
from inmem.record import payload_of

EMPTY = values.encode({})
BODY = values.encode({"content": "x", "confidence": None})
FIELDS = ("id", "parent_id", "timestamp", "kind", "type", "tags", "body", "metadata")


def item(trace_id: Any = "t", parent: Any = "", timestamp: Any = 0, tags: Any = ()) -> list[Any]:
    found = list(tags) if isinstance(tags, tuple) else tags
    return [trace_id, parent, timestamp, 4, "Thought", found, BODY, EMPTY]


@pytest.fixture
def stored() -> Iterator[Stored]:
    some = Stored()
    yield some
    some.assert_indices()


def traces(stored: Stored) -> dict[str, Trace]:
    start = trace.trace_key(RUN, b"")
    return {
        key[len(start):].decode(): trace.unpack(key[len(start):].decode(), payload_of(found))
        for key, found in stored.records.items() if key.startswith(start)
    }


def test_a_trace_with_all_its_entries(stored: Stored) -> None:
    assert stored.run(record, RUN, [item("t", "", 5, ("a", "b"))]) == [5]
    assert traces(stored) == {"t": Trace("t", None, Thought("x"), 5, ("a", "b"), {})}
    assert len(stored.records) == 1 + 3 + 2


def test_without_a_time_it_is_that_of_the_commit(stored: Stored) -> None:
    assert stored.run(record, RUN, [item("a"), item("b", "a", 7)]) == [stored.now, 7]
    assert traces(stored)["a"].timestamp == stored.now


def test_a_parent_may_come_earlier_in_the_same_call_or_commit(stored: Stored) -> None:
    stored.run(record, RUN, [item("a"), item("b", "a"), item("c", "b")])
    some = stored.workspace()
    record(some, RUN, [item("d", "c")])
    record(some, RUN, [item("e", "d")])
    stored.commit(some)
    assert {t.id: t.parent_id for t in traces(stored).values()} == {
        "a": None, "b": "a", "c": "b", "d": "c", "e": "d",
    }


def test_nothing_is_recorded_of_nothing(stored: Stored) -> None:
    assert stored.run(record, RUN, []) == []
    assert stored.records == {}


class TestRefused:
    def test_an_id_that_is_taken(self, stored: Stored) -> None:
        stored.run(record, RUN, [item("t")])
        error = stored.refused(TraceExistsError, record, RUN, [item("t", tags=("new",))])
        assert error.trace_id == "t"

    def test_an_id_twice_in_one_call(self, stored: Stored) -> None:
        with pytest.raises(TraceExistsError):
            stored.run(record, RUN, [item("t"), item("t")])
        assert stored.records == {}

    @pytest.mark.parametrize("items", [[item("t", "t")], [item("a", "b"), item("b")]])
    def test_a_parent_that_does_not_exist_yet(self, stored: Stored, items: list[Any]) -> None:
        error = stored.refused(TraceNotFoundError, record, RUN, items)
        assert error.trace_id == items[0][1]

    def test_a_parent_in_another_run(self, stored: Stored) -> None:
        stored.run(record, NS.run_prefix("r2"), [item("up")])
        stored.refused(TraceNotFoundError, record, RUN, [item("t", "up")])

    def test_a_fenced_run(self, stored: Stored) -> None:
        stored.fences.add(fence_of(RUN))
        assert stored.refused(RunDeletedError, record, RUN, [item("t")]).run_id == "r"
        stored.run(record, NS.run_prefix("r."), [item("t")])

    def test_bad_prefixes(self, stored: Stored) -> None:
        for bad in BAD_PREFIXES:
            stored.refused(InvalidInputError, record, bad, [item()], names="prefix")

    @pytest.mark.parametrize("items", [None, 7, "text", b"bytes", {}, [None], ["abcdefgh"], [{}], [[]],
                                       [item()[:7]], [[*item(), 1]], [7]])
    def test_what_are_no_items(self, stored: Stored, items: Any) -> None:
        stored.refused(InvalidInputError, record, RUN, items, names="items")

    @pytest.mark.parametrize(("field", "bad"), [
        ("id", BAD_IDS),
        ("parent_id", [b for b in BAD_IDS if b != ""]),
        ("timestamp", [None, True, -1, 1 << 63, 1.0, "1", b"1", []]),
        ("kind", [None, True, 0, 7, -1, 1 << 63, 4.0, "4", []]),
        ("type", [None, 7, b"Thought", "", "a\0b", "x" * 129, "\u00e9" * 65, []]),
        ("tags", BAD_TAGS),
        ("body", [None, 7, "text", {}, []]),
        ("metadata", [None, 7, "text", {}, []]),
    ])
    def test_bad_fields(self, stored: Stored, field: str, bad: list[Any]) -> None:
        for value in bad:
            changed = item()
            changed[FIELDS.index(field)] = value
            stored.refused(InvalidInputError, record, RUN, [changed], names=field)

    def test_too_many_of_one_call(self, stored: Stored) -> None:
        error = stored.refused(LimitError, record, RUN, [item()] * (MAX_TRANSACTION_OPS + 1))
        assert (error.size, error.limit) == (MAX_TRANSACTION_OPS + 1, MAX_TRANSACTION_OPS)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(st.integers(0, 7), junk, st.just(RUN) | junk)
def test_arbitrary_fields_are_taken_or_refused(at: int, value: Any, prefix: Any) -> None:
    """And whatever is taken can be found again by its indices."""
    stored = Stored()
    changed = item()
    changed[at] = value
    try:
        stored.run(record, prefix, [changed])
    except InmemError:
        assert stored.records == {}
    stored.assert_indices()


ids = st.sampled_from(["a", "b", "c", "ab", "a.b"])


commits_of = st.lists(st.tuples(ids, st.just("") | ids, st.integers(1, 3)), min_size=1, max_size=3)


@given(st.lists(commits_of, max_size=8))
def test_ids_are_unique_and_parents_come_first(commits: list[list[tuple[str, str, int]]]) -> None:
    stored = Stored()
    model: dict[str, str] = {}
    for commit in commits:
        inside = dict(model)
        expected: type[InmemError] | None = None
        for trace_id, parent, _ in commit:
            if trace_id in inside:
                expected = TraceExistsError
            elif parent and parent not in inside:
                expected = TraceNotFoundError
            if expected is not None:
                break
            inside[trace_id] = parent
        items = [item(*fields) for fields in commit]
        if expected is None:
            stored.run(record, RUN, items)
            model = inside
        else:
            with pytest.raises(expected):
                stored.run(record, RUN, items)
    assert {t.id: t.parent_id or "" for t in traces(stored).values()} == model
    stored.assert_indices()


class TestThroughTheCommitter:
    def test_all_or_none(self, bench: Bench) -> None:
        client = bench.client()
        before = bench.live()
        answer = client.send(call("trace.record", RUN, [item("a"), item("b", "a"), item("c", "missing")]))
        assert isinstance(error_of(answer), TraceNotFoundError)
        assert bench.live() == before

    @pytest.mark.parametrize("name", sorted(PROCEDURES))
    def test_a_request_of_junk_ends_nothing(self, bench: Bench, name: str) -> None:
        """An answer for each, and the next request is served."""
        client = bench.client()
        count = PROCEDURES[name].__code__.co_argcount - 1
        good = {"bytes": RUN, "str": "r"}
        junk = (None, 0, -1, 1 << 63, "", "x", b"", b"\xff", [], [[]], [[0] * 8], {}, {"a": []}, [None] * 8)
        for bad in junk:
            for fill in (bad, *good.values()):
                arguments = [fill] * count
                if count:
                    arguments[-1] = bad
                error_of(client.send(call(name, *arguments), call("no such procedure")))
        assert results_of(client.send(call("trace.record", RUN, [item("alive", "", 1)]))) == [[1]]

    def test_a_procedure_that_fails_is_an_answer(self, bench: Bench) -> None:
        """A request that a procedure chokes on would else end every writer that it is sent to."""
        def chokes(workspace: Any) -> None:
            workspace.put(trace.trace_key(RUN, b"t"), b"")
            raise AttributeError("planned" * 100)

        bench.committer._procedures = {"chokes": chokes}
        client = bench.client()
        before = bench.live()
        error = error_of(client.send(call("chokes")))
        assert isinstance(error, InvalidInputError)
        assert "chokes failed: AttributeError: planned" in str(error)
        assert len(str(error)) < 300
        assert bench.live() == before
