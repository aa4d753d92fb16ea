"""Fault 69: who waits while writers, authors and waiters are killed or stopped is woken, and once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from generations import churn
from support import (
    Workers,
    kill,
    kill_writer,
    process_state,
    stop_writer,
    wait_until,
    writer_pid,
)
from waiting_workers import RUN, answer, follow, kill_one, sleep_on_a_key, watch

import inmem
from inmem.errors import ClosedError, DatabaseGoneError
from inmem.host.control import CLOCK, Control
from inmem.host.waitfile import WaitFile
from inmem.writer import waking
from inmem.writer.waking import Waking

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "8"))
LOST_S = 1.0  # a wait that lasts longer after its condition holds is a lost wake
STARTING_S = 2.0  # in which a new writer comes, on a machine that does other work
QUIET_S = 0.3  # in which a waiter falls asleep


@contextmanager
def waiting(db: inmem.Database, count: int) -> Iterator[None]:
    """Threads that wait for keys `k-0` and on, asleep; the block ends with their waits."""
    threads = [
        threading.Thread(target=lambda n=n: db.kv.wait(RUN, f"k-{n}", timeout_s=30)) for n in range(count)
    ]
    for thread in threads:
        thread.start()
    time.sleep(QUIET_S)
    yield
    for thread in threads:
        thread.join()


def test_no_wake_is_lost_while_writers_are_killed(
    store_path: Path, workers: Workers, rng: random.Random
) -> None:
    """Two follow, two answer each other, one watches; the writer dies again and again."""
    events, turns = 1, 10 * KILLS
    with inmem.open(store_path, timeout_s=60.0) as db:
        db.events.append(RUN, "n", 0)
        followers = [workers.start(follow, index, str(store_path)) for index in (0, 1)]
        answering = [workers.start(answer, index, str(store_path), turns) for index in (2, 3)]
        watching = workers.start(watch, 4, str(store_path), "w-last")
        done, is_over = threading.Event(), threading.Event()

        def feed() -> None:
            nonlocal events
            while not is_over.is_set():
                number, events = events, events + 1
                db.events.append(RUN, "n", number)
                db.kv.put(RUN, f"w-{number % 50}", number)
                if number % 7 == 0:
                    db.kv.delete(RUN, f"w-{(number + 3) % 50}")
                time.sleep(rng.uniform(0, 0.002))
            db.events.append(RUN, "end")
            db.kv.put(RUN, "w-last", True)
            done.set()

        feeder = threading.Thread(target=feed)
        feeder.start()
        kills = 0
        while kills < KILLS:
            workers.check()
            kill_one(store_path, rng)
            kills += 1
        is_over.set()
        feeder.join()
        assert done.is_set()
        followed = [worker.result() for worker in followers]
        answered = [worker.result() for worker in answering]
        watched = watching.result()
    for found in followed:
        assert found["found"] == list(range(events)), "each once, in order"
    longest_s = max(found["longest_s"] for found in (*followed, *answered))
    assert longest_s < LOST_S + STARTING_S
    assert watched["back"] == 0
    print(f"{kills} kills, {2 * events} events, {2 * turns} turns; the longest wake {longest_s:.2f} s")


def test_a_writer_that_dies_between_publishing_and_waking(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    """Nobody starts another one: the author has its answer and goes. The waiter looks by itself."""
    flag = scratch / "flag"
    monkeypatch.setenv("INMEM_FAILPOINT", f"waking:1:{flag}")
    with inmem.open(store_path) as db:
        monkeypatch.delenv("INMEM_FAILPOINT")
        db.kv.put(RUN, "other", 1)
        pid = writer_pid(store_path)
        waiter = workers.start(sleep_on_a_key, 0, str(store_path), "k")
        wait_until(lambda: workers.check() or workers.words[0], "the waiter waits")
        wait_until(lambda: process_state(waiter.pid) == "S", "it sleeps")
        time.sleep(QUIET_S)
        put_at = time.time()
        db.kv.put(RUN, "k", "value")
    wait_until(lambda: process_gone(pid), "the writer died")
    woken_at, value = waiter.result()
    assert flag.exists() and value == "value"
    assert woken_at - put_at < LOST_S + QUIET_S + 0.2
    assert writer_pid(store_path) == 0


def process_gone(pid: int) -> bool:
    try:
        return process_state(pid) in "ZX"
    except FileNotFoundError:
        return True


def test_waiters_need_no_writer_and_start_none(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        waiter = workers.start(sleep_on_a_key, 0, str(store_path), "k")
        wait_until(lambda: workers.check() or workers.words[0], "the waiter waits")
        time.sleep(QUIET_S)
        stop_writer(store_path)
        time.sleep(1.5)  # so that it has looked for itself
        workers.check()
        assert writer_pid(store_path) == 0
        put_at = time.time()
        db.kv.put(RUN, "k", 1)
        woken_at, _ = waiter.result()
    assert woken_at - put_at < LOST_S + STARTING_S


def test_a_change_that_is_followed_by_the_writer_s_leaving(store_path: Path) -> None:
    """Between the look of a waiter and its sleep: there is no image to look at again."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        looks = 0

        def condition(view: inmem.Snapshot) -> Any:
            nonlocal looks
            looks += 1
            found = view.kv.get("k")
            if looks == 1:
                db.kv.put(RUN, "k", "value")
                stop_writer(store_path)
            return found

        began = time.monotonic()
        assert db.wait(RUN, condition, timeout_s=30) == "value"
        assert looks == 2 and time.monotonic() - began < LOST_S + STARTING_S


