"""Fault 64: a thread whose commits were not answered in time writes again as soon as the writer is back."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support import writer_pid

import inmem
from inmem.config import MAX_IN_FLIGHT
from inmem.errors import BusyError, CommitUnknownError

RUN = "run"
AGAIN_S = 1.0


@pytest.mark.parametrize(
    "count", [1, 2, 31, 32, 33, 64, 255, 1000, *range(MAX_IN_FLIGHT - 3, MAX_IN_FLIGHT + 2), 1100]
)
def test_they_are_settled_by_the_next_calls(store_path: Path, count: int) -> None:
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
