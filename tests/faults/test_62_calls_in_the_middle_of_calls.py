"""Fault 62: a call that comes in the middle of another one of its thread, at every line.

Run with INMEM_EXHAUSTIVE=1 for every instruction and every pair of calls; the figures are printed.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import RUN, Calls
from injecting import NestedCall

import inmem
from inmem.errors import BusyError

EXHAUSTIVE = bool(os.environ.get("INMEM_EXHAUSTIVE"))
OUTER = (
    "put", "add", "append", "get", "snapshot", "status", "stream", "transact", "pipeline", "transition",
    "lease", "connect", "attach", "second",
)
SETTING_UP = ("attach", "second")  # while the image is opened, no other read can be


@pytest.mark.timeout(600 if EXHAUSTIVE else 120)
@pytest.mark.parametrize("kind", OUTER)
def test_at_every_line(db: inmem.Database, store_path: Path, kind: str) -> None:
    outer, nested = Calls(db, store_path, "outer"), Calls(db, store_path, "nested")
    outer.kinds |= {"connect": outer.connect, "attach": outer.attach, "second": outer.second}
    refused = places = 0
    kinds = list(nested.kinds)
    for made in (*kinds, kind):  # what the first call sets up is set up
        (outer if made == kind else nested).make(made)
    for offset in range(len(kinds) if EXHAUSTIVE else 1):
        at = 0
        while True:
            chosen = kinds[(at + offset) % len(kinds)]
            reached = []

            def call(chosen: str = chosen, reached: list[int] = reached) -> None:
                nonlocal refused
                reached.append(1)
                try:
                    nested.make(chosen)
                except BusyError:
                    refused += 1

            injection = NestedCall(at, call, opcodes=EXHAUSTIVE)
            injection.run(lambda: outer.make(kind))
            if not reached:
                break
            at += 1
            places += 1
    assert places > (10 if kind in ("get", "attach") else 60)
    assert outer.stored() == outer.expected() and nested.stored() == nested.expected()
    assert refused == 0 or kind in SETTING_UP, "refused where it could have been done"
    assert db.check().problems == []
    print(f"{kind}: {places} places, {sum(nested.acked.values())} nested calls, {refused} refused, 0 lost")


@pytest.fixture
def beat() -> Iterator[Callable[[float, Callable[[], None]], None]]:
    """Have something called by a timer's signal, in the middle of whatever this thread does.

    The timer goes on when the call has returned: one that takes longer than the
    pause would be interrupted by itself, ever deeper.
    """
    before = signal.getsignal(signal.SIGALRM)

    def begin(every_s: float, call: Callable[[], None]) -> None:
        def handler(*_: object) -> None:
            call()
            signal.setitimer(signal.ITIMER_REAL, every_s)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, every_s)

    yield begin
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["put", "transact", "pipeline", "append"])
def test_a_timers_handler_writes(
    db: inmem.Database, store_path: Path, beat: Callable[[float, Callable[[], None]], None], kind: str
) -> None:
    """INMEM_BEAT_S says for how long, for each kind: half an hour makes some ten million operations."""
    outer, nested = Calls(db, store_path, "outer"), Calls(db, store_path, "nested")
    kinds = ("put", "add", "transact", "pipeline")
    beats = 0

    def handler() -> None:
        nonlocal beats
        beats += 1
        nested.make(kinds[beats % len(kinds)])

    outer.make(kind)
    handler()
    beat(0.0021, handler)
    end = time.monotonic() + float(os.environ.get("INMEM_BEAT_S", "1"))
    while time.monotonic() < end:
        outer.make(kind)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert beats > 20
    assert outer.stored() == outer.expected() and nested.stored() == nested.expected()
    print(f"{outer.acked[kind]} calls, {beats} in the middle of them, 0 lost")


def test_finalizers_weak_references_and_logging_handlers_write(db: inmem.Database, store_path: Path) -> None:
    nested = Calls(db, store_path, "nested")

    class Parting:
        def __init__(self) -> None:
            self.itself = self  # only the collector ends it, wherever that runs

        def __del__(self) -> None:
            nested.make("add")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nested.make("append")

    logger = logging.Logger("of this test")
    logger.addHandler(Handler())
    thresholds = gc.get_threshold()
    gc.set_threshold(17)
    references = []
    try:
        for number in range(300):
            Parting()
            gone = Parting.__new__(Parting)
            gone.__dict__["itself"] = gone
            references.append(weakref.ref(gone, lambda _: nested.make("put")))
            del gone

            def step(txn: inmem.Transaction, number: int = number) -> int:
                logger.warning("in a transaction")
                txn.kv.put("last", number)
                return txn.kv.get("steps", 0)

            assert db.transact(RUN, step) == 0
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert nested.acked["add"] == 600 and nested.acked["put"] == 300 and nested.acked["append"] >= 300
    assert nested.stored() == nested.expected() and db.kv.get(RUN, "last") == 299


def test_a_call_in_the_middle_of_opening_the_same_store_is_refused(store_path: Path) -> None:
    """It cannot wait for what is below it; the outer one is untouched."""
    refused: list[BusyError] = []

    def again() -> None:
        try:
            inmem.open(store_path).close()
        except BusyError as error:
            refused.append(error)

    inmem.open(store_path).close()
    at = 0
    while True:
        before = len(refused)
        injection = NestedCall(at, again, opcodes=False)
        with injection.run(lambda: inmem.open(store_path)) as db:
            assert db.kv.add(RUN, "n") > at // 100
        if at >= injection.seen:
            break
        at += 40
        assert len(refused) >= before
    assert refused and all(error.retryable for error in refused)
    print(f"{len(refused)} refused of {at // 40}")
