"""The record header: what every stored record starts with.

Invariant: a record says by itself which commit wrote it, when, and until when
it is valid, so validation needs no history and outlives restarts. This module
knows no primitive and no storage engine.

Layout, big-endian:

    offset  size  field
    0       8     commit version; the top bit says that an expiry follows
    8       8     commit time, microseconds since the Unix epoch
    16      8     expiry, microseconds since the Unix epoch (only if flagged)
    16/24   ...   payload, opaque here
"""

from __future__ import annotations

import struct

_PLAIN = struct.Struct(">QQ")
_EXPIRING = struct.Struct(">QQQ")
assert _PLAIN.size == 16 and _EXPIRING.size == 24

_FLAG = 1 << 63
ABSENT = 0  # the version under which an absent key is read


def pack(version: int, timestamp: int, expires_at: int, payload: bytes) -> bytes:
    """A record; `expires_at` 0 means never."""
    if expires_at:
        return _EXPIRING.pack(version | _FLAG, timestamp, expires_at) + payload
    return _PLAIN.pack(version, timestamp) + payload


def version_of(record: bytes) -> int:
    """The commit version that wrote the record."""
    return int.from_bytes(record[:8], "big") & ~_FLAG


def timestamp_of(record: bytes) -> int:
    """The commit time in microseconds."""
    return int.from_bytes(record[8:16], "big")


def end_of(expires: int, now_us: int) -> int:
    """When what is written now expires, 0 for never: `expires` is a moment, or below 0 how long it lasts.

    How long something lasts counts from its commit, which is decided here: it may have waited for that.
    """
    return expires if expires >= 0 else now_us - expires


def expires_at(record: bytes) -> int:
    """The expiry in microseconds, 0 for never."""
    return int.from_bytes(record[16:24], "big") if record[0] & 0x80 else 0


def is_live(record: bytes, now_us: int) -> bool:
    """False from the microsecond of expiry on."""
    return not record[0] & 0x80 or int.from_bytes(record[16:24], "big") > now_us


def payload_of(record: bytes) -> bytes:
    """Everything after the header."""
    return record[24:] if record[0] & 0x80 else record[16:]
