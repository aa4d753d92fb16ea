"""The record header: its bytes are pinned, and each part is read back alone."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inmem import record

check = settings(derandomize=True, deadline=None, max_examples=200)

versions = st.integers(0, (1 << 63) - 1)
times = st.integers(0, (1 << 64) - 1)
expiries = st.integers(1, (1 << 64) - 1)


@check
@given(versions, times, st.just(0) | expiries, st.binary(max_size=64))
@example((1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 1, b"")
@example(0, 0, 0, b"")
def test_round_trip(version: int, timestamp: int, expires_at: int, payload: bytes) -> None:
    packed = record.pack(version, timestamp, expires_at, payload)
    assert record.version_of(packed) == version
    assert record.timestamp_of(packed) == timestamp
    assert record.expires_at(packed) == expires_at
    assert record.payload_of(packed) == payload
    assert len(packed) == (24 if expires_at else 16) + len(payload)


@check
@given(versions, times, expiries, st.binary(max_size=8))
def test_parts_are_read_from_any_buffer(version: int, timestamp: int, expiry: int, payload: bytes) -> None:
    view = memoryview(record.pack(version, timestamp, expiry, payload))
    assert record.version_of(view) == version  # type: ignore[arg-type]
    assert record.timestamp_of(view) == timestamp  # type: ignore[arg-type]
    assert record.expires_at(view) == expiry  # type: ignore[arg-type]
    assert bytes(record.payload_of(view)) == payload  # type: ignore[arg-type]


def test_the_layout_is_pinned() -> None:
    assert record.pack(1, 2, 0, b"p").hex() == "0000000000000001" "0000000000000002" "70"
    assert record.pack(1, 2, 3, b"p").hex() == (
        "8000000000000001" "0000000000000002" "0000000000000003" "70"
    )


@check
@given(versions, times, st.binary(max_size=8), times)
def test_without_expiry_it_lives_for_ever(version: int, timestamp: int, payload: bytes, now: int) -> None:
    assert record.is_live(record.pack(version, timestamp, 0, payload), now)


@check
@given(versions, expiries, times)
@example(1, 1000, 999)
@example(1, 1000, 1000)
@example(1, 1000, 1001)
def test_it_is_gone_from_the_microsecond_of_expiry_on(version: int, expiry: int, now: int) -> None:
    assert record.is_live(record.pack(version, 0, expiry, b""), now) == (now < expiry)


@check
@given(versions, versions)
def test_expiry_never_leaks_into_the_version(one: int, two: int) -> None:
    plain = record.version_of(record.pack(one, 0, 0, b""))
    expiring = record.version_of(record.pack(two, 0, 1, b""))
    assert (plain < expiring) == (one < two)


@pytest.mark.parametrize(
    ("version", "timestamp", "expiry"), [(-1, 0, 0), (1 << 64, 0, 0), (0, -1, 0), (0, 0, -1)]
)
def test_what_does_not_fit_is_refused(version: int, timestamp: int, expiry: int) -> None:
    with pytest.raises(struct.error):
        record.pack(version, timestamp, expiry, b"")


def test_absent_is_older_than_every_commit() -> None:
    assert record.ABSENT == 0
