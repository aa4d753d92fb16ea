"""Wrong ways to commit on a server, each planted once: the tests of commits have to notice it."""

from __future__ import annotations

import copy
import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from postgres_server import PostgresServer
from support import in_threads
from wire_proxy import CUT_BEFORE, TO_CLIENT, WireProxy

import inmem
from inmem.engines.postgres.asking import AskedConnection, Statement
from inmem.engines.postgres.connections import CLOCK
from inmem.engines.postgres.moment import SeenBuckets
from inmem.engines.postgres.statements import LOCKED, RECORDS

THREADS = 6
ROUNDS = 12
PATIENCE_S = 15.0


Answers = list[list[Any]]
Arranged = tuple[list[Any], Callable[[Answers], Answers]]


def as_it_is(asked: list[Any]) -> Arranged:
    return asked, lambda answers: answers


class Planted:
    """Changes statements on their way to the server, or what is asked at once, and counts what that says."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str],
        arranged: Callable[[list[Any]], Arranged] = as_it_is,
    ) -> None:
        self.changed = 0
        self.deadlocks = 0
        self.failures = 0
        plain, send = AskedConnection.ask, AskedConnection._send
        changed: dict[bytes, Statement] = {}  # of each text one, as they are prepared

        def planted(statement: Statement) -> Statement:
            text = change(statement.text.decode()).encode()
            self.changed += text != statement.text
            if text not in changed:
                changed[text] = copy.copy(statement)
                changed[text].text = text
            return changed[text]

        def sent(connection: Any, asked: Any) -> Any:
            return send(connection, [(planted(statement), values) for statement, values in asked])

        def counted(connection: Any, *asked: Any) -> Any:
            others, told = arranged([*asked])
            self.changed += others != [*asked]
            try:
                return told(plain(connection, *others))
            except psycopg.errors.DeadlockDetected:
                self.deadlocks += 1
                raise
            except psycopg.errors.SerializationFailure:
                self.failures += 1
                raise

        monkeypatch.setattr(AskedConnection, "_send", sent)
        monkeypatch.setattr(AskedConnection, "ask", counted)


# --- what has to notice ---------------------------------------------------------------------------


def additions(db: inmem.Database, planted: Planted, _: PostgresServer) -> None:
    """Read, add one, write; over two runs, in both orders."""

    before = db.kv.get("a", "n", 0)

    def work(index: int) -> None:
        def step(txn: Any) -> None:
            for run in ("a", "b") if index % 2 else ("b", "a"):
                kv = txn.at(run).kv
                kv.put("n", kv.get("n", 0) + 1)

        for _ in range(ROUNDS):
            if planted.deadlocks or planted.failures:
                return  # it is found out
            db.transact("a", step, timeout_s=PATIENCE_S, max_attempts=1000)

    try:
        in_threads(THREADS, work, 90.0)
    finally:
        assert planted.deadlocks == 0, "deadlocks"
        assert planted.failures == 0, "failures of serialization"
    assert db.kv.get("a", "n") == db.kv.get("b", "n") == before + THREADS * ROUNDS, "additions are lost"


def counter(db: inmem.Database, planted: Planted, _: PostgresServer) -> None:
    """Several add to one counter."""
    before = db.kv.get("a", "n", 0)

    def work(index: int) -> None:
        def step(txn: Any) -> None:
            txn.kv.put("n", txn.kv.get("n", 0) + 1)

        for _ in range(ROUNDS):
            db.kv.add("a", "n")
            db.transact("a", step, timeout_s=PATIENCE_S, max_attempts=1000)

    in_threads(THREADS, work, 90.0)
    assert db.kv.get("a", "n") == before + 2 * THREADS * ROUNDS, "additions are lost"


def log(db: inmem.Database, planted: Planted, _: PostgresServer) -> None:
    """Several append to one log."""
    before = db.events.count("a")
    own: list[list[int]] = [[] for _ in range(THREADS)]

    def work(index: int) -> None:
        own[index] += [db.events.append("a", "e", index).sequence for _ in range(ROUNDS)]

    in_threads(THREADS, work, 90.0)
    sequences = sorted(sequence for some in own for sequence in some)
    assert sequences == [*range(before, before + THREADS * ROUNDS)], "events are overwritten"
    assert db.events.verify_chain("a").is_valid


def rows(db: inmem.Database, planted: Planted, _: PostgresServer) -> None:
    """Each row has the number of those before it: a phantom overwrites one."""

    def work(index: int) -> None:
        def step(txn: Any) -> None:
            txn.kv.put(f"row/{txn.kv.count('row/'):06}", index)

        for _ in range(ROUNDS):
            db.transact("rows", step, timeout_s=60.0, max_attempts=1000)

    in_threads(THREADS, work, 90.0)
    assert db.kv.count("rows", "row/") == THREADS * ROUNDS, "rows are overwritten"


def deleted(db: inmem.Database, planted: Planted, _: PostgresServer) -> None:
    """Nothing lands in a run that was deleted."""
    db.runs.create_run(run_id="gone")
    db.runs.delete_run("gone")
    with pytest.raises(inmem.RunDeletedError):
        db.kv.put("gone", "a", 1)


def cuts(db: inmem.Database, planted: Planted, server: PostgresServer) -> None:
    """Connections are cut before the answer of a commit comes."""
    proxy = WireProxy(server.place)
    try:
        url = db._engine.store.address.schema
        with inmem.open(proxy.url_of(url), timeout_s=5.0) as other:
            other.kv.add("cut", "n", 1)
            for number in range(1, 40):
                proxy.arm(TO_CLIENT, number, CUT_BEFORE)
                assert other.kv.add("cut", "n", 1) == number + 1, "an addition was made twice"
                proxy.release()
    finally:
        proxy.close()


# --- what is planted ------------------------------------------------------------------------------

def locking(how: Callable[[], str]) -> Callable[[str], str]:
    """Locks rows of buckets in another way; `{}` is what is locked, if that has to be said."""
    return lambda query: re.sub(
        " order by bucket for update( of b)?", lambda found: how().format(found[1] or ""), query
    )


def locked_with_records(text: str, takes: str) -> Callable[[list[Any]], Arranged]:
    """Locks rows of buckets and reads records by one statement: what it reads is of before it waited.

    It shows rows of buckets with all records, packed, as a sixth column.
    """
    both = Statement(text, takes, "biiiib")

    def arranged(asked: list[Any]) -> Arranged:
        at = next((at for at, (query, _) in enumerate(asked) if query is LOCKED), len(asked))
        if at + 1 >= len(asked) or asked[at + 1][0] is not RECORDS:
            return as_it_is(asked)

        def told(answers: Answers) -> Answers:
            rows = answers[at]
            packed = rows[0][5] if rows else None
            locked = [row[:5] for row in rows]
            return [*answers[:at], locked, [*unpacked(packed or b"")], *answers[at + 1 :]]

        return [*asked[:at], (both, (*asked[at][1], *asked[at + 1][1])), *asked[at + 2 :]], told

    return arranged


_PACKED = (
    "(select string_agg(int4send(length(key)) || key || int4send(length(record)) || record, ''::bytea)"
    " from records where key = any($2))"
)


def unpacked(packed: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and records of what `_PACKED` gives."""
    parts: list[bytes] = []
    while packed:
        size = int.from_bytes(packed[:4], "big")
        parts.append(packed[4 : 4 + size])
        packed = packed[4 + size :]
    yield from zip(parts[::2], parts[1::2], strict=True)


