"""Slots of the board by themselves: no request, no answer and no sleep is missed, torn or taken twice."""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from pathlib import Path

import pytest
from boards import DEADLINE_S, SEED, frame_of, session_of
from support import Words

from inmem import wire
from inmem.client.link import Link
from inmem.host import board as board_module
from inmem.host import futex
from inmem.host.board import REQUEST_BYTES, Board
from inmem.writer.slots import Slots

pytestmark = pytest.mark.skipif(not futex.SUPPORTED, reason="there is no board on this machine")


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
    other, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            taken = last = 0
            while not last:
                for _ in range(rng.randrange(4)):
                    os.sched_yield()
                if not writer.posted():
                    began = time.monotonic()
                    writer.sleep_until_rung(other, DEADLINE_S)
                    if time.monotonic() - began >= DEADLINE_S:
                        os._exit(2)  # slept through
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
                client.ring()
            if last:
                break
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        client.close()
        writer.close()
        os.close(other)
        os.close(ours)
    print(f"seed {SEED}: {number} requests, the writer was woken for {rung}")
    assert rung > 0


def test_a_client_wakes_a_writer_that_lay_down_meanwhile() -> None:
    """It rings where there is a bell. Where there is none, the socket wakes it."""

    class Writer:
        def __init__(self, asleep: list[bool], *, bell: bool) -> None:
            self.asleep = asleep
            self.has_bell = bell
            self.rung = 0
            self.offered: list[bytes] = []

        def writer_sleeps(self) -> bool:
            return self.asleep.pop(0)

        def ring(self) -> None:
            self.rung += 1

        def offer(self, slot: int, request: bytes) -> bool:
            self.offered.append(request)
            return True

    for writer, through_board, rung, sent in (
        (Writer([True], bell=False), False, 0, []),
        (Writer([False, True], bell=False), True, 0, [b""]),
        (Writer([False, False], bell=False), True, 0, []),
        (Writer([True], bell=True), True, 1, []),
        (Writer([False], bell=True), True, 0, []),
    ):
        line = Link.__new__(Link)
        frames: list[bytes] = []
        line._board, line._slot, line.send = writer, 3, frames.append  # type: ignore[assignment]
        assert line.offer(b"frame") is through_board
        assert frames == sent and writer.offered == [b"frame"] * through_board and writer.asleep == []
        assert writer.rung == rung


def test_a_bell_wakes_who_sleeps_until_it_is_rung(scratch: Path) -> None:
    writer = Board(scratch / "some.answers", create=True)
    client = Board(scratch / "some.answers")
    other, mine = os.pipe()
    try:
        for rung in (1, 100_000):  # more often than a FIFO holds
            for _ in range(rung):
                client.ring()
            began = time.monotonic()
            assert not writer.sleep_until_rung(other, 60.0)
            assert time.monotonic() - began < 30.0
            writer.sleep_until_rung(other, 0.0)  # nothing is left of it: this returns at once
            began = time.monotonic()
            writer.sleep_until_rung(other, 0.02)
            assert time.monotonic() - began >= 0.02
        os.write(mine, b"1")
        began = time.monotonic()
        assert writer.sleep_until_rung(other, 60.0), "the socket wakes it too"
        assert time.monotonic() - began < 30.0
        writer.remove()
        writer.close()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as programs set it that write into pipes
        try:
            client.ring()  # there is nobody to hear it, and nothing happens
        finally:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        assert os.listdir(scratch) == []
    finally:
        client.close()
        os.close(other)
        os.close(mine)


def test_a_board_of_the_release_before_has_no_bell(scratch: Path) -> None:
    writer = Board(scratch / "some.answers", create=True)
    (scratch / "some.bell").unlink()
    client = Board(scratch / "some.answers")
    assert not client.has_bell
    client.close()
    writer.close()


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


@pytest.mark.skipif(not futex.SUPPORTED, reason="there is no board on this machine")
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