def test_a_writer_that_leaves_pays_before(store_path: Path) -> None:
    """Many wait, and it is told to stop while it holds their wakes back."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        with waiting(db, 60):
            began = time.monotonic()
            for half in (range(30), range(30, 60)):
                db.kv.put_many(RUN, {f"k-{n}": n for n in half})
            stop_writer(store_path)
        assert time.monotonic() - began < LOST_S + STARTING_S


def test_stopped_waiters_and_writers(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        waiter = workers.start(sleep_on_a_key, 0, str(store_path), "k")
        wait_until(lambda: workers.check() or workers.words[0], "the waiter waits")
        time.sleep(QUIET_S)
        os.kill(waiter.pid, signal.SIGSTOP)
        for number in range(100):
            db.kv.put(RUN, "k", number)
        os.kill(waiter.pid, signal.SIGCONT)
        assert waiter.result()[1] == 99
        pid = writer_pid(store_path)
        woken: list[Any] = []
        thread = threading.Thread(target=lambda: woken.append(db.kv.wait(RUN, "later", timeout_s=30)))
        thread.start()
        time.sleep(QUIET_S)
        os.kill(pid, signal.SIGSTOP)
        author = threading.Thread(target=lambda: db.kv.put(RUN, "later", 1))
        author.start()
        time.sleep(QUIET_S)
        assert not woken
        os.kill(pid, signal.SIGCONT)
        author.join()
        thread.join()
        assert woken[0].value == 1


def test_a_killed_waiter_costs_nobody_anything_for_long(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flags stay until the writer clears all of them, after which who waits sets its own again."""
    monkeypatch.setattr(waking, "_SWEEP_S", 0.0)
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        waiter = workers.start(sleep_on_a_key, 0, str(store_path), "k")
        file = WaitFile(store_path / "waits")
        wait_until(lambda: workers.check() or file.flagged(), "its flag is set")
        kill(waiter.pid)
        time.sleep(0)
        assert file.flagged() and file.any[0]
        here = Waking(store_path / "waits")
        here.note([(0, 0, b"a/b/c/d\0\1k", b"")], 7)
        assert here.owed and not file.any[0]
        here.pay()
        assert not file.flagged() and not here.owed
        living = threading.Thread(target=lambda: db.kv.wait(RUN, "k", timeout_s=30))
        living.start()
        wait_until(file.flagged, "another one waits")
        here.note([(0, 0, b"a/b/c/d\0\1k", b"")], 7)
        here._due = 0.0
        here.pay()
        wait_until(file.flagged, "it still waits")
        db.kv.put(RUN, "k", 1)
        living.join()


