"""ZMTP by hand: what a peer can say that libzmq never would."""

from __future__ import annotations

import random
import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
MORE, LONG, COMMAND = 1, 2, 4
HUGE = [1 << 26, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]  # lengths that a frame may claim
assert len(GREETING) == 64


def frame(body: bytes, flags: int = 0, declared: int | None = None) -> bytes:
    """One frame; `declared` is a length that it only claims to have."""
    size = len(body) if declared is None else declared
    if size > 255 or flags & LONG:
        return struct.pack(">BQ", flags | LONG, size) + body
    return struct.pack(">BB", flags, size) + body


def command(name: bytes, body: bytes = b"") -> bytes:
    """One command."""
    return frame(bytes([len(name)]) + name + body, COMMAND)


def ready(kind: bytes = b"DEALER") -> bytes:
    """The READY of a peer of a kind."""
    return command(
        b"READY", b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind + b"\x08Identity" + bytes(4)
    )


def connect(address: str, timeout_s: float = 10.0) -> socket.socket:
    """A plain connection to the writer's socket."""
    some = socket.socket(socket.AF_UNIX)
    some.settimeout(timeout_s)
    try:
        some.connect(address)
    except BaseException:
        some.close()
        raise
    return some


def shake_hands(address: str) -> socket.socket:
    """A connection on which frames can be sent: greeting and READY are done, as a client's."""
    some = connect(address)
    try:
        some.sendall(GREETING)
        taken = 0
        while taken < 64:
            taken += len(some.recv(64 - taken)) or 64
        some.sendall(ready())
        some.recv(4096)  # its READY
    except BaseException:
        some.close()
        raise
    return some


def hostile_bytes(rng: random.Random) -> list[bytes]:
    """What one hostile connection sends, in pieces: something is wrong with it at some layer."""
    start = [GREETING, ready()]
    noise = rng.randbytes(rng.randrange(1, 400))
    choices = [
        [],
        [noise],
        [GREETING[: rng.randrange(64)]],
        [GREETING, noise],
        [GREETING, ready()[: rng.randrange(1, 20)]],
        [bytes(b ^ (rng.random() < 0.1) * rng.randrange(256) for b in GREETING), ready()],
        [GREETING, ready(rng.choice([b"PUB", b"REQ", b"ROUTER", b"X" * 200, b""]))],
        [GREETING, command(b"READY", noise)],
        [GREETING, command(rng.choice([b"ERROR", b"HELLO", b"INITIATE", b""]), noise)],
        [*start, command(rng.choice([b"PING", b"SUBSCRIBE", b"JOIN", b"ERROR"]), noise)],
        [*start, frame(noise, declared=rng.choice(HUGE))],
        [*start, frame(noise, rng.randrange(256))],
        [*start, *(frame(b"", MORE) for _ in range(rng.randrange(1, 50)))],
        [*start, frame(noise, MORE), frame(noise)],
        [*start, frame(noise, declared=len(noise) + 1)],
        [*start, noise],
    ]
    return rng.choice(choices)
