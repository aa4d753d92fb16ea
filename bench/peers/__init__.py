"""What is measured: inmem and what a user would pick instead, all behind one small interface.

A `Peer` is a store as the bench starts and stops it; `start` gives a
connector, a picklable function that opens a `Client` in any process. What a
store cannot do raises `Unsupported`, and the table says so.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = "INMEM_BENCH_BEFORE"  # the variable that names another checkout of inmem to all processes
Record = dict[str, str]
Connector = Callable[[], "Client"]


class Unsupported(Exception):
    """The store has no such operation."""


class NotInstalled(Exception):
    """The peer, or its client, is not on this machine."""


class Client:
    """One process's connection. Keys and values are `str`; every write is committed when it returns."""

    def get(self, key: str) -> str | None:
        """The value under a key."""
        raise Unsupported("no get")

    def put(self, key: str, value: str) -> Any:
        """Write one value."""
        raise Unsupported("no put")

    def put_many(self, items: Mapping[str, str]) -> Any:
        """Write many values at once, the fastest way that the store has."""
        raise Unsupported("no way to write many at once")

    def pipeline(self, items: Mapping[str, str]) -> Any:
        """Write many values, each by itself, without waiting for one before the next; then for all."""
        raise Unsupported("no pipeline of single writes")

    def append(self, log: str, value: str) -> Any:
        """Append an event to a log."""
        raise Unsupported("no event log")

    def log_length(self, log: str) -> int:
        """How many events a log has."""
        raise Unsupported("no event log")

    def cell(self, name: str, value: str) -> int:
        """Set a versioned cell; its version."""
        raise Unsupported("no versioned cells")

    def cell_value(self, name: str) -> str | None:
        """The value of a cell."""
        raise Unsupported("no versioned cells")

    def cas(self, name: str, version: int, value: str) -> int:
        """Replace a cell if it still has this version; the new version. Raises if it has not."""
        raise Unsupported("no compare-and-swap")

    def trace(self, value: str, tags: Sequence[str]) -> Any:
        """Record a trace that can be found by each of its tags."""
        raise Unsupported("no traces")

    def traces(self, tag: str) -> int:
        """How many traces a tag finds."""
        raise Unsupported("no traces")

    def step(self, value: str) -> Any:
        """One transaction that writes a value, an event, a cell and a trace."""
        raise Unsupported("no transactions")

    def steps(self) -> int:
        """How many `step`s took effect. Raises if their parts differ."""
        raise Unsupported("no transactions")

    def increment(self, key: str) -> Any:
        """Read a number, add one and write it, as a transaction, again until it succeeds."""
        raise Unsupported("no transactions")

    def number(self, key: str) -> int:
        """The number that `increment` has made."""
        raise Unsupported("no transactions")

    def transition(self, name: str) -> Any:
        """As `increment`, on a cell where the store has such a thing."""
        return self.increment(name)

    def transition_number(self, name: str) -> int:
        """The number that `transition` has made."""
        return self.number(name)

    # Jobs of one queue.

    def job_put(self, value: str) -> Any:
        """Put a job into the queue."""
        raise Unsupported("no queues")

    def job_put_many(self, values: Sequence[str]) -> Any:
        """Put many jobs, the fastest way that the store has."""
        raise Unsupported("no way to put many jobs at once")

    def job_done(self, wait_s: float = 0.0) -> str | None:
        """Take the next job and end it; what it is, None if there is none. With a wait, for the first."""
        raise Unsupported("no queues")

    def jobs(self) -> int:
        """How many jobs wait."""
        raise Unsupported("no queues")

    def no_jobs(self) -> None:
        """Remove the jobs that wait."""
        raise Unsupported("no queues")

    def saver(self) -> Any:
        """A saver of LangGraph's checkpoints."""
        raise Unsupported("no saver for LangGraph")

    # Records of named fields, as YCSB has them.

    def insert(self, key: str, record: Record) -> Any:
        """Write a record."""
        raise Unsupported("no records")

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        """Write many records, for loading."""
        for key, record in records.items():
            self.insert(key, record)

    def read(self, key: str) -> Record | None:
        """A record, with all of its fields."""
        raise Unsupported("no records")

    def update(self, key: str, field: str, value: str) -> Any:
        """Write one field of a record."""
        raise Unsupported("no records")

    def modify(self, key: str, field: str, value: str) -> Any:
        """Read a record, then write one field. YCSB does not ask that nothing comes between."""
        self.read(key)
        self.update(key, field, value)

    def scan(self, start: str, count: int) -> list[Record]:
        """The records at and after a key, in order."""
        raise Unsupported("no ordered scan")

    def close(self) -> None:
        """Give the connection back."""


