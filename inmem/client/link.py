"""The link of a session to one incarnation of the writer: its socket, and its slot of the board.

It moves frames and answers and sees the writer's end. It knows no commits:
which frame is sent when is the business of `inmem.client.protocol`.
"""

from __future__ import annotations

import os
import time
from typing import Final

from inmem.client.zmtp import ZmtpConnection
from inmem.config import MAX_MESSAGE_BYTES
from inmem.host.board import ANSWERED, Board
from inmem.host.control import ACTIVE, Control, ControlState
from inmem.host.spinning import Spinning
from inmem.wire import ANSWER

SLICE_MS: Final = 10  # how long to block before looking whether the writer lives
_LOOKS: Final = 200  # before sleeping, about 100 µs: a wake-up costs more than a short wait
_LOOKS_IN_CROWD: Final = 60  # where other sessions commit too: long looking is stolen from them
_CROWD: Final = len(os.sched_getaffinity(0))  # of sessions; in a larger one each look is stolen
_SLEEP_US: Final = 1000  # first sleep; doubles, so that a missed wake is cheap and a long wait too
_SLEEP_MAX_US: Final = SLICE_MS * 1000


class Link:
    """A connection to one incarnation of the writer. Not to be shared between threads."""

    def __init__(self, state: ControlState, control: Control) -> None:
        self.epoch = state.epoch
        self._control = control
        self._board: Board | None = None
        self._slot = -1
        self._spinning = Spinning()
        self._mail = 0  # frames that the board announced, and that have come or are late
        self._late = 0  # those that had not come when they were looked for: dropped, or still on their way
        self._connection = ZmtpConnection(state.endpoint, MAX_MESSAGE_BYTES)
        self.send = self._connection.send

    def connect(self, deadline: float) -> bool | None:
        """Shake hands; False if no writer is there, None if it did not answer before the deadline."""
        return self._connection.connect(deadline)

    def use_board(self, board: Board, slot: int) -> None:
        """From now on requests and answers go through a slot of a board where they fit."""
        self._board = board
        self._slot = slot
        self._mail = board.mail(slot)

    def offer(self, frame: bytes) -> bool:
        """Send a frame through the slot; False if it must go through the socket.

        It must while the writer sleeps and there is no bell: the socket wakes it.
        """
        board = self._board
        if board is None or not (board.has_bell or not board.writer_sleeps()):
            return False
        if not board.offer(self._slot, frame):
            return False
        if board.writer_sleeps():  # it may lie down at this moment, and may not have seen the request
            if board.has_bell:
                board.ring()
            else:
                self.send(b"")
        return True

    def wait(self, sequence: int, deadline: float) -> tuple[int, int, bytes] | bytes | None:
        """The answer to a commit, or a frame that came instead; None after a slice without either.

        A slice ends soon after the deadline (of `time.monotonic`): it is looked at after each sleep.

        It looks for a while before it sleeps, and for a shorter one if others commit too: see `spinning`.
        """
        board = self._board
        if self._connection.is_sending:
            self._connection.pump(_slice_ms(deadline))
            return self.receive(0)
        if board is None:
            return self.receive(_slice_ms(deadline))
        if self._late and (frame := self.receive(0)) is not None:
            return frame
        slot, mail = self._slot, self._mail
        pause_us = _SLEEP_US
        active = self._control.words[ACTIVE]  # sessions that commit now
        looks = _LOOKS if active <= 1 else _LOOKS_IN_CROWD if active <= _CROWD else 0
        while not (found := board.look_for(slot, sequence, mail, looks, self._spinning)):
            if pause_us > _SLEEP_US and (pause_us > _SLEEP_MAX_US or time.monotonic() >= deadline):
                return None
            board.sleep(slot, sequence, mail, pause_us)
            looks = 0
            pause_us *= 2
        if found == ANSWERED:
            return board.fetch(slot, sequence)
        announced = board.mail(slot)
        frame = self.receive(_slice_ms(deadline))
        if frame is None:  # not waited for again: the writer drops what is not read for long
            self._late += max(0, announced - self._mail)
            self._mail = announced
        return frame

    def look(self, sequence: int) -> tuple[int, int, bytes] | None:
        """An answer that is on the board already."""
        board, slot = self._board, self._slot
        return board.fetch(slot, sequence) if board is not None and board.look(slot, sequence, 0) else None

    def receive(self, timeout_ms: float = SLICE_MS) -> bytes | None:
        """The next frame of the socket; None if none comes in time."""
        frame = self._connection.receive(timeout_ms)
        if frame is not None and frame[0] == ANSWER:  # others are not announced
            if self._late:
                self._late -= 1
            else:
                self._mail += 1
        return frame

    @property
    def is_sending(self) -> bool:
        """Whether a frame is on its way out."""
        return self._connection.is_sending

    def has_ended(self) -> bool:
        """Whether the connection has ended. The kernel ends it with the writer's process."""
        self._connection.pump(0)
        return self._connection.ended

    def close(self) -> None:
        """Close the socket; what it has taken still arrives."""
        self._connection.close()


def _slice_ms(deadline: float) -> float:
    """How long to block at once."""
    return max(0.0, min(SLICE_MS, (deadline - time.monotonic()) * 1000))
