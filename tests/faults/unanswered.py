"""A thread whose commits were not answered in time, and what the next calls make of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from support import writer_pid

import inmem
from inmem.config import MAX_IN_FLIGHT
from inmem.errors import BusyError, CommitUnknownError

RUN = "run"
AGAIN_S = 1.0


def settled_by_the_next_calls(store_path: Path, count: int) -> None:
    """Leave so many commits of one thread unanswered; once the writer is back, it writes again."""
    with inmem.open(store_path) as db, inmem.open(store_path, timeout_s=0.004) as quick:
        db.kv.put(RUN, "first", 0)
        pid = writer_pid(store_path)
        unknown = 0
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(count):
                try:
                    quick.kv.put(RUN, f"k-{number:05}", number)
                except CommitUnknownError:
                    unknown += 1
                except BusyError as error:
                    assert error.limit == MAX_IN_FLIGHT and number >= MAX_IN_FLIGHT
        finally:
            os.kill(pid, signal.SIGCONT)
        assert unknown == min(count, MAX_IN_FLIGHT)
        began = time.monotonic()
        refused = 0
        while True:
            try:
                quick.kv.put(RUN, "last", refused)
                break
            except (CommitUnknownError, BusyError):
                refused += 1
                assert time.monotonic() - began < 30.0, "never again"
        took_s = time.monotonic() - began
        assert took_s < AGAIN_S * 5  # of which a machine that does other work takes most
        assert db.kv.count(RUN, "k-") == unknown and db.kv.get(RUN, "last") == refused
        print(f"{count} commits, {unknown} unanswered, wrote again after {took_s * 1000:.0f} ms")
