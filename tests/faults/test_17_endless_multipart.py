"""A message that never ends: libzmq holds its frames until the last one, and nothing counts them.

ZeroMQ bounds the size of a frame and the number of messages. Frames of a
message that is not complete are neither, so a peer that always says "more"
fills the memory of whoever listens.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from fault_workers import measured_adds
from raw_zmtp import LONG, MORE, frame, shake_hands
from support import Workers, control_state, wait_until, writer_pid

import inmem

MIB = 1 << 20
LIMIT_MIB = 400
SENT_MIB = int(os.environ.get("INMEM_TEST_ENDLESS_MIB", "600"))
# What one send gives to the socket: a big frame, or as many small ones as fit. A small frame takes
# far more memory in libzmq than it has bytes, so much less of those will do.
KINDS = {
    "big": (frame(bytes(MIB), MORE | LONG), SENT_MIB),
    "small": (frame(b"", MORE) * (MIB // 2), SENT_MIB // 8),
    "middling": (frame(bytes(1000), MORE | LONG) * 1000, SENT_MIB),
}


class Sender(threading.Thread):
    """Sends frames without an end; connects again when it is shut out."""

    def __init__(self, address: str, piece: bytes, budget: int) -> None:
        super().__init__(daemon=True)
        self.sent = self.connections = 0
        self.stop = threading.Event()
        self._address = address
        self._piece = piece
        self._budget = budget

    def run(self) -> None:
        while self.sent < self._budget and not self.stop.is_set():
            try:
                with shake_hands(self._address) as some:
                    self.connections += 1
                    some.settimeout(1.0)
                    some.sendall(frame(b"", MORE))
                    while self.sent < self._budget and not self.stop.is_set():
                        self._send(some)
            except OSError:
                continue  # shut out: it comes again
        # What it sent is in the writer now, or is not: the test looks while nothing more comes.

    def _send(self, some: socket.socket) -> None:
        """One piece whole, else the next byte would not be the start of a frame."""
        left = memoryview(self._piece)
        while left and not self.stop.is_set():
            try:
                done = some.send(left)
            except TimeoutError:
                continue  # the writer does not take it: that bounds it as well
            self.sent += done
            left = left[done:]


def rss_anon(pid: int) -> int:
    """Bytes of a process's own memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended")


@pytest.mark.parametrize(("kind", "senders"), [("big", 1), ("small", 1), ("middling", 4)])
def test_a_message_that_never_ends(store_path: Path, workers: Workers, kind: str, senders: int) -> None:
    piece, budget_mib = KINDS[kind]
    with inmem.open(store_path) as db:
        worker = workers.start(measured_adds, 0, store_path, 0.002)
        wait_until(lambda: workers.check() or workers.words[0] > 100, "another client works")
        state = control_state(store_path)
        before = peak = rss_anon(state.pid)
        workers.words[200] = 1
        some = [
            Sender(state.endpoint.removeprefix("ipc://"), piece, budget_mib * MIB // senders)
            for _ in range(senders)
        ]
        deadline = time.monotonic() + 30.0  # a defence that takes nothing more ends the sending as well
        began = time.monotonic()
        for one in some:
            one.start()
        try:
            while any(one.is_alive() for one in some) and time.monotonic() < deadline:
                peak = max(peak, rss_anon(state.pid))
                sent = sum(one.sent for one in some) / MIB
                assert peak < LIMIT_MIB * MIB, f"the writer holds {peak / MIB:.0f} MiB after {sent:.0f} MiB"
                time.sleep(0.005)
        finally:
            for one in some:
                one.stop.set()
            for one in some:
                one.join(10.0)
        took = time.monotonic() - began
        progress = workers.words[0]
        wait_until(lambda: workers.check() or workers.words[0] > progress + 50, "others are served after it")
        assert writer_pid(store_path) == state.pid, "the same writer"
        assert not any(one.is_alive() for one in some)
        workers.words.stop()
        phases = worker.result()["phases"]
        assert db.check().problems == []
    sent = sum(one.sent for one in some) / MIB
    assert sent > 0 and phases["1"]["count"] > 10, "others were served meanwhile"
    print(
        f"{kind}, {senders} senders: {sent:.0f} MiB in {took:.1f} s over "
        f"{sum(one.connections for one in some)} connections; writer {before / MIB:.0f} MiB, "
        f"at most {peak / MIB:.0f} MiB; others p99 {phases['0']['p99'] * 1000:.1f} ms before, "
        f"{phases['1']['p99'] * 1000:.1f} ms (max {phases['1']['max'] * 1000:.0f} ms) meanwhile"
    )
