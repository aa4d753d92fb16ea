"""The wait file: what processes wait for, and what the writer has changed. It is never replaced.

A waiter sleeps until one of some words changes. There are far fewer words than
keys: a word stands for all keys whose hash leads to it, and who is woken looks
whether it was for him. A commit has two words for each key that it writes:
that of the key, and that of its run and type. Who has read a key waits for the
first, who has read a range for the second.

Where what is waited for is for one taker each, as a job is, all takers wait
for a third kind of word, and nothing else does. It grows by one for each new
thing, and as many takers are woken: those who have slept longest. Who was
woken and does not take what is there passes that on. One who is killed
instead does not: then the others find it when they look, once in a second.
Each such word says whose it is. If takers of two names meet at one, all of
them are woken, as one who was meant need not be the one who has slept longest.

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
    16      8      the version up to which all who waited were told
    4096    4096   flags of the words, a byte each
    8192    64     flags of the groups
    8256    1      flag of everything
    8257    512    flags of the words for takers
    8772    2048   whose each of these is, 32 bits of its name; 0: nobody's
    10820   512    whether takers of several names wait for it
    12288   16384  the words, 32 bits each
    28672   256    a word for each group of 64 words: for who waits for too many
    28928   4      a word for everything: for who has read across runs and types
    28932   2048   512 words for takers
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from inmem.errors import CorruptionError, InmemError
from inmem.host import futex
from inmem.host.files import leads_to, open_private
from inmem.host.interrupts import let_through

WORDS: Final = 4096
GROUPS: Final = 64  # of as many words each
EVERYTHING: Final = WORDS + GROUPS
TAKERS: Final = 512
PLACES: Final = EVERYTHING + 1 + TAKERS
SIZE: Final = 32768

_MAGIC: Final = b"INMEMWT1"
_ANY: Final = 8
_TOLD: Final = 16
_FLAGS: Final = 4096
_OWNERS: Final = 8772
_SHARED: Final = _OWNERS + 4 * TAKERS
_FIRST_WORD: Final = 12288
_MASK: Final = (1 << 32) - 1
_CHECK_EVERY_S: Final = 0.5  # between two looks at whether the file was removed
_WITHOUT_FILE_S: Final = 0.005  # of a sleep where there is nothing to sleep on


def place_of(name: bytes) -> int:
    """The word of a key, or of a run and type."""
    return crc32(name) % WORDS


def group_of(place: int) -> int:
    """The place of a word's group."""
    return WORDS + place // GROUPS


def takers_place(name: bytes) -> int:
    """The word of those who take one each of what has this name."""
    return EVERYTHING + 1 + crc32(name) % TAKERS


def is_takers(place: int) -> bool:
    """Whether the word is of takers."""
    return place > EVERYTHING


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
        self.told = view[_TOLD : _TOLD + 8].cast("Q")
        self.flags = view[_FLAGS : _FLAGS + PLACES]
        self.words = view[_FIRST_WORD : _FIRST_WORD + 4 * PLACES].cast("I")
        self._owners = view[_OWNERS:_SHARED].cast("I")
        self._shared = view[_SHARED : _SHARED + TAKERS]
        self._barrier = threading.RLock()  # taking a lock is a full barrier, in the processor too

    def is_current(self) -> bool:
        """Whether the path still leads to this file. If somebody removed it, others use another one."""
        return leads_to(self.path, self._info)

    # --- a waiter's side ----------------------------------------------------------------

    def arm(self, places: Sequence[int]) -> list[int]:
        """Say that somebody waits for these words; their values, which what is published later changes."""
        words, flags = self.words, self.flags
        values = [words[place] for place in places]
        for place in places:
            flags[place] = 1
        self.any[0] = 1
        with self._barrier:
            pass
        return values

    def say_who(self, name: bytes) -> None:
        """Say that takers of this name wait, or are about to. Before they arm.

        Of two who say so at once one may be overlooked, until he says it again.
        """
        whose = crc32(name)
        at, whose = whose % TAKERS, whose or 1
        owner = self._owners[at]
        if not owner:
            self._owners[at] = whose
        elif owner != whose:
            self._shared[at] = 1

    def is_shared(self, place: int) -> bool:
        """Whether takers of several names wait for this word."""
        return bool(self._shared[place - EVERYTHING - 1])

    def addresses(self, places: Sequence[int]) -> list[int]:
        """Where these words are."""
        return [self._address + 4 * place for place in places]

    def place_at(self, address: int) -> int:
        """Which word is there."""
        return (address - self._address) // 4

    # --- the writer's side --------------------------------------------------------------

    def disarm(self) -> list[int]:
        """Say that nobody waits, and give all places with a flag: who sets one from here on says so again."""
        self.any[0] = 0
        with self._barrier:
            pass
        return self.flagged()

    def flagged(self) -> list[int]:
        """All places with a flag."""
        flags = bytes(self.flags)
        found, at = [], flags.find(1)
        while at >= 0:
            found.append(at)
            at = flags.find(1, at + 1)
        return found

    def change(self, places: Iterable[int]) -> int:
        """Change words, and wake who sleeps on them; how many that were."""
        words, flags, address = self.words, self.flags, self._address
        woken = 0
        for place in sorted(places):  # a group's after its members': who wakes by it looks at those
            flags[place] = 0
            if place > EVERYTHING:  # those who still wait say whose it is again
                self._owners[place - EVERYTHING - 1] = self._shared[place - EVERYTHING - 1] = 0
            words[place] = (words[place] + 1) & _MASK
            woken += futex.wake(address + 4 * place)
        return woken

    # --- both sides ---------------------------------------------------------------------

    def hand_out(self, place: int, count: int) -> int:
        """Wake so many takers, or fewer if there are not as many; how many that were. Others sleep on.

        Where takers of several names wait all are woken: who of them is meant is not known here.
        """
        self.words[place] = (self.words[place] + count) & _MASK
        address = self._address + 4 * place
        return futex.wake(address) if self.is_shared(place) else futex.wake(address, count)


