"""Commits through the board of a living writer: none is lost, doubled or taken for another's."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from boards import DEADLINE_S, SEED, adds, link_of
from crash_workers import RUN
from support import Workers, in_parallel, kill_writer, wait_until, writer_pid

import inmem
from inmem import wire
from inmem.client.link import Link
from inmem.client.session import Session
from inmem.host import board as board_module
from inmem.host import futex
from inmem.host.board import REQUEST_BYTES, Board

pytestmark = pytest.mark.skipif(not futex.SUPPORTED, reason="there is no board on this machine")


def test_a_hostile_board_harms_nobody_else(store_path: Path, workers: Workers) -> None:
    """Of a process of the same user that writes noise into its own slot, and into one that nobody has."""
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


def test_commits_use_the_board_while_the_writer_is_awake(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[bool] = []
    offer = Link.offer
    monkeypatch.setattr(Link, "offer", lambda self, frame: offered.append(offer(self, frame)) or offered[-1])
    with inmem.open(store_path) as db:
        worker = workers.start(adds, 0, store_path, "other")
        wait_until(lambda: workers.check() or workers.words[0] > 0, "another client works")
        wait_until(lambda: db.kv.add(RUN, "n") == len(offered) and sum(offered) >= 100, "through the board")
        small = sum(offered)
        for number in range(100):
            db.kv.put(RUN, "large", bytes([number]) * REQUEST_BYTES)
        assert sum(offered) == small, "what does not fit goes through the socket"
        assert db.kv.get(RUN, "large") == bytes([99]) * REQUEST_BYTES
        print(f"{small} of {len(offered) - 100} small commits through the board")
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


def test_a_request_that_waits_on_the_board_is_done_once(store_path: Path, workers: Workers) -> None:
    """The writer stops with a request on the board; it is sent again through the socket, and overtakes it."""
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


def test_threads_and_processes_have_slots_of_their_own(store_path: Path, workers: Workers) -> None:
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


def test_answers_that_come_late_do_not_stay_behind(store_path: Path) -> None:
    """The board announces frames before the socket has them: once they are there, all are taken."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "first", 0)
        link = link_of(db)
        assert link is not None
        board, slot = link._board, link._slot
        assert board is not None

        class LateSocket:
            is_sending = False
            frames: ClassVar[list[bytes]] = []

            def receive(self, timeout_ms: float) -> bytes | None:
                return self.frames.pop(0) if self.frames else None

        late = LateSocket()
        connection, link._connection = link._connection, late  # type: ignore[assignment]
        frame = wire.ANSWER_HEADER.pack(wire.ANSWER, 0, 1, 1)
        try:
            for _ in range(200):
                board.announce(slot)
            assert link.wait(1000, time.monotonic()) is None  # none of them has come
            late.frames += [frame] * 200
            taken = 0
            for _ in range(50):  # each call sends one, is announced one more, and has a short deadline
                board.announce(slot)
                late.frames.append(frame)
                deadline = time.monotonic() + 0.004
                while late.frames and time.monotonic() < deadline:
                    taken += link.wait(1000, deadline) is not None
            assert taken == 250 and not late.frames
        finally:
            link._connection = connection
            link._mail, link._late = board.mail(slot), 0
        assert db.kv.put(RUN, "last", 1)
