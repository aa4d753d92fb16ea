"""A server that stands still, takes no more, limits statements, is full, refuses, or is shared."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from postgres_server import PostgresServer, binaries
from postgres_shared import MISSING
from server_workers import judged, no_error, progress, started
from small_disks import MIB, needs_root, tmpfs
from support import Workers, in_threads, wait_until
from typer.testing import CliRunner

import inmem
from inmem import (
    CommitUnknownError,
    InmemError,
    InvalidInputError,
    PermissionDeniedError,
    WriterUnavailableError,
)
from inmem.cli.app import app
from inmem.engines.postgres.schema import FORMAT

RUN = "r"
THREADS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that tests may stop."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = PostgresServer("-N", "20", shared=False)
    yield server
    server.remove()


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> str:
    """A name of the test's own."""
    return f"s{abs(hash(request.node.name)) % 10**9}"


def asked(server: PostgresServer, *statements: str) -> list[Any]:
    """Ask as the one who may do everything."""
    options = "-c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
    with psycopg.connect(server.conninfo, autocommit=True, options=options) as connection:
        cursor = None
        for statement in statements:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor is not None and cursor.description else []


# --- it stands still, or takes no more ------------------------------------------------------------


def test_a_server_that_stands_still(server: PostgresServer, schema: str) -> None:
    with inmem.open(server.url_of(schema), timeout_s=1.0) as db:
        db.kv.put(RUN, "a", 1)
        db.kv.get(RUN, "a")
        server.signal(signal.SIGSTOP)
        try:
            calls: list[tuple[str, Callable[[], Any]]] = [
                ("get", lambda: db.kv.get(RUN, "a")), ("list", lambda: db.kv.list(RUN)),
                ("add", lambda: db.kv.add(RUN, "n", 1)), ("append", lambda: db.events.append(RUN, "e")),
                ("snapshot", lambda: db.snapshot(RUN)),
            ]
            unknown = []
            for name, call in calls:
                began = time.monotonic()
                with pytest.raises((CommitUnknownError, WriterUnavailableError)) as caught:
                    call()
                took = time.monotonic() - began
                print(f"{name}: {caught.type.__name__} after {took:.2f} s")
                assert took < 4.0
                if isinstance(caught.value, CommitUnknownError):
                    unknown.append(caught.value)
        finally:
            server.signal(signal.SIGCONT)
        for error in unknown:
            error.resend(20.0)
        for _ in range(50):
            try:
                assert db.kv.get(RUN, "n", 0) <= 1
                break
            except WriterUnavailableError:
                time.sleep(0.1)
        assert db.kv.add(RUN, "n", 1) <= 2


def test_no_connection_is_left(server: PostgresServer, schema: str) -> None:
    url = server.url_of(schema)
    with inmem.open(url, timeout_s=2.0) as db:
        db.kv.put(RUN, "a", 1)
    others = []
    try:
        for _ in range(3):  # those of earlier tests go a moment later
            time.sleep(0.2)
            with pytest.raises(psycopg.OperationalError, match=r"too many|reserved"):
                while True:
                    others.append(psycopg.connect(server.conninfo))
        with pytest.raises(WriterUnavailableError, match=r"too many|reserved"):
            inmem.open(url, timeout_s=0.5)
        one = others.pop()
        threading.Timer(0.5, one.close).start()
        with inmem.open(url, timeout_s=10.0) as db:  # one is enough
            db.kv.put(RUN, "a", db.kv.get(RUN, "a") + 1)
            in_threads(THREADS, lambda _: db.kv.add(RUN, "a", 1), 60.0)
            assert db.kv.get(RUN, "a") == 2 + THREADS
    finally:
        for other in others:
            other.close()


