"""A client that never reads its answers: the writer does not wait for it, and its memory is bounded."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from committing import body, call
from fault_workers import measured_adds
from hostile_bytes import HELLO, HOME
from processes import memory_kib
from raw_zmtp import frame, shake_hands
from support import Workers, control_state, wait_until, writer_pid

import inmem
from inmem import wire

MIB = 1 << 20


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_client_that_never_reads_its_answers(store_path: Path, workers: Workers, size: str) -> None:
    """Its answers are dropped at a bound; the writer goes on, and holds no more for it."""
    with inmem.open(store_path):
        worker = workers.start(measured_adds, 0, store_path, 0.002)
        wait_until(lambda: workers.check() or workers.words[0] > 100, "another client works")
        state = control_state(store_path)
        before = peak = memory_kib(state.pid)
        workers.words[200] = 1
        session = os.urandom(16)
        asked = 0
        with shake_hands(state.endpoint.removeprefix("ipc://")) as some:
            some.settimeout(0.5)
            some.sendall(frame(wire.hello(**HELLO | {
                "database": state.database_id, "session": session, "pid": os.getpid(),
            })))
            if size == "small":
                pieces = [frame(wire.REQUEST_HEADER.pack(wire.STATUS, n)) for n in range(20_000)]
            else:
                create = body(call("run.create", HOME, "greedy", "", [], b"\x80"))
                update = body(call("run.update", HOME, "greedy", "", "x" * MIB, [], b"\x80"))
                header = wire.COMMIT_HEADER
                pieces = [
                    frame(header.pack(wire.COMMIT, 0, session, n, n) + (create if n == 1 else update))
                    for n in range(1, 3000)
                ]
            deadline = time.monotonic() + 20.0
            for piece in pieces:
                try:
                    some.sendall(piece)
                except OSError:
                    break  # nothing more is taken from it, which bounds it too
                asked += 1
                peak = max(peak, memory_kib(state.pid)) if asked % 20 == 0 or size == "large" else peak
                if time.monotonic() > deadline:
                    break
            progress = workers.words[0]
            wait_until(lambda: workers.check() or workers.words[0] > progress + 100, "others are served")
            peak = max(peak, memory_kib(state.pid))
        assert writer_pid(store_path) == state.pid
        workers.words.stop()
        phases = worker.result()["phases"]
    print(
        f"{asked} {size} answers that nobody reads: the writer has {before / 1024:.0f} MiB before and at "
        f"most {peak / 1024:.0f} MiB; others p99 {phases['0']['p99'] * 1000:.1f} ms before, "
        f"{phases['1']['p99'] * 1000:.1f} ms meanwhile"
    )
    # It is shut out when the writer holds too much, some time after that: half of what it asks for is
    # far beyond the bound.
    assert asked > 50 and peak < 1536 * 1024
