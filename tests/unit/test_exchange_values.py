"""Values as JSON: exact both ways, one text for each, and no data that passes for a mark."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inmem import values
from inmem.jsonvalues import dumps, from_json, loads, needs_marks, to_json

bits = st.integers(0, (1 << 64) - 1).map(lambda n: struct.unpack(">d", n.to_bytes(8, "big"))[0])
keys = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
    st.sampled_from(["$", "$$", "$bytes", "$float", "$$bytes", "$$float", "$x", "kind", ""]),
)
scalars = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | bits
    | st.binary(max_size=12) | st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    | st.sampled_from([0, 1, 0.0, -0.0, 1.0, 1e16, 1e-320, "", "nan"])
    | st.sampled_from(["\u2028\u2029\x85\x7f\0\n", "\U0001f600", "\ufeff\ufffe"])
)
storable = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=600)
@given(storable)
@example({"$bytes": "YWJj"})
@example({"$float": "nan"})
@example({"$$bytes": {"$": {"$$": b""}}})
@example([{"$bytes": b"x"}, {"$bytes": 1, "other": 2}, float("-inf")])
def test_what_comes_back_is_what_went_out(value: Any) -> None:
    encoded = values.encode(value)
    line = dumps(to_json(value))
    assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n")
    back = loads(line)
    # The encoding tells types, the order of keys and the bits of every float.
    assert values.encode(back) == encoded
    assert values.encode(from_json(to_json(value))) == encoded
    assert dumps(to_json(back)) == line
    if not needs_marks(encoded):
        assert dumps(value) == line
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert json.dumps(strict, separators=(",", ":")).encode() + b"\n" == line


def test_the_deepest_value() -> None:
    value: Any = {"$": b"x"}
    for _ in range(values.MAX_DEPTH - 1):
        value = [value]
    encoded = values.encode(value)
    assert values.encode(loads(dumps(to_json(value)))) == encoded


@pytest.mark.parametrize(("value", "text"), [
    (b"", '{"$bytes":""}'), (b"\xff\0", '{"$bytes":"/wA="}'), (float("inf"), '{"$float":"inf"}'),
    (float("-inf"), '{"$float":"-inf"}'), (float("nan"), '{"$float":"nan"}'), (-0.0, "-0.0"), (1.0, "1.0"),
    (1, "1"), (True, "true"), ({"$a": 1}, '{"$$a":1}'), ({"$": 1}, '{"$$":1}'),
    ({"$a": 1, "b": 2}, '{"$a":1,"b":2}'),
    ("\u00e9\n", '"\\u00e9\\n"'),
])  # fmt: skip
def test_the_text_is_fixed(value: Any, text: str) -> None:
    assert dumps(to_json(value)).decode() == text + "\n"


@pytest.mark.parametrize("text", [
    "", "{", "nul", "NaN", "Infinity", "-Infinity",
    '{"$bytes":"YQ"}', '{"$bytes":"YR=="}', '{"$bytes":"Y Q=="}', '{"$bytes":"\\u00e9"}', '{"$bytes":1}',
    '{"$float":"Inf"}', '{"$float":"7ff8000000000000"}',
    '{"$float":"7FF8000000000001"}', '{"$float":"3ff0000000000000"}', '{"$float":1}',
    '{"$other":1}', '{"$":1}',
    '{"a":1,"a":1}', '[{"b":{"a":1,"a":2}}]', "\u00e9", '"\u2028"', "[" * 5000, "1" * 5000, "1 2", "[1,]",
])  # fmt: skip
def test_what_is_not_written_so_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        loads(text.encode())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [(1,), {1}, object(), bytearray(b"x"), [complex(1)]])
def test_what_is_no_value_has_no_text(value: Any) -> None:
    with pytest.raises(ValueError, match="no value of the store"):
        to_json(value)


def test_keys_that_are_twice_are_not_lost_in_silence() -> None:
    with pytest.raises(ValueError, match="twice"):
        loads(b'{"kind":"kv","kind":"cell"}')
