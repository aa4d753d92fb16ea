"""The mark of a run that is being imported: who imports it, and what has come so far.

Invariant: while a mark stands, the run takes writes of that import only. The
mark lies among the fences, under the run's digest: a fence says that a run is
closed for good, a mark that it is closed for now. So it is as durable as a
fence, and travels with log, checkpoints and backups; and whoever was killed,
the run stays closed until an import of it is finished, begun anew, or given up.

Value of a fence: version of the deletion, 8 bytes. Value of a mark, big-endian:

    offset  size  field
    0       8     commit version that wrote the mark
    8       1     1: a mark of this form
    9       16    token of the import
    25      32    records so far: KV entries, cells, events, traces, 8 bytes each
    57      ...   prefix of the run
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

_HEAD: Final = struct.Struct(">QB16s4Q")
assert _HEAD.size == 57

_FORM: Final = 1
FENCE_BYTES: Final = 8  # of a fence; a mark is longer
TOKEN_BYTES: Final = 16


def fence_of(owner: bytes) -> bytes:
    """The digest of a run's prefix: under it the run's fence lies, or its mark."""
    return xxhash.xxh3_128_digest(owner)


class Counts(NamedTuple):
    """How many records of each primitive a run has."""

    kv: int = 0
    cells: int = 0
    events: int = 0
    traces: int = 0


class Mark(NamedTuple):
    """A mark taken apart."""

    token: bytes
    counts: Counts
    prefix: bytes


def pack(version: int, mark: Mark) -> bytes:
    """The value of a mark."""
    return _HEAD.pack(version, _FORM, mark.token, *mark.counts) + mark.prefix


def is_mark(value: bytes) -> bool:
    """Whether a value among the fences is a mark, and no fence."""
    return len(value) > FENCE_BYTES


def unpack(value: bytes) -> Mark:
    """The mark of a value.

    Raises:
        ValueError: it is of a form that this release does not know.
    """
    try:
        _, form, token, kv, cells, events, traces = _HEAD.unpack_from(value)
    except struct.error:
        raise ValueError("not the mark of an import") from None
    if form != _FORM:
        raise ValueError(f"the mark of an import is of form {form}")
    return Mark(token, Counts(kv, cells, events, traces), bytes(value[_HEAD.size :]))
