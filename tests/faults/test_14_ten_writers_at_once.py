"""Ten writers are started at once, without a launcher between: one wins, the others say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fault_workers import RUN
from support import epoch, kill_writer, launches_held, stop_writer, wait_until, writer_pid

import inmem

REAL_PROGRAMS = True  # how writers are started is what is tested

TRIALS = int(os.environ.get("INMEM_TEST_TRIALS", "1"))


@pytest.mark.timeout(120 + 10 * TRIALS)
def test_ten_writers_started_at_once(store_path: Path) -> None:
    """The writers themselves, without a launcher that lets only one start: one wins, the others say so."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 0)
    for trial in range(TRIALS):
        wait_until(lambda: not writer_pid(store_path) or stop_writer(store_path) is None, "no writer")
        before = epoch(store_path)
        some = [
            subprocess.Popen(
                [sys.executable, "-m", "inmem.writer", str(store_path)], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(10)
        ]
        try:
            losers = wait_until(
                lambda w=some: (found := [one for one in w if one.poll() is not None])
                and len(found) >= 9 and found, "nine give up",
            )
            assert len(losers) == 9
            for one in losers:
                assert one.returncode == 1 and one.stderr and "has a writer already" in one.stderr.read()
            winner = next(one for one in some if one not in losers)
            wait_until(lambda p=winner.pid: writer_pid(store_path) == p, "the one serves")
            assert epoch(store_path) == before + 1
            with inmem.open(store_path, autostart=False) as db:
                db.kv.put(RUN, "k", trial)
                assert db.status().writer_pid == winner.pid
            winner.send_signal((signal.SIGTERM, signal.SIGKILL)[trial % 2])
            winner.wait(10)
        finally:
            for one in some:
                if one.poll() is None:
                    one.kill()
                one.wait()
                assert one.stderr is not None
                one.stderr.close()
    print(f"{TRIALS} trials of ten writers, winners 1 each")


def test_threads_that_wait_for_a_writer_in_vain_are_told_so(store_path: Path) -> None:
    """One of a process waits for other processes, the others wait for it: callers are told the same."""
    with inmem.open(store_path, timeout_s=1.0) as db:
        db.kv.put("run", "k", 1)
        raised: list[BaseException] = []

        def put() -> None:
            try:
                db.kv.put("run", "k", 2)
            except inmem.InmemError as error:
                raised.append(error)

        with launches_held(store_path):
            kill_writer(store_path)
            threads = [threading.Thread(target=put) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [type(error) for error in raised] == [inmem.WriterUnavailableError] * 4
        wait_until(lambda: db.kv.put("run", "k", 3), "a writer is started again")
