"""Fault 35: whatever batches or streams is bounded by bytes as well as by number."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import inmem
from inmem.config import MAX_IN_FLIGHT_BYTES
from inmem.exchange import export_runs, import_runs

MIB = 1024 * 1024
RUN = "run"
COUNT = int(os.environ.get("INMEM_TEST_VALUES", "25"))
SIZE = 4 * MIB  # 100 MiB by default: twice what a stream may have, as text more than what a file may
LARGEST = 16 * MIB - 64  # about what a value may have
# One answer of 4 MiB and what comes over it, as bytes and as a value, and those of the one before.
BOUND = 48 * MIB


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes that Python's objects took during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def pipeline(db: inmem.Database, size: int, count: int) -> None:
    with db.pipeline() as pipe:
        for number in range(count):
            pipe.events.append(RUN, "t", number.to_bytes(4, "big") * (size // 4))


@pytest.fixture
def full(store_path: Path) -> Iterator[inmem.Database]:
    with inmem.open(store_path) as db:
        pipeline(db, SIZE, COUNT)
        yield db


def test_streams(full: inmem.Database) -> None:
    seen: list[bytes] = []
    in_transaction: list[int] = []

    def stream() -> None:
        seen.extend(event.payload[:4] for event in full.events.iter(RUN))

    def stream_in_a_transaction() -> None:
        with full.transaction(RUN) as txn:
            in_transaction.extend(event.sequence for event in txn.events.iter())
            txn.abort()

    def verify() -> None:
        assert full.events.verify_chain(RUN).is_valid

    peaks = {call.__name__: peak_of(call) for call in (stream, stream_in_a_transaction, verify)}
    assert seen == [number.to_bytes(4, "big") for number in range(COUNT)]
    assert in_transaction == list(range(COUNT))
    assert max(peaks.values()) < BOUND, peaks
    print({name: f"{peak / MIB:.0f} MiB" for name, peak in peaks.items()})


def test_export_import_and_pipeline(full: inmem.Database, scratch: Path) -> None:
    file = scratch / "runs.jsonl"
    with inmem.open(scratch / "other") as other:
        peaks = {
            "export": peak_of(lambda: export_runs(full, file, [RUN])),
            "import": peak_of(lambda: import_runs(other, file)),
        }
        assert other.events.count(RUN) == COUNT
        assert other.events.verify_chain(RUN).is_valid
    # A line of a file is text: base64 of the value, and that of the line before.
    assert max(peaks.values()) < 2 * BOUND, peaks
    print({name: f"{peak / MIB:.0f} MiB" for name, peak in peaks.items()})


def test_a_pipeline(db: inmem.Database) -> None:
    """What is under way has a bound in bytes, however much is put."""

    def put() -> None:
        with db.pipeline() as pipe:
            for number in range(100):
                pipe.kv.put(RUN, "k", number.to_bytes(4, "big") * MIB)

    peak = peak_of(put)
    assert db.kv.get(RUN, "k")[:4] == (99).to_bytes(4, "big")
    # Each is held as its caller's value, as a body, and as a frame on its way; and so is the one that waits.
    assert peak < 5 * (MAX_IN_FLIGHT_BYTES + SIZE), f"{peak / MIB:.0f} MiB"
    print(f"pipeline of 400 MiB: {peak / MIB:.0f} MiB")


def test_the_largest_values(store_path: Path) -> None:
    """Some of the largest that there are, between small ones, in the order in which they came."""
    with inmem.open(store_path) as db:
        sizes = [1, LARGEST, 10, LARGEST, 600_000, LARGEST, 0, 1]
        with db.pipeline() as pipe:
            for size in sizes:
                pipe.events.append(RUN, "t", b"x" * size)
        assert [len(event.payload) for event in db.events.iter(RUN)] == sizes
        assert [len(event.payload) for event in db.events.iter(RUN, 3)] == sizes[3:]


def test_a_stream_that_feeds_itself_ends(db: inmem.Database) -> None:
    """Its reader appends an event for each that it reads."""
    db.events.append_many(RUN, [("t", n) for n in range(10)])
    read = 0
    for event in db.events.iter(RUN):
        db.events.append(RUN, "seen", event.sequence)
        read += 1
    assert read == 10 and db.events.count(RUN) == 20
