"""Readers that are stuck, generations of the image, and what is left of a store in memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acknowledged import compare
from crash_workers import RUN
from generation_workers import GO_ON, READY
from support import Worker, Workers, alive, control_state, process_state, runtime_entries, wait_until

import inmem

STUCK = 100  # the word of the first stuck reader; workers that count have the words below


def generation(path: Path) -> int:
    return int(control_state(path).generation)


def image_of(path: Path) -> Path:
    return Path(control_state(path).image)


def log_of(path: Path) -> str:
    return (path / "writer.log").read_text()


def images_left(path: Path) -> list[Path]:
    return [entry for entry in runtime_entries(path) if entry.suffix == ".image"]


def stop(worker: Worker, workers: Workers, slot: int) -> None:
    """Stop a reader when it holds its snapshot."""
    wait_until(lambda: workers.check() or workers.words[slot] % 10 == READY, "the reader has its snapshot")
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: process_state(worker.pid) == "T", "the reader is stopped")


def resume(worker: Worker, workers: Workers, slot: int) -> dict[str, Any]:
    """Let a stopped reader go on; what it saw."""
    workers.words[slot] += GO_ON - READY
    os.kill(worker.pid, signal.SIGCONT)
    found: dict[str, Any] = worker.result()
    return found


@contextmanager
def running(pid: int) -> Iterator[None]:
    """A process that was stopped runs again when the block ends, whatever happened in it."""
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


def verify(db: inmem.Database, acked: list[dict[str, Any]]) -> None:
    """What `keep_working` was told is stored, once, in its order; and nothing else."""
    assert db.kv.get(RUN, "transacted", 0) == sum(one["transacted"] for one in acked)
    assert db.kv.get(RUN, "added", 0) == sum(one["added"] for one in acked)
    for index, one in enumerate(acked):
        assert db.kv.get(RUN, f"last-{index}") == one["last"]
    stored = [[event.sequence, event.payload] for event in db.events.iter(RUN)]
    assert stored == sorted(item for one in acked for item in one["appended"])
    for part in range(2):
        names = [event.payload for event in db.events.iter(f"{RUN}-{part}")]
        sent = [[name for name in one["piped"] if int(name[-1]) % 2 == part] for one in acked]
        assert compare(names, [name for mine in sent for name in mine]) == ([], [])
        for index, mine in enumerate(sent):
            assert [name for name in names if name.startswith(f"{index}-")] == mine
    assert db.check().problems == []


def churn(db: inmem.Database, path: Path, number: int = 1, key: str = "churn") -> int:
    """Overwrite until so many more generations have come; how many writes that took."""
    until = generation(path) + number
    deadline = time.monotonic() + 30.0
    writes = 0
    while generation(path) < until:
        writes += 1
        db.kv.put(RUN, f"{key}-{writes % 20}", "x" * 4000)
        assert time.monotonic() < deadline, "no switch of generation"
    return writes
