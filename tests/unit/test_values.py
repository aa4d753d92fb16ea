"""The value codec: type and value survive, or the path of the offender is named."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import math
import re
import struct
import threading
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inmem.errors import InvalidValueError, LimitError
from inmem.keys import RunId
from inmem.values import MAX_DEPTH, MAX_VALUE_BYTES, decode, encode

check = settings(
    derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)

INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1

texts = st.text(st.characters(exclude_categories=("Cs",)))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(INT_MIN, INT_MAX),
    st.floats(),
    texts,
    st.binary(),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(texts, inner, max_size=6),
    max_leaves=40,
)


def same(one: Any, two: Any) -> bool:
    """Equal in type, value and order of keys at every depth; floats by their bits."""
    if type(one) is not type(two):
        return False
    if type(one) is float:
        return struct.pack(">d", one) == struct.pack(">d", two)
    if type(one) is list:
        return len(one) == len(two) and all(map(same, one, two))
    if type(one) is dict:
        return (
            list(one) == list(two)
            and all(map(same, one.keys(), two.keys()))
            and all(map(same, one.values(), two.values()))
        )
    return bool(one == two)


class TestSame:
    """The judge first: it has to see what `==` does not."""

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            (True, 1),
            (False, 0),
            (1.0, 1),
            (0.0, -0.0),
            (b"a", "a"),
            ([1], [True]),
            ({"a": 1}, {"a": 1.0}),
            ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
            ([], ()),
            ([1], [1, 1]),
            (None, False),
        ],
    )
    def test_different(self, one: Any, two: Any) -> None:
        assert not same(one, two)

    def test_nan_is_itself(self) -> None:
        assert same([math.nan], [math.nan])


class TestRoundTrip:
    @check
    @given(values)
    @example(-0.0)
    @example([True, 1, 1.0, "1", b"1", None, [], {}])
    @example([math.nan, math.inf, -math.inf, 5e-324])
    @example({"": {"": {"": []}}})
    @example([INT_MIN, INT_MAX] * 20)
    @example([207] * 40)
    @example([{"a": [1]}, {"a": [1]}])
    def test_type_and_value_at_every_depth(self, value: Any) -> None:
        assert same(decode(encode(value)), value)

    @check
    @given(values)
    def test_equal_values_encode_alike_whatever_surrounds_them(self, value: Any) -> None:
        assert encode([value])[1:] == encode(value)

    @check
    @given(st.lists(st.integers(INT_MIN, INT_MAX) | st.booleans(), max_size=40))
    def test_lists_of_ints_of_every_length(self, value: list[int]) -> None:
        assert same(decode(encode(value)), value)

    @check
    @given(st.lists(st.floats() | st.none(), max_size=40))
    def test_lists_of_floats_of_every_length(self, value: list[float | None]) -> None:
        assert same(decode(encode(value)), value)

    @check
    @given(values)
    def test_bytes_are_plain_messagepack(self, value: Any) -> None:
        assert encode(value) == msgpack.packb(value, use_bin_type=True)

    def test_the_argument_is_left_alone(self) -> None:
        value = {"b": [1, {"x": 2.0}], "a": None}
        encode(value)
        assert same(value, {"b": [1, {"x": 2.0}], "a": None})

    def test_the_same_list_in_two_places_is_no_cycle(self) -> None:
        shared = [1, 2]
        assert decode(encode([shared, {"again": shared}])) == [[1, 2], {"again": [1, 2]}]

    def test_threads_may_encode_at_once(self) -> None:
        start = threading.Barrier(4)
        wrong: list[Any] = []

        def work(number: int) -> None:
            start.wait(10)
            for step in range(2_000):
                for value in (f"{number}-{step}", [number, step, f"{step}"], number * step):
                    if not same(decode(encode(value)), value):
                        wrong.append(value)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Whole(int):
    __slots__ = ()


class Names(dict):  # type: ignore[type-arg]
    pass


class Items(list):  # type: ignore[type-arg]
    pass


Point = collections.namedtuple("Point", "x y")

FOREIGN = [
    (1,),
    (),
    {1},
    frozenset({1}),
    bytearray(b"a"),
    memoryview(b"a"),
    object(),
    object,
    len,
    1j,
    decimal.Decimal(1),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    datetime.timedelta(1),
    Colour.RED,
    Text("a"),
    RunId("r"),
    Whole(1),
    Names(a=1),
    Items([1]),
    collections.OrderedDict(a=1),
    collections.defaultdict(int),
    Point(1, 2),
    range(3),
    iter([]),
    ...,
    NotImplemented,
    msgpack.ExtType(1, b"a"),
    msgpack.Timestamp(1),
]

# Where a refused value stands, and the path that the error has to name. Long lists take another way
# through the check than short ones do.
PLACES = [
    (lambda bad: bad, ""),
    (lambda bad: [bad], "[0]"),
    (lambda bad: [0, "a", bad], "[2]"),
    (lambda bad: {"a": bad}, "['a']"),
    (lambda bad: {"a": 1, "b": [1, {"c": bad}]}, "['b'][1]['c']"),
    (lambda bad: [0] * 50 + [bad], "[50]"),
    (lambda bad: [0.5] * 50 + [bad], "[50]"),
    (lambda bad: ["a"] * 50 + [bad], "[50]"),
    (lambda bad: [[[0] * 20, bad]], "[0][1]"),
    (lambda bad: [[], [bad], []], "[1][0]"),
    (lambda bad: {"it's": [bad]}, '["it\'s"][0]'),
]


def refused(value: Any, path: str, problem: str, argument: str = "value") -> None:
    with pytest.raises(InvalidValueError, match=problem) as caught:
        encode(value, argument)
    assert caught.value.path == path
    assert caught.value.argument == argument
    assert str(caught.value).startswith(f"{argument}{path} ")


@pytest.mark.parametrize(("place", "path"), PLACES, ids=[path or "root" for _, path in PLACES])
class TestRefusals:
    @pytest.mark.parametrize("bad", FOREIGN, ids=lambda bad: type(bad).__name__)
    def test_a_type_that_would_not_come_back(self, place: Any, path: str, bad: Any) -> None:
        refused(place(bad), path, f"is a {type(bad).__name__}, which would not come back as one")

    @pytest.mark.parametrize(
        "bad",
        [INT_MAX + 1, INT_MIN - 1, 1 << 64, -(1 << 64), 10**5000],
        ids=["max+1", "min-1", "2**64", "-2**64", "huge"],
    )
    def test_an_int_beyond_64_bits(self, place: Any, path: str, bad: int) -> None:
        refused(place(bad), path, "outside the 64-bit signed range")

    @pytest.mark.parametrize("bad", ["\ud800", "ok\udfff", "\udc80" * 100_000], ids=["low", "high", "long"])
    def test_a_lone_surrogate(self, place: Any, path: str, bad: str) -> None:
        refused(place(bad), path, "lone surrogate")

    @pytest.mark.parametrize("key", [1, None, True, 1.5, b"a", (1, 2), Text("a"), Colour.RED], ids=repr)
    def test_a_key_that_is_no_str(self, place: Any, path: str, key: Any) -> None:
        refused(place({key: 1}), path, f"has a key of type {type(key).__name__}; keys must be str")

    def test_a_key_with_a_lone_surrogate(self, place: Any, path: str) -> None:
        refused(place({"ok": 1, "\ud800": 2}), path + "['\\ud800']", "lone surrogate")

    def test_the_argument_is_named(self, place: Any, path: str) -> None:
        refused(place({1}), path, "is a set", argument="payload")


def nested(depth: int, kind: type) -> Any:
    value: Any = [] if kind is list else {}
    for _ in range(depth - 1):
        value = [value] if kind is list else {"k": value}
    return value


class TestDepth:
    @pytest.mark.parametrize("kind", [list, dict])
    def test_at_the_limit(self, kind: type) -> None:
        value = nested(MAX_DEPTH, kind)
        assert same(decode(encode(value)), value)

    @pytest.mark.parametrize(("kind", "step"), [(list, "[0]"), (dict, "['k']")])
    def test_beyond_the_limit(self, kind: type, step: str) -> None:
        refused_path = step * MAX_DEPTH
        with pytest.raises(InvalidValueError, match="nested deeper than 128") as caught:
            encode(nested(MAX_DEPTH + 1, kind))
        assert caught.value.path == refused_path
        assert len(str(caught.value)) < 300

    def test_far_beyond_it_the_interpreter_is_not_hurt(self) -> None:
        with pytest.raises(InvalidValueError, match="nested deeper than 128"):
            encode(nested(100_000, list))

    def test_scalars_do_not_count(self) -> None:
        value = nested(MAX_DEPTH, list)
        innermost = value
        while innermost:
            innermost = innermost[0]
        innermost.append("leaf")
        assert same(decode(encode(value)), value)

    def test_a_list_that_contains_itself(self) -> None:
        value: list[Any] = [1]
        value.append(value)
        with pytest.raises(InvalidValueError, match="nested deeper than 128") as caught:
            encode(value)
        assert caught.value.path == "[1]" * MAX_DEPTH

    def test_a_list_that_contains_itself_many_times(self) -> None:
        value: list[Any] = []
        value.extend([value] * 100)
        with pytest.raises(InvalidValueError, match="nested deeper than 128"):
            encode(value)

    def test_a_dict_that_contains_itself_through_a_list(self) -> None:
        value: dict[str, Any] = {}
        value["a"] = [value]
        with pytest.raises(InvalidValueError, match="nested deeper than 128"):
            encode(value)


class TestSize:
    HEADER = 5  # of a str or bytes above 64 KiB

    @pytest.mark.parametrize("unit", ["x", b"x"], ids=["str", "bytes"])
    def test_at_the_limit(self, unit: Any) -> None:
        value = unit * (MAX_VALUE_BYTES - self.HEADER)
        data = encode(value)
        assert len(data) == MAX_VALUE_BYTES
        assert decode(data) == value

    @pytest.mark.parametrize(
        "value",
        [
            "x" * (MAX_VALUE_BYTES - HEADER + 1),
            b"x" * (MAX_VALUE_BYTES - HEADER + 1),
            "x" * (MAX_VALUE_BYTES + 1),
            "é" * (MAX_VALUE_BYTES // 2),
            [b"x" * (MAX_VALUE_BYTES // 2)] * 2,
            {"a": "x" * MAX_VALUE_BYTES},
            {"x" * MAX_VALUE_BYTES: 1},
            [0] * MAX_VALUE_BYTES,
        ],
        ids=["str", "bytes", "long str", "utf-8", "list", "dict", "key", "numbers"],
    )
    def test_beyond_the_limit(self, value: Any) -> None:
        with pytest.raises(LimitError, match=re.escape(f"the limit is {MAX_VALUE_BYTES}")) as caught:
            encode(value, "payload")
        assert caught.value.what == "payload"
        assert caught.value.limit == MAX_VALUE_BYTES
        assert caught.value.size is not None and caught.value.size > MAX_VALUE_BYTES

    def test_a_small_value_that_unfolds_into_an_enormous_one(self) -> None:
        value: list[Any] = [b"x" * 1024]
        for _ in range(100):
            value = [value, value]
        with pytest.raises(LimitError):
            encode(value)

    def test_shared_text_is_counted_before_it_is_copied(self) -> None:
        with pytest.raises(LimitError):
            encode(["x" * MAX_VALUE_BYTES] * 100_000)

    def test_a_refusal_leaves_the_codec_usable(self) -> None:
        for bad in ("\ud800", ["\ud800"], {"a": {1}}, 1 << 64, b"x" * (MAX_VALUE_BYTES + 1)):
            with pytest.raises((InvalidValueError, LimitError)):
                encode(bad)
            assert decode(encode(["after", 1])) == ["after", 1]
            assert decode(encode("after")) == "after"
