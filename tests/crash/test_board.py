"""Slots of the board by themselves: no request, no answer and no sleep is missed, torn or taken twice."""

from __future__ import annotations

import os
import random
import select
import struct
import time
from pathlib import Path

import pytest
from boards import DEADLINE_S, SEED, frame_of, session_of
from support import Words

from inmem import wire
from inmem.client.link import Link
from inmem.host import board as board_module
from inmem.host.board import REQUEST_BYTES, Board
from inmem.writer.slots import Slots

pytestmark = pytest.mark.skipif(not board_module.SUPPORTED, reason="there is no board on this machine")


def test_a_slot_holds_one_request_until_it_is_taken(board: Board) -> None:
    slot = 5
    assert board.clear(slot) and board.posted() == []
    for size in (0, 1, 34, 1200, REQUEST_BYTES):
        request = os.urandom(size)
        assert board.offer(slot, request)
        assert not board.offer(slot, b"another"), "the first is not taken yet"
        assert board.posted() == [slot]
        assert board.take(slot) == request and board.posted() == []
    assert not board.offer(slot, bytes(REQUEST_BYTES + 1)) and board.posted() == []
    assert board.offer(slot, b"of the one before")
    assert board.clear(slot) and board.posted() == [], "who gets the slot next begins with an empty one"
    assert board.offer(slot, b"own") and board.take(slot) == b"own"


def test_counters_wrap_whatever_they_are(board: Board) -> None:
    """Whoever can write them can write any number; neither side may fail over it."""
    slot = 1
    assert board.clear(slot)
    board._words[slot * board_module._SLOT_WORDS + board_module._MAIL_WORD] = 2**64 - 1
    board.announce(slot)
    assert board.mail(slot) == 0
    board._words[board_module._POSTED_WORD + slot] = 2**64 - 1
    assert board.posted() == [slot] and board.take(slot) == b""
    assert board.offer(slot, b"next") and board.posted() == [slot] and board.take(slot) == b"next"


def test_posted_finds_all_that_posted_and_only_those(board: Board) -> None:
    rng = random.Random(SEED)
    slots = rng.sample(range(board_module.SLOTS), 400)
    for slot in slots:
        assert board.clear(slot)
    for _ in range(20):
        some = sorted(rng.sample(slots, rng.randrange(1, 60)))
        for slot in some:
            assert board.offer(slot, slot.to_bytes(4, "big"))
        assert board.posted() == some
        half = some[::2]
        assert [board.take(slot) for slot in half] == [slot.to_bytes(4, "big") for slot in half]
        assert board.posted() == [slot for slot in some if slot not in half]
        for slot in board.posted():
            board.take(slot)


