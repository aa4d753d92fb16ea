"""A connection breaks anywhere, and what was on its way is sent again: one result each, in order."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN
from support import control_state, wait_until

import inmem
from inmem.client import session as session_module
from inmem.client.attachment import Attachment
from inmem.host.control import ControlState

MIB = 1 << 20
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
PATIENCE_S = 0.1  # of the clients here; a second otherwise


def shut_connections(pid: int, path: str) -> int:
    """Shut the connections that a process has accepted on a socket, as its load shedding would; how many."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    shut = 0
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not stat.S_ISSOCK(os.stat(f"/proc/{pid}/fd/{name}").st_mode):
                    continue
            except FileNotFoundError:
                continue
            fd = syscall(438, pidfd, int(name), 0)  # pidfd_getfd
            if fd < 0:
                if ctypes.get_errno() in (1, 38):
                    pytest.skip("another process's sockets cannot be reached here")
                continue
            with socket.socket(fileno=fd) as connection:
                try:
                    listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if connection.getsockname() == path and not listens:
                        connection.shutdown(socket.SHUT_RDWR)
                        shut += 1
                except OSError:
                    continue
    finally:
        os.close(pidfd)
    return shut


def test_connections_shut_under_work(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As load shedding does, time and again: clients connect anew, and what was under way is sent again."""
    monkeypatch.setattr(session_module, "PATIENCE_S", PATIENCE_S)
    rounds = 8
    wrong: list[BaseException] = []
    stopping = threading.Event()
    done = [0] * 4
    with inmem.open(store_path, timeout_s=30.0) as db:
        large = os.urandom(2 * MIB)

        def adds(index: int) -> None:
            done[index] += 1
            assert db.kv.add(RUN, f"n-{index}") == done[index]

        def appends(index: int) -> None:
            assert db.events.append(RUN, "e", done[index]).sequence == done[index]
            done[index] += 1

        def giants(index: int) -> None:
            with db.transaction(RUN) as txn:
                txn.kv.put("large", large)
                txn.kv.add("giants")
            done[index] += 1

        def pipes(index: int) -> None:
            with db.pipeline() as pipe:
                for part in range(20):
                    pipe.events.append(f"{RUN}-{part % 2}", "p", [done[index], part])
            done[index] += 1

        def keep(work: Callable[[int], None], index: int) -> None:
            try:
                while not stopping.is_set():
                    work(index)
            except BaseException as error:
                wrong.append(error)

        threads = [
            threading.Thread(target=keep, args=(work, index))
            for index, work in enumerate((adds, appends, giants, pipes))
        ]
        for thread in threads:
            thread.start()
        try:
            shut = 0
            state = control_state(store_path)
            for _ in range(rounds):
                before = list(done)
                wait_until(
                    lambda b=before: wrong or all(a > c for a, c in zip(done, b, strict=True)), "all work"
                )
                shut += shut_connections(state.pid, state.endpoint.removeprefix("ipc://"))
            before = list(done)
            wait_until(lambda: wrong or all(a > b for a, b in zip(done, before, strict=True)), "all go on")
        finally:
            stopping.set()
            for thread in threads:
                thread.join(60)
        assert wrong == []
        assert db.kv.get(RUN, "n-0") == done[0] and db.kv.get(RUN, "giants") == done[2]
        assert [event.payload for event in db.events.iter(RUN)] == list(range(done[1]))
        for part in range(2):
            expected = [[n, p] for n in range(done[3]) for p in range(20) if p % 2 == part]
            assert [event.payload for event in db.events.iter(f"{RUN}-{part}")] == expected
        status = db.status()
        assert status.writer_pid == state.pid and status.epoch == 1
    assert shut >= rounds
    print(f"{shut} connections shut, {sum(done)} operations, {status.repeated} repeated; lost 0, doubled 0")


class Proxy:
    """Stands between a client and the writer, and breaks connections at given bytes of what is sent."""

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self.endpoint = f"ipc://{path}"
        self._target = target
        self._budget: int | None = None  # bytes until the break
        self._swallow = False
        self._lock = threading.Lock()
        self.breaks = 0
        self.bytes = 0
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(0.05)
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def break_after(self, count: int, *, swallow: bool) -> None:
        """Break when so many bytes have come; the last of them are passed on, or `swallow`ed."""
        with self._lock:
            self._budget, self._swallow = count, swallow

    def _accept(self) -> None:
        while not self._stopping:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            writer = socket.socket(socket.AF_UNIX)
            writer.connect(self._target)
            client.settimeout(0.05)
            writer.settimeout(0.05)
            self._start(self._pump, client, writer)

    def _pump(self, client: socket.socket, writer: socket.socket) -> None:
        """Both ways in one thread, so that a break is a break of both."""
        with client, writer:
            ways = ((client, writer, True), (writer, client, False))
            while not self._stopping:
                for source, sink, counted in ways:
                    try:
                        source.settimeout(0.001)
                        data = source.recv(65536)
                    except TimeoutError:
                        continue
                    except OSError:
                        return
                    if not data:
                        return
                    try:
                        sink.settimeout(5.0)
                        if counted and self._breaks_in(data, sink):
                            return
                        sink.sendall(data)
                    except OSError:
                        return

    def _breaks_in(self, data: bytes, sink: socket.socket) -> bool:
        with self._lock:
            self.bytes += len(data)
            if self._budget is None:
                return False
            if len(data) < self._budget:
                self._budget -= len(data)
                return False
            passed, self._budget = data[: self._budget], None
            self.breaks += 1
            if not self._swallow:
                sink.sendall(passed)
            return True

    def close(self) -> None:
        """End all connections."""
        self._stopping = True
        for thread in self._threads:
            thread.join()
        self._listener.close()


@pytest.fixture
def proxied(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[inmem.Database, Proxy]]:
    """A store that this process reaches through a proxy."""
    monkeypatch.setattr(session_module, "PATIENCE_S", PATIENCE_S)
    with inmem.open(store_path, timeout_s=20.0) as db:
        proxy = Proxy(scratch / "proxy", control_state(store_path).endpoint.removeprefix("ipc://"))
        original = Attachment.ensure_writer

        def through_proxy(self: Attachment, deadline: float) -> ControlState:
            return dataclasses.replace(original(self, deadline), endpoint=proxy.endpoint)

        monkeypatch.setattr(Attachment, "ensure_writer", through_proxy)
        try:
            yield db, proxy
        finally:
            proxy.close()


def test_a_greeting_that_is_lost_is_said_again(proxied: tuple[inmem.Database, Proxy]) -> None:
    """The connection breaks at every part of what a client says first."""
    db, proxy = proxied
    proxy.break_after(1, swallow=True)
    assert db.kv.add(RUN, "n") == 1  # the first thing that this thread sends
    assert proxy.breaks == 1 and proxy.bytes > 64
    # A greeting of ZMTP has 64 bytes, its READY 30, the session's hello about 90.
    offsets = (10, 64, 80, 120, 150, 180)
    for number, offset in enumerate(offsets):
        wrong: list[BaseException] = []

        def work(expected: int = number + 2, wrong: list[BaseException] = wrong) -> None:
            try:
                assert db.kv.add(RUN, "n") == expected
            except BaseException as error:
                wrong.append(error)

        proxy.break_after(offset, swallow=number % 2 == 1)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
        assert wrong == [] and not thread.is_alive()
        assert proxy.breaks == number + 2
    assert db.kv.get(RUN, "n") == len(offsets) + 1


def test_a_connection_that_breaks_anywhere(proxied: tuple[inmem.Database, Proxy]) -> None:
    """Before, within and after a request; the request passed on, in part, or lost: one result each."""
    db, proxy = proxied
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    assert db.kv.add(RUN, "n") == 1
    count, rounds = 1, 0
    slowest = 0.0
    for _ in range(24):
        offset = rng.choice((1, rng.randrange(1, 60), rng.randrange(1, 200), rng.randrange(1, 3000)))
        proxy.break_after(offset, swallow=rng.random() < 0.5)
        broken = proxy.breaks
        began = time.monotonic()
        while proxy.breaks == broken:
            kind = rng.randrange(4)
            if kind == 0:
                count += 1
                assert db.kv.add(RUN, "n") == count
            elif kind == 1:
                with db.pipeline() as pipe:
                    for part in range(10):
                        pipe.events.append(f"{RUN}-{part % 2}", "p", [rounds, part])
                        count += 1
                        pipe.kv.add(RUN, "n")
                rounds += 1
            elif kind == 2:
                assert db.status().writer_pid
            else:
                db.sync()
        slowest = max(slowest, time.monotonic() - began)
    assert db.kv.add(RUN, "n", 0) == count
    for part in range(2):
        payloads = [event.payload for event in db.events.iter(f"{RUN}-{part}")]
        assert payloads == [[n, p] for n in range(rounds) for p in range(part, 10, 2)], "in order, once"
        assert db.events.verify_chain(f"{RUN}-{part}").is_valid
    assert db.status().epoch == 1
    print(
        f"{proxy.breaks} breaks, {count} additions, {db.status().repeated} repeated; lost 0, doubled 0; "
        f"the slowest took {slowest:.2f} s"
    )
