"""What a transaction function returns: what only the commit knows is there, wherever it is in it."""

from __future__ import annotations

import operator
from collections import defaultdict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
from forms import new_run

import inmem
from inmem.primitives.events.rules import Appended

Pair = namedtuple("Pair", "first second")


@pytest.fixture
def scope(shared_db: inmem.Database) -> inmem.RunScope:
    return shared_db.run(new_run())


SHAPES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "itself": (lambda x: x, lambda x: x),
    "tuple": (lambda x: (1, x), lambda r: r[1]),
    "list": (lambda x: [x, "a"], lambda r: r[0]),
    "dict": (lambda x: {"a": {"b": x}}, lambda r: r["a"]["b"]),
    "named tuple": (lambda x: Pair(x, None), lambda r: r.first),
    "mixed": (lambda x: ([{"a": ((x,), 1)}], 2), lambda r: r[0][0]["a"][0][0]),
    "defaultdict": (lambda x: defaultdict(list, {"a": [x]}), lambda r: r["a"][0]),
}
RESULTS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "add": (lambda txn: txn.kv.add("n", 2), 2),
    "add a float": (lambda txn: txn.kv.add("f", 0.5), 0.5),
    "set": (lambda txn: txn.cells.set("c", 1), 1),
    "append": (lambda txn: txn.events.append("t"), Appended),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RESULTS)
def test_pending_results_are_replaced(scope: inmem.RunScope, name: str, shape: str) -> None:
    write, expected = RESULTS[name]
    wrap, unwrap = SHAPES[shape]
    returned = scope.transact(lambda txn: wrap(write(txn)))
    found = unwrap(returned)
    assert shape == "itself" or type(returned) is type(wrap(0)), "of the same kind as it was"
    assert type(found) is Appended if expected is Appended else found == expected
    assert not isinstance(found, inmem.Pending)


def test_every_way_to_run_a_function(shared_db: inmem.Database, scope: inmem.RunScope) -> None:
    @inmem.transactional
    def step(txn: inmem.Transaction) -> Any:
        return [txn.kv.add("n")]

    assert step(scope) == [1] and type(step(scope)[0]) is int
    assert scope.kv.transaction(lambda txn: (txn.kv.add("n"),)) == (3,)
    assert shared_db.transact(scope, lambda txn: [step(txn), txn.events.append_many([("t", 1)])])[0] == [4]
    early = scope.transact(lambda txn: (txn.kv.get("n"), txn.kv.add("n"), txn.kv.get("n")))
    assert early == (4, 5, 5)
    with scope.transaction() as txn:
        txn.kv.put("k", 1)
        txn.commit()
    assert scope.transact(lambda txn: {"n": txn.kv.get("n")}) == {"n": 5}  # nothing was written


def test_what_is_odd_is_left_as_it_is(scope: inmem.RunScope) -> None:
    circle: list[Any] = [1]
    circle.append((circle, circle))
    shared = {"a": 1}

    def step(txn: inmem.Transaction) -> Any:
        circle[0] = txn.kv.add("n")
        return [circle, shared, shared]

    found = scope.transact(step)
    assert found[0] is circle and circle[0] == 1 and type(circle[0]) is int
    assert found[1] is shared and found[2] is shared
    deep: list[Any] = [None]
    for _ in range(100_000):
        deep = [deep]
    number = scope.transact(lambda txn: [txn.kv.add("n"), deep])[0]
    assert number == 2
    while isinstance(deep[0], list):  # from outside, so that no stack is needed to free it
        deep = deep[0]


def test_what_is_not_committed_is_not_filled_in(scope: inmem.RunScope) -> None:
    kept: list[Any] = []

    def step(txn: inmem.Transaction) -> Any:
        kept.append(txn.kv.add("n"))
        txn.abort()
        return kept

    assert isinstance(scope.transact(step)[0], inmem.PendingNumber)
    with pytest.raises(inmem.InvariantError, match="only after the commit"):
        _ = kept[0] + 1


OPERATORS: list[Callable[[Any, Any], Any]] = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, divmod,
    operator.pow, operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
]
SINGLE: list[Callable[[Any], Any]] = [
    int, float, bool, abs, operator.neg, operator.pos, round, hash, str, "{:>8}".format, "{:.2f}".format,
    lambda n: round(n, 1), lambda n: {7: "x"}.get(n), lambda n: sum([n, n]), lambda n: max(n, 3),
    lambda n: sorted([9, n, 1])[1] + 0,
]


@pytest.mark.parametrize("value", [7, 2.5])
def test_a_pending_number_is_a_number_afterwards(scope: inmem.RunScope, value: Any) -> None:
    with scope.transaction() as txn:
        pending = txn.kv.add("n", value)
        other = txn.kv.add("m", 3)
        text, spelled = str(pending), f"{pending}"  # a log line must not fail
        for early in (*SINGLE[:8], lambda n: n + 1, lambda n: n > 1, lambda n: n == 7, lambda n: n or 1):
            with pytest.raises(inmem.InvariantError):
                early(pending)
    assert text == spelled == "PendingNumber(None)"
    for call in SINGLE:
        assert call(pending) == call(value)
    for combine in OPERATORS:
        assert combine(pending, 3) == combine(value, 3) == combine(pending, other)
        assert combine(3, pending) == combine(3, value)
    assert (pending == "text", pending in [value], pending != value) == (False, True, False)
    with pytest.raises(TypeError):
        pending + "text"


def test_a_pending_version_counts_and_indexes(scope: inmem.RunScope) -> None:
    with scope.transaction() as txn:
        version = txn.cells.set("c", 1)
    assert (version == 1, range(3)[version], version.version, version + 1) == (True, 1, 1, 2)
    assert scope.cells.cas("c", int(version), 2) == 2
