"""Requests through shared memory: none is missed, torn, taken for another's, or done twice."""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq
from crash_workers import RUN
from support import Workers, in_parallel, kill_writer, wait_until, writer_pid

import inmem
from inmem import wire
from inmem.client.link import Link
from inmem.client.session import Session
from inmem.host import board as board_module
from inmem.host.board import REQUEST_BYTES, Board
from inmem.writer.mailbox import Mailbox
from inmem.writer.slots import Slots

pytestmark = pytest.mark.skipif(not board_module.SUPPORTED, reason="there is no board on this machine")

SEED = int(os.environ.get("INMEM_TEST_SEED", "20261122"))
DEADLINE_S = 20.0


def frame_of(session: bytes, sequence: int = 1, body: bytes = b"body") -> bytes:
    return wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, sequence, sequence) + body


def session_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def board(scratch: Path) -> Any:
    made = Board(scratch / "board", create=True)
    yield made
    made.close()


# --- one lane ---------------------------------------------------------------------------------------


def test_a_lane_holds_one_request_until_it_is_taken(board: Board) -> None:
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
    assert board.clear(slot) and board.posted() == [], "who gets the slot next begins with an empty lane"
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
            self.lane: list[bytes] = []

        def writer_sleeps(self) -> bool:
            return self.asleep.pop(0)

        def offer(self, slot: int, request: bytes) -> bool:
            self.lane.append(request)
            return True

    for asleep, through_lane, sent in (
        ((True,), False, []), ((False, True), True, [b""]), ((False, False), True, []),
    ):
        line, writer = Link.__new__(Link), Writer(*asleep)
        frames: list[bytes] = []
        line._board, line._slot, line.send = writer, 3, frames.append  # type: ignore[assignment]
        assert line.offer(b"frame") is through_lane
        assert frames == sent and writer.lane == [b"frame"] * through_lane and writer.asleep == []


def link_of(db: inmem.Database) -> Link | None:
    """What this thread's last call used."""
    return db.engine.attachment.session()._free[-1]._link


# --- whose request it is ------------------------------------------------------------------------------


def test_only_commits_of_the_owner_come_out_of_a_lane(board: Board) -> None:
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


def test_a_hostile_board_harms_nobody_else(store_path: Path, workers: Workers) -> None:
    """Of a process of the same user that writes noise into its own lane, and into one that nobody has."""
    rng = random.Random(SEED)
    with inmem.open(store_path) as db:
        db.kv.add(RUN, "n")
        pid = writer_pid(store_path)
        line = link_of(db)
        assert line is not None and line._board is not None
        hostile = Board(line._board.path)
        worker = workers.start(adds, 0, store_path, "other")
        try:
            wait_until(lambda: workers.check() or workers.words[0] > 0, "another client works")
            for number in range(3000):
                slot = line._slot if number % 2 else rng.randrange(board_module.SLOTS)
                if slot == line._slot or slot > 64:  # not the other client's: that is its own harm
                    word = slot * board_module._SLOT_WORDS
                    hostile._words[word + board_module._LENGTH_WORD] = rng.choice([0, 5, 40, 4000, 2**40])
                    hostile._words[board_module._POSTED_WORD + slot] = rng.getrandbits(64)
                hostile._halves[board_module._ASLEEP_HALF] = rng.getrandbits(1)
        finally:
            workers.words.stop()
            hostile.close()
        done = worker.result()
        assert db.kv.get(RUN, "other") == done > 0 and writer_pid(store_path) == pid
        assert db.kv.add(RUN, "n") == 2 and db.check().problems == []


def adds(words: Any, index: int, path: str, key: str) -> int:
    """Add 1 until told to stop; how often."""
    with inmem.open(path) as db:
        done = 0
        while not words.stopping():
            done += 1
            assert db.kv.add(RUN, key) == done
            words[index] = done
        return done


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


def test_a_child_leaves_its_parent_s_pipeline_alone(store_path: Path) -> None:
    """It unwinds inside a block of the parent's; what is under way there stays the parent's."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 0)
        with db.pipeline() as pipe:
            for number in range(50):
                pipe.kv.add(f"run-{number}", "n")
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    pipe.__exit__(None, None, None)
                except inmem.ForkError:
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(pid, 0)[1] == 0
            for number in range(50):
                pipe.kv.add(f"run-{number}", "n")
        assert [db.kv.get(f"run-{number}", "n") for number in range(50)] == [2] * 50


# --- both ways into the writer --------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_neither_lanes_nor_socket_keep_the_other_waiting(scratch: Path, board: Board, limit: int) -> None:
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
        by_lane: dict[bytes, int] = dict.fromkeys((b"p%d" % number for number in range(8)), 0)
        groups = 0
        while len(by_socket) < 60:
            for session, place in zip(sessions, places, strict=True):
                board.offer(place, frame_of(session))  # those that were taken post again at once
            group = mailbox.take(limit)
            groups += 1
            assert 0 < len(group) <= limit and groups < 2000
            for peer, frame in group:
                if peer in by_lane:
                    by_lane[peer] += 1
                else:
                    by_socket.append(frame)
        assert by_socket == [b"%d" % number for number in range(60)]
        assert min(by_lane.values()) > 0 and max(by_lane.values()) <= min(by_lane.values()) + limit, by_lane
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


def test_a_board_that_cannot_be_mapped_is_tried_again(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has given the slot by then: a line without it would wait for its answers for ever."""
    take_slot = Session._take_slot
    failures = [MemoryError(), KeyboardInterrupt()]

    def fails(self: Session, line: Link) -> None:
        if failures:
            raise failures.pop()
        take_slot(self, line)

    monkeypatch.setattr(Session, "_take_slot", fails)
    with inmem.open(store_path) as db:
        for kind in (KeyboardInterrupt, MemoryError):
            with pytest.raises(kind):
                db.kv.add(RUN, "n")
        assert failures == [] and db.kv.add(RUN, "n") == 1, "what was not sent is not done"
        line = link_of(db)
        assert line is not None and line._board is not None
        assert db.kv.get(RUN, "n") == 1


