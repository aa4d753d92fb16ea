"""The life of runs: the table of statuses pair by pair, races for one status, statistics that add up."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_workers import STORIES, live_and_die, race_for_status, recount
from support import Workers, kill_writer

import inmem
from inmem import RunStatus

WORKERS = 8
ROUNDS = 60
LIVES = 240
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))

# What users are promised, written down a second time: not taken from the code.
ALLOWED = {
    "active": {"completed", "failed", "cancelled", "paused", "archived"},
    "paused": {"active", "cancelled", "archived"},
    "completed": {"archived"},
    "failed": {"archived"},
    "cancelled": {"archived"},
    "archived": set(),
}
WAYS = {"active": [], "paused": ["paused"], "completed": ["completed"], "failed": ["failed"],
        "cancelled": ["cancelled"], "archived": ["completed", "archived"]}
NAMES = list(ALLOWED)
PAIRS = [(first, second) for first in NAMES for second in NAMES]
ENDED = {"completed", "failed", "cancelled"}

Change = Callable[[inmem.Database, str, RunStatus], Any]


def directly(db: inmem.Database, run: str, status: RunStatus) -> Any:
    return db.runs.update_status(run, status)


def by_name(db: inmem.Database, run: str, status: RunStatus) -> Any:
    """The method that is named after the change."""
    if status is RunStatus.FAILED:
        return db.runs.fail_run(run, "why")
    method = {"active": "resume", "paused": "pause", "completed": "complete", "cancelled": "cancel",
              "archived": "archive"}[status.value]
    return getattr(db.runs, f"{method}_run")(run)


def in_transaction(db: inmem.Database, run: str, status: RunStatus) -> Any:
    with db.transaction(run) as txn:
        txn.kv.put("note", "of the same commit")
        return txn.runs.update_status(status)


CHANGES: dict[str, Change] = {"directly": directly, "by name": by_name, "in a transaction": in_transaction}


def test_the_pairs_are_all() -> None:
    assert len(PAIRS) == len(set(PAIRS)) == 36
    assert sorted(NAMES) == sorted(status.value for status in RunStatus)
    for first, second in PAIRS:
        expected = second in ALLOWED[first]
        assert inmem.is_valid_transition(RunStatus(first), RunStatus(second)) is expected, (first, second)


def test_every_pair_in_every_way(store_path: Path) -> None:
    """Allowed or refused as the table says; a refusal changes nothing; a killed writer neither."""
    ends: dict[str, Any] = {}
    with inmem.open(store_path) as db:
        for number, (first, second) in enumerate(PAIRS):
            for way, change in CHANGES.items():
                run = f"{first}-{second}-{way.replace(' ', '-')}"
                db.runs.create_run(run_id=run, tags=["t"], metadata={"n": number})
                for step in WAYS[first]:
                    db.runs.update_status(run, RunStatus(step))
                before = db.runs.get_run(run)
                assert before is not None and before.status.value == first
                if second in ALLOWED[first]:
                    answer = change(db, run, RunStatus(second))
                    after = db.runs.get_run(run)
                    assert after is not None and after.status.value == second, (first, second, way)
                    assert answer.status is after.status and answer.version == after.version
                    assert after.version == before.version + 1
                    assert after.updated_at >= before.updated_at
                    assert (after.completed_at is not None) is (second in ENDED or first in ENDED)
                    assert (after.run_id, after.tags, after.metadata, after.created_at) == (
                        before.run_id, before.tags, before.metadata, before.created_at
                    )
                else:
                    with pytest.raises(inmem.InvalidTransitionError) as refused:
                        change(db, run, RunStatus(second))
                    assert (refused.value.from_status, refused.value.to_status) == (first, second)
                    assert db.runs.get_run(run) == before
                    assert db.kv.get(run, "note") is None
                ends[run] = db.runs.get_run(run)
        kill_writer(store_path)
        db.kv.put("other", "k", 1)
        for run, end in ends.items():
            assert db.runs.get_run(run) == end
        for status in RunStatus:
            named = {run for run, end in ends.items() if end.status is status}
            assert {found.run_id for found in db.runs.query_runs(status=status)} == named
        assert db.check().problems == []
    print(f"{len(PAIRS)} pairs in {len(CHANGES)} ways")


def test_of_conflicting_changes_one_wins(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        runs = []
        for number in range(ROUNDS):
            story = list(STORIES)[number % len(STORIES)]
            runs.append(f"{story}-{number}")
            db.runs.create_run(run_id=runs[-1])
            if story == "resumed":
                db.runs.pause_run(runs[-1])
        for index in range(WORKERS):
            workers.start(race_for_status, index, store_path, WORKERS, ROUNDS)
        results = workers.results()
        conflicts = 0
        for run, outcomes in zip(runs, zip(*results, strict=True), strict=True):
            winners = [wanted for wanted, what, _ in outcomes if what == "won"]
            assert len(winners) == 1, (run, outcomes)
            for _, what, found in outcomes:
                assert what != "refused" or found == winners[0], (run, outcomes)
                conflicts += what == "conflict"
            end = db.runs.get_run(run)
            assert end is not None and end.status.value == winners[0], (run, outcomes)
            assert end.version == (3 if run.startswith("resumed") else 2)
            assert end.error == ("why not" if winners[0] == "failed" else None)
            changed = [event.payload for event in db.events.iter(run)]
            assert changed in ([], winners), "only a winner's transaction has left an event"
        assert db.check().problems == []
    by_worker = [sum(what == "won" for _, what, _ in result) for result in results]
    assert sum(outcome is not None for outcome in by_worker) == WORKERS
    print(f"{ROUNDS} rounds of {WORKERS}: one winner each, by worker {by_worker}; "
          f"{conflicts} conflicts of single attempts")


def test_statistics_add_up_under_concurrency(store_path: Path, workers: Workers) -> None:
    print(f"seed {SEED}")
    busy, readers = 6, 2
    with inmem.open(store_path) as db:
        some = [workers.start(live_and_die, index, store_path, LIVES, SEED) for index in range(busy)]
        counting = [workers.start(recount, busy + n, store_path) for n in range(readers)]
        ends: dict[str, str] = {}
        for worker in some:
            ends |= worker.result()
        workers.words.stop()
        views = [worker.result() for worker in counting]

        expected = Counter(end for end in ends.values() if end != "deleted")
        stats = db.runs.get_stats()
        assert {status.value: n for status, n in stats.by_status.items() if n} == dict(expected)
        assert stats.total == sum(expected.values())
        assert set(db.runs.list_runs(include_archived=True)) == {
            run for run, end in ends.items() if end != "deleted"
        }
        for run, end in ends.items():
            found = db.runs.get_run(run)
            assert (found is None) if end == "deleted" else (found is not None and found.status.value == end)
            if end == "deleted":
                with pytest.raises(inmem.RunDeletedError):
                    db.runs.create_run(run_id=run)
        kill_writer(store_path)
        db.kv.put("other", "k", 1)
        assert db.runs.get_stats() == stats
        assert db.check().problems == []
    assert len(ends) == busy * LIVES and "deleted" in ends.values()
    for view in views:
        assert view["views"] > 10 and view["states"] > 5, "the statistics changed while they were looked at"
    print(f"{len(ends)} lives, {sum(end == 'deleted' for end in ends.values())} deleted, "
          f"views and states of the readers: {[(v['views'], v['states']) for v in views]}")
