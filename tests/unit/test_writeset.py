"""The write set: what a client sends comes out as it went in, and nothing else comes out at all."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inmem.config import MAX_READ_SET, MAX_TRANSACTION_BYTES, MAX_TRANSACTION_OPS
from inmem.errors import LimitError
from inmem.keys import MAX_KEY_BYTES
from inmem.writeset import MalformedError, WriteSet, decode, encode_single

KEY = b"t/a/g/r\0\x01k"
END = b"t/a/g/r\0\x02"

keys = st.builds(
    lambda prefix, tag, rest: prefix.replace(b"\0", b"_") + bytes([0, tag]) + rest,
    st.binary(min_size=1, max_size=8), st.integers(0, 255), st.binary(max_size=8),
)
counts = st.integers(0, (1 << 64) - 1)
ops = st.one_of(
    st.tuples(st.just(0), keys, st.binary(max_size=8), st.integers(0, (1 << 63) - 1)),
    st.tuples(st.just(1), keys),
    st.tuples(st.just(2), st.text(max_size=8), st.lists(st.integers() | st.binary(max_size=4), max_size=3)
              .filter(lambda items: all(not isinstance(i, int) or -(1 << 63) <= i < 1 << 64 for i in items))),
).map(list)
write_sets = st.builds(
    WriteSet, counts, counts, st.dictionaries(keys, counts, max_size=4),
    st.lists(st.tuples(keys, st.binary(max_size=12), counts), max_size=4), st.lists(ops, max_size=4),
)


@given(write_sets)
def test_round_trip(request: WriteSet) -> None:
    again = decode(request.encode())
    assert (again.snapshot_version, again.expiry_us) == (request.snapshot_version, request.expiry_us)
    assert (again.reads, again.ranges, again.ops) == (request.reads, request.ranges, request.ops)


@given(ops)
def test_a_single_is_the_same_as_a_write_set_of_one(op: list[Any]) -> None:
    assert encode_single(op) == WriteSet(ops=[op]).encode()


GOOD: list[Any] = [
    7,
    0,
    [[KEY, 3]],
    [[KEY, END, 1]],
    [[0, KEY, b"p", 0], [1, KEY], [2, "kv.add", [KEY, 1, 0]]],
]


def replaced(*path_and_value: Any) -> list[Any]:
    """The good document with one place changed."""
    *path, value = path_and_value
    document = msgpack.unpackb(msgpack.packb(GOOD))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return document  # type: ignore[no-any-return]


def test_the_good_document_is_good() -> None:
    assert decode(msgpack.packb(GOOD)).ops == GOOD[4]


BAD_KEYS = [
    b"",
    b"k",
    b"\0",
    b"\0\x01",
    b"\0\x01k",
    b"kk\0",
    b"k" * 20,
    b"k" * 509 + b"\0\x01k",
    "a\0\x01k",
    None,
    7,
    [],
]
BAD_COUNTS = [-1, -(1 << 63), 1.0, True, None, "1", b"1", []]
NO_LISTS = [None, 0, "", b"", {}, {1: 2}]
BAD: dict[str, Any] = {
    **{f"key of a put {k!r:.20}": replaced(4, 0, 1, k) for k in BAD_KEYS},
    **{f"key of a delete {k!r:.20}": replaced(4, 1, 1, k) for k in BAD_KEYS},
    **{f"key of a read {k!r:.20}": replaced(2, 0, 0, k) for k in BAD_KEYS},
    **{f"start of a range {k!r:.20}": replaced(3, 0, 0, k) for k in BAD_KEYS},
    **{f"end of a range {k!r:.20}": replaced(3, 0, 1, k) for k in [None, "x", 1, b"k" * 513]},
    **{f"snapshot {c!r}": replaced(0, c) for c in BAD_COUNTS},
    **{f"expiry {c!r}": replaced(1, c) for c in BAD_COUNTS},
    **{f"read version {c!r}": replaced(2, 0, 1, c) for c in BAD_COUNTS},
    **{f"range count {c!r}": replaced(3, 0, 2, c) for c in BAD_COUNTS},
    **{f"put expiry {c!r}": replaced(4, 0, 3, c) for c in [*BAD_COUNTS[1:], -(1 << 62), 1 << 63]},
    **{f"payload {p!r}": replaced(4, 0, 2, p) for p in [None, "", 1, []]},
    **{
        f"operation {o!r:.20}": replaced(4, 0, o)
        for o in [
            None,
            [],
            {},
            0,
            b"",
            "put",
            [3, KEY],
            [0],
            [0, KEY],
            [0, KEY, b"p"],
            [0, KEY, b"p", 0, 0],
            [1],
            [1, KEY, 0],
            [2, "x"],
            [2, "x", [], 0],
            [2, b"x", []],
            [2, 1, []],
            [2, "x", {}],
            [2, "x", None],
            [-1, KEY],
            ["0", KEY, b"", 0],
            [None],
            [0.5, KEY],
        ]
    },
    **{f"part {i} {v!r}": replaced(i, v) for i in (2, 3, 4) for v in NO_LISTS},
    **{f"read {v!r}": replaced(2, 0, v) for v in [None, [], [KEY], [KEY, 1, 1], KEY, {}]},
    **{f"range {v!r:.20}": replaced(3, 0, v) for v in [None, [], [KEY], [KEY, END], [KEY, END, 1, 1], {}]},
    **{
        f"document {v!r}": v
        for v in [None, 0, [], {}, "abcde", b"abcde", [0, 0, [], []], [0, 0, [], [], [], []]]
    },
    "a map of five": {b"a": 1, b"b": 2, b"c": 3, b"d": 4, b"e": 5},
    "an expiring key too long for the expiry order": replaced(
        4, 0, [0, b"k" * 500 + b"\0\x01" + b"k" * 9, b"", 1]
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_malformed(name: str) -> None:
    with pytest.raises(MalformedError):
        decode(msgpack.packb(BAD[name]))


@pytest.mark.parametrize("data", [
    b"", b"\xc1", b"\x95", msgpack.packb(GOOD)[:-1], msgpack.packb(GOOD) + b"\0", b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 5000, b"\x81\x80\xc0", b"\x81\x91\xc0\xc0",
    b"\xd6\xff\0\0\0\0", b"\xc7\x0c\xff" + b"\xff" * 12, b"\xa2\xff\xfe",
], ids=lambda data: f"{data!r:.30}")
def test_bytes_that_are_no_document(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(data)


def test_keys_at_the_limit_are_good() -> None:
    longest = b"k" * (MAX_KEY_BYTES - 3) + b"\0\x01k"
    assert len(longest) == MAX_KEY_BYTES
    assert decode(msgpack.packb(replaced(4, 0, [0, longest, b"", 0]))).ops[0][1] == longest
    expiring = longest[8:]
    assert decode(msgpack.packb(replaced(4, 0, [0, expiring, b"", 1]))).ops[0][1] == expiring


class TestLimits:
    def limit_of(self, call: Any) -> LimitError:
        with pytest.raises(LimitError) as caught:
            call()
        assert caught.value.size > caught.value.limit
        assert str(caught.value.limit) in str(caught.value)
        return caught.value

    def test_operations(self) -> None:
        full = WriteSet(ops=[[1, KEY]] * MAX_TRANSACTION_OPS)
        assert len(decode(full.encode()).ops) == MAX_TRANSACTION_OPS
        full.ops = [[1, KEY]] * (MAX_TRANSACTION_OPS + 1)
        assert self.limit_of(full.encode).limit == MAX_TRANSACTION_OPS
        raw = msgpack.packb([0, 0, [], [], full.ops])
        assert self.limit_of(lambda: decode(raw)).what == "operations of one transaction"

    def test_reads_and_ranges_together(self) -> None:
        reads = {b"k%d\0\x01" % i: 1 for i in range(MAX_READ_SET - 1)}
        over = WriteSet(reads=reads, ranges=[(KEY, END, 0)] * 2)
        assert self.limit_of(over.encode).limit == MAX_READ_SET
        raw = msgpack.packb([0, 0, list(reads.items()), over.ranges, []])
        assert self.limit_of(lambda: decode(raw)).what == "reads of one transaction"

    def test_bytes(self) -> None:
        over = WriteSet(ops=[[0, KEY, bytes(MAX_TRANSACTION_BYTES), 0]])
        assert self.limit_of(over.encode).limit == MAX_TRANSACTION_BYTES
        assert (
            self.limit_of(lambda: decode(bytes(MAX_TRANSACTION_BYTES + 1))).what == "bytes of one transaction"
        )


def fuzzed(data: bytes) -> bool:
    """Whether it decoded; anything but the two errors fails the test."""
    try:
        decode(data)
    except (MalformedError, LimitError):
        return False
    return True


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    fuzzed(data)


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5) | st.sampled_from([KEY, END, 0, 1, 2]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=20,
)


@settings(max_examples=500)
@given(st.one_of(documents, st.tuples(*[documents] * 5)))
def test_arbitrary_documents(document: Any) -> None:
    fuzzed(msgpack.packb(document))


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A request damaged in one of the ways in which a bad program or a bad wire damages it."""
    kind = rng.randrange(5)
    at = rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 6)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.randrange(1, 6) :]
    other = rng.randrange(len(data))
    return data[:at] + data[other : other + 8] + data[at + 8 :]


FUZZED = 30_000


def test_damaged_requests_are_refused_and_do_nothing_else() -> None:
    rng = random.Random(20260701)
    good = msgpack.packb(GOOD)
    decoded = sum(fuzzed(mutated(rng, good)) for _ in range(FUZZED // 2))
    decoded += sum(fuzzed(rng.randbytes(rng.randrange(60))) for _ in range(FUZZED // 2))
    assert 0 < decoded < FUZZED // 2, "damage to a payload or a version stays a request; most is noticed"


