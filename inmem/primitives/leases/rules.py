"""Lease rules: one holder at a time, and a token that only ever grows.

Invariant: the token of a lease is above every token that its name had before
in this store: it is the version of the commit that gave the lease away. Who
has a token, and the time at which it was acquired, holds the lease for as long
as nobody else was given it. Running out makes a lease takeable, and takes
nothing from its holder.

Key of a lease: its name. Payload, big-endian:

    offset  size  field
    0       8     token
    8       8     when it was acquired, microseconds since the Unix epoch
    16      8     until when it is held, likewise
    24      8     for how long it was asked, microseconds
    32      8     claim: the number that the call which acquired it has drawn, 0 if it came by import
    40      ...   holder, UTF-8; empty if the lease is free

A lease that is released leaves no record, unless its token is above the
version of that commit, which that of an imported lease may be. Then a record
without a holder stays, so that the next token is above it.

Key of one who waits: the name, NUL, ticket (8 bytes, the version of the commit
that brought him: so the order is that of arrival). Payload:

    0       8     until when he is taken to be alive, microseconds since the Unix epoch
    8       8     for how long he wants the lease, microseconds
    16      8     claim
    24      ...   holder
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from inmem.keys import TypeTag, range_of
from inmem.values import DamagedValueError

_LEASE: Final = struct.Struct(">QQQQQ")
_WAITER: Final = struct.Struct(">QQQ")
assert _LEASE.size == 40 and _WAITER.size == 24

MAX_HOLDER_BYTES: Final = 256
MAX_TOKEN: Final = 1 << 62  # of an imported lease: the tokens after it have 63 bits
TICKET_BYTES: Final = 8
ALIVE_US: Final = 6_000_000  # for which one who waits is taken to be alive without saying so
AGAIN_US: Final = 4_000_000  # he says it again when so much of it is left
LATE_US: Final = 1_000_000  # not worth a write
FRONT: Final = 64  # so many are in front: those behind them say it as often as
FAR_ALIVE_US: Final = 24_000_000  # is due after this
GIVEN_US: Final = 1_000_000  # in which one who has waited confirms, however short his lease is to be


class LeaseRecord(NamedTuple):
    """What is stored of a lease."""

    token: int
    acquired_at: int
    expires_at: int
    ttl_us: int
    claim: int
    holder: bytes

    @property
    def is_free(self) -> bool:
        """Whether it only keeps the token."""
        return not self.holder


class Waiter(NamedTuple):
    """What is stored of one who waits."""

    until: int
    ttl_us: int
    claim: int
    holder: bytes


def lease_key(prefix: bytes, name: bytes) -> bytes:
    """Where a lease is."""
    return b"%b\0%c%b" % (prefix, TypeTag.LEASE, name)


def waiter_key(prefix: bytes, name: bytes, ticket: int) -> bytes:
    """Where one who waits for a lease is."""
    return b"%b\0%c%b\0%b" % (prefix, TypeTag.LEASE_WAITER, name, ticket.to_bytes(TICKET_BYTES, "big"))


def waiters_of(prefix: bytes, name: bytes) -> tuple[bytes, bytes]:
    """The range of all who wait for a lease, in the order in which they came."""
    return range_of(prefix, TypeTag.LEASE_WAITER, name + b"\0")


def pack(record: LeaseRecord) -> bytes:
    """The payload of a lease."""
    return _LEASE.pack(*record[:5]) + record.holder


def unpack(payload: bytes) -> LeaseRecord:
    """The lease of a payload.

    Raises:
        ValueError: it is none.
    """
    try:
        token, acquired_at, expires_at, ttl_us, claim = _LEASE.unpack_from(payload)
    except struct.error as error:
        raise DamagedValueError(f"not a lease: {error}") from None
    return LeaseRecord(token, acquired_at, expires_at, ttl_us, claim, payload[_LEASE.size :])


def pack_waiter(waiter: Waiter) -> bytes:
    """The payload of one who waits."""
    return _WAITER.pack(*waiter[:3]) + waiter.holder


def unpack_waiter(payload: bytes) -> Waiter:
    """Who waits, of a payload.

    Raises:
        ValueError: nobody.
    """
    try:
        until, ttl_us, claim = _WAITER.unpack_from(payload)
    except struct.error as error:
        raise DamagedValueError(f"not one who waits for a lease: {error}") from None
    return Waiter(until, ttl_us, claim, payload[_WAITER.size :])
