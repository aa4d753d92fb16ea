"""inmem itself, as users call it: the facades of a scope, one database for all processes."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import inmem
from bench.peers import Client, Connector, Peer, Record

RECORD_FIELDS = 10  # of YCSB
CONFIG = Path(__file__).parents[2] / "config" / "bench.toml"
_LEAVE_S = 20.0

SURVIVES = {
    "memory": "the crash of any process",
    "buffered": "the kill of every process; a power cut takes at most 100 ms",
    "sync": "a power cut",
}


def _length(head: inmem.Event | None) -> int:
    """How long a log with this last event is. Older checkouts have another name for its count."""
    return 0 if head is None else head.sequence + 1


class Ours(Peer):
    """A data directory and the writer that serves it. A handle stays open, so that the writer stays."""

    client: type[OurClient]

    def __init__(self, durability: str, *, config: Path = CONFIG) -> None:
        self.stored = durability
        self.durability = f"{durability}: {SURVIVES[durability]}"
        self.database: inmem.Database | None = None
        self.path = Path()
        self._config = config

    def start(self, directory: Path) -> Connector:
        self.path = directory / "data"
        self.database = inmem.open(self.path, durability=self.stored, config=self._config)
        return functools.partial(self.client, str(self.path), str(self._config))

    def stop(self) -> None:
        database, self.database = self.database, None
        if database is not None:
            pid = database.status().writer_pid
            database.close()
            wait_for_end(pid)

    def pids(self) -> Sequence[int]:
        assert self.database is not None
        return (self.database.status().writer_pid,)

    def facts(self) -> str:
        return f"inmem {inmem.__version__}"


def ended(pid: int) -> bool:
    """Whether a process has ended. A zombie has: nobody may be there to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for_end(pid: int, patience_s: float = _LEAVE_S) -> None:
    """Wait until a writer that the bench has started has left; ask it to if it stays."""
    deadline = time.monotonic() + patience_s
    asked = False
    while not ended(pid):
        if time.monotonic() > deadline:
            if asked:
                raise RuntimeError(f"the writer {pid} does not leave")
            os.kill(pid, signal.SIGTERM)
            asked, deadline = True, time.monotonic() + patience_s
        time.sleep(0.01)


