"""A proxy between client and server that knows where a message of PostgreSQL's protocol begins and ends.

    proxy = WireProxy(server)             # listens beside the server's socket; `proxy.url_of(schema)`
    proxy.arm(TO_SERVER, 7, CUT_BEFORE)   # the seventh message from now on, over all connections
    ...
    proxy.close()

A cut closes both ends of the connection. A stall keeps the message, and all
that come after it that way, until `release`; the connection stays.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote

TO_SERVER, TO_CLIENT = "to server", "to client"
CUT_BEFORE, CUT_AFTER, STALL = "cut before", "cut after", "stall"
_PORT = 5432


class WireProxy:
    """See above. `server` is a directory with a server's socket, or host and port."""

    def __init__(self, server: Path | tuple[str, int], *, delay_s: float = 0.0) -> None:
        self._server = str(server / f".s.PGSQL.{_PORT}") if isinstance(server, Path) else server
        self.delay_s = delay_s  # for each piece of data, each way
        self.place = Path(tempfile.mkdtemp(prefix="wp-", dir="/tmp"))
        self.is_refusing = False
        self.fired = threading.Event()
        self.counts = {TO_SERVER: 0, TO_CLIENT: 0}
        self.kinds: dict[str, list[str]] = {TO_SERVER: [], TO_CLIENT: []}
        self._armed: tuple[str, int, str] | None = None
        self._released = threading.Event()
        self._released.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.place / f".s.PGSQL.{_PORT}"))
        self._listening.listen(64)
        self._start(self._accept)

    @property
    def host(self) -> str:
        """What a client gives for the host."""
        return str(self.place)

    def url_of(self, schema: str) -> str:
        """That of a store in a schema, through the proxy."""
        return f"postgresql://inmem@{quote(self.host, safe='')}:{_PORT}/postgres?schema={schema}"

    def arm(self, way: str, number: int, action: str, *, refuse: bool = False) -> None:
        """What happens at the message of this number from now on; with `refuse` nobody comes in then."""
        with self._lock:
            self.counts = {TO_SERVER: 0, TO_CLIENT: 0}
            self.kinds = {TO_SERVER: [], TO_CLIENT: []}
            self.fired.clear()
            self._refuse_then = refuse
            self._armed = (way, number, action)
            self._released.clear()

    def release(self) -> None:
        """Nothing is armed any more, what stalled goes on, and who comes is let in."""
        with self._lock:
            self._armed = None
            self.is_refusing = False
        self._released.set()

    def cut_all(self) -> None:
        """Close every connection."""
        with self._lock:
            every = [*self._open]
        for each in every:
            _shut(each)

    def close(self) -> None:
        """End it."""
        self.release()
        _shut(self._listening)
        self._listening.close()
        self.cut_all()
        for thread in self._threads:
            thread.join(10)
        shutil.rmtree(self.place)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.is_refusing:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET)
            try:
                server.connect(self._server)
            except OSError:
                server.close()
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            ends = [2]
            self._start(self._carry, client, server, TO_SERVER, ends)
            self._start(self._carry, server, client, TO_CLIENT, ends)

    def _carry(self, source: socket.socket, target: socket.socket, way: str, ends: list[int]) -> None:
        is_first = way == TO_SERVER  # a message of the start has no kind
        waiting = b""
        try:
            while data := source.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                waiting += data
                ready = b""  # messages that go on together
                while True:
                    head = 0 if is_first else 1
                    if len(waiting) < head + 4:
                        break
                    size = head + int.from_bytes(waiting[head : head + 4], "big")
                    if len(waiting) < size:
                        break
                    message, waiting = waiting[:size], waiting[size:]
                    is_first = False
                    action = self._seen(way, message)
                    if action in (CUT_BEFORE, STALL) and ready:
                        target.sendall(ready)
                        ready = b""
                    if action == CUT_BEFORE:
                        return self._all_too()
                    if action == STALL and self._is_over(source):
                        return None
                    ready += message
                    if action == CUT_AFTER:
                        target.sendall(ready)
                        return self._all_too()
                if ready:
                    target.sendall(ready)
        except OSError:
            pass
        finally:
            _shut(source)
            _shut(target)
            with self._lock:
                ends[0] -= 1
                if not ends[0]:
                    for each in (source, target):
                        self._open.discard(each)
                        each.close()

    def _all_too(self) -> None:
        """Where nobody comes in any more, nobody stays."""
        if self.is_refusing:
            self.cut_all()

    def _is_over(self, source: socket.socket) -> bool:
        """Wait until what stalls may go on; whether who sends it has left meanwhile."""
        source.setblocking(False)
        try:
            while not self._released.wait(0.01):
                try:
                    if not source.recv(1, socket.MSG_PEEK):
                        return True
                except BlockingIOError:
                    pass
            return False
        finally:
            source.setblocking(True)

    def _seen(self, way: str, message: bytes) -> str | None:
        """Count a message; what is to happen at it."""
        with self._lock:
            self.counts[way] += 1
            self.kinds[way].append(chr(message[0]) if message[0] else "start")
            if self._armed is None or self._armed[:2] != (way, self.counts[way]):
                return None
            action = self._armed[2]
            self._armed = None
            self.is_refusing = self._refuse_then
            self.fired.set()
            return action


def _shut(each: socket.socket) -> None:
    try:
        each.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


