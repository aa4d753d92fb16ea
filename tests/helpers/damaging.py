"""Stores that are changed behind everybody's back, on each engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from checking import fill
from support import control_state, kill_writer

import inmem
from inmem.engines.postgres.buckets import buckets_of_range
from inmem.keys import Key, Namespace
from inmem.maintenance.check import check
from inmem.maintenance.check_report import CheckReport
from inmem.record import expires_at
from inmem.storage.environment import Table
from inmem.storage.store import Store
from inmem.storage.wal.format import PUT

HOME = Namespace()
RUN = "run-1"
KEY = Key.kv(HOME, RUN, "key-1")
BRIEF = Key.kv(HOME, RUN, "brief-1")
EVENT = Key.event(HOME, RUN, 5)


@contextlib.contextmanager
def image_of(path: Path) -> Iterator[Store]:
    """The image that a killed writer left, opened for writing."""
    store = Store(Path(control_state(path).image), max_readers=1024, quota_bytes=1 << 30)
    try:
        yield store
    finally:
        store.close()


def damage(path: Path, *ops: tuple[Any, ...], **position: Any) -> None:
    """Change the image behind everybody's back; it still says that it stands where it stood."""
    with image_of(path) as store:
        assert store.position is not None
        txn = store.begin()
        txn.apply(ops)
        txn.publish(replace_position(store, position))


def replace_position(store: Store, changes: dict[str, Any]) -> Any:
    assert store.position is not None
    return store.position._replace(**changes)


def stored_position(path: Path) -> Any:
    with image_of(path) as store:
        return store.position


def stored(path: Path, key: bytes) -> bytes:
    with image_of(path) as store:
        txn = store.begin()
        try:
            record = txn.get(key)
        finally:
            txn.abort()
    assert record is not None
    return bytes(record)


class DamagedImage:
    """What `fill` makes, in the image that a killed writer has left."""

    def __init__(self, path: Path, fill: Callable[[Any], None] = fill) -> None:
        self.path = self.place = path
        fill(path)
        kill_writer(path)

    def stored(self, key: bytes) -> bytes:
        """The record under a key."""
        return stored(self.path, key)

    def all_keys(self) -> list[bytes]:
        """All keys, in order."""
        with image_of(self.path) as store:
            return [bytes(key) for key, _ in store.items(Table.DATA)]

    def change(self, *ops: tuple[Any, ...]) -> None:
        """Put and delete entries."""
        damage(self.path, *ops)

    def version(self) -> int:
        """Of the newest commit."""
        version: int = stored_position(self.path).version
        return version

    def check(self) -> CheckReport:
        """What a check finds."""
        return check(self.path)


class DamagedTables:
    """The same in the tables of a server."""

    def __init__(self, url: str, connection: Any, fill: Callable[[Any], None] = fill) -> None:
        self.place = url
        self._connection = connection  # in its schema
        fill(url)
        self.ask("alter table records drop constraint records_record_check")  # a damaged disk asks nobody

    def stored(self, key: bytes) -> bytes:
        """The record under a key."""
        found = self.ask("select record from records where key = %s", key)
        return bytes(found[0][0])

    def all_keys(self) -> list[bytes]:
        """All keys, in order."""
        return [key for (key,) in self.ask("select key from records order by key")]

    def ask(self, query: str, *arguments: Any) -> Any:
        """What a statement gives, if it gives anything."""
        done = self._connection.execute(query, arguments, binary=True)
        return done.fetchall() if done.description else None

    def change(self, *ops: tuple[Any, ...]) -> None:
        """Put and delete records; the row of a new bucket comes with them."""
        for op in ops:
            assert op[1] == Table.DATA
            self.ask("delete from records where key = %s", op[2])
            if op[0] == PUT:
                expires = expires_at(op[3]) or None if len(op[3]) >= 24 else None
                self.ask("insert into records values (%s, %s, %s)", op[2], op[3], expires)
                for bucket in buckets_of_range(op[2], op[2] + b"\0") if b"\0" in op[2] else ():
                    self.ask("insert into buckets values (%s, 1) on conflict do nothing", bucket)

    def version(self) -> int:
        """Of the newest commit."""
        with inmem.open(self.place) as db:
            return db.status().version

    def check(self) -> CheckReport:
        """What a check finds."""
        with inmem.open(self.place) as db:
            return db.check()
