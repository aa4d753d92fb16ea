"""Commit procedures: what they do, what they refuse, and that a refusal leaves nothing."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
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
    call,
    delete,
    error_of,
    kv_key,
    put,
    results_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from inmem import values
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import InmemError, InvalidInputError, LimitError, RunDeletedError
from inmem.keys import MAX_KEY_BYTES, MAX_LABEL_BYTES, Key, TypeTag, range_of
from inmem.primitives.events import rules as event_log
from inmem.primitives.server import PROCEDURES
from inmem.wire import APPLIED, FAILED
from inmem.writeset import OP_PUT

RUN = NS.run_prefix("r")
K = kv_key("r", "k")


def log_of(bench: Bench, run: str = "r") -> list[event_log.StoredEvent]:
    """The stored log, whose index must say the same."""
    start, end = range_of(NS.run_prefix(run), TypeTag.EVENT)
    records = bench.live()
    events = [
        event_log.unpack(int.from_bytes(key[-8:], "big"), payload)
        for key, (_, payload) in sorted(records.items()) if start <= key < end
    ]
    index_start, index_end = range_of(NS.run_prefix(run), TypeTag.EVENT_BY_TYPE)
    index = {key[len(index_start):] for key in records if index_start <= key < index_end}
    assert index == {e.event_type + b"\0" + e.sequence.to_bytes(8, "big") for e in events}
    assert event_log.verify((e.sequence, event_log.pack(e)) for e in events).is_valid
    return events


class TestAppend:
    def test_sequences_and_hashes(self, bench: Bench, client: Client) -> None:
        [[first, hashes]] = results_of(client.send(append("r", ("a", 1), ("b", None))))
        assert (first, len(hashes)) == (0, 2)
        [[first, more]] = results_of(client.send(append("r", ("a", 2))))
        assert first == 2
        events = log_of(bench)
        assert [e.hash for e in events] == hashes + more
        assert [(e.event_type, values.decode(e.payload)) for e in events] == [
            (b"a", 1),
            (b"b", None),
            (b"a", 2),
        ]
        assert {e.timestamp for e in events} == {START_US}

    def test_two_appends_in_one_commit_follow_on_each_other(self, bench: Bench, client: Client) -> None:
        results = results_of(client.send(append("r", ("a", 1)), append("q", ("x", 1)), append("r", ("a", 2))))
        assert [first for first, _ in results] == [0, 0, 1]
        assert len(log_of(bench)) == 2
        assert len(log_of(bench, "q")) == 1

    def test_time_in_a_log_does_not_go_back(self, bench: Bench, client: Client) -> None:
        client.send(append("r", ("a", 1)))
        bench.now -= 10 * SECOND
        client.send(append("r", ("a", 2)))
        client.send(call("event.append", RUN, [[b"a", b"\xc0", 5]]))
        assert [e.timestamp for e in log_of(bench)] == [START_US] * 3

    def test_a_given_time_is_kept(self, bench: Bench, client: Client) -> None:
        client.send(call("event.append", RUN, [[b"a", b"\xc0", START_US - 7], [b"a", b"\xc0", START_US - 3]]))
        assert [e.timestamp for e in log_of(bench)] == [START_US - 7, START_US - 3]

    def test_an_append_of_nothing_appends_nothing(self, bench: Bench, client: Client) -> None:
        client.send(append("r", ("a", 1)))
        assert results_of(client.send(call("event.append", RUN, []))) == [[1, []]]
        assert len(log_of(bench)) == 1

    def test_one_bad_item_stops_all(self, bench: Bench, client: Client) -> None:
        items = [[b"a", b"\xc0", 0], [b"", b"\xc0", 0]]
        assert client.send(call("event.append", RUN, items)).status == FAILED
        assert log_of(bench) == []

    def test_the_longest_names_fit(self, bench: Bench, client: Client) -> None:
        longest = MAX_KEY_BYTES - MAX_LABEL_BYTES - 11
        items = [[b"t" * MAX_LABEL_BYTES, b"\xc0", 0]]
        assert client.send(call("event.append", b"p" * longest, items)).status == APPLIED
        assert isinstance(
            error_of(client.send(call("event.append", b"p" * (longest + 1), items))), InvalidInputError
        )

    def test_items_are_counted(self, client: Client) -> None:
        items = [[b"a", b"", 0]] * (MAX_TRANSACTION_OPS + 1)
        error = error_of(client.send(call("event.append", RUN, items)))
        assert isinstance(error, LimitError)
        assert (error.size, error.limit) == (MAX_TRANSACTION_OPS + 1, MAX_TRANSACTION_OPS)

    def test_the_chain_of_the_database(self, tmp_path: Path) -> None:
        some = Bench(tmp_path / "sha256", chain=1)
        some.client().send(append("r", ("a", 1)))
        assert [e.chain for e in log_of(some)] == [1]
        some.close()


class TestAdd:
    @pytest.mark.parametrize(("stored", "delta", "initial", "total"), [
        (None, 1, 0, 1), (None, 1, 10, 11), (None, 0.5, 0, 0.5), (5, -7, 100, -2), (5, 0.5, 0, 5.5),
        ((1 << 63) - 2, 1, 0, (1 << 63) - 1), (-(1 << 63) + 1, -1, 0, -(1 << 63)), (1.5, 1, 0, 2.5),
        (float("inf"), 1, 0, float("inf")), (1.0, float("-inf"), 0, float("-inf")),
    ])
    def test_sums(
        self, bench: Bench, client: Client, stored: Any, delta: Any, initial: Any, total: Any
    ) -> None:
        if stored is not None:
            client.send(put(K, stored))
        [result] = results_of(client.send(call("kv.add", K, delta, initial)))
        assert (result, type(result)) == (total, type(total))
        assert (bench.value(K), type(bench.value(K))) == (total, type(total))

    @pytest.mark.parametrize(
        ("stored", "delta", "initial"),
        [
            ((1 << 63) - 1, 1, 0),
            (-(1 << 63), -1, 0),
            (None, 1, (1 << 63) - 1),
            (1e308, 1e308, 0),
            ("text", 1, 0),
            (True, 1, 0),
            ([], 1, 0),
            (None, True, 0),
            (None, 1, False),
            (None, "1", 0),
            (None, 1, None),
            (None, None, 0),
            (None, 1 << 63, 0),
            (None, 1, 1 << 63),
            (b"1", 1, 0),
        ],
    )
    def test_refusals_change_nothing(
        self, bench: Bench, client: Client, stored: Any, delta: Any, initial: Any
    ) -> None:
        if stored is not None:
            client.send(put(K, stored))
        before = bench.records()
        error = error_of(client.send(call("kv.add", K, delta, initial)))
        assert error.code == "invalid_value"
        assert bench.records() == before

    @pytest.mark.parametrize(
        "garbage", [b"", b"\xc1", b"\x91", b"\xc7\x0c\xff" + b"\xff" * 12, b"\x01\x02"], ids=repr
    )
    def test_an_entry_that_does_not_decode_is_no_number(
        self, bench: Bench, client: Client, garbage: bytes
    ) -> None:
        client.send([OP_PUT, K, garbage, 0])
        assert error_of(client.send(call("kv.add", K, 1, 0))).code == "invalid_value"
        assert bench.live()[K][1] == garbage

    def test_an_expiry_stays(self, bench: Bench, client: Client) -> None:
        client.send(put(K, 5, START_US + SECOND))
        client.send(call("kv.add", K, 1, 0))
        assert bench.value(K) == 6
        bench.now += SECOND
        assert K not in bench.live()

    def test_an_expired_entry_counts_as_absent_and_gets_no_expiry(self, bench: Bench, client: Client) -> None:
        client.send(put(K, 5, START_US + SECOND))
        bench.now += SECOND
        assert results_of(client.send(call("kv.add", K, 1, 10))) == [11]
        bench.now += 1000 * SECOND
        assert bench.value(K) == 11

    def test_many_in_one_commit(self, bench: Bench, client: Client) -> None:
        answer = client.send(
            *[call("kv.add", K, 1, 0) for _ in range(5)], put(K, 100), call("kv.add", K, 1, 0)
        )
        assert results_of(answer) == [1, 2, 3, 4, 5, 101]
        assert bench.value(K) == 101


class TestDelete:
    def test_whether_there_was_one(self, bench: Bench, client: Client) -> None:
        client.send(put(K, 1))
        assert results_of(client.send(call("kv.delete", K), call("kv.delete", K))) == [True, False]
        assert bench.live() == {}

    def test_an_expired_entry_was_not_there(self, bench: Bench, client: Client) -> None:
        client.send(put(K, 5, START_US + SECOND))
        bench.now += SECOND
        assert results_of(client.send(call("kv.delete", K))) == [False]

    def test_an_own_write_was_there(self, client: Client) -> None:
        assert results_of(client.send(put(K, 1), call("kv.delete", K))) == [True]


BAD_KEYS = [
    b"", b"k", RUN, RUN + b"\0", RUN + b"\0\x01", b"\0\x01k", b"x" * 600 + b"\0\x01k",
    b"k" * (MAX_KEY_BYTES - 7) + b"\0\x01kkkkk", None, 7, "text", [],
    *[bytes(Key.of(RUN, tag, b"k")) for tag in TypeTag if tag != TypeTag.KV], RUN + b"\0\x99k",
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: f"{key!r:.40}")
@pytest.mark.parametrize("name", ["kv.add", "kv.delete"])
def test_kv_procedures_take_kv_keys_only(bench: Bench, client: Client, name: str, key: Any) -> None:
    client.send(append("r", ("a", 1)))
    before = bench.records()
    arguments = [key, 1, 0] if name == "kv.add" else [key]
    assert isinstance(error_of(client.send(call(name, *arguments))), InvalidInputError)
    assert bench.records() == before


@pytest.mark.parametrize("prefix", [
    b"", b"\0", b"a\0b", RUN + b"\0\x01k", b"p" * 600, None, 1, "text", [],
], ids=lambda prefix: f"{prefix!r:.40}")
def test_append_takes_a_prefix_only(bench: Bench, client: Client, prefix: Any) -> None:
    assert isinstance(
        error_of(client.send(call("event.append", prefix, [[b"a", b"\xc0", 0]]))), InvalidInputError
    )
    assert bench.records() == {}


@pytest.mark.parametrize("item", [
    None, [], [b"a"], [b"a", b""], [b"a", b"", 0, 0], {}, "abc", b"abc", 1, {"a": 1, "b": 2, "c": 3},
    ["a", b"", 0], [b"a", "", 0], [b"a", b"", None], [b"a", b"", 0.0], [b"a", b"", True], [b"a", b"", -1],
    [b"a", b"", 1 << 63], [b"", b"", 0], [b"t" * 129, b"", 0], [b"a\0b", b"", 0], [b"\xff", b"", 0],
    [b"\xed\xa0\x80", b"", 0],
], ids=repr)
def test_append_takes_items_of_one_shape(bench: Bench, client: Client, item: Any) -> None:
    error = error_of(client.send(call("event.append", RUN, [[b"good", b"\xc0", 0], item])))
    assert isinstance(error, InvalidInputError)
    assert bench.records() == {}


@pytest.mark.parametrize("items", [None, 1, "ab", b"ab", {"a": 1}], ids=repr)
def test_append_takes_a_list_of_items(client: Client, items: Any) -> None:
    assert isinstance(error_of(client.send(call("event.append", RUN, items))), InvalidInputError)


@pytest.mark.parametrize("name", ["", "kv.addd", "__class__", "exec", "event_append"])
def test_unknown_procedures(client: Client, name: str) -> None:
    error = error_of(client.send(call(name, K)))
    assert (error.code, getattr(error, "argument", None)) == ("invalid_input", "procedure")


@pytest.mark.parametrize("name", PROCEDURES)
def test_the_wrong_number_of_arguments(client: Client, name: str) -> None:
    wanted = len(inspect.signature(PROCEDURES[name]).parameters) - 1
    for count in {0, wanted - 1, wanted + 1, 50} - {wanted}:
        assert isinstance(error_of(client.send(call(name, *[K] * count))), InvalidInputError)


class TestFences:
    @pytest.mark.parametrize("op", [
        put(K, 1), delete(K), call("kv.add", K, 1, 0), call("kv.delete", K), append("r", ("a", 1)),
        call("event.append", RUN, []),
    ], ids=["put", "delete", "kv.add", "kv.delete", "event.append", "empty event.append"])
    def test_a_deleted_run_takes_nothing(self, bench: Bench, op: list[Any]) -> None:
        bench.fence(RUN)
        client = bench.client("after")
        answer = client.send(op)
        error = error_of(answer)
        assert isinstance(error, RunDeletedError)
        assert error.run_id == "r"
        assert bench.records() == {}
        assert client.send(put(kv_key("other", "k"), 1)).status == APPLIED

    def test_a_commit_into_two_runs_fails_as_a_whole(self, bench: Bench) -> None:
        bench.fence(RUN)
        client = bench.client()
        assert isinstance(error_of(client.send(put(kv_key("other", "k"), 1), put(K, 1))), RunDeletedError)
        assert bench.records() == {}


arguments = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=4)
    | st.binary(max_size=6) | st.sampled_from([K, RUN, b"\xc0", 0, 1, kv_key("r", "n")]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=400)
@given(name=st.sampled_from(sorted(PROCEDURES)), given_arguments=st.lists(arguments, max_size=4))
def test_arbitrary_arguments_give_an_answer(
    name: str, given_arguments: list[Any], shared_bench: Bench
) -> None:
    """An exception that is no answer would end the writer, and the next one that gets the request."""
    answer = Client(shared_bench, b"fuzz".ljust(16, b"."))
    answer.next = answer.answered_below = shared_bench.sessions.last_sequence(answer.session) + 1
    found = answer.send(call(name, *given_arguments))
    if found.status != APPLIED:
        assert isinstance(error_of(found), InmemError)


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    some = Bench(tmp_path_factory.mktemp("shared") / "image")
    some.client("fuzz")
    yield some
    some.assert_log_is_image()
    some.close()


def test_damaged_requests_never_end_the_writer(bench: Bench, client: Client) -> None:
    """Thousands of damaged requests, each decided; the log stays true to the image throughout."""
    rng = random.Random(20260701)
    good = [
        msgpack.packb([0, 0, [], [], [op]]) for op in (
            put(K, 1), put(K, 1, START_US + 1), delete(K), call("kv.add", K, 1, 0), call("kv.delete", K),
            append("r", ("a", 1), ("b", "x")),
        )
    ]
    good.append(msgpack.packb([3, 9, [[K, 1]], [[*range_of(RUN, TypeTag.KV), 1]], [put(K, 2)]]))
    statuses = {APPLIED: 0, FAILED: 0}
    for _ in range(150):
        group = []
        for _ in range(40):
            data = bytearray(rng.choice(good))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            group.append(client.request(bytes(data)))
        for answer in bench.commit(*group):
            statuses[answer.status] += 1
        client.answered_below = client.next
    assert min(statuses.values()) > 100, statuses
    assert sum(statuses.values()) == 6000
