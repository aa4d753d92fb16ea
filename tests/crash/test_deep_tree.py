"""Trees of traces far deeper than any stack: reading, walking, showing and dropping them."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
from support import kill_writer

import inmem
from inmem.config import MAX_COMMIT_BYTES, MAX_TRANSACTION_OPS
from inmem.primitives.traces.rules import TraceTree

DEPTH = 10_000
RUN = "deep"


def chain(depth: int, first: int = 0) -> list[inmem.NewTrace]:
    """Traces in which each is the child of the one before."""
    return [
        inmem.NewTrace(
            inmem.Thought(f"level {n}"), id=f"t-{n:06}", parent_id=f"t-{n - 1:06}" if n else None,
            timestamp=1_000_000 + n,
        )
        for n in range(first, first + depth)
    ]


def assert_whole(tree: TraceTree, depth: int = DEPTH) -> None:
    walked = list(tree.walk())
    assert [(level, trace.id) for level, trace in walked] == [(n, f"t-{n:06}") for n in range(depth)]
    assert walked[-1][1].body == inmem.Thought(f"level {depth - 1}")


def test_a_chain_of_ten_thousand(store_path: Path) -> None:
    assert sys.getrecursionlimit() < DEPTH / 5, "deeper than the stack"
    with inmem.open(store_path) as db:
        part = DEPTH // 5  # so many fit a commit
        ids = [i for n in range(5) for i in db.traces.record_many(RUN, chain(part, n * part))]
        assert ids == [f"t-{n:06}" for n in range(DEPTH)]
        tree = db.traces.get_tree(RUN, "t-000000")
        assert_whole(tree)
        assert [trace.id for trace in db.traces.roots(RUN)] == ["t-000000"]
        assert db.traces.count(RUN) == DEPTH
        assert len(db.traces.list(RUN, limit=50, reverse=True)) == 50
        assert repr(tree) == "TraceTree('t-000000', children=1)"
        assert len(str(tree)) < 100
        assert tree == tree and tree != db.traces.get_tree(RUN, "t-009999") and hash(tree)
        del tree
        gc.collect()

        with db.snapshot(RUN) as view:
            assert_whole(view.traces.get_tree("t-000000"))
        half = db.traces.get_tree(RUN, f"t-{DEPTH // 2:06}")
        assert sum(1 for _ in half.walk()) == DEPTH // 2

        kill_writer(store_path)
        assert_whole(db.traces.get_tree(RUN, "t-000000"))
        assert db.check().problems == []
        assert db.runs.delete_run(RUN).traces == DEPTH


def test_a_chain_that_grows_inside_a_transaction(db: inmem.Database) -> None:
    """Half of it is stored, the other half is the transaction's own, and read before the commit."""
    half = DEPTH // 4
    db.traces.record_many(RUN, chain(half))
    with db.transaction(RUN) as txn:
        txn.traces.record_many(chain(half, half))
        assert_whole(txn.traces.get_tree("t-000000"), 2 * half)
        assert [trace.id for trace in txn.traces.roots()] == ["t-000000"]
    assert_whole(db.traces.get_tree(RUN, "t-000000"), 2 * half)


def test_a_broad_and_deep_tree_keeps_its_order(db: inmem.Database) -> None:
    """A comb: each level of a long chain has leaves on both sides of it in time."""
    depth = 1_200
    traces = []
    for n in range(depth):
        parent = f"t-{n - 1:06}" if n else None
        traces.append(inmem.NewTrace(inmem.Thought("spine"), id=f"t-{n:06}", parent_id=parent, timestamp=2))
        for name, when in (("a", 1), ("b", 2), ("z", 3)):
            traces.append(inmem.NewTrace(
                inmem.Custom("leaf", n), id=f"{name}-{n:06}", parent_id=f"t-{n:06}", timestamp=when
            ))
    db.traces.record_many(RUN, traces[: len(traces) // 2])
    db.traces.record_many(RUN, traces[len(traces) // 2 :])
    tree = db.traces.get_tree(RUN, "t-000000")
    expected = []
    for n in range(depth):
        expected += [(n, f"t-{n:06}"), (n + 1, f"a-{n:06}"), (n + 1, f"b-{n:06}")]
    expected += [(n + 1, f"z-{n:06}") for n in reversed(range(depth))]
    assert [(level, trace.id) for level, trace in tree.walk()] == expected


def test_a_batch_beyond_the_limit_stores_nothing(db: inmem.Database) -> None:
    with pytest.raises(inmem.LimitError) as refused:
        db.traces.record_many(RUN, [inmem.NewTrace(inmem.Thought(""))] * (MAX_TRANSACTION_OPS + 1))
    assert refused.value.limit == MAX_COMMIT_BYTES and (refused.value.size or 0) > MAX_COMMIT_BYTES
    assert db.traces.count(RUN) == 0


def test_a_broken_link_stores_nothing(db: inmem.Database) -> None:
    """One missing parent in the middle of a batch refuses all of it."""
    with pytest.raises(inmem.TraceNotFoundError):
        db.traces.record_many(RUN, [*chain(50), *chain(50, 51)])
    assert db.traces.count(RUN) == 0 and db.traces.list(RUN) == []
