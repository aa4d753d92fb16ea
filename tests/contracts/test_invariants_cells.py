"""The invariants of cells: versions, compare and set, init, transitions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forms import new_run
from invariants import rows
from support import in_threads, kill_writer

import inmem


@pytest.fixture
def db(home: Any) -> Iterator[inmem.Database]:
    """A namespace of its own."""
    with home.open(agent=new_run()) as database:
        yield database


def test_invariant_12_cell_versions_only_grow(db: inmem.Database) -> None:
    rng = random.Random(12)
    highest: dict[str, int] = {}
    for i in range(120):
        name = rng.choice("abc")
        if rng.random() < 0.3:
            db.cells.delete("r", name)
            continue
        version = db.cells.set("r", name, i)
        assert version > highest.get(name, 0)
        for old in range(version):
            if rng.random() < 0.1:
                with pytest.raises(inmem.VersionMismatchError):
                    db.cells.cas("r", name, old, "stale")
        highest[name] = version
    assert db.cells.init("fresh", "a", 1) == 1


def test_invariant_12_also_after_recovery(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        for i in range(5):
            db.cells.set("r", "c", i)
        db.cells.delete("r", "c")
        kill_writer(store_path)
        assert db.cells.init("r", "c", "again") == 6
        kill_writer(store_path)
        with pytest.raises(inmem.VersionMismatchError):
            db.cells.cas("r", "c", 5, "stale")
        assert db.cells.cas("r", "c", 6, "new") == 7


def test_invariant_13_no_update_is_lost_under_concurrent_cas(db: inmem.Database) -> None:
    version = db.cells.init("r", "n", 0)
    won: list[list[int]] = [[] for _ in range(4)]

    def work(worker: int) -> None:
        while len(won[worker]) < 40:
            state = db.cells.read("r", "n")
            assert state is not None
            try:
                won[worker].append(db.cells.cas("r", "n", state.version, state.value + 1))
            except inmem.VersionMismatchError as error:
                assert error.expected == state.version
                assert error.actual > state.version

    in_threads(4, work)
    assert sorted(v for versions in won for v in versions) == list(range(version + 1, version + 161))
    state = db.cells.read("r", "n")
    assert state is not None
    assert (state.value, state.version) == (160, version + 160)


def test_invariant_14_a_second_init_fails_and_changes_nothing(db: inmem.Database) -> None:
    winners: list[int] = []

    def work(worker: int) -> None:
        try:
            db.cells.init("r", "c", worker)
            winners.append(worker)
        except inmem.CellExistsError as error:
            assert (error.name, error.version) == ("c", 1)

    in_threads(6, work)
    assert len(winners) == 1
    before = rows(db)
    with db.transaction("r") as txn:
        for cells in (txn.cells, db.run("r").cells):
            with pytest.raises(inmem.CellExistsError):
                cells.init("c", "second")
    assert rows(db) == before
    assert db.cells.read("r", "c").value == winners[0]  # type: ignore[union-attr]


def test_invariant_15_transition_may_run_its_function_again_and_is_still_right(db: inmem.Database) -> None:
    db.cells.init("r", "n", 0)
    seen: list[int] = []

    def increment(state: inmem.State) -> tuple[int, int]:
        seen.append(state.version)
        if len(seen) <= 3:
            db.cells.set("r", "n", state.value + 10)  # somebody else, in between
        return state.value + 1, state.value

    assert db.cells.transition("r", "n", increment) == 30, "the result is that of the run that counted"
    assert seen == [1, 2, 3, 4]
    assert db.cells.read("r", "n").value == 31  # type: ignore[union-attr]

    def work(_: int) -> None:
        for _ in range(40):
            db.cells.transition("r", "n", lambda state: (state.value + 1, None))

    in_threads(4, work)
    assert db.cells.read("r", "n").value == 31 + 160  # type: ignore[union-attr]
