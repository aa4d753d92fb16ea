"""One client that floods or sends giants: the others make progress, and quotas answer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgpack
import zmq
from committing import body, call
from crash_workers import write_until_told
from fault_workers import RUN, flood, measured_adds
from hostile_bytes import HELLO
from support import Workers, control_state, wait_until, writer_pid

import inmem
from inmem import wire
from inmem.config import MAX_IN_FLIGHT

NORMAL = 8  # clients beside a greedy one


def test_one_greedy_client_among_eight(store_path: Path, workers: Workers) -> None:
    """Small commits of eight clients with a flooder beside them, then with one of giant transactions."""
    with inmem.open(store_path) as db:
        normal = [workers.start(measured_adds, index, store_path, 0.005) for index in range(NORMAL)]

        def phase(number: int, what: str, commits: int) -> None:
            workers.words[200] = number
            before = [workers.words[i] for i in range(NORMAL)]
            wait_until(
                lambda: workers.check()
                or all(workers.words[i] >= before[i] + commits for i in range(NORMAL)), what, 60.0,
            )

        phase(0, "all have begun", 20)
        phase(1, "all work", 100)
        workers.start(flood, NORMAL, store_path, False)
        wait_until(lambda: workers.check() or workers.words[NORMAL], "the flood has begun")
        phase(2, "all make progress beside a flood", 60)
        workers.start(flood, NORMAL + 1, store_path, True)
        wait_until(lambda: workers.check() or workers.words[NORMAL + 1], "the giants have begun", 60.0)
        phase(3, "all make progress beside giants", 20)
        workers.words.stop()
        results = [worker.result() for worker in normal]
        greedy = workers.results()[NORMAL:]
        assert db.check().problems == []
    p99 = [max(r["phases"][str(n)]["p99"] for r in results) * 1000 for n in range(4)]
    worst = [max(r["phases"][str(n)]["max"] for r in results) * 1000 for n in range(4)]
    print(
        f"p99 of {NORMAL} normal clients: {p99[1]:.1f} ms alone, {p99[2]:.1f} ms beside a flood (ratio "
        f"{p99[2] / p99[1]:.1f}), {p99[3]:.1f} ms with giant transactions too (ratio "
        f"{p99[3] / p99[1]:.1f}); slowest {worst[1]:.0f}, {worst[2]:.0f} and {worst[3]:.0f} ms; "
        f"greedy clients {greedy}"
    )
    # Generous: the flooder has one of two cores to itself, and eight clients share what is left.
    assert p99[2] < max(100 * p99[1], 500.0)
    assert worst[3] < 10_000.0


def test_a_session_may_not_have_too_much_unanswered(store_path: Path) -> None:
    """The bound on commits in flight holds against a client that does not keep it itself."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        state = control_state(store_path)
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        try:
            dealer.setsockopt(zmq.RCVTIMEO, 10_000)
            dealer.connect(state.endpoint)
            session = os.urandom(16)
            dealer.send(wire.hello(**HELLO | {
                "database": state.database_id, "session": session, "pid": os.getpid(),
            }))
            assert wire.parse_map(dealer.recv())["known"]
            add = body(call("kv.add", b"default/default/default/greedy\0\1n", 1, 0))
            for sequence in range(1, MAX_IN_FLIGHT + 50):
                dealer.send(wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, sequence, 1) + add)
            # Those that fit the ring are on the board; the first refusal comes through the socket.
            while True:
                data = dealer.recv()
                _, status, sequence, _ = wire.ANSWER_HEADER.unpack_from(data)
                if status == wire.REFUSED:
                    break
            code, message, _ = msgpack.unpackb(data[wire.ANSWER_HEADER.size :])
            assert code == "busy" and sequence == MAX_IN_FLIGHT + 1, (code, message, sequence)
        finally:
            context.destroy(0)
        assert db.kv.get("greedy", "n") == MAX_IN_FLIGHT
        assert writer_pid(store_path) == state.pid


def test_a_flood_of_threads_does_not_starve_another_client(store_path: Path, workers: Workers) -> None:
    """One process floods with pipelines; another's single commits stay within bounds."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    with inmem.open(store_path) as db:
        def flood(index: int) -> None:
            try:
                while not stop.is_set():
                    with db.pipeline() as pipe:
                        for n in range(500):
                            pipe.kv.put(f"flood-{index}", f"k{n % 20}", n)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=flood, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        try:
            victim = workers.start(write_until_told, 0, store_path)
            wait_until(lambda: workers.check() or workers.words[0] >= 100, "the victim makes progress")
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        workers.words.stop()
        assert victim.result() >= 100
        assert wrong == []
