"""What adapters share: hashes of names, and values in parts."""

from __future__ import annotations

from typing import Any

import pytest
from homes import Fresh

import inmem
from inmem.adapters.foreign import (
    PART_BYTES,
    WHOLE_BYTES,
    Packed,
    clear_parts,
    hashed,
    part_key,
    sweep_parts,
    token_of,
    unpacked,
)

LONG = b"x" * (WHOLE_BYTES + 1)


def test_hashes_are_the_same_for_ever() -> None:
    names = ["", "a", "a\0", "\ud800", "é", "x" * 100_000]
    assert len({hashed(name) for name in names}) == len(names)
    assert all(len(hashed(name)) == 32 for name in names)
    assert hashed("a") == "27c35e6e9373877f29e562464e46497e"


def test_values_in_parts() -> None:
    packed = Packed()
    entries = [packed.add("t", data) for data in (LONG[:-1], b"", b"y", LONG)]
    assert [len(entry) for entry in entries] == [2, 2, 3, 3], "the first takes all of a commit"
    parts = dict(packed.parts)
    assert [len(data) for data in parts.values()] == [1, PART_BYTES, PART_BYTES, 1]
    assert [unpacked(entry, parts.__getitem__) for entry in entries] == [
        ("t", LONG[:-1]), ("t", b""), ("t", b"y"), ("t", LONG)
    ]
    tokens = [token_of(entry) for entry in entries]
    assert tokens[:2] == [None, None] and all(part_key(str(token), 0) in parts for token in tokens[2:])
    assert token_of(None) is None and token_of("x" * 3) is None


def test_parts_are_removed(fresh: Fresh) -> None:
    with inmem.open(**fresh()) as db:
        run = db.run("r")
        packed = Packed()
        small, *entries = [packed.add("t", data) for data in (b"", LONG, LONG, LONG)]
        for key, data in packed.parts:
            run.kv.put(key, data)
        tokens = [str(token_of(entry)) for entry in entries]

        def left() -> set[str]:
            return {key.split("/")[1] for key in run.kv.list("p/")}

        run.transact(lambda txn: clear_parts(txn.kv, small))
        assert left() == {*tokens}
        run.transact(lambda txn: clear_parts(txn.kv, entries[0]))
        assert left() == {*tokens[1:]}
        run.transact(lambda txn: sweep_parts(txn.kv, {tokens[0], tokens[1]}))
        assert left() == {tokens[1]}
        run.transact(lambda txn: sweep_parts(txn.kv, ()))
        assert left() == set()


def test_parts_that_are_swept_before_they_are_named(fresh: Fresh) -> None:
    with inmem.open(**fresh()) as db:
        run = db.run("r")
        packed = Packed()
        entry = packed.add("t", LONG)

        def name(txn: Any) -> bool:
            there = packed.are_there(txn.kv)
            if there:
                txn.kv.put("value", entry)
            return there

        assert not run.transact(name)
        for key, data in packed.parts:
            run.kv.put(key, data)
        with pytest.raises(inmem.ConflictError), run.transaction() as txn:
            assert name(txn)
            run.transact(lambda other: sweep_parts(other.kv, ()))
        assert run.kv.list() == [] and not run.transact(name)
