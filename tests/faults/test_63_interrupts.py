"""Fault 63: an exception out of any line: KeyboardInterrupt, or a time limit's.

The commit happened or did not, once; the next call works at once; nothing is held.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
from calls import RUN, Calls
from injecting import Interrupt, descriptors

import inmem

pytestmark = [
    # What is raised inside a finalizer, Python reports and drops.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("dropped_sockets_may_be_seen"),
]

OUTER = (
    "put", "add", "append", "get", "snapshot", "status", "stream", "transact", "pipeline", "transition",
    "connect", "attach", "second",
)
SOON_S = 5.0  # for a call that takes a millisecond when nothing else runs


class TimeIsUp(TimeoutError):
    """Of a kind that the code under it might take for its own."""


@pytest.mark.parametrize("kind", OUTER)
def test_at_every_place(db: inmem.Database, store_path: Path, kind: str) -> None:
    calls = Calls(db, store_path, "outer")
    calls.kinds |= {"connect": calls.connect, "attach": calls.attach, "second": calls.second}
    for each in (kind, "pipeline"):
        calls.make(each)
    halves = (0.5,) if kind == "pipeline" else ()  # of its two commits
    before = descriptors()
    at = happened = 0
    while True:
        stored = sum(calls.stored().values())
        error = (KeyboardInterrupt, TimeIsUp)[at % 2]("here")

        def interrupt(error: BaseException = error) -> None:
            raise error

        injection = Interrupt(at, interrupt)
        try:
            injection.run(lambda: calls.make(kind))
        except (KeyboardInterrupt, TimeIsUp) as raised:
            assert raised is error
            assert raised.__traceback__ is not None
        else:
            # What a generator raises while it is closed, Python drops, as it does for finalizers.
            dropped = "scan" in injection.where or not injection.is_ours
            assert at >= injection.seen or dropped, f"lost at {injection.where}"
        if at >= injection.seen:
            break
        began = time.monotonic()
        assert db.kv.add(RUN, "next") == at + 1
        took_s = time.monotonic() - began
        assert took_s < SOON_S, f"{took_s:.1f} s after an interrupt at {injection.where}"
        more = sum(calls.stored().values()) - stored
        assert more in (0, 1, *halves), f"{more} times after an interrupt at {injection.where}"
        happened += more == 1
        at += 1
    assert at > (10 if kind in ("get", "attach") else 40)
    reader = threading.Thread(target=calls.get, daemon=True)
    reader.start()
    reader.join(SOON_S)
    assert not reader.is_alive(), "another thread cannot read"
    calls.make(kind)
    assert descriptors() <= before + 2  # the image, if nothing had read it before
    assert db.check().problems == []
    print(f"{kind}: {at} places, the call took effect at {happened} of them")


def test_a_storm_of_interrupts(db: inmem.Database, store_path: Path) -> None:
    """Thousands of them in seconds, as a time limit on every call would make them."""
    def raise_it(*_: object) -> None:
        raise TimeIsUp

    calls = Calls(db, store_path, "outer")
    kinds = ("add", "transact", "pipeline", "append")
    before = signal.signal(signal.SIGALRM, raise_it)
    interrupts = 0
    end = time.monotonic() + 3.0
    number = 0
    try:
        while time.monotonic() < end:
            number += 1
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 + number % 50 * 0.00001)
                    calls.make(kinds[number % len(kinds)])
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeIsUp:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 100
    began = time.monotonic()
    for kind in kinds:
        calls.make(kind)
    assert time.monotonic() - began < SOON_S
    stored, told = calls.stored(), calls.expected()
    assert all(told[kind] <= stored[kind] <= number for kind in kinds)
    assert sum(stored.values()) <= sum(told.values()) + interrupts
    assert db.check().problems == []
    print(f"{interrupts} interrupts in {number} calls; {sum(told.values())} returned, 0 of them lost")
