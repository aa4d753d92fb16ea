"""Fault 63: an exception out of any line: KeyboardInterrupt, or a time limit's.

The commit happened or did not, once; the next call works at once; nothing is held.
"""

from __future__ import annotations

import copy
import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest
from calls import RUN, Calls
from injecting import Interrupt, alarms, descriptors

import inmem

pytestmark = [
    # What is raised inside a finalizer, Python reports and drops.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("dropped_sockets_may_be_seen"),
]

OUTER = (
    "put", "add", "append", "get", "snapshot", "status", "stream", "transact", "pipeline", "transition",
    "lease", "connect", "attach", "second",
)
SOON_S = 5.0  # for a call that takes a millisecond when nothing else runs


class TimeIsUp(TimeoutError):
    """Of a kind that the code under it might take for its own."""


# What a handler may raise. All but the first are kinds that the code under it raises or catches itself.
ERRORS: tuple[BaseException, ...] = (
    KeyboardInterrupt(), TimeIsUp("no number"), OSError(errno.EIO, "n"), BlockingIOError(errno.EAGAIN, "n"),
    FileNotFoundError(errno.ENOENT, "n"), PermissionError(errno.EACCES, "n"), ValueError("n"),
    IndexError("n"), KeyError("n"), lmdb.Error("n"), lmdb.ReadersFullError("n"),
    inmem.WriterUnavailableError("n"), inmem.CommitUnknownError("n"), inmem.InvariantError("n"),
)
# These say that nothing happened. Out of the function that `transact` runs, they mean: try again.
RETRYABLE = (inmem.BusyError("n"), inmem.ConflictError("n"), inmem.SnapshotTooOldError("n"))


@pytest.mark.parametrize("kind", OUTER)
def test_at_every_place(db: inmem.Database, store_path: Path, kind: str) -> None:
    """The exception comes out as it is. What was interrupted took effect at once, or never does."""
    calls = Calls(db, store_path, "outer")
    calls.kinds |= {"connect": calls.connect, "attach": calls.attach, "second": calls.second}
    for each in (kind, "pipeline"):
        calls.make(each)
    errors = ERRORS + RETRYABLE
    before = descriptors()
    at = happened = 0
    with ThreadPoolExecutor(1) as pool:
        while True:
            stored = sum(calls.stored().values())
            error = copy.copy(errors[at % len(errors)])  # the traceback of one holds what was open

            def interrupt(error: BaseException = error) -> None:
                raise error

            injection = Interrupt(at, interrupt)
            try:
                injection.run(lambda: calls.make(kind))
            except (Exception, KeyboardInterrupt) as raised:
                assert raised is error, f"{error!r} became {raised!r} at {injection.where}"
            else:
                # What a generator raises while it is closed, Python drops, as it does for finalizers.
                dropped = "scan" in injection.where or not injection.is_ours
                is_again = kind in ("transact", "transition", "lease")
                dropped |= is_again and isinstance(error, inmem.RetryableError)
                assert at >= injection.seen or dropped, f"{error!r} was lost at {injection.where}"
            if at >= injection.seen:
                break
            for _ in range(3):  # over another connection: the writer has read what was sent
                pool.submit(db.status).result(SOON_S)
            more = sum(calls.stored().values()) - stored
            began = time.monotonic()
            assert db.kv.add(RUN, "next") == at + 1
            took_s = time.monotonic() - began
            assert took_s < SOON_S, f"{took_s:.1f} s after an interrupt at {injection.where}"
            if kind == "pipeline":  # it goes on with what it has, and has two commits
                more = sum(calls.stored().values()) - stored
                assert more in (0, 0.5, 1)
            assert more in (0, 0.5, 1), f"{more} times after an interrupt at {injection.where}"
            later = sum(calls.stored().values()) - stored
            assert later == more, f"{later} and not {more} by the next call, after {injection.where}"
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
    """Hundreds of them in seconds, as a time limit on every call would make them."""
    calls = Calls(db, store_path, "outer")
    kinds = ("add", "transact", "pipeline", "append")
    interrupts = 0
    end = time.monotonic() + 1.5
    number = 0
    with alarms(TimeIsUp) as alarm:
        while time.monotonic() < end:
            number += 1
            try:
                try:
                    alarm(0.00002 + number % 50 * 0.00001)
                    calls.make(kinds[number % len(kinds)])
                finally:
                    alarm(0)
            except TimeIsUp:
                interrupts += 1
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