class Armed(NamedTuple):
    """Words that somebody is about to sleep on, as they were before he looked at what he waits for."""

    file: WaitFile | None
    addresses: list[int]
    values: list[int]

    def is_for_one_who_takes(self) -> bool:
        """Whether the first word, that of takers of one name alone, has changed."""
        if self.file is None:
            return False
        place = self.file.place_at(self.addresses[0])
        return self.file.words[place] != self.values[0] and not self.file.is_shared(place)


class Sleeper:
    """Where the threads of a process sleep on words of one wait file. A word of its own wakes them all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: WaitFile | None = None
        self._next_check = 0.0
        self._polling = 0  # threads that sleep without a file
        self._bell = ctypes.c_uint32(0)

    def arm(self, places: Sequence[int], taken_from: bytes | None = None) -> Armed:
        """Say that somebody waits for these words, fewer than `futex.AT_ONCE`. Before looking.

        `taken_from` is the name of what he takes if the word is of takers. Without a file, which the
        disk or the processor may not allow, the sleep is short.
        """
        rung = self.rung
        file = self.file()
        if file is None:
            return Armed(None, [], [])
        if taken_from is not None:
            file.say_who(taken_from)
        return self.armed(file, places, file.arm(places), rung)

    @property
    def rung(self) -> int:
        """How often all were woken."""
        return self._bell.value

    def file(self) -> WaitFile | None:
        """The wait file; opened anew if it was removed, which is looked at once in a while."""
        file = self._file
        now = time.monotonic()
        if file is None or now >= self._next_check:
            self._next_check = now + _CHECK_EVERY_S
            if file is None or not file.is_current():
                file = self._file = self._opened()
        return file

    def armed(self, file: WaitFile, places: Sequence[int], values: Sequence[int], rung: int) -> Armed:
        """Words to sleep on, with the values that they and `rung` had before looking."""
        addresses = [*file.addresses(places), ctypes.addressof(self._bell)]
        return Armed(file, addresses, [*values, rung])

    def sleep(self, armed: Armed, timeout_s: float) -> None:
        """Sleep until one of the words changes, or for a while."""
        if armed.file is None:
            self._polling += 1  # the more of them, the more rarely each looks
            try:
                time.sleep(min(timeout_s, self._polling * _WITHOUT_FILE_S))
            finally:
                self._polling -= 1
        else:
            futex.wait_any(armed.addresses, armed.values, timeout_s)

    def pass_on(self, name: bytes) -> None:
        """Wake one of the takers, here or in another process, as what is there is not taken here."""
        file = self.file()
        if file is not None:
            file.hand_out(takers_place(name), 1)

    def wake(self) -> None:
        """Wake all who sleep in here, and who is about to."""
        self._bell.value += 1
        if futex.SUPPORTED:
            futex.wake(ctypes.addressof(self._bell))

    def _opened(self) -> WaitFile | None:
        if not futex.SUPPORTED:
            return None
        try:
            return WaitFile(self._path)
        except (OSError, InmemError) as error:  # a full disk; a directory that may only be read
            let_through(error)
            return None