NOT_LOCKED = Statement(LOCKED.text.decode().removesuffix(" for update"), "B", "biiii")


def head_is_locked(asked: list[Any]) -> Arranged:
    """Not the bucket is locked, but the last record of a range that is read with it."""

    def changed(query: Statement) -> Statement:
        if query is LOCKED:
            return NOT_LOCKED
        text = query.text.decode()
        return Statement(f"{text} for update", "bbi", "bb") if text.endswith(" desc limit $3") else query

    if not any(query is LOCKED for query, _ in asked):
        return as_it_is(asked)
    return [(changed(query), values) for query, values in asked], lambda answers: answers


ARRANGED = {
    "the last record is locked": head_is_locked,
    "locks and reads in one statement": locked_with_records(
        f"select bucket, version, state, {CLOCK}, waiting, {_PACKED} from buckets where bucket = any($1)"
        " order by bucket for update", "BB",
    ),
    "reads in returning": locked_with_records(
        "update buckets set waiting = waiting where bucket = any($1)"
        f" returning bucket, version, state, {CLOCK}, waiting, {_PACKED}", "BB",
    ),
}


PLANTS: dict[str, Callable[[str], str]] = {
    "nothing": lambda query: query,
    "no locks": locking(lambda: " order by bucket"),
    "shared locks": locking(lambda: " order by bucket for share{}"),
    "locks in any order": locking(
        lambda: f" order by {random.choice(('bucket', 'bucket desc'))} for update{{}}"
    ),
    "snapshots of commits": lambda query: query.replace(
        "begin isolation level read committed", "begin isolation level repeatable read"
    ),
    "no fence": lambda query: query.replace("fence from fences where", "fence from fences where false and"),
    "rows of buckets are deleted": lambda query: query.replace(
        "update buckets set state = $2 where bucket = any($1)",
        "delete from buckets where $2 = 1 and bucket = any($1)",
    ),
    "outcome not looked up": lambda query: query.replace(
        "select sequence, digest, version, result", "select 0::bigint, digest, version, result"
    ),
}
CAUGHT_BY: list[tuple[str, Callable[..., None], str]] = [
    ("no locks", additions, "additions are lost|deadlocks"),
    ("shared locks", additions, "deadlocks"),
    ("locks in any order", additions, "deadlocks"),
    ("snapshots of commits", additions, "failures of serialization"),
    ("no fence", deleted, "DID NOT RAISE"),
    ("rows of buckets are deleted", deleted, "DID NOT RAISE"),
    ("the last record is locked", log, "events are overwritten"),
    ("locks and reads in one statement", counter, "additions are lost"),
    ("reads in returning", counter, "additions are lost"),
    ("outcome not looked up", cuts, "does not know this session|made twice"),
]


