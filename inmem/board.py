"""The answer board: small answers through shared memory instead of a socket.

Invariant: an entry is read as answer `n` only while it says `n`, and it says
so only after the rest of it was written; an entry is written anew only when
its reader has said that it has the answer. Whatever does not fit goes through
the socket, and the slot's mail counter says that it did.

One file per incarnation of the writer, a slot per session, 12,288 bytes:

    offset  size  field
    0       4     waiter: 1 while the client sleeps on this word
    8       8     mail: frames sent to this session through the socket
    64      376   entry 0
    440     376   entry 1 ... entry 31

    entry:  0   8    sequence, 0 for empty; written last
            8   1    status
            10  2    length of the result
            16  8    version
            24  352  result, MessagePack

A client that finds no answer sets the waiter word and sleeps on it with
futex(2); the writer clears it and wakes. The two could each miss the other's
store by a hair; every sleep is therefore bounded, so that a missed wake costs
a millisecond and no more. Plain stores become visible in program order on
x86-64 only: elsewhere there is no board, and answers go through the socket.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from inmem.files import open_private

SLOTS: Final = 4096  # sessions with a slot; more of them use the socket
RING: Final = 32  # unfetched answers of one session
RESULT_BYTES: Final = 352  # an append's result takes 45, an error with its message and fields 150 to 300

_SLOT_BYTES: Final = 3 * 4096
_ENTRY_BYTES: Final = 376
_ENTRIES: Final = 64
_SLOT_WORDS: Final = _SLOT_BYTES // 8
_ENTRY_WORDS: Final = _ENTRY_BYTES // 8
_MAIL_WORD: Final = 1
_HEAD: Final = struct.Struct("<BxH4xQ")  # after the sequence; the result follows
_RESULT: Final = 8 + _HEAD.size
assert _ENTRIES + RING * _ENTRY_BYTES <= _SLOT_BYTES and _RESULT + RESULT_BYTES == _ENTRY_BYTES

_SYS_FUTEX: Final = 202  # x86-64
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1

SUPPORTED: Final = platform.machine() == "x86_64"


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


_ARGUMENTS: Any = [
    ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ctypes.c_uint,
]
_wait = ctypes.CDLL(None).syscall  # lets other threads run while it sleeps
_wait.restype, _wait.argtypes = ctypes.c_long, _ARGUMENTS
_wake = ctypes.PyDLL(None).syscall  # never sleeps: giving up the interpreter lock would cost more
_wake.restype, _wake.argtypes = ctypes.c_long, _ARGUMENTS[:4]  # the call has no use for the others


class Board:
    """The mapped file; the same class for the writer, who makes it, and its clients."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        fd = open_private(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0))
        try:
            if create:
                os.ftruncate(fd, SLOTS * _SLOT_BYTES)  # sparse: a slot takes memory when it is used
            self._map = mmap.mmap(fd, SLOTS * _SLOT_BYTES)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        if not create:
            self._leave_file()
        self._anchor = ctypes.c_char.from_buffer(self._map)  # keeps the address valid
        self._address = ctypes.addressof(self._anchor)
        self._view = memoryview(self._map)
        self._words = self._view.cast("Q")
        self._halves = self._view.cast("I")

    def _leave_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # --- the writer's side --------------------------------------------------------------

    def clear(self, slot: int) -> bool:
        """Empty a slot for a session that begins to use it; False if the memory is full.

        It gets its memory here: touching a page that a full memory lacks is a SIGBUS, to both sides.
        """
        try:
            os.posix_fallocate(self._fd, slot * _SLOT_BYTES, _SLOT_BYTES)
        except OSError:
            return False
        self._view[slot * _SLOT_BYTES : (slot + 1) * _SLOT_BYTES] = bytes(_SLOT_BYTES)
        return True

    def post(self, slot: int, sequence: int, status: int, version: int, result: bytes) -> None:
        """Write an answer. The caller has seen that it fits and that the entry is free."""
        at = slot * _SLOT_BYTES + _ENTRIES + sequence % RING * _ENTRY_BYTES
        length = len(result)
        _HEAD.pack_into(self._map, at + 8, status, length, version)
        self._map[at + _RESULT : at + _RESULT + length] = result
        self._words[at // 8] = sequence

    def announce(self, slot: int) -> None:
        """Say that a frame was sent to the session through the socket."""
        self._words[slot * _SLOT_WORDS + _MAIL_WORD] += 1

    def wake(self, slots: Sequence[int]) -> None:
        """Wake the clients that sleep; costs nothing for those that do not."""
        halves = self._halves
        for slot in slots:
            if halves[slot * (_SLOT_BYTES // 4)]:
                halves[slot * (_SLOT_BYTES // 4)] = 0
                _wake(_SYS_FUTEX, self._address + slot * _SLOT_BYTES, _FUTEX_WAKE, 1)

    # --- the client's side --------------------------------------------------------------

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

    def fetch(self, slot: int, sequence: int) -> tuple[int, int, bytes]:
        """Status, version and result of an answer that is there."""
        at = slot * _SLOT_BYTES + _ENTRIES + sequence % RING * _ENTRY_BYTES
        status, length, version = _HEAD.unpack_from(self._map, at + 8)
        return status, version, self._map[at + _RESULT : at + _RESULT + length]

    def mail(self, slot: int) -> int:
        """How many frames were sent to the session through the socket."""
        return self._words[slot * _SLOT_WORDS + _MAIL_WORD]

    def sleep(self, slot: int, sequence: int, mail: int, timeout_us: int) -> None:
        """Sleep until woken, at most `timeout_us`; not at all if there is news."""
        half = slot * (_SLOT_BYTES // 4)
        self._halves[half] = 1
        if not self.look(slot, sequence, 0) and self.mail(slot) == mail:
            timeout = _Timespec(0, timeout_us * 1000)
            _wait(
                _SYS_FUTEX, self._address + slot * _SLOT_BYTES, _FUTEX_WAIT, 1,
                ctypes.addressof(timeout), None, 0,
            )
        self._halves[half] = 0

    def close(self) -> None:
        """Unmap."""
        self._leave_file()
        self._words.release()
        self._halves.release()
        self._view.release()
        del self._anchor
        self._map.close()


class Slots:
    """Which session has which slot; the writer's book-keeping."""

    def __init__(self, board: Board | None) -> None:
        self._board = board
        self._free = list(range(SLOTS - 1, -1, -1)) if board is not None else []
        self._of: dict[bytes, tuple[int, int]] = {}  # session -> slot, pid

    def get(self, session: bytes) -> int:
        """The slot of a session, -1 without one."""
        return self._of.get(session, _NONE)[0]

    def give(self, session: bytes, pid: int) -> int:
        """An empty slot for a session that says hello; -1 if none is left, or no memory for it."""
        self.take(session)
        if self._board is None:
            return -1
        if not self._free:
            self.take_all({pid for _, pid in self._of.values() if not Path(f"/proc/{pid}").exists()})
        if not self._free:
            return -1
        slot = self._free.pop()
        if not self._board.clear(slot):
            self._free.append(slot)
            return -1
        self._of[session] = slot, pid
        return slot

    def take(self, session: bytes) -> None:
        """Take the slot of a session back."""
        slot, _ = self._of.pop(session, _NONE)
        if slot >= 0:
            self._free.append(slot)

    def take_all(self, pids: set[int]) -> list[bytes]:
        """Take the slots of dead processes back; their sessions."""
        sessions = [session for session, (_, pid) in self._of.items() if pid in pids]
        for session in sessions:
            self.take(session)
        return sessions


_NONE: Final = (-1, 0)
