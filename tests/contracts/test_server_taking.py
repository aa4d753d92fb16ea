"""On PostgreSQL: several take jobs of one queue at once: none waits for another, and each gets one."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psycopg
import pytest
from postgres_server import PostgresServer
from support import in_threads, wait_until

import inmem
from inmem.engines.postgres import attempts, taking
from inmem.engines.postgres.asking import AskedConnection
from inmem.engines.postgres.buckets import STRIPES, row_of, rows_of_bucket
from inmem.keys import TypeTag

QUEUE = "q"
LONG_S = 60.0
numbers = itertools.count()


@pytest.fixture(scope="module")
def url(postgres_server: PostgresServer) -> str:
    return f"{postgres_server.url}?schema=taking"


@contextlib.contextmanager
def other_process(url: str) -> Iterator[inmem.Database]:
    """A handle that shares nothing with others of this process."""
    from inmem.engines.postgres import store

    with mock.patch.object(store, "_stores", {}), inmem.open(url) as database:
        yield database


@pytest.fixture
def db(url: str) -> Iterator[inmem.Database]:
    with other_process(url) as database:
        yield database


@pytest.fixture
def other(url: str) -> Iterator[inmem.Database]:
    with other_process(url) as database:
        yield database


@pytest.fixture
def run_id(db: inmem.Database) -> str:
    name = f"run-{next(numbers)}"
    db.queues.put_many(name, QUEUE, [*range(40)])
    first = db.queues.claim(name, QUEUE, lease_s=LONG_S)  # from now on claims need no look before
    assert first is not None and first.payload == 0
    db.queues.ack(first)
    return name


@contextlib.contextmanager
def locked(server: PostgresServer, rows: list[bytes]) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else is in the middle of commits in these rows."""
    with psycopg.connect(server.conninfo) as connection:
        found = connection.execute(
            "select bucket from taking.buckets where bucket = any(%s) order by bucket for update", (rows,)
        ).fetchall()
        assert len(found) == len(rows)
        yield connection
        connection.rollback()


def stripe(db: inmem.Database, run_id: str, number: int) -> bytes:
    """The row of a job."""
    return row_of(b"%b\0%c%b\0%b" % (db.run(run_id).prefix, TypeTag.JOB, QUEUE.encode(), number.to_bytes(8)))


def waits(server: PostgresServer, kind: str, count: int) -> Callable[[], bool]:
    """Whether so many connections wait, for a lock or a time."""

    def look() -> bool:
        with psycopg.connect(server.conninfo, autocommit=True) as connection:
            found = connection.execute(
                "select count(*) from pg_stat_activity where datname is not null and wait_event_type = %s",
                (kind,),
            ).fetchone()
        return found is not None and found[0] == count

    return look


def test_who_takes_one_does_not_wait_for_another(
    db: inmem.Database, run_id: str, postgres_server: PostgresServer
) -> None:
    with locked(postgres_server, [stripe(db, run_id, number) for number in (1, 2, 3, 5)]):
        jobs = [db.queues.claim(run_id, QUEUE, lease_s=LONG_S) for _ in range(3)]
        assert [job and job.payload for job in jobs] == [4, 6, 7]
        for job in jobs:
            assert job is not None
            db.queues.ack(job)
    after = db.queues.claim(run_id, QUEUE, lease_s=LONG_S)
    assert after is not None and after.payload == 1


def test_where_all_are_busy_it_waits(
    db: inmem.Database, run_id: str, postgres_server: PostgresServer
) -> None:
    rows = rows_of_bucket(b"%b\0%c" % (db.run(run_id).prefix, TypeTag.JOB))
    assert len(rows) == STRIPES + 1
    found: list[Any] = []
    with locked(postgres_server, rows[1:]):
        thread = threading.Thread(target=lambda: found.append(db.queues.claim(run_id, QUEUE, lease_s=LONG_S)))
        thread.start()
        wait_until(waits(postgres_server, "Lock", 1), "a claim that waits")
        assert not found
    thread.join(LONG_S)
    assert found[0].payload in range(1, STRIPES + 1)


def test_who_waits_does_so_for_what_comes_first(
    db: inmem.Database, postgres_server: PostgresServer
) -> None:
    """Where the best jobs are all of one stripe, a busy one, nobody takes what comes long after them."""
    name = f"run-{next(numbers)}"
    rounds = STRIPES + 2

    def put(txn: inmem.Transaction) -> None:
        for number in range(rounds * STRIPES):
            txn.queues.put(QUEUE, number, priority=number % STRIPES)

    db.transact(name, put)
    best = [number for number in range(rounds * STRIPES) if number % STRIPES == STRIPES - 1]
    first = db.queues.claim(name, QUEUE, lease_s=LONG_S)
    assert first is not None and first.payload == best[0]
    found: list[Any] = []
    with locked(postgres_server, [stripe(db, name, best[0])]):
        thread = threading.Thread(target=lambda: found.append(db.queues.claim(name, QUEUE, lease_s=LONG_S)))
        thread.start()
        wait_until(waits(postgres_server, "Lock", 1), "a claim that waits")
        assert not found
    thread.join(LONG_S)
    assert found[0].payload == best[1]


