"""Validation: every kind of change against every kind of read, and the documented coarse answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inmem.commit import validation
from inmem.commit.validation import RecentWrites, validate
from inmem.config import MAX_RANGE_WALK
from inmem.errors import ConflictError
from inmem.keys import Key, Namespace, TypeTag, bucket_of, range_of, successor
from inmem.record import is_live, pack, version_of
from inmem.writeset import WriteSet

NS = Namespace()
RUN = NS.run_prefix("r")
NOW = 1_000_000
LATER = NOW + 500


def kv(name: str) -> bytes:
    return bytes(Key.kv(NS, "r", name))


class State:
    """Records in a dictionary, and a count of what was looked at."""

    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.records = dict(records)
        self.walked = 0

    def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self.records):
            if start <= key < end:
                self.walked += 1
                yield key, self.records[key]


def conflicts(request: WriteSet, state: State, recent: RecentWrites | None = None, now: int = NOW) -> bool:
    """Whether a request is refused; by default nothing is remembered, so ranges are walked."""
    try:
        validate(request, state, recent or RecentWrites(1 << 60), now)
    except ConflictError as error:
        assert error.code == "conflict"
        return True
    return False


# --- every change against every read --------------------------------------------------------------

BASE = {
    kv("b"): pack(3, 1, 0, b"old"),
    kv("d"): pack(5, 1, 0, b"old"),
    kv("e"): pack(5, 1, NOW + 10_000, b"with an expiry"),
    kv("x"): pack(4, 1, NOW - 10, b"expired before the snapshot"),
}
SNAPSHOT = 5

CHANGES: dict[str, Callable[[dict[bytes, bytes]], None]] = {
    "nothing": lambda records: None,
    "b rewritten": lambda records: records.update({kv("b"): pack(6, 1, 0, b"new")}),
    "b rewritten the same": lambda records: records.update({kv("b"): pack(6, 1, 0, b"old")}),
    "b given an expiry": lambda records: records.update({kv("b"): pack(6, 1, NOW + 1, b"old")}),
    "b replaced by one expired already": lambda records: records.update({kv("b"): pack(6, 1, NOW, b"")}),
    "b removed": lambda records: records.__delitem__(kv("b")),
    "b removed and made again": lambda records: records.update({kv("b"): pack(7, 1, 0, b"old")}),
    "aa added": lambda records: records.update({kv("aa"): pack(6, 1, 0, b"new")}),
    "c added": lambda records: records.update({kv("c"): pack(6, 1, 0, b"new")}),
    "c added and expired": lambda records: records.update({kv("c"): pack(6, 1, NOW, b"new")}),
    "b removed, c added": lambda records: (
        records.__delitem__(kv("b")), records.update({kv("c"): pack(6, 1, 0, b"new")})  # type: ignore[func-returns-value]
    ),
    "x swept": lambda records: records.__delitem__(kv("x")),
    "x revived": lambda records: records.update({kv("x"): pack(6, 1, 0, b"new")}),
    "z added": lambda records: records.update({kv("z"): pack(6, 1, 0, b"new")}),
    "d removed": lambda records: records.__delitem__(kv("d")),
}

READS: dict[str, tuple[list[str], list[tuple[str, str]]]] = {
    "key b": (["b"], []),
    "key c, absent": (["c"], []),
    "key x, expired": (["x"], []),
    "keys b and d": (["b", "d"], []),
    "range b to d": ([], [("b", "d")]),
    "range a to b, empty": ([], [("a", "b")]),
    "range c to d, empty": ([], [("c", "d")]),
    "range of all": ([], [("a", "zz")]),
    "range of x alone": ([], [("x", "y")]),
    "two ranges": ([], [("a", "c"), ("d", "e")]),
    "key b and range d to f": (["b"], [("d", "f")]),
}


def seen(records: dict[bytes, bytes], keys: list[str], ranges: list[tuple[str, str]]) -> object:
    """What a program that reads these would see."""
    live = {k: version_of(r) for k, r in records.items() if is_live(r, NOW)}
    return (
        [live.get(kv(key)) for key in keys],
        [[(k, v) for k, v in sorted(live.items()) if kv(a) <= k < kv(b)] for a, b in ranges],
    )


def request_for(keys: list[str], ranges: list[tuple[str, str]]) -> WriteSet:
    live = {k: version_of(r) for k, r in BASE.items() if is_live(r, NOW)}
    return WriteSet(
        SNAPSHOT, 0, {kv(key): live.get(kv(key), 0) for key in keys},
        [(kv(a), kv(b), sum(kv(a) <= k < kv(b) for k in live)) for a, b in ranges],
    )


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("change", CHANGES)
def test_refused_exactly_if_what_was_read_is_different(change: str, read: str) -> None:
    keys, ranges = READS[read]
    records = dict(BASE)
    CHANGES[change](records)
    changed = seen(records, keys, ranges) != seen(BASE, keys, ranges)
    assert conflicts(request_for(keys, ranges), State(records)) == changed


@pytest.mark.parametrize("read", READS)
def test_the_table_has_both_outcomes_for_each_read(read: str) -> None:
    keys, ranges = READS[read]
    outcomes = set()
    for change in CHANGES.values():
        records = dict(BASE)
        change(records)
        outcomes.add(seen(records, keys, ranges) == seen(BASE, keys, ranges))
    assert outcomes == {True, False}


record_sets = st.dictionaries(
    st.sampled_from("abcde"), st.tuples(st.integers(1, 5), st.sampled_from([0, NOW - 1, NOW, LATER])),
)
changes = st.dictionaries(
    st.sampled_from("abcde"), st.none() | st.tuples(st.integers(6, 9), st.sampled_from([0, NOW - 1, LATER])),
)


@given(record_sets, changes, st.sets(st.sampled_from("abcde")), st.sampled_from(
    list(itertools.combinations("abcdef", 2))), st.sampled_from([NOW, LATER - 1, LATER]))
def test_any_change_against_any_read(
    before: dict[str, tuple[int, int]], change: dict[str, tuple[int, int] | None], keys: set[str],
    bounds: tuple[str, str], now: int,
) -> None:
    old = {kv(n): pack(version, 1, expiry, b"") for n, (version, expiry) in before.items()}
    new = dict(old)
    for name, written in change.items():
        new.pop(kv(name), None)
        if written is not None:
            new[kv(name)] = pack(written[0], 1, written[1], b"")
    start, end = kv(bounds[0]), kv(bounds[1])

    def view(records: dict[bytes, bytes], at: int) -> tuple[dict[bytes, int], list[tuple[bytes, int]]]:
        live = {k: version_of(r) for k, r in records.items() if is_live(r, at)}
        return {kv(n): live.get(kv(n), 0) for n in keys}, [
            (k, v) for k, v in sorted(live.items()) if start <= k < end
        ]

    reads, scanned = view(old, NOW)
    met = [LATER for k, (_, expiry) in before.items()
           if expiry == LATER and (k in keys or start <= kv(k) < end)]
    request = WriteSet(5, min(met, default=0), reads, [(start, end, len(scanned))])
    assert conflicts(request, State(new), now=now) == (view(new, now) != (reads, scanned))


# --- expiry ------------------------------------------------------------------------------------------


def test_a_key_that_was_read_and_expires_before_the_commit_is_a_conflict() -> None:
    state = State({kv("e"): pack(5, 1, LATER, b"")})
    for request in (
        WriteSet(5, LATER, {kv("e"): 5}, []), WriteSet(5, LATER, {}, [(kv("a"), kv("f"), 1)]),
    ):
        assert not conflicts(request, state, now=LATER - 1)
        assert conflicts(request, state, now=LATER)
        assert conflicts(request, State({}), now=LATER), "swept already"


def test_expiry_is_looked_at_even_where_nothing_was_written() -> None:
    request = WriteSet(5, LATER, {}, [(kv("a"), kv("f"), 1)])
    remembered = RecentWrites(0)
    state = State({kv("e"): pack(5, 1, LATER, b"")})
    assert not conflicts(request, state, remembered, now=LATER - 1)
    assert conflicts(request, state, remembered, now=LATER)


def test_a_swept_key_in_a_scanned_range_is_none() -> None:
    before = {kv("b"): pack(2, 1, NOW - 1, b""), kv("c"): pack(3, 1, 0, b"")}
    request = WriteSet(5, 0, {kv("b"): 0}, [(kv("a"), kv("f"), 1)])
    assert not conflicts(request, State(before))
    del before[kv("b")]
    assert not conflicts(request, State(before))


# --- what the error says -------------------------------------------------------------------------------


def test_the_error_names_key_and_versions() -> None:
    with pytest.raises(ConflictError, match="KV b'b'") as caught:
        validate(WriteSet(5, 0, {kv("b"): 3}, []), State({kv("b"): pack(9, 1, 0, b"")}), RecentWrites(0), NOW)
    assert (caught.value.key, caught.value.read_version, caught.value.committed_version) == (kv("b"), 3, 9)


def test_the_error_of_a_range_names_the_new_key() -> None:
    with pytest.raises(ConflictError) as caught:
        validate(
            WriteSet(5, 0, {}, [(kv("a"), kv("f"), 0)]), State({kv("c"): pack(9, 1, 0, b"")}),
            RecentWrites(9), NOW,
        )
    assert (caught.value.key, caught.value.committed_version) == (kv("c"), 9)


# --- the table of recent writes ------------------------------------------------------------------------


def whole(tag: int = TypeTag.KV) -> tuple[bytes, bytes]:
    return range_of(RUN, tag)


def test_an_untouched_bucket_is_not_walked() -> None:
    state = State({kv("b"): pack(3, 1, 0, b"")})
    request = WriteSet(
        5, 0, {}, [(*whole(), 1), (kv("a"), kv("c"), 1), (*range_of(RUN, TypeTag.KV, b"b"), 1)]
    )
    assert not conflicts(request, state, RecentWrites(5))
    assert state.walked == 0


def test_a_range_larger_than_the_walk_passes_in_an_untouched_bucket() -> None:
    """Else a transaction that counts a large run could never commit."""
    request = WriteSet(5, 0, {}, [(*whole(), MAX_RANGE_WALK + 1)])
    assert not conflicts(request, State({}), RecentWrites(5))


def test_a_touched_bucket_is_walked() -> None:
    recent = RecentWrites(0)
    recent.wrote(bucket_of(kv("b")), 6)
    state = State({kv("b"): pack(3, 1, 0, b"")})
    assert not conflicts(WriteSet(5, 0, {}, [(*whole(), 1)]), state, recent)
    assert state.walked == 1
    state.records[kv("c")] = pack(6, 1, 0, b"")
    assert conflicts(WriteSet(5, 0, {}, [(*whole(), 1)]), state, recent)
    assert not conflicts(WriteSet(6, 0, {}, [(*whole(), 2)]), state, recent)


def test_a_range_over_several_buckets_is_always_walked() -> None:
    other = Key.of(RUN, TypeTag.STATE, b"s")
    state = State({kv("b"): pack(3, 1, 0, b""), bytes(other): pack(9, 1, 0, b"")})
    recent = RecentWrites(0)
    recent.wrote(bucket_of(other), 9)
    everything = (RUN + b"\0\x01", RUN + b"\x01")
    assert conflicts(WriteSet(5, 0, {}, [(*everything, 1)]), state, recent)
    assert conflicts(WriteSet(5, 0, {}, [(*everything, 2)]), state, recent)
    assert not conflicts(WriteSet(9, 0, {}, [(*everything, 2)]), state, recent)


def test_one_byte_beyond_the_bucket_is_another_bucket() -> None:
    start, end = whole()
    neighbour = end + b"n"
    state = State({neighbour: pack(9, 1, 0, b"")})
    assert not conflicts(WriteSet(5, 0, {}, [(start, end, 0)]), state, RecentWrites(0))
    assert conflicts(WriteSet(5, 0, {}, [(start, neighbour + b"\0", 0)]), state, RecentWrites(0))


def test_the_last_tag_has_an_end_too() -> None:
    start, end = RUN + b"\0\xffa", successor(RUN + b"\0\xff")
    state = State({})
    assert not conflicts(WriteSet(5, 0, {}, [(start, end, 0)]), state, RecentWrites(5))
    assert conflicts(WriteSet(4, 0, {}, [(start, end, 1)]), state, RecentWrites(5))


class TestRecentWrites:
    def test_unknown_buckets_are_at_the_floor(self) -> None:
        recent = RecentWrites(7)
        assert recent.last(b"a\0\1") == 7
        recent.wrote(b"a\0\1", 9)
        assert (recent.last(b"a\0\1"), recent.last(b"b\0\1")) == (9, 7)

    def test_a_full_table_forgets_and_raises_the_floor(self) -> None:
        recent = RecentWrites(0, limit=2)
        recent.wrote(b"a", 1)
        recent.wrote(b"b", 2)
        recent.wrote(b"a", 3)  # known: no room needed
        assert (recent.floor, recent.last(b"a"), recent.last(b"b")) == (0, 3, 2)
        recent.wrote(b"c", 4)
        assert recent.floor >= 3
        assert recent.last(b"c") == 4

    def test_buckets_of_the_commit_that_fills_the_table_are_not_underestimated(self) -> None:
        """A commit writes two buckets, and the second makes the table forget the first."""
        recent = RecentWrites(0, limit=1)
        recent.wrote(b"a", 5)
        recent.wrote(b"b", 5)
        assert recent.last(b"a") >= 5

    @given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), max_size=40),
           st.integers(1, 4))
    def test_never_underestimates(self, commits: list[list[str]], limit: int) -> None:
        recent = RecentWrites(0, limit=limit)
        true: dict[str, int] = {}
        for version, buckets in enumerate(commits, 1):
            for bucket in buckets:
                recent.wrote(bucket.encode(), version)
                true[bucket] = version
            for bucket in "abcdef":
                assert true.get(bucket, 0) <= recent.last(bucket.encode()) <= version
            assert len(recent._versions) <= limit


# --- bounds of the walk ----------------------------------------------------------------------------------


def test_more_records_than_the_walk_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_RANGE_WALK", 10)
    for count in (9, 10, 11):
        state = State({kv(f"k{i:03}"): pack(1, 1, 0, b"") for i in range(count)})
        assert conflicts(WriteSet(5, 0, {}, [(*whole(), count)]), state) == (count > 10)
        assert state.walked <= 10


def test_a_walk_over_expired_records_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_RANGE_WALK", 10)
    for dead in (20, 21, 22, 500):
        state = State({kv(f"k{i:03}"): pack(1, 1, NOW - 1, b"") for i in range(dead)})
        assert conflicts(WriteSet(5, 0, {}, [(*whole(), 0)]), state) == (dead > 21)
        assert state.walked <= 22


def test_a_walk_stops_at_the_first_record_too_many() -> None:
    state = State({kv(f"k{i:03}"): pack(1, 1, 0, b"") for i in range(100)})
    assert conflicts(WriteSet(5, 0, {}, [(*whole(), 3)]), state)
    assert state.walked == 4
