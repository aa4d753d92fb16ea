"""Many processes at once on the same data: exact, serializable, and nobody is refused for good."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash_workers import RUN, anomaly, append, audit, increment, move, race
from support import Workers, in_parallel, wait_until

import inmem

WORKERS = 8
INCREMENTS = int(os.environ.get("INMEM_TEST_INCREMENTS", "500"))
APPENDS = 150


def open_gate_when_ready(workers: Workers) -> None:
    """Start all workers at once, as soon as each has opened the store."""

    def wait() -> None:
        wait_until(lambda: workers.words.total(WORKERS) >= WORKERS, "all workers are ready")
        workers.words.open_gate()

    threading.Thread(target=wait, daemon=True).start()


def test_increments_of_one_counter_are_exact(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        open_gate_when_ready(workers)
        results = in_parallel(workers, increment, WORKERS, store_path, INCREMENTS)
        assert db.kv.get(RUN, "counter") == WORKERS * INCREMENTS
        status = db.status()
    calls = sum(result["calls"] for result in results)
    slowest = max(result["seconds"] for result in results)
    assert calls >= WORKERS * INCREMENTS
    assert status.commits >= WORKERS * INCREMENTS
    print(f"{WORKERS * INCREMENTS} increments in {slowest:.1f} s, {calls - WORKERS * INCREMENTS} repeated")


def test_appends_of_many_processes_form_one_order(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        open_gate_when_ready(workers)
        results = in_parallel(workers, append, WORKERS, store_path, APPENDS)
        events = list(db.events.iter(RUN))
        assert [event.sequence for event in events] == list(range(WORKERS * APPENDS))
        assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)
        for index, sequences in enumerate(results):
            for sequence, n in sequences:
                assert events[sequence].payload == [index, n], "each event is where its answer said"
            order = [sequence for sequence, _ in sequences]
            assert order == sorted(order), "one process's appends keep their order"
            assert db.kv.get(RUN, f"appended-{index}") == len(range(0, APPENDS, 3))
        for name in ("type-0", "type-1", "type-2", "in-txn"):
            by_type = [event.sequence for event in db.events.query_by_type(RUN, name)]
            assert by_type == [event.sequence for event in events if event.event_type == name]
        chain = db.events.verify_chain(RUN)
        assert chain.is_valid and chain.length == WORKERS * APPENDS
        assert db.status().conflicts == 0, "appends never conflict"
        assert db.check().problems == []


@pytest.mark.parametrize("kind", ["lost-update", "write-skew", "phantom", "log-phantom"])
def test_an_anomaly_is_refused(store_path: Path, workers: Workers, kind: str) -> None:
    """Both processes read before either writes: exactly one of them may go through."""
    rounds = 40
    with inmem.open(store_path) as db:
        first, second = in_parallel(workers, anomaly, 2, store_path, kind, rounds)
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert sorted(pair) == ["done", "refused"], (number, pair)
            run = f"{kind}-{number}"
            if kind == "lost-update":
                assert db.kv.get(run, "n") == 1
            elif kind == "write-skew":
                assert [db.kv.get(run, "a", True), db.kv.get(run, "b", True)].count(False) == 1
            elif kind == "phantom":
                assert db.kv.count(run) == 1
            else:
                assert db.events.count(run) == 1
        assert db.status().conflicts == rounds


def test_a_reader_never_sees_half_of_a_transaction(store_path: Path, workers: Workers) -> None:
    views, states = 4_000, 50
    with inmem.open(store_path) as db:
        db.kv.put_many(RUN, {"left": 500, "right": 500})
        movers = [workers.start(move, index, store_path, 2) for index in range(2)]
        wait_until(lambda: all(workers.words[index] for index in range(2)), "both movers move")
        auditor = workers.start(audit, store_path, views, states)
        report = auditor.result()
        workers.words.stop()
        moves = sum(mover.result() for mover in movers)
        assert db.events.count(RUN) == moves
    assert report["views"] >= views
    assert report["states"] >= states, "the accounts changed while they were looked at"
    print(f"{report['views']} views of {report['states']} states, {moves} moves")


def test_nobody_loses_for_ever(store_path: Path, workers: Workers) -> None:
    """Eight processes in tight loops on one key: no transaction needs more than half of its attempts."""
    with inmem.open(store_path) as db:
        open_gate_when_ready(workers)
        reports = in_parallel(workers, race, WORKERS, store_path, 1.0)
        done = [report["done"] for report in reports]
        assert db.kv.get(RUN, "raced") == sum(done)
        assert db.status().conflicts > sum(done) / 10, "they were in each other's way"
    most = max(report["most_attempts"] for report in reports)
    print(f"{sum(done)} done, at most {most} attempts, slowest {WORKERS * min(done) / sum(done):.0%}")
    assert most <= 32
    assert min(done) > sum(done) / WORKERS / 10


def test_fields_of_one_entry_set_by_all(db: inmem.Database) -> None:
    """Eight threads, each with a field of its own in one entry: none is lost, nobody sees a conflict."""
    threads, rounds = 8, 200
    before = db.status().conflicts

    def work(index: int) -> None:
        for number in range(1, rounds + 1):
            db.kv.merge(RUN, "shared", {f"of-{index}": number})
            assert db.kv.get(RUN, "shared")[f"of-{index}"] == number

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert db.kv.get(RUN, "shared") == {f"of-{index}": rounds for index in range(threads)}
    assert db.status().conflicts == before


def test_threads_have_sessions_of_their_own(db: inmem.Database) -> None:
    """Eight threads with transactions on one handle: exact, and no answer goes to the wrong one."""
    threads, rounds = 8, 60
    wrong: list[BaseException] = []

    def step(txn: inmem.Transaction) -> int:
        count = txn.kv.get("counter", 0) + 1
        txn.kv.put("counter", count)
        txn.events.append("counted", count)
        return count

    def work(index: int, counts: list[int]) -> None:
        try:
            for number in range(rounds):
                counts.append(db.transact(RUN, step, max_attempts=10_000))
                assert db.kv.add(f"own-{index}", "n") == number + 1
        except BaseException as error:
            wrong.append(error)

    results: list[list[int]] = [[] for _ in range(threads)]
    some = [threading.Thread(target=work, args=(i, results[i])) for i in range(threads)]
    for thread in some:
        thread.start()
    for thread in some:
        thread.join(60)
    assert wrong == []
    assert sorted(count for counts in results for count in counts) == list(range(1, threads * rounds + 1))
    assert [e.payload for e in db.events.iter(RUN)] == list(range(1, threads * rounds + 1))
