"""Requests that waited for a writer which died reach the next one, and are applied once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from crash_workers import RUN
from fault_workers import queue_up
from support import Workers, kill, wait_until, writer_pid

import inmem

ROUNDS = int(os.environ.get("INMEM_TEST_ROUNDS", "3"))


@pytest.mark.timeout(120 + 5 * ROUNDS)
def test_what_waits_for_a_dead_writer_is_applied_once(store_path: Path, workers: Workers) -> None:
    """Stopped until all clients wait, then killed with their requests in its mailbox; again and again."""
    per_kill = 6
    count = ROUNDS * per_kill
    print(f"{ROUNDS} kills")
    with inmem.open(store_path) as db:
        for index in range(4):
            workers.start(queue_up, index, store_path, count)
        for number in range(ROUNDS):
            wait_until(
                lambda n=number: workers.check()
                or all(workers.words[i] >= min(n * per_kill + 1, count) for i in range(4)),
                "all work", 60.0,
            )
            pid = wait_until(lambda: writer_pid(store_path), "a writer serves")
            os.kill(pid, signal.SIGSTOP)
            # Once none of them gets on, each has its window in the mailbox.
            seen = [-1]

            def stuck(seen: list[int] = seen) -> bool:
                now = workers.words.total(4)
                same, seen[0] = now == seen[0], now
                time.sleep(0.05)
                return same

            wait_until(stuck, "all wait")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda p=pid: writer_pid(store_path) not in (0, p), "another writer")
        results = workers.results()
        for index in range(4):
            assert db.kv.get("queued", f"n-{index}") == results[index]["added"] == count
            for half in range(2):
                numbers = [event.payload for event in db.events.iter(f"log-{index}-{half}")]
                assert numbers == list(range(half, count * 40, 2)), "each once, in order"
        assert db.check().problems == []
    print(f"{ROUNDS} writers killed with full mailboxes, {4 * count * 41} commits, lost 0, doubled 0")


def test_an_unknown_commit_resolves_at_the_next_writer(store_path: Path) -> None:
    """Stopped, then killed with the request in its mailbox: one result at the writer after it."""
    with inmem.open(store_path) as db:
        db.kv.add(RUN, "n")
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(inmem.CommitUnknownError) as caught, db.transaction(RUN, timeout_s=0.2) as txn:
            total = txn.kv.add("n")
        kill(pid)
        caught.value.resend(timeout_s=20.0)
        assert total.value == 2 and db.kv.get(RUN, "n") == 2
        assert db.kv.add(RUN, "n") == 3
