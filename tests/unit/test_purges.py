"""Purges: what is left of deleted ranges is seen by nobody, whatever happens while it goes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inmem.host.control import GENERATION, Control, generation_of, may_have_dead
from inmem.host.files import open_private
from inmem.record import expires_at, pack
from inmem.storage import open_image as open_image_module
from inmem.storage import store as store_module
from inmem.storage.environment import Table
from inmem.storage.position import Position
from inmem.storage.snapshot import Image, ImageSnapshot
from inmem.storage.store import Store, StoreTransaction
from inmem.storage.wal.format import DELETE, DELETE_RANGE, PUT

PREFIXES = [b"a/b/c/one", b"a/b/c/two", b"a/b/c/two2"]
FIRST, LAST = b"", b"\xff" * 20
State = dict[bytes, bytes]


class Shared:
    """The writer's environment for a reader in the same process, where LMDB opens it once only."""

    def __init__(self, env: Any) -> None:
        self.begin = env.begin
        self.close = lambda: None


class Bench:
    """A store, what should be in it, and a reader."""

    def __init__(self, scratch: Path) -> None:
        self.control_file = scratch / "control"
        with open_private(self.control_file, 0o102) as file:  # O_RDWR | O_CREAT
            file.write(Control.initial(bytes(16)))
        self.control = Control(self.control_file, writable=True)
        self.path = scratch / "s1.image"
        self.control.update(image=str(self.path), generation=1)
        self.held: list[tuple[ImageSnapshot, State]] = []
        self.reopen()
        self.state: State = {}
        self.version = 0

    def reopen(self) -> None:
        if hasattr(self, "store"):
            self.look()
            self.image.close()
            self.store.close()
        self.store = Store(self.path, max_readers=16, quota_bytes=64 << 20)
        self.store.announce = self.control.say_dead
        self.image = Image(self.control, "s")

    def look(self) -> None:
        """What held snapshots see is what was there when they began."""
        for snapshot, state in self.held:
            compare(snapshot, state)
            snapshot.close()
        self.held.clear()

    def commit(self, *ops: tuple[bytes, ...]) -> None:
        """A commit of (key, value), (key,) or (start, end, b"") changes, and the same in the state."""
        self.version += 1
        made: list[tuple[int, int, bytes, bytes] | tuple[int, int, bytes]] = []
        for op in ops:
            if len(op) == 3:
                made.append((DELETE_RANGE, 0, op[0], op[1]))
                self.state = {k: r for k, r in self.state.items() if not op[0] <= k < op[1]}
            elif len(op) == 2:
                expiry = 10**9 + self.version if op[1].startswith(b"brief") else 0
                record = pack(self.version, 1, expiry, op[1])
                made.append((PUT, 0, op[0], record))
                self.state[op[0]] = record
            else:
                made.append((DELETE, 0, op[0]))
                self.state.pop(op[0], None)
        txn = self.store.begin()
        txn.apply(made, self.version)
        compare(txn, self.state)
        txn.publish(Position(self.version, 0, 0, 1, ()))

    def close(self) -> None:
        self.image.close()
        self.store.close()
        self.control.close()


def compare(reads: StoreTransaction | ImageSnapshot, state: State) -> None:
    expected = sorted(state.items())
    assert list(reads.scan(FIRST, LAST)) == expected
    assert list(reads.scan(FIRST, LAST, reverse=True)) == expected[::-1]
    for prefix in PREFIXES:
        start, end = prefix + b"\0", prefix + b"\1"
        inside = [item for item in expected if start <= item[0] < end]
        assert list(reads.scan(start, end)) == inside
        assert list(reads.scan(start, end, reverse=True)) == inside[::-1]
        assert [reads.get(key) for key, _ in inside] == [record for _, record in inside]
    for key in keys():
        assert reads.get(key) == state.get(key)
    if isinstance(reads, ImageSnapshot):
        assert list(reads.table(Table.DATA)) == expected
        assert {e for e, _ in reads.table(Table.EXPIRY)} == {
            expires_at(record).to_bytes(8, "big") + key for key, record in expected if record[0] & 0x80
        }


def keys() -> Iterator[bytes]:
    return (b"%b\0\x01%02d" % (prefix, n) for prefix in PREFIXES for n in range(12))


