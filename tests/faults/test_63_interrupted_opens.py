"""Fault 63: an exception out of any place of opening a store; nobody holds the store afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from calls import RUN
from injecting import Interrupt, descriptors

import inmem
from inmem.host.files import FileLock

REAL_PROGRAMS = True  # a handler raises in the middle of starting one, too

pytestmark = [
    # What is raised inside a finalizer, Python reports and drops.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("dropped_sockets_may_be_seen"),
]

EVERY = 1 if os.environ.get("INMEM_EXHAUSTIVE") else 50  # of the places of opening another store


def test_opening_another_store(db: inmem.Database, scratch: Path) -> None:
    """Every 50th place, from another one in each run of the suite; nobody holds the store afterwards."""
    path = scratch / "another"
    inmem.open(path).close()
    before = descriptors()
    at = int(time.time()) % EVERY
    print(f"from place {at}")
    while True:
        def interrupt() -> None:
            raise KeyboardInterrupt

        injection = Interrupt(at, interrupt)
        try:
            injection.run(lambda: inmem.open(path).close())
        except KeyboardInterrupt:
            pass
        if at >= injection.seen:
            break
        at += EVERY
        assert descriptors() <= before, injection.where
        with inmem.open(path) as again:
            again.kv.add(RUN, "n")
    lock = FileLock(path / "clients.lock")
    try:
        assert lock.try_exclusive(), "somebody is still a client"
    finally:
        lock.close()
    assert at > 500
