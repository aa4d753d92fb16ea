"""The format of the log, pinned byte by byte by the files under `golden`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inmem.storage.wal import format as wf

GOLDEN = Path(__file__).parent / "golden"
DATABASE = bytes(range(16))
OPS: list[wf.Op] = [
    (wf.PUT, 1, b"key", b"value"),
    (wf.DELETE, 2, b"\x00\xff"),
    (wf.DELETE_RANGE, 255, b"a", b"b"),
]
# Each field has bytes that occur nowhere else, so that two fields exchanged cannot go unseen.
FIELDS: dict[str, Any] = {
    "version": 0x0102030405060708,
    "epoch": 0x1112131415161718,
    "database_id": DATABASE,
    "durable_version": 0x2122232425262728,
    "previous": 0x3132333435363738,
    "clock_us": 0x4142434445464748,
}


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / name).read_text())


def test_segment_header_is_golden() -> None:
    data = golden("wal_segment_header.hex")
    assert len(data) == wf.SEGMENT_HEADER_BYTES
    encoded = wf.encode_segment_header(segment=0x5152535455565758, database_id=DATABASE, previous=0x61626364)
    assert encoded.hex() == data.hex()
    assert wf.decode_segment_header(data) == wf.SegmentHeader(1, 0, 0x5152535455565758, DATABASE, 0x61626364)


def test_record_is_golden() -> None:
    data = golden("wal_record.hex")
    encoded, checksum = wf.encode_record(OPS, **FIELDS)
    assert encoded.hex() == data.hex()
    header = wf.unpack_record_header(data)
    assert header == (
        wf.RECORD_MAGIC, checksum, len(data) - wf.RECORD_HEADER_BYTES, FIELDS["version"], FIELDS["epoch"],
        DATABASE, FIELDS["durable_version"], FIELDS["previous"], FIELDS["clock_us"],
    )
    assert wf.checksum_of(data) == checksum
    assert wf.decode_ops(data[wf.RECORD_HEADER_BYTES :]) == OPS


def test_the_fields_lie_where_the_table_says() -> None:
    data = golden("wal_record.hex")
    table = {
        "version": (16, 8), "epoch": (24, 8), "durable_version": (48, 8), "previous": (56, 8),
        "clock_us": (64, 8),
    }
    for name, (offset, size) in table.items():
        assert int.from_bytes(data[offset : offset + size], "little") == FIELDS[name], name
    assert data[:4] == b"\xf1WR\x0d" and data[32:48] == DATABASE
    assert int.from_bytes(data[12:16], "little") == len(data) - 72


def test_every_bit_of_a_record_is_covered() -> None:
    data, checksum = wf.encode_record(OPS, **FIELDS)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        header = wf.unpack_record_header(bytes(flipped))
        whole = header.magic == wf.RECORD_MAGIC and wf.checksum_of(bytes(flipped)) == header.checksum
        assert not whole, f"bit {bit}"
    assert wf.checksum_of(data) == checksum


def test_every_bit_of_a_segment_header_is_covered() -> None:
    data = wf.encode_segment_header(segment=7, database_id=DATABASE, previous=9)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            wf.decode_segment_header(bytes(flipped))
    for size in range(len(data)):
        with pytest.raises(ValueError, match=f"of {size} bytes"):
            wf.decode_segment_header(data[:size])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb(OPS)[:-1],
        msgpack.packb(OPS) + b"\xc0",
        b"\x91" * 100_000,
        *(
            msgpack.packb(bad)
            for bad in (
                None, 0, {}, {0: 1}, b"ops", "ops", [0], [[]], [b"\0\0\0"], [{}], [None],
                [[3, 1, b"k", b"v"]], [[-1, 1, b"k"]], [[True, 1, b"k"]], [[1.0, 1, b"k"]], [["1", 1, b"k"]],
                [[0, 1, b"k"]], [[1, 1, b"k", b"v"]], [[2, 1, b"k"]], [[0, 1, b"k", b"v", b"x"]], [[0]],
                [[1, 256, b"k"]], [[1, -1, b"k"]], [[1, True, b"k"]], [[1, 1.0, b"k"]], [[1, None, b"k"]],
                [[1, 1, "k"]], [[1, 1, 7]], [[0, 1, b"k", "v"]], [[0, 1, "k", b"v"]], [[0, 1, b"k", None]],
                [[2, 1, b"a", [b"b"]]], [OPS[0], [9]], [msgpack.ExtType(1, b"kk")], msgpack.ExtType(1, b"x"),
                [msgpack.Timestamp(1)], [[1, 1, msgpack.ExtType(1, b"k")]],
            )
        ),
    ],
)
def test_a_payload_outside_the_schema_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        wf.decode_ops(payload)


def test_ids_and_sizes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="database id of 15 bytes"):
        wf.encode_segment_header(segment=1, database_id=DATABASE[:15], previous=0)
    monkeypatch.setattr(wf, "MAX_PAYLOAD_BYTES", 10)
    with pytest.raises(ValueError, match="the limit is 10"):
        wf.encode_record(OPS, **FIELDS)


def test_an_op_that_cannot_be_packed_leaves_nothing_in_the_packer() -> None:
    with pytest.raises(TypeError):
        wf.encode_record([(wf.PUT, 1, b"k", object())], **FIELDS)  # type: ignore[list-item]
    assert wf.encode_record(OPS, **FIELDS)[0] == golden("wal_record.hex")


tables = st.integers(0, 255)
octets = st.binary(max_size=64)
ops = st.lists(
    st.one_of(
        st.tuples(st.just(wf.PUT), tables, octets, octets),
        st.tuples(st.just(wf.DELETE), tables, octets),
        st.tuples(st.just(wf.DELETE_RANGE), tables, octets, octets),
    )
)
ids = st.binary(min_size=16, max_size=16)
u64 = st.integers(0, 2**64 - 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ops=ops, version=u64, epoch=u64, owner=ids, durable=u64, previous=u64, now=u64)
def test_round_trip(
    ops: list[wf.Op], version: int, epoch: int, owner: bytes, durable: int, previous: int, now: int
) -> None:
    data, checksum = wf.encode_record(
        ops, version=version, epoch=epoch, database_id=owner,
        durable_version=durable, previous=previous, clock_us=now,
    )
    header = wf.unpack_record_header(data)
    payload = data[wf.RECORD_HEADER_BYTES :]
    expected = (wf.RECORD_MAGIC, checksum, len(payload), version, epoch, owner, durable, previous, now)
    assert header == expected
    assert wf.checksum_of(data) == checksum
    assert wf.decode_ops(payload) == ops


@settings(max_examples=300, deadline=None, derandomize=True)
@given(payload=st.binary(max_size=80))
def test_any_bytes_decode_or_raise_value_error(payload: bytes) -> None:
    try:
        decoded = wf.decode_ops(payload)
    except ValueError:
        return
    assert wf.decode_ops(msgpack.packb(decoded)) == decoded
