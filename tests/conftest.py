"""Fixtures of all tests: a place for a store, workers, and proof that nothing is left behind."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import Workers, leftovers

import inmem

# The same examples in every run, and a blob to repeat a failure with. Processes
# and files make an example's time vary: no deadline for one.
settings.register_profile(
    "inmem", derandomize=True, print_blob=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("inmem")

# Started in the background or under nohup, a program ignores these, and so do those that it starts:
# what the tests send to programs of theirs must reach them whoever runs the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short, private directory; when the test ends, no store in it has left a process or memory."""
    path = Path(tempfile.mkdtemp(prefix="it-", dir="/tmp"))
    try:
        yield path
        found = leftovers(path)
    finally:
        leftovers(path)
        shutil.rmtree(path, ignore_errors=True)
    assert not found, found


@pytest.fixture
def store_path(scratch: Path) -> Path:
    """Where the test's store goes; nothing is there yet."""
    return scratch / "store"


@pytest.fixture
def workers(scratch: Path) -> Iterator[Workers]:
    """Programs that the test starts; none outlives it."""
    with Workers(scratch) as some:
        yield some


@pytest.fixture
def db(store_path: Path) -> Iterator[inmem.Database]:
    """An open store with default settings."""
    with inmem.open(store_path) as database:
        yield database


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that are the same in every run; the seed is printed."""
    seed = sum(request.node.name.encode()) + 20260701
    print(f"seed {seed}")
    return random.Random(seed)
