"""The endpoint of one epoch: the socket and the board that clients reach the writer through.

Invariant: a client that knows the epoch reaches the socket and the board of
that epoch or none. If one of their files is removed, both are replaced under
the next epoch, as if another writer had started.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inmem.host import futex
from inmem.host.board import RESULT_BYTES, RING, Board
from inmem.host.control import Control
from inmem.host.directory import EPOCH_FILES, runtime_directory
from inmem.wire import ANSWERS, FAILED, answer, together
from inmem.writer.committer import Answer, Request
from inmem.writer.journal import Journal
from inmem.writer.mailbox import Mailbox
from inmem.writer.slots import Slots
from inmem.writer.watch import Watch

journal = Journal()


class Endpoint:
    """Where requests arrive and answers leave."""

    def __init__(self, stem: str, epoch: int) -> None:
        """`stem` begins the names of all files of this database in the runtime directory."""
        self._stem = stem
        self._open(epoch)

    def _open(self, epoch: int) -> None:
        self.epoch = epoch
        runtime = runtime_directory()
        for ending in EPOCH_FILES:
            for stale in runtime.glob(f"{self._stem}*.{ending}"):
                stale.unlink(missing_ok=True)
        self.board = make_board(runtime / f"{self._stem}{epoch}.answers")
        self.slots = Slots(self.board)
        self.mailbox = Mailbox(runtime / f"{self._stem}{epoch}.sock", self.slots)
        self._files = Watch(part.path for part in (self.mailbox, self.board) if part is not None)

    @property
    def address(self) -> str:
        """The address of the socket."""
        return self.mailbox.endpoint

    @property
    def board_path(self) -> str:
        """Where clients find the board; empty if there is none."""
        return str(self.board.path) if self.board is not None else ""

    def missing(self) -> list[Path]:
        """Which of the two files was removed or replaced."""
        return self._files.missing()

    def reopen(self, control: Control) -> None:
        """Replace socket and board under the next epoch, and publish them in the control file."""
        mailbox, board = self.mailbox, self.board
        self._open(self.epoch + 1)
        control.update(endpoint=self.address, epoch=self.epoch)
        mailbox.close()
        if board is not None:
            board.close()

    def deliver(
        self, requests: Sequence[Request], peers: Sequence[bytes], answers: Sequence[Answer]
    ) -> None:
        """Send the answers of a group: small ones on the board, others through the socket; then wake."""
        slots, board, mailbox = self.slots, self.board, self.mailbox
        posted = []
        mailed: dict[bytes, list[bytes]] | None = None  # for those without a slot, by peer
        for request, peer, (status, sequence, version, result) in zip(requests, peers, answers, strict=True):
            slot = slots.get(request.session)
            if slot < 0 or board is None:
                if mailed is None:
                    mailed = {}
                mailed.setdefault(peer, []).append(answer(status, sequence, version, result))
                continue
            posted.append(slot)
            if (
                status <= FAILED and len(result) <= RESULT_BYTES
                and sequence - request.answered_below < RING
            ):
                board.post(slot, sequence, status, version, result)
            else:
                mailbox.answer(peer, answer(status, sequence, version, result))
                board.announce(slot)
        if mailed is not None:
            for peer, frames in mailed.items():
                mailbox.answer(peer, frames[0] if len(frames) == 1 else together(ANSWERS, frames))
        if board is not None:
            board.wake(posted)

    def close(self) -> None:
        """Close both and remove their files."""
        self.mailbox.close()
        if self.board is not None:
            self.board.remove()
            self.board.close()


def make_board(path: Path) -> Board | None:
    """A new board; None where the processor or the memory does not allow one."""
    if not futex.SUPPORTED:
        return None
    try:
        return Board(path, create=True)
    except OSError as error:
        journal.warning("no_board", error=error, problem="all requests and answers go through the socket")
        return None
