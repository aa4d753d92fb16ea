"""Waking those who wait for what a commit has changed: see `inmem.host.waitfile`.

Invariant: what is published is noted before anything else is published, and
nothing that was noted is forgotten while the writer lives. One that comes
after a dead one wakes everybody.

Commits are answered first. Waking many takes long, 15 µs for each that
sleeps, so it takes a twentieth of the writer's time at most. Those who are
woken take more: each looks. So many are woken less often, with all that was
noted meanwhile, and leave the cores to those who commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inmem.changes import DELETE_RANGE, PUT, Op, Table
from inmem.errors import CorruptionError, InmemError
from inmem.host import failpoints
from inmem.host.waitfile import EVERYTHING, WaitFile, group_of, place_of, takers_place
from inmem.primitives.server import HANDED_OUT
from inmem.writer.journal import Journal

_PAUSE: Final = 19  # times as long as the last wakes took, before the next
_EACH_S: Final = 0.0008  # for each who was woken, four times what he needs to look: else many take all cores
_PAUSE_MAX_S: Final = 0.1  # however long they took
_FEW: Final = 2  # who may look as often as something changes
_SWEEP_S: Final = 5.0  # between two clearings of all flags, while there are commits
_NOBODY: Final = bytes(1)
_DATA: Final = int(Table.DATA)
_FENCES: Final = int(Table.FENCES)

journal = Journal()


class Waking:
    """What the writer owes to those who wait."""

    def __init__(self, path: Path) -> None:
        self.owed: set[int] = set()  # places whose words must change
        self.handed_out: dict[int, int] = {}  # by place, how many takers are to be woken
        self._due = 0.0  # when they may
        self._next_sweep = time.monotonic() + _SWEEP_S
        self._path = path
        self._file: WaitFile | None = None
        self._noted = 0  # the version up to which all was noted
        self._is_told = False  # of the file that cannot be opened, in the journal
        self.any: Sequence[int] = _NOBODY  # its only item says whether anybody waits: see `WaitFile`
        self.look()

    def look(self) -> None:
        """Open the wait file, if it is not open or was removed. Once in a while."""
        if self._file is not None:
            if self._file.is_current():
                return
            self._file.change(self._file.flagged())  # who sleeps on its words looks for another one
        try:
            self._file = self._opened()
            self.any = self._file.any
        except (OSError, InmemError) as error:
            self._file, self.any = None, _NOBODY
            if not self._is_told:
                self._is_told = True
                journal.warning("no_wait_file", error=error, problem="who waits looks every few milliseconds")
            return
        self._is_told = False
        self.everything()

    def _opened(self) -> WaitFile:
        try:
            return WaitFile(self._path)
        except CorruptionError:  # nothing in it lasts
            self._path.unlink()
            return WaitFile(self._path)

    def note(self, ops: Sequence[Op], version: int) -> None:
        """These operations, up to a version, can be seen from now on, and somebody waits for something."""
        file = self._file
        assert file is not None
        flags, owed = file.flags, self.owed
        for op in ops:
            if op[0] == DELETE_RANGE or op[1] == _FENCES:
                self.everything()  # of a run that is gone nothing else tells
                break
            if op[1] == _DATA:
                key = op[2]
                for place in (place_of(key), place_of(key[: key.index(0) + 2])):
                    if flags[place]:
                        owed.add(place)
                    if flags[group_of(place)]:
                        owed.add(group_of(place))
                at = key.index(0) + 2
                if op[0] == PUT and key[at - 1] in HANDED_OUT:
                    place = takers_place(key[: at - 1] + key[at : key.index(0, at)])
                    if flags[place]:
                        self.handed_out[place] = self.handed_out.get(place, 0) + 1
        if flags[EVERYTHING]:
            owed.add(EVERYTHING)
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            owed.update(file.disarm())
        self._noted = version
        if not owed and not self.handed_out:
            file.told[0] = version

    def everything(self) -> None:
        """Whatever somebody waits for may have changed."""
        if self._file is not None:
            self.owed.update(self._file.flagged())

    def pay(self, *, at_once: bool = False) -> float:
        """Wake those who are owed it, unless that took too long of late; after how long to come again."""
        now = time.monotonic()
        if now < self._due and not at_once:
            return self._due - now
        failpoints.reached("waking")
        owed, self.owed = self.owed, set()
        handed_out, self.handed_out = self.handed_out, {}
        if self._file is not None:
            began = time.thread_time()  # what it takes of the processor: others may run in between
            woken = self._file.change(owed)
            for place, count in handed_out.items():
                woken += self._file.hand_out(place, count)
            pause_s = _PAUSE * (time.thread_time() - began) + _EACH_S * max(0, woken - _FEW)
            self._due = time.monotonic() + min(pause_s, _PAUSE_MAX_S)
            self._file.told[0] = self._noted
        return math.inf
