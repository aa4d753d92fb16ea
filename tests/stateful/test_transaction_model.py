"""Transactions through the public API against dictionaries and lists.

One program, one run per example: KV and events, inside a transaction, in
commits of their own, in pipelines and in snapshots. In a transaction every
read must show its own writes; after an abort nothing of it may be left.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import inmem

_open: list[inmem.Database] = []
_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def database() -> Iterator[None]:
    with inmem.open() as db:
        _open.append(db)
        yield
        _open.clear()


KEYS = ["a", "ab", "abc", "b", "ba", "c", "z"]
TYPES = ["x", "y", "xy"]
keys = st.sampled_from(KEYS)
prefixes = st.sampled_from([None, "", "a", "ab", "b", "q"])
values = st.integers(-5, 5) | st.sampled_from(["text", 1.5, None, [1, {"k": b"v"}]])
numbers = st.integers(-3, 3) | st.just(0.5)
limits = st.none() | st.integers(0, 4)


class Model:
    """What is stored: entries, entries with an expiry, and events."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.expiring: set[str] = set()
        self.events: list[tuple[str, Any]] = []

    def copy(self) -> Model:
        other = Model()
        other.entries, other.expiring = dict(self.entries), set(self.expiring)
        other.events = list(self.events)
        return other

    def put(self, key: str, value: Any, ttl: bool = False) -> None:
        self.entries[key] = value
        (self.expiring.add if ttl else self.expiring.discard)(key)

    def delete(self, key: str) -> bool:
        self.expiring.discard(key)
        return self.entries.pop(key, self) is not self

    def addable(self, key: str) -> bool:
        return type(self.entries.get(key, 0)) in (int, float)

    def add(self, key: str, delta: Any, initial: Any) -> Any:
        if key not in self.entries:
            self.entries[key] = initial
        self.entries[key] += delta
        return self.entries[key]

    def list(self, prefix: str | None, limit: int | None, after: str | None, reverse: bool) -> list[str]:
        found = sorted((k for k in self.entries if k.startswith(prefix or "")), reverse=reverse)
        if after is not None:
            found = [k for k in found if (k < after if reverse else k > after)]
        return found[:limit]


def same(found: Any, expected: Any) -> bool:
    return bool(found == expected) and type(found) is type(expected)


class TransactionMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.db = _open[0]
        self.run = f"run-{next(_numbers)}"
        self.scope = self.db.run(self.run)
        self.stored = Model()
        self.txn: inmem.Transaction | None = None
        self.inside = self.stored
        self.pending: list[tuple[Any, Any]] = []  # (pending append or number, what it must become)

    def teardown(self) -> None:
        if getattr(self, "txn", None) is not None:
            assert self.txn is not None
            self.txn.abort()

    # --- where ------------------------------------------------------------------------------------

    @precondition(lambda self: self.txn is None)
    @rule()
    def open_transaction(self) -> None:
        self.txn = self.scope.transaction()
        self.inside = self.stored.copy()
        self.pending = []

    @precondition(lambda self: self.txn is not None)
    @rule()
    def commit(self) -> None:
        assert self.txn is not None
        self.txn.commit()
        self.txn, self.stored = None, self.inside
        for pending, expected in self.pending:
            if isinstance(pending, inmem.PendingAppend):
                event = self.scope.events.read(pending.sequence)
                assert event is not None
                assert (pending.sequence, pending.hash) == (expected, event.hash)
            else:
                assert same(pending.value, expected)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def abort(self) -> None:
        assert self.txn is not None
        self.txn.abort()
        self.txn, self.inside = None, self.stored

    @precondition(lambda self: self.txn is not None)
    @rule()
    def conflict(self) -> None:
        """Somebody else changes what this transaction reads: it must leave nothing."""
        assert self.txn is not None
        self.txn.kv.get("contended")  # which it never writes itself: then it would not depend on it
        self.txn.kv.put("z", "lost")
        self.txn.events.append("x", "lost")
        self.scope.kv.put("contended", 1)
        self.stored.put("contended", 1)
        with pytest.raises(inmem.ConflictError):
            self.txn.commit()
        self.txn, self.inside = None, self.stored

    @property
    def kv(self) -> Any:
        return self.scope.kv if self.txn is None else self.txn.kv

    @property
    def events(self) -> Any:
        return self.scope.events if self.txn is None else self.txn.events

    # --- writes -----------------------------------------------------------------------------------

    @rule(key=keys, value=values, ttl=st.sampled_from([None, None, 900.0]))
    def put(self, key: str, value: Any, ttl: float | None) -> None:
        version = self.kv.put(key, value, ttl=ttl)
        assert (version is None) == (self.txn is not None)
        self.inside.put(key, value, ttl is not None)

    @rule(entries=st.dictionaries(keys, values, max_size=3))
    def put_many(self, entries: dict[str, Any]) -> None:
        self.kv.put_many(entries)
        for key, value in entries.items():
            self.inside.put(key, value)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.kv.delete(key) is self.inside.delete(key)

    @rule(key=keys, delta=numbers, initial=numbers)
    def add(self, key: str, delta: Any, initial: Any) -> None:
        if not self.inside.addable(key):
            if self.txn is None:
                with pytest.raises(inmem.InvalidValueError):
                    self.kv.add(key, delta, initial=initial)
            return
        found = self.kv.add(key, delta, initial=initial)
        total = self.inside.add(key, delta, initial)
        if self.txn is None:
            assert same(found, total)
        else:
            self.pending.append((found, total))

    @rule(items=st.lists(st.tuples(st.sampled_from(TYPES), values), max_size=3), one=st.booleans())
    def append(self, items: list[tuple[str, Any]], one: bool) -> None:
        if one and items:
            appended = [self.events.append(*items[0])]
            items = items[:1]
        else:
            appended = self.events.append_many(items)
        assert len(appended) == len(items)
        first = len(self.inside.events)
        self.inside.events += items
        for sequence, result in enumerate(appended, first):
            if self.txn is None:
                assert result.sequence == sequence
            else:
                self.pending.append((result, sequence))

    @precondition(lambda self: self.txn is None)
    @rule(entries=st.lists(st.tuples(keys, values | st.just(...)), max_size=6), events=st.integers(0, 3))
    def pipeline(self, entries: list[tuple[str, Any]], events: int) -> None:
        with self.db.pipeline() as pipe:
            for key, value in entries:
                if value is ...:
                    pipe.kv.delete(self.run, key)
                    self.stored.delete(key)
                else:
                    pipe.kv.put(self.run, key, value)
                    self.stored.put(key, value)
            appended = [pipe.events.append(self.run, "x", i) for i in range(events)]
        assert [a.sequence for a in appended] == [len(self.stored.events) + i for i in range(events)]
        self.stored.events += [("x", i) for i in range(events)]

    # --- reads ------------------------------------------------------------------------------------

    @rule(key=keys)
    def get(self, key: str) -> None:
        assert same(self.kv.get(key, "default"), self.inside.entries.get(key, "default"))
        assert self.kv.exists(key) is (key in self.inside.entries)
        versioned = self.kv.get_versioned(key)
        assert (versioned is None) == (key not in self.inside.entries)
        if versioned is not None:
            assert same(versioned.value, self.inside.entries[key])
        ttl = self.kv.ttl(key)
        assert (ttl is not None) == (key in self.inside.expiring)
        assert ttl is None or 0 < ttl <= 900

    @rule(
        prefix=prefixes, limit=limits, after=st.none() | st.sampled_from([*KEYS, "bb"]), reverse=st.booleans()
    )
    def list_keys(self, prefix: str | None, limit: int | None, after: str | None, reverse: bool) -> None:
        expected = self.inside.list(prefix, limit, after, reverse)
        options = {"limit": limit, "start_after": after, "reverse": reverse}
        assert self.kv.list(prefix, **options) == expected
        assert self.kv.list_with_values(prefix, **options) == [(k, self.inside.entries[k]) for k in expected]

    @rule(prefix=prefixes, wanted=st.lists(keys, max_size=4))
    def count(self, prefix: str | None, wanted: list[str]) -> None:
        assert self.kv.count(prefix) == len(self.inside.list(prefix, None, None, False))
        assert self.kv.get_many(wanted) == {k: v for k, v in self.inside.entries.items() if k in wanted}

    @rule(start=st.integers(0, 6), end=st.none() | st.integers(0, 8), limit=limits, reverse=st.booleans())
    def read_range(self, start: int, end: int | None, limit: int | None, reverse: bool) -> None:
        numbered = [(i, *event) for i, event in enumerate(self.inside.events)][start:end]
        found = self.events.read_range(start, end, limit=limit, reverse=reverse)
        assert [(e.sequence, e.event_type, e.payload) for e in found] == (
            numbered[::-1] if reverse else numbered
        )[:limit]

    @rule(at=st.integers(0, 8))
    def read_log(self, at: int) -> None:
        events = self.inside.events
        assert self.events.count() == len(events)
        head, one = self.events.head(), self.events.read(at)
        assert (head and (head.sequence, head.event_type, head.payload)) == (
            (len(events) - 1, *events[-1]) if events else None
        )
        assert (one and (one.event_type, one.payload)) == (events[at] if at < len(events) else None)

    @rule(event_type=st.sampled_from([*TYPES, "none"]), limit=limits, reverse=st.booleans())
    def query_by_type(self, event_type: str, limit: int | None, reverse: bool) -> None:
        expected = [(i, p) for i, (t, p) in enumerate(self.inside.events) if t == event_type]
        found = self.events.query_by_type(event_type, limit=limit, reverse=reverse)
        assert [(e.sequence, e.payload) for e in found] == (expected[::-1] if reverse else expected)[:limit]

    @rule(start=st.integers(0, 4))
    def chain(self, start: int) -> None:
        verification = self.events.verify_chain()
        assert (verification.is_valid, verification.length) == (True, len(self.inside.events))
        assert [(e.event_type, e.payload) for e in self.events.iter(start)] == self.inside.events[start:]

    @invariant()
    def others_see_what_is_stored(self) -> None:
        """A snapshot and a fresh transaction see all that is committed and nothing that is not."""
        if not hasattr(self, "stored"):
            return
        with self.db.snapshot(self.run) as view:
            assert dict(view.kv.list_with_values()) == self.stored.entries
            assert [(e.event_type, e.payload) for e in view.events.read_range(0)] == self.stored.events
            assert view.events.count() == len(self.stored.events)


