"""The rules of runs: the status table, changes, records, index keys."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inmem
from inmem import values
from inmem.errors import InvalidInputError, InvalidTransitionError, LimitError
from inmem.keys import Key, Namespace, TypeTag, range_of
from inmem.primitives.runs import rules as run
from inmem.primitives.runs.rules import RunMetadata, RunStatus, is_valid_transition

NS = Namespace()
PREFIX = NS.prefix()
A, C, F, X, P, Z = (
    RunStatus.ACTIVE, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PAUSED,
    RunStatus.ARCHIVED,
)
ALLOWED = {(A, C), (A, F), (A, X), (A, P), (A, Z), (P, A), (P, X), (P, Z), (C, Z), (F, Z), (X, Z)}
PAIRS = [(a, b) for a in RunStatus for b in RunStatus]


def new(status: RunStatus = A, **fields: Any) -> RunMetadata:
    defaults: dict[str, Any] = {
        "run_id": "r", "parent_run": None, "created_at": 5, "updated_at": 6, "completed_at": None,
        "tags": ("a",), "metadata": {"k": 1}, "error": None, "version": 3,
    }
    return RunMetadata(status=status, **defaults | fields)


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda status: status.name)
def test_the_table(before: RunStatus, after: RunStatus) -> None:
    allowed = (before, after) in ALLOWED
    assert is_valid_transition(before, after) is allowed
    assert is_valid_transition(before.value, after.value) is allowed  # type: ignore[arg-type]
    if allowed:
        changed = run.changed(new(before), 9, status=after)
        assert (changed.status, changed.updated_at, changed.version) == (after, 9, 4)
        assert changed.completed_at == (9 if after in (C, F, X) else None)
    else:
        with pytest.raises(InvalidTransitionError, match=before.value) as caught:
            run.changed(new(before), 9, status=after)
        assert (caught.value.from_status, caught.value.to_status) == (before, after)


def test_there_are_36_pairs_and_11_are_allowed() -> None:
    assert (len(PAIRS), len(ALLOWED)) == (36, 11)


class Opaque:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_what_is_no_status() -> None:
    bad: Any
    for bad in (None, "", "Active", "done", 7, 10**5000, b"active", [], {}, Opaque()):
        with pytest.raises(InvalidInputError, match="to_status") as caught:
            is_valid_transition(A, bad)
        assert caught.value.argument == "to_status"
        with pytest.raises(InvalidInputError, match="from_status"):
            inmem.is_valid_transition(bad, A)


def test_a_new_run() -> None:
    assert run.created("r", "up", ("a",), {"k": 1}, 7) == RunMetadata(
        "r", "up", A, 7, 7, None, ("a",), {"k": 1}, None, 1
    )


class TestChanged:
    def test_the_time_of_the_end_stays_when_archived(self) -> None:
        ended = run.changed(new(), 9, status=F, error="broke")
        assert (ended.completed_at, ended.error) == (9, "broke")
        archived = run.changed(ended, 12, status=Z)
        assert (archived.completed_at, archived.error, archived.updated_at) == (9, "broke", 12)

    def test_archived_from_active_never_ended(self) -> None:
        assert run.changed(new(), 9, status=Z).completed_at is None

    def test_tags_are_added_once_in_order(self) -> None:
        assert run.changed(new(), 9, tags=("b", "a", "c")).tags == ("a", "b", "c")
        assert run.changed(new(), 9).tags == ("a",)

    def test_metadata_is_merged(self) -> None:
        assert run.changed(new(), 9, metadata={"l": 2, "k": None}).metadata == {"k": None, "l": 2}
        assert run.changed(new(), 9, metadata={}).metadata == {"k": 1}

    def test_what_is_not_named_stays(self) -> None:
        old = new(P, parent_run="up", error="old")
        changed = run.changed(old, 9, tags=("b",))
        kept = (changed.status, changed.parent_run, changed.error, changed.created_at, changed.metadata)
        assert kept == (P, "up", "old", 5, {"k": 1})
        assert old.tags == ("a",), "the old record is as it was"


texts = st.text(max_size=5)
times = st.integers(1, (1 << 63) - 1)
runs = st.builds(
    RunMetadata, run_id=st.just("r"), parent_run=st.none() | st.just("up"), status=st.sampled_from(RunStatus),
    created_at=times, updated_at=times, completed_at=st.none() | times,
    tags=st.lists(texts, max_size=3).map(tuple),
    metadata=st.dictionaries(texts, st.none() | st.booleans() | st.binary(max_size=3), max_size=3),
    error=st.none() | texts, version=times,
)


@given(runs)
def test_a_record_comes_back_as_it_was(some: RunMetadata) -> None:
    found = run.unpack("r", run.pack(some))
    assert found == some
    assert type(found.status) is RunStatus
    assert type(found.tags) is tuple


def test_metadata_has_a_limit() -> None:
    with pytest.raises(LimitError):
        run.pack(new(metadata={"k": "x" * values.MAX_VALUE_BYTES}))


@pytest.mark.parametrize("payload", [
    b"", b"\xc1", b"\xc0", b"\x07", msgpack.packb(["active"]), msgpack.packb(["active"] * 9),
    msgpack.packb(["nonsense", "", 1, 1, 0, [], values.encode({}), None, 1]),
    msgpack.packb([[], "", 1, 1, 0, [], values.encode({}), None, 1]),
    msgpack.packb(["active", "", 1, 1, 0, 7, values.encode({}), None, 1]),
    msgpack.packb(["active", "", 1, 1, 0, [], b"\xc1", None, 1]),
    msgpack.packb(["active", "", 1, 1, 0, [], 7, None, 1]),
])
def test_bytes_that_are_no_run(payload: bytes) -> None:
    with pytest.raises(ValueError):
        run.unpack("r", payload)


class TestIndexKeys:
    def test_status_tags_and_parent(self) -> None:
        place = (5).to_bytes(8, "big") + b"r"
        payload = run.pack(new(P, tags=("a", "b"), parent_run="up"))
        assert run.index_keys(PREFIX, b"r", payload) == [
            Key.of(PREFIX, TypeTag.RUN_BY_STATUS, b"paused\0" + place),
            Key.of(PREFIX, TypeTag.RUN_BY_TAG, b"a\0" + place),
            Key.of(PREFIX, TypeTag.RUN_BY_TAG, b"b\0" + place),
            Key.of(PREFIX, TypeTag.RUN_BY_PARENT, b"up\0" + place),
        ]

    def test_no_parent_no_entry(self) -> None:
        assert len(run.index_keys(PREFIX, b"r", run.pack(new(tags=())))) == 1

    @given(st.lists(st.tuples(times, st.sampled_from(["a", "b", "a.b", "ab"])), min_size=2, max_size=6,
                    unique=True))
    def test_order_is_creation_then_id(self, places: list[tuple[int, str]]) -> None:
        keyed = {}
        for created_at, run_id in places:
            for key in run.index_keys(PREFIX, run_id.encode(), run.pack(new(created_at=created_at))):
                keyed[key] = (created_at, run_id)
        for tag in (TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG):
            start, end = range_of(PREFIX, tag)
            assert [keyed[key] for key in sorted(keyed) if start <= key < end] == sorted(places)

    def test_a_record_lives_under_its_namespace(self) -> None:
        assert run.run_key(PREFIX, "r") == Key.run(NS, "r")


def test_what_a_deletion_counts() -> None:
    assert run.DeletedRun("r", 1, 2, 3, 4, True).total == 11
    assert run.DeletedRun("r", 0, 0, 0, 1, False).total == 1