def place(server: PostgresServer, name: str) -> str:
    return server.url_of(f"plant_{os.getpid()}_{abs(hash(name)) % 10**8}")


CHECKS: list[Callable[..., None]] = [additions, counter, log, rows, deleted, cuts]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
def test_without_a_bug(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, check: Callable[..., None]
) -> None:
    planted = Planted(monkeypatch, PLANTS["nothing"])
    with inmem.open(place(postgres_server, check.__name__), timeout_s=60.0) as db:
        check(db, planted, postgres_server)


@pytest.mark.parametrize(
    ("plant", "check", "told"), CAUGHT_BY, ids=[f"{plant}-{check.__name__}" for plant, check, _ in CAUGHT_BY]
)
def test_a_planted_bug_is_caught(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, plant: str,
    check: Callable[..., None], told: str,
) -> None:
    with inmem.open(place(postgres_server, plant), timeout_s=6.0) as db:
        db.kv.put("a", "x", 1)
        db.kv.put("b", "x", 1)
        db.events.append("a", "e")
        planted = Planted(
            monkeypatch, PLANTS.get(plant, PLANTS["nothing"]), ARRANGED.get(plant, as_it_is)
        )
        with pytest.raises((AssertionError, pytest.fail.Exception, inmem.InmemError), match=told) as caught:
            for _ in range(5):  # two have to meet
                check(db, planted, postgres_server)
    print(f"{plant} is caught by {check.__name__}: {caught.value!s:.200}")
    assert planted.changed, f"{plant} had no effect"


def test_versions_below_the_snapshot_are_taken_for_unchanged(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap of one version for a whole snapshot: the later one of two buckets may have the lower."""
    planted = Planted(monkeypatch, PLANTS["nothing"])
    monkeypatch.setattr(SeenBuckets, "is_as_seen", lambda *_: True)
    with (
        inmem.open(place(postgres_server, "versions"), timeout_s=60.0) as db,
        pytest.raises(AssertionError, match="rows are overwritten"),
    ):
        rows(db, planted, postgres_server)
