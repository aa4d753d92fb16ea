"""The committer against a dictionary: accepted commits equal their serial execution, in version order.

Several clients read from old snapshots, commit in groups of any order, send
again what they sent before, and meet publishing that fails, restarts, time
that passes and sweeps. Each answer is judged by the model: an accepted commit
read what the serial state gives; a refused one read something else.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from committing import (
    NS,
    SECOND,
    Bench,
    Client,
    append,
    body,
    call,
    delete,
    error_of,
    kv_key,
    put,
    results_of,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inmem import values
from inmem.keys import TypeTag, range_of
from inmem.primitives.events import rules as event_log
from inmem.wire import APPLIED, FAILED
from inmem.writer.committer import Answer, Request

RUNS = ("r", "s")
NAMES = "abcd"
KEYS = [kv_key(run, name) for run in RUNS for name in NAMES]

keys = st.sampled_from(KEYS)
runs = st.sampled_from(RUNS)
clients = st.integers(0, 2)
operations = st.one_of(
    st.tuples(st.just("put"), keys, st.integers(0, 9) | st.just("text"), st.sampled_from([0, 0, 1, 2, 5])),
    st.tuples(st.sampled_from(["delete", "kv.delete"]), keys),
    st.tuples(st.just("kv.add"), keys, st.integers(-3, 3), st.just(10)),
    st.tuples(
        st.just("append"), runs, st.lists(st.tuples(st.just("t"), st.integers(0, 9)), min_size=1, max_size=3)
    ),
)
drafts = st.tuples(
    st.sets(keys, max_size=2),
    st.lists(
        st.sampled_from([("r", "a", "c"), ("r", "b", ""), ("r", "", ""), ("s", "", ""), ("s", "d", "e")]),
        max_size=2,
    ),
    st.sets(runs, max_size=1),
    st.lists(operations, max_size=3),
)
PLANS: list[list[bool | None]] = [
    [], [], [], [], [True], [True, True], [True, None, True], [True, True, True, True]
]


@dataclass(frozen=True)
class Entry:
    """One live record of the model."""

    value: Any
    version: int
    expires: int = 0


@dataclass
class World:
    """The serial state: entries by key, and the events of each run's log."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    logs: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)
    logs_at: dict[str, list[int]] = field(default_factory=dict)  # the version of each event

    def live(self, now: int) -> dict[bytes, Entry]:
        return {k: e for k, e in self.entries.items() if not e.expires or e.expires > now}

    def copy(self) -> World:
        return World(
            dict(self.entries), {k: list(v) for k, v in self.logs.items()},
            {k: list(v) for k, v in self.logs_at.items()},
        )


@dataclass
class Draft:
    """What a client has read and wants to do."""

    world: World
    version: int
    now: int
    reads: set[bytes] = field(default_factory=set)
    ranges: list[tuple[bytes, bytes]] = field(default_factory=list)
    pins: set[str] = field(default_factory=set)  # logs of which it depends on the end
    ops: list[tuple[Any, ...]] = field(default_factory=list)

    def seen(self, world: World, now: int) -> Any:
        """What these reads give in a world."""
        live = world.live(now)
        return (
            {k: live[k].version if k in live else 0 for k in self.reads},
            [[(k, e.version) for k, e in sorted(live.items()) if a <= k < b] for a, b in self.ranges],
            {run: world.logs.get(run, []) for run in self.pins},
        )

    def encode(self) -> bytes:
        live = self.world.live(self.now)
        ranges = [(a, b, sum(a <= k < b for k in live)) for a, b in self.ranges]
        for run in self.pins:
            start, end = range_of(NS.run_prefix(run), TypeTag.EVENT)
            length = len(self.world.logs.get(run, []))
            last = start + (length - 1).to_bytes(8, "big") if length else start
            ranges.append((last, end, min(length, 1)))
        met = [
            e.expires for k, e in live.items()
            if e.expires and (k in self.reads or any(a <= k < b for a, b in self.ranges))
        ]
        ops = []
        for kind, *args in self.ops:
            if kind == "put":
                ops.append(put(*args))
            elif kind == "delete":
                ops.append(delete(*args))
            elif kind == "append":
                run, items = args
                ops.append(append(run, *items))
            else:
                ops.append(call(kind, *args))
        reads = {k: live[k].version if k in live else 0 for k in self.reads}
        return body(*ops, reads=reads, ranges=ranges, snapshot=self.version, expiry=min(met, default=0))


def execute(world: World, ops: list[tuple[Any, ...]], version: int, now: int) -> list[Any] | None:
    """Run the operations serially; the results of the calls, None if a rule refuses them."""
    results: list[Any] = []
    for kind, *args in ops:
        live = world.live(now)
        if kind == "put":
            key, value, expires = args
            world.entries[key] = Entry(value, version, expires)
        elif kind == "delete":
            world.entries.pop(args[0], None)
        elif kind == "kv.delete":
            results.append(args[0] in live)
            if args[0] in live:
                del world.entries[args[0]]
        elif kind == "kv.add":
            key, delta, initial = args
            current = live[key].value if key in live else initial
            if type(current) is not int:
                return None
            world.entries[key] = Entry(current + delta, version, live[key].expires if key in live else 0)
            results.append(current + delta)
        else:
            run, items = args
            log = world.logs.setdefault(run, [])
            results.append(len(log))
            log.extend(items)
            world.logs_at.setdefault(run, []).extend([version] * len(items))
    return results


