"""Procedures of cells: versions from what is stored now, and refusals that change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from committing import NS, START_US, Bench, body, call, error_of, results_of
from hypothesis import given
from hypothesis import strategies as st
from procedures import BAD_NAMES, BAD_PREFIXES, RUN, Stored

from inmem import values
from inmem.errors import (
    CellExistsError,
    CellNotFoundError,
    InvalidInputError,
    InvariantError,
    RunDeletedError,
    VersionMismatchError,
)
from inmem.keys import Key, fence_of
from inmem.primitives.cells import procedures as cells
from inmem.primitives.cells import rules as cell
from inmem.record import timestamp_of, version_of
from inmem.writeset import OP_DELETE, OP_PUT

KEY = cell.cell_key(RUN, b"c")
MARK = cell.mark_key(RUN)
BAD_VALUES: list[Any] = [None, 7, True, "text", [], {}, 1.5]
BAD_VERSIONS: list[Any] = [None, True, 1.0, "1", b"1", [], {}]
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "init": (cells.init, (b"v",)), "set": (cells.assign, (b"v",)), "cas": (cells.cas, (1, b"v")),
    "delete": (cells.delete, ()),
}


@pytest.fixture
def stored() -> Stored:
    return Stored()


def state(stored: Stored, key: bytes = KEY) -> tuple[int, bytes] | None:
    payload = stored.payload(key)
    return None if payload is None else (cell.version_in(payload), cell.value_in(payload))


def test_a_life(stored: Stored) -> None:
    assert stored.run(cells.init, RUN, b"c", b"one") == 1
    assert state(stored) == (1, b"one")
    assert stored.run(cells.cas, RUN, b"c", 1, b"two") == 2
    assert stored.run(cells.assign, RUN, b"c", b"three") == 3
    assert state(stored) == (3, b"three")
    assert MARK not in stored.records, "there is no mark before a deletion"
    assert stored.run(cells.delete, RUN, b"c") is True
    assert (state(stored), stored.payload(MARK)) == (None, (3).to_bytes(8, "big"))
    assert stored.run(cells.init, RUN, b"c", b"four") == 4
    assert set(stored.records) == {KEY, MARK}


def test_the_record_has_version_and_time_of_its_commit(stored: Stored) -> None:
    stored.version, stored.now = 41, START_US + 5
    stored.run(cells.assign, RUN, b"c", b"v")
    assert (version_of(stored.records[KEY]), timestamp_of(stored.records[KEY])) == (42, START_US + 5)


def test_the_mark_is_of_the_run_and_only_grows(stored: Stored) -> None:
    for _ in range(5):
        stored.run(cells.assign, RUN, b"high", b"v")
    stored.run(cells.assign, RUN, b"low", b"v")
    stored.run(cells.delete, RUN, b"high")
    stored.run(cells.delete, RUN, b"low")
    assert stored.payload(MARK) == (5).to_bytes(8, "big"), "the lower version does not take it back"
    assert stored.run(cells.init, RUN, b"low", b"v") == 6
    assert stored.run(cells.init, NS.run_prefix("r2"), b"low", b"v") == 1


def test_deleting_nothing_leaves_no_trace(stored: Stored) -> None:
    some = stored.workspace()
    assert cells.delete(some, RUN, b"c") is False
    assert (some.ops, some.buckets) == ([], set())


def test_all_in_one_commit(stored: Stored) -> None:
    stored.run(cells.assign, RUN, b"c", b"v")
    some = stored.workspace()
    assert cells.cas(some, RUN, b"c", 1, b"w") == 2
    assert cells.delete(some, RUN, b"c") is True
    assert cells.assign(some, RUN, b"c", b"x") == 3
    assert cells.delete(some, RUN, b"c") is True
    assert cells.delete(some, RUN, b"c") is False
    assert cells.init(some, RUN, b"c", b"y") == 4
    stored.commit(some)
    assert state(stored) == (4, b"y")


class TestRefused:
    def test_init_of_what_exists(self, stored: Stored) -> None:
        stored.run(cells.init, RUN, b"c", b"one")
        error = stored.refused(CellExistsError, cells.init, RUN, b"c", b"two")
        assert (error.name, error.version) == ("c", 1)

    @pytest.mark.parametrize("expected", [0, 1, 3, -1, (1 << 63) - 1, 1 << 63])
    def test_cas_from_another_version(self, stored: Stored, expected: int) -> None:
        stored.run(cells.init, RUN, b"c", b"one")
        stored.run(cells.assign, RUN, b"c", b"two")
        error = stored.refused(VersionMismatchError, cells.cas, RUN, b"c", expected, b"three")
        assert (error.expected, error.actual) == (expected, 2)

    def test_cas_of_nothing_not_even_from_version_0(self, stored: Stored) -> None:
        for expected in (0, 1):
            assert stored.refused(CellNotFoundError, cells.cas, RUN, b"c", expected, b"v").name == "c"

    def test_cas_from_before_a_deletion(self, stored: Stored) -> None:
        for _ in range(3):
            stored.run(cells.assign, RUN, b"c", b"v")
        stored.run(cells.delete, RUN, b"c")
        stored.run(cells.assign, RUN, b"c", b"again")
        for old in (1, 2, 3):
            stored.refused(VersionMismatchError, cells.cas, RUN, b"c", old, b"stale")

    @pytest.mark.parametrize("name", CALLS)
    def test_a_fenced_run(self, stored: Stored, name: str) -> None:
        procedure, more = CALLS[name]
        stored.fences.add(fence_of(RUN))
        assert stored.refused(RunDeletedError, procedure, RUN, b"c", *more).run_id == "r"
        for neighbour in ("r.", "r-", "rr", "R"):
            stored.run(cells.init, NS.run_prefix(neighbour), b"c", b"v")

    @pytest.mark.parametrize("name", CALLS)
    def test_bad_prefixes_and_names(self, stored: Stored, name: str) -> None:
        procedure, more = CALLS[name]
        stored.run(cells.assign, RUN, b"c", b"v")
        for prefix in BAD_PREFIXES:
            stored.refused(InvalidInputError, procedure, prefix, b"c", *more, names="prefix")
        for bad in BAD_NAMES:
            stored.refused(InvalidInputError, procedure, RUN, bad, *more, names="name")

    @pytest.mark.parametrize("name", ["init", "set", "cas"])
    def test_bad_values(self, stored: Stored, name: str) -> None:
        procedure, more = CALLS[name]
        if name == "cas":
            stored.run(cells.init, RUN, b"c", b"v")
        for bad in BAD_VALUES:
            stored.refused(InvalidInputError, procedure, RUN, b"c", *more[:-1], bad, names="value")

    def test_bad_versions(self, stored: Stored) -> None:
        stored.run(cells.init, RUN, b"c", b"v")
        for bad in BAD_VERSIONS:
            stored.refused(
                InvalidInputError, cells.cas, RUN, b"c", bad, b"w", names="expected_version"
            )


def test_the_longest_prefix_and_name_fit_a_key(stored: Stored) -> None:
    for prefix, name in ((b"p" * 189, b"n" * 320), (b"p", "\u00e9".encode() * 160)):
        assert stored.run(cells.init, prefix, name, b"v") == 1
    assert max(map(len, stored.records)) == 511


names = st.sampled_from([b"a", b"b"])
steps = st.lists(
    st.tuples(st.sampled_from(["init", "set", "cas", "delete"]), names, st.integers(-1, 1)), max_size=30
)


@given(steps)
def test_versions_of_a_name_only_grow(todo: list[tuple[str, bytes, int]]) -> None:
    stored = Stored()
    highest = {b"a": 0, b"b": 0}
    current: dict[bytes, int] = {}
    for i, (what, name, off) in enumerate(todo):
        value = b"%d" % i
        expected = current.get(name, 1) + off
        if what == "delete":
            assert stored.run(cells.delete, RUN, name) is (current.pop(name, None) is not None)
            continue
        if what == "init" and name in current:
            stored.refused(CellExistsError, cells.init, RUN, name, value)
            continue
        if what == "cas" and (name not in current or off):
            error = VersionMismatchError if name in current else CellNotFoundError
            stored.refused(error, cells.cas, RUN, name, expected, value)
            continue
        arguments = (expected, value) if what == "cas" else (value,)
        version = stored.run(CALLS[what][0], RUN, name, *arguments)
        assert version > highest[name]
        highest[name] = current[name] = version
        assert state(stored, cell.cell_key(RUN, name)) == (version, value)


class TestThroughTheCommitter:
    def test_of_two_cas_in_one_group_one_wins(self, bench: Bench) -> None:
        one, two = bench.client("one"), bench.client("two")
        value = values.encode(1)
        results_of(one.send(call("cell.init", RUN, b"c", value)))
        requests = [c.request(body(call("cell.cas", RUN, b"c", 1, value))) for c in (one, two)]
        first, second = bench.commit(*requests)
        assert results_of(first) == [2]
        error = error_of(second)
        assert isinstance(error, VersionMismatchError)
        assert (error.expected, error.actual) == (1, 2)

    def test_a_refused_procedure_takes_its_whole_commit_along(self, bench: Bench) -> None:
        client = bench.client()
        before = bench.live()
        answer = client.send(
            call("cell.init", RUN, b"a", values.encode(1)), call("cell.cas", RUN, b"b", 1, values.encode(1))
        )
        assert isinstance(error_of(answer), CellNotFoundError)
        assert bench.live() == before

    def test_versions_survive_the_next_writer(self, bench: Bench) -> None:
        client = bench.client()
        for _ in range(3):
            results_of(client.send(call("cell.set", RUN, b"c", values.encode(1))))
        results_of(client.send(call("cell.delete", RUN, b"c")))
        bench.restart()
        assert results_of(bench.client("new").send(call("cell.init", RUN, b"c", values.encode(1)))) == [4]
        assert Key(KEY) in bench.live()

    def test_a_cell_is_not_written_as_a_plain_value(self, bench: Bench) -> None:
        client = bench.client()
        for op in ([OP_PUT, KEY, cell.pack(1, values.encode(1)), 0], [OP_DELETE, KEY], [OP_DELETE, MARK]):
            assert isinstance(error_of(client.send(op)), InvariantError)
