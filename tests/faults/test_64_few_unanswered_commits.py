"""Fault 64: a thread with some commits that were not answered writes again as soon as the writer is back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support import writer_pid
from unanswered import RUN, settled_by_the_next_calls

import inmem
from inmem.errors import CommitUnknownError


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 255])
def test_they_are_settled_by_the_next_calls(store_path: Path, count: int) -> None:
    settled_by_the_next_calls(store_path, count)


def test_a_writer_killed_meanwhile(store_path: Path) -> None:
    """What was sent to it is settled with the next one, in order, once each."""
    with inmem.open(store_path) as db, inmem.open(store_path, timeout_s=0.004) as quick:
        db.kv.put(RUN, "first", 0)
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        unknown = 0
        for _ in range(200):
            with pytest.raises(CommitUnknownError):
                quick.kv.add(RUN, "n")
            unknown += 1
        os.kill(pid, signal.SIGKILL)
        assert db.kv.put(RUN, "alive", 1) > 0
        while True:
            try:
                assert quick.kv.add(RUN, "n") == unknown + 1
                break
            except CommitUnknownError:
                unknown += 1
                assert unknown < 1000
        assert db.kv.get(RUN, "n") == unknown + 1