def test_a_board_without_memory_is_none(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Board(scratch / "board", create=True)
    assert not (scratch / "board").exists()


def test_no_sleep_of_the_writer_is_missed(scratch: Path) -> None:
    """The writer sleeps whenever it has nothing, without a timer: every request finds it, or wakes it."""
    count, slot = 20_000, 2
    enough = time.monotonic() + 20.0  # where others press for the cores, each yield takes milliseconds
    rng = random.Random(SEED)
    writer = Board(scratch / "board", create=True)
    assert writer.clear(slot)
    bell_out, bell_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            taken = last = 0
            while not last:
                for _ in range(rng.randrange(4)):
                    os.sched_yield()
                if not writer.posted():
                    writer.say_asleep(True)
                    if not writer.posted() and not select.select([bell_out], [], [], DEADLINE_S)[0]:
                        os._exit(2)  # slept through
                    writer.say_asleep(False)
                    while select.select([bell_out], [], [], 0)[0]:
                        os.read(bell_out, 4096)
                for found in writer.posted():
                    taken += 1
                    request = writer.take(found)
                    last = request[-1]
                    assert request == struct.pack("Q", taken) * 8 + bytes([last])
            status = 0
        finally:
            os._exit(status)
    client = Board(scratch / "board")
    rung = 0
    try:
        for number in range(1, count + 1):
            for _ in range(rng.randrange(4)):
                os.sched_yield()
            last = number == count or time.monotonic() > enough
            while not client.offer(slot, struct.pack("Q", number) * 8 + bytes([last])):
                # Until the one before was taken; a writer that has ended will never do so.
                assert os.waitpid(pid, os.WNOHANG) == (0, 0)
                os.sched_yield()
            if client.writer_sleeps():
                rung += 1
                os.write(bell_in, b"\0")
            if last:
                break
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        client.close()
        writer.close()
        os.close(bell_out)
        os.close(bell_in)
    print(f"seed {SEED}: {number} requests, the writer was woken for {rung}")
    assert rung > 0


def test_a_client_wakes_a_writer_that_lay_down_meanwhile() -> None:
    """Asleep before, it gets the frame through the socket; asleep since, an empty one; awake, none."""

    class Writer:
        def __init__(self, *asleep: bool) -> None:
            self.asleep = list(asleep)
            self.offered: list[bytes] = []

        def writer_sleeps(self) -> bool:
            return self.asleep.pop(0)

        def offer(self, slot: int, request: bytes) -> bool:
            self.offered.append(request)
            return True

    for asleep, through_board, sent in (
        ((True,), False, []), ((False, True), True, [b""]), ((False, False), True, []),
    ):
        line, writer = Link.__new__(Link), Writer(*asleep)
        frames: list[bytes] = []
        line._board, line._slot, line.send = writer, 3, frames.append  # type: ignore[assignment]
        assert line.offer(b"frame") is through_board
        assert frames == sent and writer.offered == [b"frame"] * through_board and writer.asleep == []


def test_only_commits_of_the_owner_come_out_of_a_slot(board: Board) -> None:
    """A client that writes into a slot it has lost, or anything else into its own, is not heard."""
    slots = Slots(board)
    mine, other = session_of(1), session_of(2)
    slot = slots.give(mine, os.getpid(), b"peer")
    assert slot >= 0 and slots.get(mine) == slot
    good = frame_of(mine)
    wrong = [
        b"", b"\2", good[: wire.COMMIT_HEADER.size - 1], frame_of(other),
        wire.GOODBYE_HEADER.pack(wire.GOODBYE, mine), wire.hello(protocol=1), bytes(100),
        os.urandom(REQUEST_BYTES),
    ]
    for request in wrong:
        assert board.offer(slot, request)
        assert slots.requests(10) == [] and board.posted() == []
    for length in (REQUEST_BYTES + 1, 2**63, 2**64 - 1):
        assert board.offer(slot, good)
        board._words[slot * board_module._SLOT_WORDS + board_module._LENGTH_WORD] = length
        assert slots.requests(10) == [] and board.posted() == []
    assert board.offer(slot, good)
    assert slots.requests(10) == [(b"peer", good)]
    slots.take(mine)
    assert board.offer(slot, good)
    assert slots.requests(10) == [], "it has said goodbye"
    assert slots.give(other, os.getpid(), b"other peer") == slot
    assert board.offer(slot, good)
    assert slots.requests(10) == [], "the answer would go to the other"
    assert board.offer(slot, frame_of(other))
    assert slots.requests(10) == [(b"other peer", frame_of(other))]


def test_who_says_hello_twice_keeps_the_slot_and_what_is_in_it(board: Board) -> None:
    """A greeting is repeated when a writer was slow; the second one comes when the first was answered."""
    slots = Slots(board)
    session = session_of(7)
    slot = slots.give(session, os.getpid(), b"peer")
    assert board.offer(slot, frame_of(session))
    board.announce(slot)
    assert slots.give(session, os.getpid(), b"peer") == slot and board.mail(slot) == 1
    assert slots.requests(10) == [(b"peer", frame_of(session))]
    # Another connection: it begins with an empty slot, and what the old one left is not heard.
    assert board.offer(slot, frame_of(session))
    again = slots.give(session, os.getpid(), b"another")
    assert again >= 0 and slots.requests(10) == [] and board.mail(again) == 0


def test_what_is_dropped_takes_nobody_s_place(board: Board) -> None:
    slots = Slots(board)
    places = [slots.give(session_of(number), os.getpid(), b"p%d" % number) for number in range(6)]
    for number, place in enumerate(places):
        assert board.offer(place, b"noise" if number < 4 else frame_of(session_of(number)))
    found = slots.requests(1) + slots.requests(1)
    assert found == [(b"p%d" % number, frame_of(session_of(number))) for number in (4, 5)]
    assert board.posted() == []


@pytest.mark.skipif(not board_module.SUPPORTED, reason="there is no board on this machine")
def test_no_answer_on_the_board_is_missed(scratch: Path) -> None:
    """Two processes, an answer to each question, no look beyond those around a sleep: all come, whole."""
    count, slot = 20_000, 3
    rng = random.Random(SEED)
    writer = Board(scratch / "board", create=True)
    asked = Words(scratch / "asked")
    assert writer.clear(slot)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for sequence in range(1, count + 1):
                while asked[0] < sequence:
                    os.sched_yield()
                writer.post(slot, sequence, sequence % 3, sequence * 7, sequence.to_bytes(4, "big") * 8)
                writer.wake([slot])
            status = 0
        finally:
            os._exit(status)
    client = Board(scratch / "board")
    late = 0
    try:
        for sequence in range(1, count + 1):
            asked[0] = sequence
            for _ in range(rng.randrange(4)):
                os.sched_yield()
            slept = 0
            while not client.look(slot, sequence, 0):
                client.sleep(slot, sequence, 0, 1000)
                slept += 1
                assert slept < 30_000, "the answer does not come"
            late += slept > 1
            expected = (sequence % 3, sequence * 7, sequence.to_bytes(4, "big") * 8)
            assert client.fetch(slot, sequence) == expected
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        client.close()
        writer.close()
    print(f"{count} answers, {late} came after more than one sleep")
