"""On a server: the connection is cut at every message of a commit, each way; a commit is made once."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from postgres_server import PostgresServer
from wire_proxy import CUT_AFTER, CUT_BEFORE, STALL, TO_CLIENT, TO_SERVER, WireProxy

import inmem
import inmem.aio
from inmem import CommitUnknownError
from inmem.keys import Key, Namespace
from inmem.values import encode
from inmem.writeset import OP_PUT, encode_single

RUN = "r"
SHARE = 1.0 if os.environ.get("INMEM_EXHAUSTIVE") else 0.04
STEADY_S = 30.0
SHORT_S = 0.15  # of who is to see that no answer comes


class Commits:
    """One kind of commit: what is done, and whether it was done once."""

    def __init__(self, db: inmem.Database, steady: inmem.Database, timeout_s: float) -> None:
        """`db` is behind the proxy, `steady` is not."""
        self.timeout_s = timeout_s
        self.n = 0
        self.hit = db.run(RUN)
        self.run = steady.run(RUN)

    def prepare(self) -> None:
        """What must be there before, made without faults."""

    def do(self) -> Any:
        raise NotImplementedError

    def is_done(self, result: Any) -> bool:
        """Whether it is there once; with a result, as that says. False: it is not there."""
        raise NotImplementedError


class Put(Commits):
    def do(self) -> Any:
        return self.hit.kv.put(f"k{self.n}", self.n)

    def is_done(self, result: Any) -> bool:
        entry = self.run.kv.get_versioned(f"k{self.n}")
        assert entry is None or (entry.value == self.n and result in (None, entry.version))
        return entry is not None


class Append(Commits):
    def prepare(self) -> None:
        self.count = self.run.events.count()

    def do(self) -> Any:
        return self.hit.events.append("e", self.n)

    def is_done(self, result: Any) -> bool:
        events = self.run.events.read_range(self.count)
        assert [event.payload for event in events] in ([], [self.n])
        assert self.run.events.verify_chain().is_valid
        return bool(events)


class Cas(Commits):
    def prepare(self) -> None:
        if not self.n:
            self.run.cells.init("c", 0)
        cell = self.run.cells.read("c")
        assert cell is not None
        self.before = cell

    def do(self) -> Any:
        return self.hit.cells.cas("c", self.before.version, self.n)

    def is_done(self, result: Any) -> bool:
        cell = self.run.cells.read("c")
        assert cell is not None
        assert cell == self.before or (cell.version, cell.value) == (self.before.version + 1, self.n)
        assert result in (None, cell.version)
        return cell != self.before


class Transaction(Commits):
    """Over four primitives, with reads."""

    def prepare(self) -> None:
        self.before = self._state()

    def _state(self) -> list[int]:
        with self.run.snapshot() as view:
            cell = view.cells.read("t")
            return [
                view.kv.get("t", 0), view.events.count(), 0 if cell is None else cell.value,
                view.traces.count(),
            ]

    def do(self) -> Any:
        def fn(txn: Any) -> Any:
            txn.kv.put("t", txn.kv.get("t", 0) + 1)
            txn.events.append("t", self.n)
            if txn.cells.exists("t"):
                txn.cells.transition("t", lambda state: (state.value + 1, None))
            else:
                txn.cells.init("t", 1)
            txn.traces.record(inmem.Thought(f"t{self.n}"))
            return self.n

        return self.hit.transact(fn, timeout_s=self.timeout_s)

    def is_done(self, result: Any) -> bool:
        assert result in (None, self.n)
        after = self._state()
        assert after in (self.before, [number + 1 for number in self.before])
        return after != self.before


class Claim(Commits):
    def prepare(self) -> None:
        self.job_id = self.run.queues.put("q", self.n)
        self.before = self.run.queues.counts("q").claimed

    def do(self) -> Any:
        return self.hit.queues.claim("q", lease_s=600)

    def is_done(self, result: Any) -> bool:
        counts = self.run.queues.counts("q")
        assert counts.claimed - self.before in (0, 1)
        if result is not None:
            assert (result.payload, result.attempt) == (self.n, 1)
            self.run.queues.ack(result)
            assert self.run.queues.counts("q").claimed == self.before
            return True
        return counts.claimed > self.before


class Ack(Commits):
    def prepare(self) -> None:
        self.run.queues.put("a", self.n)
        self.job = self.run.queues.claim("a", lease_s=600)
        assert self.job is not None

    def do(self) -> Any:
        return self.hit.queues.ack(self.job, self.n)

    def is_done(self, result: Any) -> bool:
        counts = self.run.queues.counts("a")
        assert (counts.ready, counts.dead) == (0, 0)
        assert counts.claimed in (0, 1)
        return not counts.claimed


KINDS: list[type[Commits]] = [Put, Append, Cas, Transaction, Claim, Ack]


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[WireProxy]:
    proxy = WireProxy(postgres_server.place)
    yield proxy
    proxy.close()


def messages_of(proxy: WireProxy, commits: Commits) -> dict[str, int]:
    """How many messages a commit has, each way; the most of some."""
    most = {TO_SERVER: 0, TO_CLIENT: 0}
    for number in range(4):  # at first rows are made, and statements prepared
        commits.prepare()
        proxy.arm(TO_SERVER, 1 << 30, CUT_AFTER)
        result = commits.do()
        if number > 1:
            most = {way: max(most[way], proxy.counts[way]) for way in most}
        proxy.release()
        assert commits.is_done(result)
        commits.n += 1
    return most


def opened(url: str) -> inmem.Database:
    """A handle that does not wait long; the machine may be busy."""
    while True:
        try:
            return inmem.open(url, timeout_s=SHORT_S)
        except inmem.WriterUnavailableError:
            time.sleep(0.1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.lower())
def test_each_commit_is_made_once(
    proxy: WireProxy, postgres_server: PostgresServer, kind: type[Commits], rng: random.Random
) -> None:
    schema = f"cut_{os.getpid()}_{kind.__name__.lower()}"
    with (
        inmem.open(postgres_server.url_of(schema), timeout_s=STEADY_S) as steady,
        inmem.open(proxy.url_of(schema), timeout_s=STEADY_S) as db,
    ):
        commits = kind(db, steady, STEADY_S)
        cuts = [
            (way, number, action) for way, count in messages_of(proxy, commits).items()
            for number in range(1, count + 1) for action in (CUT_BEFORE, CUT_AFTER)
        ]
        chosen = rng.sample(cuts, max(10, round(SHARE * len(cuts))))
        fired = 0
        for way, number, action in chosen:
            commits.prepare()
            proxy.arm(way, number, action)
            result = commits.do()  # no error within the deadline
            fired += proxy.fired.is_set()
            proxy.release()
            assert commits.is_done(result), f"{action} at {number} {way}: answered, and not there"
            commits.n += 1
        print(f"{kind.__name__}: {len(chosen)} of {len(cuts)} cuts, {fired} in time; doubled 0, lost 0")
        assert fired > len(chosen) / 4


@pytest.mark.timeout(600)
@pytest.mark.parametrize("action", [CUT_BEFORE, CUT_AFTER, STALL])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.lower())
def test_what_is_not_answered_in_time_is_told_when_it_is_asked_again(
    proxy: WireProxy, postgres_server: PostgresServer, kind: type[Commits], action: str, rng: random.Random
) -> None:
    schema = f"unknown_{os.getpid()}_{kind.__name__.lower()}_{action.replace(' ', '_')}"
    with (
        inmem.open(postgres_server.url_of(schema), timeout_s=STEADY_S) as steady,
        inmem.open(proxy.url_of(schema), timeout_s=STEADY_S) as db,
    ):
        commits = kind(db, steady, STEADY_S)
        counts = messages_of(proxy, commits)
        begun = commits.n
    with (
        inmem.open(postgres_server.url_of(schema), timeout_s=STEADY_S) as steady,
        opened(proxy.url_of(schema)) as db,
    ):
        commits = kind(db, steady, SHORT_S)
        commits.n = begun
        points = [(way, number) for way in counts for number in range(1, counts[way] + 1)]
        told: dict[str, int] = {}
        for way, number in rng.sample(points, max(2, round(SHARE * len(points) / 4))):
            commits.prepare()
            proxy.arm(way, number, action, refuse=action != STALL)
            began = time.monotonic()
            error: Exception | None = None
            result = None
            try:
                result = commits.do()
            except (CommitUnknownError, inmem.WriterUnavailableError, inmem.SnapshotTooOldError) as caught:
                error = caught
            took = time.monotonic() - began
            proxy.release()
            assert took < 5.0, f"{took} s, for a deadline of {SHORT_S} s"
            if isinstance(error, CommitUnknownError):
                result = error.resend(STEADY_S)
                assert commits.is_done(result), f"{action} at {number} {way}"
                again = error.resend(STEADY_S)  # however often: the same
                assert kind is Claim or (again == result and commits.is_done(result))
            elif error is not None:
                assert not commits.is_done(None), f"{error!r}, and it was made"
                commits.hit, hit = commits.run, commits.hit
                assert commits.is_done(commits.do())
                commits.hit = hit
            else:
                assert commits.is_done(result)
            name = type(error).__name__
            told[name] = told.get(name, 0) + 1
            commits.n += 1
        print(f"{kind.__name__}, {action}: {told}")


@pytest.mark.timeout(120)
def test_each_commit_of_a_group_is_resolved(proxy: WireProxy, postgres_server: PostgresServer) -> None:
    """Those that travelled together, and had no answer: each tells what became of it, every time."""
    schema = f"group_{os.getpid()}"
    keys = [Key.kv(Namespace(), RUN, f"k{n}") for n in range(3)]
    unknown = 0
    with (
        inmem.open(postgres_server.url_of(schema), timeout_s=STEADY_S) as steady,
        opened(proxy.url_of(schema)) as db,
    ):
        for number in range(1, 30):
            session = db.engine.session()  # type: ignore[attr-defined]
            session.commit(encode_single([OP_PUT, keys[0], encode(-1), 0]), sync=False, timeout_s=STEADY_S)
            sequences = [
                session.submit(encode_single([OP_PUT, key, encode(number), 0]), sync=False, timeout_s=SHORT_S)
                for key in keys
            ]
            proxy.arm(TO_CLIENT, number, STALL)
            errors: list[CommitUnknownError] = []
            for sequence in sequences:
                try:
                    session.outcome(sequence, SHORT_S)
                except CommitUnknownError as error:
                    errors.append(error)
                except inmem.WriterUnavailableError:
                    pass
            proxy.release()
            assert len(errors) in (0, 3), "one outcome for all"
            found = [error.resend(STEADY_S) for error in errors]
            assert found == [error.resend(STEADY_S) for error in errors]
            for key, applied in zip(("k0", "k1", "k2"), found, strict=False):
                entry = steady.kv.get_versioned(RUN, key)
                assert entry is not None
                assert (entry.value, entry.version) == (number, applied.version)
            unknown += len(errors)
    print(f"{unknown} commits of groups were in doubt: each resolved, twice the same")
    assert unknown


def looked(view: Any) -> Any:
    """What is waited for: more than one read, so that the snapshot is there when a connection is cut."""
    return view.kv.get("a") or view.cells.read("a") or view.kv.get("k")


def waited(db: inmem.Database) -> None:
    """Wait for a key and for a lease, with a thread."""
    assert db.wait(RUN, looked, timeout_s=STEADY_S) == 1
    db.leases.release(db.leases.acquire(RUN, "l", ttl_s=STEADY_S, wait_s=STEADY_S))


async def awaited(db: inmem.aio.AsyncDatabase) -> None:
    """The same by a loop."""
    assert await db.wait(RUN, looked, timeout_s=STEADY_S) == 1
    await db.leases.release(await db.leases.acquire(RUN, "l", ttl_s=STEADY_S, wait_s=STEADY_S))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["thread", "loop"])
def test_who_waits_goes_on_when_the_connection_is_cut(
    proxy: WireProxy, postgres_server: PostgresServer, form: str, rng: random.Random
) -> None:
    schema = f"cut_{os.getpid()}_wait_{form}"
    waits = {TO_SERVER: 24, TO_CLIENT: 48}  # messages, about
    cuts = [(way, number) for way, count in waits.items() for number in range(1, count)]
    chosen = rng.sample(cuts, max(16, round(SHARE * len(cuts))))
    fired = 0
    with inmem.open(postgres_server.url_of(schema), timeout_s=STEADY_S) as steady:

        def change() -> None:
            """What is waited for comes a moment after the cut, or without one if that many are not sent."""
            proxy.fired.wait(0.3)
            steady.kv.put(RUN, "k", 1)
            steady.leases.release(held)

        def waits_through(wait: Callable[[], None], way: str, number: int) -> None:
            nonlocal held, fired
            steady.kv.delete(RUN, "k")
            held = steady.leases.acquire(RUN, "l", ttl_s=STEADY_S, wait_s=STEADY_S)
            proxy.arm(way, number, CUT_BEFORE)
            changing = threading.Thread(target=change)
            changing.start()
            try:
                wait()
            finally:
                changing.join()
                fired += proxy.fired.is_set()
                proxy.release()

        held: Any = None
        if form == "thread":
            with inmem.open(proxy.url_of(schema), timeout_s=STEADY_S) as db:
                for way, number in chosen:
                    waits_through(partial(waited, db), way, number)
        else:
            with asyncio.Runner() as runner:
                opening = inmem.aio.open(proxy.url_of(schema), timeout_s=STEADY_S)
                handle = runner.run(opening.__aenter__())
                for way, number in chosen:
                    waits_through(lambda: runner.run(awaited(handle)), way, number)
                runner.run(handle.close())
    print(f"{form}: {len(chosen)} cuts, {fired} in time")
    assert fired > len(chosen) / 4
