"""Is a client's own ZMTP connection worth its code, beside libzmq's DEALER?

    python -m bench.connection [--rounds 5] [--seconds 1.0]

Processes put small values, with either connection in turn, through the board
and through the socket alone, quiet and beside processes that compute. Prints
a table of puts a second (median of the rounds) and their ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import zmq

import inmem
from bench.busy import busy
from inmem.client import link

KINDS = ("own", "dealer")
WAYS = ("board", "socket")
START_S = 30.0  # for a writer to end, or to begin


class DealerConnection:
    """The part of `ZmtpConnection` that a link uses, over a DEALER of libzmq."""

    is_sending = False
    ended = False

    def __init__(self, endpoint: str, max_frame_bytes: int) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
        self._endpoint = endpoint

    def connect(self, deadline: float) -> bool:
        """Begin to connect; libzmq does so by itself."""
        self._socket.connect(self._endpoint)
        return True

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        self._socket.send(frame)

    def receive(self, timeout_ms: float) -> bytes | None:
        """The next frame, None if none comes in time."""
        return self._socket.recv() if self._socket.poll(int(timeout_ms)) else None

    def pump(self, timeout_ms: float) -> None:
        """Nothing to do: libzmq's thread does it."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def put_for(kind: str, path: str, seconds: float) -> int:
    """How many puts a process makes in that time."""
    if kind == "dealer":
        setattr(link, "ZmtpConnection", DealerConnection)  # noqa: B010 - the module does not export it
    with inmem.open(path, autostart=False) as db:
        put, run = db.run(f"run-{os.getpid()}").kv.put, 0
        put("key", run)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(20):
                put("key", run)
            run += 20
    return run


# A writer as on a processor that has no boards.
WITHOUT_BOARD = """
import sys
from inmem.host import futex
futex.SUPPORTED = False
from inmem.writer.__main__ import main
sys.exit(main())
"""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, within a bound."""
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {START_S} s: {what}")
        time.sleep(0.01)


def answers(db: inmem.Database) -> bool:
    """Whether a writer serves a store."""
    try:
        return db.status().writer_pid > 0
    except inmem.WriterUnavailableError:
        return False


@contextlib.contextmanager
def served(path: str, way: str) -> Iterator[None]:
    """A store with a writer that answers that way."""
    writer = None
    with inmem.open(path) as db:
        pid = db.status().writer_pid
    if way == "socket":
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the first writer ends")
        writer = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_BOARD, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        with inmem.open(path, autostart=writer is None) as db:
            if writer is not None:
                wait_until(lambda: answers(db), "the writer without boards serves")
            yield
    finally:
        if writer is not None:
            writer.terminate()
            writer.wait()


def rate(kind: str, way: str, processes: int, seconds: float) -> float:
    """Puts a second of so many processes on a store of their own."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as place, served(f"{place}/store", way):
        program = [sys.executable, "-m", "bench.connection", "--child"]
        arguments = [kind, f"{place}/store", str(seconds)]
        children = [
            subprocess.Popen(program + arguments, stdout=subprocess.PIPE, start_new_session=True)
            for _ in range(processes)
        ]
        return sum(int(child.communicate()[0]) for child in children) / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, path, seconds = options.child
        print(put_for(kind, path, float(seconds)))
        return
    print("| way | processes | busy beside | own/s | DEALER/s | own / DEALER |")
    print("|---|---:|---:|---:|---:|---:|")
    for way in WAYS:
        for processes in (1, 8):
            for count in (0, 2):
                found: dict[str, list[float]] = {kind: [] for kind in KINDS}
                with busy(count):
                    for number in range(options.rounds):
                        for kind in KINDS if number % 2 else KINDS[::-1]:
                            found[kind].append(rate(kind, way, processes, options.seconds))
                own, dealer = (statistics.median(found[kind]) for kind in KINDS)
                row = f"{way} | {processes} | {count} | {own:,.0f} | {dealer:,.0f} | {own / dealer:.2f}"
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
