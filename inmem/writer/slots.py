"""Which session has which slot of the board; the writer's book-keeping.

Invariant: a slot is one session's until that has gone, and what comes out of
its lane is a commit of that session, or dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from inmem.host.board import SLOTS, SUPPORTED, Board
from inmem.wire import COMMIT, COMMIT_HEADER
from inmem.writer.journal import Journal

log = Journal()


class _Owner(NamedTuple):
    slot: int
    session: bytes
    pid: int
    peer: bytes


_NOBODY: Final = _Owner(-1, b"", 0, b"")


def make_board(path: Path) -> Board | None:
    """A new board; None where there cannot be one, or there is no memory for it."""
    if not SUPPORTED:
        return None
    try:
        return Board(path, create=True)
    except OSError as error:
        log.warning("no_board", error=error, problem="all requests and answers go through the socket")
        return None


class Slots:
    """The slots of one board, or none at all without a board."""

    def __init__(self, board: Board | None) -> None:
        self._board = board
        self._free = list(range(SLOTS - 1, -1, -1)) if board is not None else []
        self._of: dict[bytes, _Owner] = {}
        self._at: dict[int, _Owner] = {}
        self._from = 0  # the slot from which on requests are taken

    def get(self, session: bytes) -> int:
        """The slot of a session, -1 without one."""
        return self._of.get(session, _NOBODY).slot

    def give(self, session: bytes, pid: int, peer: bytes) -> int:
        """An empty slot for a session that says hello; -1 if none is left, or no memory for it.

        Who says it twice on one connection keeps the slot, and what may be in it already.
        """
        owner = self._of.get(session, _NOBODY)
        if owner.peer == peer and owner is not _NOBODY:
            return owner.slot
        self.take(session)
        if self._board is None:
            return -1
        if not self._free:
            pids = {owner.pid for owner in self._of.values()}
            self.take_all({pid for pid in pids if not Path(f"/proc/{pid}").exists()})
        if not self._free:
            return -1
        slot = self._free.pop()
        if not self._board.clear(slot):
            self._free.append(slot)
            return -1
        self._of[session] = self._at[slot] = _Owner(slot, session, pid, peer)
        return slot

    def take(self, session: bytes) -> None:
        """Take the slot of a session back."""
        owner = self._of.pop(session, _NOBODY)
        if owner is not _NOBODY:
            del self._at[owner.slot]
            self._free.append(owner.slot)

    def take_all(self, pids: set[int]) -> list[bytes]:
        """Take the slots of dead processes back; their sessions."""
        sessions = [session for session, owner in self._of.items() if owner.pid in pids]
        for session in sessions:
            self.take(session)
        return sessions

    # --- lanes ----------------------------------------------------------------------

    def requests(self, limit: int) -> list[tuple[bytes, bytes]]:
        """What was put into the lanes, at most `limit` of (peer, frame); who comes first changes."""
        board = self._board
        if board is None or not (posted := board.posted()):
            return []
        if len(posted) > limit:
            posted = [slot for slot in posted if slot >= self._from] + [s for s in posted if s < self._from]
        found: list[tuple[bytes, bytes]] = []
        for slot in posted:
            if len(found) == limit:
                self._from = slot
                break
            frame, owner = board.take(slot), self._at.get(slot, _NOBODY)
            if len(frame) < COMMIT_HEADER.size or frame[0] != COMMIT:
                continue  # no client of ours sends this: there is nobody to tell
            # Of a session that has lost the slot the answer would go to the one that has it now.
            if frame.startswith(owner.session, 2) and owner is not _NOBODY:
                found.append((owner.peer, frame))
        return found

    def say_asleep(self, asleep: bool) -> bool:
        """Tell clients whether anybody looks at the lanes; False if there are none to look at."""
        if self._board is None:
            return False
        self._board.say_asleep(asleep)
        return True
