"""Bytes that no client sends: documents of every kind, right ones, changed ones and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgpack
from committing import call, delete, kv_key, put

from inmem import values
from inmem.config import FORMAT_VERSION, PROTOCOL_VERSION
from inmem.keys import MAX_KEY_BYTES, Namespace
from inmem.primitives.events import rules as event_log
from inmem.primitives.server import PROCEDURES
from inmem.writer.outcomes import Sessions

PREFIX = Namespace().run_prefix("run")
HOME = Namespace().prefix()
KEY = kv_key("run", "key")
RUN_ID = "run"
THOUGHT = values.encode({"content": "x", "confidence": None})


HELLO = {
    "protocol": PROTOCOL_VERSION, "format": FORMAT_VERSION, "database": bytes(16), "session": bytes(16),
    "pid": 1, "resume": False,
}


ATOMS: list[Any] = [
    None, True, False, 0, 1, -1, 3, 127, 255, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63),
    0.0, -0.0, 1e308, float("inf"), float("nan"), "", "a", "kv.add", "\0", "x" * 200, "\u00e9" * 70,
    b"", b"\0", b"a\0b", KEY, HOME, PREFIX, b"\xff" * 40, b"x" * MAX_KEY_BYTES, b"x" * (MAX_KEY_BYTES + 1),
    [], {}, [[]],
    msgpack.ExtType(1, b""), msgpack.ExtType(127, b"abc"), msgpack.Timestamp(0),
    msgpack.Timestamp(1 << 40, 5),
]


ARGUMENTS: dict[str, list[Any]] = {
    "cell.cas": [PREFIX, b"name", 1, values.encode([1])],
    "cell.delete": [PREFIX, b"name"],
    "cell.init": [PREFIX, b"name", values.encode(1)],
    "cell.set": [PREFIX, b"name", values.encode("x")],
    "event.append": [PREFIX, [[b"type", values.encode({"a": 1}), 0], [b"type", b"\xc0", 5]]],
    "index.mend": [PREFIX, 1, [PREFIX + b"\0\x04id"], [PREFIX + b"\0\x44stray"]],
    "index.repair": [PREFIX],
    "kv.add": [KEY, 2, 5],
    "kv.delete": [KEY],
    "kv.merge": [KEY, values.encode({"a": 1})],
    "queue.ack": [PREFIX, b"queue", 0, 1, 1, values.encode(1)],
    "queue.claim": [PREFIX, b"queue", "worker", 5_000_000, 2, 1],
    "queue.extend": [PREFIX, b"queue", 0, 1, 1, 5_000_000],
    "queue.give_back": [PREFIX, b"queue", 1],
    "queue.nack": [PREFIX, b"queue", 0, 1, 1, None, "broke", True],
    "queue.purge": [PREFIX, b"queue", -1, 0, 5],
    "queue.put": [[PREFIX, b"queue"], [[values.encode(1), 0, 5, b"key", 5], [b"\xc0", 9, 5, b"", 1]]],
    "queue.requeue": [PREFIX, b"queue", 0],
    "run.create": [HOME, RUN_ID, "", ["tag"], values.encode({"m": 1})],
    "run.delete": [HOME, RUN_ID],
    "run.remove": [HOME, RUN_ID, []],
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


def sessions_of(data: bytes) -> Sessions:
    return Sessions([(bytes(16), data)], ttl_s=1e6, max_in_flight=16)
