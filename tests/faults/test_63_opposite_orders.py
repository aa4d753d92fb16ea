"""Fault 63: calls in the middle of opening and closing, beside threads that open, close and resolve.

No call waits for ever, whatever it comes in the middle of; each is done or refused.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from calls import RUN
from forks import in_child
from injecting import NestedCall
from support import wait_until, writer_pid

import inmem
from inmem.errors import BusyError, CommitUnknownError

REAL_PROGRAMS = True  # a fork comes in the middle of starting one, too

EVERY = 1 if os.environ.get("INMEM_EXHAUSTIVE") else 40  # of the places of opening a store
SOON_S = 10.0

# Python warns of a fork beside threads; that is the case under test.
pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


def test_opening_in_the_middle_of_opening(scratch: Path) -> None:
    """Two threads and a handler open two stores in every order; nobody waits longer than it takes."""
    paths = [scratch / name for name in "ab"]
    over = threading.Event()
    opened: list[int] = []

    def beside() -> None:
        while not over.is_set():
            for path in reversed(paths):
                with inmem.open(path) as db:
                    opened.append(db.kv.add(RUN, "beside"))

    def nested() -> None:
        for path in reversed(paths):
            try:
                with inmem.open(path) as db:
                    db.kv.add(RUN, "nested")
            except BusyError:
                continue

    thread = threading.Thread(target=beside, daemon=True)
    thread.start()
    at = int(time.time()) % EVERY
    longest = 0.0
    print(f"from place {at}")
    while True:
        injection = NestedCall(at, nested, opcodes=False)

        def outer() -> None:
            with inmem.open(paths[0]) as db, inmem.open(paths[1]):
                db.kv.add(RUN, "outer")

        began = time.monotonic()
        injection.run(outer)
        longest = max(longest, time.monotonic() - began)
        assert thread.is_alive() and longest < SOON_S, injection.where
        if at >= injection.seen:
            break
        at += EVERY
    over.set()
    thread.join(SOON_S)
    assert not thread.is_alive(), "the other thread waits for ever"
    assert at > 300 and opened
    print(f"{at // EVERY} places, the slowest took {longest:.2f} s; {len(opened)} opened beside them")


def test_a_child_of_any_place_holds_nothing_and_works(store_path: Path) -> None:
    """Forked in the middle of opening, writing and reading; the parent goes on, and the child has a store."""
    children = 0
    at = int(time.time()) % EVERY
    print(f"from place {at}")
    while True:
        def child() -> None:
            with inmem.open(store_path) as db:
                db.kv.add(RUN, "children")

        def fork() -> None:
            nonlocal children
            said = in_child(child)
            # `ForkError`: the image was open in a snapshot of the parent. Busy: below it the path is opened.
            assert said in ("ok", "ForkError", "BusyError"), said
            children += said == "ok"

        injection = NestedCall(at, fork, opcodes=False)

        def outer() -> None:
            with inmem.open(store_path) as db:
                db.kv.add(RUN, "outer")
                db.transact(RUN, lambda txn: txn.kv.put("seen", txn.kv.get("outer")))

        injection.run(outer)
        if at >= injection.seen:
            break
        at += EVERY
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "children") == children > 10
        assert db.kv.get(RUN, "seen") == db.kv.get(RUN, "outer") == (at - int(at % EVERY)) // EVERY + 1
        assert db.check().problems == []


def test_a_child_of_a_launch_does_not_hold_the_next_one_up(scratch: Path) -> None:
    """A thread starts writers while another one forks children that stay."""
    over = threading.Event()
    children: list[int] = []

    def launch() -> None:
        for number in range(6):
            with inmem.open(scratch / f"s-{number}") as db:
                db.kv.put(RUN, "k", number)
        over.set()

    read_fd, write_fd = os.pipe()
    thread = threading.Thread(target=launch)
    thread.start()
    try:
        while not over.is_set():
            pid = os.fork()
            if pid == 0:
                os.close(write_fd)
                os.read(read_fd, 1)  # until the parent closes it
                os._exit(0)
            children.append(pid)
            over.wait(0.02)
        thread.join()
        for number in range(6):
            with inmem.open(scratch / f"s-{number}", timeout_s=5.0) as db:
                os.kill(writer_pid(scratch / f"s-{number}"), signal.SIGKILL)
                db.kv.put(RUN, "again", number)
    finally:
        thread.join()
        os.close(write_fd)
        os.close(read_fd)
        for pid in children:
            wait_until(lambda pid=pid: os.waitpid(pid, os.WNOHANG)[0] == pid, "a child ends", SOON_S)
    assert len(children) > 6


def test_resolving_in_another_thread_does_not_hold_this_one_beyond_its_deadline(store_path: Path) -> None:
    with inmem.open(store_path) as db, inmem.open(store_path, timeout_s=0.2) as quick:
        db.kv.put(RUN, "n", 0)
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(CommitUnknownError) as unknown:
                quick.kv.add(RUN, "n")
            resolved: list[int] = []
            thread = threading.Thread(target=lambda: resolved.append(unknown.value.resend(30.0)))
            thread.start()
            wait_until(lambda: db.engine.attachment.session()._free[0].turns, "it resolves")
            began = time.monotonic()
            with pytest.raises(BusyError, match="another thread"):
                quick.kv.add(RUN, "n")
            assert time.monotonic() - began < SOON_S / 2
        finally:
            os.kill(pid, signal.SIGCONT)
        thread.join(SOON_S)
        assert resolved == [1] and db.kv.add(RUN, "n") == 2
