"""What a StateCell promises, through every form to write and every form to read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from forms import (
    READERS,
    WITHIN,
    ElsewhereForm,
    FacadeForm,
    Form,
    ScopeForm,
    TransactionForm,
    Within,
    new_run,
    pair,
)

import inmem

WRITERS = (FacadeForm, ScopeForm, TransactionForm, ElsewhereForm)
PAIRS = [(writer, reader) for writer in WRITERS for reader in READERS]
IDS = [f"{writer.name}-{reader.name}" for writer, reader in PAIRS] + [WITHIN]


@pytest.fixture(params=[*PAIRS, WITHIN], ids=IDS)
def store(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Iterator[Any]:
    some = pair(shared_db, request.param, "cells")
    yield some
    some.close()


@pytest.fixture(params=WRITERS, ids=lambda form: form.name)
def writer(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "cells")
    return form


@pytest.fixture(params=READERS, ids=lambda form: form.name)
def reader(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "cells")
    return form


VALUES: list[Any] = [
    None, True, False, 0, 1, -(1 << 63), (1 << 63) - 1, 1.0, -0.0, math.inf, "", "text", "\U0001f600",
    b"", b"\0\xff",
    [], [1, [2.0, [b"3"]]], {}, {"k": {"n": None}}, "x" * 70_000,
]


def value_of(store: Any, name: str) -> Any:
    state = store.read(lambda cells: cells.read(name))
    assert state is not None
    return state.value


def test_values_come_back_with_their_type(store: Any) -> None:
    for i, value in enumerate(VALUES):
        name = f"c{i}"
        assert store.write(lambda cells, name=name, value=value: cells.init(name, value)) == 1
        found = value_of(store, name)
        assert (repr(found), type(found)) == (repr(value), type(value))


def test_what_is_absent(store: Any) -> None:
    assert store.read(lambda cells: cells.read("c")) is None
    assert store.read(lambda cells: cells.exists("c")) is False
    assert store.read(lambda cells: cells.list()) == []
    assert store.write(lambda cells: cells.delete("c")) is False


def test_none_is_a_value_and_not_absence(store: Any) -> None:
    store.write(lambda cells: cells.init("c", None))
    assert store.read(lambda cells: cells.exists("c")) is True
    assert store.read(lambda cells: cells.read("c")).version == 1


def test_a_life(store: Any) -> None:
    assert store.write(lambda cells: cells.init("c", "one")) == 1
    assert store.write(lambda cells: cells.cas("c", 1, "two")) == 2
    store.write(lambda cells: cells.set("c", "three"))
    moved = store.write(lambda cells: cells.transition("c", lambda s: ([s.value, s.version], "result")))
    assert moved == "result"
    state = store.read(lambda cells: cells.read("c"))
    assert (state.value, state.version) == (["three", 3], 4)
    assert store.write(lambda cells: cells.delete("c")) is True
    assert store.read(lambda cells: cells.read("c")) is None
    assert store.write(lambda cells: cells.init("c", "again")) == 5
    assert store.read(lambda cells: cells.read("c")).version == 5


def test_set_creates_and_overwrites(store: Any) -> None:
    for version in (1, 2, 3):
        store.write(lambda cells, version=version: cells.set("c", version))
        state = store.read(lambda cells: cells.read("c"))
        assert (state.value, state.version) == (version, version)


def test_a_second_init_changes_nothing(store: Any) -> None:
    store.write(lambda cells: cells.init("c", "first"))
    with pytest.raises(inmem.CellExistsError, match="'c'") as caught:
        store.write(lambda cells: cells.init("c", "second"))
    assert (caught.value.name, caught.value.version) == ("c", 1)
    assert value_of(store, "c") == "first"


def test_cas_from_another_version_changes_nothing(store: Any) -> None:
    store.write(lambda cells: cells.init("c", "kept"))
    for expected in (0, 2, (1 << 63) - 1):
        with pytest.raises(inmem.VersionMismatchError) as caught:
            store.write(lambda cells, expected=expected: cells.cas("c", expected, "lost"))
        assert (caught.value.expected, caught.value.actual) == (expected, 1)
    assert value_of(store, "c") == "kept"


def test_cas_and_transition_of_nothing(store: Any) -> None:
    for call in (lambda cells: cells.cas("c", 0, 1), lambda cells: cells.transition("c", lambda s: (1, 1))):
        with pytest.raises(inmem.CellNotFoundError) as caught:
            store.write(call)
        assert caught.value.name == "c"
    assert store.read(lambda cells: cells.list()) == []


class Refusal(Exception):
    pass


def test_an_error_in_a_transition_changes_nothing(store: Any) -> None:
    def fn(state: inmem.State) -> Any:
        raise Refusal

    store.write(lambda cells: cells.init("c", "kept"))
    with pytest.raises(Refusal):
        store.write(lambda cells: cells.transition("c", fn))
    state = store.read(lambda cells: cells.read("c"))
    assert (state.value, state.version) == ("kept", 1)


@pytest.mark.parametrize("returned", [None, 7, [1, 2], (1,), (1, 2, 3), "ab"])
def test_a_transition_must_return_a_pair(writer: Form, returned: Any) -> None:
    writer(lambda cells: cells.init("c", 1))
    with pytest.raises(inmem.InvalidInputError, match="fn must return"):
        writer(lambda cells: cells.transition("c", lambda state: returned))


NAMES = ["!", "a", "a/", "a/b", "aa", "b", "\u00e9", "\u00e9/x", "\uffee", "\U0001f600"]


@pytest.mark.parametrize(("prefix", "limit", "reverse"), [
    (None, None, False), ("", None, True), ("a", None, False), ("a", 2, False), ("a", 2, True),
    ("a/", None, False),
    ("\u00e9", None, False), ("q", None, False), (None, 0, False), (None, 3, True), (None, 99, False),
])
def test_listing(store: Any, prefix: str | None, limit: int | None, reverse: bool) -> None:
    for name in reversed(NAMES):
        store.write(lambda cells, name=name: cells.set(name, 1))
    expected = [name for name in NAMES if name.startswith(prefix or "")]
    expected = (expected[::-1] if reverse else expected)[:limit]
    assert store.read(lambda cells: cells.list(prefix, limit=limit, reverse=reverse)) == expected


def test_the_longest_name(store: Any) -> None:
    for name in ("n" * 320, "\u00e9" * 160):
        assert store.write(lambda cells, name=name: cells.init(name, 1)) == 1
        assert store.read(lambda cells, name=name: cells.exists(name))


def test_updated_at_is_the_time_of_the_commit(writer: Form) -> None:
    before = writer.db.run("clock").kv.put("k", 1) and writer.db.kv.get_versioned("clock", "k").timestamp
    writer(lambda cells: cells.set("c", 1))
    after = writer.db.run("clock").kv.put("k", 1) and writer.db.kv.get_versioned("clock", "k").timestamp
    state = writer.db.cells.read(writer.run_id, "c")
    assert state is not None
    assert before <= state.updated_at <= after


def test_states_are_frozen(reader: Form) -> None:
    reader.db.cells.set(reader.run_id, "c", 1)
    state = reader(lambda cells: cells.read("c"))
    with pytest.raises(AttributeError):
        state.version = 7


def test_a_reader_has_no_way_to_write(shared_db: inmem.Database) -> None:
    with shared_db.snapshot(new_run()) as view:
        for method in ("init", "set", "cas", "delete", "transition"):
            assert not hasattr(view.cells, method)


class TestInsideATransaction:
    @pytest.fixture
    def run_id(self) -> str:
        return new_run()

    def test_a_version_that_waits(self, shared_db: inmem.Database, run_id: str) -> None:
        txn = shared_db.transaction(run_id)
        pending = txn.cells.set("c", 1)
        with pytest.raises(inmem.InvariantError):
            _ = pending.version
        assert "None" in repr(pending)
        txn.commit()
        assert pending.version == 1
        assert repr(pending) == "PendingVersion(1)"

    def test_a_set_that_is_not_read_meets_no_conflict(self, shared_db: inmem.Database, run_id: str) -> None:
        txn = shared_db.transaction(run_id)
        pending = txn.cells.set("c", "mine")
        for i in range(4):
            shared_db.cells.set(run_id, "c", i)
        txn.commit()
        assert shared_db.cells.read(run_id, "c").version == pending.version == 5  # type: ignore[union-attr]

    @pytest.mark.parametrize("read", [
        lambda cells: cells.read("c"), lambda cells: cells.exists("c"), lambda cells: cells.list(),
        lambda cells: cells.list("c"), lambda cells: cells.delete("c"),
    ])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_set_that_is_read_is_a_dependency(
        self, shared_db: inmem.Database, run_id: str, read: Any, first: bool
    ) -> None:
        txn = shared_db.transaction(run_id)
        steps = [lambda: read(txn.cells), lambda: txn.cells.set("c", "mine")]
        for step in steps if first else steps[::-1]:
            step()
        shared_db.cells.set(run_id, "c", "theirs")
        with pytest.raises(inmem.ConflictError):
            txn.commit()
        assert shared_db.cells.read(run_id, "c").value == "theirs"  # type: ignore[union-attr]

    def test_changes_of_others_are_seen_by_no_procedure(self, shared_db: inmem.Database, run_id: str) -> None:
        """init and cas answer with a version at once: what they read must hold."""
        shared_db.cells.init(run_id, "c", 0)
        for call in (
            lambda cells: cells.cas("c", cells.read("c").version, 1), lambda cells: cells.init("new", 1)
        ):
            txn = shared_db.transaction(run_id)
            call(txn.cells)
            shared_db.cells.set(run_id, "c", "theirs")
            shared_db.cells.set(run_id, "new", "theirs")
            with pytest.raises(inmem.ConflictError):
                txn.commit()
            shared_db.cells.delete(run_id, "new")

    def test_all_of_it_within_one(self, shared_db: inmem.Database, run_id: str) -> None:
        with shared_db.transaction(run_id) as txn:
            pending = [txn.cells.set("c", 1), txn.cells.set("c", 2)]
            assert txn.cells.read("c").version == 2  # type: ignore[union-attr]
            pending.append(txn.cells.set("c", 3))
            assert txn.cells.cas("c", 3, 4) == 4
            assert txn.cells.delete("c") is True
            assert txn.cells.delete("c") is False
            assert txn.cells.list() == []
            assert txn.cells.init("c", 5) == 5
            assert txn.cells.transition("c", lambda s: (s.value + 1, s.value)) == 5
        assert [p.version for p in pending] == [1, 2, 3]
        state = shared_db.cells.read(run_id, "c")
        assert state is not None
        assert (state.value, state.version) == (6, 6)

    def test_an_error_that_is_caught_leaves_the_rest(self, shared_db: inmem.Database, run_id: str) -> None:
        with shared_db.transaction(run_id) as txn:
            txn.cells.init("c", 1)
            with pytest.raises(inmem.CellExistsError):
                txn.cells.init("c", 2)
            with pytest.raises(inmem.VersionMismatchError):
                txn.cells.cas("c", 7, 2)
            with pytest.raises(inmem.InvalidValueError):
                txn.cells.set("c", {1})
            assert txn.cells.read("c").value == 1  # type: ignore[union-attr]
        assert shared_db.cells.read(run_id, "c").version == 1  # type: ignore[union-attr]


def test_a_lost_race_is_a_conflict_when_attempts_are_used_up(shared_db: inmem.Database) -> None:
    run_id = new_run()
    shared_db.cells.init(run_id, "c", 0)
    calls = 0

    def disturbed(state: inmem.State) -> tuple[int, int]:
        nonlocal calls
        calls += 1
        shared_db.cells.set(run_id, "c", -calls)
        return calls, state.version

    with pytest.raises(inmem.ConflictError) as caught:
        shared_db.cells.transition(run_id, "c", disturbed, max_attempts=3)
    assert calls == 3
    assert (caught.value.read_version, caught.value.committed_version) == (3, 4)
    assert shared_db.cells.read(run_id, "c").value == -3  # type: ignore[union-attr]


def test_within_is_exercised(shared_db: inmem.Database) -> None:
    """The form in which reads see what is not committed yet is among those above."""
    some = Within(shared_db, "cells")
    some.write(lambda cells: cells.set("c", 1))
    assert shared_db.cells.read(some.run_id, "c") is None
    some.close()
    assert shared_db.cells.read(some.run_id, "c") is not None