TestTransactionMachine = TransactionMachine.TestCase
TestTransactionMachine.settings = settings(max_examples=50, stateful_step_count=40)


@pytest.mark.parametrize("seed", range(6))
def test_long_programs(seed: int) -> None:
    """The same machine, driven for longer than shrinking allows."""
    rng = random.Random(seed)

    def value() -> Any:
        return rng.choice([*range(-5, 6), "text", 1.5, None, [1, {"k": b"v"}]])

    def limit() -> int | None:
        return rng.choice([None, *range(5)])

    def flag() -> bool:
        return rng.random() < 0.5

    def pairs(count: int, first: list[str]) -> list[tuple[str, Any]]:
        return [(rng.choice(first), value()) for _ in range(rng.randrange(count))]

    machine = TransactionMachine()
    machine.begin()
    reads = [
        lambda: machine.get(rng.choice(KEYS)),
        lambda: machine.list_keys(rng.choice([None, "", "a", "ab", "b"]), limit(),
                                  rng.choice([None, None, *KEYS, "bb"]), flag()),
        lambda: machine.count(rng.choice([None, "a", "q"]), rng.sample(KEYS, 3)),
        lambda: machine.read_range(rng.randrange(7), rng.choice([None, *range(9)]), limit(), flag()),
        lambda: machine.read_log(rng.randrange(9)),
        lambda: machine.query_by_type(rng.choice([*TYPES, "none"]), limit(), flag()),
        lambda: machine.chain(rng.randrange(5)),
    ]
    writes = [
        lambda: machine.put(rng.choice(KEYS), value(), rng.choice([None, None, 900.0])),
        lambda: machine.put_many(dict(pairs(4, KEYS))),
        lambda: machine.delete(rng.choice(KEYS)),
        lambda: machine.delete(rng.choice(KEYS)),
        lambda: machine.add(rng.choice(KEYS), rng.choice([-1, 2, 0.5]), rng.choice([0, 10])),
        lambda: machine.append(pairs(3, TYPES), flag()),
    ]
    ends = [machine.commit, machine.commit, machine.commit, machine.abort, machine.conflict]
    try:
        for _ in range(400):
            step = rng.random()
            if step < 0.15:
                if machine.txn is None:
                    machine.open_transaction()
                else:
                    rng.choice(ends)()
            elif step < 0.2 and machine.txn is None:
                machine.pipeline([(k, ... if flag() else v) for k, v in pairs(6, KEYS)], rng.randrange(3))
            else:
                rng.choice(reads if flag() else writes)()
            machine.others_see_what_is_stored()
    finally:
        machine.teardown()
