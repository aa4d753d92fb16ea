"""Procedures of runs: the lifecycle with its indices, deletion with its fence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from committing import NS, START_US, Bench, append, body, call, error_of, kv_key, put, results_of
from hypothesis import given
from hypothesis import strategies as st
from procedures import BAD_IDS, BAD_MAPS, BAD_PREFIXES, BAD_TAGS, BODY, EMPTY, HOME, RUN, Stored, fill, made

from inmem import values
from inmem.commit.arguments import check_namespace
from inmem.config import MAX_TAGS
from inmem.errors import (
    InmemError,
    InvalidInputError,
    InvalidTransitionError,
    LimitError,
    RunDeletedError,
    RunExistsError,
    RunNotFoundError,
)
from inmem.keys import Key, Namespace, TypeTag, fence_of, owner_of
from inmem.primitives.cells import procedures as cell_procedures
from inmem.primitives.events.procedures import append as event_append
from inmem.primitives.index_repair import repair_indices
from inmem.primitives.runs import procedures as run_procedures
from inmem.primitives.runs import rules as run
from inmem.primitives.runs.procedures import create, delete, update
from inmem.primitives.runs.rules import RunMetadata, RunStatus
from inmem.primitives.server import INDEX_TAGS
from inmem.primitives.traces import procedures as trace_procedures

NEIGHBOURS = ["a.b", "a-", "ab", "a:", "A", "aa", "a0", "a_", "a..b"]


@pytest.fixture
def stored() -> Iterator[Stored]:
    some = Stored()
    yield some
    some.assert_indices()


def changed(
    stored: Stored, run_id: str, status: str = "", error: Any = None, tags: tuple[str, ...] = (),
    **metadata: Any,
) -> RunMetadata:
    payload = stored.run(update, HOME, run_id, status, error, list(tags), values.encode(metadata))
    return run.unpack(run_id, payload)


def known(stored: Stored, run_id: str, namespace: bytes = HOME) -> RunMetadata | None:
    payload = stored.payload(run.run_key(namespace, run_id))
    return None if payload is None else run.unpack(run_id, payload)


def keys_of(stored: Stored, run_id: str) -> set[bytes]:
    """Every key that has to do with a run: its own, its record, and the entries of its record."""
    owner = HOME + b"/" + run_id.encode()
    found = set()
    for key in stored.records:
        prefix, tag, rest = Key(key).split_key()
        entry = prefix == HOME and tag in INDEX_TAGS and rest.split(b"\0", 1)[1][8:] == run_id.encode()
        if owner_of(key) == owner or entry:
            found.add(key)
    return found


class TestCreate:
    def test_a_run(self, stored: Stored) -> None:
        assert made(stored, "up", tags=("a",)) == START_US
        stored.now += 5
        assert made(stored, "r", "up", ("a", "b"), k=1) == START_US + 5
        assert known(stored, "r") == RunMetadata(
            "r", "up", RunStatus.ACTIVE, START_US + 5, START_US + 5, None, ("a", "b"), {"k": 1}, None, 1
        )
        assert len(stored.records) == 3 + 5

    def test_twice(self, stored: Stored) -> None:
        made(stored, "r", k=1)
        error = stored.refused(RunExistsError, create, HOME, "r", "", ["new"], EMPTY)
        assert error.run_id == "r"

    def test_a_parent_that_does_not_exist(self, stored: Stored) -> None:
        made(stored, "up", namespace="x")
        for parent in ("r", "u", "upp"):
            error = stored.refused(RunNotFoundError, create, HOME, "r", parent, [], EMPTY)
            assert error.run_id == parent
        other = Namespace(agent="other").prefix()
        stored.refused(RunNotFoundError, create, other, "r", "up", [], EMPTY)

    def test_what_was_deleted_is_not_created_again(self, stored: Stored) -> None:
        made(stored, "r")
        stored.run(delete, HOME, "r")
        assert stored.refused(RunDeletedError, create, HOME, "r", "", [], EMPTY).run_id == "r"
        made(stored, "r.")

    def test_bad_arguments(self, stored: Stored) -> None:
        good: list[Any] = [HOME, "r", "", [], EMPTY]
        for at, bad, name in (
            (0, BAD_PREFIXES, "namespace"), (1, BAD_IDS, "run_id"),
            (2, [b for b in BAD_IDS if b], "parent_run"),
            (3, BAD_TAGS, "tags"), (4, BAD_MAPS, "metadata"),
        ):
            for value in bad:
                arguments = [*good[:at], value, *good[at + 1:]]
                stored.refused(InvalidInputError, create, *arguments, names=name)
        assert stored.records == {}


class TestUpdate:
    @pytest.mark.parametrize("after", RunStatus)
    @pytest.mark.parametrize("before", RunStatus)
    def test_the_table_is_the_rule(self, stored: Stored, before: RunStatus, after: RunStatus) -> None:
        made(stored, "r")
        if before is not RunStatus.ACTIVE:
            changed(stored, "r", before.value)
        if run.is_valid_transition(before, after):
            assert changed(stored, "r", after.value).status is after
        else:
            arguments = (HOME, "r", after.value, None, ["tag"], EMPTY)
            error = stored.refused(InvalidTransitionError, update, *arguments)
            assert (error.from_status, error.to_status) == (before, after)

    def test_everything_at_once(self, stored: Stored) -> None:
        made(stored, "r", tags=("a",), k=1, l=1)
        stored.now += 7
        found = changed(stored, "r", "failed", "broke", ("b", "a"), k=2)
        assert found == known(stored, "r") == RunMetadata(
            "r", None, RunStatus.FAILED, START_US, START_US + 7, START_US + 7, ("a", "b"), {"k": 2, "l": 1},
            "broke", 2,
        )

    def test_index_entries_follow(self, stored: Stored) -> None:
        made(stored, "up")
        made(stored, "r", "up", ("a",))
        for status, tag in (("paused", "b"), ("active", "c"), ("completed", "a"), ("archived", "d")):
            changed(stored, "r", status, None, (tag,))
            stored.assert_indices()
        assert len(stored.indices()[0]) == 1 + 1 + 1 + 4

    def test_of_nothing(self, stored: Stored) -> None:
        made(stored, "r2")
        error = stored.refused(RunNotFoundError, update, HOME, "r", "paused", None, [], EMPTY)
        assert error.run_id == "r"

    def test_of_a_deleted_run(self, stored: Stored) -> None:
        made(stored, "r")
        stored.run(delete, HOME, "r")
        stored.refused(RunDeletedError, update, HOME, "r", "paused", None, [], EMPTY)

    def test_bad_arguments(self, stored: Stored) -> None:
        made(stored, "r")
        good: list[Any] = [HOME, "r", "paused", None, [], EMPTY]
        for at, bad, name in (
            (0, BAD_PREFIXES, "namespace"), (1, BAD_IDS, "run_id"),
            (2, ["Active", "ACTIVE", "done", b"paused", 7, ["paused"], {"a": 1}, "paused\0"], "status"),
            (3, [7, True, b"bytes", ["text"], {}], "error"), (4, BAD_TAGS, "tags"), (5, BAD_MAPS, "metadata"),
        ):
            for value in bad:
                arguments = [*good[:at], value, *good[at + 1:]]
                stored.refused(InvalidInputError, update, *arguments, names=name)

    def test_metadata_that_has_grown_too_big(self, stored: Stored) -> None:
        half = "x" * (values.MAX_VALUE_BYTES // 2 + 10)
        made(stored, "r", k=half)
        stored.refused(LimitError, update, HOME, "r", "", None, [], values.encode({"l": half}))


class TestDelete:
    def test_cascades_over_everything_and_spares_all_others(self, stored: Stored) -> None:
        other = Namespace(agent="other").prefix()
        for run_id in ("a", *NEIGHBOURS):
            fill(stored, run_id)
        fill(stored, "a", other)
        for level in ("agent", "app", "tenant"):
            some = stored.workspace()
            some.put(NS.shared_prefix(level) + b"\0\x01k", values.encode(level))
            stored.commit(some)
        mine = keys_of(stored, "a")
        assert {Key(key).split_key()[1] for key in mine} >= {
            tag for tag in TypeTag if tag != TypeTag.RUN_BY_PARENT
        }
        before = dict(stored.records)
        assert stored.run(delete, HOME, "a") == [2, 3, 1, 2, True, {"leases": 1, "jobs": 4, "queues": 1}]
        assert stored.records == {k: r for k, r in before.items() if k not in mine}
        assert stored.fences == {fence_of(HOME + b"/a")}

    @pytest.mark.parametrize("run_id", ["a", *NEIGHBOURS])
    def test_whichever_of_the_neighbours_goes(self, stored: Stored, run_id: str) -> None:
        for some in ("a", *NEIGHBOURS):
            fill(stored, some)
        before = dict(stored.records)
        mine = keys_of(stored, run_id)
        stored.run(delete, HOME, run_id)
        assert stored.records == {k: r for k, r in before.items() if k not in mine}

    def test_one_range_removes_what_the_run_stores(self, stored: Stored) -> None:
        fill(stored, "a")
        some = stored.workspace()
        delete(some, HOME, "a")
        assert len(some.ops) == 1 + 3 + 1 + 1, "a range, three entries, the record and the fence"
        stored.commit(some)

    def test_a_run_that_was_never_created(self, stored: Stored) -> None:
        fill(stored, "a", record=False)
        assert stored.run(delete, HOME, "a") == [2, 3, 1, 2, False, {"leases": 1, "jobs": 4, "queues": 1}]
        assert stored.records == {}

    def test_a_run_of_which_only_the_mark_is_left(self, stored: Stored) -> None:
        stored.run(cell_procedures.assign, RUN, b"c", values.encode(1))
        stored.run(cell_procedures.delete, RUN, b"c")
        assert stored.run(delete, HOME, "r") == [0, 0, 0, 0, False]
        assert stored.records == {}

    def test_a_run_that_was_created_and_stores_nothing(self, stored: Stored) -> None:
        made(stored, "r")
        assert stored.run(delete, HOME, "r") == [0, 0, 0, 0, True]
        assert stored.records == {}

    def test_of_nothing(self, stored: Stored) -> None:
        fill(stored, "rr")
        assert stored.refused(RunNotFoundError, delete, HOME, "r").run_id == "r"
        assert stored.fences == set()

    def test_twice(self, stored: Stored) -> None:
        fill(stored, "r")
        stored.run(delete, HOME, "r")
        assert stored.refused(RunDeletedError, delete, HOME, "r").run_id == "r"

    def test_twice_in_one_commit(self, stored: Stored) -> None:
        fill(stored, "r")
        some = stored.workspace()
        delete(some, HOME, "r")
        with pytest.raises(RunDeletedError):
            delete(some, HOME, "r")
        stored.commit(some)

    def test_fences_the_rest_of_its_own_commit(self, stored: Stored) -> None:
        fill(stored, "r")
        some = stored.workspace()
        delete(some, HOME, "r")
        done = list(some.ops)
        for attempt in (
            lambda: some.put(kv_key("r", "k"), b"x"),
            lambda: cell_procedures.assign(some, RUN, b"c", b"x"),
            lambda: event_append(some, RUN, [[b"t", b"\xc0", 0]]),
            lambda: trace_procedures.record(some, RUN, [["t", "", 1, 4, "Thought", [], BODY, EMPTY]]),
            lambda: create(some, HOME, "r", "", [], EMPTY),
            lambda: repair_indices(some, RUN) and some.put(kv_key("r", "k"), b"x"),
        ):
            with pytest.raises(RunDeletedError):
                attempt()
        assert some.ops == done
        stored.commit(some)

    def test_children_stay(self, stored: Stored) -> None:
        made(stored, "up")
        made(stored, "down", "up")
        stored.run(delete, HOME, "up")
        child = known(stored, "down")
        assert child is not None
        assert child.parent_run == "up"

    def test_expired_entries_go_too_and_are_not_counted(self, stored: Stored) -> None:
        some = stored.workspace()
        some.put(kv_key("r", "k"), values.encode(1))
        some.put(kv_key("r", "expired"), values.encode(1), stored.now + 1)
        stored.commit(some)
        stored.now += 1
        assert stored.run(delete, HOME, "r") == [1, 0, 0, 0, False]
        assert stored.records == {}

    def test_bad_arguments(self, stored: Stored) -> None:
        fill(stored, "r")
        for bad in BAD_PREFIXES:
            stored.refused(InvalidInputError, delete, bad, "r", names="namespace")
        for bad in BAD_IDS:
            stored.refused(InvalidInputError, delete, HOME, bad, names="run_id")


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=3)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
GOOD: dict[str, list[Any]] = {
    "create": [HOME, "new", "r", ["a"], EMPTY], "update": [HOME, "r", "paused", None, ["a"], EMPTY],
    "delete": [HOME, "r"], "repair_indices": [RUN],
    "mend": [RUN, 9, [Key.trace(NS, "r", "up")], [Key.of(RUN, TypeTag.TRACE_BY_TIME, b"stray")]],
}
BY_NAME = {function.__name__: function for function in run_procedures.PROCEDURES.values()}


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 5), junk)
def test_arbitrary_arguments_are_taken_or_refused(name: str, at: int, value: Any) -> None:
    stored = Stored()
    fill(stored, "r")
    before = dict(stored.records)
    arguments = list(GOOD[name])
    arguments[at % len(arguments)] = value
    try:
        stored.run(BY_NAME[name], *arguments)
    except InmemError:
        assert stored.records == before
    stored.assert_indices()


class TestThroughTheCommitter:
    def test_a_fence_holds_in_the_same_group_and_after_a_restart(self, bench: Bench) -> None:
        one, two = bench.client("one"), bench.client("two")
        results_of(one.send(put(kv_key("r", "k"), 1)))
        answers = bench.commit(
            one.request(body(call("run.delete", HOME, "r"))), two.request(body(put(kv_key("r", "late"), 1))),
            two.request(body(put(kv_key("rr", "k"), 1))),
        )
        assert results_of(answers[0]) == [[1, 0, 0, 0, False]]
        assert isinstance(error_of(answers[1]), RunDeletedError)
        results_of(answers[2])
        bench.restart()
        late = bench.client("late")
        again = call("run.create", HOME, "r", "", [], EMPTY)
        for op in (put(kv_key("r", "k"), 1), append("r", ("t", 1)), again):
            assert isinstance(error_of(late.send(op)), RunDeletedError)
        assert set(bench.live()) == {kv_key("rr", "k")}

    def test_who_read_in_the_run_conflicts(self, bench: Bench) -> None:
        one, two = bench.client("one"), bench.client("two")
        version = one.send(put(kv_key("r", "k"), 1)).version
        results_of(one.send(call("run.delete", HOME, "r")))
        elsewhere = put(kv_key("rr", "k"), 1)
        start, end = kv_key("r", "a"), kv_key("r", "z")
        for reads in (
            body(elsewhere, reads={kv_key("r", "k"): version}, snapshot=version),
            body(elsewhere, ranges=[(start, end, 1)], snapshot=version),
        ):
            assert error_of(two.send_body(reads)).code == "conflict"

    def test_a_refused_commit_fences_nothing(self, bench: Bench) -> None:
        client = bench.client()
        results_of(client.send(put(kv_key("r", "k"), 1)))
        error_of(client.send(call("run.delete", HOME, "r"), call("run.delete", HOME, "nothing")))
        results_of(client.send(put(kv_key("r", "k"), 2)))
        assert bench.value(kv_key("r", "k")) == 2


def test_a_namespace_is_all_of_tenant_app_and_agent() -> None:
    """Less of it, with a run id that completes it, would name another agent's runs."""
    for namespace in (b"default/default", b"default", b"a/b/c/d", b"a//c", b"/b/c"):
        with pytest.raises(InvalidInputError, match="namespace"):
            check_namespace(namespace)
    assert check_namespace(b"a/b/c") == b"a/b/c"


def test_tags_have_a_limit_also_when_they_come_one_by_one() -> None:
    full = run.created("r", None, tuple(f"t{n}" for n in range(MAX_TAGS)), {}, 1)
    assert run.changed(full, 2, tags=("t0",)).tags == full.tags
    with pytest.raises(LimitError):
        run.changed(full, 2, tags=("one more",))
