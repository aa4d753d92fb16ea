"""Both ways into the writer, the board and the socket: neither keeps the other waiting."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import zmq
from boards import DEADLINE_S, frame_of, session_of
from support import wait_until

from inmem.host import futex
from inmem.host.board import Board
from inmem.writer.mailbox import Mailbox
from inmem.writer.slots import Slots

pytestmark = pytest.mark.skipif(not futex.SUPPORTED, reason="there is no board on this machine")


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_neither_board_nor_socket_keeps_the_other_waiting(scratch: Path, board: Board, limit: int) -> None:
    """With more in both than a group may have, both get on."""
    slots = Slots(board)
    sessions = [session_of(number) for number in range(8)]
    places = [slots.give(session, os.getpid(), b"p%d" % number) for number, session in enumerate(sessions)]
    mailbox = Mailbox(scratch / "socket", slots)
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(mailbox.endpoint)
        for number in range(60):
            dealer.send(b"%d" % number)
        by_socket: list[bytes] = []
        by_board: dict[bytes, int] = dict.fromkeys((b"p%d" % number for number in range(8)), 0)
        groups = 0
        while len(by_socket) < 60:
            for session, place in zip(sessions, places, strict=True):
                board.offer(place, frame_of(session))  # those that were taken post again at once
            group = mailbox.take(limit)
            groups += 1
            assert 0 < len(group) <= limit and groups < 2000
            for peer, frame in group:
                if peer in by_board:
                    by_board[peer] += 1
                else:
                    by_socket.append(frame)
        assert by_socket == [b"%d" % number for number in range(60)]
        least, most = min(by_board.values()), max(by_board.values())
        assert least > 0 and most <= least + limit, by_board
    finally:
        context.destroy(0)
        mailbox.close()


@pytest.mark.parametrize(("active", "first", "naps"), [
    (64, 1, 1), (64, 7, 1), (21, 1, 1), (64, 8, 0), (20, 1, 0), (0, 1, 0),
])
def test_a_crowd_has_the_writer_s_core_while_a_group_is_small(
    scratch: Path, board: Board, monkeypatch: pytest.MonkeyPatch, active: int, first: int, naps: int
) -> None:
    """It naps once over a few commits of many sessions, and takes what came meanwhile."""
    slots = Slots(board)
    sessions = [session_of(number) for number in range(12)]
    places = [slots.give(session, os.getpid(), session) for session in sessions]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        for session, place in list(zip(sessions, places, strict=True))[first:]:
            assert board.offer(place, frame_of(session))

    mailbox = Mailbox(scratch / "socket", slots)
    monkeypatch.setattr("inmem.writer.mailbox.sleep", sleep)
    try:
        for session, place in list(zip(sessions, places, strict=True))[:first]:
            assert board.offer(place, frame_of(session))
        group = mailbox.take(100, active)
        assert len(slept) == naps and sum(slept) < 0.001
        assert sorted(peer for peer, _ in group) == (sessions if naps else sessions[:first])
    finally:
        mailbox.close()


def test_who_waits_alone_is_not_kept_waiting(
    scratch: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that slept until a commit came has cores to spare, however many sessions there were."""
    session = session_of(1)
    mailbox = Mailbox(scratch / "socket", Slots(board))
    context = zmq.Context()
    slept: list[float] = []
    monkeypatch.setattr("inmem.writer.mailbox.sleep", slept.append)
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(mailbox.endpoint)
        client = Board(scratch / "board")
        sending = threading.Thread(
            target=lambda: wait_until(client.writer_sleeps, "it sleeps") and dealer.send(frame_of(session))
        )
        sending.start()
        group = mailbox.take(100, 64) or mailbox.take(100, 64)
        sending.join(DEADLINE_S)
        client.close()
        assert [frame for _, frame in group] == [frame_of(session)] and not slept
    finally:
        context.destroy(0)
        mailbox.close()


@pytest.mark.parametrize("junk", [[b""], [b"part", b"another"]], ids=["empty", "two parts"])
def test_each_junk_frame_ends_a_group(scratch: Path, junk: list[bytes]) -> None:
    """Or a drip of them would keep the writer from its timers: each begins its wait anew."""
    mailbox = Mailbox(scratch / "socket", Slots(None))
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(mailbox.endpoint)
        for _ in range(3):
            dealer.send_multipart(junk)
        dealer.send(b"whole")
        groups = [mailbox.take(100)]
        while not groups[-1]:
            assert len(groups) < 50, "it does not come"
            groups.append(mailbox.take(100))
        assert [frame for _, frame in groups[-1]] == [b"whole"]
        assert len(groups) >= 4, "a group for each that is no message"
    finally:
        context.destroy(0)
        mailbox.close()