def test_the_wait_file_may_be_removed(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        woken: list[float] = []

        def wait() -> None:
            db.kv.wait(RUN, "k", timeout_s=30)
            woken.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(QUIET_S)
        (store_path / "waits").unlink()
        put_at = time.monotonic()
        db.kv.put(RUN, "k", 1)
        thread.join()
        assert woken[0] - put_at < LOST_S + 0.5
        wait_until((store_path / "waits").exists, "there is one again")
        time.sleep(LOST_S)  # the writer has looked
        thread = threading.Thread(target=lambda: db.kv.wait(RUN, "k-2", timeout_s=30))
        thread.start()
        time.sleep(QUIET_S)
        put_at = time.monotonic()
        db.kv.put(RUN, "k-2", 1)
        thread.join()
        assert time.monotonic() - put_at < LOST_S / 2


@pytest.mark.parametrize("what", ["garbage", "directory", "link", "empty"])
def test_a_wait_file_that_is_none(store_path: Path, what: str, scratch: Path) -> None:
    """The store works, and so do its waits."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
    stop_writer(store_path)
    file = store_path / "waits"
    file.unlink()
    if what == "garbage":
        file.write_bytes(b"garbage!" * 5000)
    elif what == "directory":
        file.mkdir()
    elif what == "link":
        file.symlink_to(scratch / "elsewhere")
    else:
        file.touch()
    with inmem.open(store_path) as db:
        thread = threading.Thread(target=lambda: db.kv.wait(RUN, "k", timeout_s=30))
        thread.start()
        time.sleep(QUIET_S)
        put_at = time.monotonic()
        db.kv.put(RUN, "k", 1)
        thread.join()
        assert time.monotonic() - put_at < LOST_S
    assert not (scratch / "elsewhere").exists()


def test_a_directory_that_is_removed_ends_its_waits(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                db.kv.wait(RUN, "k", timeout_s=30)
            except DatabaseGoneError as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(QUIET_S)
        store_path.rename(store_path.with_name("moved"))
        began = time.monotonic()
        thread.join()
        assert raised and time.monotonic() - began < LOST_S + 1.0


def test_closing_ends_every_wait(store_path: Path) -> None:
    db = inmem.open(store_path)
    db.kv.put(RUN, "other", 1)
    raised: list[BaseException] = []

    def wait(number: int) -> None:
        try:
            if number % 2:
                db.kv.wait(RUN, f"k-{number}", timeout_s=30)
            else:
                next(db.events.follow(RUN, timeout_s=30))
        except ClosedError as error:
            raised.append(error)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    time.sleep(QUIET_S)
    began = time.monotonic()
    db.close()
    for thread in threads:
        thread.join()
    assert len(raised) == 40 and time.monotonic() - began < LOST_S / 2 + 0.5


def test_closing_one_handle_ends_its_waits_alone(store_path: Path) -> None:
    raised: list[BaseException] = []
    with inmem.open(store_path) as other:
        db = inmem.open(store_path)
        db.kv.put(RUN, "other", 1)

        def wait(handle: inmem.Database, key: str) -> None:
            try:
                handle.kv.wait(RUN, key, timeout_s=30)
            except ClosedError as error:
                raised.append(error)

        threads = [threading.Thread(target=wait, args=each) for each in ((db, "k"), (other, "k-2"))]
        for thread in threads:
            thread.start()
        time.sleep(QUIET_S)
        began = time.monotonic()
        db.close()
        threads[0].join()
        assert len(raised) == 1 and time.monotonic() - began < LOST_S / 2
        other.kv.put(RUN, "k-2", 1)
        threads[1].join()
        assert len(raised) == 1


def test_a_handler_that_raises_ends_a_wait_at_once(store_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def handler(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with inmem.open(store_path) as db:
            db.kv.put(RUN, "other", 1)
            waits = [
                lambda: db.kv.wait(RUN, "k"), lambda: next(db.events.follow(RUN)),
                lambda: next(db.kv.watch(RUN, "w")), lambda: db.runs.wait(RUN),
                lambda: db.transact(RUN, lambda txn: txn.kv.get("k") or txn.wait()),
            ]
            for wait in waits:
                began = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, 0.15)
                with pytest.raises(Interrupted):
                    wait()
                assert time.monotonic() - began < 0.6
                wait_until(lambda: db.status().oldest_snapshot_age_s is None, "no snapshot is open", LOST_S)
            assert db.kv.put(RUN, "after", 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_no_snapshot_is_open_while_somebody_waits(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        with waiting(db, 20):
            db.kv.put(RUN, "another", 1)  # those that look at this moment, once a second, soon end
            wait_until(lambda: db.status().oldest_snapshot_age_s is None, "no snapshot is open", LOST_S / 2)
            db.kv.put_many(RUN, {f"k-{n}": 1 for n in range(20)})


def test_who_waits_sleeps(store_path: Path) -> None:
    """100 waiters take 1 % of a core (`python -m bench.waiting`): here 5 %, beside whatever else runs."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        with waiting(db, 100):
            before, seconds = time.process_time(), 2.0
            time.sleep(seconds)
            assert time.process_time() - before < 0.05 * seconds
            db.kv.put_many(RUN, {f"k-{n}": 1 for n in range(100)})


def test_a_fork_while_a_thread_waits(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "other", 1)
        woken: list[Any] = []
        thread = threading.Thread(target=lambda: woken.append(db.kv.wait(RUN, "k", timeout_s=30)))
        thread.start()
        time.sleep(QUIET_S)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                db.kv.put(RUN, "of-child", 1)
                found = db.kv.wait(RUN, "of-child", timeout_s=10)
                code = 0 if found is not None else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert not woken
        db.kv.put(RUN, "k", 1)
        thread.join()
        assert woken[0].value == 1


def test_a_switch_of_generation_while_somebody_waits(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is another one by then; what was waited for comes, and what is followed comes once."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 << 20))
    with inmem.open(store_path) as db:
        db.events.append(RUN, "n", 0)
        followed: list[Any] = []
        woken: list[Any] = []

        def follow_all() -> None:
            for event in db.events.follow(RUN, timeout_s=30):
                followed.append(event.payload)
                if event.event_type == "end":
                    return

        threads = [
            threading.Thread(target=follow_all),
            threading.Thread(target=lambda: woken.append(db.kv.wait(RUN, "k", timeout_s=30))),
        ]
        for thread in threads:
            thread.start()
        time.sleep(QUIET_S)
        with db.snapshot(RUN) as view:
            assert view.events.count() == 1
            churn(db, store_path)  # until the image was replaced under this snapshot
            db.events.append(RUN, "n", 1)
        churn_at = time.monotonic()
        db.kv.put(RUN, "k", "value")
        db.events.append(RUN, "end", 2)
        for thread in threads:
            thread.join()
        assert time.monotonic() - churn_at < LOST_S
        assert followed == [0, 1, 2] and woken[0].value == "value"


def test_a_leap_of_store_time_while_somebody_waits(store_path: Path) -> None:
    """What was read has expired at once, and no commit tells of it: the waiter looks once a second."""
    with inmem.open(store_path) as db:
        seen = db.kv.put(RUN, "k", 1, ttl=3000)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(db.kv.wait(RUN, "k", after=seen, timeout_s=30)))
        thread.start()
        time.sleep(QUIET_S)
        kill_writer(store_path)  # it would set the clock right
        control = Control(store_path / "control", writable=True)
        try:
            leapt_at = time.monotonic()
            control.words[CLOCK] += 3600 * 1_000_000
            thread.join()
        finally:
            control.close()
        assert found == [None] and time.monotonic() - leapt_at < LOST_S + 0.5