class OurClient(Client):
    """The facades of one run. `get`, `put` and `put_many` are the scope's own methods, nothing between."""

    def __init__(self, path: str, config: str) -> None:
        self._db = inmem.open(path, config=config)
        run = self._run = self._db.run("bench")
        self._cells, self._events = run.cells, self._db.events
        self._traces = self._db.run("traces").traces
        self._steps = self._db.run("steps")
        self._records = self._db.run("ycsb")
        self.get = run.kv.get  # type: ignore[method-assign]
        self.put = run.kv.put  # type: ignore[method-assign]
        self.put_many = run.kv.put_many  # type: ignore[method-assign, assignment]
        self.cas = run.cells.cas  # type: ignore[method-assign, assignment]
        self.cell = run.cells.set  # type: ignore[method-assign]

    def pipeline(self, items: Mapping[str, str]) -> Any:
        with self._db.pipeline() as p:
            for key, value in items.items():
                p.kv.put("bench", key, value)

    def append(self, log: str, value: str) -> Any:
        return self._events.append(log, "tick", value)

    def log_length(self, log: str) -> int:
        return _length(self._events.head(log))

    def cell_value(self, name: str) -> str | None:
        state = self._cells.read(name)
        return None if state is None else state.value

    def trace(self, value: str, tags: Sequence[str]) -> Any:
        return self._traces.record(inmem.Thought(value), tags=tags)

    def traces(self, tag: str) -> int:
        return len(self._traces.query_by_tag(tag))

    def step(self, value: str) -> Any:
        def write(txn: inmem.Transaction) -> None:
            txn.kv.put("step", value)
            txn.events.append("step", value)
            txn.cells.set("phase", value)
            txn.traces.record(inmem.Thought(value))

        self._steps.transact(write)

    def job_put(self, value: str) -> Any:
        return self._run.queues.put("jobs", value)

    def job_put_many(self, values: Sequence[str]) -> Any:
        return self._run.queues.put_many("jobs", values)

    def job_done(self, wait_s: float = 0.0) -> str | None:
        job = self._run.queues.claim("jobs", wait_s=wait_s)
        if job is None:
            return None
        self._run.queues.ack(job)
        payload: str = job.payload
        return payload

    def jobs(self) -> int:
        return self._run.queues.counts("jobs").ready

    def no_jobs(self) -> None:
        self._run.queues.purge("jobs")

    def saver(self) -> Any:
        from inmem.adapters.langgraph import InmemSaver  # of the extra `langgraph`

        return InmemSaver(self._db)

    def steps(self) -> int:
        with self._steps.snapshot() as view:
            head, state = view.events.head(), view.cells.read("phase")
            events = _length(head)
            if events != view.traces.count():
                raise AssertionError("events and traces differ")
            if head is not None and not head.payload == view.kv.get("step") == (state and state.value):
                raise AssertionError("the parts of the last transaction differ")
            return int(events)

    def increment(self, key: str) -> Any:
        self._run.transact(lambda txn: txn.kv.put(key, txn.kv.get(key, 0) + 1))

    def number(self, key: str) -> int:
        return int(self._run.kv.get(key, 0))

    def transition(self, name: str) -> Any:
        self._cells.transition(name, lambda state: (state.value + 1, None))

    def transition_number(self, name: str) -> int:
        state = self._cells.read(name)
        if state is not None:
            return int(state.value)
        try:
            self._cells.init(name, 0)
        except inmem.CellExistsError:
            pass
        return 0

    def insert(self, key: str, record: Record) -> Any:
        self._records.kv.put(key, record)

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        self._records.kv.put_many(records)

    def read(self, key: str) -> Record | None:
        found: Record | None = self._records.kv.get(key)
        return found

    def update(self, key: str, field: str, value: str) -> Any:
        self._records.kv.merge(key, {field: value})

    def scan(self, start: str, count: int) -> list[Record]:
        # `start_after` leaves its key out; a key that sorts right before `start` lets it in.
        before = start[:-1] + chr(ord(start[-1]) - 1) + "\U0010ffff"
        return [record for _, record in self._records.kv.list_with_values(start_after=before, limit=count)]

    def close(self) -> None:
        self._db.close()


class OurTransactionsClient(OurClient):
    """Whatever writes a field reads the record first, in one transaction."""

    def update(self, key: str, field: str, value: str) -> Any:
        self._records.transact(lambda txn: txn.kv.put(key, {**txn.kv.get(key), field: value}))

    def modify(self, key: str, field: str, value: str) -> Any:
        self.update(key, field, value)


class OurFieldsClient(OurClient):
    """A record as one entry for each field, under keys that begin with the record's."""

    def insert(self, key: str, record: Record) -> Any:
        self.insert_many({key: record})

    def insert_many(self, records: Mapping[str, Record]) -> Any:
        self._records.kv.put_many({
            f"{key}/{field}": value for key, record in records.items() for field, value in record.items()
        })

    def read(self, key: str) -> Record | None:
        found = self._records.kv.list_with_values(f"{key}/")
        return {name.rpartition("/")[2]: value for name, value in found} or None

    def update(self, key: str, field: str, value: str) -> Any:
        self._records.kv.put(f"{key}/{field}", value)

    def scan(self, start: str, count: int) -> list[Record]:
        before = start + "."  # sorts right before the "/" of the first field
        records: dict[str, Record] = {}
        for name, value in self._records.kv.list_with_values(start_after=before, limit=count * RECORD_FIELDS):
            key, _, field = name.rpartition("/")
            records.setdefault(key, {})[field] = value
        return [*records.values()]


class OursInTransactions(Ours):
    """A store whose records are written in transactions."""

    client = OurTransactionsClient

    def __init__(self) -> None:
        super().__init__("buffered")


class OursByField(Ours):
    """A store for records of which each field is an entry."""

    client = OurFieldsClient

    def __init__(self) -> None:
        super().__init__("buffered")


Ours.client = OurClient  # which is defined after it