def claim_looked_at_too_early(
    db: inmem.Database, other: inmem.Database, run_id: str, server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Any, Any]:
    """What one has got whose statement looked at a job before, and locked it after, another one took it."""
    send = AskedConnection._send
    late = " and key < $2 and pg_sleep(0.05) is not null order"
    slow: list[Any] = []
    took: list[Any] = []

    def sent(connection: Any, asked: Any) -> Any:
        text = asked[-1][0].text.decode()
        if not slow and "skip locked" in text:
            statement = copy.copy(asked[-1][0])
            statement.text = text.replace(" and key < $2 order", late, 1).encode()
            assert late.encode() in statement.text
            slow.append(True)
            new = send(connection, [*asked[:-1], (statement, asked[-1][1])])
            wait_until(waits(server, "Timeout", 1), "a statement that has begun")
            took.append(other.queues.claim(run_id, QUEUE, lease_s=LONG_S))
            return new
        return send(connection, asked)

    monkeypatch.setattr(AskedConnection, "_send", sent)
    mine = db.queues.claim(run_id, QUEUE, lease_s=LONG_S)
    assert slow
    return mine, took[0]


def test_what_was_looked_at_before_it_was_locked_is_looked_at_again(
    db: inmem.Database, other: inmem.Database, run_id: str, monkeypatch: pytest.MonkeyPatch,
    postgres_server: PostgresServer,
) -> None:
    mine, theirs = claim_looked_at_too_early(db, other, run_id, postgres_server, monkeypatch)
    assert (mine.payload, theirs.payload) == (2, 1)
    db.queues.ack(mine)
    other.queues.ack(theirs)


def test_planted_what_was_looked_at_is_believed(
    db: inmem.Database, other: inmem.Database, run_id: str, monkeypatch: pytest.MonkeyPatch,
    postgres_server: PostgresServer,
) -> None:
    real = taking.taken

    def believed(*arguments: Any) -> Any:
        found = real(*arguments)
        return found and found._replace(is_current=True)

    monkeypatch.setattr(attempts, "taken", believed)
    mine, theirs = claim_looked_at_too_early(db, other, run_id, postgres_server, monkeypatch)
    assert mine.payload == theirs.payload == 1, "the test above would not notice it"
    db.runs.delete_run(run_id)  # which is damaged


def test_an_ack_compares_what_it_knows_as_it_is_now(
    db: inmem.Database, other: inmem.Database, run_id: str, postgres_server: PostgresServer
) -> None:
    mine = db.queues.claim(run_id, QUEUE, lease_s=0.001)
    assert mine is not None
    theirs: list[Any] = []
    lost: list[inmem.JobLostError] = []

    def takes() -> None:
        theirs.append(other.queues.claim(run_id, QUEUE, lease_s=LONG_S, wait_s=LONG_S))

    def acks() -> None:
        try:
            db.queues.ack(mine)
        except inmem.JobLostError as error:
            lost.append(error)

    with locked(postgres_server, [stripe(db, run_id, mine.id.number)]):
        threads = [threading.Thread(target=each) for each in (takes, acks)]
        for count, thread in enumerate(threads):
            thread.start()
            wait_until(waits(postgres_server, "Lock", count + 1), "who waits")  # in that order they get it
    for thread in threads:
        thread.join(LONG_S)
    assert theirs[0].payload == mine.payload == 1
    assert theirs[0].attempt == 2
    assert lost, "an ack ended a job that another has"
    assert other.queues.holds(theirs[0])


def test_an_ack_does_not_mind_what_others_do(
    db: inmem.Database, other: inmem.Database, run_id: str
) -> None:
    mine = [db.queues.claim(run_id, QUEUE, lease_s=LONG_S) for _ in range(STRIPES)]
    for _ in range(STRIPES):  # of each stripe another one
        theirs = other.queues.claim(run_id, QUEUE, lease_s=LONG_S)
        assert theirs is not None
        other.queues.ack(theirs)
    before = AskedConnection.round_trips
    for job in mine:
        assert job is not None
        db.queues.ack(job)
    # In the first stripe nobody else had written between two commits from here: that one was guessed.
    assert AskedConnection.round_trips - before == len(mine) + 2


def test_each_job_is_taken_once(url: str, db: inmem.Database) -> None:
    run_id = f"run-{next(numbers)}"
    count, processes = 240, 6
    puts = [*range(count)]
    db.queues.put_many(run_id, QUEUE, puts)
    taken: list[int] = []

    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(other_process(url)) for _ in range(processes)]

        def work(index: int) -> None:
            queues = handles[index].queues
            while (job := queues.claim(run_id, QUEUE, lease_s=LONG_S)) is not None:
                taken.append(job.payload)
                assert job.attempt == 1
                queues.ack(job)

        in_threads(processes, work, LONG_S)
    assert sorted(taken) == puts
    assert db.queues.counts(run_id, QUEUE).ready == 0
    assert db.check().problems == []
