"""Redis: a server of our own on a Unix socket, redis-py in each process.

Logs are lists, of whose ways to append RPUSH costs least; cells are hashes with a version, transactions are
WATCH/MULTI/EXEC, as its documentation advises; what needs no look at the
state first is one pipeline without WATCH.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from bench.peers import Client, Connector, NotInstalled, Peer, Record

_START_S = 10.0
_LOGS = {
    "no log": (["--appendonly", "no"], "none: memory only, a kill of the server takes everything"),
    "everysec": (
        ["--appendonly", "yes", "--appendfsync", "everysec"],
        "the kill of the server; a power cut takes about 1 s (appendfsync everysec)",
    ),
    "always": (["--appendonly", "yes", "--appendfsync", "always"], "a power cut (appendfsync always)"),
}


class Redis(Peer):
    """`redis-server` in a temporary directory."""

    def __init__(self, log: str) -> None:
        self._arguments, self.durability = _LOGS[log]
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, directory: Path) -> Connector:
        program = shutil.which("redis-server")
        if program is None:
            raise NotInstalled("redis-server")
        socket = str(directory / "s")
        with open(directory / "output", "wb") as output:
            self._server = subprocess.Popen(
                [program, "--port", "0", "--unixsocket", socket, "--dir", str(directory), "--save", "",
                 *self._arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )
        connector = functools.partial(RedisClient, socket)
        deadline = time.monotonic() + _START_S
        while True:
            try:
                client = connector()
                self._version = client.db.info("server")["redis_version"]
                client.close()
                return connector
            except redis.ConnectionError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def pids(self) -> Sequence[int]:
        assert self._server is not None
        return (self._server.pid,)

    def facts(self) -> str:
        parser = "hiredis" if redis.utils.HIREDIS_AVAILABLE else "its own parser"
        return f"Redis {self._version}, redis-py {redis.__version__} with {parser}"


class RedisClient(Client):
    """One connection. `get` and `put` are redis-py's own methods."""

    def __init__(self, socket: str) -> None:
        self.db: Any = redis.Redis(unix_socket_path=socket, decode_responses=True)
        self._ids = itertools.count()
        self._name = f"{os.getpid()}-{time.time_ns()}"
        self.get = self.db.get  # type: ignore[method-assign]
        self.put = self.db.set  # type: ignore[method-assign]
        self.pipeline = self.put_many  # type: ignore[method-assign]

    def put_many(self, items: Mapping[str, str]) -> Any:
        with self.db.pipeline(transaction=False) as p:
            for key, value in items.items():
                p.set(key, value)
            p.execute()

    def job_put(self, value: str) -> Any:
        return self.db.lpush("jobs", value)

    def job_put_many(self, values: Sequence[str]) -> Any:
        return self.db.lpush("jobs", *values)

    def job_done(self, wait_s: float = 0.0) -> str | None:
        # Without a wait this is LMOVE: a timeout of 0 of BLMOVE is for ever.
        if wait_s:
            job = self.db.blmove("jobs", "taken", wait_s, "RIGHT", "LEFT")
        else:
            job = self.db.lmove("jobs", "taken", "RIGHT", "LEFT")
        if job is not None:
            self.db.lrem("taken", 1, job)
        return job  # type: ignore[no-any-return]

    def jobs(self) -> int:
        return int(self.db.llen("jobs"))

    def no_jobs(self) -> None:
        self.db.delete("jobs")

    def append(self, log: str, value: str) -> Any:
        return self.db.rpush(log, value)

    def log_length(self, log: str) -> int:
        return int(self.db.llen(log))

    def cell(self, name: str, value: str) -> int:
        with self.db.pipeline() as p:
            p.hset(name, "value", value)
            p.hincrby(name, "version")
            return int(p.execute()[1])

    def cell_value(self, name: str) -> str | None:
        found: str | None = self.db.hget(name, "value")
        return found

    def cas(self, name: str, version: int, value: str) -> int:
        with self.db.pipeline() as p:
            p.watch(name)
            if int(p.hget(name, "version")) != version:
                raise AssertionError("another version")
            p.multi()
            p.hset(name, mapping={"value": value, "version": version + 1})
            p.execute()
        return version + 1

    def _trace(self, p: Any, value: str, tags: Sequence[str]) -> None:
        name = f"trace-{self._name}-{next(self._ids)}"
        p.hset(name, mapping={"type": "Thought", "content": value})
        for index in ("trace-by-time", "trace-by-type:Thought", *(f"trace-by-tag:{tag}" for tag in tags)):
            p.zadd(index, {name: time.time_ns()})

    def trace(self, value: str, tags: Sequence[str]) -> Any:
        with self.db.pipeline() as p:
            self._trace(p, value, tags)
            p.execute()

    def traces(self, tag: str) -> int:
        return int(self.db.zcard(f"trace-by-tag:{tag}"))

    def step(self, value: str) -> Any:
        with self.db.pipeline() as p:
            p.set("step", value)
            p.rpush("steps", value)
            p.hset("phase", "value", value)
            p.hincrby("phase", "version")
            self._trace(p, value, ["step"])
            p.execute()

    def steps(self) -> int:
        events: int = self.db.llen("steps")
        if events != self.traces("step") or events != int(self.db.hget("phase", "version") or 0):
            raise AssertionError("events, traces and the cell differ")
        return events

    def increment(self, key: str) -> Any:
        with self.db.pipeline() as p:
            while True:
                try:
                    p.watch(key)
                    number = int(p.get(key) or 0)
                    p.multi()
                    p.set(key, number + 1)
                    p.execute()
                    return
                except redis.WatchError:
                    continue

    def number(self, key: str) -> int:
        return int(self.db.get(key) or 0)

    def insert(self, key: str, record: Record) -> Any:
        self.insert_many({key: record})

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        with self.db.pipeline(transaction=False) as p:
            for key, record in records.items():
                p.hset(key, mapping=record)
                p.zadd("records", {key: 0})  # equal scores: ordered by key
            p.execute()

    def read(self, key: str) -> Record | None:
        found: Record | None = self.db.hgetall(key)
        return found

    def update(self, key: str, field: str, value: str) -> Any:
        self.db.hset(key, field, value)

    def scan(self, start: str, count: int) -> list[Record]:
        keys = self.db.zrangebylex("records", f"[{start}", "+", 0, count)
        with self.db.pipeline(transaction=False) as p:
            for key in keys:
                p.hgetall(key)
            found: list[Record] = p.execute()
            return found

    def close(self) -> None:
        self.db.close()


