"""The chain: any changed, missing, inserted or reordered event is found, and where."""

from __future__ import annotations

import hashlib
import struct
from itertools import pairwise
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from inmem import values
from inmem.primitives.events import rules as event_log
from inmem.primitives.events.rules import NO_HASH, StoredEvent, follow, pack, unpack, verify

XXH3, SHA256 = event_log.CHAIN_IDS["xxh3"], event_log.CHAIN_IDS["sha256"]
TIME = 1_700_000_000_000_000

types = st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "replace")[:128]).filter(bool)
contents = st.lists(st.tuples(types, st.binary(max_size=20), st.integers(0, 1 << 62)), min_size=1, max_size=6)
chains = st.sampled_from([XXH3, SHA256])


def chain_of(items: list[tuple[bytes, bytes, int]], chain: int = XXH3) -> list[StoredEvent]:
    events: list[StoredEvent] = []
    for event_type, payload, time in items:
        events.append(follow(events[-1] if events else None, chain, time, event_type, payload))
    return events


def verdict(
    events: list[StoredEvent], anchor: tuple[int, bytes] | None = None
) -> event_log.ChainVerification:
    return verify([(event.sequence, pack(event)) for event in events], anchor)


def five(chain: int = XXH3) -> list[StoredEvent]:
    return chain_of([(b"t%d" % i, values.encode(i), TIME + i) for i in range(5)], chain)


def test_the_first_event() -> None:
    event = follow(None, XXH3, TIME, b"started", b"\xc0")
    assert (event.sequence, event.prev_hash, event.timestamp) == (0, NO_HASH, TIME)
    assert len(event.hash) == 32


def test_the_hash_covers_what_is_written() -> None:
    """Pinned from its definition: a change here makes every stored chain invalid."""
    event = follow(follow(None, XXH3, TIME, b"a", b""), XXH3, TIME + 1, b"bc", b"xyz")
    data = struct.pack(">QQH", 1, TIME + 1, 2) + event.prev_hash + b"bc" + b"xyz"
    assert event.hash == xxhash.xxh3_128_digest(data) + bytes(16)
    event = follow(follow(None, SHA256, TIME, b"a", b""), XXH3, TIME + 1, b"bc", b"xyz")
    data = struct.pack(">QQH", 1, TIME + 1, 2) + event.prev_hash + b"bc" + b"xyz"
    assert event.hash == hashlib.sha256(data).digest()


def test_a_pinned_record() -> None:
    event = follow(None, XXH3, 1, b"t", b"\xc0")
    assert pack(event) == b"\0" + (1).to_bytes(8, "big") + b"\x01t" + bytes(16) + event.hash[:16] + b"\xc0"
    event = follow(None, SHA256, 1, b"t", b"\xc0")
    assert pack(event) == b"\x01" + (1).to_bytes(8, "big") + b"\x01t" + bytes(32) + event.hash + b"\xc0"


@given(contents, chains)
def test_round_trip_and_validity(items: list[tuple[bytes, bytes, int]], chain: int) -> None:
    events = chain_of(items, chain)
    for event in events:
        assert unpack(event.sequence, pack(event)) == event
    assert verdict(events) == event_log.ChainVerification(True, len(events))
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(events))
    assert {event.chain for event in events} == {chain}


def test_an_empty_log_is_valid() -> None:
    assert verdict([]) == event_log.ChainVerification(True, 0)


def test_the_chain_of_a_log_is_that_of_its_first_event() -> None:
    first = follow(None, SHA256, TIME, b"a", b"")
    assert follow(first, XXH3, TIME, b"b", b"").chain == SHA256


CHANGES: dict[str, Any] = {
    "payload": lambda e: e._replace(payload=e.payload + b"!"),
    "type": lambda e: e._replace(event_type=b"other"),
    "time": lambda e: e._replace(timestamp=e.timestamp + 1),
    "hash": lambda e: e._replace(hash=bytes(31) + b"\1" if e.chain else b"\1" + bytes(31)),
    "previous hash": lambda e: e._replace(prev_hash=b"\1" * 16 + (b"\1" * 16 if e.chain else bytes(16))),
    "type and payload moved": lambda e: e._replace(event_type=e.event_type[:1], payload=b"1" + e.payload),
}


@pytest.mark.parametrize("chain", [XXH3, SHA256])
@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_event_is_found_where_it_is(change: str, at: int, chain: int) -> None:
    events = five(chain)
    events[at] = CHANGES[change](events[at])
    found = verdict(events)
    assert (found.is_valid, found.first_invalid, found.length) == (False, at, at)
    assert found.error


