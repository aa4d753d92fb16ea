"""inmem on a PostgreSQL server, and what a user would write by hand in SQL, on the same server.

One server for both, which commits to the disk. With a delay there is a proxy
before it, which hands each message on so much later: a network.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import inmem
from bench.peers import Client, Connector, NotInstalled, Peer

_HELPERS = Path(__file__).parents[2] / "tests" / "helpers"
_TABLES = """
create table kv (key text primary key, value text) with (fillfactor = 70);
create table jobs (id bigserial primary key, value text not null, taken boolean not null default false);
create index on jobs (id) where not taken;
"""
_UPSERT = "insert into kv values (%s, %s) on conflict (key) do update set value = excluded.value"
_CLAIM = """update jobs set taken = true where id = (
    select id from jobs where not taken order by id limit 1 for update skip locked) returning id, value"""


class Shared:
    """The server that all of a benchmark share, and proxies before it."""

    server: Any = None
    users = 0

    @classmethod
    def take(cls) -> Any:
        """Start it if nobody has."""
        if cls.server is None:
            if importlib.util.find_spec("psycopg") is None:
                raise NotInstalled("psycopg is not installed")
            if not (_HELPERS / "postgres_server.py").exists():
                raise NotInstalled("there is no helper that starts a server")
            if str(_HELPERS) not in sys.path:
                sys.path.append(str(_HELPERS))
            module = importlib.import_module("postgres_server")
            if module.binaries() is None:
                raise NotInstalled("PostgreSQL is not installed")
            cls.server = module.PostgresServer("-c", "max_connections=400", "-c", "shared_buffers=256MB")
        cls.users += 1
        return cls.server

    @classmethod
    def let_go(cls) -> None:
        """The last one stops it."""
        cls.users -= 1
        if not cls.users:
            cls.server.remove()
            cls.server = None


def relay(before: str, behind: str, delay_s: float) -> None:
    """A proxy on one socket before another: what comes is handed on so much later, in both directions."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(delay_s, writer.write, data)
        loop.call_later(delay_s, writer.close)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(behind)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    async def run() -> None:
        server = await asyncio.start_unix_server(serve, before, backlog=512)
        os.chmod(before, 0o777)
        await server.serve_forever()

    asyncio.run(run())


class _OnPostgres(Peer):
    durability = "a power cut"

    def __init__(self, delay_ms: float = 0.0) -> None:
        self._delay_ms = delay_ms
        self._server: Any = None
        self._proxy: multiprocessing.process.BaseProcess | None = None

    def _place(self, directory: Path) -> str:
        """The directory of the socket to connect to."""
        self._server = Shared.take()
        place = str(self._server.place)
        if not self._delay_ms:
            return place
        directory.mkdir(parents=True, exist_ok=True)
        before = directory / ".s.PGSQL.5432"
        self._proxy = multiprocessing.get_context("spawn").Process(
            target=relay, args=(str(before), f"{place}/.s.PGSQL.5432", self._delay_ms / 2000), daemon=True
        )
        self._proxy.start()
        while not before.exists():
            self._proxy.join(0.01)
        return str(directory)

    def stop(self) -> None:
        server, self._server = self._server, None
        if self._proxy is not None:
            self._proxy.terminate()
            self._proxy.join()
            self._proxy = None
        if server is not None:
            Shared.let_go()

    def facts(self) -> str:
        return f"PostgreSQL, {self._delay_ms} ms a round trip more" if self._delay_ms else "PostgreSQL"


class OursOnPostgres(_OnPostgres):
    """inmem."""

    def start(self, directory: Path) -> Connector:
        place = quote(self._place(directory), safe="")
        name = f"inmem_{self._delay_ms:g}".replace(".", "_")
        url = f"postgresql://inmem@{place}:5432/postgres?schema={name}"
        inmem.open(url).close()
        return functools.partial(OursOnPostgresClient, url)


class ByHand(_OnPostgres):
    """SQL."""

    def start(self, directory: Path) -> Connector:
        conninfo = f"host={self._place(directory)} port=5432 user=inmem dbname=postgres"
        schema = f"by_hand_{self._delay_ms:g}".replace(".", "_")
        import psycopg

        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(f"create schema {schema}")
            connection.execute(f"set search_path = {schema}")
            connection.execute(_TABLES)
        return functools.partial(ByHandClient, conninfo, schema)


