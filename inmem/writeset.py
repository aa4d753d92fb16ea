"""The write set: what a transaction read and what it wants, as a client sends it.

Invariant: a decoded request has passed every structural check, so the rules
of commit work on well-formed data only. Pure; it knows no transport.

A request's body is MessagePack:

    [snapshot version, earliest expiry read (0: none),
     [[key, version read (0: absent)], ...],
     [[start, end, live records found], ...],
     [operation, ...]]

with the operations, in the order in which the program made them,

    [0, key, payload, expires]                   put; 0: never, above: a moment, below: how long it lasts
    [1, key]                                     delete
    [2, procedure, [argument, ...]]              call
    [2, procedure, [argument, ...], time]        call that a transaction has run already, at this time

A call's time, in microseconds, is what it writes into records. Without one
that is the time of the commit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from inmem.config import (
    ENTRY_BYTES,
    MAX_COMMIT_BYTES,
    MAX_READ_SET,
    MAX_TRANSACTION_BYTES,
    MAX_TRANSACTION_OPS,
    MAX_TTL_S,
)
from inmem.errors import LimitError
from inmem.keys import MAX_KEY_BYTES

OP_PUT: Final = 0
OP_DELETE: Final = 1
OP_CALL: Final = 2


@dataclass(slots=True)
class WriteSet:
    """A transaction's reads and operations."""

    snapshot_version: int = 0
    expiry_us: int = 0
    reads: dict[bytes, int] = field(default_factory=dict)
    ranges: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    ops: list[Any] = field(default_factory=list)

    def encode(self) -> bytes:
        """The body of a request.

        Raises:
            LimitError: more operations, reads or bytes than one commit may hold.
        """
        _limit("operations of one transaction", len(self.ops), MAX_TRANSACTION_OPS)
        _limit("reads of one transaction", len(self.reads) + len(self.ranges), MAX_READ_SET)
        body: bytes = msgpack.packb(
            [self.snapshot_version, self.expiry_us, list(self.reads.items()), self.ranges, self.ops]
        )
        _limit("bytes of one transaction", len(body), MAX_TRANSACTION_BYTES)
        # It cannot weigh more than this. To sum it up costs 0.2 µs an operation.
        if len(body) + ENTRY_BYTES * len(self.ops) > MAX_COMMIT_BYTES:
            check_weight(sum(ENTRY_BYTES + sum(map(len, op[1:3])) for op in self.ops if op[0] != OP_CALL))
        return body


def check_weight(weight: int) -> None:
    """Refuse a commit that comes to more than others may have to wait for.

    `weight` is the size of its keys and records, and `ENTRY_BYTES` for each of them.

    Raises:
        LimitError: it is too heavy; what it weighs so far, and the limit.
    """
    if weight > MAX_COMMIT_BYTES:
        raise LimitError(
            f"this commit comes to {weight} bytes or more, counting {ENTRY_BYTES} for each entry beside its "
            f"key and value; the limit is {MAX_COMMIT_BYTES}, so that others need not wait",
            what="bytes of what one commit writes", size=weight, limit=MAX_COMMIT_BYTES,
            hint=f"Cut it into several commits, of {MAX_TRANSACTION_OPS} small entries at most: an event "
            "is 2, a trace 4 and one for each tag.",
        )


def encode_single(op: list[Any]) -> bytes:
    """The body of a request that reads nothing and does one thing."""
    body: bytes = msgpack.packb((0, 0, (), (), (op,)))
    if len(body) > MAX_TRANSACTION_BYTES:
        _limit("bytes of one transaction", len(body), MAX_TRANSACTION_BYTES)
    return body


def _limit(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise LimitError(f"{size} {what}, the limit is {limit}", what=what, size=size, limit=limit)


_unpack: Final = msgpack.unpackb
_LONGEST_US: Final = MAX_TTL_S * 1_000_000


class MalformedError(ValueError):
    """Bytes that no correct client sends."""


def decode(body: bytes) -> WriteSet:
    """The write set of a body, checked completely.

    Raises:
        MalformedError: it is not what `encode` makes.
        LimitError: it is, but beyond a limit.
    """
    if len(body) > MAX_TRANSACTION_BYTES:
        _limit("bytes of one transaction", len(body), MAX_TRANSACTION_BYTES)
    try:
        version, expiry_us, reads, ranges, ops = _unpack(body)
    except (ValueError, TypeError) as error:  # msgpack's errors are ValueErrors
        raise MalformedError(f"not a request: {error}") from None
    if type(version) is not int or type(expiry_us) is not int or version < 0 or expiry_us < 0:
        raise MalformedError("snapshot version and expiry must be non-negative ints")
    if type(reads) is not list or type(ranges) is not list or type(ops) is not list:
        raise MalformedError("reads, ranges and operations must be arrays")
    if len(ops) > 1:
        _limit("operations of one transaction", len(ops), MAX_TRANSACTION_OPS)
    if reads or ranges:
        _limit("reads of one transaction", len(reads) + len(ranges), MAX_READ_SET)
    for op in ops:
        _check_op(op)
    return WriteSet(
        version,
        expiry_us,
        dict(_check_read(item) for item in reads) if reads else {},
        [_check_range(item) for item in ranges] if ranges else [],
        ops,
    )


def _check_op(op: Any) -> None:
    if type(op) is not list or not op:
        raise MalformedError("an operation must be a non-empty array")
    kind = op[0]
    if kind == OP_PUT and len(op) == 4:
        _, key, payload, expires = op
        _check_key(key)
        # The key of the expiry order is 8 bytes longer and must fit the same limit.
        fits = not expires or len(key) <= MAX_KEY_BYTES - 8
        if type(payload) is bytes and type(expires) is int and -_LONGEST_US <= expires < 1 << 63 and fits:
            return
    elif kind == OP_DELETE and len(op) == 2:
        _check_key(op[1])
        return
    elif kind == OP_CALL and len(op) in (3, 4) and type(op[1]) is str and type(op[2]) is list:
        _check_time(op)
        return
    raise MalformedError("an operation has the wrong shape")


def _check_time(op: list[Any]) -> None:
    if len(op) == 4 and not (type(op[3]) is int and 0 < op[3] < 1 << 63):
        raise MalformedError("the time of a call must be a positive int")


def _check_key(key: Any) -> None:
    if type(key) is not bytes or not 3 <= len(key) <= MAX_KEY_BYTES or not 0 < key.find(b"\0") < len(key) - 1:
        raise MalformedError("not a key")


def _check_read(item: Any) -> tuple[bytes, int]:
    if type(item) is list and len(item) == 2:
        key, version = item
        _check_key(key)
        if type(version) is int and version >= 0:
            return key, version
    raise MalformedError("a read must be [key, version]")


def _check_range(item: Any) -> tuple[bytes, bytes, int]:
    if type(item) is list and len(item) == 3:
        start, end, count = item
        _check_key(start)
        if type(end) is bytes and len(end) <= MAX_KEY_BYTES + 1 and type(count) is int and count >= 0:
            return start, end, count
    raise MalformedError("a range must be [start, end, count]")
