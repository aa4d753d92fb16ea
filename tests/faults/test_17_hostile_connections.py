"""Peers of a living writer that send what no client does: it serves on, and others notice nothing."""

from __future__ import annotations

import os
import random
import socket as plain
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from committing import body, call
from crash_workers import RUN, write_until_told
from fault_workers import measured_adds
from hostile_bytes import HELLO, KEY, documents, payloads
from processes import descriptors, descriptors_text, memory_kib
from raw_zmtp import hostile_bytes, shake_hands
from support import Workers, control_state, wait_until, writer_pid

import inmem
from inmem import wire
from inmem.config import FORMAT_VERSION, MAX_MESSAGE_BYTES, PROTOCOL_VERSION
from inmem.wire import FAILED, REFUSED, RESEND
from inmem.writeset import WriteSet

SOCKETS = int(os.environ.get("INMEM_TEST_SOCKETS", "60"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))


def hostile_frames(rng: random.Random, database_id: bytes) -> list[bytes]:
    """Frames of a peer that speaks ZeroMQ well, and lies in what it says."""
    session = rng.randbytes(16)
    greeting = HELLO | {"database": database_id, "session": session, "pid": rng.choice([1, 1 << 40, -5, 0])}
    source = payloads(rng, documents()["writeset"])
    frames = [wire.hello(**greeting)]
    for sequence in range(1, rng.randrange(2, 12)):
        number = rng.choice([sequence, 0, (1 << 64) - 1, 1 << 63])
        flags, answered_below = rng.randrange(256), rng.choice([0, number])
        header = wire.COMMIT_HEADER.pack(wire.COMMIT, flags, session, number, answered_below)
        frames.append(header + next(source))
    for _ in range(rng.randrange(4)):  # many in one, which may hold others, end early or go on as anything
        many = wire.together(wire.COMMITS, [*rng.sample(frames, min(3, len(frames))), rng.randbytes(5)])
        frames.append(many[: rng.randrange(1, len(many) + 1)] + rng.randbytes(rng.choice([0, 0, 3, 40])))
    hellos = payloads(rng, [greeting | {"slot": rng.choice([True, False, 7, None])}])
    frames += [b"\1" + next(hellos) for _ in range(rng.randrange(5))]
    frames += [bytes([rng.randrange(24)]) + rng.randbytes(rng.randrange(50)) for _ in range(rng.randrange(8))]
    frames.append(wire.GOODBYE_HEADER.pack(wire.GOODBYE, rng.choice([session, rng.randbytes(16)])))
    return frames


