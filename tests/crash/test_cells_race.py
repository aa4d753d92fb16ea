"""Many processes at one cell: exact, one winner for each version, and everyone makes progress."""

from __future__ import annotations

import os
from pathlib import Path

from primitive_workers import READY, count_up, win_versions
from support import Workers, wait_until

import inmem

WORKERS = 8
INCREMENTS = int(os.environ.get("INMEM_TEST_INCREMENTS", "500"))
VERSIONS = 1_000
RUN = "shared"
LEAST_SHARE = 0.10  # of what the mean worker gets done, for the slowest


def all_ready(workers: Workers) -> bool:
    workers.check()
    return all(workers.words[READY + index] for index in range(WORKERS))


def test_transitions_of_one_cell_are_exact_and_fair(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        first = db.cells.init(RUN, "count", 0)
        for index in range(WORKERS):
            workers.start(count_up, index, store_path, RUN, INCREMENTS)
        wait_until(lambda: all_ready(workers), "all workers are ready")
        workers.words.open_gate()

        def made_by_each() -> list[int]:
            return [workers.words[index] for index in range(WORKERS)]

        # While all eight compete: from when each has begun until one of them is done.
        wait_until(lambda: min(made_by_each()) > 0, "all have begun", 90.0)
        begun = made_by_each()
        wait_until(lambda: max(made_by_each()) >= INCREMENTS, "one worker is done", 90.0)
        progress = [done - before for done, before in zip(made_by_each(), begun, strict=True)]
        results = workers.results()

        state = db.cells.read(RUN, "count")
        assert state is not None
        assert state.value == WORKERS * INCREMENTS
        assert state.version == first + WORKERS * INCREMENTS, "each transition is one version"
        made = sorted(n for result in results for n in result)
        assert made == list(range(1, WORKERS * INCREMENTS + 1)), "each number was made once"
        for result in results:
            assert result == sorted(result)
        assert db.check().problems == []
    share = min(progress) / (sum(progress) / WORKERS)
    print(f"{WORKERS} x {INCREMENTS} transitions, when the first was done: {sorted(progress)}, "
          f"slowest / mean = {share:.0%}")
    assert share >= LEAST_SHARE, progress


def test_one_winner_for_each_version(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        first = db.cells.init(RUN, "race", None)
        for index in range(WORKERS):
            workers.start(win_versions, index, store_path, RUN, VERSIONS)
        wait_until(lambda: all_ready(workers), "all workers are ready")
        workers.words.open_gate()
        results = workers.results()

        winners: dict[int, list[int]] = {}
        for index, result in enumerate(results):
            for version in result["won"]:
                winners.setdefault(version, []).append(index)
        assert {version: len(some) for version, some in winners.items() if len(some) != 1} == {}
        assert sorted(winners) == list(range(first, VERSIONS))
        state = db.cells.read(RUN, "race")
        assert state is not None and state.version == VERSIONS
        assert state.value == [winners[VERSIONS - 1][0], VERSIONS - 1]
    lost = sum(result["lost"] for result in results)
    assert lost > 0, "nobody raced anybody"
    print(f"{len(winners)} versions with one winner each, {lost} refused, "
          f"won by each: {[len(result['won']) for result in results]}")