@dataclass
class Sent:
    """A request, and its answer once there is one."""

    request: Request
    draft: Draft
    answer: Answer | None = None
    durable: bool = False


class CommitMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="it-", dir="/dev/shm"))
        self.bench = Bench(self.directory / "image", max_in_flight=4)
        self.world = World()
        self.clients: list[Client] = [self.bench.client(f"c{i}") for i in range(3)]
        self.drafts: list[Draft | None] = [None] * 3
        self.waiting: list[list[Sent]] = [[], [], []]  # sent, whose answers the client has not taken
        self.accepted = self.refused = 0

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            try:
                self.bench.assert_log_is_image()
            finally:
                self.bench.close()
                shutil.rmtree(self.directory)

    def draft(self, client: int) -> Draft:
        found = self.drafts[client]
        if found is None:
            published = self.bench.store.position
            assert published is not None
            found = self.drafts[client] = Draft(self.world.copy(), published.version, self.bench.now)
        return found

    # --- what a program does before its commit ---------------------------------------------------

    @rule(client=clients, wanted=drafts)
    def work(self, client: int, wanted: tuple[Any, ...]) -> None:
        """Read and buffer writes, in a transaction that may have begun long ago."""
        read, ranges, pins, ops = wanted
        draft = self.draft(client)
        draft.reads |= read
        draft.pins |= pins
        for run, low, high in ranges:
            start, end = range_of(NS.run_prefix(run), TypeTag.KV)
            draft.ranges.append((start + low.encode(), start + high.encode() if high else end))
        for kind, *args in ops:
            if kind == "put":
                key, value, ttl = args
                args = [key, value, ttl and self.bench.now + ttl * SECOND]
            draft.ops.append((kind, *args))

    @rule(client=clients)
    def abandon(self, client: int) -> None:
        self.drafts[client] = None

    # --- commits ------------------------------------------------------------------------------------

    def judge(self, sent: Sent) -> None:
        """Compare one answer with the serial execution, which it then becomes part of."""
        answer, draft = sent.answer, sent.draft
        assert answer is not None
        now = self.bench.now
        unchanged = draft.seen(self.world, now) == draft.seen(draft.world, draft.now)
        if answer.status == APPLIED:
            self.accepted += 1
            assert unchanged, "accepted, although something that it read has changed"
            before = self.world.copy()
            results = execute(self.world, draft.ops, answer.version, now)
            # What changes nothing has no version of its own, so that no version names two states.
            changed = before.entries != self.world.entries or any(
                log != before.logs.get(run, []) for run, log in self.world.logs.items()
            )
            assert answer.version > self.last_version if changed else answer.version >= self.last_version
            self.last_version = answer.version
            found = [r[0] if isinstance(r, list) else r for r in results_of(answer)]
            assert found == results
            return
        assert answer.status == FAILED
        self.refused += 1
        code = error_of(answer).code
        if code == "conflict":
            assert not unchanged, "refused, although nothing that it read has changed"
        elif code == "invalid_value":
            assert unchanged
            assert execute(self.world.copy(), draft.ops, 0, now) is None
        else:
            assert code == "store_full"
            assert self.planned, "nothing was planned to fail"

    @rule(
        order=st.permutations(range(3)), count=st.integers(1, 3),
        plan=st.sampled_from(PLANS),
        keep=st.booleans(), again=st.booleans(),
    )
    def commit(self, order: list[int], count: int, plan: list[bool | None], keep: bool, again: bool) -> None:
        """One group of drafts; with some requests of before in between, and publishing that may fail."""
        self.last_version = self.bench.committer.version
        self.planned = any(plan)
        group: list[Sent] = []
        for client in order[:count]:
            if again:
                group += [Sent(s.request, s.draft, s.answer) for s in self.waiting[client]]
            if self.drafts[client] is not None and len(self.waiting[client]) < 3:
                draft = self.draft(client)
                sent = Sent(self.clients[client].request(draft.encode()), draft)
                self.waiting[client].append(sent)
                group.append(sent)
                self.drafts[client] = None
        if not group:
            return
        self.bench.store.plan = list(plan)
        answers = self.bench.commit(*[sent.request for sent in group])
        self.bench.store.plan = []
        for sent, answer in zip(group, answers, strict=True):
            if sent.answer is not None:
                assert answer == sent.answer, "a duplicate got another answer"
            else:
                sent.answer = answer
                self.judge(sent)
        if not keep:
            self.take_answers()

    @rule()
    def take_answers(self) -> None:
        for client, waiting in zip(self.clients, self.waiting, strict=True):
            waiting.clear()
            client.answered_below = client.next

    @precondition(lambda self: any(self.waiting))
    @rule(client=clients)
    def send_other_content(self, client: int) -> None:
        for sent in self.waiting[client]:
            request = sent.request._replace(body=sent.request.body + b"\0")
            [answer] = self.bench.commit(request)
            assert answer.status == 3

    @rule(client=clients, skip=st.integers(1, 3))
    def send_with_a_gap(self, client: int, skip: int) -> None:
        some = self.clients[client]
        last = self.bench.sessions.last_sequence(some.session)
        [answer] = self.bench.commit(
            Request(
                some.session, some.next + skip, min(some.answered_below, some.next), body(put(KEYS[0], "gap"))
            )
        )
        assert (answer.status, answer.version) == (2, last + 1)

    # --- the world around ------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.bench.now += seconds * SECOND

    @rule(limit=st.integers(1, 4))
    def sweep(self, limit: int) -> None:
        self.bench.committer.sweep(self.bench.now, limit)

    @rule()
    def restart(self) -> None:
        """The next writer knows what was published; an answer that was not kept may be decided anew."""
        published = self.bench.store.position
        assert published is not None
        self.bench.restart()
        kept = {bytes(client.session): self.bench.sessions.last_sequence(client.session)
                for client in self.clients}
        for client, waiting in zip(self.clients, self.waiting, strict=True):
            for sent in waiting:
                if sent.request.sequence <= kept[client.session]:
                    assert self.bench.commit(sent.request) == [sent.answer]
        self.take_answers()
        # Versions of commits that changed nothing were never published, and may be given again.
        assert self.bench.committer.version <= published.version + 12

    @rule(smaller=st.booleans())
    def forget_recent_writes(self, smaller: bool) -> None:
        self.bench.committer._recent._limit = 1 if smaller else 3

    @invariant()
    def stored_is_serial(self) -> None:
        if not hasattr(self, "bench"):
            return
        stored = self.bench.live()
        live = self.world.live(self.bench.now)
        assert {k: (e.version, values.encode(e.value)) for k, e in live.items()} == {
            k: v for k, v in stored.items() if k in KEYS
        }
        for run in RUNS:
            start, end = range_of(NS.run_prefix(run), TypeTag.EVENT)
            records = [(k, v) for k, (_, v) in sorted(stored.items()) if start <= k < end]
            events = [event_log.unpack(i, payload) for i, (_, payload) in enumerate(records)]
            assert [int.from_bytes(k[-8:], "big") for k, _ in records] == list(range(len(records)))
            found = [(e.event_type.decode(), values.decode(e.payload)) for e in events]
            assert found == self.world.logs.get(run, [])


