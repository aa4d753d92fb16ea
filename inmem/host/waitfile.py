"""The wait file: what processes wait for, and what the writer has changed. It is never replaced.

A waiter sleeps until one of some words changes. There are far fewer words than
keys: a word stands for all keys whose hash leads to it, and who is woken looks
whether it was for him. A commit has two words for each key that it writes:
that of the key, and that of its run and type. Who has read a key waits for the
first, who has read a range for the second.

A word changes only if a flag says that somebody waits for it, and the writer
looks at the flags only if one byte says that there are any. So a commit that
nobody waits for costs one look at that byte.

Invariant: no wake is lost. Both sides keep an order, which
`tests/unit/test_wait_protocol.py` tries in every interleaving:

    waiter   reads the words, sets their flags, then the byte; takes a snapshot
             and looks; then sleeps while the words have the values it has read
    writer   publishes; looks at the byte, then at the flags; clears those that
             are set, changes their words, and then wakes

Either the snapshot of the waiter has the commit, or the writer sees the flag:
each writes before it looks at what the other has written (Dekker's algorithm),
with a barrier in between. A flag that is set again while the writer clears it
is safe, as the word changes after that: who set it sleeps on the old value.

A waiter that is killed leaves its flags set. The writer clears all of them now
and then, as if all words had changed, and begins with the byte: whoever still
waits sets them again.

Layout, native byte order, 32,768 bytes:

    offset  size   field
    0       8      magic "INMEMWT1"
    8       1      whether any flag may be set
    4096    4096   flags of the words, a byte each
    8192    64     flags of the groups
    8256    1      flag of everything
    12288   16384  the words, 32 bits each
    28672   256    a word for each group of 64 words: for who waits for too many
    28928   4      a word for everything: for who has read across runs and types
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

from inmem.errors import CorruptionError
from inmem.host import futex
from inmem.host.files import open_private
from inmem.host.interrupts import let_through

WORDS: Final = 4096
GROUPS: Final = 64  # of as many words each
EVERYTHING: Final = WORDS + GROUPS
PLACES: Final = EVERYTHING + 1
SIZE: Final = 32768

_MAGIC: Final = b"INMEMWT1"
_ANY: Final = 8
_FLAGS: Final = 4096
_FIRST_WORD: Final = 12288
_MASK: Final = (1 << 32) - 1


def place_of(name: bytes) -> int:
    """The word of a key, or of a run and type."""
    return crc32(name) % WORDS


def group_of(place: int) -> int:
    """The place of a word's group."""
    return WORDS + place // GROUPS


class WaitFile:
    """The mapped file. It stays mapped for as long as anybody sleeps in here: each has a reference to it."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is made if it is not there.

        Raises:
            OSError: the disk is full.
        """
        self.path = path
        with open_private(path, os.O_RDWR | os.O_CREAT) as file:
            self._info = os.fstat(file.fileno())
            os.posix_fallocate(file.fileno(), 0, SIZE)  # or touching a page on a full disk would be a SIGBUS
            self._map = mmap.mmap(file.fileno(), SIZE)
        if self._map[: len(_MAGIC)] not in (_MAGIC, bytes(len(_MAGIC))):
            raise CorruptionError(f"{path} is no wait file", file=str(path), offset=0)
        self._map[: len(_MAGIC)] = _MAGIC
        self._anchor = ctypes.c_char.from_buffer(self._map)  # keeps the address valid
        self._address = ctypes.addressof(self._anchor) + _FIRST_WORD
        view = memoryview(self._map)
        self.any = view[_ANY : _ANY + 1]
        self.flags = view[_FLAGS : _FLAGS + PLACES]
        self.words = view[_FIRST_WORD : _FIRST_WORD + 4 * PLACES].cast("I")
        self.barrier = threading.RLock()  # taking a lock is a full barrier, in the processor too

    def is_current(self) -> bool:
        """Whether the path still leads to this file. If somebody removed it, others use another one."""
        try:
            return os.path.samestat(os.stat(self.path), self._info)
        except (FileNotFoundError, NotADirectoryError) as error:
            let_through(error)
            return False

    # --- a waiter's side ----------------------------------------------------------------

    def arm(self, places: Sequence[int]) -> list[int]:
        """Say that somebody waits for these words; their values, which what is published later changes."""
        words, flags = self.words, self.flags
        values = [words[place] for place in places]
        for place in places:
            flags[place] = 1
        self.any[0] = 1
        with self.barrier:
            pass
        return values

    def sleep(
        self, places: Sequence[int], values: Sequence[int], timeout_s: float, bell: LocalBell, rung: int
    ) -> None:
        """Sleep while the words have these values, and the bell was not rung again."""
        address = self._address
        addresses = [address + 4 * place for place in places]
        futex.wait_any([*addresses, bell.address], [*values, rung], timeout_s)

    # --- the writer's side --------------------------------------------------------------

    def flagged(self) -> list[int]:
        """All places with a flag."""
        flags = bytes(self.flags)
        found, at = [], flags.find(1)
        while at >= 0:
            found.append(at)
            at = flags.find(1, at + 1)
        return found

    def change(self, places: Iterable[int]) -> None:
        """Change words, and wake who sleeps on them."""
        words, flags, address = self.words, self.flags, self._address
        for place in places:
            flags[place] = 0
            words[place] = (words[place] + 1) & _MASK
            futex.wake(address + 4 * place)


class LocalBell:
    """A word of this process alone: who rings it wakes the sleepers of one handle."""

    def __init__(self) -> None:
        self._word = ctypes.c_uint32(0)
        self.address = ctypes.addressof(self._word)

    @property
    def rung(self) -> int:
        """How often it was rung."""
        return self._word.value

    def ring(self) -> None:
        """Wake all who sleep on it, and who is about to."""
        self._word.value += 1
        futex.wake(self.address)
