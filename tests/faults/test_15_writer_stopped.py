"""The writer is stopped: reads go on, commits are told at their deadline, and resolved to one result."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from crash_workers import RUN
from fault_workers import quantile
from support import Workers, writer_pid

import inmem
from inmem.config import MAX_IN_FLIGHT

SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))


def test_a_writer_that_is_wedged(store_path: Path, workers: Workers) -> None:
    """Stopped under commits of every kind: each is told at its deadline, and resolved to one result."""
    rng = random.Random(f"{SEED} wedged")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        db.cells.init(RUN, "cell", 0)
        late: list[float] = []
        unknown: list[inmem.CommitUnknownError] = []
        wrong: list[BaseException] = []
        threads_ready = threading.Barrier(13)

        def work(index: int, timeout_s: float) -> None:
            try:
                db.kv.add(RUN, "n")  # its session is there before the writer stops
                threads_ready.wait(30)
                threads_ready.wait(30)
                began = time.monotonic()
                try:
                    with db.transaction(RUN, timeout_s=timeout_s) as txn:
                        if index % 3 == 0:
                            txn.kv.add("n")
                        elif index % 3 == 1:
                            txn.events.append("late", index)
                        else:
                            txn.cells.set(f"cell-{index}", index)
                except inmem.CommitUnknownError as error:
                    late.append(time.monotonic() - began - timeout_s)
                    unknown.append(error)
                threads_ready.wait(30)
                threads_ready.wait(30)  # a thread that ends would take its session with it
            except BaseException as error:
                wrong.append(error)
                threads_ready.abort()

        threads = [
            threading.Thread(target=work, args=(index, rng.uniform(0.1, 0.6))) for index in range(12)
        ]
        for thread in threads:
            thread.start()
        pid = writer_pid(store_path)
        threads_ready.wait(30)
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            threads_ready.wait(30)
            reads = 0
            while len(unknown) < 12 and time.monotonic() - began < 10:
                assert db.kv.get(RUN, "k") == "v" and db.kv.get(RUN, "n") == 12
                reads += 1
                time.sleep(0.0005)  # the others need the interpreter to see that their time is up
            assert not wrong, wrong
            threads_ready.wait(30)
        finally:
            os.kill(pid, signal.SIGCONT)
        for error in unknown:
            error.resend(timeout_s=20.0)
        threads_ready.wait(30)
        for thread in threads:
            thread.join(30)
        assert not wrong, wrong
        assert len({error.commit_id for error in unknown}) == 12
        assert db.kv.get(RUN, "n") == 12 + 4
        assert sorted(event.payload for event in db.events.iter(RUN)) == [1, 4, 7, 10]
        assert [db.cells.read(RUN, f"cell-{n}").value for n in (2, 5, 8, 11)] == [2, 5, 8, 11]
        assert writer_pid(store_path) == pid and reads > 100
    assert min(late) >= 0 and quantile(late, 0.99) < 0.5, late
    print(
        f"12 commits of a stopped writer: p99 {quantile(late, 0.99) * 1000:.0f} ms over the deadline, "
        f"{reads} reads meanwhile, each resolved once"
    )


def test_a_stopped_writer(store_path: Path) -> None:
    """Reads go on, a commit is unknown at its deadline, and resolves to one result."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        db.kv.add(RUN, "n")
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(inmem.CommitUnknownError) as caught, db.transaction(RUN, timeout_s=0.5) as txn:
                txn.kv.add("n")
                appended = txn.events.append("noted", "once")
            late = time.monotonic() - began - 0.5
            assert 0 <= late < 1.0, f"{late:.2f} s past the deadline"
            error = caught.value
            assert error.commit_id and error.hint
            for _ in range(1000):
                assert db.kv.get(RUN, "k") == "v"
            assert db.kv.get(RUN, "n") == 1 and db.events.count(RUN) == 0
            with pytest.raises(inmem.CommitUnknownError):
                error.resend(timeout_s=0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        error.resend(timeout_s=10.0)
        assert appended.sequence == 0 and txn.version
        assert db.kv.get(RUN, "n") == 2 and [e.payload for e in db.events.iter(RUN)] == ["once"]
        assert db.kv.add(RUN, "n") == 3, "the session goes on in order"
        assert writer_pid(store_path) == pid


def test_an_unknown_commit_that_nobody_asks_for_holds_up_nothing(store_path: Path) -> None:
    """Its outcome must not keep those of all later commits from being forgotten, until there are too many."""
    with inmem.open(store_path) as db:
        db.kv.add(RUN, "n")
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(inmem.CommitUnknownError) as caught, db.transaction(RUN, timeout_s=0.1) as txn:
                txn.kv.add("n")
        finally:
            os.kill(pid, signal.SIGCONT)
        for number in range(MAX_IN_FLIGHT + 100):
            db.kv.put(RUN, "k", number)
        assert db.kv.get(RUN, "n") == 2
        caught.value.resend()
        assert db.kv.get(RUN, "n") == 2 and txn.version
