"""Children of every kind work or raise `ForkError`; parent and child never read a wrong row."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
from crash_workers import RUN, write_until_told
from forks import in_child
from support import Workers, wait_until

import inmem

ROWS = 400
CHURN = 300  # commits of the churning process after a fork: each frees and reuses pages
# Python warns of a fork beside threads; that is the case under test.
pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


def fill(db: inmem.Database) -> dict[str, str]:
    rows = {f"row-{n:04}": f"value {n} " * 20 for n in range(ROWS)}
    db.kv.put_many(RUN, rows)
    return rows


@contextmanager
def churning(workers: Workers, path: Path) -> Iterator[Callable[[], None]]:
    """A process that writes without a pause; the call waits until it has written a lot more."""
    worker = workers.start(write_until_told, 0, path)

    def churn() -> None:
        target = workers.words[0] + CHURN
        wait_until(lambda: workers.check() or workers.words[0] >= target, "the writer churns")

    churn()
    try:
        yield churn
    finally:
        workers.words.stop()
        worker.result()


def test_fork_while_connected(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db, churning(workers, store_path) as churn:
        rows = fill(db)
        for number in range(5):
            assert dict(db.kv.list_with_values(RUN)) == rows

            def work(number: int = number) -> None:
                assert dict(db.kv.list_with_values(RUN)) == rows
                db.kv.put("children", f"c{number}", os.getpid())
                assert db.kv.add("children", "n") == number * 2 + 1
                db.events.append("children", "born", number)
                with db.snapshot(RUN) as view:
                    assert view.kv.count() == ROWS

            assert in_child(work) == "ok"
            churn()
            assert dict(db.kv.list_with_values(RUN)) == rows
            assert db.kv.add("children", "n") == number * 2 + 2, "the parent's session is its own"
        assert [e.payload for e in db.events.iter("children")] == list(range(5))


def test_fork_inside_a_snapshot(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db, churning(workers, store_path) as churn:
        rows = fill(db)
        with db.snapshot(RUN) as view:
            churn()

            def work() -> None:
                with pytest.raises(inmem.ForkError):
                    db.kv.get(RUN, "row-0000")
                with pytest.raises((inmem.ForkError, inmem.SnapshotTooOldError, inmem.ClosedError)):
                    view.kv.get("row-0000")
                view.close()
                db.close()
                with inmem.open(store_path) as again:
                    again.kv.count(RUN)  # the parent's environment cannot be opened beside itself

            assert in_child(work) == "ForkError"
            # What the child did, its exit included, must not have freed the parent's slot.
            db.kv.put_many(RUN, dict.fromkeys(rows, "new"))
            churn()
            assert dict(view.kv.list_with_values()) == rows
        assert dict(db.kv.list_with_values(RUN)) == dict.fromkeys(rows, "new")
        assert in_child(lambda: db.kv.get(RUN, "row-0000")) == "ok", "with no snapshot open it works again"


def test_fork_inside_a_transaction(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db, churning(workers, store_path) as churn:
        rows = fill(db)
        with db.transaction(RUN) as txn:
            assert txn.kv.get("row-0000") == rows["row-0000"]
            txn.kv.put("from-parent", 1)

            def work() -> None:
                with pytest.raises(inmem.ForkError):
                    txn.kv.get("row-0001")
                with pytest.raises(inmem.ForkError):
                    txn.kv.put("from-child", 1)
                with pytest.raises(inmem.ForkError):
                    txn.commit()
                txn.abort()

            assert in_child(work) == "ok"
            churn()
            assert dict(txn.kv.list_with_values("row-")) == rows
        assert db.kv.get(RUN, "from-parent") == 1
        assert db.kv.get(RUN, "row-0001") == rows["row-0001"]


def test_fork_inside_a_pipeline(db: inmem.Database) -> None:
    """Commits in flight belong to the parent: the child neither sends nor answers them."""
    with db.pipeline() as pipe:
        for n in range(50):
            pipe.events.append(f"log-{n % 2}", "piped", n)
        saw = in_child(lambda: pipe.flush())
        assert saw == "ForkError", saw
        assert in_child(lambda: db.kv.add(RUN, "n")) == "ok"
    for half in range(2):
        assert [e.payload for e in db.events.iter(f"log-{half}")] == list(range(half, 50, 2))
    assert db.kv.get(RUN, "n") == 1


def test_fork_while_threads_read_and_write(store_path: Path, workers: Workers) -> None:
    stop = threading.Event()
    wrong: list[BaseException] = []
    forks = 10

    with inmem.open(store_path) as db, churning(workers, store_path) as churn:
        rows = fill(db)
        done = [0] * 4

        def read(index: int) -> None:
            try:
                while not stop.is_set():
                    key = f"row-{done[index] % ROWS:04}"
                    assert db.kv.get(RUN, key) == rows[key]
                    done[index] += 1
            except BaseException as error:
                wrong.append(error)

        def write(index: int) -> None:
            try:
                while not stop.is_set():
                    done[index] += 1
                    assert db.kv.add(f"thread-{index}", "n") == done[index]
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=t, args=(i,)) for i, t in enumerate((read, read, write, write))]
        for thread in threads:
            thread.start()
        refused = 0
        try:
            for number in range(forks):
                before = list(done)
                wait_until(lambda b=before: all(a > c for a, c in zip(done, b, strict=True)), "threads run")

                def work(number: int = number) -> None:
                    assert dict(db.kv.list_with_values(RUN)) == rows
                    db.kv.put("children", f"c{number}", True)

                said = in_child(work)
                assert said in ("ok", "ForkError"), said
                refused += said == "ForkError"
                assert db.kv.exists("children", f"c{number}") == (said == "ok")
                assert wrong == []
            churn()
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert wrong == []
        assert dict(db.kv.list_with_values(RUN)) == rows
        for index in (2, 3):
            assert db.kv.get(f"thread-{index}", "n") == done[index]
    print(f"{forks} forks beside 4 threads, {refused} refused, wrong rows 0")


def test_a_child_of_a_child(db: inmem.Database) -> None:
    def grandchild() -> None:
        assert db.kv.add(RUN, "n") == 2

    def child() -> None:
        assert db.kv.add(RUN, "n") == 1
        assert in_child(grandchild) == "ok"
        assert db.kv.add(RUN, "n") == 3

    assert in_child(child) == "ok"
    assert db.kv.get(RUN, "n") == 3


def test_a_child_that_closes_or_exits_leaves_the_parent_alone(store_path: Path) -> None:
    db = inmem.open(store_path)
    rows = fill(db)
    assert in_child(db.close) == "ok"
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert dict(db.kv.list_with_values(RUN)) == rows
    db.kv.put(RUN, "after", 1)
    db.close()
    assert in_child(lambda: db.kv.get(RUN, "after")) == "ClosedError"


def add_in_a_child(db: inmem.Database, times: int) -> None:
    for _ in range(times):
        db.kv.add(RUN, "n")
    db.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(db: inmem.Database, method: str) -> None:
    """A handle travels to a spawned child by pickling, to a forked one as it is."""
    db.kv.put(RUN, "n", 0)
    context = multiprocessing.get_context(method)
    children = [context.Process(target=add_in_a_child, args=(db, 20)) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for child in children:
            child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
        child.close()
    assert db.kv.get(RUN, "n") == 60


def test_pickled_handle_keeps_its_namespace(store_path: Path) -> None:
    with inmem.open(store_path, tenant="acme", app="crm") as db:
        db.kv.put(RUN, "k", "of acme")
        with pickle.loads(pickle.dumps(db)) as again:  # noqa: S301
            assert again.kv.get(RUN, "k") == "of acme" and again.namespace == db.namespace
        code = "import sys, pickle; print(pickle.loads(sys.stdin.buffer.read()).kv.get('shared', 'k'))"
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(db), capture_output=True, timeout=30, check=True,
        )
        assert done.stdout.decode().strip() == "of acme"


def test_lmdb_refuses_a_second_open_in_one_process(tmp_path: Path) -> None:
    """What the rules about forks rest on; if lmdb changes it, they have to be thought over."""
    with lmdb.open(str(tmp_path), max_dbs=1) as env:
        with env.begin(write=True) as txn:
            txn.put(b"k", b"v")
        with pytest.raises(lmdb.Error, match="already open in this process"):
            lmdb.open(str(tmp_path), readonly=True, max_dbs=1)
    with lmdb.open(str(tmp_path), readonly=True) as env, env.begin() as txn:
        assert txn.get(b"k") == b"v"
