"""Fault 63: what a handler raises in the middle of a pipeline or a commit is not taken for ours."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from injecting import Interrupt, NestedCall, alarms
from support import writer_pid

import inmem
from inmem.errors import BusyError, CommitUnknownError, ConflictError, InmemError

REAL_PROGRAMS = True  # a handler raises in the middle of starting one, too

pytestmark = [
    # What is raised inside a finalizer, Python reports and drops.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

RUN = "run"
PUTS = 100


@pytest.fixture
def alarm() -> Iterator[Callable[[float, BaseException], None]]:
    """Have an exception raised out of this thread's code after a while."""
    errors: list[BaseException] = []
    with alarms(lambda: errors[-1]) as set_alarm:

        def after(seconds: float, error: BaseException) -> None:
            errors.append(error)
            set_alarm(seconds)

        yield after


def test_a_flush_that_was_interrupted_is_gone_on_with(
    db: inmem.Database, store_path: Path, alarm: Callable[[float, BaseException], None]
) -> None:
    """The second flush waits for what the first one had sent."""
    for number in range(20):
        db.kv.put(RUN, "ready", number)
        with db.pipeline() as pipe:
            for n in range(PUTS):
                pipe.kv.put(RUN, f"k-{number}-{n}", n)
            pid = writer_pid(store_path)
            os.kill(pid, signal.SIGSTOP)
            try:
                alarm(0.01, KeyboardInterrupt())
                with pytest.raises(KeyboardInterrupt):
                    pipe.flush()
            finally:
                os.kill(pid, signal.SIGCONT)
            pipe.flush()
            assert db.kv.count(RUN, f"k-{number}-") == PUTS


def test_a_pipeline_interrupted_at_every_place_loses_nothing(db: inmem.Database) -> None:
    """What was put before and after the interrupt is there after a flush."""
    at = 0
    while True:
        reached: list[int] = []

        def interrupt(reached: list[int] = reached) -> None:
            reached.append(1)
            raise KeyboardInterrupt

        with db.pipeline() as pipe:
            for n in range(PUTS - 1):  # the next one fills the group
                pipe.kv.put(RUN, f"k-{at}-{n:03}", n)
            injection = Interrupt(at, interrupt)
            with contextlib.suppress(KeyboardInterrupt):
                injection.run(lambda pipe=pipe, at=at: pipe.kv.put("other-run", f"k-{at}", 0))
            pipe.kv.put(RUN, f"k-{at}-last", 0)
        assert db.kv.count(RUN, f"k-{at}-") == PUTS, f"lost by an interrupt at {injection.where}"
        if not reached:
            break
        at += 1
    assert at > 20
    print(f"{at} places, {at * PUTS} puts, 0 lost")


@pytest.mark.parametrize("kind", [ConflictError, BusyError])
def test_transact_does_not_run_again_for_what_a_handler_raised(
    db: inmem.Database, store_path: Path, alarm: Callable[[float, BaseException], None],
    kind: type[InmemError],
) -> None:
    error = kind("a handler's")
    db.kv.put(RUN, "n", 0)
    pid = writer_pid(store_path)
    runs = 0

    def add(txn: inmem.Transaction) -> None:
        nonlocal runs
        runs += 1
        txn.kv.put("n", txn.kv.get("n") + 1)

    os.kill(pid, signal.SIGSTOP)
    try:
        alarm(0.05, error)
        with pytest.raises((kind, CommitUnknownError)) as raised:
            db.transact(RUN, add)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert runs == 1 and (raised.value is error or isinstance(raised.value, CommitUnknownError))
    db.kv.put(RUN, "next", 1)
    assert db.kv.get(RUN, "n") == 1, "it was sent, once"


def test_a_transaction_takes_no_write_that_it_would_leave_out(db: inmem.Database) -> None:
    at = done = 0
    while True:
        with db.transaction(RUN) as txn:
            txn.kv.put(f"outer-{at}", 1)

            def write(txn: inmem.Transaction = txn, at: int = at) -> None:
                nonlocal done
                try:
                    txn.kv.put(f"nested-{at}", 1)
                    done += 1
                except inmem.ClosedError:
                    pass

            injection = NestedCall(at, write, opcodes=False)
            injection.run(txn.commit)
        if at >= injection.seen:
            break
        at += 1
    assert db.kv.count(RUN, "nested-") == done and db.kv.count(RUN, "outer-") == at + 1
    print(f"{done} nested writes of {at} were taken, and are stored")
