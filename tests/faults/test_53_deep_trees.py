"""Fault 53: what a user is given can be copied, pickled, compared and printed at any depth."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

import inmem
from inmem import Thought, TraceTree

RUN = "run"
DEPTH = 10_000


@pytest.fixture
def tree(db: inmem.Database) -> TraceTree:
    """A chain of traces, with a leaf at each."""
    traces = []
    above = None
    for number in range(DEPTH):
        traces.append(inmem.NewTrace(Thought(f"t{number}"), id=f"t{number}", parent_id=above))
        traces.append(inmem.NewTrace(Thought("leaf"), id=f"l{number}", parent_id=f"t{number}"))
        above = f"t{number}"
        if len(traces) == 1000:
            db.traces.record_many(RUN, traces)
            traces = []
    found = db.traces.get_tree(RUN, "t0")
    assert found is not None
    return found


def _pickled(tree: TraceTree) -> TraceTree:
    found: TraceTree = pickle.loads(pickle.dumps(tree))  # noqa: S301 - our own
    return found


@pytest.mark.parametrize("make", [_pickled, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_deep_tree_is_copied(tree: TraceTree, make: Callable[[TraceTree], TraceTree]) -> None:
    other = make(tree)
    assert other is not tree and other == tree
    assert sum(1 for _ in other.walk()) == 2 * DEPTH
    assert max(depth for depth, _ in other.walk()) == DEPTH
    assert "children=2" in repr(other)
    other.children.clear()
    assert other != tree and max(depth for depth, _ in tree.walk()) == DEPTH, "it is no part of the first"


def test_a_shallow_copy_shares(tree: TraceTree) -> None:
    assert copy.copy(tree) == tree


def test_trees_differ_by_shape() -> None:
    """Equal traces in another shape are another tree."""
    one, two, three = (
        inmem.Trace(name, None, Thought(name), 1, (), {}) for name in ("a", "b", "c")
    )
    flat = TraceTree(one, [TraceTree(two), TraceTree(three)])
    chain = TraceTree(one, [TraceTree(two, [TraceTree(three)])])
    assert flat != chain and flat == copy.deepcopy(flat) and chain == _pickled(chain)
    assert flat != "a"
