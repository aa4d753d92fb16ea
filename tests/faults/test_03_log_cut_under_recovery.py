"""A store whose log was cut is recovered: a prefix, or a refusal that names the file."""

from __future__ import annotations

import random
from pathlib import Path

from crash_workers import RUN
from damaged_store import Bench, History, last_record, make_history, segment

import inmem
from inmem.errors import CorruptionError, FormatVersionError


def test_log_cut_at_many_offsets(bench: tuple[Bench, History], rng: random.Random) -> None:
    """A cut is a prefix, or a refusal that names the file: never another state."""
    store, history = bench
    begin, end = last_record(history)
    size = len(store.whole)
    assert store.recover(store.whole) == history.states[-1][1]
    offsets = sorted({*range(begin, size), *rng.sample(range(begin), 150), 0, 1, 63, 64})
    assert len(offsets) >= 200
    refused = 0
    for offset in offsets:
        try:
            assert store.recover(store.whole[:offset]) == history.at(offset), offset
        except (CorruptionError, FormatVersionError) as error:
            refused += 1
            assert getattr(error, "file", "") == str(store.log), error
    assert end <= size
    assert refused == 0, "a log that only lost its end is never refused"
    print(f"{len(offsets)} cuts of {size} bytes, wrong 0")


def test_a_torn_tail_is_cut_and_told(scratch: Path, rng: random.Random) -> None:
    path = scratch / "store"
    history = make_history(path, rng)
    log = segment(path)
    with log.open("ab") as file:
        file.write(b"half a record")
    with inmem.open(path) as db:
        assert dict(db.kv.list_with_values(RUN)) == history.states[-1][1]
        db.kv.put(RUN, "after", 1)
        assert db.check().problems == []
    assert "torn tail cut" in (path / "writer.log").read_text()