TestCommitMachine = CommitMachine.TestCase
TestCommitMachine.settings = settings(max_examples=150, stateful_step_count=40)


def drawn(rng: random.Random) -> tuple[Any, ...]:
    """What `drafts` draws, for long histories."""
    def operation() -> tuple[Any, ...]:
        kind = rng.choice(["put", "put", "delete", "kv.delete", "kv.add", "append"])
        if kind == "append":
            return kind, rng.choice(RUNS), [("t", i) for i in range(rng.randrange(1, 3))]
        key = rng.choice(KEYS)
        if kind == "put":
            return kind, key, rng.choice([*range(10), "text"]), rng.choice([0, 0, 1, 2, 5])
        return (kind, key, rng.randrange(-3, 4), 10) if kind == "kv.add" else (kind, key)

    ranges = [("r", "a", "c"), ("r", "b", ""), ("r", "", ""), ("s", "", ""), ("s", "d", "e")]
    return (
        set(rng.sample(KEYS, rng.choice([0, 0, 1, 2]))), rng.sample(ranges, rng.choice([0, 0, 1, 2])),
        set(rng.sample(RUNS, rng.choice([0, 0, 0, 1]))), [operation() for _ in range(rng.randrange(1, 4))],
    )


@pytest.mark.parametrize("seed", range(12))
def test_long_histories(seed: int) -> None:
    """The same machine, driven for longer than shrinking allows; both answers must be common."""
    rng = random.Random(seed)
    machine = CommitMachine()
    machine.begin()
    try:
        for _ in range(1500):
            step = rng.random()
            if step < 0.45:
                machine.work(rng.randrange(3), drawn(rng))
            elif step < 0.85:
                machine.commit(
                    rng.sample(range(3), 3), rng.randrange(1, 4), rng.choice(PLANS), rng.random() < 0.3,
                    rng.random() < 0.3,
                )
            elif step < 0.90:
                machine.time_passes(rng.randrange(1, 3))
            elif step < 0.94:
                machine.sweep(rng.randrange(1, 5))
            elif step < 0.96:
                machine.restart()
            elif step < 0.98:
                machine.forget_recent_writes(rng.random() < 0.5)
            else:
                machine.abandon(rng.randrange(3))
            machine.stored_is_serial()
        print(f"seed {seed}: {machine.accepted} accepted, {machine.refused} refused")
        assert machine.accepted > 100
        assert machine.refused > 100
    finally:
        machine.teardown()
