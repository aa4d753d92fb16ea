"""What expires on a server goes, in slices, under the locks of commits; old sessions and connections too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from homes import PostgresHome
from postgres_server import PostgresServer

import inmem
from inmem.engines.postgres.tidying import LOCK, SLICE, sweep, trim_sessions

RUN = "run"


@pytest.fixture
def there(postgres_server: PostgresServer) -> Iterator[PostgresHome]:
    home = PostgresHome(postgres_server)
    yield home
    home.close()


def connections_of(db: inmem.Database) -> Any:
    return db.engine.store.connections  # type: ignore[attr-defined]


def asked(home: PostgresHome, query: str) -> Any:
    with psycopg.connect(f"{home.conninfo} options='-csearch_path={home.schema}'") as connection:
        found = connection.execute(query).fetchone()  # type: ignore[call-overload]
        assert found is not None
        return found[0]


def test_expired_records_go_in_slices(there: PostgresHome) -> None:
    with there.open() as db:
        for number in range(25):
            db.kv.put_many(f"{RUN}-{number % 5}", {f"{number}-{i}": i for i in range(100)}, ttl=0.5)
        db.kv.put(f"{RUN}-0", "stays", 1)
        time.sleep(0.6)
        assert db.kv.count(f"{RUN}-0") == 1
        versions = asked(there, "select sum(version) from buckets")
        slices = []
        while (removed := sweep(connections_of(db))) or not slices:
            slices.append(removed)
        assert sum(slices) == 2500 and max(slices) == SLICE
        assert asked(there, "select count(*) from records") == 1
        assert asked(there, "select sum(version) from buckets") == versions, "a sweep is no write"


def test_one_sweeps_and_a_busy_bucket_is_left_for_later(there: PostgresHome) -> None:
    with there.open() as db:
        db.kv.put("busy", "k", 1, ttl=0.1)
        db.kv.put("quiet", "k", 1, ttl=0.1)
        time.sleep(0.2)
        with psycopg.connect(f"{there.conninfo} options='-csearch_path={there.schema}'") as another:
            another.execute("select 1 from buckets where bucket like '%/busy%' for update")
            assert sweep(connections_of(db)) == 1
            began = time.monotonic()
            assert db.kv.get("busy", "k") is None
            with pytest.raises(psycopg.errors.LockNotAvailable):
                sweep(connections_of(db))
            assert time.monotonic() - began < 5
        assert sweep(connections_of(db)) == 1
        db.kv.put("quiet", "k", 1, ttl=0.1)
        time.sleep(0.2)
        with psycopg.connect(f"{there.conninfo} options='-csearch_path={there.schema}'") as another:
            another.execute(f"select pg_advisory_xact_lock({LOCK}, hashtext(current_schema()))")
            assert sweep(connections_of(db)) == 0
        assert sweep(connections_of(db)) == 1


def test_commits_go_on_and_are_right_while_records_expire(there: PostgresHome) -> None:
    """Ranges are validated by count: what is swept meanwhile was seen alive by none of them."""
    with there.open() as db:
        stop = threading.Event()
        errors: list[BaseException] = []

        def sweeps() -> None:
            while not stop.is_set():
                try:
                    sweep(connections_of(db))
                except psycopg.errors.LockNotAvailable:
                    continue
                except BaseException as error:
                    errors.append(error)

        def count(txn: inmem.Transaction) -> None:
            txn.kv.put("most", max(txn.kv.get("most", 0), txn.kv.count("e-")))
            txn.kv.put("n", txn.kv.get("n", 0) + 1)

        def writes(number: int) -> None:
            try:
                for turn in range(40):
                    db.kv.put(RUN, f"e-{number}-{turn % 8}", turn, ttl=0.02 * (1 + turn % 3))
                    db.transact(RUN, count)
            except BaseException as error:
                errors.append(error)

        sweeper = threading.Thread(target=sweeps)
        writers = [threading.Thread(target=writes, args=(number,)) for number in range(4)]
        for thread in (sweeper, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        sweeper.join()
        assert not errors
        assert db.kv.get(RUN, "n") == 160
        time.sleep(0.1)
        while sweep(connections_of(db)):
            pass
        assert db.kv.count(RUN, "e-") == 0 and asked(there, "select count(*) from records") == 2


def test_old_sessions_are_forgotten(there: PostgresHome) -> None:
    with there.open() as db:
        db.kv.put(RUN, "k", 1)
        assert asked(there, "select count(*) from sessions") == 1
        assert trim_sessions(connections_of(db), 3600.0) == 0
        with psycopg.connect(there.conninfo, autocommit=True) as connection:
            connection.execute(f"update {there.schema}.sessions set active = now() - interval '2 hours'")
        assert trim_sessions(connections_of(db), 3600.0) == 1
        assert asked(there, "select count(*) from sessions") == 0


def test_a_session_that_may_have_been_forgotten_is_not_used_again(there: PostgresHome) -> None:
    with there.open() as db:
        connections_of(db).session_ttl_s = 0.2
        db.kv.put(RUN, "k", 1)
        time.sleep(0.2)
        trim_sessions(connections_of(db), 0.1)
        db.kv.put(RUN, "k", 2)
        assert db.kv.get(RUN, "k") == 2


def test_idle_connections_are_closed(there: PostgresHome) -> None:
    with there.open() as db:
        db.kv.put(RUN, "k", 1)

        def read() -> None:
            for _ in range(50):
                db.kv.get(RUN, "k")

        threads = [threading.Thread(target=read) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        connections = connections_of(db)
        assert len(connections._free) <= 16
        connections.close_idle(0.0)
        assert len(connections._free) == 2
        assert db.kv.get(RUN, "k") == 1