class OursOnPostgresClient(Client):
    """A handle. Names are `run/rest`."""

    def __init__(self, url: str) -> None:
        self.db = inmem.open(url)

    def get(self, key: str) -> str | None:
        run, _, name = key.partition("/")
        found: str | None = self.db.kv.get(run, name)
        return found

    def put(self, key: str, value: str) -> int:
        run, _, name = key.partition("/")
        return self.db.kv.put(run, name, value)

    def put_many(self, items: Mapping[str, str]) -> int:
        run = next(iter(items)).partition("/")[0]
        return self.db.kv.put_many(run, {key.partition("/")[2]: value for key, value in items.items()})

    def append(self, log: str, value: str) -> int:
        return self.db.events.append(log, "step", value).sequence

    def append_many(self, log: str, values: Sequence[str]) -> None:
        with self.db.pipeline() as pipeline:
            for value in values:
                pipeline.events.append(log, "step", value)

    def cas(self, name: str, version: int, value: str) -> int:
        run, _, cell = name.partition("/")
        return self.db.cells.cas(run, cell, version, value)

    def cell(self, name: str, value: str) -> int:
        run, _, cell = name.partition("/")
        return self.db.cells.set(run, cell, value)

    def increment(self, key: str) -> Any:
        run, _, name = key.partition("/")
        return self.db.transact(run, lambda txn: txn.kv.put(name, txn.kv.get(name, 0) + 1))

    def job_put_many(self, values: Sequence[str]) -> Any:
        return self.db.queues.put_many("jobs", "q", values)

    def job_done(self, wait_s: float = 0.0) -> str | None:
        job = self.db.queues.claim("jobs", "q", wait_s=wait_s)
        if job is None:
            return None
        self.db.queues.ack(job)
        payload: str = job.payload
        return payload

    def jobs(self) -> int:
        return self.db.queues.counts("jobs", "q").ready

    def saver(self) -> Any:
        from inmem.adapters.langgraph import InmemSaver  # of the extra `langgraph`

        return InmemSaver(self.db)

    def close(self) -> None:
        self.db.close()


class ByHandClient(Client):
    """A connection that commits each statement. What has no table of its own is an upsert."""

    def __init__(self, conninfo: str, schema: str) -> None:
        import psycopg

        self.connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=0)
        self.connection.execute(f"set search_path = {schema}")
        self._cursor = self.connection.cursor(binary=True)

    def get(self, key: str) -> str | None:
        found = self._cursor.execute("select value from kv where key = %s", (key,)).fetchone()
        return found[0] if found else None

    def put(self, key: str, value: str) -> None:
        self._cursor.execute(_UPSERT, (key, value))

    def put_many(self, items: Mapping[str, str]) -> None:
        with self.connection.pipeline(), self.connection.transaction():
            self._cursor.executemany(_UPSERT, [*items.items()])

    def append(self, log: str, value: str) -> None:
        self.put(log, value)

    def append_many(self, log: str, values: Sequence[str]) -> None:
        for value in values:  # not all of them of one row
            self.put(f"{log}/{os.getpid()}", value)

    def cas(self, name: str, version: int, value: str) -> int:
        self.put(name, value)
        return version + 1

    def cell(self, name: str, value: str) -> int:
        self.put(name, value)
        return 1

    def increment(self, key: str) -> None:
        self.put(key, "1")

    def job_put_many(self, values: Sequence[str]) -> None:
        self._cursor.executemany("insert into jobs (value) values (%s)", [(value,) for value in values])

    def job_done(self, wait_s: float = 0.0) -> str | None:
        found = self._cursor.execute(_CLAIM).fetchone()
        if found is None:
            return None
        self._cursor.execute("delete from jobs where id = %s", (found[0],))
        value: str = found[1]
        return value

    def jobs(self) -> int:
        found = self._cursor.execute("select count(*) from jobs where not taken").fetchone()
        return int(found[0]) if found else 0

    def close(self) -> None:
        self.connection.close()
