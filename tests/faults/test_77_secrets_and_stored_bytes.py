"""A password is shown nowhere; what somebody has written into the tables is told as damage."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from postgres_server import PostgresServer, binaries
from postgres_shared import MISSING

import inmem
from inmem import CorruptionError, InmemError
from inmem.engines.postgres.known import Told
from inmem.writeset import OP_PUT, encode_single

RUN = "r"
PASSWORD = "correct horse"


# --- secrets --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[PostgresServer]:
    """A server that wants a password."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = PostgresServer("-F", shared=False, auth="scram-sha-256")
    yield server
    server.remove()


def url_of(server: PostgresServer, password: str = PASSWORD, words: str = "") -> str:
    place = quote(str(server.place), safe="")
    return f"postgresql://inmem:{quote(password)}@{place}:5432/postgres?schema=secret{words}"


def shown(error: BaseException) -> str:
    """All that an error tells."""
    parts = [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
    return "\n".join(parts)


def test_a_password_is_shown_nowhere(
    strict: PostgresServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = (PASSWORD, quote(PASSWORD), "wrong horse", "wrong%20horse", "s3cret")
    said: list[str] = []
    with inmem.open(url_of(strict)) as db:
        db.kv.put(RUN, "a", 1)
        some: list[Any] = [db, db.run(RUN), db.kv, db.status()]
        with db.transaction(RUN) as txn:
            some += [txn, txn.kv]
        said += [repr(each) + str(each) for each in some]
        engine = db._engine
        for name in ("_store", "_latest", "_direct", "_waits"):
            said.append(repr(getattr(engine, name, None)))
        said += [repr(engine.store.address), str(engine.store.address), repr(engine.store.connections)]
        said.append(repr(vars(engine.store)))
        travelling = pickle.dumps(db)
        said.append(travelling.decode("latin-1"))
        try:
            with pickle.loads(travelling) as other:  # noqa: S301
                said.append(repr(other))
        except InmemError as error:
            said.append(shown(error))
        try:
            said.append(repr(copy.copy(db)))
        except (InmemError, TypeError) as error:
            said.append(shown(error))
    for url in (
        url_of(strict, "wrong horse"), url_of(strict, words="&sslmode=nonsense"),
        url_of(strict, words="&nonsense=1"), url_of(strict).replace(":5432", ":s3cret"),
        url_of(strict).replace("schema=secret", "schema=Bad-Name"),
        "postgresql://inmem:correct horse@[bad/x", "postgresql://u@h/db?password=s3cret&schema=9",
        f"postgresql://inmem:{quote(PASSWORD)}@/postgres?host=/nowhere",
    ):
        with pytest.raises(InmemError) as caught:
            inmem.open(url, timeout_s=0.5)
        said.append(shown(caught.value))
    said += [record.getMessage() for record in caplog.records]
    said += capfd.readouterr()
    for text in said:
        for secret in secrets:
            assert secret not in text, text


@pytest.mark.parametrize("url", [
    "postgresql://u:a@s3cret@localhost:1/db", "postgresql://u:s3cret/x@localhost:1/db",
    "postgresql://u:12/s3cret@localhost:1/db", "postgresql://u:s3cret#1@localhost:1/db",
    "postgresql://u:12#s3cret@localhost:1/db", "postgresql://u:12?s3cret@localhost:1/db",
    "postgresql://u:s3cret@localhost:1,localhost:none/db", "postgresql://u:s3cret@[::1/db",
    "postgresql://u:s3cret@localhost:1/db?sslmode=none", "postgresql://u:s3cret@localhost:1/db?service=none",
    "postgresql://u:s3cret@localhost:1/db?target_session_attrs=none", " postgresql://u:s3cret@localhost/db",
    "postgresql://u:s3cret@localhost:1,localhost:2/db?hostaddr=127.0.0.1", "host=localhost password=s3cret",
])  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    """And what libpq would take for a host, of a password whose characters are not escaped, is not shown."""
    began = time.monotonic()
    with pytest.raises(inmem.InvalidInputError) as caught:
        inmem.open(url, timeout_s=100.0)
    assert time.monotonic() - began < 50.0
    assert caught.value.argument == "path" and "s3cret" not in shown(caught.value)


def test_a_server_without_ssl_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(8)  # it asks for SSL
                connection.sendall(b"N")
                connection.recv(1)

        thread = threading.Thread(target=refuse)
        thread.start()
        port = listening.getsockname()[1]
        with pytest.raises(inmem.InvalidInputError, match="server does not support SSL"):
            inmem.open(f"postgresql://u@127.0.0.1:{port}/db?sslmode=require", timeout_s=60.0)
        thread.join(60.0)
        assert not thread.is_alive()


def test_a_password_is_in_no_list_of_processes(strict: PostgresServer) -> None:
    code = (
        "import inmem, os, sys\n"
        "with inmem.open(os.environ['PLACE']) as db:\n"
        "    db.kv.put('r', 'a', 1)\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PLACE": url_of(strict), "PYTHONPATH": str(Path(inmem.__file__).parents[1])},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_bytes().decode("latin-1"))
            except OSError:
                continue
    with psycopg.connect(f"{strict.conninfo} password='{PASSWORD}'", autocommit=True) as connection:
        lines += [str(row) for row in connection.execute("select * from pg_stat_activity").fetchall()]
    process.communicate("")
    lines.append(strict.log())
    assert process.returncode == 0
    assert not [line for line in lines if PASSWORD in line or quote(PASSWORD) in line]


# --- stored bytes ---------------------------------------------------------------------------------


def fill(db: inmem.Database) -> None:
    """Some of each primitive."""
    db.runs.create_run(run_id=RUN, tags=("t",), metadata={"a": 1})
    run = db.run(RUN)
    for n in range(3):
        run.kv.put(f"k{n}", {"n": n}, ttl=1000.0 if n else None)
        run.events.append("e", {"n": n})
        run.cells.set(f"c{n}", n)
        run.traces.record(inmem.Thought(f"thought {n}"))
        run.queues.put("q", n)
    run.queues.claim("q", lease_s=100.0)
    db.leases.acquire(RUN, "l", ttl_s=100.0)


def read_all(db: inmem.Database) -> dict[str, str]:
    """Read everything in many ways; what each gave: nothing, or the class of an error."""
    run = db.run(RUN)
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: [run.kv.get(f"k{n}") for n in range(3)],
        "versioned": lambda: [run.kv.get_versioned(f"k{n}") for n in range(3)],
        "list": lambda: run.kv.list_with_values(), "count": lambda: run.kv.count(),
        "events": lambda: [run.events.read_range(0), run.events.count()],
        "types": lambda: run.events.query_by_type("e"), "chain": lambda: run.events.verify_chain(),
        "cells": lambda: [run.cells.read(f"c{n}") for n in range(3)], "cell list": lambda: run.cells.list(),
        "traces": lambda: run.traces.list(), "trace count": lambda: run.traces.count(),
        "jobs": lambda: [run.queues.peek("q", limit=9), run.queues.counts("q")],
        "run": lambda: db.runs.get_run(RUN), "runs": lambda: db.runs.query_runs(tags=["t"]),
        "stats": lambda: db.runs.get_stats(), "add": lambda: run.kv.add("n", 1),
        "append": lambda: run.events.append("e", 1), "cell set": lambda: run.cells.set("c0", 5),
        "transition": lambda: run.cells.transition("c1", lambda state: (1, None)),
        "claim": lambda: run.queues.claim("q", lease_s=0.1), "put": lambda: run.kv.put("k0", 1),
        "transact": lambda: run.transact(lambda txn: txn.kv.put("k1", txn.kv.get("k1"))),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
        except InmemError as error:
            told[name] = type(error).__name__
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            told[name] = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
    return told


def altered(record: bytes, how: str, rng: random.Random, other: bytes) -> bytes:
    """Other bytes in place of a record."""
    if how == "random":
        return rng.randbytes(len(record))
    if how == "cut":
        return record[: rng.randrange(len(record))]
    if how == "empty":
        return b""
    if how == "flipped":
        at = rng.randrange(len(record))
        return record[:at] + bytes([record[at] ^ 1 << rng.randrange(8)]) + record[at + 1 :]
    if how == "longer":
        return record + rng.randbytes(9)
    return other  # of another key


WAYS = ("random", "cut", "empty", "flipped", "longer", "exchanged")
# A damaged record may read as another one, whose state refuses a call.
ALLOWED = {
    "CorruptionError", "DamagedValueError", "NotANumberError", "CellNotFoundError", "RunNotFoundError",
    "JobLostError", "LimitError",
    "RunStateError", "RunDeletedError", "InvariantError", "TypeMismatchError", "ConflictError",
}


@pytest.mark.parametrize("how", WAYS)
def test_damaged_records_are_told(
    postgres_server: PostgresServer, how: str, rng: random.Random
) -> None:
    schema = f"damaged_{os.getpid()}_{how}"
    with inmem.open(postgres_server.url_of(schema)) as db:
        fill(db)
        with psycopg.connect(postgres_server.conninfo, autocommit=True) as connection:
            connection.execute(f"set search_path = {schema}")  # type: ignore[call-overload]
            connection.execute("create table kept as select * from records")
            stored = connection.execute("select key, record from kept").fetchall()
            told: dict[str, int] = {}
            count = len(stored) if os.environ.get("INMEM_EXHAUSTIVE") else 12
            for key, record in rng.sample(stored, min(len(stored), count)):
                new = altered(record, how, rng, rng.choice(stored)[1])
                try:
                    connection.execute("update records set record = %s where key = %s", (new, key))
                except psycopg.errors.CheckViolation:  # too short to be one
                    told["not taken"] = told.get("not taken", 0) + 1
                    continue
                for name in read_all(db).values():
                    told[name] = told.get(name, 0) + 1
                connection.execute("delete from records")
                connection.execute("insert into records select * from kept")
    print(f"{how}: {told}")
    assert told.keys() <= ALLOWED | {"not taken"}, told


def test_keys_of_nobody(postgres_server: PostgresServer, rng: random.Random) -> None:
    schema = f"keys_{os.getpid()}"
    with inmem.open(postgres_server.url_of(schema)) as db:
        fill(db)
        with psycopg.connect(postgres_server.conninfo, autocommit=True) as connection:
            connection.execute(f"set search_path = {schema}")  # type: ignore[call-overload]
            stored = connection.execute("select key, record from records").fetchall()
            for key, record in stored:
                at = key.index(0)
                wrong = key[: at + 2] + b"?" * rng.randrange(12), key + b"?", key[: at + 1], b"nowhere"
                for new in wrong:
                    connection.execute(
                        "insert into records values (%s, %s) on conflict do nothing", (new, record)
                    )
        told = read_all(db)
        print(told)
        assert set(told.values()) <= ALLOWED, told


def test_a_damaged_result_of_a_commit(postgres_server: PostgresServer) -> None:
    schema = f"result_{os.getpid()}"
    with inmem.open(postgres_server.url_of(schema), timeout_s=5.0) as db:
        db.kv.add(RUN, "n", 1)
        body = encode_single([OP_PUT, b"default/default/default/r\0\x01k", b"\1", 0])
        session = db._engine.store.sessions.take()
        sequence = session._sequence + 1
        session.commit(body, Told(), sync=False, timeout_s=5.0)
        session.commit_all([body], Told(), sync=False, timeout_s=5.0, resent=sequence)  # the same
        with psycopg.connect(postgres_server.conninfo, autocommit=True) as connection:
            connection.execute(f"update {schema}.sessions set result = '\\xc1c1'")  # type: ignore[call-overload]
        with pytest.raises(CorruptionError):
            session.commit_all([body], Told(), sync=False, timeout_s=5.0, resent=sequence)
        session.close()


@pytest.mark.parametrize("value", [b"", b"\0", b"\xff" * 40])
def test_damaged_fences(postgres_server: PostgresServer, value: bytes) -> None:
    schema = f"fences_{os.getpid()}_{len(value)}"
    with inmem.open(postgres_server.url_of(schema)) as db:
        db.kv.put(RUN, "a", 1)
        db.runs.delete_run(RUN)
        with psycopg.connect(postgres_server.conninfo, autocommit=True) as connection:
            connection.execute(f"update {schema}.fences set fence = %s", (value,))  # type: ignore[call-overload]
        with pytest.raises(InmemError) as caught:
            db.kv.put(RUN, "a", 2)
        assert caught.type.__name__ in ("RunDeletedError", "CorruptionError", "BusyError")
