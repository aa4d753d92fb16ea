"""Fault 43: times given by the store never go back within a run: who reads on from a time misses nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from run_workers import FOLLOWED, create_each_way, record_each_way
from support import Workers, wait_until

import inmem

WRITERS = 8
EACH = 60


def follow(workers: Workers, read: Callable[[int], list[tuple[int, str]]], enough: int) -> list[str]:
    """The ids that a reader finds who always goes on after the last time that it has seen."""
    found: list[str] = []
    last = 0

    def goes_on() -> bool:
        nonlocal last
        workers.check()
        new = read(last + 1)
        found.extend(name for _, name in new)
        last = max((when for when, _ in new), default=last)
        return sum(workers.words[n] for n in range(WRITERS)) == enough and not new

    wait_until(goes_on, "the writers have written all", 120.0)
    return found


@pytest.mark.parametrize("what", ["traces", "runs"])
def test_a_follower_misses_nothing(store_path: Path, workers: Workers, what: str) -> None:
    with inmem.open(store_path) as db:
        target = record_each_way if what == "traces" else create_each_way

        def read_traces(start: int) -> list[tuple[int, str]]:
            return [(t.timestamp, t.id) for t in db.traces.query_by_time(FOLLOWED, start, 1 << 62)]

        def read_runs(start: int) -> list[tuple[int, str]]:
            return [(r.created_at, r.run_id) for r in db.runs.query_runs(created_after=start)]

        written = [workers.start(target, index, store_path, EACH) for index in range(WRITERS)]
        found = follow(workers, read_traces if what == "traces" else read_runs, WRITERS * EACH)
        made = list(itertools.chain.from_iterable(one.result() for one in written))
        missed = set(made) - set(found)
        print(f"{what}: {len(made)} of {WRITERS} writers, missed {len(missed)}")
        assert missed == set() and sorted(found) == sorted(made)
        assert db.check().ok


def test_the_callers_own_time_is_the_callers(db: inmem.Database) -> None:
    """It may lie before what a follower has seen: that is what it costs."""
    first = db.traces.get("run", db.traces.record("run", inmem.Thought("now")))
    assert first is not None
    db.traces.record("run", inmem.Thought("then"), id="then", timestamp=first.timestamp - 1_000_000)
    later = db.traces.get("run", db.traces.record("run", inmem.Thought("now again")))
    assert later is not None and later.timestamp > first.timestamp
    assert db.traces.query_by_time("run", 0, first.timestamp)[0].id == "then"
    assert [t.id for t in db.traces.query_by_time("run", first.timestamp + 1, 1 << 62)] == [later.id]
