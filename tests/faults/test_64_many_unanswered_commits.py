"""Fault 64: the same with about as many as a session may have unanswered, and beside a patient caller."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support import writer_pid
from unanswered import AGAIN_S, RUN, settled_by_the_next_calls

import inmem
from inmem.config import MAX_IN_FLIGHT
from inmem.errors import CommitUnknownError


@pytest.mark.parametrize("count", [MAX_IN_FLIGHT - 1, MAX_IN_FLIGHT, 1100])
def test_they_are_settled_by_the_next_calls(store_path: Path, count: int) -> None:
    settled_by_the_next_calls(store_path, count)


def test_a_patient_caller_waits_for_its_own_answer_only(store_path: Path) -> None:
    with inmem.open(store_path, timeout_s=20.0) as db, inmem.open(store_path, timeout_s=0.004) as quick:
        db.kv.put(RUN, "first", 0)
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(MAX_IN_FLIGHT - 1):
                with pytest.raises(CommitUnknownError):
                    quick.kv.put(RUN, f"k-{number:05}", number)
        finally:
            os.kill(pid, signal.SIGCONT)
        began = time.monotonic()
        db.kv.put(RUN, "last", 1)
        assert time.monotonic() - began < AGAIN_S * 5
        assert db.kv.count(RUN, "k-") == MAX_IN_FLIGHT - 1
