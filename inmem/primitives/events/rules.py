"""Event log rules: the record, the hash chain and its verification.

Invariant: event n carries the hash of event n-1, and its own hash covers
sequence, type, payload bytes, time and that previous hash; so a changed,
missing, inserted or reordered event breaks the chain at a known place.

The chain is causal by default: xxh3-128 (https://xxhash.com) finds accidents,
not adversaries. `sha256` (FIPS 180-4) is the tamper-evident form.

Payload of an event record, big-endian:

    offset  size     field
    0       1        chain: 0 xxh3-128, 1 sha256
    1       8        timestamp, microseconds
    9       1        length of the type, 1-128
    10      n        type, UTF-8
            16 | 32  previous hash (16 bytes for chain 0)
            16 | 32  hash
            ...      payload, as `values.encode` made it
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import xxhash

from inmem import values
from inmem.errors import RunDeletedError
from inmem.host.interrupts import let_through
from inmem.keys import TypeTag

_HEAD: Final = struct.Struct(">BQB")
_HASHED: Final = struct.Struct(">QQH")
assert _HEAD.size == 10 and _HASHED.size == 18

HASH_BYTES: Final = 32
NO_HASH: Final = bytes(HASH_BYTES)
_PAD: Final = bytes(16)


def _xxh3(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data) + _PAD


def _sha256(data: bytes) -> bytes:
    import hashlib  # brings OpenSSL: who hashes otherwise need not wait for that to load

    return hashlib.sha256(data).digest()


_CHAINS: Final[dict[int, tuple[Callable[[bytes], bytes], int]]] = {0: (_xxh3, 16), 1: (_sha256, 32)}
CHAIN_IDS: Final = {"xxh3": 0, "sha256": 1}


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a log; `timestamp` in microseconds, hashes of 32 bytes."""

    sequence: int
    event_type: str
    payload: Any
    timestamp: int
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an event went: its sequence and its hash."""

    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class ChainVerification:
    """The verdict on a log. `first_invalid` is a sequence; `error` says what is wrong there."""

    is_valid: bool
    length: int
    first_invalid: int | None = None
    error: str | None = None


class StoredEvent(NamedTuple):
    """An event record taken apart; the payload still encoded. A tuple: a third of a dataclass's price."""

    sequence: int
    chain: int
    timestamp: int
    event_type: bytes
    prev_hash: bytes
    hash: bytes
    payload: bytes

    def to_event(self) -> Event:
        """As the user sees it."""
        event_type = values.text_of(self.event_type)
        return Event(
            self.sequence, event_type, values.decode(self.payload), self.timestamp, self.prev_hash, self.hash
        )


def chain_hash(
    chain: int, sequence: int, timestamp: int, event_type: bytes, payload: bytes, prev_hash: bytes
) -> bytes:
    """The hash of an event: over its fixed fields, the previous hash, type and payload, in this order."""
    return _CHAINS[chain][0](
        _HASHED.pack(sequence, timestamp, len(event_type)) + prev_hash + event_type + payload
    )


def follow(
    previous: StoredEvent | None, chain: int, timestamp: int, event_type: bytes, payload: bytes
) -> StoredEvent:
    """The event that comes after `previous` (None for an empty log, which `chain` then fixes)."""
    if previous is None:
        sequence, prev_hash = 0, NO_HASH
    else:
        sequence, prev_hash, chain = previous.sequence + 1, previous.hash, previous.chain
        timestamp = max(timestamp, previous.timestamp)
    digest = chain_hash(chain, sequence, timestamp, event_type, payload, prev_hash)
    return StoredEvent(sequence, chain, timestamp, event_type, prev_hash, digest, payload)


def pack(event: StoredEvent) -> bytes:
    """The payload of an event's record."""
    size = _CHAINS[event.chain][1]
    return b"".join((
        _HEAD.pack(event.chain, event.timestamp, len(event.event_type)),
        event.event_type, event.prev_hash[:size], event.hash[:size], event.payload,
    ))


def event_key(prefix: bytes, sequence: int) -> bytes:
    """Where an event is."""
    return b"%b\0%c%b" % (prefix, TypeTag.EVENT, sequence.to_bytes(8, "big"))


def index_key(prefix: bytes, event_type: bytes, sequence: int) -> bytes:
    """Where the index by type has an event."""
    return b"%b\0%c%b\0%b" % (prefix, TypeTag.EVENT_BY_TYPE, event_type, sequence.to_bytes(8, "big"))


def index_keys(prefix: bytes, rest: bytes, payload: bytes) -> list[bytes]:
    """All index keys of an event, from its record."""
    sequence = int.from_bytes(rest, "big")
    return [index_key(prefix, unpack(sequence, payload).event_type, sequence)]


def unpack(sequence: int, data: bytes) -> StoredEvent:
    """The event of a record's payload.

    Raises:
        ValueError: the bytes are no event.
    """
    try:
        chain, timestamp, length = _HEAD.unpack_from(data)
        size = _CHAINS[chain][1]
    except (struct.error, KeyError) as error:
        let_through(error)
        raise values.DamagedValueError("not an event record") from None
    at = 10 + length
    if len(data) < at + 2 * size:
        raise values.DamagedValueError("event record is too short")
    pad = _PAD if size == 16 else b""
    return StoredEvent(
        sequence, chain, timestamp, data[10:at], data[at : at + size] + pad,
        data[at + size : at + 2 * size] + pad, data[at + 2 * size :],
    )


def deleted_in_the_middle(sequence: int) -> RunDeletedError:
    """What a stream raises whose run is deleted behind this event: it must not end as if it were whole."""
    return RunDeletedError(
        f"the run was deleted while its events were read; the last one that was read has sequence {sequence}"
    )


def verify(events: Iterable[tuple[int, bytes]], anchor: tuple[int, bytes] | None = None) -> ChainVerification:
    """Check a whole log, given as (sequence, record payload) in order.

    `anchor` is a (sequence, hash) that the caller kept elsewhere: without it a
    log that was cut at its end, or replaced whole, still verifies.
    """
    previous: StoredEvent | None = None
    length = 0
    anchored = anchor is None
    for sequence, data in events:
        if sequence != length:
            return ChainVerification(False, length, length, f"event {length} is missing")
        try:
            event = unpack(sequence, data)
        except ValueError as error:
            return ChainVerification(False, length, sequence, str(error))
        problem = problem_with(previous, event)
        if problem is None and anchor is not None and sequence == anchor[0]:
            anchored = True
            if event.hash != anchor[1]:
                problem = "hash differs from the anchor"
        if problem is not None:
            return ChainVerification(False, length, sequence, problem)
        previous = event
        length += 1
    if not anchored:
        return ChainVerification(False, length, length, "the log ends before the anchor")
    return ChainVerification(True, length)


def problem_with(previous: StoredEvent | None, event: StoredEvent) -> str | None:
    """Why `event` cannot be what follows `previous`; None if it can."""
    if event.prev_hash != (NO_HASH if previous is None else previous.hash):
        return "previous hash does not match"
    if previous is not None and event.chain != previous.chain:
        return "chain algorithm changes within the log"
    if previous is not None and event.timestamp < previous.timestamp:
        return "timestamp goes backwards"
    expected = chain_hash(
        event.chain, event.sequence, event.timestamp, event.event_type, event.payload, event.prev_hash
    )
    return None if expected == event.hash else "hash does not match the content"
