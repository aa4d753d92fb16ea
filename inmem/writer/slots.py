"""Which session has which slot of the board.

Invariant: a slot belongs to one session until that ends. A request from a
slot's request buffer is passed on only if it is a commit of that session.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from inmem.host.board import SLOTS, Board
from inmem.wire import COMMIT, COMMIT_HEADER
from inmem.writer.watch import is_running


class _Owner(NamedTuple):
    slot: int
    session: bytes
    pid: int
    peer: bytes


_NOBODY: Final = _Owner(-1, b"", 0, b"")


class Slots:
    """The slots of one board; without a board there are none."""

    def __init__(self, board: Board | None) -> None:
        self._board = board
        self._free = list(range(SLOTS - 1, -1, -1)) if board is not None else []
        self._of: dict[bytes, _Owner] = {}  # by session
        self._at: dict[int, _Owner] = {}  # by slot
        self._first = 0  # the slot that the next bounded `requests` begins with

    def get(self, session: bytes) -> int:
        """The slot of a session, -1 without one."""
        return self._of.get(session, _NOBODY).slot

    def give(self, session: bytes, pid: int, peer: bytes) -> int:
        """An empty slot for a session that says hello; -1 if there is none, or no memory for it.

        A second hello on the same connection keeps the slot and its content.
        """
        owner = self._of.get(session, _NOBODY)
        if owner.peer == peer and owner is not _NOBODY:
            return owner.slot
        self.take(session)
        if self._board is None:
            return -1
        if not self._free:
            pids = {owner.pid for owner in self._of.values()}
            self.take_all({pid for pid in pids if not is_running(pid)})
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
        """Take the slots of dead processes back; returns their sessions."""
        sessions = [session for session, owner in self._of.items() if owner.pid in pids]
        for session in sessions:
            self.take(session)
        return sessions

    def requests(self, limit: int) -> list[tuple[bytes, bytes]]:
        """The requests in request buffers, at most `limit` of (peer, frame).

        Where more wait, the next call begins with those that this one left.
        """
        board = self._board
        if board is None or not (posted := board.posted()):
            return []
        if len(posted) > limit:
            first = self._first
            posted = [slot for slot in posted if slot >= first] + [slot for slot in posted if slot < first]
        found: list[tuple[bytes, bytes]] = []
        for slot in posted:
            if len(found) == limit:
                self._first = slot
                break
            frame, owner = board.take(slot), self._at.get(slot, _NOBODY)
            if len(frame) < COMMIT_HEADER.size or frame[0] != COMMIT:
                continue  # no client of ours writes this, so there is nobody to tell
            # The answer to a session that has lost the slot would go to the one that has it now.
            if frame.startswith(owner.session, 2) and owner is not _NOBODY:
                found.append((owner.peer, frame))
        return found

    @property
    def has_bell(self) -> bool:
        """Whether clients can wake who sleeps here: without a board they cannot."""
        return self._board is not None

    def sleep(self, socket: int, timeout_s: float) -> bool:
        """Sleep until a client rings, the socket has something or time is over; whether the socket has."""
        assert self._board is not None
        return self._board.sleep_until_rung(socket, timeout_s)
