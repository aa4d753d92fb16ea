"""The rules of cells: what version each change gives, and which changes are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inmem.errors import CellExistsError, CellNotFoundError, VersionMismatchError
from inmem.keys import Key, Namespace, TypeTag, range_of
from inmem.primitives.cells import rules as cell

NS = Namespace()
RUN = NS.run_prefix("r")
versions = st.integers(1, (1 << 63) - 1)


@given(versions, st.binary(max_size=20))
def test_a_payload_comes_apart_as_it_was_put_together(version: int, value: bytes) -> None:
    payload = cell.pack(version, value)
    assert (cell.version_in(payload), cell.value_in(payload)) == (version, value)
    assert len(payload) == 8 + len(value)


def test_nothing_has_version_0() -> None:
    assert cell.version_in(None) == 0


def test_keys() -> None:
    assert cell.cell_key(RUN, b"phase") == Key.state(NS, "r", "phase")
    assert cell.mark_key(RUN) == Key.of(RUN, TypeTag.STATE_MARK, b"mark")
    start, end = range_of(RUN, TypeTag.STATE)
    assert not start <= cell.mark_key(RUN) < end, "a mark is no cell, and no cell is the mark"


class TestInit:
    def test_the_first_of_a_run_is_1(self) -> None:
        assert cell.initialized("c", None, None) == 1

    @given(versions)
    def test_begins_above_the_mark(self, mark: int) -> None:
        assert cell.initialized("c", None, mark.to_bytes(8, "big")) == mark + 1

    @given(versions)
    def test_is_refused_where_a_cell_is(self, version: int) -> None:
        with pytest.raises(CellExistsError, match="'c'") as caught:
            cell.initialized("c", cell.pack(version, b"x"), None)
        assert (caught.value.name, caught.value.version) == ("c", version)


class TestSet:
    def test_creates(self) -> None:
        assert cell.overwritten(None, None) == 1
        assert cell.overwritten(None, (7).to_bytes(8, "big")) == 8

    def test_overwrites_from_the_cell_s_own_version_whatever_the_mark(self) -> None:
        assert cell.overwritten(cell.pack(3, b"x"), None) == 4
        assert cell.overwritten(cell.pack(3, b"x"), (7).to_bytes(8, "big")) == 4


class TestCas:
    @given(versions)
    def test_from_the_right_version(self, version: int) -> None:
        assert cell.exchanged("c", cell.pack(version, b"x"), version) == version + 1

    @given(versions, st.integers(0, (1 << 63) - 1))
    def test_from_any_other(self, version: int, expected: int) -> None:
        if expected == version:
            return
        with pytest.raises(VersionMismatchError) as caught:
            cell.exchanged("c", cell.pack(version, b"x"), expected)
        assert (caught.value.expected, caught.value.actual) == (expected, version)

    @pytest.mark.parametrize("expected", [0, 1, 7])
    def test_of_nothing(self, expected: int) -> None:
        with pytest.raises(CellNotFoundError, match="'c'") as caught:
            cell.exchanged("c", None, expected)
        assert caught.value.name == "c"


changes = st.sampled_from(["set", "init", "cas", "delete"])


@given(st.lists(st.tuples(changes, st.sampled_from("ab")), max_size=40))
def test_a_name_never_has_a_version_twice(steps: list[tuple[str, str]]) -> None:
    cells: dict[str, int] = {}
    mark = 0
    highest = {"a": 0, "b": 0}
    for step, name in steps:
        stored = cell.pack(cells[name], b"") if name in cells else None
        marked = mark.to_bytes(8, "big") if mark else None
        if step == "delete":
            mark = max(mark, cells.pop(name, 0))
            continue
        if step == "cas":
            if stored is None:
                continue
            cells[name] = cell.exchanged(name, stored, cells[name])
        elif step == "set":
            cells[name] = cell.overwritten(stored, marked)
        elif stored is None:
            cells[name] = cell.initialized(name, stored, marked)
        else:
            continue
        assert cells[name] > highest[name]
        highest[name] = cells[name]
