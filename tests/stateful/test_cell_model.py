"""Cells through the public API against a dictionary and a mark."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from machines import TransactionalMachine, database, opened  # noqa: F401

import inmem

NAMES = ["a", "ab", "b"]
names = st.sampled_from(NAMES)
values = st.integers(-3, 3) | st.sampled_from(["text", 1.5, None, [1, {"k": b"v"}], True])


class Cells:
    """Value and version of each cell, and the highest version of any deleted one."""

    def __init__(self) -> None:
        self.cells: dict[str, tuple[Any, int]] = {}
        self.mark = 0

    def copy(self) -> Cells:
        other = Cells()
        other.cells, other.mark = dict(self.cells), self.mark
        return other

    def version(self, name: str) -> int:
        return self.cells[name][1] if name in self.cells else 0

    def write(self, name: str, value: Any) -> int:
        version = (self.version(name) or self.mark) + 1
        self.cells[name] = (value, version)
        return version

    def delete(self, name: str) -> bool:
        self.mark = max(self.mark, self.version(name))
        return self.cells.pop(name, None) is not None

    def list(self, prefix: str | None, limit: int | None, reverse: bool) -> list[str]:
        return sorted((n for n in self.cells if n.startswith(prefix or "")), reverse=reverse)[:limit]


class CellMachine(TransactionalMachine):
    def new_model(self) -> Cells:
        self.pending: list[tuple[inmem.PendingVersion, int]] = []
        self.highest: dict[str, int] = {}
        return Cells()

    def committed(self) -> None:
        for pending, version in self.pending:
            assert pending.version == version
        self.pending = []

    def dropped(self) -> None:
        for pending, _ in self.pending:
            with pytest.raises(inmem.InvariantError):
                _ = pending.version
        self.pending = []

    @property
    def cells(self) -> Any:
        return self.scope.cells if self.txn is None else self.txn.cells

    @rule(name=names, value=values)
    def init(self, name: str, value: Any) -> None:
        if name in self.inside.cells:
            with pytest.raises(inmem.CellExistsError) as caught:
                self.cells.init(name, value)
            assert caught.value.version == self.inside.version(name)
        else:
            assert self.cells.init(name, value) == self.inside.write(name, value)

    @rule(name=names, value=values)
    def set(self, name: str, value: Any) -> None:
        found = self.cells.set(name, value)
        version = self.inside.write(name, value)
        if self.txn is None:
            assert found == version
        else:
            self.pending.append((found, version))

    @rule(name=names, value=values, off=st.sampled_from([0, 0, 0, 1, -1, 5]))
    def cas(self, name: str, value: Any, off: int) -> None:
        expected = max(self.inside.version(name) + off, 0)
        if name not in self.inside.cells:
            with pytest.raises(inmem.CellNotFoundError):
                self.cells.cas(name, expected, value)
        elif expected != self.inside.version(name):
            with pytest.raises(inmem.VersionMismatchError) as caught:
                self.cells.cas(name, expected, value)
            assert (caught.value.expected, caught.value.actual) == (expected, self.inside.version(name))
        else:
            assert self.cells.cas(name, expected, value) == self.inside.write(name, value)

    @rule(name=names)
    def delete(self, name: str) -> None:
        assert self.cells.delete(name) is self.inside.delete(name)

    @rule(name=names, value=values, fails=st.booleans())
    def transition(self, name: str, value: Any, fails: bool) -> None:
        def fn(state: inmem.State) -> tuple[Any, Any]:
            assert (state.value, state.version) == self.inside.cells[name]
            if fails:
                raise LookupError
            return value, ("result", state.version)

        if name not in self.inside.cells:
            with pytest.raises(inmem.CellNotFoundError):
                self.cells.transition(name, fn)
        elif fails:
            with pytest.raises(LookupError):
                self.cells.transition(name, fn)
        else:
            before = self.inside.version(name)
            assert self.cells.transition(name, fn) == ("result", before)
            self.inside.write(name, value)

    @precondition(lambda self: self.txn is None)
    @rule(name=names, value=values, other=names, how=st.sampled_from(["set", "delete"]), again=st.booleans())
    def blind_sets_never_conflict(self, name: str, value: Any, other: str, how: str, again: bool) -> None:
        """Whatever others did meanwhile, the set is applied on top of it."""
        with self.scope.transaction() as txn:
            pending = [txn.cells.set(name, value)]
            if again:
                pending.append(txn.cells.set(name, value))
            if how == "set":
                self.scope.cells.set(other, "meanwhile")
                self.stored.write(other, "meanwhile")
            else:
                self.scope.cells.delete(other)
                self.stored.delete(other)
        for one in pending:
            assert one.version == self.stored.write(name, value)

    @rule(name=names)
    def read(self, name: str) -> None:
        state = self.cells.read(name)
        found = None if state is None else (state.value, state.version)
        assert repr(found) == repr(self.inside.cells.get(name))
        assert self.cells.exists(name) is (name in self.inside.cells)

    @rule(prefix=st.sampled_from([None, "", "a", "ab", "b", "q"]), limit=st.none() | st.integers(0, 3),
          reverse=st.booleans())
    def list(self, prefix: str | None, limit: int | None, reverse: bool) -> None:
        found = self.cells.list(prefix, limit=limit, reverse=reverse)
        assert found == self.inside.list(prefix, limit, reverse)

    @invariant()
    def others_see_what_is_stored(self) -> None:
        if not self.begun:
            return
        with self.db.snapshot(self.run) as view:
            assert view.cells.list() == self.stored.list(None, None, False)
            for name, (value, version) in self.stored.cells.items():
                state = view.cells.read(name)
                assert repr((state.value, state.version)) == repr((value, version))
                assert version >= self.highest.get(name, 0), "a version never comes back"
                self.highest[name] = version


TestCellMachine = CellMachine.TestCase
TestCellMachine.settings = settings(max_examples=150, stateful_step_count=40)


def test_a_set_takes_effect_before_a_later_deletion() -> None:
    """What is shown of it must not know the mark that the deletion leaves."""
    scope = opened[0].run("order")
    for _ in range(9):
        scope.cells.set("old", 1)
    with scope.transaction() as txn:
        pending = txn.cells.set("new", 1)
        txn.cells.delete("old")
        state = txn.cells.read("new")
        assert state is not None
        assert state.version == 1
        assert txn.cells.cas("new", 1, 2) == 2
        assert txn.cells.set("newer", 1) is not None
        newer = txn.cells.read("newer")
        assert newer is not None
    assert pending.version == 1
    assert scope.cells.read("new").version == 2  # type: ignore[union-attr]
    assert scope.cells.read("newer").version == newer.version == 10  # type: ignore[union-attr]
