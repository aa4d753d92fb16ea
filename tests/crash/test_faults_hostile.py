"""Bytes that no client sends: to every decoder, to the rules of commit, and to a living writer.

`INMEM_TEST_PAYLOADS` is the number of payloads for the decoders,
`INMEM_TEST_SOCKETS` that of hostile connections, `INMEM_TEST_SEED` the seed.
"""

from __future__ import annotations

import os
import random
import socket as plain
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from committing import Bench, body, call, delete, kv_key, put
from fault_workers import RUN, measured_adds
from raw_zmtp import hostile_bytes, shake_hands
from support import Workers, control_state, wait_until, writer_pid

import inmem
from inmem import values, wire
from inmem.config import FORMAT_VERSION, PROTOCOL_VERSION
from inmem.errors import CorruptionError, LimitError
from inmem.keys import MAX_KEY_BYTES, Namespace
from inmem.primitives.events import rules as event_log
from inmem.primitives.runs import rules as run
from inmem.primitives.server import PROCEDURES
from inmem.primitives.traces import rules as trace
from inmem.storage.wal.format import decode_ops
from inmem.wire import APPLIED, FAILED, REFUSED, RESEND
from inmem.writer.committer import NoLog, Request
from inmem.writer.outcomes import Outcome, Sessions
from inmem.writeset import MalformedError, WriteSet, decode

