"""Fault 38: many keys expire at one moment. They are invisible at once, and go in slices."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from run_workers import write_on
from support import Workers, epoch, process_state, wait_until, writer_pid

import inmem

KEYS = int(os.environ.get("INMEM_TEST_KEYS", "50000"))
LEAST_PER_S = 20_000  # with others beside; before there were slices it was 10,000 by the clock of the timer
SLOWEST_S = 0.25
RUN = "brief"


def fill(db: inmem.Database, keys: int, ttl: float) -> float:
    """Keys that expire; when the last of them has, by the monotonic clock."""
    with db.pipeline() as pipeline:
        for n in range(keys):
            pipeline.kv.put(RUN, f"key-{n:06}", n, ttl=ttl)
    return time.monotonic() + ttl


def test_gone_at_once_and_removed_in_slices(
    store_path: Path, scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is stopped in its first slice until all are due, so that all of them are due at once."""
    monkeypatch.setenv("INMEM_FAILPOINT", f"swept:1:{scratch / 'stopped'}:stop")
    with inmem.open(store_path) as db:
        db.kv.put("kept", "k", 1)
        began = time.monotonic()
        with db.pipeline() as pipeline:  # a twentieth: none of the keys may be due before all are there
            for n in range(KEYS // 20):
                pipeline.kv.put("trial", f"key-{n:06}", n)
        due = fill(db, KEYS, 3.0 + 60 * (time.monotonic() - began))
        other = workers.start(write_on, store_path)
        wait_until(lambda: workers.check() or db.kv.get("bystander", "n"), "the other one writes")
        pid = writer_pid(store_path)
        wait_until(lambda: process_state(pid) == "T", "the writer is stopped in the first slice")
        try:
            wait_until(lambda: time.monotonic() > due, "all are due")
            assert db.kv.list(RUN) == [] and db.kv.count(RUN) == 0 and db.kv.get(RUN, "key-000001") is None
        finally:
            os.kill(pid, signal.SIGCONT)
        began = time.monotonic()
        wait_until(lambda: db.status().expired == KEYS, "all are removed")
        rate = KEYS / (time.monotonic() - began)
        workers.words.stop()
        waits = sorted(wait for wait in other.result())
        waits.pop()  # this one waited for the writer that was stopped
        p99_ms, slowest_ms = waits[len(waits) * 99 // 100] * 1e3, waits[-1] * 1e3
        print(
            f"{KEYS} keys removed at {rate:,.0f}/s; {len(waits)} puts of another one: p99 {p99_ms:.1f} ms, "
            f"slowest {slowest_ms:.0f} ms"
        )
        assert rate > LEAST_PER_S and slowest_ms < SLOWEST_S * 1e3
        assert db.check().ok and db.kv.get("kept", "k") == 1


@pytest.mark.parametrize("durability", ["sync", "buffered", "memory"])
def test_killed_between_slices(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    flag = scratch / "died"
    monkeypatch.setenv("INMEM_FAILPOINT", f"swept:2:{flag}")
    with inmem.open(store_path, durability=durability) as db:
        empty = db.status().image_bytes
        fill(db, 5_000, 0.5)
        wait_until(flag.exists, "the writer dies")
        wait_until(lambda: not db.kv.list(RUN), "all have expired, whoever serves")
        db.kv.put("kept", "k", 1)
        assert epoch(store_path) == 2
        wait_until(lambda: db.status().image_bytes < empty + 100_000, "the next writer goes on")
        assert db.kv.list(RUN) == [] and db.check().ok


def test_what_expires_later_stays(store_path: Path) -> None:
    """A slice takes what is due and nothing else, also of a key whose time was changed."""
    with inmem.open(store_path) as db:
        for n in range(100):
            db.kv.put(RUN, f"key-{n}", n, ttl=0.3)
        for n in range(0, 100, 2):
            db.kv.put(RUN, f"key-{n}", n, ttl=60 if n % 4 else None)
        wait_until(lambda: db.status().expired == 50, "half of them are removed")
        assert len(db.kv.list(RUN)) == 50 and db.check().ok
