"""Readers' slots that are used up, and those of killed readers: given back, or a typed error."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from crash_workers import RUN, hold_open, read_slots
from fault_workers import hold_snapshots
from support import Workers, alive, kill, wait_until

import inmem


def test_three_hundred_snapshots_at_once(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        readers = [workers.start(read_slots, store_path, 160) for _ in range(2)]
        workers.words.open_gate()
        while any(reader.process.poll() is None for reader in readers):
            db.kv.put("other", "n", 1)  # writes go on beside them
        assert [reader.result() for reader in readers] == [160, 160]


def test_slots_used_up_and_given_back(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_MAX_READERS", "8")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        views: list[inmem.Snapshot] = []
        with pytest.raises(inmem.BusyError) as caught:
            for _ in range(200):
                views.append(db.snapshot(RUN))
        assert 4 <= len(views) < 200 and caught.value.limit and caught.value.retryable
        for view in views:
            assert view.kv.get("k") == "v"
            view.close()
        assert db.kv.get(RUN, "k") == "v"
        for _ in range(3):  # readers that are killed leave no slot behind
            holder = workers.start(hold_open, 0, store_path)
            wait_until(lambda: workers.words[0], "the reader is there")
            kill(holder.pid)
            workers.words[0] = 0
        for _ in range(20):
            with db.snapshot(RUN) as view:
                assert view.kv.get("k") == "v"


def test_slots_of_a_hundred_killed_readers(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_MAX_READERS", "128")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        for part in range(2):
            workers.start(hold_snapshots, part * 50, 50, store_path)
        wait_until(lambda: workers.check() or all(workers.words[i] for i in range(100)), "all hold snapshots")
        views: list[inmem.Snapshot] = []
        with pytest.raises(inmem.BusyError):
            while len(views) < 128:
                views.append(db.snapshot(RUN))
        assert len(views) <= 28
        pids = [workers.words[i] for i in range(100)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: not any(alive(pid) for pid in pids), "the readers are dead")

        def room() -> bool:
            try:
                while len(views) < 110:
                    views.append(db.snapshot(RUN))
            except inmem.BusyError:
                return False
            return True

        wait_until(room, "the slots are back")
        took = time.monotonic() - killed
        for view in views:
            assert view.kv.get("k") == "v"
            view.close()
        # Those that were freed are free for good: no slot leaked.
        views = [db.snapshot(RUN) for _ in range(120)]
        for view in views:
            view.close()
    assert took < 1.0 + 0.5, f"{took:.2f} s"  # a second, and the kills themselves on two busy cores
    print(f"100 readers killed: slots back after {took:.2f} s, leaked 0")


# --- settings and users ---------------------------------------------------------------------------
