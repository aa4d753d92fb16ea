"""Frames: pinned layouts, and a handshake that refuses what it does not know."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inmem import wire

GOOD: dict[str, Any] = {
    "protocol": 1, "format": 1, "database": b"d" * 16, "session": b"s" * 16, "pid": 4711, "resume": False,
}

KINDS = {
    "HELLO": 1, "COMMIT": 2, "SYNC": 3, "STATUS": 4, "GOODBYE": 5, "WELCOME": 16, "ANSWER": 17, "REPLY": 18,
}


def test_kinds_and_statuses_are_fixed() -> None:
    assert {name: getattr(wire, name) for name in KINDS} == KINDS
    assert (wire.APPLIED, wire.FAILED, wire.RESEND, wire.REFUSED) == (0, 1, 2, 3)


def test_headers_are_pinned() -> None:
    commit = wire.COMMIT_HEADER.pack(wire.COMMIT, wire.FLAG_SYNC, b"s" * 16, 0x0102, 0x0304)
    assert commit == b"\x02\x01" + b"s" * 16 + bytes(6) + b"\x01\x02" + bytes(6) + b"\x03\x04"
    assert wire.REQUEST_HEADER.pack(wire.SYNC, 5) == b"\x03" + bytes(7) + b"\x05"
    assert wire.GOODBYE_HEADER.pack(wire.GOODBYE, b"s" * 16) == b"\x05" + b"s" * 16


@pytest.mark.parametrize("kind", [wire.ANSWER, wire.REPLY])
def test_an_answer_is_header_and_result(kind: int) -> None:
    frame = wire.answer(wire.FAILED, 7, (1 << 64) - 1, b"rest", kind)
    assert frame == bytes([kind, 1]) + bytes(7) + b"\x07" + b"\xff" * 8 + b"rest"
    assert wire.ANSWER_HEADER.unpack_from(frame) == (kind, 1, 7, (1 << 64) - 1)


def test_hello_round_trip() -> None:
    frame = wire.hello(**GOOD)
    assert frame[0] == wire.HELLO
    assert wire.parse_hello(frame) == GOOD
    assert wire.parse_hello(wire.hello(**GOOD, later="ignored"))["pid"] == 4711


def test_welcome_round_trip() -> None:
    frame = wire.welcome(epoch=3, known=True, last=9)
    assert frame[0] == wire.WELCOME
    assert wire.parse_map(frame) == {"epoch": 3, "known": True, "last": 9}


@pytest.mark.parametrize("name", GOOD)
def test_each_field_of_hello_is_needed(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        wire.parse_hello(wire.hello(**{k: v for k, v in GOOD.items() if k != name}))


WRONG = [
    (name, value) for name, good in GOOD.items()
    for value in (None, "x", 1.5, [], {}, True, 1, b"x") if type(value) is not type(good) or name == "session"
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr)
def test_each_field_of_hello_has_one_type(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="HELLO"):
        wire.parse_hello(wire.hello(**GOOD | {name: value}))


@pytest.mark.parametrize("size", [0, 15, 17, 1000])
def test_a_session_id_has_one_size(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        wire.parse_hello(wire.hello(**GOOD | {"session": bytes(size)}))


@pytest.mark.parametrize("document", [None, 1, "x", b"x", [], [1, 2], [["protocol", 1]]], ids=repr)
def test_a_hello_of_anything_but_a_map(document: Any) -> None:
    with pytest.raises(ValueError, match="map"):
        wire.parse_hello(b"\x01" + msgpack.packb(document))


def refused(frame: bytes) -> bool:
    try:
        wire.parse_hello(frame)
    except ValueError:
        return True
    return False


@settings(max_examples=300)
@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_hello(data: bytes) -> None:
    assert refused(b"\x01" + data)


def test_damaged_hellos_raise_nothing_else() -> None:
    rng = random.Random(20260701)
    good = wire.hello(**GOOD)
    bad = 0
    for _ in range(20_000):
        at = rng.randrange(1, len(good))
        cut = rng.randrange(3)
        bad += refused(good[:at] + rng.randbytes(rng.randrange(3)) + good[at + cut :])
    assert bad > 10_000
