"""Which index entries a record has: all of them, in one place, for any bytes whatever."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from procedures import RUN

from inmem.keys import Key, TypeTag
from inmem.primitives.queues.rules import JobState
from inmem.primitives.server import INDEX_TAGS, RECORD_TYPES, entries_of

ENTRIES = {tag for tag, one in RECORD_TYPES.items() if one.index_keys is not None}


def test_every_index_of_the_format_is_known() -> None:
    orders = {TypeTag.JOB_READY, TypeTag.JOB_DUE, TypeTag.JOB_CLAIMED, TypeTag.JOB_DEAD}
    named = {tag for tag in TypeTag if "_BY_" in tag.name}
    assert named | orders <= INDEX_TAGS
    names = {TypeTag(tag).name.split("_BY_")[0] for tag in named - {TypeTag.JOB_BY_KEY}}
    assert names | {"JOB_STATE"} <= {TypeTag(tag).name for tag in ENTRIES}


@pytest.mark.parametrize("tag", [TypeTag.KV, TypeTag.STATE, TypeTag.STATE_MARK, *INDEX_TAGS, 0x7F])
def test_what_has_no_indices(tag: int) -> None:
    assert entries_of(RUN, tag, b"rest", b"any bytes") == []


TRACE = [4, "Thought", "up", 5, ["a", "b"], b"\x80", b"\x80"]
JOBS = [  # number of the state, and the orders that have the job
    (0, {TypeTag.JOB_READY}), (1, {TypeTag.JOB_DUE}), (2, {TypeTag.JOB_CLAIMED}), (3, {TypeTag.JOB_DEAD}),
    (4, set()),
]
RECORD = ["active", "up", 5, 6, 0, ["a"], b"\x80", None, 1]


@pytest.mark.parametrize(("tag", "payload", "indices"), [
    (TypeTag.TRACE, TRACE, {TypeTag.TRACE_BY_TYPE: 1, TypeTag.TRACE_BY_PARENT: 1, TypeTag.TRACE_BY_TIME: 1,
                            TypeTag.TRACE_BY_TAG: 2}),
    (TypeTag.RUN, RECORD, {TypeTag.RUN_BY_STATUS: 1, TypeTag.RUN_BY_TAG: 1, TypeTag.RUN_BY_PARENT: 1}),
])
def test_entries(tag: int, payload: list[Any], indices: dict[int, int]) -> None:
    entries = [Key(entry).split_key() for entry in entries_of(RUN, tag, b"id", msgpack.packb(payload))]
    assert {prefix for prefix, _, _ in entries} == {RUN}
    found: dict[int, int] = {}
    for _, index, rest in entries:
        assert rest.endswith((5).to_bytes(8, "big") + b"id")
        found[index] = found.get(index, 0) + 1
    assert found == indices
    assert set(found) <= INDEX_TAGS


@pytest.mark.parametrize(("state", "orders"), JOBS)
@pytest.mark.parametrize("key", [b"", b"key"])
def test_entries_of_jobs(state: int, orders: set[int], key: bytes) -> None:
    """Each is in the order of its state, and a live one with a key is found by it."""
    payload = JobState(state, 5, 1, 5, 7, 9, 1, key, "w", []).pack()
    number = bytes(7) + b"\5"
    entries = entries_of(RUN, TypeTag.JOB_STATE, b"q\0" + number, payload)
    found = [Key(entry).split_key()[1] for entry in entries]
    assert set(found) == orders | ({TypeTag.JOB_BY_KEY} if key and state < 3 else set())
    assert all(Key(entry).split_key()[2].startswith(b"q\0") and entry.endswith(number) for entry in entries)
    assert len(found) == len(set(found))


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(ENTRIES)), st.binary(max_size=60))
def test_any_bytes_are_refused_as_values(tag: int, payload: bytes) -> None:
    try:
        entries_of(RUN, tag, b"id", payload)
    except ValueError:
        pass


@given(st.sampled_from([(TypeTag.TRACE, TRACE), (TypeTag.RUN, RECORD)]), st.integers(0, 8), junk)
def test_any_field_of_another_kind(case: tuple[int, list[Any]], at: int, value: Any) -> None:
    """Entries or a ValueError: a check or a repair that meets damage must live to say so."""
    tag, record = case
    changed = list(record)
    changed[at % len(record)] = value
    try:
        assert all(isinstance(key, bytes) for key in entries_of(RUN, tag, b"id", msgpack.packb(changed)))
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("at", "value"), [(3, -1), (3, "5"), (3, None), (1, 7), (2, None), (4, 7), (4, [None])]
)
def test_damage_that_is_seen(at: int, value: Any) -> None:
    changed = list(TRACE)
    changed[at] = value
    with pytest.raises(ValueError):
        entries_of(RUN, TypeTag.TRACE, b"id", msgpack.packb(changed))