PAYLOADS = int(os.environ.get("INMEM_TEST_PAYLOADS", "20000"))
SOCKETS = int(os.environ.get("INMEM_TEST_SOCKETS", "60"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
MIB = 1 << 20
PREFIX = Namespace().run_prefix("run")
HOME = Namespace().prefix()
KEY = kv_key("run", "key")
HELLO = {
    "protocol": PROTOCOL_VERSION, "format": FORMAT_VERSION, "database": bytes(16), "session": bytes(16),
    "pid": 1, "resume": False,
}

# --- payloads -----------------------------------------------------------------------------------------

ATOMS: list[Any] = [
    None, True, False, 0, 1, -1, 3, 127, 255, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63),
    0.0, -0.0, 1e308, float("inf"), float("nan"), "", "a", "kv.add", "\0", "x" * 200, "\u00e9" * 70,
    b"", b"\0", b"a\0b", KEY, HOME, PREFIX, b"\xff" * 40, b"x" * MAX_KEY_BYTES, b"x" * (MAX_KEY_BYTES + 1),
    [], {}, [[]],
    msgpack.ExtType(1, b""), msgpack.ExtType(127, b"abc"), msgpack.Timestamp(0),
    msgpack.Timestamp(1 << 40, 5),
]
RUN_ID = "run"
THOUGHT = values.encode({"content": "x", "confidence": None})
ARGUMENTS: dict[str, list[Any]] = {
    "cell.cas": [PREFIX, b"name", 1, values.encode([1])],
    "cell.delete": [PREFIX, b"name"],
    "cell.init": [PREFIX, b"name", values.encode(1)],
    "cell.set": [PREFIX, b"name", values.encode("x")],
    "event.append": [PREFIX, [[b"type", values.encode({"a": 1}), 0], [b"type", b"\xc0", 5]]],
    "index.repair": [PREFIX],
    "kv.add": [KEY, 2, 5],
    "kv.delete": [KEY],
    "kv.merge": [KEY, values.encode({"a": 1})],
    "run.create": [HOME, RUN_ID, "", ["tag"], values.encode({"m": 1})],
    "run.delete": [HOME, RUN_ID],
    "run.update": [HOME, RUN_ID, "completed", None, ["tag"], values.encode({})],
    "trace.record": [PREFIX, [["id", "", 0, 4, "Thought", ["tag"], THOUGHT, b"\x80"]]],
}


def documents() -> dict[str, list[Any]]:
    """Right messages for each decoder, from which wrong ones are made."""
    calls = [call(name, *arguments) for name, arguments in ARGUMENTS.items()]
    for name in PROCEDURES.keys() - ARGUMENTS.keys():  # no right call is known: the right number at least
        calls.append(call(name, PREFIX, *[[]] * (PROCEDURES[name].__code__.co_argcount - 2)))
    return {
        "writeset": [
            [0, 0, [], [], [put(KEY, 1)]], [5, 9, [[KEY, 3]], [[KEY, KEY + b"z", 2]], [delete(KEY), *calls]],
            *([0, 0, [], [], [one]] for one in calls),
        ],
        "hello": [HELLO],
        "log": [[[0, 0, b"key", b"value"], [1, 1, b"key"], [2, 0, b"a", b"b"]]],
        "value": [{"a": [1, 2.5, None, True, "text", b"bytes", {"b": []}]}, "text", 7],
        "session": [[3, 2, 1000, [[2, 77, 0, 5, b"\x90"], [3, 78, 1, 0, b"\xc0"]]]],
        "run": [["active", "", 1, 2, 0, ["tag"], values.encode({"m": 1}), None, 1]],
        "trace": [[4, "Thought", "", 5, ["tag"], THOUGHT, b"\x80"]],
        "event": [],  # no MessagePack: see `payloads`
    }


def nested(rng: random.Random) -> bytes:
    """Containers in containers, far beyond any limit."""
    depth = rng.choice([100, 128, 129, 511, 512, 1023, 1025, 5_000, 60_000])
    opening = rng.choice(
        [b"\x91", b"\x81\xa1k", b"\x81\x90", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\x92\xc0"]
    )
    return rng.choice([b"", b"\x95\x00\x00\x90\x90"]) + opening * depth + rng.choice([b"\xc0", b""])


def random_document(rng: random.Random, depth: int = 0) -> Any:
    """Whatever MessagePack can say."""
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind < 5:
        return rng.choice(ATOMS)
    if kind < 7:
        return [random_document(rng, depth + 1) for _ in range(rng.randrange(6))]
    return {rng.choice(["a", "protocol", "session", b"b", ""]): random_document(rng, depth + 1)
            for _ in range(rng.randrange(4))}


def with_a_change(rng: random.Random, document: Any) -> Any:
    """The document with one node, anywhere in it, replaced, dropped or doubled."""
    if isinstance(document, list | tuple) and document and rng.random() < 0.85:
        copy = list(document)
        at = rng.randrange(len(copy))
        what = rng.random()
        if what < 0.8:
            copy[at] = with_a_change(rng, copy[at])
        elif what < 0.9:
            del copy[at]
        else:
            copy.insert(at, copy[rng.randrange(len(copy))])
        return copy
    if isinstance(document, dict) and document and rng.random() < 0.85:
        name = rng.choice(list(document))
        if rng.random() < 0.2:
            return {key: value for key, value in document.items() if key != name}
        return document | {name: with_a_change(rng, document[name])}
    return random_document(rng, 2)


def with_bytes_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The bytes flipped, cut, spliced or grown."""
    if not data:
        return other
    kind = rng.randrange(6)
    at = rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + other[rng.randrange(len(other) + 1) :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    if kind == 3:  # a length or a type that is not so
        marker = rng.choice([b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
                             b"\xdb\x7f\xff\xff\xff", b"\xc1", b"\xc9\x00\x00\x00\x04\xff", b"\xd6\xff",
                             b"\xc7\x05\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7)])
        return data[:at] + marker + data[at + rng.randrange(3) :]
    copy = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        copy[rng.randrange(len(copy))] = rng.randrange(256)
    return bytes(copy) + (rng.randbytes(3) if kind == 4 else b"")


def payloads(rng: random.Random, right: list[Any]) -> Iterator[bytes]:
    """Without end: changed messages, changed bytes, nonsense, depth."""
    packed = [msgpack.packb(document) for document in right]
    packed = packed or [event_log.pack(event_log.follow(None, 0, 5, b"type", values.encode({"a": 1})))]
    while True:
        kind = rng.random()
        if kind < 0.45 and right:
            yield msgpack.packb(with_a_change(rng, rng.choice(right)))
        elif kind < 0.85:
            yield with_bytes_changed(rng, rng.choice(packed), rng.choice(packed))
        elif kind < 0.93:
            yield msgpack.packb(random_document(rng))
        elif kind < 0.997:
            yield rng.randbytes(rng.randrange(120))
        else:
            yield nested(rng)


# --- decoders -----------------------------------------------------------------------------------------


def sessions_of(data: bytes) -> Sessions:
    return Sessions([(bytes(16), data)], ttl_s=1e6, max_in_flight=16)


# What takes bytes from elsewhere, what it may raise, its share of the payloads.
DECODERS: dict[str, tuple[Callable[[bytes], Any], tuple[type[Exception], ...], float]] = {
    "writeset": (decode, (MalformedError, LimitError), 0.4),
    "hello": (lambda data: wire.parse_hello(b"\1" + data), (ValueError,), 0.15),
    "log": (decode_ops, (ValueError,), 0.15),
    "value": (values.decode, (ValueError,), 0.1),
    "session": (sessions_of, (CorruptionError,), 0.1),
    "run": (lambda data: run.unpack("run", data), (ValueError,), 0.03),
    "trace": (lambda data: trace.unpack("id", data), (ValueError,), 0.03),
    "event": (lambda data: event_log.unpack(0, data), (ValueError,), 0.04),
}


@pytest.mark.timeout(120 + PAYLOADS // 2000)
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_knows_every_way_to_fail(name: str) -> None:
    function, documented, share = DECODERS[name]
    rng = random.Random(f"{SEED} {name}")
    print(f"seed {SEED}")
    count = int(PAYLOADS * share)
    accepted = 0
    slowest = 0.0
    source = payloads(rng, documents()[name])
    for _ in range(count):
        payload = next(source)
        began = time.perf_counter()
        try:
            function(payload)
            accepted += 1
        except documented:
            pass
        except BaseException as error:
            shown = payload.hex() if len(payload) < 500 else f"{payload[:60].hex()}... ({len(payload)} bytes)"
            raise AssertionError(f"{name}: {type(error).__name__}: {error}, for {shown}") from error
        slowest = max(slowest, time.perf_counter() - began)
    assert accepted < count, "all of it passed: that was no hostile input"
    print(f"{name}: {count} payloads, {accepted} of them right by chance, slowest {slowest * 1000:.1f} ms")


@pytest.mark.timeout(120 + PAYLOADS // 500)
def test_a_committer_answers_everything(tmp_path: Path) -> None:
    """What passes the decoder meets validation and the procedures: an answer each, whatever it is."""
    assert set(ARGUMENTS) <= set(PROCEDURES), "a right call of a procedure that there is not"
    rng = random.Random(f"{SEED} committer")
    print(f"seed {SEED}")
    count = PAYLOADS // 4
    bench = Bench(tmp_path / "image", log=NoLog())
    try:
        session = bench.client().session
        known = bench.client("known")
        statuses: Counter[int] = Counter()
        longest = 0
        source = payloads(rng, documents()["writeset"])
        sequence = 0
        while sequence < count:
            group = [Request(session, sequence + n, sequence + n, next(source)) for n in range(1, 33)]
            sequence += len(group)
            try:
                answers = bench.commit(*group)
            except BaseException as error:
                shown = [one.body[:300].hex() for one in group]
                raise AssertionError(f"{type(error).__name__}: {error}, in the group {shown}") from error
            assert [answer.sequence for answer in answers] == [one.sequence for one in group]
            statuses.update(answer.status for answer in answers)
            longest = max(longest, *(len(answer.result) for answer in answers))
            if rng.random() < 0.02:
                assert known.send(put(kv_key("good", "k"), sequence)).status == APPLIED
                assert bench.value(kv_key("good", "k")) == sequence
        assert set(statuses) <= {APPLIED, FAILED} and statuses[FAILED] > count // 2
        assert longest < 64 * 1024
    finally:
        bench.close()
    print(f"committer: {sequence} requests, {statuses[FAILED]} refused, {statuses[APPLIED]} applied")


def with_each_string(document: Any, huge: int) -> Iterator[Any]:
    """The document with each string in it, in turn, made huge; so are wrong types that are."""
    if isinstance(document, str | bytes):
        yield from (b"x" * huge, "x" * huge)
    elif isinstance(document, int | None):
        yield "x" * huge
    else:
        for at, part in enumerate(document):
            for changed in with_each_string(part, huge):
                yield [*document[:at], changed, *document[at + 1 :]]


def test_a_refusal_does_not_repeat_what_it_refuses(tmp_path: Path) -> None:
    """An error's text goes into the outcome, so into image and log: it must not be as big as the request."""
    cases = 0
    bench = Bench(tmp_path / "image", log=NoLog())
    try:
        client = bench.client()
        client.send(call("run.create", *ARGUMENTS["run.create"]))
        for name, arguments in ARGUMENTS.items():
            for wrong in with_each_string(arguments, 200_000):
                answer = client.send_body(msgpack.packb([0, 0, [], [], [call(name, *wrong)]]))
                if answer.status == FAILED:
                    assert len(answer.result) < 4096, f"{name}: {answer.result[:100]!r}"
                    cases += 1
        answer = client.send(call("x" * MIB))
        assert answer.status == FAILED and len(answer.result) < 4096
    finally:
        bench.close()
    assert cases > 20
    print(f"{cases} refusals of huge arguments, none of them huge")


@pytest.mark.parametrize(
    "length", [*range(MAX_KEY_BYTES - 200, MAX_KEY_BYTES - 3, 14), 508, 509, 510, 511, 512]
)
def test_names_at_the_longest_key(tmp_path: Path, length: int) -> None:
    """Procedures with prefixes and names that just fit or just do not: never an error of the store."""
    bench = Bench(tmp_path / "image", log=NoLog())
    try:
        client = bench.client()
        for name, arguments in ARGUMENTS.items():
            for at, argument in enumerate(arguments):
                if isinstance(argument, bytes) and argument != b"\x80":
                    filler = b"a/b/" + b"c" * (length - 4) if argument in (HOME, PREFIX) else b"n" * length
                    for wrong in (filler, filler[: length // 2], b"a\0\x01" + filler[3:]):
                        changed = [*arguments[:at], wrong, *arguments[at + 1 :]]
                        answer = client.send_body(msgpack.packb([0, 0, [], [], [call(name, *changed)]]))
                        assert answer.status in (APPLIED, FAILED)
        key = b"a\0\x01" + b"k" * (length - 3)
        for expires in (0, 5):
            answer = client.send_body(msgpack.packb([0, 0, [], [], [[0, key, b"", expires]]]))
            assert answer.status == (APPLIED if length + 8 * bool(expires) <= MAX_KEY_BYTES else FAILED)
        answer = client.send_body(msgpack.packb([0, 0, [[key, 1]], [[key, key, 0]], []]))
        assert answer.status == FAILED
    finally:
        bench.close()


# --- a living writer ----------------------------------------------------------------------------------


def memory_kib(pid: int, name: str = "RssAnon") -> int:
    """Memory of a process, from its status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} in the status of {pid}")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


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
    hellos = payloads(rng, [greeting])
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


def descriptors_text(pid: int) -> str:
    return str(descriptors(pid)) if Path(f"/proc/{pid}/fd").exists() else "none"


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


def test_a_session_record_keeps_its_outcomes(tmp_path: Path) -> None:
    """The right document of the decoder above is what the store writes."""
    sessions = sessions_of(msgpack.packb(documents()["session"][0]))
    assert sessions.find(bytes(16), 2, 0, 77) == Outcome(77, 0, 5, b"\x90")
    assert sessions.last_sequence(bytes(16)) == 3


def test_a_raw_client_is_served_when_it_speaks_well(store_path: Path) -> None:
    """The raw connection of these tests is no accident: with the right bytes it gets its answer."""
    with inmem.open(store_path) as db:
        state = control_state(store_path)
        with shake_hands(state.endpoint.removeprefix("ipc://")) as some:
            data = wire.REQUEST_HEADER.pack(wire.STATUS, 7)
            some.sendall(struct.pack(">BB", 0, len(data)) + data)
            assert some.recv(4096)
        assert db.status().writer_pid == state.pid
