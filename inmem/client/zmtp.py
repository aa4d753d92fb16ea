"""A connection to the writer's mailbox: the part of a ZeroMQ DEALER in ZMTP, without a thread.

Invariant: frames leave and arrive whole and in order, sending never blocks,
and a connection that has ended says so. It knows frames, not what is in them.

libzmq gives every context a thread for its sockets. A commit then wakes that
thread, which wakes the writer's: on few cores, waking costs more than all the
work on the bytes. A client has one connection and one caller, so it can write
to the Unix socket itself, in the protocol that the writer's ROUTER speaks:
ZMTP 3.0 (https://rfc.zeromq.org/spec/23/), of which a DEALER needs this much:

    greeting   64 bytes: ff, 8 zeros, 7f; version 3 0; mechanism "NULL" in 20
               bytes; as-server 0; 31 zeros
    command    flags 04, length u8, body; long: flags 06, length u64 big-endian
    message    flags 00, length u8, body; long: flags 02, length u64 big-endian
    READY      the first command each way: "\\5READY", then properties: length
               u8 and name, length u32 big-endian and value

Nothing but READY may be sent before the peer's READY has come.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Final

from inmem.host.interrupts import let_through

_GREETING: Final = (b"\xff" + bytes(8) + b"\x7f" + b"\3\0" + b"NULL".ljust(20, b"\0") + bytes(32))
_PROPERTY: Final = b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
_READY: Final = b"\4%c" % (6 + len(_PROPERTY)) + b"\5READY" + _PROPERTY
_SIGNATURE: Final = b"\xff\x7f"  # first and tenth byte of a greeting; what is between may differ
assert len(_GREETING) == 64

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_CHUNK: Final = 1 << 18
_RETRY_S: Final = 0.001  # while the queue of connections is full


class ZmtpCodec:
    """The bytes of one connection, without the connection: what to send first, and what has come."""

    first: Final = _GREETING + _READY  # to be sent at once

    def __init__(self, max_frame_bytes: int) -> None:
        self.ended = False  # what came is nothing that our writer sends
        self.is_ready = False  # the peer has said READY: frames may be sent
        self._is_greeted = False
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    @staticmethod
    def head(size: int) -> bytes:
        """What comes before a frame of this size."""
        return b"\0%c" % size if size < 256 else b"\2" + size.to_bytes(8, "big")

    def feed(self, data: bytes) -> None:
        """Some bytes have come."""
        self._buffer += data
        if not self.is_ready:
            self._shake()

    def _shake(self) -> None:
        buffer = self._buffer
        if not self._is_greeted:
            if len(buffer) < len(_GREETING):
                return
            if bytes(buffer[0:1] + buffer[9:10]) != _SIGNATURE:
                self.ended = True
                return
            del buffer[: len(_GREETING)]
            self._is_greeted = True
        item = self._next()
        if item is not None:
            self.is_ready = bool(item[0] & _COMMAND) and item[1].startswith(b"\5READY")
            self.ended = self.ended or not self.is_ready

    def frame(self) -> bytes | None:
        """The next frame that has come whole."""
        while self.is_ready and (item := self._next()) is not None:
            if not item[0] & _COMMAND:
                return item[1]
        return None

    def _next(self) -> tuple[int, bytes] | None:
        """Flags and body of the next frame in the buffer, None if it is not whole yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        flags, size, begin = buffer[0], buffer[1], 2
        if flags & _LONG:
            if len(buffer) < 9:
                return None
            size, begin = int.from_bytes(buffer[1:9], "big"), 9
        if flags & _MORE or flags > _LONG | _COMMAND or size > self._max_frame_bytes:
            self.ended = True  # nothing that our writer sends
            return None
        if len(buffer) < begin + size:
            return None
        body = bytes(buffer[begin : begin + size])
        del buffer[: begin + size]
        return flags, body


def path_of(endpoint: str) -> str:
    """The Unix socket behind an address of ZeroMQ."""
    return endpoint.removeprefix("ipc://")


class ZmtpConnection:
    """One connection. Not to be shared between threads."""

    def __init__(self, endpoint: str, max_frame_bytes: int) -> None:
        self.ended = False
        self._codec = ZmtpCodec(max_frame_bytes)
        self._path = path_of(endpoint)
        self._unsent = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._send = self._socket.send
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def connect(self, deadline: float) -> bool | None:
        """Connect and shake hands; False if nobody is there, or somebody else.

        None if there was no answer before the deadline (of `time.monotonic`).
        """
        while True:
            try:
                self._socket.connect(self._path)
                break
            except BlockingIOError as error:  # the queue of connections is full
                let_through(error)
                if time.monotonic() >= deadline:
                    return None
                time.sleep(_RETRY_S)
            except OSError as error:
                self._end(error)
                return False
        self._write(self._codec.first)
        while not self.ended and not self._codec.is_ready:
            if not self._wait(deadline):
                return None
        return self._codec.is_ready

    def _wait(self, deadline: float) -> bool:
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms > 0:
            self._exchange(left_ms)
        return left_ms > 0

    def _end(self, error: OSError) -> None:
        """The socket failed, unless a signal handler raised that."""
        let_through(error)
        self.ended = True

    def send(self, frame: bytes) -> None:
        """Send a frame; what the socket does not take now goes with the next call of anything."""
        self._write(self._codec.head(len(frame)) + frame)

    def _write(self, data: bytes) -> None:
        if self._unsent:
            self._unsent += data
            self._flush()
            return
        try:
            sent = self._send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError as error:
            let_through(error)
            sent = 0
        except OSError as error:
            self._end(error)
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._send(memoryview(self._unsent)[:_CHUNK], socket.MSG_NOSIGNAL)]
        except BlockingIOError as error:
            let_through(error)
            return
        except OSError as error:
            self._end(error)
            return
        self._poll.modify(self._socket, select.POLLIN)

    @property
    def is_sending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._unsent) and not self.ended

    def receive(self, timeout_ms: float) -> bytes | None:
        """The next frame; None if none comes in time, or the connection has ended."""
        deadline = time.monotonic() + timeout_ms / 1000
        left_ms = timeout_ms
        while True:
            if (frame := self._codec.frame()) is not None:
                return frame
            self.ended = self.ended or self._codec.ended
            if self.ended or left_ms < 0:
                return None
            self._exchange(left_ms)  # also with no time left: what has arrived is taken
            left_ms = (deadline - time.monotonic()) * 1000

    def pump(self, timeout_ms: float) -> None:
        """Wait until the socket takes or has something, and serve it."""
        if not self.ended:
            self._exchange(timeout_ms)

    def _exchange(self, timeout_ms: float) -> None:
        for _, events in self._poll.poll(timeout_ms):
            if events & select.POLLOUT:
                self._flush()
            if events & ~select.POLLOUT:
                try:
                    data = self._socket.recv(_CHUNK)
                except BlockingIOError as error:
                    let_through(error)
                    continue
                except OSError as error:
                    self._end(error)
                    continue
                self._codec.feed(data)
                self.ended = self.ended or not data or self._codec.ended

    def close(self) -> None:
        """Close the socket; what it has taken still arrives."""
        self.ended = True
        self._socket.close()
