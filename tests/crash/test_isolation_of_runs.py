"""A hundred runs next to each other: none sees another, and one that is deleted is gone for good."""

from __future__ import annotations

import os
from pathlib import Path

from primitive_workers import READY, Rows, open_store, rows_of
from run_workers import check_run, run_name, write_parts, write_until_refused
from support import Workers, in_parallel, kill_writer, stop_writer, wait_until

import inmem
from inmem.keys import Namespace, TypeTag, fence_of
from inmem.storage.environment import Table

RUNS = 100
WORKERS = 8
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
HOME = Namespace()
# A parent whose child stays, and a child whose parent stays.
PARENT, CHILD = 42, 77


def owned_by(run: str, rows: Rows) -> set[bytes]:
    """The keys of the table of records that are one run's: its data, its record, its index entries."""
    of_data = HOME.run_prefix(run) + b"\0"
    of_runs = HOME.prefix() + b"\0"
    return {
        key for key in rows
        if key.startswith(of_data) or (key.startswith(of_runs) and key.endswith(run.encode()))
    }


def assert_gone(run: str, before: dict[Table, Rows], after: dict[Table, Rows], children: int) -> None:
    """Nothing of the run is left, and everything else is what it was, byte for byte."""
    owned = owned_by(run, before[Table.DATA])
    assert {key[key.index(0) + 1] for key in owned} >= {
        TypeTag.KV, TypeTag.EVENT, TypeTag.STATE, TypeTag.TRACE, TypeTag.RUN, TypeTag.EVENT_BY_TYPE,
        TypeTag.STATE_MARK, TypeTag.TRACE_BY_TYPE, TypeTag.TRACE_BY_TAG, TypeTag.TRACE_BY_PARENT,
        TypeTag.TRACE_BY_TIME, TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG,
    }
    rest = {key: record for key, record in before[Table.DATA].items() if key not in owned}
    assert after[Table.DATA] == rest
    naming = [key for key in after[Table.DATA] if run.encode() in key]
    assert len(naming) == children, naming  # a child still says who its parent was
    assert all(key[key.index(0) + 1] == TypeTag.RUN_BY_PARENT for key in naming)
    assert any(run.encode() in entry for entry in before[Table.EXPIRY])
    assert after[Table.EXPIRY] == {
        entry: value for entry, value in before[Table.EXPIRY].items()
        if not entry[8:].startswith(HOME.run_prefix(run) + b"\0")
    }
    assert set(after[Table.FENCES]) - set(before[Table.FENCES]) == {fence_of(HOME.run_prefix(run))}


def test_a_hundred_runs_of_eight_processes(store_path: Path, workers: Workers) -> None:
    print(f"seed {SEED}")
    with inmem.open(store_path) as db:
        assert in_parallel(workers, write_parts, WORKERS, store_path, RUNS, SEED) == [RUNS] * WORKERS
        names = [run_name(number) for number in range(RUNS)]
        assert db.runs.list_runs() == names
        assert db.runs.get_stats().total == RUNS
        for number in range(RUNS):
            check_run(db, number, WORKERS)
            children = [run.run_id for run in db.runs.get_child_runs(names[number])]
            assert children == ([names[number + 1]] if number % 2 == 0 else [])

        gone: list[int] = []
        for number, children in ((CHILD, 0), (PARENT, 1)):
            before = rows_of(db)
            deleted = db.runs.delete_run(names[number])
            assert_gone(names[number], before, rows_of(db), children)
            assert (deleted.kv, deleted.events, deleted.cells, deleted.traces, deleted.had_record) == (
                3 * WORKERS + 2, 2 * WORKERS, WORKERS, 2 * WORKERS, True
            )
            gone.append(number)
        settled = rows_of(db)
        for restart in (kill_writer, stop_writer):
            restart(store_path)
            db.sync()  # by a new writer
            for number in gone:
                assert_empty(db, names[number])
                for write in (
                    lambda run=names[number]: db.kv.put(run, "k", 1),
                    lambda run=names[number]: db.runs.create_run(run_id=run),
                ):
                    try:
                        write()
                    except inmem.RunDeletedError as error:
                        assert error.run_id == names[number]
                    else:
                        raise AssertionError("a deleted run was written into")
            now = rows_of(db)
            assert now[Table.DATA] == settled[Table.DATA]
            assert now[Table.FENCES] == settled[Table.FENCES]
            left = set(range(RUNS)) - set(gone)
            for number in left:
                check_run(db, number, WORKERS)
            assert db.runs.list_runs() == [names[number] for number in sorted(left)]
            assert db.check().problems == []
    print(f"{RUNS} runs of {WORKERS} processes, {len(settled[Table.DATA])} records left of the others")


