"""A server that comes back without commits that it had acknowledged: who made them is told."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from homes import PostgresHome
from postgres_server import PostgresServer, binaries
from postgres_shared import MISSING
from support import in_threads, wait_until
from test_75_failover import Pair, pair
from wire_proxy import STALL, TO_CLIENT, WireProxy

import inmem
from inmem.engines.postgres.known import Told
from inmem.keys import Key, Namespace
from inmem.values import encode
from inmem.writeset import OP_PUT, encode_single

__all__ = ["pair"]
RUN = "r"
KEY = Key.kv(Namespace(), RUN, "a")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One with fsync, which is to keep what it acknowledges."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = PostgresServer(shared=False)
    yield server
    server.remove()


@pytest.fixture
def home(server: PostgresServer) -> Iterator[PostgresHome]:
    found = PostgresHome(server)
    yield found
    found.close()


def changed(home: PostgresHome, statement: str) -> None:
    """Change the tables behind everybody's back."""
    options = f"-c search_path={home.schema}"
    with psycopg.connect(home.conninfo, autocommit=True, options=options) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


COMMITS: dict[str, Callable[[inmem.Database], Any]] = {
    "blind": lambda db: db.kv.put(RUN, "a", 1),
    "guessed": lambda db: db.kv.add(RUN, "n"),
    "looked at": lambda db: db.transact("other", lambda txn: txn.kv.put("m", txn.kv.get("m", 0) + 1)),
    "several": lambda db: [db.events.append(RUN, "e"), db.runs.create_run()],
}
LOSSES = {
    "its last ones": "update sessions set sequence = sequence - 2",
    "the session": "delete from sessions",
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", COMMITS)
def test_the_next_commit_tells(
    home: PostgresHome, name: str, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    with home.open() as db:
        for n in range(5):
            version = db.kv.put(RUN, "a", n)
        changed(home, LOSSES[loss])
        with pytest.raises(inmem.CommitsLostError) as caught:
            COMMITS[name](db)
        assert caught.value.lost == (5 if loss == "the session" else 2)
        assert caught.value.version == version
        assert db.kv.get(RUN, "a") == 4 and db.kv.get(RUN, "n") is None, "that one was not made"
        COMMITS[name](db)  # what is stored goes on
        assert db.check().problems == []
    told = [record for record in caplog.records if record.name == "inmem"]
    assert [record.levelno for record in told] == [logging.ERROR]
    assert "has lost" in told[0].getMessage()


def test_it_is_logged_once_and_raised_by_each_session(
    home: PostgresHome, caplog: pytest.LogCaptureFixture
) -> None:
    with home.open() as db:
        sessions = [db.engine.store.sessions.take() for _ in range(3)]  # type: ignore[attr-defined]
        for session in sessions:
            db.engine.store.sessions.give_back(session)  # type: ignore[attr-defined]
        told: list[inmem.CommitsLostError] = []

        def work(index: int) -> None:
            for n in range(10):
                try:
                    db.kv.put(RUN, f"{index}", n)
                except inmem.CommitsLostError as error:
                    told.append(error)

        in_threads(4, work, 60.0)
        changed(home, "update sessions set sequence = 0")
        in_threads(4, work, 60.0)
        assert told and all(error.lost > 0 for error in told)
        count = len(told)
        in_threads(4, work, 60.0)
        assert len(told) - count <= 4, "sessions that were not used in the second round"
    assert len([record for record in caplog.records if record.name == "inmem"]) == 1


def test_a_session_that_was_trimmed_has_lost_nothing(home: PostgresHome) -> None:
    """Who asks for the outcome of a commit a day later is told that it is not known any more."""
    with home.open() as db:
        store = db.engine.store  # type: ignore[attr-defined]
        session, body = store.sessions.take(), encode_single([OP_PUT, KEY, encode(1), 0])
        session.commit(body, Told(), sync=False, timeout_s=5.0)
        session._used_at -= store.connections.session_ttl_s
        changed(home, LOSSES["the session"])
        with pytest.raises(inmem.CommitUnknownError, match="does not know this session"):
            session.commit_all([body], Told(), sync=False, timeout_s=5.0, resent=2)
        session.commit(body, Told(), sync=False, timeout_s=5.0)
        session._used_at -= store.connections.session_ttl_s
        changed(home, LOSSES["the session"])
        session.commit(body, Told(), sync=False, timeout_s=5.0)
        store.sessions.give_back(session)


def test_one_in_doubt_is_told_too(home: PostgresHome) -> None:
    """No answer came, and those before it are lost: it was not made."""
    with home.open() as db:
        store = db.engine.store  # type: ignore[attr-defined]
        session, body = store.sessions.take(), encode_single([OP_PUT, KEY, encode(1), 0])
        for _ in range(3):
            session.commit(body, Told(), sync=False, timeout_s=5.0)
        changed(home, LOSSES["its last ones"])
        with pytest.raises(inmem.CommitsLostError) as caught:
            session.commit_all([body], Told(), sync=False, timeout_s=5.0, resent=4)
        assert caught.value.lost == 2
        session.commit(body, Told(), sync=False, timeout_s=5.0)
        store.sessions.give_back(session)


@pytest.mark.parametrize("durability", ["memory", "buffered"])
def test_a_store_that_may_lose_goes_on(
    home: PostgresHome, durability: str, caplog: pytest.LogCaptureFixture
) -> None:
    with inmem.open(home.url, durability=durability) as db:
        db.kv.add(RUN, "n", 1)
        changed(home, LOSSES["its last ones"].replace("2", "1"))
        assert db.kv.add(RUN, "n", 1) == 2
    assert "has lost 1 commit" in caplog.text


def test_another_store_in_its_place(home: PostgresHome) -> None:
    with home.open(timeout_s=5.0) as db:
        db.kv.put(RUN, "a", 1)
        in_threads(2, lambda index: db.kv.put(RUN, f"{index}", 1), 30.0)
        changed(home, f"drop schema {home.schema} cascade")
        again = f"import inmem; inmem.open({home.url!r}, agent='other').close()"
        subprocess.run([sys.executable, "-c", again], check=True)
        for _ in range(3):  # by a session that it has, and by a new one
            with pytest.raises(inmem.DatabaseGoneError):
                db.kv.put(RUN, "a", 1)
        with pytest.raises(inmem.DatabaseGoneError):
            in_threads(4, lambda index: db.kv.put(RUN, f"{index}", 1), 30.0)
        changed(home, "select 1 / (1 - count(*)) from sessions")  # fails if there is any of them


@pytest.mark.timeout(120)
def test_a_standby_that_lagged_behind_is_promoted(pair: Pair) -> None:
    """The control of the failover's test, told by a process that lives through it."""
    proxy = WireProxy(pair.primary.place)
    try:
        shutil.chown(proxy.place, *[pair.standby.data.stat().st_uid] * 2)
        for each in [proxy.place, *proxy.place.iterdir()]:
            each.chmod(0o777)
        pair.follow(proxy.place)
        with inmem.open(pair.url("store"), timeout_s=60.0) as db:
            for _ in range(10):
                db.kv.add(RUN, "n")
            [[here]] = pair.ask("select pg_current_wal_lsn()::text")
            wait_until(
                lambda: pair.ask(f"select replay_lsn >= '{here}' from pg_stat_replication") == [(True,)],
                "the standby has them", 60,
            )
            proxy.arm(TO_CLIENT, 1, STALL, refuse=True)
            for _ in range(40):
                known = db.kv.add(RUN, "n")
            pair.primary.signal(signal.SIGKILL)
            proxy.cut_all()
            proxy.close()
            pair.standby.run("pg_ctl", "-D", str(pair.standby.data), "promote", "-w")
            with pytest.raises(inmem.CommitsLostError) as caught:
                db.kv.add(RUN, "n")
            found = db.kv.get(RUN, "n")
            assert caught.value.lost == known - found > 0
            assert db.kv.add(RUN, "n") == found + 1
    finally:
        proxy.release()
    print(f"{known} commits were acknowledged, {found} are there, {caught.value.lost} lost by what is told")
