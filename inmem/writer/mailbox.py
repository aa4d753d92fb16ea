"""The mailbox: the ROUTER socket, who may connect to it, and what it may hold; and the lanes beside it.

Invariant: frames leave through here and nowhere else; and what peers send
cannot grow the writer without bound, whether it is taken in or not.

A commit that fits a lane of the board comes through that while the writer is
awake; it sleeps on the socket alone, and says so.

libzmq bounds what it holds for a peer by counting whole messages. It counts
no bytes, and a multipart that never ends is no message at all. So the guard
looks at the memory of the process itself: beyond the limit it shuts the
connections that are sending at that moment, and if that does not help, all.
A client of ours connects again and sends what is unanswered: to be shut out
costs it time, and nothing else.

libzmq also ends the process that cannot accept a connection for want of a
descriptor. So the limit is raised as far as it goes, and the guard shuts the
newest connections when they come near it.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import resource
import socket as sockets
import stat
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any, Final

import zmq

from inmem.config import MAX_BATCH_BYTES, MAX_MAILBOX_BYTES, MAX_MESSAGE_BYTES, MAX_SOCKET_PATH, MIB
from inmem.errors import LimitError
from inmem.host.files import make_private_dir, private_umask
from inmem.writer.journal import Journal
from inmem.writer.slots import Slots

TICK_S: Final = 0.2  # the longest wait for a message: how late timers may be
_SPIN: Final = 100  # yields before sleeping, about 80 µs: who was just answered often asks again soon
_DRY: Final = 3  # steps without a look at a socket that was found empty: a look costs 1 µs
_GATHER: Final = 1  # yields for more messages to come in, where commits come together
_CROWD: Final = 20  # sessions that commit now: with more, the writer leaves its core to them for a while
_NAP_S: Final = 0.0001  # that while, to which the kernel adds 50 µs: some clients have their turn in it
_FEW: Final = 8  # messages that are not worth a group of their own then
_QUEUE: Final = 4096  # messages that the socket holds for one peer, each way
_SHARE: Final = 32  # messages of one peer in a group that others are in too: what a flood costs them
_SHARE_BYTES: Final = MIB  # a group this large ends as soon as it is known that others wait
_DECODED: Final = 12  # memory that deciding a group takes, for each of its bytes: small values cost most
_GUARD_S: Final = 0.025  # between two looks at the memory: a sender of 2 GB/s makes 50 MB in it
_GUARD_NEAR_S: Final = 0.005  # and once a quarter of the limit waits: a busy machine adds its own delay
_SPARE_FILES: Final = 4096  # or a quarter of what is allowed: what may come in between two looks
_PATIENCE: Final = 100  # looks after which shutting the senders has not helped: half a second

# Enumerations of pyzmq as plain numbers: each use of one costs half a microsecond.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_MORE: Final = int(zmq.RCVMORE)

log = Journal()


class Mailbox:
    """The ROUTER socket: who may connect, how much it holds, where answers go."""

    def __init__(self, path: Path) -> None:
        if len(str(path)) > MAX_SOCKET_PATH:
            raise LimitError(
                f"socket path {path} is too long", what="socket path",
                size=len(str(path)), limit=MAX_SOCKET_PATH,
            )
        self.path = path
        self.endpoint = f"ipc://{path}"
        self._context = zmq.Context()
        socket = self._socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RCVHWM, _QUEUE)
        socket.setsockopt(zmq.SNDHWM, _QUEUE)
        socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        socket.setsockopt(zmq.RCVTIMEO, int(TICK_S * 1000))
        self._receive = socket.recv
        self._send = socket.send_multipart
        self._slots = Slots(None)
        self._socket_first = False  # the lanes alone have filled the group before
        self._dry = 0  # steps until the next look at the socket
        self._last = 0  # messages taken the last time
        self._look: Callable[[int], Any] = socket.getsockopt
        path.unlink(missing_ok=True)
        while True:
            try:
                with private_umask():
                    socket.bind(self.endpoint)
                break
            except FileNotFoundError:  # another database's writer removed the empty directory
                make_private_dir(path.parent)
        self._guard = Guard(path)

    def watch_lanes(self, slots: Slots) -> None:
        """From now on take from the lanes of these slots, too."""
        self._slots = slots

    def take(self, limit: int, active: int = 0) -> list[tuple[bytes, bytes]]:
        """What has arrived, at most `limit` messages of (peer, frame); waits a tick if nothing has.

        `active` is how many sessions commit now. While the writer looks for
        the next message of a crowd, one core has it alone and all of them
        press into the others, and each group holds one commit. So it naps
        over a small group: the clients have its core, and the next group is
        worth its cost.

        libzmq takes from its peers in turn, so a group has something of each
        that waits, and ends early where one of them would fill it.
        """
        messages: list[tuple[bytes, bytes]] = []
        receive, look, slots = self._receive, self._look, self._slots
        size = 0
        spin = _SPIN
        asleep = False
        nap = active > _CROWD
        # Where commits came together last time, more are on their way: a group costs little more than one.
        gather = min(_GATHER, 2 * (self._last - 1)) if self._last else 0
        while len(messages) < limit and size < MAX_BATCH_BYTES:
            if not self._socket_first:
                offered = slots.requests(limit - len(messages))
                if offered:  # before what a session has sent after them
                    messages = offered + messages
                    size += sum(len(frame) for _, frame in offered)
                if len(messages) >= limit:
                    self._socket_first = True
                    self._dry = 0
                    break
            self._socket_first = False
            if nap and messages:
                nap = False
                # Who had to wait for the first of them is not short of a core.
                if len(messages) < _FEW and not asleep:
                    sleep(_NAP_S)
                    continue
            # Looking is far cheaper than the exception of a receive that finds nothing.
            if self._dry or not look(_EVENTS) & _POLLIN:
                self._dry = (self._dry or _DRY + 1) - 1
                if messages and not gather:
                    break
                if messages:
                    gather -= 1
                    os.sched_yield()
                    continue
                if spin:
                    spin -= 1
                    os.sched_yield()
                    continue
                if not asleep and slots.say_asleep(True):
                    asleep = True
                    continue  # what was offered before that was seen
            try:
                peer = receive()  # blocks, for a tick at most, only when nothing was there
            except zmq.Again:
                break
            frame = receive()  # a ROUTER puts the peer before what it sent, which is one frame at least
            if look(_MORE) or not frame:
                # An empty one wakes, for what is in a lane. No client of ours sends several: nobody to tell.
                while look(_MORE):
                    receive()
                break  # a flood of these must not keep the timers waiting
            messages.append((peer, frame))
            size += len(frame)
            if (len(messages) % _SHARE == 0 or size > _SHARE_BYTES) and _crowds_out(messages):
                break
        if asleep:
            slots.say_asleep(False)
        self._last = len(messages)
        self._guard.explained = _DECODED * size
        return messages

    def answer(self, peer: bytes, frame: bytes) -> None:
        """Send a frame; never blocks. A peer that does not read loses it, and may ask again."""
        try:
            self._send((peer, frame), zmq.NOBLOCK)
        except zmq.Again:
            log.warning("answer_dropped", peer=peer.hex())

    def exists(self) -> bool:
        """Whether clients can still find the socket."""
        return self.path.exists()

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._guard.stop()
        self._socket.close(0)
        self._context.term()
        self.path.unlink(missing_ok=True)


def _crowds_out(messages: list[tuple[bytes, bytes]]) -> bool:
    """Whether one peer has its share of a group, or more than that in bytes, and others are in it."""
    counts = Counter(message[0] for message in messages)
    return len(counts) > 1 and (
        max(counts.values()) >= _SHARE or sum(len(m[-1]) for m in messages) > _SHARE_BYTES
    )


class Guard:
    """Watches the memory of the process, and shuts connections when messages are too much of it."""

    def __init__(self, path: Path) -> None:
        self.explained = 0  # bytes that the group at hand may take while it is decided
        self._path = str(path)
        self._base = anonymous_bytes()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        beyond = used = 0
        while not self._stopping.wait(_GUARD_S if used < MAX_MAILBOX_BYTES // 4 else _GUARD_NEAR_S):
            self._keep_descriptors()
            used = self._used()
            if used > MAX_MAILBOX_BYTES:
                _return_free_memory()  # what a large group has left behind is no message
                used = self._used()
            if used <= MAX_MAILBOX_BYTES:
                beyond = 0
                continue
            beyond += 1
            drastic = beyond > _PATIENCE
            shut = sum(self._shut(connection, drastic) for connection in self._connections())
            if shut:
                log.warning("shut", waiting_bytes=used, connections=shut)
            _return_free_memory()
            if drastic:
                # All is shut and gone: what is left is the writer's own, whatever it is.
                self._base, beyond = anonymous_bytes(), 0

    def _keep_descriptors(self) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        excess = len(os.listdir("/proc/self/fd")) - limit + min(_SPARE_FILES, limit // 4)
        if excess <= 0:
            return
        shut = 0
        for connection in self._connections(newest_first=True):
            connection.shutdown(sockets.SHUT_RDWR)
            shut += 1
            if shut >= excess:
                break
        log.warning("shut", open_files_limit=limit, newest_connections=shut)

    def _used(self) -> int:
        return anonymous_bytes() - self._base - self.explained

    def _connections(self, *, newest_first: bool = False) -> Iterator[sockets.socket]:
        """Every accepted connection, as a duplicate that the block closes."""
        names = os.listdir("/proc/self/fd")
        # Descriptors are given out from the lowest: what came last has the highest, as long as few have left.
        for name in sorted(names, key=int, reverse=True) if newest_first else names:
            try:
                # Only of a socket: to close a copy of another file's descriptor may drop its locks.
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                connection = sockets.socket(fileno=os.dup(int(name)))
            except OSError:
                continue  # closed meanwhile
            with connection:
                try:
                    ours = connection.getsockname() == self._path
                    if ours and not connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN):
                        yield connection
                except OSError:
                    continue

    @staticmethod
    def _shut(connection: sockets.socket, drastic: bool) -> bool:
        waiting = array.array("i", [0])
        try:
            fcntl.ioctl(connection, termios.FIONREAD, waiting)
            if not (waiting[0] or drastic):
                return False
            # Also for the descriptor that libzmq has: it meets the end of the stream, and drops what it held.
            connection.shutdown(sockets.SHUT_RDWR)
        except OSError:
            return False  # it has gone by itself
        return True


def anonymous_bytes() -> int:
    """Memory of this process that is neither a file's nor shared. Cost: 15 µs."""
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * _PAGE


def _return_free_memory() -> None:
    """Have malloc give back what is free, so that it is not taken for messages."""
    if _trim is not None:
        _trim(0)


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