@pytest.fixture
def bench(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(store_module, "_AT_ONCE", 2)
    monkeypatch.setattr(
        open_image_module, "open_for_reading", lambda path: (Shared(bench.store._env), bench.store._tables)
    )
    bench = Bench(scratch)
    yield bench
    bench.close()


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_deletions_and_slices(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    every = list(keys())
    slices = 0
    for _ in range(150):
        step = rng.random()
        if step < 0.35:
            chosen = rng.sample(every, rng.randint(1, 12))
            bench.commit(*((key, rng.choice([b"value", b"brief"])) for key in chosen))
        elif step < 0.45:
            bench.commit(*((key,) for key in rng.sample(every, 3)))
        elif step < 0.6:
            prefix = rng.choice(PREFIXES)
            mine = [key for key in every if key.startswith(prefix + b"\0")]
            before = [(key, b"before") for key in rng.sample(mine, rng.randint(0, 3))]
            after = [(key, b"brief after") for key in rng.sample(mine, rng.randint(0, 3))]
            bench.commit(*before, (prefix + b"\0", prefix + b"\1", b""), *after)
        elif step < 0.9 and bench.store.purges:
            bench.store.purge(rng.randint(1, 4))
            slices += 1
        elif step < 0.95:
            bench.reopen()
        else:
            bench.held.append((bench.image.snapshot(60.0), dict(bench.state)))
        assert may_have_dead(bench.control.words[GENERATION]) == bool(bench.store.purges)
        snapshot = bench.image.snapshot(60.0)
        compare(snapshot, bench.state)
        snapshot.close()
        assert [bench.image.get(key) for key in every] == [bench.state.get(key) for key in every]
    while bench.store.purges:
        bench.store.purge(3)
    assert slices and generation_of(bench.control.words[GENERATION]) == 1
    assert dict(bench.store.items(Table.DATA)) == bench.state, "nothing is left of what was deleted"
    assert len(dict(bench.store.items(Table.EXPIRY))) == sum(r[0] >> 7 for r in bench.state.values())
    bench.look()


def test_a_snapshot_that_began_before_the_end_of_a_purge_goes_on_without_the_dead(bench: Bench) -> None:
    """The word may say that all is well again while an older snapshot still has dead records in it."""
    start = PREFIXES[0] + b"\0"
    bench.commit(*((key, b"x") for key in keys()))
    snapshots = [bench.image.snapshot(60.0)]
    states = [dict(bench.state)]
    bench.commit((start, PREFIXES[0] + b"\1", b""))
    while bench.store.purges:
        snapshots.append(bench.image.snapshot(60.0))
        states.append(dict(bench.state))
        bench.store.purge(1)
    assert len(snapshots) > 5 and not may_have_dead(bench.control.words[GENERATION])
    for snapshot, state in zip(snapshots, states, strict=True):
        compare(snapshot, state)
        snapshot.close()


def test_a_switch_of_generation_keeps_what_the_word_says(bench: Bench) -> None:
    bench.commit(*((key, b"x") for key in keys()))
    bench.commit((PREFIXES[1] + b"\0", PREFIXES[1] + b"\1", b""))
    bench.control.update(generation=7)
    word = bench.control.words[GENERATION]
    assert generation_of(word) == 7 and may_have_dead(word)
    state = bench.control.read()
    assert state is not None and state.generation == 7


def test_a_run_that_is_whole_dead_is_passed_at_once(bench: Bench) -> None:
    """However much is left: a reader, or the validation of a commit, must not walk all of it."""
    prefix = PREFIXES[1]
    many = ((b"%b\0\x01%06d" % (prefix, n), b"x") for n in range(3000))
    bench.commit(*many, (PREFIXES[2] + b"\0\x01a", b"y"))
    bench.commit((prefix + b"\0", prefix + b"\1", b""))

    class Cursor:
        def __init__(self, cursor: Any) -> None:
            self.cursor, self.read = cursor, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.cursor, name)

        def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
            for item in self.cursor:
                self.read += 1
                yield item

        def iterprev(self) -> Iterator[tuple[bytes, bytes]]:
            for item in self.cursor.iterprev():
                self.read += 1
                yield item

    txn = bench.store.begin()
    for reverse in (False, True):
        cursor = Cursor(txn._txn.cursor())
        found = list(store_module.scan_living(cursor, bench.store.purges, FIRST, LAST, reverse))
        assert [key for key, _ in found] == [PREFIXES[2] + b"\0\x01a"] and cursor.read < 5
    txn.abort()
