"""The mailbox: where the writer takes messages from, the socket and the request buffers of the board.

Invariant: frames leave through here and nowhere else, and a group is bounded
in messages and bytes, of one peer as well as of all.

A commit that fits goes through its session's request buffer on the board. The
writer says on the board that it sleeps before it does, and waits for the socket
and the bell. Without a board it sleeps in a receive. What peers may make it
hold: see `shedding`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, Final

import zmq

from inmem.config import MAX_BATCH_BYTES, MAX_MESSAGE_BYTES, MAX_SOCKET_PATH, MIB
from inmem.errors import LimitError
from inmem.host.files import make_private_dir, private_umask
from inmem.host.spinning import SLOW_S, Spinning
from inmem.writer.journal import Journal
from inmem.writer.shedding import LoadShedder
from inmem.writer.slots import Slots

TICK_S: Final = 0.2  # the usual wait for a message: how late timers may be
_LOOKS: Final = 100  # before sleeping, about 80 µs: an answered client often sends again at once
_SKIPS: Final = 3  # passes that leave out a socket found empty: to ask it costs 1 µs
_EXTRA_SPINS: Final = 1  # yields for more messages, where the last group had several
_MANY_SESSIONS: Final = 20  # that commit now: with more, a small group is delayed
_DELAY_S: Final = 0.0001  # for so long, to which the kernel adds 50 µs
_SMALL_GROUP: Final = 8  # messages; a larger group is worth its cost at once
_QUEUE: Final = 4096  # messages that the socket holds for one peer, each way
_PEER_MESSAGES: Final = 32  # of one peer in a group with others: what its flood costs them
_PEER_BYTES: Final = MIB  # a group of this size ends as soon as it has messages of two peers
_DECODED: Final = 12  # memory that deciding a group takes, for each of its bytes: small values cost most

# Enumerations of pyzmq as plain numbers: each use of one costs half a microsecond.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_MORE: Final = int(zmq.RCVMORE)

journal = Journal()


class Mailbox:
    """The ROUTER socket, beside the request buffers of the slots."""

    def __init__(self, path: Path, slots: Slots) -> None:
        if len(str(path)) > MAX_SOCKET_PATH:
            raise LimitError(
                f"socket path {path} is too long", what="socket path",
                size=len(str(path)), limit=MAX_SOCKET_PATH,
            )
        self.path = path
        self.endpoint = f"ipc://{path}"
        self._slots = slots
        self._context = zmq.Context()
        socket = self._socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RCVHWM, _QUEUE)
        socket.setsockopt(zmq.SNDHWM, _QUEUE)
        socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        self._patience_s = -1.0  # how long a receive waits now
        self._receive = socket.recv
        self._send = socket.send_multipart
        self._option: Callable[[int], Any] = socket.getsockopt
        self._descriptor = int(socket.getsockopt(zmq.FD))  # readable when there may be something new
        self._is_drained = False  # nothing has arrived that the descriptor would not tell
        self._socket_first = False  # request buffers alone filled the last group
        self._spinning = Spinning()
        self._skip = 0  # passes until the socket is asked again
        self._last = 0  # messages in the last group
        path.unlink(missing_ok=True)
        while True:
            try:
                with private_umask():
                    socket.bind(self.endpoint)
                break
            except FileNotFoundError:  # another database's writer removed the empty directory
                make_private_dir(path.parent)
        self._shedder = LoadShedder(path)

    def take(self, limit: int, active: int = 0, wait_s: float = TICK_S) -> list[tuple[bytes, bytes]]:
        """The messages that have arrived, at most `limit` of (peer, frame); waits for one.

        `active` is the number of sessions that commit now. When many clients
        commit, a writer that polls without pause keeps one core busy, and
        each group holds a single commit. So a small group is delayed once,
        briefly: the clients run on the writer's core, and the group grows.

        libzmq reads from its peers in turn, so a group holds messages of each
        peer that waits. It ends early where one peer would fill it.
        """
        messages: list[tuple[bytes, bytes]] = []
        receive, option, slots = self._receive, self._option, self._slots
        size = 0
        looks = -1  # that may be made before sleeping; -1: it is not known yet
        last = 0.0  # when the last of them ended
        has_slept = False
        may_delay = active > _MANY_SESSIONS
        # Where the last group had several messages, more are on their way: one more costs little.
        extra_spins = min(_EXTRA_SPINS, 2 * (self._last - 1)) if self._last else 0
        while len(messages) < limit and size < MAX_BATCH_BYTES:
            if not self._socket_first:
                requests = slots.requests(limit - len(messages))
                if requests:  # a session has sent them before what the socket holds of it
                    if looks > 0:
                        self._spinning.ended(slow=False)
                        looks = 0
                    messages = requests + messages
                    for _, frame in requests:
                        size += len(frame)
                if len(messages) >= limit:
                    self._socket_first = True
                    self._skip = 0
                    break
            self._socket_first = False
            if may_delay and messages:
                may_delay = False
                # Not after a sleep: then the machine has a core to spare.
                if len(messages) < _SMALL_GROUP and not has_slept:
                    sleep(_DELAY_S)
                    continue
            # To ask whether there is a message is far cheaper than the exception of a receive without one.
            if self._skip or not option(_EVENTS) & _POLLIN:
                if self._skip:
                    self._skip -= 1
                else:
                    self._skip = _SKIPS
                    self._is_drained = True
                if messages and not extra_spins:
                    break
                if messages:
                    extra_spins -= 1
                    os.sched_yield()
                    continue
                if looks < 0:
                    looks = _LOOKS if wait_s > 0 and self._spinning.may_look() else 0
                    last = perf_counter()
                if looks:
                    looks -= 1
                    os.sched_yield()
                    now = perf_counter()
                    if (slow := now - last > SLOW_S) or not looks:
                        looks = 0
                        self._spinning.ended(slow=slow)
                    last = now
                    continue
                if wait_s <= 0:
                    break
                if slots.has_bell:
                    if not self._is_drained:
                        self._skip = 0
                        continue  # the descriptor tells only what is new since the socket was asked
                    self._skip = 0 if slots.sleep(self._descriptor, wait_s) else 1
                    has_slept = True
                    wait_s = 0.0
                    continue
            if wait_s != self._patience_s:
                self._patience_s = wait_s
                self._socket.setsockopt(zmq.RCVTIMEO, math.ceil(wait_s * 1000))
            self._is_drained = False
            try:
                peer = receive()  # blocks only when there was no message
            except zmq.Again:
                break
            frame = receive()  # a ROUTER puts the peer before what it sent, which is one frame at least
            if option(_MORE) or not frame:
                # An empty frame only wakes the writer. Several frames are not from a client of ours.
                while option(_MORE):
                    receive()
                break  # or a flood of these would keep the timers waiting
            messages.append((peer, frame))
            size += len(frame)
            if (len(messages) % _PEER_MESSAGES == 0 or size > _PEER_BYTES) and _one_fills(messages):
                break
        self._last = len(messages)
        shedder = self._shedder
        shedder.allowance = _DECODED * size
        if messages:
            shedder.groups += 1
            if shedder.is_asleep:
                shedder.wake()
        return messages

    def look(self) -> None:
        """Notice what comes without a message. Once in a while."""
        self._shedder.look()

    def answer(self, peer: bytes, frame: bytes) -> None:
        """Send a frame; never blocks. A peer that does not read loses it, and may ask again."""
        self._is_drained = False  # sending takes in what libzmq has signalled
        try:
            self._send((peer, frame), zmq.NOBLOCK)
        except zmq.Again:
            journal.warning("answer_dropped", peer=peer.hex())

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._shedder.stop()
        self._socket.close(0)
        self._context.term()
        self.path.unlink(missing_ok=True)


def _one_fills(messages: list[tuple[bytes, bytes]]) -> bool:
    """Whether one peer, among others, has its part of a group in messages, or the group that in bytes."""
    counts = Counter(message[0] for message in messages)
    return len(counts) > 1 and (
        max(counts.values()) >= _PEER_MESSAGES or sum(len(m[-1]) for m in messages) > _PEER_BYTES
    )