class Peer:
    """A store that the bench runs."""

    name: str
    durability: str  # what survives what, told beside the figures

    def start(self, directory: Path) -> Connector:
        """Start it on an empty directory.

        Raises:
            NotInstalled: what it needs is not there.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End everything that `start` began. May be called twice."""

    def pids(self) -> Sequence[int]:
        """The processes of the store itself, whose processor time counts; none where callers do all."""
        return ()

    def facts(self) -> str:
        """Versions, for the table."""
        return ""


# Name -> (module, class, arguments). Modules are imported when asked for: a peer may not be installed.
_REGISTRY: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "inmem": ("ours", "Ours", ("buffered",)),
    "inmem sync": ("ours", "Ours", ("sync",)),
    "inmem, a key a field": ("ours", "OursByField", ()),
    "inmem, transactions": ("ours", "OursInTransactions", ()),
    "inmem before": ("before", "Before", ("buffered",)),
    "inmem sync before": ("before", "Before", ("sync",)),
    "inmem on postgresql before": ("before", "BeforeOnPostgres", ()),
    "redis": ("redis", "Redis", ("everysec",)),
    "redis no log": ("redis", "Redis", ("no log",)),
    "redis always": ("redis", "Redis", ("always",)),
    "sqlite": ("sqlite", "Sqlite", ("NORMAL",)),
    "sqlite full": ("sqlite", "Sqlite", ("FULL",)),
    "stratadb": ("stratadb", "Strata", ("standard",)),
    "stratadb in process": ("stratadb", "StrataInProcess", ()),
    "stratadb always": ("stratadb", "Strata", ("always",)),
    "huey": ("huey", "Huey", ()),
    "diskcache": ("diskcache", "DiskCache", ()),
    "manager": ("manager", "Manager", ()),
    "langgraph sqlite": ("savers", "SqliteSavers", ()),
    "langgraph postgres": ("savers", "PostgresSavers", ()),
    "inmem on postgresql": ("postgres", "OursOnPostgres", ()),
    "sql by hand": ("postgres", "ByHand", ()),
    "inmem on postgresql, 1 ms away": ("postgres", "OursOnPostgres", (1.0,)),
    "sql by hand, 1 ms away": ("postgres", "ByHand", (1.0,)),
    "inmem on postgresql, 10 ms away": ("postgres", "OursOnPostgres", (10.0,)),
    "sql by hand, 10 ms away": ("postgres", "ByHand", (10.0,)),
}
FAMILIES = ("redis", "sqlite", "stratadb", "huey", "diskcache", "manager", "postgres", "savers")


@dataclass(frozen=True)
class Subject:
    """A store that runs: what the cases of a benchmark need of it."""

    name: str
    durability: str
    facts: str
    connector: Connector
    peer: Peer

    @property
    def is_before(self) -> bool:
        """Whether it is inmem of another checkout, which needs processes of its own."""
        return _REGISTRY[self.name][0] == "before"


@contextlib.contextmanager
def running(
    names: Sequence[str], directory: Path, only: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Subject], dict[str, str]]]:
    """Start the named stores, each in a directory of its own: (subjects, name -> why it is not there).

    `only` are the families of peers that are wanted; inmem always is, and that of another checkout if one
    is named.
    """
    subjects: dict[str, Subject] = {}
    skipped: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            module, kind, arguments = _REGISTRY[name]
            if module == "before" and CHECKOUT not in os.environ:
                continue
            if only is not None and module not in ("ours", "before", *only):
                skipped[name] = "not asked for"
                continue
            place = directory / name.replace(",", "").replace(" ", "-")
            os.mkdir(place)
            try:
                peer: Peer = getattr(importlib.import_module(f"bench.peers.{module}"), kind)(*arguments)
                peer.name = name
                stack.callback(peer.stop)
                connector = peer.start(place)
            except (NotInstalled, ImportError) as error:
                skipped[name] = f"not installed: {error}"
                continue
            except Exception as error:
                if module == "ours":
                    raise
                skipped[name] = f"does not start: {error!r:.200}"
                continue
            subjects[name] = Subject(name, peer.durability, peer.facts(), connector, peer)
        yield subjects, skipped
