"""The mark of a run that is being imported: who imports it, and what has come so far.

While there is a mark, the run takes writes of that import only. The mark is in
the table of fences, under the run's digest: a fence says that a run is closed
for good, a mark that it is closed for now. So a mark is as durable as a fence,
and is part of log, checkpoints and backups. The run stays closed until an
import of it is finished, begun anew, or given up.

Value of a fence: version of the deletion, 8 bytes. Value of a mark, big-endian:

    offset  size  field
    0       8     commit version that wrote the mark
    8       1     form, 2
    9       16    token of the import
    25      2     length of the prefix
    27      n     prefix of the run
            ...   records so far: MessagePack map of their names and numbers

Form 1, which earlier writers wrote, has at 25 the numbers of KV entries,
cells, events and traces, 8 bytes each, and then the prefix. It is read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgpack

from inmem.primitives import counts as counting

_HEAD: Final = struct.Struct(">QB16s")
_COUNTS_1: Final = struct.Struct(">4Q")
_LENGTH: Final = struct.Struct(">H")
assert _HEAD.size == 25 and _COUNTS_1.size == 32 and _LENGTH.size == 2

_FORM: Final = 2
FENCE_BYTES: Final = 8  # of a fence; a mark is longer
TOKEN_BYTES: Final = 16


class Mark(NamedTuple):
    """A mark taken apart; `counts` has only what is above 0."""

    token: bytes
    counts: Mapping[str, int]
    prefix: bytes


def pack(version: int, mark: Mark) -> bytes:
    """The value of a mark."""
    head = _HEAD.pack(version, _FORM, mark.token) + _LENGTH.pack(len(mark.prefix))
    data: bytes = msgpack.packb(dict(mark.counts))
    return head + mark.prefix + data


def is_mark(value: bytes) -> bool:
    """Whether a value among the fences is a mark, and no fence."""
    return len(value) > FENCE_BYTES


def unpack(value: bytes) -> Mark:
    """The mark of a value.

    Raises:
        ValueError: it is of a form that this release does not know.
    """
    try:
        _, form, token = _HEAD.unpack_from(value)
        if form == _FORM:
            (length,) = _LENGTH.unpack_from(value, _HEAD.size)
            at = _HEAD.size + _LENGTH.size
            counts = counting.check(msgpack.unpackb(value[at + length :]))
            return Mark(token, counts, bytes(value[at : at + length]))
        if form == 1:
            counts = counting.unpack(list(_COUNTS_1.unpack_from(value, _HEAD.size)))
            return Mark(token, counts, bytes(value[_HEAD.size + _COUNTS_1.size :]))
    except (struct.error, ValueError):
        raise ValueError("not the mark of an import") from None
    raise ValueError(f"the mark of an import is of form {form}")