@pytest.mark.timeout(120 + SOCKETS // 5)
def test_hostile_connections(store_path: Path, workers: Workers) -> None:
    """The same writer serves on, as fast as before, with no more memory and no more descriptors."""
    rng = random.Random(f"{SEED} sockets")
    print(f"seed {SEED}")
    kinds: Counter[str] = Counter()
    with inmem.open(store_path) as db:
        for index in range(2):
            workers.start(measured_adds, index, store_path, 0.002)
        wait_until(lambda: workers.check() or min(workers.words[0], workers.words[1]) > 100, "clients work")
        state = control_state(store_path)
        address = state.endpoint.removeprefix("ipc://")
        context = zmq.Context()
        open_ones: list[plain.socket] = []
        dealers: list[Any] = []

        def one() -> None:
            if rng.random() < 0.4:
                kinds["frames"] += 1
                dealer = context.socket(zmq.DEALER)
                dealer.setsockopt(zmq.LINGER, 200)
                dealer.connect(state.endpoint)
                dealers.append(dealer)
                for data in hostile_frames(rng, state.database_id):
                    dealer.send_multipart([b""] * (rng.random() < 0.1) + [data])
                return
            kinds["raw"] += 1
            some = plain.socket(plain.AF_UNIX)
            open_ones.append(some)
            some.settimeout(5.0)
            some.connect(address)
            try:
                for piece in hostile_bytes(rng):
                    some.sendall(piece)
            except OSError:
                pass  # the writer has hung up in between

        try:
            for _ in range(SOCKETS // 10):  # what the first connections make libzmq and LMDB keep
                one()
            before = memory_kib(state.pid), descriptors(state.pid)
            workers.words[200] = 1
            for number in range(SOCKETS):
                one()
                if len(open_ones) + len(dealers) > 40:  # so many are half open at any time
                    pool: list[Any] = rng.choice([p for p in (open_ones, dealers) if p])
                    pool.pop(rng.randrange(len(pool))).close()
                if number % 20 == 0:
                    more = workers.words[0] + 30
                    wait_until(lambda n=more: workers.check() or workers.words[0] > n, "others are served")
            workers.words[200] = 2
            for some in (*open_ones, *dealers):
                some.close()
            progress = workers.words.total(2)
            wait_until(lambda: workers.check() or workers.words.total(2) > progress + 100, "and after it")
            wait_until(lambda: descriptors(state.pid) <= before[1], "no descriptor is kept")
        finally:
            for some in (*open_ones, *dealers):
                some.close()
            context.destroy(0)
        grown = memory_kib(state.pid) - before[0]
        assert control_state(store_path) == state and writer_pid(store_path) == state.pid
        # A session takes some hundred bytes, whoever asks for it; buffers of connections come and go.
        assert grown < 16 * 1024 + 4 * SOCKETS, f"{grown} KiB more than before"
        workers.words.stop()
        results = workers.results()
        assert db.check().problems == []
        assert db.kv.get("normal-0", "n") == results[0]["count"]
    quiet, under = ([r["phases"].get(p) for r in results] for p in ("0", "1"))
    figures = [
        f"p99 {max(p['p99'] for p in some) * 1000:.1f} ms, max {max(p['max'] for p in some) * 1000:.1f} ms"
        for some in (quiet, under)
    ]
    print(
        f"{SOCKETS} hostile connections {dict(kinds)}: same writer, {grown} KiB grown, descriptors "
        f"{before[1]} before and {descriptors_text(state.pid)} after; others {figures[0]} before, "
        f"{figures[1]} meanwhile"
    )


def test_requests_of_the_wrong_schema_reach_nobody_else(store_path: Path) -> None:
    """Well-formed commits of a registered session that ask for nonsense: each is refused, by name."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        state = control_state(store_path)
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        try:
            dealer.setsockopt(zmq.RCVTIMEO, 10_000)
            dealer.connect(state.endpoint)
            session = bytes(range(16))
            # Without a slot on the board every answer comes through the socket.
            dealer.send(wire.hello(**HELLO | {"database": state.database_id, "session": session}))
            welcome = wire.parse_map(dealer.recv())
            assert welcome["known"]
            wrong = [
                body(call("no.such.procedure")), body(call("kv.add", KEY)), b"\xc1", b"\x91" * 5000,
                msgpack.packb([0, 0, [], [], [[9, KEY]]]), WriteSet(ops=[[0, KEY[:-3], b"", 0]]).encode(),
            ]
            for sequence, data in enumerate(wrong, 1):
                header = wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, sequence, 0)
                dealer.send(header + data)
            dealer.send(wire.COMMIT_HEADER.pack(wire.COMMIT, 0, bytes(16), 1, 0) + wrong[0])
            dealer.send(wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, 99, 0) + wrong[0])
            statuses = []
            while len(statuses) < 2:  # of the last two: the others were posted on the board
                data = dealer.recv()
                statuses.append(wire.ANSWER_HEADER.unpack_from(data)[1])
            assert sorted(statuses) == sorted([REFUSED, RESEND]) or FAILED in statuses
            assert db.status().failures >= 5
        finally:
            context.destroy(0)
        assert db.kv.list(RUN) == ["k"] and writer_pid(store_path) == state.pid


def test_a_raw_client_is_served_when_it_speaks_well(store_path: Path) -> None:
    """The raw connection of these tests is no accident: with the right bytes it gets its answer."""
    with inmem.open(store_path) as db:
        state = control_state(store_path)
        with shake_hands(state.endpoint.removeprefix("ipc://")) as some:
            data = wire.REQUEST_HEADER.pack(wire.STATUS, 7)
            some.sendall(struct.pack(">BB", 0, len(data)) + data)
            assert some.recv(4096)
        assert db.status().writer_pid == state.pid


def garbage(rng: random.Random, database_id: bytes) -> list[bytes]:
    """Frames that no client sends: random, cut short, too deep, of wrong shape."""
    session = rng.randbytes(16)
    hello = {
        "protocol": PROTOCOL_VERSION, "format": FORMAT_VERSION, "database": database_id,
        "session": session, "pid": 1, "resume": False,
    }
    key = b"default/default/default/run\0\x01key"
    bodies = [
        b"", b"\xc1", msgpack.packb(None), msgpack.packb([]), msgpack.packb([0, 0, [], []]),
        msgpack.packb([-1, 0, [], [], []]), msgpack.packb([0, 0, [], [], [[9, key]]]),
        msgpack.packb([0, 0, [], [], [[0, key]]]), msgpack.packb([0, 0, [], [], [[0, b"no tag", b"", 0]]]),
        msgpack.packb([0, 0, [], [], [[0, key, b"x", -5]]]), msgpack.packb([0, 0, [[key]], [], []]),
        msgpack.packb([0, 0, [], [], [[2, "no.such", []]]]),
        msgpack.packb([0, 0, [], [], [[2, "kv.add", [1]]]]),
        msgpack.packb([0, 0, [], [], [[2, "kv.add", [key, "x", None]]]]),
        msgpack.packb([0, 0, [], [], [[2, "event.append", [b"p", [["a"]]]]]]),
        msgpack.packb([0, 0, [], [], [[2, "event.append", [b"a/b/c/d", [[1, 2, 3]]]]]]),
        msgpack.packb([0, 0, [], [[key, b"\xff" * 5000, 0]], []]),
        b"\x91" * 100_000 + b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff" + b"x",
        msgpack.packb([0, 0, [], [], [[0, key, b"x" * 100, 0]]])[:-50],
        msgpack.packb([0, 0, [], [], [[2, "event.append", [b"a\0b", [[b"t", b"x", 0]]]]]]),
    ]
    frames = [wire.hello(**hello)]
    for sequence, some in enumerate(bodies, 1):
        frames.append(wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, sequence, sequence) + some)
        frames.append(wire.COMMIT_HEADER.pack(wire.COMMIT, 255, rng.randbytes(16), sequence, 1 << 63) + some)
        frames.append(bytes([rng.randrange(256)]) + some)
    for name in hello:
        frames += [wire.hello(**hello | {name: wrong}) for wrong in (None, "x" * 1000, -1, [[]], 1 << 63)]
        frames.append(wire.hello(**{k: v for k, v in hello.items() if k != name}))
    for kind in range(24):
        frames += [bytes([kind]), bytes([kind]) + bytes(33), bytes([kind]) + rng.randbytes(40)]
    frames += [rng.randbytes(rng.randrange(1, 200)) for _ in range(300)]
    return frames


def test_garbage_on_the_socket(store_path: Path, workers: Workers, rng: random.Random) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        state = control_state(store_path)
        worker = workers.start(write_until_told, 0, store_path)
        wait_until(lambda: workers.words[0], "another client works")
        frames = garbage(rng, state.database_id)
        rng.shuffle(frames)
        context = zmq.Context()
        try:
            sent = 0
            for part in range(3):
                socket = context.socket(zmq.DEALER)
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(state.endpoint)
                for frame in frames[part::3]:
                    socket.send(frame)
                    if rng.random() < 0.2:
                        socket.send_multipart([frame, b"", frame])
                        socket.send_multipart([b""] * rng.randrange(1, 50))
                    sent += 1
                # Told apart from silence: this one is well formed, and comes after all that.
                socket.send(wire.REQUEST_HEADER.pack(wire.STATUS, 77))
                replied = wait_until(lambda s=socket: status_reply(s, 77), "the writer answers after garbage")
                assert replied
                socket.close(0)
            flood = context.socket(zmq.DEALER)  # its peer only ever says hello, and never reads
            flood.setsockopt(zmq.LINGER, 0)
            flood.connect(state.endpoint)
            flood.send(bytes(MAX_MESSAGE_BYTES + 1))
            before = workers.words[0]
            wait_until(lambda: workers.words[0] > before + 50, "others are served")
            flood.close(0)
        finally:
            context.destroy(0)
        assert control_state(store_path) == state, "the same writer as before"
        workers.words.stop()
        assert worker.result() > 50
        assert db.kv.list(RUN) == ["k"] and db.kv.get(RUN, "k") == "v"
        assert db.events.count("run") == 0
        assert db.check().problems == []
    print(f"{sent} frames, crashes 0")


def status_reply(socket: Any, number: int) -> bool:
    try:
        frame = socket.recv(zmq.NOBLOCK)
    except zmq.Again:
        return False
    if frame[0] != wire.REPLY:
        return False
    return bool(wire.ANSWER_HEADER.unpack_from(frame)[2] == number)


def test_connections_that_never_say_hello(store_path: Path) -> None:
    """Raw connections with garbage for a handshake: the socket and the others go on."""
    import socket as plain

    with inmem.open(store_path) as db:
        db.kv.put(RUN, "n", 0)
        state = control_state(store_path)
        address = state.endpoint.removeprefix("ipc://")
        some = []
        try:
            for number in range(150):
                one = plain.socket(plain.AF_UNIX)
                one.connect(address)
                one.send(os.urandom(number % 70 + 1))
                some.append(one)
            assert db.kv.add(RUN, "n") == 1
        finally:
            for one in some:
                one.close()
        assert db.kv.add(RUN, "n") == 2 and writer_pid(store_path) == state.pid