def assert_empty(db: inmem.Database, run: str) -> None:
    """What readers of a deleted run see: nothing."""
    assert db.kv.list(run) == [] and db.kv.get(run, "same") is None and db.kv.ttl(run, "brief-0") is None
    assert db.events.count(run) == 0 and db.events.head(run) is None and db.events.read(run, 0) is None
    assert db.events.query_by_type(run, "piped") == []
    assert db.cells.list(run) == [] and db.cells.read(run, "cell-0") is None
    assert db.traces.list(run) == db.traces.roots(run) == db.traces.query_by_type(run, "Thought") == []
    assert db.traces.count(run) == 0 and db.traces.get(run, "top-0") is None
    assert db.runs.get_run(run) is None and run not in db.runs.list_runs(include_archived=True)
    assert run not in [found.run_id for found in db.runs.query_runs(tags=["all"], include_archived=True)]


def reached(workers: Workers, first: int, number: int) -> bool:
    """Whether all have come so far; fails at once if one of them has failed."""
    workers.check()
    return all(workers.words[first + index] >= number for index in range(WORKERS))


def test_workers_that_do_not_notice_are_refused(store_path: Path, workers: Workers) -> None:
    """Eight write in every way into a run that goes away: from then on each way raises, for good."""
    run, bystander = "victim", "bystander"
    with open_store(store_path) as db:
        for name in (run, bystander):
            db.runs.create_run(run_id=name, tags=["x"])
            db.cells.init(name, "cell", 0)
            db.traces.record(name, inmem.Thought("top"), id="top")
            db.kv.put(name, "k", name)
            db.events.append(name, "first", name)
        kept = {key: record for key, record in rows_of(db)[Table.DATA].items()
                if b"bystander" in key and key[key.index(0) + 1] != TypeTag.RUN_BY_PARENT}
        for index in range(WORKERS):
            workers.start(write_until_refused, index, store_path, run)
        wait_until(lambda: reached(workers, 0, 40), "all workers write")
        deleted = db.runs.delete_run(run)
        assert deleted.had_record and deleted.kv and deleted.cells and deleted.traces

        for phase, restart in ((1, None), (2, kill_writer), (3, stop_writer)):
            if restart is not None:
                restart(store_path)
            workers.words.open_gate(phase)
            wait_until(lambda p=phase: reached(workers, READY, p), "all workers were refused")
            rows = rows_of(db)
            assert [key for key in rows[Table.DATA] if b"victim" in key] == []
            assert [key for key in rows[Table.EXPIRY] if b"victim" in key] == []
            assert {key: rows[Table.DATA].get(key) for key in kept} == kept
        results = workers.results()
        for result in results:
            assert result["open"] == "RunDeletedError", "a transaction from before the deletion"
            for phase, refusals in enumerate(result["refusals"]):
                others = {name: error for name, error in refusals.items() if error != "RunDeletedError"}
                assert others == {}, f"phase {phase + 1}"
            assert result["left"] == result["leaks"], "what was refused is not in the other run either"
        appended = 1 + sum(result["appended"] for result in results)
        assert deleted.events == appended, "every acknowledged event was there when the run went"
        assert db.check().problems == []
    kinds = len(results[0]["refusals"][0])
    print(f"{deleted.total} records deleted under {WORKERS} workers; {kinds} ways to write refused "
          f"before, after a kill and after a restart")