def test_more_threads_than_connections(server: PostgresServer, schema: str) -> None:
    with inmem.open(server.url_of(schema), timeout_s=30.0) as db:
        threads = [threading.Thread(target=lambda: db.kv.add(RUN, "n", 1)) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert db.kv.get(RUN, "n") == 60


# --- what is set for a role -----------------------------------------------------------------------

SETTINGS = [
    "statement_timeout = '20ms'", "lock_timeout = '5ms'", "idle_in_transaction_session_timeout = '30ms'",
    "default_transaction_isolation = 'serializable'", "default_transaction_isolation = 'repeatable read'",
    "synchronous_commit = off", "search_path = nowhere", "idle_session_timeout = '50ms'",
    "client_encoding = 'latin1'", "bytea_output = 'escape'", "plan_cache_mode = force_generic_plan",
    "client_min_messages = debug5", "default_transaction_deferrable = on",
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_set_for_a_role_ends_no_commit(server: PostgresServer, schema: str, setting: str) -> None:
    name = setting.partition(" ")[0]
    asked(server, f"alter role inmem set {setting}")
    try:
        with inmem.open(server.url_of(schema), timeout_s=20.0) as db:

            def work(index: int) -> None:
                for n in range(4):
                    db.kv.add(RUN, "n", 1)
                    db.transact(RUN, lambda txn: txn.kv.put("m", txn.kv.get("m", 0) + 1), timeout_s=30.0)
                    db.events.append(RUN, "e", n)
                    assert db.kv.get(RUN, "n") > n

            in_threads(THREADS, work, 60.0)
            assert db.kv.get(RUN, "n") == db.kv.get(RUN, "m") == 4 * THREADS
            assert db.events.verify_chain(RUN).is_valid
    finally:
        asked(server, f"alter role inmem reset {name}")


def test_a_role_that_only_reads(server: PostgresServer, schema: str) -> None:
    url = server.url_of(schema)
    with inmem.open(url) as db:
        db.kv.put(RUN, "a", 1)
    asked(server, "alter role inmem set default_transaction_read_only = on")
    try:
        with inmem.open(url, timeout_s=0.5) as db:
            assert db.kv.get(RUN, "a") == 1
            with pytest.raises(WriterUnavailableError, match="read-only"):
                db.kv.put(RUN, "a", 2)
    finally:
        asked(server, "alter role inmem reset default_transaction_read_only")


def test_the_tables_go(server: PostgresServer, schema: str) -> None:
    with inmem.open(server.url_of(schema), timeout_s=5.0) as db:
        db.kv.put(RUN, "a", 1)
        asked(server, f"drop schema {schema} cascade")
        calls: list[Callable[[], Any]] = [
            lambda: db.kv.get(RUN, "a"), lambda: db.kv.list(RUN), lambda: db.kv.put(RUN, "a", 2),
            lambda: db.transact(RUN, lambda txn: txn.kv.put("m", txn.kv.get("m", 0) + 1)),
        ]
        for call in calls:
            began = time.monotonic()
            with pytest.raises(inmem.DatabaseGoneError):
                call()
            assert time.monotonic() - began < 3.0


# --- the disk -------------------------------------------------------------------------------------


@needs_root
def test_a_full_disk(server: PostgresServer, schema: str, scratch: Path) -> None:
    scratch.chmod(0o755)
    with tmpfs(scratch / "small", 4 * MIB) as place:
        uid = server.data.stat().st_uid
        inside = place / "t"
        inside.mkdir()
        shutil.chown(inside, uid, uid)
        place.chmod(0o755)
        asked(server, f"create tablespace small location '{inside}'")
        try:
            asked(server, "alter role inmem set default_tablespace = small")
            with inmem.open(server.url_of(schema), timeout_s=5.0) as db:
                db.kv.put(RUN, "first", 1)
                stored = 0
                with pytest.raises(inmem.StoreFullError):
                    for stored in range(1000):
                        db.kv.put(RUN, f"k{stored}", os.urandom(50_000))
                assert db.kv.get(RUN, "first") == 1
                assert db.kv.count(RUN) == stored + 1
                subprocess.run(["mount", "-o", f"remount,size={16 * MIB}", str(place)], check=True)
                db.kv.put(RUN, "last", os.urandom(50_000))
                assert db.kv.count(RUN) == stored + 2
            print(f"full after {stored} values of 50 kB; goes on with room")
        finally:
            asked(server, "alter role inmem reset default_tablespace", f"drop schema {schema} cascade",
                  "drop tablespace small")


# --- who may do what ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[PostgresServer]:
    """A server that wants a password."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = PostgresServer("-F", shared=False, auth="scram-sha-256")
    yield server
    server.remove()


def url_with(server: PostgresServer, password: str, schema: str, user: str = "inmem") -> str:
    place = quote(str(server.place), safe="")
    return f"postgresql://{user}:{quote(password)}@{place}:5432/postgres?schema={schema}"


@pytest.mark.parametrize("password", ["wrong horse", ""])
def test_a_wrong_password(strict: PostgresServer, password: str) -> None:
    began = time.monotonic()
    with pytest.raises(PermissionDeniedError) as caught:
        inmem.open(url_with(strict, password, "x"), timeout_s=20.0)
    assert time.monotonic() - began < 5.0
    assert not password or password not in str(caught.value)


def test_rights_that_are_missing(strict: PostgresServer) -> None:
    with inmem.open(url_with(strict, "correct horse", "store")) as db:
        db.kv.put(RUN, "a", 1)
    root = f"{strict.conninfo} password='correct horse'"
    with psycopg.connect(root, autocommit=True) as connection:
        for user in ("nobody_much", "reader"):
            connection.execute(f"create role {user} login password 'p'")  # type: ignore[call-overload]
        connection.execute("grant usage on schema store to reader")
        connection.execute("grant select on all tables in schema store to reader")
    with pytest.raises((PermissionDeniedError, InvalidInputError)):
        inmem.open(url_with(strict, "p", "store", "nobody_much"))
    with pytest.raises(PermissionDeniedError, match="inmem init"):
        inmem.open(url_with(strict, "p", "another", "nobody_much"))
    with inmem.open(url_with(strict, "p", "store", "reader")) as db:
        assert db.kv.get(RUN, "a") == 1
        with pytest.raises(PermissionDeniedError):
            db.kv.put(RUN, "a", 2)
        assert db.kv.get(RUN, "a") == 1


def test_no_such_database(server: PostgresServer) -> None:
    with pytest.raises((InvalidInputError, PermissionDeniedError), match="does not exist"):
        inmem.open(server.url.replace("/postgres", "/nothing"), timeout_s=20.0)


# --- what is there already ------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["meta", "records", "buckets", "sessions", "fences"])
def test_tables_of_another_program(server: PostgresServer, schema: str, table: str) -> None:
    asked(server, f"create schema {schema}", f"create table {schema}.{table} (name text)",
          f"insert into {schema}.{table} values ('precious')")
    with pytest.raises(InvalidInputError, match=f"another program: {table}"):
        inmem.open(server.url_of(schema))
    assert asked(server, f"select * from {schema}.{table}") == [("precious",)]
    names = asked(server, f"select relname from pg_class where relnamespace = '{schema}'::regnamespace")
    assert names == [(table,)], "nothing was made"


def test_other_tables_beside_the_stores(server: PostgresServer, schema: str) -> None:
    asked(server, f"create schema {schema}", f"create table {schema}.orders (name text)")
    with inmem.open(server.url_of(schema)) as db:
        db.kv.put(RUN, "a", 1)
        assert db.kv.get(RUN, "a") == 1


@pytest.mark.parametrize("by", [1, -1])
def test_another_format(server: PostgresServer, schema: str, by: int) -> None:
    with inmem.open(server.url_of(schema)) as db:
        db.kv.put(RUN, "a", 1)
    asked(server, f"update {schema}.meta set format = format + {by}")
    with pytest.raises(inmem.FormatVersionError) as caught:
        inmem.open(server.url_of(schema))
    assert (caught.value.found, caught.value.supported) == (FORMAT + by, FORMAT)
    assert ("newer inmem" if by > 0 else "inmem import FILE -d URL?schema=NAME") in caught.value.hint


# --- a pooling proxy ------------------------------------------------------------------------------

_POOLER = """[databases]
postgres = host={server} port=5432 user=inmem
[pgbouncer]
unix_socket_dir = {place}
listen_port = 5432
listen_addr =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
logfile = {place}/log
pidfile = {place}/pid
"""


@pytest.fixture(params=["transaction", "session"])
def pooler(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[str]:
    """The host of a PgBouncer before the server."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    place = Path(tempfile.mkdtemp(prefix="pb-", dir="/tmp"))
    owner = server.data.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    size = 3 if request.param == "transaction" else 14  # of which a session keeps one for itself
    (place / "ini").write_text(
        _POOLER.format(server=server.place, place=place, mode=request.param, size=size)
    )
    (place / "ini").chmod(0o644)
    more: dict[str, Any] = {}
    if os.geteuid() == 0:
        more = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    process = subprocess.Popen(
        [program, str(place / "ini")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, **more,
    )
    wait_until(lambda: (place / ".s.PGSQL.5432").exists(), "pgbouncer listens")
    yield str(place)
    process.terminate()
    process.wait()
    shutil.rmtree(place)


def test_a_pooling_proxy(server: PostgresServer, pooler: str, schema: str, workers: Workers) -> None:
    url = f"postgresql://inmem@{quote(pooler, safe='')}:5432/postgres?schema={schema}"
    with pytest.raises(inmem.ConfigMismatchError, match="search_path"):
        inmem.open(url)
    asked(server, f"alter role inmem set search_path = {schema}")
    try:
        asked(server, "select pg_terminate_backend(pid) from pg_stat_activity"
                      " where pid <> pg_backend_pid() and backend_type = 'client backend'")
        with inmem.open(url, timeout_s=30.0):
            some = started(workers, 3, url, 60.0)
            progress(workers, 3, 3)
            workers.words.stop()
            told = [worker.result() for worker in some]
            no_error(told)
            assert judged(url, told) == (0, 0)
        for _ in range(2):
            said = CliRunner().invoke(app, ["doctor", "-d", url])
            assert said.exit_code == 1 and "proxy" in said.output
            assert "set idle_in_transaction_session_timeout = '5s'" in said.output
            assert "prepared statement" not in said.output
    finally:
        asked(server, "alter role inmem reset search_path")


def of_others(pooler: str, size: int) -> set[tuple[Any, ...]]:
    """What others get of a proxy: of each of the server's connections, all of which are used at once.

    The name of a program the proxy sets itself.
    """
    asked = (
        "select array(select pg_listening_channels()), array(select name from pg_prepared_statements),"
        " array(select name || setting from pg_settings where source = 'session'"
        " and name not in ('application_name', 'transaction_read_only') order by name)"
    )
    with ExitStack() as stack:
        others = [
            stack.enter_context(psycopg.connect(f"host={pooler} port=5432 user=inmem dbname=postgres"))
            for _ in range(size)
        ]
        for other in others:
            other.execute("set local transaction_read_only = on")
        found = [other.execute(asked + ", pg_backend_pid()").fetchone() or () for other in others]
    assert len({row[-1] for row in found}) == size
    return {tuple(map(tuple, row[:-1])) for row in found}


@pytest.mark.parametrize("pooler", ["transaction"], indirect=True)
def test_behind_a_pooling_proxy_nothing_is_left_to_others(
    server: PostgresServer, pooler: str, schema: str
) -> None:
    """No setting, which might weaken their commits; nothing prepared, and nobody who listens."""
    url = f"postgresql://inmem@{quote(pooler, safe='')}:5432/postgres?schema={schema}"
    asked(server, f"alter role inmem set search_path = {schema}")
    try:
        asked(server, "select pg_terminate_backend(pid) from pg_stat_activity"
                      " where pid <> pg_backend_pid() and backend_type = 'client backend'")
        before = of_others(pooler, 3)
        with inmem.open(url, timeout_s=30.0) as db:
            db.queues.put(RUN, "q", 0)
            db.queues.ack(db.queues.claim(RUN, "q"))
            thread = threading.Thread(target=db.queues.claim, args=(RUN, "q"), kwargs={"wait_s": 30.0})
            thread.start()
            wait_until(lambda: db.engine.store.poller.waiting == 1, "it waits")
            statements = db.engine.store.poller.statements
            wait_until(lambda: db.engine.store.poller.statements > statements + 10, "it was looked at")
            assert of_others(pooler, 3) == before
            db.queues.put(RUN, "q", 1)
            thread.join(30.0)
            assert not thread.is_alive()
            with inmem.open(f"{server.url}?schema={schema}_b"):
                pass
            said = CliRunner().invoke(app, ["doctor", "-d", f"{url}_b"])
            assert "proxy" in said.output and "problem" in said.output.lower()
        assert of_others(pooler, 3) == before
    finally:
        asked(server, "alter role inmem reset search_path")


def test_every_error_is_one_of_ours(server: PostgresServer, schema: str) -> None:
    """Whatever the server says: a trigger raises each kind of error in the middle of a commit."""
    states = [
        "22012", "23505", "23514", "25006", "28000", "42501", "42P01", "53100", "53200", "54000", "55000",
        "57014", "58030", "P0001", "XX000", "XX001", "XX002", "40001", "40P01", "0A000", "25P02",
    ]
    with inmem.open(server.url_of(schema), timeout_s=0.3) as db:
        db.kv.put(RUN, "a", 1)
        seen: dict[str, str] = {}
        for state in states:
            asked(
                server,
                f"create or replace function {schema}.bad() returns trigger language plpgsql as"
                f" $$ begin raise exception 'planted' using errcode = '{state}'; end $$",
                f"create or replace trigger bad before insert or update on {schema}.records"
                f" for each row execute function {schema}.bad()",
            )
            with pytest.raises(InmemError) as caught:
                db.kv.put(RUN, "a", 2)
            passes = state in ("25006", "53200", "57014", "40001", "40P01")  # tried until the deadline
            assert passes or not isinstance(caught.value, CommitUnknownError), state
            seen[state] = caught.type.__name__
            asked(server, f"drop trigger bad on {schema}.records")
            assert db.kv.get(RUN, "a") == 1
        db.kv.put(RUN, "a", 3)
        print(seen)
        assert (seen["53100"], seen["54000"]) == ("StoreFullError", "LimitError")
        assert seen["XX001"] == seen["XX002"] == "CorruptionError"
        assert seen["42501"] == "PermissionDeniedError"
