"""Suspects: which commit is being decided, so that one that ends writers is found and refused.

Invariant: from when a commit is looked at until it is logged the control page
names it, by session, sequence and digest. A writer that dies meanwhile leaves
the name, and the next one counts a death for that commit. (What is logged,
recovery repeats, whoever sent it; so the name ends there, before any wait for
the disk.) A commit is refused once it has ended a writer
by an exception, or `MAX_WRITER_DEATHS` writers without a word. A kill from
outside looks the same, and the commit that it hit is the first that the next
writer gets: among kills that come as clients reconnect, one in a hundred hits
it again.

Several commits are logged as one. Then no single one is named: the next
writer publishes one at a time for a while, so that the name is that of the
one which does it.

Words of the control page, from `SUSPECTS` on:

    word   meaning
    63     commits that are being logged as one, 0 for fewer than two
    64-65  session of the commit that is being decided
    66     its sequence, 0 for none: they begin at 1
    67     its digest
    68     the epoch of the writer that names commits here
    80-159 sixteen suspects: session (2), sequence (0: free), digest, deaths
           (bit 32: ended by an exception)

A plain store orders them well enough: who reads them comes after a death, and
the kernel has all that the process stored. A name that was stored in part is
of no commit, or of one that was about to be decided.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from inmem.config import MAX_WRITER_DEATHS
from inmem.errors import CommitRefusedError
from inmem.host.control import SIZE, SUSPECTS
from inmem.writer.journal import Journal

NAME: Final = struct.Struct("=16sQQ")  # session, sequence, digest
PUBLISHING: Final = SUSPECTS
NAME_AT: Final = 8 * (SUSPECTS + 1)
NAMED: Final = SUSPECTS + 3  # the word of the sequence
_EPOCH: Final = SUSPECTS + 5
_TABLE: Final = 80
_SLOTS: Final = 16
_SLOT_WORDS: Final = 5
_DEATHS: Final = 4  # word of a slot
_BY_EXCEPTION: Final = 1 << 32
CAREFUL_US: Final = 2_000_000  # so long one at a time: clients send again at once
assert NAME_AT + NAME.size == 8 * _EPOCH and _TABLE * 8 + _SLOTS * _SLOT_WORDS * 8 <= SIZE

journal = Journal()


class Suspect(NamedTuple):
    """A commit in which writers died."""

    session: bytes
    sequence: int
    digest: int


class Suspects:
    """The commit that is being decided, and those in which writers died."""

    def __init__(self, page: memoryview | None = None) -> None:
        """`page` is the control page; without one, names are of this process only."""
        self.page = memoryview(bytearray(SIZE)) if page is None else page
        self.words = self.page.cast("Q")
        self.found: dict[Suspect, int] = {}  # their slots
        self.is_careful = False  # a writer died publishing several: which of them did it is not known

    def take_over(self, epoch: int, *, same_boot: bool) -> None:
        """Count the death of the last writer, which was of this epoch, if it died deciding a commit.

        Nothing that was noted in an earlier boot counts: the machine ended that writer.
        """
        words = self.words
        if not same_boot:
            for word in range(SUSPECTS, _TABLE + _SLOTS * _SLOT_WORDS):
                words[word] = 0
            return
        for slot in range(_SLOTS):
            session, sequence, digest = NAME.unpack_from(self.page, self._at(slot))
            if sequence:
                self.found[Suspect(session, sequence, digest)] = slot
        last = Suspect._make(NAME.unpack_from(self.page, NAME_AT))
        together = words[PUBLISHING]
        is_of_last = words[_EPOCH] == epoch
        # Before it is counted: to die here must not count twice.
        words[NAMED] = words[PUBLISHING] = 0
        if not is_of_last:  # an earlier release's writer was there since
            return
        if together > 1:
            self.is_careful = True
            journal.warning("died_publishing", commits=together, epoch=epoch)
        elif last.sequence:
            slot = self._slot_of(last)
            self._deaths(slot, 1)
            journal.warning(
                "died_deciding", session=last.session.hex(), sequence=last.sequence, epoch=epoch,
                writers=words[self._word(slot)] & ~_BY_EXCEPTION,
            )

    def begin(self, epoch: int) -> None:
        """This writer names commits from now on."""
        self.words[_EPOCH] = epoch

    def refusal(self, session: bytes, sequence: int, digest: int) -> CommitRefusedError | None:
        """Why a commit is not decided; None if it is."""
        slot = self.found.get(Suspect(session, sequence, digest))
        if slot is None:
            return None
        deaths = self.words[self._word(slot)]
        writers = deaths & ~_BY_EXCEPTION
        if deaths < MAX_WRITER_DEATHS:
            return None
        journal.warning("commit_refused", session=session.hex(), sequence=sequence, writers=writers)
        return CommitRefusedError(
            f"this commit ended {writers} writer{'s' * (writers != 1)}: it is refused", writers=writers
        )

    def convict(self, session: bytes, sequence: int, digest: int) -> None:
        """An exception in this commit ends this writer."""
        self._deaths(self._slot_of(Suspect(session, sequence, digest)), _BY_EXCEPTION + 1)
        self.words[NAMED] = self.words[PUBLISHING] = 0

    def settle(self, session: bytes, sequence: int, digest: int) -> None:
        """A commit was decided, and its outcome is stored: no suspect any more."""
        slot = self.found.pop(Suspect(session, sequence, digest), None)
        if slot is not None:
            self.words[self._at(slot) // 8 + 2] = 0

    @staticmethod
    def _at(slot: int) -> int:
        return 8 * (_TABLE + slot * _SLOT_WORDS)

    def _word(self, slot: int) -> int:
        return self._at(slot) // 8 + _DEATHS

    def _slot_of(self, suspect: Suspect) -> int:
        """The slot of a commit, a new one if it has none; the least suspect one makes room."""
        slot = self.found.get(suspect)
        if slot is not None:
            return slot
        taken = set(self.found.values())
        free = [slot for slot in range(_SLOTS) if slot not in taken]
        if free:
            slot = free[0]
        else:
            oldest = min(self.found, key=lambda one: self.words[self._word(self.found[one])])
            slot = self.found.pop(oldest)
        self.words[self._word(slot)] = 0
        NAME.pack_into(self.page, self._at(slot), *suspect)
        self.found[suspect] = slot
        return slot

    def _deaths(self, slot: int, count: int) -> None:
        self.words[self._word(slot)] += count
