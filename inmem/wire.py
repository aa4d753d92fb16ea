"""Messages between client and writer: framing, kinds and the handshake.

Invariant: each message is one ZeroMQ frame whose first byte is its kind; a
frame that does not parse is refused as a whole. Pure: no sockets here.

Client to writer:

    HELLO    kind, MessagePack map: protocol, format, database, session, pid,
             resume (the session must be known already), and optionally slot
             (false: it wants none on the board)
    COMMIT   kind u8, flags u8, session 16 bytes, sequence u64,
             answered_below u64 (big-endian), then the body of `writeset`
    SYNC     kind u8, request number u64
    STATUS   kind u8, request number u64
    CHECKPOINT  kind u8, request number u64; answered when it is in place
    SET_BACK  kind u8, request number u64; store time goes back to the wall clock
    GOODBYE  kind u8, session 16 bytes
    COMMITS  kind u8, then COMMITs in their order, each after its length u32

Writer to client:

    WELCOME  kind, MessagePack map: epoch, known (is the session), last (its
             last sequence), slot and board (a path); or error
    ANSWER   kind u8, status u8, sequence u64, version u64, then MessagePack:
             the results of the calls (APPLIED) or an error (FAILED, REFUSED)
    REPLY    kind u8, status u8, request number u64, version u64, MessagePack
    ANSWERS  kind u8, then ANSWERs, each after its length u32
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgpack

from inmem.errors import InmemError

HELLO: Final = 1
COMMIT: Final = 2
SYNC: Final = 3
STATUS: Final = 4
GOODBYE: Final = 5
CHECKPOINT: Final = 6
SET_BACK: Final = 7
COMMITS: Final = 8
WELCOME: Final = 16
ANSWER: Final = 17
REPLY: Final = 18
ANSWERS: Final = 19

FLAG_SYNC: Final = 1  # make this commit durable before answering

# Status of an answer.
APPLIED: Final = 0  # took effect at `version`
FAILED: Final = 1  # was decided against, for good: conflict or broken rule
RESEND: Final = 2  # sequence gap; send again from `version` on
REFUSED: Final = 3  # was not considered; nothing is known of it (session unknown, busy)

COMMIT_HEADER: Final = struct.Struct(">BB16sQQ")
ANSWER_HEADER: Final = struct.Struct(">BBQQ")
REQUEST_HEADER: Final = struct.Struct(">BQ")
GOODBYE_HEADER: Final = struct.Struct(">B16s")
_LENGTH: Final = struct.Struct(">I")
assert COMMIT_HEADER.size == 34 and ANSWER_HEADER.size == 18 and REQUEST_HEADER.size == 9

MAX_TOGETHER: Final = 1024  # frames in one; none of ours holds as many
SESSION_BYTES: Final = 16
HELLO_FIELDS: Final = {
    "protocol": int, "format": int, "database": bytes, "session": bytes, "pid": int, "resume": bool
}


def hello(**fields: Any) -> bytes:
    """A HELLO frame."""
    return b"%c%b" % (HELLO, msgpack.packb(fields))


def parse_hello(frame: bytes) -> dict[str, Any]:
    """The fields of a HELLO.

    Raises:
        ValueError: not a HELLO of any version.
    """
    fields = msgpack.unpackb(frame[1:])
    if not isinstance(fields, dict):
        raise ValueError("HELLO holds no map")
    for name, kind in HELLO_FIELDS.items():
        if type(fields.get(name)) is not kind:
            raise ValueError(f"HELLO lacks {name}")
    if len(fields["session"]) != SESSION_BYTES:
        raise ValueError("HELLO has a session id of the wrong size")
    return fields


def welcome(**fields: Any) -> bytes:
    """A WELCOME frame."""
    return b"%c%b" % (WELCOME, msgpack.packb(fields))


def parse_map(frame: bytes) -> dict[str, Any]:
    """The map after the kind byte."""
    fields: dict[str, Any] = msgpack.unpackb(frame[1:])
    return fields


def answer(status: int, sequence: int, version: int, result: bytes, kind: int = ANSWER) -> bytes:
    """An ANSWER or REPLY frame; `result` is MessagePack already."""
    return ANSWER_HEADER.pack(kind, status, sequence, version) + result


def together(kind: int, frames: Iterable[bytes]) -> bytes:
    """Some frames as one, of a kind that holds others."""
    pack = _LENGTH.pack
    return b"%c%b" % (kind, b"".join([part for frame in frames for part in (pack(len(frame)), frame)]))


def apart(frame: bytes) -> Iterator[bytes]:
    """The frames in one that holds others; it ends where one is not whole, and after MAX_TOGETHER."""
    at, end = 1, len(frame)
    for _ in range(MAX_TOGETHER):
        if at + _LENGTH.size > end:
            return
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(frame, at)[0]
        if at > end:
            return
        yield frame[begin:at]


def _tree(cls: type[InmemError]) -> list[type[InmemError]]:
    return [cls, *(c for sub in cls.__subclasses__() for c in _tree(sub))]


ERRORS_BY_CODE: Mapping[str, type[InmemError]] = {cls.code: cls for cls in _tree(InmemError)}


def to_wire(error: InmemError) -> list[Any]:
    """An error as plain data: `[code, message, fields]`; a hint of its own is among the fields."""
    fields = error.fields
    if error.hint != error.default_hint:
        fields["hint"] = error.hint
    return [error.code, error.message, fields]


def from_wire(data: Any) -> InmemError:
    """The error that `to_wire` described; an unknown code becomes InmemError."""
    code, message, fields = data
    cls = ERRORS_BY_CODE.get(code, InmemError)
    known = {name: value for name, value in fields.items() if name in cls.field_names or name == "hint"}
    return cls(message, **known)
