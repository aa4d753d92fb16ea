"""A store whose log has a flipped byte is recovered: a prefix, or a refusal that names file and offset."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from damaged_store import Bench, History, last_record, make_history, segment
from support import runtime_entries, writer_pid

import inmem
from inmem.errors import CorruptionError, FormatVersionError


def test_a_control_file_that_knows_better_refuses_every_loss(
    bench: tuple[Bench, History], rng: random.Random
) -> None:
    """After a clean stop all of the log is durable: no cut and no flip passes for a torn tail."""
    store, history = bench
    begin, end = last_record(history)
    assert store.recover(store.whole, knows_durable=True) == history.states[-1][1]
    for offset in sorted({begin, end - 1, *rng.sample(range(64, end), 60)}):
        flipped = bytearray(store.whole)
        flipped[offset] ^= 1 << rng.randrange(8)
        for damaged in (store.whole[:offset], bytes(flipped)):
            with pytest.raises(CorruptionError) as caught:
                store.recover(damaged, knows_durable=True)
            assert caught.value.file == str(store.log) and caught.value.offset <= offset


def test_log_with_a_flipped_byte(bench: tuple[Bench, History], rng: random.Random) -> None:
    """In `sync` all but the newest record is proven durable: damage there refuses to open."""
    store, history = bench
    begin, _ = last_record(history)
    size = len(store.whole)
    offsets = sorted({*range(begin, size), *rng.sample(range(begin), 150), *range(0, 64, 7)})
    refused = cut = 0
    prefixes = [state for _, state in history.states]
    for offset in offsets:
        damaged = bytearray(store.whole)
        damaged[offset] ^= 1 << rng.randrange(8)
        try:
            state = store.recover(bytes(damaged))
        except (CorruptionError, FormatVersionError) as error:
            refused += 1
            if isinstance(error, CorruptionError):
                assert error.file == str(store.log) and error.offset <= offset, (offset, error)
            continue
        cut += 1
        assert offset >= begin, f"damage at {offset}, in what was durable, went unnoticed"
        assert state in prefixes[-2:], offset
    assert refused > 100 and cut > 20
    print(f"{len(offsets)} flips: {refused} refused, {cut} torn tails cut, silent wrong 0")


def test_a_damaged_log_refuses_to_open_and_changes_nothing(scratch: Path, rng: random.Random) -> None:
    path = scratch / "store"
    history = make_history(path, rng)
    log = segment(path)
    data = bytearray(log.read_bytes())
    data[history.states[5][0] + 40] ^= 1
    log.write_bytes(data)
    with pytest.raises(CorruptionError) as caught:
        inmem.open(path)
    assert caught.value.file == str(log) and caught.value.offset == history.states[5][0]
    assert str(log) in str(caught.value) and caught.value.hint
    assert log.read_bytes() == data
    assert writer_pid(path) == 0 and runtime_entries(path) == []
