"""Fault 63: what became of a commit is told as often as it is asked, whatever came between."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from injecting import alarms
from support import wait_until, writer_pid

import inmem
from inmem.errors import CommitUnknownError, ConflictError

REAL_PROGRAMS = True  # a handler raises in the middle of starting one, too

RUN = "run"
SOON_S = 10.0


def unanswered(path: Path, call: Any) -> CommitUnknownError:
    """The error of a call that a stopped writer does not answer in time; the writer goes on."""
    pid = writer_pid(path)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(CommitUnknownError) as raised:
            call()
    finally:
        os.kill(pid, signal.SIGCONT)
    return raised.value


def test_a_resend_may_be_repeated(store_path: Path) -> None:
    with inmem.open(store_path) as db, inmem.open(store_path, timeout_s=0.1) as quick:
        db.kv.put(RUN, "first", 0)
        error = unanswered(store_path, lambda: quick.kv.add(RUN, "n"))
        began = time.monotonic()
        assert [error.resend(5.0) for _ in range(3)] == [1, 1, 1]
        assert time.monotonic() - began < SOON_S
        assert db.kv.add(RUN, "n") == 2, "and the session goes on"


def test_a_pipelines_error_resolves_what_waits(store_path: Path) -> None:
    with inmem.open(store_path) as db, inmem.open(store_path, timeout_s=0.1) as quick:
        db.kv.put(RUN, "first", 0)
        pipe = quick.pipeline()
        pending = [pipe.kv.add(RUN, "n"), pipe.kv.add(RUN, "n")]
        error = unanswered(store_path, pipe.flush)
        assert error.resend(5.0) is None
        assert [each.result() for each in pending] == [1, 2]
        pipe.flush()


def test_closed_by_another_thread_meanwhile(store_path: Path) -> None:
    """It was sent, so it may be applied: that is what is said."""
    with inmem.open(store_path) as db:
        attachment = db.engine.attachment
        connected, stopped = threading.Event(), threading.Event()
        raised: list[BaseException] = []

        def add() -> None:
            db.kv.put(RUN, "first", 0)
            connected.set()
            stopped.wait()
            try:
                db.kv.add(RUN, "n")
            except inmem.InmemError as error:
                raised.append(error)

        thread = threading.Thread(target=add)
        thread.start()
        connected.wait()
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped.set()
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > 0.2, "it waits")
            attachment.closed = True  # as `close` begins
            thread.join(SOON_S)
            attachment.closed = False
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [type(error) for error in raised] == [CommitUnknownError]
        wait_until(lambda: db.kv.get(RUN, "n") == 1, "it is applied")


@pytest.mark.parametrize("kind", ["transact", "transition"])
def test_a_handler_that_loses_a_race_of_its_own(db: inmem.Database, kind: str) -> None:
    """It raises a retryable error, now and then after the commit below it: that is not made again."""
    db.cells.init(RUN, "cell", 0)
    db.kv.put(RUN, "n", 0)
    interrupts = doubled = calls = 0

    def call() -> None:
        if kind == "transact":
            db.transact(RUN, lambda txn: txn.kv.put("n", txn.kv.get("n") + 1))
        else:
            db.cells.transition(RUN, "cell", lambda state: (state.value + 1, None))

    end = time.monotonic() + 2.0
    with alarms(lambda: ConflictError("a handler's")) as alarm:
        while time.monotonic() < end:
            was = _count(db, kind)
            try:
                try:
                    alarm(0.00005 + calls % 60 * 0.000005)
                    call()
                finally:
                    alarm(0)
            except ConflictError:
                interrupts += 1
            calls += 1
            db.kv.put(RUN, "behind", calls)  # of the same session: it is after whatever was sent
            doubled += _count(db, kind) - was > 1
    assert interrupts > 20 and doubled == 0
    print(f"{calls} calls, {interrupts} interrupted, 0 doubled")


def _count(db: inmem.Database, kind: str) -> Any:
    if kind == "transact":
        return db.kv.get(RUN, "n")
    state = db.cells.read(RUN, "cell")
    return state.value if state else 0
