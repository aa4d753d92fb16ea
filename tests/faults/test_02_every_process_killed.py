"""The writer and all its clients are killed at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_workers import RUN, hold_open
from support import Workers, kill, wait_until, writer_pid

import inmem


@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_every_process_killed_at_once(store_path: Path, workers: Workers, durability: str) -> None:
    with inmem.open(store_path, durability=durability) as db:
        db.kv.put(RUN, "k", 1)
    some = [workers.start(hold_open, index, store_path) for index in range(3)]
    wait_until(lambda: workers.words.total(3) == 3, "three clients have committed")
    pid = writer_pid(store_path)
    for worker in some:
        kill(worker.pid, wait=False)
    kill(pid)
    with inmem.open(store_path) as db:
        assert db.kv.list(RUN) == ["here-0", "here-1", "here-2", "k"]
        assert db.check().problems == []
