"""The workspace of a commit: stored state under the commit's own changes, like one dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inmem.commit.workspace import DATA, Workspace
from inmem.errors import RunDeletedError
from inmem.keys import Key, Namespace, TypeTag, bucket_of, fence_of, range_of
from inmem.record import pack, version_of
from inmem.storage.environment import Table
from inmem.storage.wal.format import DELETE, DELETE_RANGE, PUT

NS = Namespace()
RUN = NS.run_prefix("r")
NOW = 1_000


def kv(name: str, run: str = "r") -> bytes:
    return bytes(Key.kv(NS, run, name))


class Base:
    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.records = records

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self.records, reverse=reverse):
            if start <= key < end:
                yield key, self.records[key]


def workspace(records: dict[bytes, bytes] | None = None, fences: set[bytes] | None = None) -> Workspace:
    return Workspace(Base(records or {}), fences or set(), version=9, now_us=NOW, chain=0)


def test_reads_fall_through_to_what_is_stored() -> None:
    stored = pack(3, 1, 0, b"stored")
    some = workspace({kv("a"): stored, kv("dead"): pack(3, 1, NOW, b"x")})
    assert (some.get(kv("a")), some.record(kv("a"))) == (b"stored", stored)
    assert some.get(kv("b")) is None
    assert some.get(kv("dead")) is None
    assert some.ops == []


def test_own_changes_are_seen() -> None:
    some = workspace({kv("a"): pack(3, 1, 0, b"stored")})
    some.put(kv("a"), b"mine")
    assert some.get(kv("a")) == b"mine"
    record = some.record(kv("a"))
    assert record is not None
    assert version_of(record) == 9
    some.delete(kv("a"))
    assert some.get(kv("a")) is None
    some.put(kv("a"), b"again")
    assert some.get(kv("a")) == b"again"
    assert [op[0] for op in some.ops] == [PUT, DELETE, PUT], "operations stay in order"
    assert some.buckets == {bucket_of(kv("a"))}


def test_an_own_write_that_has_expired_is_not_seen() -> None:
    some = workspace({kv("a"): pack(3, 1, 0, b"stored")})
    some.put(kv("a"), b"mine", NOW)
    assert some.get(kv("a")) is None
    some.put(kv("a"), b"mine", NOW + 1)
    assert some.get(kv("a")) == b"mine"


def test_a_cleared_range_hides_what_is_stored_and_what_was_written_before() -> None:
    some = workspace({kv(n): pack(3, 1, 0, b"stored") for n in "abc"})
    some.put(kv("b"), b"mine")
    start, end = range_of(RUN, TypeTag.KV)
    some.delete_range(start, end)
    assert [some.get(kv(n)) for n in "abc"] == [None] * 3
    assert list(some.scan(start, end)) == []
    assert some.last(start, end) is None
    some.put(kv("c"), b"later")
    assert list(some.scan(start, end)) == [(kv("c"), b"later")]
    assert some.last(start, end) == (kv("c"), b"later")
    assert [op[0] for op in some.ops] == [PUT, DELETE_RANGE, PUT]


def test_clearing_a_run_marks_all_its_buckets() -> None:
    some = workspace()
    some.delete_range(RUN + b"\0", RUN + b"\x01")
    assert some.buckets == {b"%b\0%c" % (RUN, tag) for tag in TypeTag}


class TestFences:
    def fenced(self) -> Workspace:
        return workspace(fences={fence_of(RUN)})

    @pytest.mark.parametrize("attempt", [
        lambda some: some.put(kv("a"), b""),
        lambda some: some.put(bytes(Key.state(NS, "r", "s")), b""),
        lambda some: some.put(bytes(Key.event(NS, "r", 0)), b""),
        lambda some: some.put(bytes(Key.trace(NS, "r", "t")), b""),
        lambda some: some.put(bytes(Key.run(NS, "r")), b""),
        lambda some: some.delete(bytes(Key.run(NS, "r"))),
        lambda some: some.delete(kv("a")),
        lambda some: some.delete_range(*range_of(RUN, TypeTag.KV)),
        lambda some: some.delete_range(RUN + b"\0", RUN + b"\x01"),
        lambda some: some.check_open(kv("a")),
    ])
    def test_nothing_is_written_into_a_deleted_run(self, attempt: Any) -> None:
        some = self.fenced()
        with pytest.raises(RunDeletedError, match="run r was deleted") as caught:
            attempt(some)
        assert caught.value.run_id == "r"
        assert (some.ops, some.buckets) == ([], set())

    @pytest.mark.parametrize("run", ["r2", "R", "r.", "q"])
    def test_other_runs_are_open(self, run: str) -> None:
        some = self.fenced()
        some.put(kv("a", run), b"x")
        some.put(bytes(Key.run(NS, run)), b"x")
        some.put(NS.shared_prefix("agent") + b"\0\x01k", b"x")
        assert len(some.ops) == 3

    def test_the_same_run_id_of_another_agent_is_open(self) -> None:
        some = self.fenced()
        some.put(bytes(Key.kv(Namespace(agent="other"), "r", "a")), b"x")
        assert len(some.ops) == 1

    def test_a_fence_is_written_under_its_digest(self) -> None:
        some = workspace()
        some.fence(RUN)
        assert some.ops == [(PUT, int(Table.FENCES), fence_of(RUN), (9).to_bytes(8, "big"))]
        assert some.new_fences == [fence_of(RUN)]
        assert self.fenced().is_fenced(RUN)
        assert not self.fenced().is_fenced(RUN + b"2")


names = st.sampled_from("abcdef")
steps = st.lists(st.one_of(
    st.tuples(st.just("put"), names, st.binary(max_size=2)),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("clear"), names, names),
), max_size=12)


@given(st.dictionaries(names, st.tuples(st.binary(max_size=2), st.sampled_from([0, NOW, NOW + 1]))), steps,
       names, names)
def test_like_one_dictionary(
    stored: dict[str, tuple[bytes, int]], todo: list[Any], low: str, high: str
) -> None:
    base = {kv(n): pack(1, 1, expiry, payload) for n, (payload, expiry) in stored.items()}
    some = workspace(base)
    model = {kv(n): payload for n, (payload, expiry) in stored.items() if expiry != NOW}
    for kind, *args in todo:
        if kind == "put":
            some.put(kv(args[0]), args[1])
            model[kv(args[0])] = args[1]
        elif kind == "delete":
            some.delete(kv(args[0]))
            model.pop(kv(args[0]), None)
        else:
            start, end = sorted((kv(args[0]), kv(args[1])))
            some.delete_range(start, end)
            model = {k: v for k, v in model.items() if not start <= k < end}
    start, end = sorted((kv(low), kv(high)))
    expected = [(k, v) for k, v in sorted(model.items()) if start <= k < end]
    assert list(some.scan(start, end)) == expected
    assert some.last(start, end) == (expected[-1] if expected else None)
    assert {n: some.get(kv(n)) for n in "abcdef"} == {n: model.get(kv(n)) for n in "abcdef"}
    # The operations alone, applied to what is stored, lead to the same place.
    applied = dict(base)
    for op in some.ops:
        assert op[1] == DATA
        if op[0] == PUT:
            applied[op[2]] = op[3]
        elif op[0] == DELETE:
            applied.pop(op[2], None)
        else:
            applied = {k: v for k, v in applied.items() if not op[2] <= k < op[3]}
    again = workspace(applied)
    assert {k: again.get(k) for k in applied if again.get(k) is not None} == model


@given(st.dictionaries(names, st.binary(max_size=2)), steps, steps, steps, st.booleans())
def test_a_savepoint_takes_everything_back(
    stored: dict[str, bytes], before: list[Any], inside: list[Any], nested: list[Any], also_fences: bool
) -> None:
    some = workspace({kv(n): pack(1, 1, 0, payload) for n, payload in stored.items()})

    def run(todo: list[Any]) -> None:
        for kind, *args in todo:
            if kind == "put":
                some.put(kv(args[0]), args[1])
            elif kind == "delete":
                some.delete(kv(args[0]))
            else:
                start, end = sorted((kv(args[0]), kv(args[1])))
                some.delete_range(start, end)

    def seen() -> Any:
        whole = range_of(RUN, TypeTag.KV)
        return (
            list(some.scan(*whole)), some.last(*whole), some.own_keys(*whole), list(some.ops),
            set(some.buckets), list(some.new_fences), dict(some.new_marks), dict(some._highest),
            dict(some._changed), list(some._cleared),
        )

    run(before)
    was = seen()
    with pytest.raises(KeyError), some.savepoint():
        run(inside)
        if also_fences:
            some.fence(b"a/b/c/gone")
            some.set_mark(b"a/b/c/other", b"mark")
        with some.savepoint():  # ends well, and is taken back with the outer one
            run(nested)
        raise KeyError
    assert seen() == was
    with some.savepoint():
        run(inside)
    kept = seen()
    with pytest.raises(KeyError), some.savepoint():
        run(nested)
        raise KeyError
    assert seen() == kept, "what ended well stays"
