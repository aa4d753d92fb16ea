"""On PostgreSQL: how many round trips a call takes, and that the short ways lead where the long one does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import support
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer
from support import wait_until

import inmem
from inmem.keys import TypeTag
from inmem.record import expires_at, payload_of, version_of

Store = tuple[inmem.Database, inmem.Database]
numbers = itertools.count()


@pytest.fixture(scope="module")
def url(postgres_server: PostgresServer) -> str:
    return f"{postgres_server.url}?schema=round_trips"


@pytest.fixture(scope="module")
def db(url: str) -> Iterator[inmem.Database]:
    with inmem.open(url) as database:
        yield database


@pytest.fixture
def run(db: inmem.Database) -> Any:
    return db.run(f"run-{next(numbers)}")


def trips(call: Callable[[], Any], times: int = 10) -> float:
    """Round trips of a call that was made before, on average."""
    from inmem.engines.postgres.asking import AskedConnection

    for _ in range(3):
        call()
    before = AskedConnection.round_trips
    for _ in range(times):
        call()
    return (AskedConnection.round_trips - before) / times


def add_one(txn: Any) -> None:
    txn.kv.put("n", txn.kv.get("n", 0) + 1)


def test_reads(run: Any) -> None:
    run.kv.put_many({f"k{n}": n for n in range(300)})
    for n in range(5):
        run.events.append("step", n)
        run.traces.record(inmem.Thought(str(n)), tags=["a"])
    assert trips(lambda: run.kv.get("k7")) == 1
    assert trips(lambda: run.kv.get_many([f"k{n}" for n in range(100)])) == 1
    assert trips(lambda: run.kv.list()) == 1
    assert trips(lambda: run.kv.list_with_values(limit=10)) == 1
    assert trips(lambda: run.kv.count()) == 1
    assert trips(lambda: run.events.read_range(0, 5)) == 1
    assert trips(lambda: run.events.head()) == 1
    assert trips(lambda: run.events.query_by_type("step", limit=10)) <= 2
    assert trips(lambda: run.traces.query_by_tag("a")) <= 2


def test_few_records_are_one_statement_even_if_some_have_expired(run: Any) -> None:
    from inmem.engines.postgres.connections import Connections

    run.kv.put("a", 1, ttl=0.05)
    run.kv.put_many({key: ord(key) for key in "bcde"})
    support.wait_until(lambda: not run.kv.exists("a"), "an entry expires")
    assert run.kv.list(limit=2) == ["b", "c"] and run.kv.list(limit=0) == []
    assert run.kv.list(limit=16) == [*"bcde"] and run.kv.list(reverse=True, limit=3) == [*"edc"]
    run.kv.discard("a")
    with mock.patch.object(Connections, "ask", autospec=True, side_effect=Connections.ask) as asked:
        assert run.kv.list_with_values("c", limit=2) == [("c", 99)]
    assert [len(call.args) - 1 for call in asked.call_args_list] == [1]  # no transaction around it


def test_what_is_large_is_counted_by_the_server(run: Any) -> None:
    """It takes longer to send than a snapshot may live; what has expired, and is there still, counts not."""
    from inmem.engines.postgres.moment import MAX_PAGE

    for part in range(2):
        run.kv.put_many({f"k{part}-{n}": n for n in range(MAX_PAGE)})
    run.kv.put("short", 1, ttl=0.001)
    run.kv.put("long", 1, ttl=3600.0)
    run.queues.put_many("q", [*range(3)])
    run.queues.put("q", 3, delay_s=3600.0)
    wait_until(lambda: run.kv.get("short") is None, "it expires")
    assert run.kv.count() == 2 * MAX_PAGE + 1
    assert trips(lambda: run.kv.count(), times=3) == 1
    with run.snapshot() as view:
        assert (view.kv.get("k0-0"), view.kv.count(), view.kv.count("k1-")) == (0, 2 * MAX_PAGE + 1, MAX_PAGE)
        assert (view.queues.counts("q").ready, view.queues.counts("q").delayed) == (3, 1)
    with run.snapshot() as view:
        assert (view.kv.count("l"), view.kv.get("long"), view.kv.count("s")) == (1, 1, 0)


def test_blind_writes_are_one_statement(run: Any) -> None:
    names = itertools.cycle("abcdefgh")
    assert trips(lambda: run.kv.put(next(names), "v")) == 1
    assert trips(lambda: run.kv.put(next(names), "v", ttl=60)) == 1
    assert trips(lambda: run.kv.put_many({f"k{n}": n for n in range(100)})) == 1
    assert trips(lambda: run.kv.discard(next(names))) == 1


def test_what_this_process_knows_is_not_looked_at(run: Any) -> None:
    version = run.cells.set("cell", 0)

    def exchange() -> None:
        nonlocal version
        version = run.cells.cas("cell", version, "v")

    assert trips(lambda: run.events.append("step", 1)) == 1
    assert trips(lambda: run.kv.add("n")) == 1
    assert trips(exchange) == 1
    assert trips(lambda: run.queues.put("mail", 1)) == 1
    assert trips(lambda: run.queues.ack(run.queues.claim("mail", lease_s=60))) == 3


def test_a_transaction_takes_its_reads_and_one_more(run: Any) -> None:
    run.kv.put("n", 0)
    assert trips(lambda: run.transact(add_one)) == 2


def test_whatever_another_process_has_written_takes_two(url: str, run: Any, db: inmem.Database) -> None:
    with other_process(url) as other:
        def both() -> None:
            other.events.append(run.run_id, "step", 1)
            run.events.append("step", 1)

        assert trips(both) == 2 + 2
        assert run.events.verify_chain()


def test_groups_of_a_pipeline_are_one_transaction(db: inmem.Database, run: Any) -> None:
    def many() -> None:
        with db.pipeline() as pipeline:
            for n in range(1000):
                pipeline.events.append(run.run_id, "step", n)

    assert trips(many, 3) == 2


def test_a_refused_group_of_a_pipeline_leaves_its_neighbours(db: inmem.Database) -> None:
    names = [f"group-{next(numbers)}" for _ in range(3)]
    db.kv.put(names[1], "n", "no number")
    with pytest.raises(inmem.InvalidValueError), db.pipeline() as pipeline:
        results = [pipeline.kv.add(name, "n", 1) for name in names]
    assert [db.kv.get(name, "n") for name in names] == [1, "no number", 1]
    assert results[0].value == results[2].value == 1


@contextlib.contextmanager
def other_process(url: str) -> Iterator[inmem.Database]:
    """A handle that shares nothing with others of this process."""
    from inmem.engines.postgres import store

    with mock.patch.object(store, "_stores", {}), inmem.open(url) as database:
        yield database


@contextlib.contextmanager
def the_long_way() -> Iterator[None]:
    """Every commit locks, looks and writes."""
    from inmem.engines.postgres.attempts import Attempt

    ways = dict.fromkeys(("_blindly", "_took", "_guessed"), lambda *_: None)
    with mock.patch.multiple(Attempt, **ways):
        yield


KEYS = ("a", "b", "c", "d")
keys = st.sampled_from(KEYS)
operations = st.one_of(
    st.tuples(st.just("put"), keys, st.integers(0, 5), st.sampled_from([None, 1000.0])),
    st.tuples(st.just("put_many"), st.dictionaries(keys, st.integers(0, 5), min_size=1)),
    st.tuples(st.just("discard"), keys), st.tuples(st.just("delete"), keys), st.tuples(st.just("add"), keys),
    st.tuples(st.just("append"), keys), st.tuples(st.just("set"), keys), st.tuples(st.just("cas"), keys),
    st.tuples(st.just("job")), st.tuples(st.just("claim")), st.tuples(st.just("modify"), keys, keys),
    st.tuples(st.just("pipeline"), st.lists(keys, min_size=1, max_size=5)),
    st.tuples(st.just("other"), keys),
)


def work(db: inmem.Database, other: inmem.Database, run_id: str, operation: tuple[Any, ...]) -> Any:
    run = db.run(run_id)
    match operation:
        case "put", key, value, ttl:
            run.kv.put(key, value, ttl=ttl)
        case "put_many", values:
            run.kv.put_many(values)
        case "discard", key:
            run.kv.discard(key)
        case "delete", key:
            return run.kv.delete(key)
        case "add", key:
            return run.kv.add(key)
        case "append", key:
            return run.events.append(key, key).sequence
        case "set", key:
            return run.cells.set(key, key)
        case "cas", key:
            return run.cells.cas(key, 1, key)
        case ("job",):
            return str(run.queues.put("q", 1))
        case ("claim",):
            job = run.queues.claim("q", lease_s=600)
            if job is not None:
                run.queues.ack(job)
            return job and job.attempt
        case "modify", one, another:
            def copy(txn: Any) -> None:
                txn.kv.put(another, txn.kv.get(one, 0))
                txn.events.append("copied")

            run.transact(copy)
        case "pipeline", names:
            with db.pipeline() as pipeline:
                for key in names:
                    pipeline.kv.put(run_id, key, key)
                    pipeline.events.append(run_id, key)
        case "other", key:
            other.kv.put(run_id, key, 7)
            other.events.append(run_id, key)
    return None


def stored(db: inmem.Database, run_id: str) -> list[Any]:
    """What is in a run: keys, the order of their versions, and payloads where no time is in them."""
    prefix = db.run(run_id).prefix
    with db.engine.latest().moment() as view:
        items = view.scan(prefix + b"\0", prefix + b"\1")
    order = {version: n for n, version in enumerate(sorted({version_of(record) for _, record in items}))}
    return [
        (key[len(prefix) :], order[version_of(record)], bool(expires_at(record)),
         payload_of(record) if key[len(prefix) + 1] in (TypeTag.KV, TypeTag.STATE) else None)
        for key, record in items if key[len(prefix) + 1] != TypeTag.JOB_CLAIMED
    ]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=st.lists(operations, min_size=1, max_size=12))
def test_the_short_ways_lead_where_the_long_one_does(
    url: str, db: inmem.Database, commits: list[tuple[Any, ...]]
) -> None:
    number = next(numbers)
    with other_process(url) as other:
        found = []
        for run_id, way in ((f"short-{number}", contextlib.nullcontext), (f"long-{number}", the_long_way)):
            results: list[Any] = []
            with way():
                for operation in commits:
                    try:
                        results.append(work(db, other, run_id, operation))
                    except inmem.InmemError as error:
                        results.append(type(error).__name__)
            assert db.events.verify_chain(run_id)
            found.append((results, stored(db, run_id)))
    assert found[0] == found[1]


def test_hot_rows_lose_nothing_by_many_threads(db: inmem.Database, url: str) -> None:
    """Blind puts, additions, appends and transactions of several handles into one run."""
    import threading

    run_id = f"hot-{next(numbers)}"
    failed: list[BaseException] = []

    def busy(database: inmem.Database, n: int) -> None:
        try:
            for i in range(15):
                database.kv.put(run_id, f"mine-{n}-{i}", i)
                database.kv.add(run_id, "added")
                database.events.append(run_id, "step", n)
                database.transact(run_id, add_one)
                database.kv.put_many(run_id, {f"of-{n}": i, "all": n, f"more-{i}": n})
        except BaseException as error:
            failed.append(error)

    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(other_process(url)) for _ in range(4)]
        threads = [threading.Thread(target=busy, args=(handle, n)) for n, handle in enumerate(handles)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert db.kv.get(run_id, "added") == db.kv.get(run_id, "n") == 60
    assert db.events.count(run_id) == 60
    assert db.events.verify_chain(run_id)


def test_who_has_lost_twice_locks_first(db: inmem.Database, url: str, run: Any) -> None:
    """Then nobody comes in between, and he gives way at once if he does not commit after all."""
    import threading
    import time

    run.kv.put("n", 0)
    attempts = 0
    late: list[float] = []

    with other_process(url) as other:
        def write_beside() -> None:
            other.kv.add(run.run_id, "n")
            late.append(time.monotonic())

        def add(txn: Any) -> None:
            nonlocal attempts
            attempts += 1
            seen = txn.kv.get("n")
            if attempts <= 2:
                write_beside()
            else:
                thread.start()
                time.sleep(0.1)
            txn.kv.put("n", seen + 1)

        thread = threading.Thread(target=write_beside)
        run.transact(add)
        thread.join()
        assert attempts == 3
        assert run.kv.get("n") == 4

        attempts = 0
        thread = threading.Thread(target=write_beside)
        with pytest.raises(ZeroDivisionError):
            run.transact(lambda txn: (add(txn), 1 // (attempts < 3)))
        raised = time.monotonic()
        thread.join()
        assert late[-1] - raised < 0.5
        assert run.kv.get("n") == 7


def test_a_session_that_the_server_has_forgotten_is_begun_anew(url: str, run: Any) -> None:
    import psycopg

    run.kv.put("n", 1)
    run.kv.add("n")
    for write in (lambda: run.kv.put("n", 5), lambda: run.kv.add("n"), lambda: run.transact(add_one)):
        with psycopg.connect(url.partition("?")[0], autocommit=True) as connection:
            connection.execute("delete from round_trips.sessions")
        write()
    assert run.kv.get("n") == 7


def test_statements_need_not_be_prepared(postgres_server: PostgresServer) -> None:
    import psycopg

    from inmem.engines.postgres.asking import BEGIN, COMMIT, ROLLBACK, AskedConnection, Statement

    both = Statement("select $1 || 'x', length($1)::bigint", "b", "bi")
    wrong = Statement("select 1 / $1", "i", "i")
    for is_direct in (True, False):
        with AskedConnection.connect(postgres_server.conninfo, autocommit=True) as connection:
            connection.is_direct = is_direct
            for _ in range(3):
                assert connection.ask((both, (b"a",))) == [[(b"ax", 1)]]
                assert connection.ask((BEGIN, ()), (both, (b"",)), (COMMIT, ())) == [[], [(b"x", 0)], []]
                with pytest.raises(psycopg.errors.DivisionByZero):
                    connection.ask((BEGIN, ()), (wrong, (0,)), (both, (b"",)), (COMMIT, ()))
                assert not connection.is_free
                connection.tell(ROLLBACK)
                assert connection.is_free
                assert connection.ask((wrong, (1,))) == [[(1,)]]
                connection.settle()
                assert connection.execute("select 7").fetchone() == (7,)
