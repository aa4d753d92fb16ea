"""One PostgreSQL server for a run of the tests, however many processes it has.

Who needs it holds a lock on a file of the run, shared with the others; who
can have it alone when it has let go was the last, and stops the server.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer, binaries

MISSING = "PostgreSQL is not installed"


def place_of(config: pytest.Config) -> Path:
    """A directory that all processes of a run know."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return base.parent if hasattr(config, "workerinput") else base


@contextmanager
def shared_server(place: Path) -> Iterator[PostgresServer]:
    """The server of this run, for as long as the block."""
    if binaries() is None:
        pytest.skip(MISSING)
    pytest.importorskip("psycopg")
    users = os.open(place / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with _one_at_a_time(place):
            fcntl.flock(users, fcntl.LOCK_SH)
            server = _there(place)
            if server is None:
                server = PostgresServer("-F", "-N", "300")  # no fsync: nobody cuts the power of it
                (place / "postgres").write_text(json.dumps([str(server.place), server.options]))
        try:
            yield server
        finally:
            with _one_at_a_time(place):
                fcntl.flock(users, fcntl.LOCK_UN)
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # others use it
                else:
                    stop_what_is_left(place)
    finally:
        os.close(users)


def stop_what_is_left(place: Path) -> None:
    """Stop the server of a run that nobody uses any more."""
    server = _there(place)
    if server is not None:
        server.remove()
        (place / "postgres").unlink()


def _there(place: Path) -> PostgresServer | None:
    file = place / "postgres"
    if not file.exists():
        return None
    where, options = json.loads(file.read_text())
    return PostgresServer.running_at(Path(where), options)


@contextmanager
def _one_at_a_time(place: Path) -> Iterator[None]:
    lock = os.open(place / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def summary(skipped: list[Any]) -> list[str]:
    """What was not run for want of a server: for the end of a run."""
    files: dict[str, int] = {}
    for report in skipped:
        if MISSING in str(report.longrepr):
            file = report.nodeid.partition("::")[0]
            files[file] = files.get(file, 0) + 1
    return [f"{file}: {count}" for file, count in sorted(files.items())]