def test_commits_use_the_lane_while_the_writer_is_awake(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[bool] = []
    offer = Link.offer
    monkeypatch.setattr(Link, "offer", lambda self, frame: offered.append(offer(self, frame)) or offered[-1])
    with inmem.open(store_path) as db:
        worker = workers.start(adds, 0, store_path, "other")
        wait_until(lambda: workers.check() or workers.words[0] > 0, "another client works")
        wait_until(lambda: db.kv.add(RUN, "n") == len(offered) and sum(offered) >= 100, "commits in the lane")
        small = sum(offered)
        for number in range(100):
            db.kv.put(RUN, "large", bytes([number]) * REQUEST_BYTES)
        assert sum(offered) == small, "what does not fit goes through the socket"
        assert db.kv.get(RUN, "large") == bytes([99]) * REQUEST_BYTES
        print(f"{small} of {len(offered) - 100} small commits through the lane")
        with db.pipeline() as pipe:
            pipe.kv.put("run-0", "first", 0)
            pipe._batches._send()
            unanswered = pipe._batches._session.protocol.unanswered
            alone: list[bool] = []
            monkeypatch.setattr(
                Link, "offer", lambda self, frame: alone.append(len(unanswered) == 1) or offer(self, frame)
            )
            for number in range(100):
                pipe.kv.put(f"run-{number % 7}", f"k{number}", number)
        assert all(alone), "with others on their way a commit stays behind them"
        assert sum(db.kv.count(f"run-{number}") for number in range(7)) == 101
        workers.words.stop()
        assert worker.result() == db.kv.get(RUN, "other")


def test_a_request_that_waits_in_the_lane_is_done_once(store_path: Path, workers: Workers) -> None:
    """The writer stops with a request in the lane; it is sent again through the socket, and overtakes it."""
    with inmem.open(store_path) as db:
        worker = workers.start(adds, 0, store_path, "other")
        wait_until(lambda: workers.check() or workers.words[0] > 0, "another client works")
        db.kv.put(RUN, "connected", True)
        pid = writer_pid(store_path)
        caught = 0
        for number in range(1, 200):
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(inmem.CommitUnknownError) as unknown:  # noqa: SIM117
                    with db.transaction(RUN, timeout_s=0.02) as txn:
                        txn.kv.add("n")
                line = link_of(db)
                assert line is not None and line._board is not None
                slot = line._slot
                taken = line._board._words[slot * board_module._SLOT_WORDS + board_module._TAKEN_WORD]
                waits = line._board._words[board_module._POSTED_WORD + slot] != taken
                with pytest.raises(inmem.CommitUnknownError):  # sent again: now it is in both
                    unknown.value.resend(timeout_s=0.02)
                caught += waits
            finally:
                os.kill(pid, signal.SIGCONT)
            unknown.value.resend(timeout_s=DEADLINE_S)
            assert db.kv.get(RUN, "n") == number
            if caught >= 5:
                break
        workers.words.stop()
        assert worker.result() == db.kv.get(RUN, "other")
        assert caught >= 5, "the writer was never awake when it was stopped"
        kill_writer(store_path)
        assert db.kv.get(RUN, "n") == number and db.kv.add(RUN, "n") == number + 1
        assert db.check().problems == []


def test_threads_and_processes_have_lanes_of_their_own(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        results = in_parallel(workers, threaded_adds, 3, store_path)
        assert results == [[200] * 4] * 3
        assert db.kv.get(RUN, "shared") == 3 * 4 * 200


def threaded_adds(words: Any, index: int, path: str) -> list[int]:
    """Add in four threads, to a key of their own and a shared one; what the own ones are in the end."""
    with inmem.open(path) as db:
        last = [0] * 4

        def add(thread: int) -> None:
            for _ in range(200):
                db.kv.add(RUN, "shared")
                last[thread] = db.kv.add(RUN, f"own-{index}-{thread}")

        threads = [threading.Thread(target=add, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return last
