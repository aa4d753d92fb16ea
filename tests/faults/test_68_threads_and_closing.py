"""Closing under other threads is `ClosedError` for them; a handle is for one thread after the other.

A commit that was sent and not answered is `CommitUnknownError`, as ever: it may take effect.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

import inmem
from inmem.host.interrupts import OneThread

ROUNDS = int(os.environ.get("INMEM_TEST_CLOSES", "5"))
LOOKS = 200_000
T = inmem.Thought("x")


def in_snapshot(db: inmem.Database) -> None:
    with db.snapshot("r") as view:
        for _ in range(20):
            view.kv.list()
            view.events.count()
            _ = view.version


def in_transaction(db: inmem.Database) -> None:
    with suppress(inmem.ConflictError), db.transaction("r") as txn:
        for _ in range(5):
            txn.kv.list()
            txn.kv.get("k001")
        txn.kv.put("z", 1)


def in_pipeline(db: inmem.Database) -> None:
    with db.pipeline() as p:
        for n in range(300):
            p.kv.put("r", "piped", n)


USES: dict[str, Callable[[inmem.Database], Any]] = {
    "get": lambda db: db.kv.get("r", "k001"),
    "list": lambda db: db.kv.list("r"),
    "count": lambda db: db.kv.count("r"),
    "get_many": lambda db: db.kv.get_many("r", ["k001", "k002"]),
    "read_range": lambda db: db.events.read_range("r", 0, 200),
    "iter": lambda db: list(db.events.iter("r")),
    "verify_chain": lambda db: db.events.verify_chain("r"),
    "cell": lambda db: db.cells.read("r", "c"),
    "traces": lambda db: db.traces.list("r"),
    "runs": lambda db: db.runs.list_runs(),
    "scope": lambda db: db.run("r").kv.get_versioned("k001"),
    "snapshot": in_snapshot,
    "transaction": in_transaction,
    "pipeline": in_pipeline,
    "put": lambda db: db.kv.put("r", "p", 1),
    "add": lambda db: db.kv.add("r", "n"),
    "append": lambda db: db.events.append("r", "t", 1),
    "transact": lambda db: db.transact("r", lambda txn: txn.kv.put("q", txn.kv.get("q", 0) + 1)),
    "transition": lambda db: db.cells.transition("r", "c", lambda s: (s.value + 1, None)),
    "status": lambda db: db.status(),
}


WRITES = {"transaction", "pipeline", "put", "add", "append", "transact", "transition"}


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.timeout(60 + 5 * ROUNDS)
@pytest.mark.parametrize("is_last", [True, False], ids=["last handle", "another is open"])
def test_closing_under_threads(store_path: Path, often: None, is_last: bool) -> None:
    with inmem.open(store_path) as keep:
        keep.kv.put_many("r", {f"k{n:03}": n for n in range(300)})
        keep.events.append_many("r", [("t", n) for n in range(300)])
        keep.cells.init("r", "c", 0)
        for _ in range(20):
            keep.traces.record("r", T)
        if is_last:
            keep.close()
        ended = sent = 0
        for number in range(ROUNDS):
            db = inmem.open(store_path)
            wrong: list[str] = []
            closed: list[str] = []
            unknown: list[str] = []

            def work(
                name: str, db: inmem.Database, wrong: list[str], closed: list[str], unknown: list[str]
            ) -> None:
                try:
                    while True:
                        try:
                            USES[name](db)
                        except inmem.CommitUnknownError:
                            unknown.append(name)
                except inmem.ClosedError:
                    closed.append(name)
                except BaseException as error:
                    wrong.append(f"{name}: {error!r}")

            threads = [
                threading.Thread(target=work, args=(name, db, wrong, closed, unknown)) for name in USES
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.03 + 0.01 * (number % 7))
            db.close()
            for thread in threads:
                thread.join(30)
            assert not wrong and sorted(closed) == sorted(USES)
            # Once each at most: the next call of the thread was refused.
            assert len(set(unknown)) == len(unknown) and WRITES.issuperset(unknown)
            assert is_last or not unknown, "the connections are still there: it was answered"
            ended += len(closed)
            sent += len(unknown)
    print(f"{ended} threads under {ROUNDS} closes: each got ClosedError, {sent} after a CommitUnknownError")


def test_what_belongs_to_a_closed_handle(store_path: Path) -> None:
    """Also while another handle holds the store: for whom it is closed does not depend on others."""
    with inmem.open(store_path) as keep:
        keep.kv.put("r", "k", 1)
        db = inmem.open(store_path)
        scope, kv, txn, late = db.run("r"), db.run("r").kv, db.transaction("r"), db.transaction("r")
        assert txn.kv.get("k") == 1
        txn.kv.put("k", 2)
        db.close()
        calls: list[Callable[[], Any]] = [
            lambda: db.kv.get("r", "k"), lambda: scope.kv.get("k"), lambda: kv.list(), lambda: kv.put("k", 2),
            lambda: scope.events.append("t"), lambda: scope.transact(print), lambda: scope.snapshot(),
            lambda: kv.transaction(print), lambda: late.kv.get("k"), txn.commit, lambda: db.run("r"),
            lambda: db.snapshot("r"), lambda: db.pipeline(), db.status, db.sync, lambda: db.shared("app"),
            lambda: scope.cells.set("c", 1), lambda: list(scope.events.iter()), db.repair_indices,
        ]
        for call in calls:
            with pytest.raises(inmem.ClosedError):
                call()
        assert keep.kv.get("r", "k") == 1


def test_handles_are_handed_over(db: inmem.Database) -> None:
    """As thread pools do, that run each step of something in another of their threads."""
    pools = [ThreadPoolExecutor(1) for _ in range(3)]

    def by(number: int, call: Callable[..., Any], *args: Any) -> Any:
        return pools[number % 3].submit(call, *args).result(30)

    txn = by(0, db.transaction("r").__enter__)
    view = by(1, db.snapshot("r").__enter__)
    p = by(2, db.pipeline().__enter__)
    for n in range(200):
        by(n, txn.kv.put, f"t{n:03}", n)
        by(n + 1, lambda n=n: txn.events.append("t", n))
        assert by(n + 2, txn.kv.count) == n + 1
        by(n, p.kv.put, "piped", f"p{n:03}", n)
        assert by(n, view.kv.list) == []
    by(1, txn.__exit__, None, None, None)
    by(2, p.__exit__, None, None, None)
    assert by(0, view.kv.list) == []
    by(0, view.__exit__, None, None, None)
    assert db.kv.count("r") == db.kv.count("piped") == 200 and db.events.count("r") == 200
    for over in (lambda: txn.kv.get("k"), lambda: view.kv.get("k"), lambda: p.kv.put("r", "k", 1)):
        with pytest.raises(inmem.ClosedError):
            by(1, over)
    for pool in pools:
        pool.shutdown()


def meet(make: Callable[[int], Callable[[int], Any]], count: int = 4, calls: int = 400) -> tuple[int, int]:
    """Threads that use one thing at once: how many calls were done, and how many refused."""
    done = [0] * count
    refused = [0] * count
    wrong: list[BaseException] = []
    start = threading.Barrier(count)

    def work(number: int) -> None:
        call = make(number)
        start.wait()
        try:
            for n in range(calls):
                try:
                    call(n)
                    done[number] += 1
                except inmem.BusyError:
                    refused[number] += 1
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong, wrong
    return sum(done), sum(refused)


class Busy(OneThread):
    """Is inside a call all the time, in generators that come and go."""

    def call(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            sum(sum(range(n)) for n in counted(20))


def counted(end: int) -> Iterator[int]:
    for n in range(end):
        yield len([*map(str, range(n))])


def test_who_is_inside_is_seen_while_he_goes_on(often: None) -> None:
    """A generator that goes back is cut off from its caller, also on a stack that is being looked at."""
    sys.setswitchinterval(1e-6)
    one, is_over = Busy(), threading.Event()
    thread = threading.Thread(target=one.call, args=(is_over,))
    thread.start()
    try:
        wait_until(one.is_inside, "it is inside")
        missed = sum(not one.is_inside() for _ in range(LOOKS))
    finally:
        is_over.set()
        thread.join(30)
    assert missed == 0 and not one.is_inside()
    print(f"{LOOKS} looks, missed 0")


def test_a_transaction_of_several_threads_at_once(db: inmem.Database, often: None) -> None:
    """What was not refused is there; what was refused is not."""
    with db.transaction("r") as txn:
        done, refused = meet(lambda number: lambda n: txn.kv.put(f"{number}-{n}", n))
        assert txn.kv.count() == done
    assert db.kv.count("r") == done and done + refused == 1600
    with db.transaction("r") as txn:
        more, refused_too = meet(lambda number: lambda n: txn.kv.add("n"), calls=100)
    assert db.kv.get("r", "n") == more
    print(f"{done + more} calls done, {refused + refused_too} refused, lost 0")


def test_a_pipeline_of_several_threads_at_once(db: inmem.Database, often: None) -> None:
    with db.pipeline() as p:
        done, refused = meet(lambda number: lambda n: p.kv.put(f"r{number}", f"{n:04}", n), calls=2000)
    stored = sum(db.kv.count(f"r{number}") for number in range(4))
    assert stored == done and done + refused == 8000
    print(f"{done} writes, {refused} refused, lost 0")


def test_a_snapshot_of_several_threads_at_once(db: inmem.Database, often: None) -> None:
    db.kv.put_many("r", {f"{n:03}": n for n in range(200)})
    with db.snapshot("r") as view:
        db.kv.put("r", "new", 1)
        seen: set[int] = set()
        done, refused = meet(lambda number: lambda n: seen.add(len(view.kv.list())), calls=100)
    assert seen == {200} and done + refused == 400


def test_a_snapshot_that_another_thread_closes(db: inmem.Database, often: None) -> None:
    db.kv.put_many("r", {f"{n:03}": n for n in range(500)})
    for _ in range(20):
        found: list[str] = []
        view = db.snapshot("r")
        started = threading.Event()

        def read(view: inmem.Snapshot, found: list[str], started: threading.Event) -> None:
            try:
                while True:
                    with suppress(inmem.BusyError):
                        view.kv.list()
                        started.set()
            except inmem.InmemError as error:
                found.append(type(error).__name__)

        threads = [threading.Thread(target=read, args=(view, found, started)) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait(30)
        view.close()
        for thread in threads:
            thread.join(30)
        assert found == ["ClosedError"] * 3


def test_a_transaction_that_ends_while_another_thread_is_inside(db: inmem.Database, often: None) -> None:
    """It commits as a whole, or says that it did not."""
    whole = refused = 0
    for number in range(30):
        run = f"run-{number}"
        stop = threading.Event()
        counted: list[int] = []

        def write(txn: inmem.Transaction, stop: threading.Event, counted: list[int]) -> None:
            n = 0
            with suppress(inmem.ClosedError):
                while not stop.is_set():
                    with suppress(inmem.BusyError):
                        txn.kv.put(f"{n}", n)
                        n += 1
            counted.append(n)

        thread = None
        try:
            with db.transaction(run) as txn:
                thread = threading.Thread(target=write, args=(txn, stop, counted))
                thread.start()
                time.sleep(0.002)
            whole += 1
            is_committed = True
        except inmem.BusyError:
            refused += 1
            is_committed = False
        stop.set()
        assert thread is not None
        thread.join(30)
        assert db.kv.count(run) == (counted[0] if is_committed else 0)
    print(f"{whole} ended whole, {refused} refused")