@pytest.mark.parametrize("at", range(4))
def test_a_missing_event(at: int) -> None:
    events = five()
    del events[at]
    assert (verdict(events).is_valid, verdict(events).first_invalid) == (False, at)
    renumbered = [event._replace(sequence=i) for i, event in enumerate(events)]
    assert (verdict(renumbered).is_valid, verdict(renumbered).first_invalid) == (False, at)


@pytest.mark.parametrize("at", range(5))
def test_an_inserted_event(at: int) -> None:
    events = five()
    events.insert(at, follow(events[at - 1] if at else None, XXH3, TIME, b"forged", b""))
    renumbered = [event._replace(sequence=i) for i, event in enumerate(events)]
    assert not verdict(renumbered).is_valid
    assert verdict(renumbered).first_invalid == at + 1


@pytest.mark.parametrize("at", range(4))
def test_two_events_in_the_other_order(at: int) -> None:
    events = five()
    events[at], events[at + 1] = events[at + 1], events[at]
    renumbered = [event._replace(sequence=i) for i, event in enumerate(events)]
    assert verdict(renumbered).first_invalid == at


def test_a_log_that_changes_its_algorithm() -> None:
    events = five()
    previous = events[3]
    forged = follow(previous._replace(chain=SHA256), SHA256, TIME + 9, b"x", b"")
    assert verdict([*events[:4], forged]).error == "chain algorithm changes within the log"


def test_time_that_goes_back() -> None:
    events = five()
    fields = (4, TIME, events[4].event_type, events[4].payload, events[3].hash)
    forged = StoredEvent(
        4, XXH3, TIME, *fields[2:3], fields[4], event_log.chain_hash(XXH3, *fields), fields[3]
    )
    assert verdict([*events[:4], forged]).error == "timestamp goes backwards"


class TestAnchor:
    @pytest.mark.parametrize("at", range(5))
    def test_a_kept_hash_is_found_again(self, at: int) -> None:
        events = five()
        assert verdict(events, (at, events[at].hash)).is_valid

    def test_a_log_that_was_cut(self) -> None:
        events = five()
        assert verdict(events[:3]).is_valid, "which a bare chain cannot see"
        found = verdict(events[:3], (4, events[4].hash))
        assert (found.is_valid, found.first_invalid, found.error) == (
            False,
            3,
            "the log ends before the anchor",
        )

    def test_a_log_that_was_replaced(self) -> None:
        other = chain_of([(b"x", b"", TIME)] * 5)
        assert verdict(other).is_valid
        found = verdict(other, (2, five()[2].hash))
        assert (found.is_valid, found.first_invalid) == (False, 2)

    def test_an_empty_log(self) -> None:
        assert not verdict([], (0, NO_HASH)).is_valid


class TestRecords:
    @pytest.mark.parametrize("size", range(43))
    def test_a_record_cut_short_is_none(self, size: int) -> None:
        data = pack(follow(None, XXH3, TIME, b"t", b""))
        assert len(data) == 43
        with pytest.raises(ValueError, match="event record"):
            unpack(0, data[:size])

    def test_an_unknown_algorithm_is_none(self) -> None:
        data = pack(follow(None, XXH3, TIME, b"t", b""))
        with pytest.raises(ValueError, match="not an event record"):
            unpack(0, b"\x02" + data[1:])
        found = verify([(0, b"\x02" + data[1:])])
        assert (found.is_valid, found.first_invalid, found.error) == (False, 0, "not an event record")

    @pytest.mark.parametrize("chain", [XXH3, SHA256])
    def test_every_flipped_bit_is_found(self, chain: int) -> None:
        events = five(chain)
        for at in (0, 2, 4):
            data = pack(events[at])
            for bit in range(len(data) * 8):
                broken = bytearray(data)
                broken[bit // 8] ^= 1 << bit % 8
                records = [(e.sequence, bytes(broken) if e.sequence == at else pack(e)) for e in events]
                assert not verify(records).is_valid, (at, bit)

    @given(st.binary(max_size=120))
    def test_arbitrary_bytes(self, data: bytes) -> None:
        try:
            event = unpack(0, data)
        except ValueError:
            return
        assert pack(event) == data

    def test_as_the_user_sees_it(self) -> None:
        event = five()[3].to_event()
        assert (event.sequence, event.event_type, event.payload, event.timestamp) == (3, "t3", 3, TIME + 3)
        assert (len(event.hash), event.prev_hash) == (32, five()[2].hash)
