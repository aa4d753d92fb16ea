"""The board: small messages between the writer and its clients, through shared memory.

Invariant: an entry is read as answer `n` only while it says `n`, and it says
so only after the rest of it was written. An entry is written again only when
its reader has said that it has the answer. A request buffer is written only
when the writer has taken what was in it. Whatever does not fit goes through
the socket; the slot's mail counter says when an answer does.

One file for each epoch of the writer, with a slot of 16,384 bytes for each
session:

    offset  size  field
    0       4     waiter: 1 while the client sleeps on this word
    8       8     mail: how many frames were sent to this session through the socket
    16      8     taken: how many requests the writer has copied out of the request buffer
    24      8     length of the request in the request buffer
    64      376   entry 0
    440     376   entry 1 ... entry 31
    12096   4288  request buffer: a request, as it would go through the socket

    entry:  0   8    sequence, 0 for empty; written last
            8   1    status
            10  2    length of the result
            16  8    version
            24  352  result, MessagePack

After the slots:

    0       32768 posted: for each slot, how many requests were put into its buffer; written last
    32768   4     asleep: 1 while the writer sleeps, and reads no request buffers

A client that finds no answer sets the waiter word and sleeps on it with
futex(2); the writer clears the word and wakes the client. Each of the two may
miss a store of the other that is still on its way. So every sleep is bounded:
a missed wake costs a millisecond.

A sleeping writer waits for its socket and for the bell, a FIFO beside the
board. It must not miss being woken: it would sleep for as long as it has
nothing else to do. So both sides put a barrier between their own store and
their look at the other's word: the writer sets `asleep` and then reads
`posted`, the client writes `posted`, then reads `asleep`, and rings. At least
one of them sees the other (Dekker's algorithm). The bell wakes the writer
itself. The socket would wake a thread of libzmq, which wakes the writer.

Plain stores become visible in program order on x86-64 only. On other
processors there is no board, and everything goes through the socket.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import select
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from inmem.host import futex
from inmem.host.files import open_private
from inmem.host.interrupts import let_through
from inmem.host.spinning import SLOW_S, Spinning

SLOTS: Final = 4096  # sessions with a slot; more of them use the socket
RING: Final = 32  # entries for answers that one session has not fetched
RESULT_BYTES: Final = 352  # an append's result takes 45, an error with its message and fields 150 to 300
ANSWERED: Final = 1  # what `look_for` has found
MAILED: Final = 2
REQUEST_BYTES: Final = 4288  # most requests are far smaller; one of 1 KB and its name takes 1,200

_SLOT_BYTES: Final = 4 * 4096
_ENTRY_BYTES: Final = 376
_ENTRIES: Final = 64
_SLOT_WORDS: Final = _SLOT_BYTES // 8
_ENTRY_WORDS: Final = _ENTRY_BYTES // 8
_MAIL_WORD: Final = 1
_TAKEN_WORD: Final = 2
_LENGTH_WORD: Final = 3
_REQUEST_BUFFER: Final = _ENTRIES + RING * _ENTRY_BYTES
_POSTED: Final = SLOTS * _SLOT_BYTES
_POSTED_WORD: Final = _POSTED // 8
_ASLEEP_HALF: Final = (_POSTED + SLOTS * 8) // 4
_FILE_BYTES: Final = _POSTED + SLOTS * 8 + 4096
_COUNTS: Final = (1 << 64) - 1  # counters wrap: what is in shared memory may be anything
_CHUNK: Final = 64 * 8  # of `posted` that is compared at a time: few stores have more sessions
_HEAD: Final = struct.Struct("<BxH4xQ")  # after the sequence; the result follows
_RESULT: Final = 8 + _HEAD.size
assert _REQUEST_BUFFER + REQUEST_BYTES == _SLOT_BYTES and _RESULT + RESULT_BYTES == _ENTRY_BYTES

_BELL_BYTES: Final = 1 << 16  # of what was rung, read at once: all that a FIFO holds


class Board:
    """The mapped file. The writer creates it, and its clients open it."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        file = open_private(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0))
        try:
            if create:
                os.ftruncate(file.fileno(), _FILE_BYTES)  # sparse: a slot takes memory when it is used
                os.posix_fallocate(file.fileno(), _POSTED, _FILE_BYTES - _POSTED)
            self._map = mmap.mmap(file.fileno(), _FILE_BYTES)
        except BaseException:
            file.close()
            if create:
                path.unlink()
            raise
        self._file = file  # the writer gives slots their memory through it
        if not create:
            file.close()
        self._bell = _opened_bell(path, create)
        self._anchor = ctypes.c_char.from_buffer(self._map)  # keeps the address valid
        self._address = ctypes.addressof(self._anchor)
        # Taking a lock is a full barrier, in the processor too. A call in the middle of another one of its
        # thread may find it taken below, so it may be taken twice.
        self._barrier = threading.RLock()
        self._view = memoryview(self._map)
        self._words = self._view.cast("Q")
        self._halves = self._view.cast("I")
        self._seen = bytearray()  # of `posted`, as far as slots were given: what was taken

    # --- the writer's side --------------------------------------------------------------

    def clear(self, slot: int) -> bool:
        """Empty a slot for a session that begins to use it; False if the memory is full.

        The slot gets its memory here. Otherwise touching a page in a full memory would be a SIGBUS.
        """
        try:
            os.posix_fallocate(self._file.fileno(), slot * _SLOT_BYTES, _SLOT_BYTES)
        except OSError as error:
            let_through(error)
            return False
        self._view[slot * _SLOT_BYTES : (slot + 1) * _SLOT_BYTES] = bytes(_SLOT_BYTES)
        self._words[_POSTED_WORD + slot] = 0
        self._seen.extend(bytes(max(0, 8 * (slot + 1) - len(self._seen))))
        self._seen[8 * slot : 8 * slot + 8] = bytes(8)
        return True

    def posted(self) -> list[int]:
        """The slots with a request in their buffer. Cost: a comparison of 8 bytes per slot ever given."""
        seen = self._seen
        now = self._map[_POSTED : _POSTED + len(seen)]
        if now == seen:
            return []
        found = []
        for begin in range(0, len(now), _CHUNK):
            counts, taken = now[begin : begin + _CHUNK], bytes(seen[begin : begin + _CHUNK])
            if counts != taken:
                for at in range(0, len(counts), 8):
                    if counts[at : at + 8] != taken[at : at + 8]:
                        found.append((begin + at) // 8)
        return found

    def take(self, slot: int) -> bytes:
        """The request in a slot's buffer, empty if its length is wrong; the client may then write the next.

        It is a copy, so that a client cannot change what was checked.
        """
        count = self._words[_POSTED_WORD + slot]
        length = self._words[slot * _SLOT_WORDS + _LENGTH_WORD]
        at = slot * _SLOT_BYTES + _REQUEST_BUFFER
        request = self._map[at : at + length] if length <= REQUEST_BYTES else b""
        self._seen[8 * slot : 8 * slot + 8] = count.to_bytes(8, sys.byteorder)
        self._words[slot * _SLOT_WORDS + _TAKEN_WORD] = count
        return request

    def sleep_until_rung(self, socket: int, timeout_s: float) -> bool:
        """Sleep until a client rings, a descriptor is readable or time is over; whether it is readable.

        Clients are told of it before, and a request that came meanwhile is seen: then this returns at once.
        """
        assert self._bell is not None
        bell = self._bell.fileno()
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.register(socket, select.POLLIN)
        ready: list[int] = []
        self._halves[_ASLEEP_HALF] = 1
        try:
            with self._barrier:
                pass
            if self._map[_POSTED : _POSTED + len(self._seen)] == self._seen:
                ready = [descriptor for descriptor, _ in poll.poll(math.ceil(timeout_s * 1000))]
        finally:
            self._halves[_ASLEEP_HALF] = 0
        if bell in ready:
            os.read(bell, _BELL_BYTES)
        return socket in ready

    def post(self, slot: int, sequence: int, status: int, version: int, result: bytes) -> None:
        """Write an answer. The caller has checked that it fits and that the entry is free."""
        at = slot * _SLOT_BYTES + _ENTRIES + sequence % RING * _ENTRY_BYTES
        length = len(result)
        _HEAD.pack_into(self._map, at + 8, status, length, version)
        self._map[at + _RESULT : at + _RESULT + length] = result
        self._words[at // 8] = sequence

    def announce(self, slot: int) -> None:
        """Say that a frame was sent to the session through the socket."""
        word = slot * _SLOT_WORDS + _MAIL_WORD
        self._words[word] = (self._words[word] + 1) & _COUNTS

    def wake(self, slots: Sequence[int]) -> None:
        """Wake those of the clients that sleep."""
        halves, wake = self._halves, futex.wake_call
        for slot in slots:
            if halves[slot * (_SLOT_BYTES // 4)]:
                halves[slot * (_SLOT_BYTES // 4)] = 0
                wake(self._address + slot * _SLOT_BYTES, futex.WAKE, 1)

    # --- the client's side --------------------------------------------------------------

    def offer(self, slot: int, request: bytes) -> bool:
        """Put a request into the request buffer; False if it must go through the socket instead.

        That is so if it is too large, or if the writer has not yet taken the one before.
        """
        words = self._words
        posted = words[_POSTED_WORD + slot]
        size = len(request)
        if size > REQUEST_BYTES or words[slot * _SLOT_WORDS + _TAKEN_WORD] != posted:
            return False
        at = slot * _SLOT_BYTES + _REQUEST_BUFFER
        self._map[at : at + size] = request
        words[slot * _SLOT_WORDS + _LENGTH_WORD] = size
        words[_POSTED_WORD + slot] = (posted + 1) & _COUNTS
        with self._barrier:
            pass
        return True

    def writer_sleeps(self) -> bool:
        """Whether the writer must be woken."""
        return bool(self._halves[_ASLEEP_HALF])

    @property
    def has_bell(self) -> bool:
        """Whether a sleeping writer can be woken from here."""
        return self._bell is not None

    def ring(self) -> None:
        """Wake the writer, if it lives. Cost: a system call."""
        assert self._bell is not None
        try:
            os.write(self._bell.fileno(), b"1")
        except BlockingIOError as error:  # it was rung so often that it is full
            let_through(error)

    def look(self, slot: int, sequence: int, spin: int) -> bool:
        """Whether the answer is there, or comes within so many yields."""
        words = self._words
        word = slot * _SLOT_WORDS + _ENTRIES // 8 + sequence % RING * _ENTRY_WORDS
        while words[word] != sequence:
            if spin <= 0:
                return False
            spin -= 1
            os.sched_yield()
        return True

    def look_for(self, slot: int, sequence: int, mail: int, looks: int, spinning: Spinning) -> int:
        """ANSWERED or MAILED if the answer or news of a frame comes within so many looks, else 0."""
        words = self._words
        news = slot * _SLOT_WORDS + _MAIL_WORD
        word = slot * _SLOT_WORDS + _ENTRIES // 8 + sequence % RING * _ENTRY_WORDS
        if words[word] == sequence:
            return ANSWERED
        if words[news] != mail:
            return MAILED
        if looks and spinning.may_look():
            last, took_s = perf_counter(), 0.0
            while looks and took_s < SLOW_S and words[word] != sequence:
                looks -= 1
                os.sched_yield()
                now = perf_counter()
                last, took_s = now, now - last
            spinning.ended(slow=took_s >= SLOW_S)
            if words[word] == sequence:
                return ANSWERED
        return MAILED if words[news] != mail else 0

    def fetch(self, slot: int, sequence: int) -> tuple[int, int, bytes]:
        """Status, version and result of an answer that is there."""
        at = slot * _SLOT_BYTES + _ENTRIES + sequence % RING * _ENTRY_BYTES
        status, length, version = _HEAD.unpack_from(self._map, at + 8)
        return status, version, self._map[at + _RESULT : at + _RESULT + length]

    def mail(self, slot: int) -> int:
        """How many frames were sent to the session through the socket."""
        return self._words[slot * _SLOT_WORDS + _MAIL_WORD]

    def sleep(self, slot: int, sequence: int, mail: int, timeout_us: int) -> None:
        """Sleep until woken, at most `timeout_us`; not at all if an answer or mail is there."""
        half = slot * (_SLOT_BYTES // 4)
        self._halves[half] = 1
        if not self.look(slot, sequence, 0) and self.mail(slot) == mail:
            futex.wait(self._address + slot * _SLOT_BYTES, 1, timeout_us)
        self._halves[half] = 0

    def remove(self) -> None:
        """Remove the files of the board: for who has made them."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".bell").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap."""
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        self._file.close()
        self._words.release()
        self._halves.release()
        self._view.release()
        del self._anchor
        self._map.close()


def _epoll() -> type[select.epoll]:
    """The class, which gevent takes out of its module: nobody waits by it here."""
    if hasattr(select, "epoll"):
        return select.epoll
    found: type[select.epoll] = sys.modules["gevent.monkey"].get_original("select", "epoll")
    return found


def _opened_bell(board: Path, create: bool) -> select.epoll | None:
    """The bell of a board; None in a client where there is none: the writer is of the release before.

    It is closed with the board, whose last user may be any thread. An object of `epoll` closes the file
    descriptor that it was given when it goes, without a finalizer of ours that a signal could end.
    """
    path = board.with_suffix(".bell")
    if create:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
    try:
        # For reading too, on both sides: so it never ends, and who rings for a dead writer gets no SIGPIPE.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        return _epoll().fromfd(os.open(path, flags))
    except OSError as error:
        if create:
            raise
        let_through(error)
        return None
