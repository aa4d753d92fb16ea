"""The rules of traces: bodies, records, index keys, trees."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inmem import values
from inmem.errors import InvalidInputError, InvalidValueError, LimitError
from inmem.keys import Key, Namespace, TypeTag, range_of
from inmem.primitives.traces import rules as trace
from inmem.primitives.traces.rules import (
    Custom,
    Decision,
    ErrorTrace,
    Query,
    Thought,
    ToolCall,
    Trace,
    TraceTree,
)

NS = Namespace()
RUN = NS.run_prefix("r")
BODIES: dict[str, Any] = {
    "ToolCall": ToolCall("search", {"q": ["x", 1, b"\0", None]}, [1.5], 12.25),
    "Decision": Decision("which?", ["a", {"b": 1}], "a", "it is first"),
    "Query": Query("vector", {"text": "x"}, 3),
    "Thought": Thought("hm", 0.5),
    "Error": ErrorTrace("Timeout", "too slow", True),
    "plan": Custom("plan", {"steps": [1, 2]}),
}

plain = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False)
anything = st.recursive(
    plain | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
texts = st.text(max_size=5)
labels = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)
bodies = st.one_of(
    st.builds(ToolCall, texts, anything, anything, st.none() | st.floats(0, 1e6)),
    st.builds(Decision, texts, st.lists(anything, max_size=2), anything, st.none() | texts),
    st.builds(Query, texts, anything, st.integers(0, 1000)),
    st.builds(Thought, texts, st.none() | st.floats(0, 1)),
    st.builds(ErrorTrace, texts, texts, st.booleans()),
    st.builds(Custom, labels.filter(lambda name: name not in trace.RESERVED_NAMES), anything),
)
ids = st.text("abcXYZ019._:-", min_size=1, max_size=64)
times = st.integers(0, (1 << 63) - 1)


def packed(
    body: Any, parent: str = "", timestamp: int = 1, tags: list[str] | None = None, metadata: Any = None
) -> bytes:
    kind, encoded = trace.pack_body(trace.check_body(body))
    return trace.pack(
        kind, trace.type_name_of(body), parent, timestamp, tags or [], encoded, values.encode(metadata or {})
    )


@given(bodies, st.just("") | ids, times, st.lists(labels, max_size=3, unique=True),
       st.dictionaries(texts, anything, max_size=2))
def test_a_record_comes_back_as_it_was(
    body: Any, parent: str, timestamp: int, tags: list[str], metadata: dict[str, Any]
) -> None:
    found = trace.unpack("t", packed(body, parent, timestamp, tags, metadata))
    expected = Trace("t", parent or None, body, timestamp, tuple(tags), metadata)
    assert repr(found) == repr(expected)
    assert found.type_name == trace.type_name_of(body)


@pytest.mark.parametrize("name", BODIES)
def test_type_names(name: str) -> None:
    assert trace.type_name_of(BODIES[name]) == name
    assert trace.check_body(BODIES[name]) is BODIES[name]


def test_the_numbers_of_bodies_are_pinned() -> None:
    """They are stored."""
    assert {kind: cls.__name__ for kind, cls in trace.BODIES.items()} == {
        1: "ToolCall", 2: "Decision", 3: "Query", 4: "Thought", 5: "ErrorTrace", 6: "Custom",
    }
    assert frozenset({"ToolCall", "Decision", "Query", "Thought", "Error"}) == trace.RESERVED_NAMES


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_frozen(name: str) -> None:
    field = next(iter(type(BODIES[name]).__dataclass_fields__))
    with pytest.raises(AttributeError):
        setattr(BODIES[name], field, "changed")


@dataclass(frozen=True, slots=True)
class Pensive(Thought):
    """A subclass would come back as something else."""

    more: int = 1


@pytest.mark.parametrize(("body", "field"), [
    (None, "body"), ("text", "body"), ({"content": "x"}, "body"), (Thought, "body"), (Pensive("x"), "body"),
    (Ellipsis, "body"),
    (ToolCall(7, {}), "tool_name"), (ToolCall(None, {}), "tool_name"),
    (Decision(b"x", [], 1), "question"), (Decision("x", ("a",), 1), "options"),
    (Decision("x", None, 1), "options"),
    (Query(None, 1, 1), "query_type"), (Query("t", 1, "3"), "results_count"),
    (Query("t", 1, True), "results_count"), (Query("t", 1, 1.0), "results_count"),
    (Thought(7), "content"), (Thought(None), "content"),
    (ErrorTrace(7, "m", True), "error_type"), (ErrorTrace("t", 7, True), "message"),
    (ErrorTrace("t", "m", 1), "recoverable"), (ErrorTrace("t", "m", None), "recoverable"),
    (Custom(7, 1), "trace_type"), (Custom("", 1), "trace_type"), (Custom("a\0b", 1), "trace_type"),
    (Custom("x" * 129, 1), "trace_type"), (Custom("\ud800", 1), "trace_type"),
    *[(Custom(name, 1), "trace_type") for name in sorted(trace.RESERVED_NAMES)],
])
def test_bad_bodies(body: Any, field: str) -> None:
    with pytest.raises(InvalidInputError, match=field) as caught:
        trace.check_body(body)
    assert caught.value.argument.startswith("body")


@pytest.mark.parametrize(("body", "path"), [
    (ToolCall("t", (1,)), "arguments"), (ToolCall("t", {}, {1}), "result"),
    (Decision("q", [{1: 2}], 1), "options"), (Thought("\ud800"), "content"), (Custom("t", 1 << 63), "data"),
    (Thought("x", object()), "confidence"),
])
def test_what_a_body_holds_must_be_a_value(body: Any, path: str) -> None:
    with pytest.raises(InvalidValueError, match=path):
        trace.pack_body(trace.check_body(body))


def test_a_body_has_a_limit() -> None:
    with pytest.raises(LimitError):
        trace.pack_body(Custom("t", b"x" * values.MAX_VALUE_BYTES))


class TestIndexKeys:
    def test_all_four(self) -> None:
        payload = packed(BODIES["ToolCall"], "up", 5, ["a", "b"])
        place = (5).to_bytes(8, "big") + b"t"
        assert trace.index_keys(RUN, b"t", payload) == [
            Key.of(RUN, TypeTag.TRACE_BY_TYPE, b"ToolCall\0" + place),
            Key.of(RUN, TypeTag.TRACE_BY_PARENT, b"up\0" + place),
            Key.of(RUN, TypeTag.TRACE_BY_TIME, place),
            Key.of(RUN, TypeTag.TRACE_BY_TAG, b"a\0" + place),
            Key.of(RUN, TypeTag.TRACE_BY_TAG, b"b\0" + place),
        ]

    def test_a_root_stands_under_no_name(self) -> None:
        keys = trace.index_keys(RUN, b"t", packed(Thought("x")))
        assert Key.of(RUN, TypeTag.TRACE_BY_PARENT, b"\0" + (1).to_bytes(8, "big") + b"t") in keys
        assert len(keys) == 3

    @given(st.lists(st.tuples(times, ids), min_size=2, max_size=8, unique=True))
    def test_order_is_time_then_id(self, places: list[tuple[int, str]]) -> None:
        keyed = {}
        for timestamp, trace_id in places:
            payload = packed(Thought("x"), "p", timestamp, ["tag"])
            for key in trace.index_keys(RUN, trace_id.encode(), payload):
                keyed[key] = (timestamp, trace_id)
        for tag in (tag for tag in TypeTag if tag.name.startswith("TRACE_BY_")):
            start, end = range_of(RUN, tag)
            found = [keyed[key] for key in sorted(keyed) if start <= key < end]
            assert found == sorted(places, key=lambda p: (p[0], p[1].encode()))

    def test_the_longest_fits(self) -> None:
        longest = Namespace("t" * 32, "a" * 32, "g" * 32).run_prefix("r" * 64)
        payload = packed(Custom("\u00e9" * 64, 1), "p" * 64, (1 << 63) - 1, ["x" * 128])
        assert max(len(key) for key in trace.index_keys(longest, b"i" * 64, payload)) <= 511


@pytest.mark.parametrize("payload", [
    b"", b"\xc1", b"\xc0", b"\x05", b"\x97" + b"\xc0" * 7, msgpack.packb([4, "Thought"]),
    msgpack.packb([9, "x", "", 1, [], values.encode({}), values.encode({})]),
    msgpack.packb([4, "Thought", "", 1, [], values.encode({"other": 1}), values.encode({})]),
    msgpack.packb([4, "Thought", "", 1, [], values.encode([1, 2, 3, 4]), values.encode({})]),
    msgpack.packb([4, "Thought", "", 1, 7, values.encode({"content": "x"}), values.encode({})]),
    msgpack.packb([4, "Thought", "", 1, [], b"\xc1", values.encode({})]),
    msgpack.packb([[], "Thought", "", 1, [], values.encode({}), values.encode({})]),
])
def test_bytes_that_are_no_trace(payload: bytes) -> None:
    with pytest.raises(ValueError):
        trace.unpack("t", payload)


class Label(str, enum.Enum):  # noqa: UP042 - whose str() is not what it holds
    A = "a"


def test_a_custom_type_may_not_hide_behind_an_enum() -> None:
    with pytest.raises(InvalidValueError, match="trace_type"):
        trace.pack_body(trace.check_body(Custom(Label.A, 1)))


class TestTree:
    def tree(self, depth: int) -> TraceTree:
        bottom = top = TraceTree(Trace("0", None, Thought("x"), 0, (), {}))
        for i in range(1, depth):
            child = TraceTree(Trace(str(i), str(i - 1), Thought("x"), i, (), {}))
            bottom.children.append(child)
            bottom = child
        return top

    def test_walk_meets_parents_before_children_in_order(self) -> None:
        def leaf(name: str) -> TraceTree:
            return TraceTree(Trace(name, None, Thought("x"), 0, (), {}))

        top, left, right = leaf("top"), leaf("left"), leaf("right")
        top.children.extend((left, right))
        left.children.extend((leaf("a"), leaf("b")))
        right.children.append(leaf("c"))
        assert [(depth, t.id) for depth, t in top.walk()] == [
            (0, "top"), (1, "left"), (2, "a"), (2, "b"), (1, "right"), (2, "c"),
        ]

    def test_no_depth_is_too_deep(self) -> None:
        tree = self.tree(50_000)
        assert [depth for depth, _ in tree.walk()] == list(range(50_000))
        assert repr(tree) == "TraceTree('0', children=1)"
        assert tree == tree
        assert hash(tree)
