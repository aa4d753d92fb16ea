"""SQLite in WAL mode: one file, a connection in each process, BEGIN IMMEDIATE for what reads and writes."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.peers import Client, Connector, Peer, Record

_BUSY_S = 120.0  # a wait for the lock is a slow figure, not an error
_FIELDS = [f"field{n}" for n in range(10)]
_SCHEMA = f"""
CREATE TABLE kv (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE events (log TEXT, sequence INTEGER, value TEXT, PRIMARY KEY (log, sequence)) WITHOUT ROWID;
CREATE TABLE cells (name TEXT PRIMARY KEY, value TEXT, version INTEGER) WITHOUT ROWID;
CREATE TABLE traces (id INTEGER PRIMARY KEY, type TEXT, time INTEGER, content TEXT);
CREATE INDEX traces_by_type ON traces (type);
CREATE INDEX traces_by_time ON traces (time);
CREATE TABLE tags (tag TEXT, trace INTEGER, PRIMARY KEY (tag, trace)) WITHOUT ROWID;
CREATE TABLE records (key TEXT PRIMARY KEY, {", ".join(f"{name} TEXT" for name in _FIELDS)}) WITHOUT ROWID;
"""
_SURVIVES = {
    "NORMAL": "the kill of every process; a power cut takes what came since the last checkpoint",
    "FULL": "a power cut (synchronous=FULL)",
}


class Sqlite(Peer):
    """A database file."""

    def __init__(self, synchronous: str) -> None:
        self._synchronous = synchronous
        self.durability = _SURVIVES[synchronous]

    def start(self, directory: Path) -> Connector:
        connector = functools.partial(SqliteClient, str(directory / "db"), self._synchronous)
        client = connector()
        client.db.executescript(_SCHEMA)
        client.close()
        return connector

    def facts(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}, journal_mode=WAL, synchronous={self._synchronous}"


class SqliteClient(Client):
    """One connection that commits each statement by itself, unless in a transaction."""

    def __init__(self, path: str, synchronous: str) -> None:
        self.db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, cached_statements=256)
        mode = self.db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise AssertionError(f"journal mode {mode}")
        self.db.execute(f"PRAGMA synchronous={synchronous}")

    @contextlib.contextmanager
    def _immediate(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def _one(self, query: str, *arguments: Any) -> Any:
        row = self.db.execute(query, arguments).fetchone()
        return row[0] if row else None

    def get(self, key: str) -> str | None:
        row = self.db.execute("SELECT value FROM kv WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, value: str) -> Any:
        self.db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def put_many(self, items: Mapping[str, str]) -> Any:
        with self._immediate():
            self.db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", items.items())

    def append(self, log: str, value: str) -> Any:
        self.db.execute(
            "INSERT INTO events SELECT ?1, coalesce(max(sequence), -1) + 1, ?2 FROM events WHERE log=?1",
            (log, value),
        )

    def log_length(self, log: str) -> int:
        return int(self._one("SELECT count(*) FROM events WHERE log=?", log))

    def cell(self, name: str, value: str) -> int:
        return int(self._one(
            "INSERT INTO cells VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET value=excluded.value, "
            "version=version + 1 RETURNING version", name, value,
        ))  # fmt: skip

    def cell_value(self, name: str) -> str | None:
        found: str | None = self._one("SELECT value FROM cells WHERE name=?", name)
        return found

    def cas(self, name: str, version: int, value: str) -> int:
        done = self.db.execute(
            "UPDATE cells SET value=?, version=version + 1 WHERE name=? AND version=?", (value, name, version)
        )
        if done.rowcount != 1:
            raise AssertionError("another version")
        return version + 1

    def _trace(self, value: str, tags: Sequence[str]) -> None:
        new = self.db.execute(
            "INSERT INTO traces (type, time, content) VALUES ('Thought', ?, ?)", (time.time_ns(), value)
        ).lastrowid
        self.db.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, new) for tag in tags])

    def trace(self, value: str, tags: Sequence[str]) -> Any:
        with self._immediate():
            self._trace(value, tags)

    def traces(self, tag: str) -> int:
        return int(self._one("SELECT count(*) FROM tags WHERE tag=?", tag))

    def step(self, value: str) -> Any:
        with self._immediate():
            self.put("step", value)
            self.append("steps", value)
            self.cell("phase", value)
            self._trace(value, ["step"])

    def steps(self) -> int:
        events = self.log_length("steps")
        cell = self._one("SELECT version FROM cells WHERE name='phase'") or 0
        if not events == self.traces("step") == cell:
            raise AssertionError("events, traces and the cell differ")
        return events

    def increment(self, key: str) -> Any:
        with self._immediate():
            self.put(key, (self.get(key) or 0) + 1)  # type: ignore[operator, arg-type]

    def number(self, key: str) -> int:
        return self._one("SELECT value FROM kv WHERE key=?", key) or 0

    def insert(self, key: str, record: Record) -> Any:
        self.db.execute(_INSERT, (key, *record.values()))

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        with self._immediate():
            self.db.executemany(_INSERT, [(key, *record.values()) for key, record in records.items()])

    def read(self, key: str) -> Record | None:
        row = self.db.execute("SELECT * FROM records WHERE key=?", (key,)).fetchone()
        return dict(zip(_FIELDS, row[1:], strict=True)) if row else None

    def update(self, key: str, field: str, value: str) -> Any:
        self.db.execute(f"UPDATE records SET {field}=? WHERE key=?", (value, key))

    def scan(self, start: str, count: int) -> list[Record]:
        rows = self.db.execute("SELECT * FROM records WHERE key>=? ORDER BY key LIMIT ?", (start, count))
        return [dict(zip(_FIELDS, row[1:], strict=True)) for row in rows]

    def close(self) -> None:
        self.db.close()


_INSERT = f"INSERT OR REPLACE INTO records VALUES (?{', ?' * len(_FIELDS)})"
