"""Fixtures of the tests of leases: a run, and threads that wait for its lease `a`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inmem
from inmem import Lease
from inmem.primitives.leases import rules

LONG_S = 30.0


@pytest.fixture
def db(shared_db: inmem.Database) -> inmem.Database:
    return shared_db


@pytest.fixture
def run_id() -> str:
    return str(inmem.RunId.new())


@pytest.fixture
def run(db: inmem.Database, run_id: str) -> inmem.RunScope:
    return db.run(run_id)


class Waiting:
    """Threads that acquire a lease, and what each of them came to, in order."""

    def __init__(self, run: inmem.RunScope) -> None:
        self.got: list[tuple[str, Any]] = []
        self._run = run
        self._threads: list[threading.Thread] = []

    def begin(self, holder: str, *, ttl_s: float = LONG_S, wait_s: float | None = LONG_S) -> None:
        """One waits, and has come before this returns."""
        before = waiters_of(self._run)

        def acquire() -> None:
            try:
                lease = self._run.leases.acquire("a", ttl_s=ttl_s, holder=holder, wait_s=wait_s)
            except inmem.InmemError as error:
                self.got.append((holder, error))
            else:
                self.got.append((holder, lease))

        thread = threading.Thread(target=acquire)
        self._threads.append(thread)
        thread.start()
        until(lambda: waiters_of(self._run) > before)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def next(self, count: int) -> Any:
        until(lambda: len(self.got) >= count)
        return self.got[count - 1]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiters_of(run: inmem.RunScope, name: str = "a") -> int:
    with run.snapshot() as view:
        return view._view.count(*rules.waiters_of(run.prefix, name.encode()))


@pytest.fixture
def waiting(run: inmem.RunScope) -> Iterator[Waiting]:
    made = Waiting(run)
    yield made
    made.join()


def run_out(run: inmem.RunScope, name: str = "a", holder: str | None = None) -> Lease:
    """A lease that has run out, and that nobody has taken."""
    lease = run.leases.acquire(name, ttl_s=0.001, holder=holder)
    time.sleep(0.002)
    return lease
