"""Fixtures of all tests: a place for a store, workers, and proof that nothing is left behind."""

from __future__ import annotations

import gc
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import forked_programs
import pytest
from hypothesis import HealthCheck, settings
from left_behind import Session, files_left, open_files
from postgres_server import PostgresServer
from postgres_shared import place_of, shared_server, stop_what_is_left, summary
from support import Workers, leftovers

import inmem

# Whatever PYTHONDONTWRITEBYTECODE says: each of several processes compiles all test files, which takes it
# ten seconds.
sys.dont_write_bytecode = False

forked.make_commands_once()  # before anything imports `typer.testing`

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


# Files that take over fifteen seconds, the longest first: begun last, one of them keeps the others waiting.
LONG = (
    "test_demo", "test_pytest_plugin", "test_page_in_a_browser", "test_server_clock", "test_dogpile",
    "test_huey_consumers", "test_readme", "test_demo_planted_bugs", "test_fleet", "test_63_interrupts",
    "test_replay", "test_71_leases", "test_40_idle_writers", "test_chaos", "test_01_writer_killed_at_a_step",
    "test_leases", "test_62_calls_in_the_middle_of_calls", "test_64_many_unanswered_commits",
    "test_69_waiting_while_writers_die", "test_new_primitive", "test_distribution",
    "test_types_from_a_wheel", "test_37_surroundings", "test_28_largest_commits", "test_planted_bugs",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, all else stays in its order."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """What pytest knows of thousands of tests is not looked through by each collection: 0.2 s each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of the run that was killed has not stopped what it shared."""
    if not hasattr(session.config, "workerinput"):
        stop_what_is_left(place_of(session.config))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was not run for want of a server is named."""
    if lines := summary(terminalreporter.stats.get("skipped", [])):
        terminalreporter.section("not run: no PostgreSQL on this machine (apt-get install postgresql)")
        terminalreporter.write("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def postgres_server(test_session: Session, request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server that all tests of this run share: each in a schema of its own."""
    with shared_server(place_of(request.config)) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def test_session() -> Iterator[Session]:
    """This run as a whole: when it ends, nothing of it is left on the machine."""
    session = Session()
    session.begin()
    forked_programs.install()
    yield session
    found = session.end()
    assert not found, "left behind by these tests:\n" + "\n".join(found)


@pytest.fixture(scope="module", autouse=True)
def real_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where a module says so, writers and helpers are programs that are started: see `forked_programs`."""
    before = forked.programs.real
    forked.programs.real = before or getattr(request.module, "REAL_PROGRAMS", False)
    yield
    forked.programs.real = before


@pytest.fixture(scope="module", autouse=True)
def open_files_of_a_module(request: pytest.FixtureRequest, test_session: Session) -> Iterator[None]:
    """What the tests of a module open in this process they close."""
    before, failed = open_files(), request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        return  # the traceback that will be shown holds what the test had open
    found = files_left(before)
    assert not found, "left open by the tests of this module:\n" + "\n".join(found)


@pytest.fixture(autouse=True)
def stores_of_a_test(test_session: Session) -> Iterator[None]:
    """Stores without a directory of the test's are known by having been seen."""
    yield
    test_session.look()


@pytest.fixture
def scratch(test_session: Session) -> Iterator[Path]:
    """A short, private directory; when the test ends, no store in it has left a process or memory."""
    yield from place(test_session)


@pytest.fixture(scope="module")
def module_scratch(test_session: Session) -> Iterator[Path]:
    """The same for all tests of a module, which only read what is there."""
    yield from place(test_session)


def place(test_session: Session) -> Iterator[Path]:
    """A directory, and what is done with it afterwards."""
    path = test_session.scratch()
    try:
        yield path
    finally:
        try:
            found = leftovers(path)
        finally:
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
