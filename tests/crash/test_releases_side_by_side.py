"""Two releases on one machine: one store is never open in programs of both, and each says so at once."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from crash_workers import RUN, leave_a_note
from support import Workers, control_state, kill_writer, stop_writer, wait_until

import inmem
from inmem.config import CONTROL_VERSION, PROTOCOL_VERSION
from inmem.host.directory import DataDirectory
from inmem.keys import Namespace
from inmem.reading.database_source import DatabaseSource

AT_ONCE_S = 3.0  # instead of the ten seconds for which an image is waited for
BEFORE = CONTROL_VERSION - 1


def version_of(path: Path) -> int:
    return int.from_bytes((path / "control").read_bytes()[8:16], "little")


def as_of_before(path: Path, version: int = BEFORE) -> None:
    """Make a directory that nobody serves one of another release."""
    with (path / "control").open("r+b") as file:
        file.seek(8)
        file.write(version.to_bytes(8, "little"))


@contextmanager
def held(path: Path, how: int) -> Iterator[None]:
    """Hold a lock, as a process of the release before does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture
def of_before(store_path: Path) -> Path:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    as_of_before(store_path)
    return store_path


def test_a_directory_of_the_release_before_is_read_and_from_then_on_this_ones(of_before: Path) -> None:
    with inmem.open(of_before) as db:
        assert db.kv.get(RUN, "k") == 1
        assert version_of(of_before) == CONTROL_VERSION
        db.kv.put(RUN, "k", 2)
    stop_writer(of_before)
    assert version_of(of_before) == CONTROL_VERSION


def test_many_programs_take_it_over_at_once(of_before: Path, workers: Workers) -> None:
    programs = 8
    for index in range(programs):
        workers.start(leave_a_note, index, of_before)
    wait_until(lambda: workers.words.total(programs) == programs, "all programs run")
    workers.words.open_gate()
    wait_until(
        lambda: workers.check() or all(workers.words[64 + i] for i in range(programs)), "all have written"
    )
    workers.words.open_gate(2)
    assert [result["notes"] for result in workers.results()] == [programs] * programs
    with inmem.open(of_before) as db:
        assert db.kv.get(RUN, "k") == 1


@pytest.mark.parametrize(
    "lock, how, says",
    [
        ("writer.lock", fcntl.LOCK_EX, "is served by"),
        ("clients.lock", fcntl.LOCK_SH, "is open in programs of"),
    ],
)
def test_beside_programs_of_the_release_before(of_before: Path, lock: str, how: int, says: str) -> None:
    began = time.monotonic()
    with held(of_before / lock, how):
        for autostart in (True, False):
            with pytest.raises(inmem.FormatVersionError, match=f"{says} another release") as caught:
                inmem.open(of_before, autostart=autostart)
            error = caught.value
            assert (error.found, error.supported) == (BEFORE, CONTROL_VERSION)
            assert f"version {BEFORE} " in str(error) and f"uses {CONTROL_VERSION}" in str(error)
            assert "inmem stop" in error.hint
        assert time.monotonic() - began < AT_ONCE_S
    assert version_of(of_before) == BEFORE, "the others go on"
    with inmem.open(of_before) as db:
        assert db.kv.get(RUN, "k") == 1


def test_commands_beside_a_writer_of_the_release_before(of_before: Path) -> None:
    directory = DataDirectory(of_before)
    with held(of_before / "writer.lock", fcntl.LOCK_EX):
        with pytest.raises(inmem.FormatVersionError, match="served by another release"):
            DatabaseSource(directory, Namespace())
        with pytest.raises(inmem.FormatVersionError, match="served by another release"):
            directory.control()


def test_looking_leaves_it_to_the_release_before(of_before: Path) -> None:
    with closing(DataDirectory(of_before).control()) as control:
        assert control.is_of_before
    assert version_of(of_before) == BEFORE


def test_a_later_release_is_refused(of_before: Path) -> None:
    as_of_before(of_before, CONTROL_VERSION + 1)
    says = f"version {CONTROL_VERSION + 1}, this release uses {CONTROL_VERSION}"
    with pytest.raises(inmem.FormatVersionError, match=says):
        inmem.open(of_before)


def test_a_client_of_the_release_before_is_told_at_its_first_commit(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot open the directory; one that had it open meets another protocol."""
    monkeypatch.setattr("inmem.client.session.PROTOCOL_VERSION", PROTOCOL_VERSION - 1)
    with inmem.open(store_path) as db:
        began = time.monotonic()
        says = f"protocol version {PROTOCOL_VERSION - 1}, the writer {PROTOCOL_VERSION}"
        with pytest.raises(inmem.FormatVersionError, match=says) as caught:
            db.kv.put(RUN, "k", 1)
        assert time.monotonic() - began < AT_ONCE_S
        assert (caught.value.found, caught.value.supported) == (PROTOCOL_VERSION - 1, PROTOCOL_VERSION)


@pytest.mark.parametrize("step", ["before", "named"])
def test_the_image_that_a_killed_writer_of_the_release_before_has_left(store_path: Path, step: str) -> None:
    """In memory only: who opens it again before the machine restarts has all of it."""
    with inmem.open(store_path, durability="memory") as db:
        db.kv.put(RUN, "k", 1)
        kill_writer(store_path)
    image = Path(control_state(store_path).image)
    directory = DataDirectory(store_path)
    identity = directory.identity()
    generation = image.name.removeprefix(directory.stem(identity))
    old = image.with_name(directory.stem_before(identity) + generation)
    image.rename(old)
    if step == "before":
        with closing(directory.control(writable=True)) as control:
            control.update(image=str(old))
    as_of_before(store_path)
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") == 1
        assert Path(control_state(store_path).image) == image and not old.exists()
