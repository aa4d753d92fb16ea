"""Fault 66: any readable thing can be imported; what can be read only once is kept aside."""

from __future__ import annotations

import gzip
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import inmem
from inmem.exchange import export_runs, import_runs

EVENTS = 3000  # more than a pipe holds


@pytest.fixture
def data(scratch: Path, db: inmem.Database) -> bytes:
    """A run as a file has it."""
    db.events.append_many("run", [("t", {"n": number}) for number in range(EVENTS)])
    db.runs.create_run(run_id="run")
    export_runs(db, scratch / "runs.jsonl")
    return (scratch / "runs.jsonl").read_bytes()


@pytest.fixture
def other(scratch: Path) -> Iterator[inmem.Database]:
    """Where it is imported."""
    with inmem.open(scratch / "other") as database:
        yield database


def _aside() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("inmem-import-")]


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_a_named_pipe(data: bytes, other: inmem.Database, scratch: Path, compressed: bool) -> None:
    fifo = scratch / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(gzip.compress(data) if compressed else data))
    writer.start()
    before = _aside()
    report = import_runs(other, fifo)
    writer.join()
    assert report.runs == 1 and report.file == str(fifo)
    assert other.events.count("run") == EVENTS
    assert _aside() == before


def test_a_pipe_and_a_stream(data: bytes, other: inmem.Database) -> None:
    assert import_runs(other, io.BytesIO(data)).runs == 1
    one, two = socket.socketpair()
    writer = threading.Thread(target=lambda: (two.sendall(data), two.close()))
    writer.start()
    with one, one.makefile("rb") as stream:
        source: BinaryIO = stream
        assert import_runs(other, source).unchanged == ["run"]
    writer.join()
    assert other.events.count("run") == EVENTS


@pytest.mark.parametrize("how", ["standard input", "a substituted process", "INMEM_PATH"])
def test_the_command(data: bytes, scratch: Path, how: str) -> None:
    place, file = scratch / "by-command", scratch / "runs.jsonl.gz"
    file.write_bytes(gzip.compress(data))
    inmem_ = str(Path(sys.executable).with_name("inmem"))
    line = {
        "standard input": f"cat {file} | {inmem_} import {place} -",
        "a substituted process": f"{inmem_} import {place} <(zcat {file})",
        "INMEM_PATH": f"INMEM_PATH={place} {inmem_} import <(zcat {file})",
    }[how]
    inmem.open(place).close()
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 runs" in done.stdout
    with inmem.open(place) as database:
        assert database.events.count("run") == EVENTS
