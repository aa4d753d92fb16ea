"""The storage of a Huey: `InmemStorage`. See `layout` for what is stored.

Invariant: each call is one commit, or part of the one that `claim` makes; and
each process has its own handle of the store, whoever forked it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from huey.constants import EmptyData
from huey.storage import BaseStorage

import inmem
from inmem.adapters.foreign import clear_parts
from inmem.adapters.huey import layout
from inmem.adapters.huey.claim import gathering_for, moving_to
from inmem.adapters.huey.handles import Handles, in_thread, is_green
from inmem.adapters.huey.layout import COUNTERS, DATA, QUEUE, SCHEDULE

T = TypeVar("T")
Key = str | bytes

LEASE_S: Final = 30.0
MAX_ATTEMPTS: Final = 5
_BATCH: Final = 500  # of the schedule, in one commit


class InmemStorage(BaseStorage):  # type: ignore[misc]  # huey has no types
    """Storage of a Huey in a store of inmem.

    `db` is a path, a URL of a PostgreSQL server, or an open `Database`. Each
    process opens its own handle, when it first needs it. With `blocking` a
    worker without work sleeps until there is some, and looks every
    `read_timeout` seconds whether it shall stop. `redeliver`, `lease_s` and
    `max_attempts` say what becomes of the task of a worker that dies: see
    `InmemHuey`.

    >>> import inmem
    >>> from inmem.adapters.huey import InmemStorage
    >>> with inmem.open() as db:
    ...     storage = InmemStorage("my-app", db)
    ...     storage.enqueue(b"first")
    ...     storage.enqueue(b"urgent", priority=10)
    ...     storage.dequeue(), storage.queue_size()
    (b'urgent', 1)

    Raises:
        InvalidInputError: an argument is wrong.
    """

    priority = True

    def __init__(
        self, name: str = "huey", db: str | Path | inmem.Database | None = None, *, blocking: bool = True,
        read_timeout: float = 1.0, redeliver: bool = False, lease_s: float = LEASE_S,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        super().__init__(name)
        self._is_blocking = bool(blocking)
        self.read_timeout = _seconds(read_timeout, "read_timeout", least=0.0)
        self.redeliver = bool(redeliver)
        self.lease_s = _seconds(lease_s, "lease_s", least=0.001)
        if type(max_attempts) is not int or not 1 <= max_attempts <= 65_535:
            problem = f"max_attempts must be an int from 1 to 65535, not {max_attempts!r}"
            raise inmem.InvalidInputError(problem, argument="max_attempts")
        self.max_attempts = max_attempts
        self._handles = Handles(db, layout.run_of(name))

    def __repr__(self) -> str:
        return f"InmemStorage({self.name!r}, {self._handles.place!r})"

    @property
    def blocking(self) -> bool:
        """Whether `dequeue` waits. Not for greenlets on a server: its answers come to one thread alone."""
        return self._is_blocking and not (is_green() and self._handles.is_served)

    # --- the store ------------------------------------------------------------------------

    @property
    def run(self) -> inmem.RunScope:
        """The run that this Huey is stored in, by this process's handle."""
        return self._handles.run

    @property
    def queues(self) -> Any:
        """The queues of that run."""
        return self._handles.run.queues

    def transact(self, work: Callable[[Any], T]) -> T:
        """Do a piece of work in a transaction of its own."""
        result: T = self._handles.run.transact(work)
        return result

    def close(self) -> bool:
        """Close this process's handle, unless the program has opened it; the next call opens one."""
        return self._handles.close()

    def _write(self, work: Callable[[Any], object], *, parts: list[tuple[str, bytes]] | None = None) -> None:
        """Make a write, or gather it. Parts go first: nothing names them yet."""
        for place, part in parts or ():
            self.run.kv.put(place, part)
        gathering = gathering_for(self)
        if gathering is None:
            self.transact(work)
        else:
            gathering.writes.append(work)

    def _do(self, work: Callable[[Any], T]) -> T:
        """Do a piece of work now, after what was gathered."""
        gathering = gathering_for(self)
        return self.transact(work) if gathering is None else gathering.flush(work)

    def _settle(self) -> None:
        """What was gathered must be seen by what comes next."""
        gathering = gathering_for(self)
        if gathering is not None and gathering.writes:
            gathering.flush(lambda txn: None)

    # --- the queue ------------------------------------------------------------------------

    def enqueue(self, data: bytes, priority: float | None = None) -> None:
        """Add a message to the queue. Higher priorities come first, then what was committed first.

        Raises:
            InvalidInputError: `priority` is no whole number, or `data` no bytes.
        """
        payload, parts = layout.payload_of(layout.QUEUE_PARTS, data)
        rank = layout.priority_of(priority)
        moving = moving_to(self, data)

        def put(txn: Any) -> None:
            if moving is None or moving.takes(txn):
                txn.queues.put(QUEUE, payload, priority=rank, max_attempts=self.max_attempts)

        self._write(put, parts=parts)
        if moving is not None:
            moving.is_done = True

    def take(self) -> tuple[Any, bytes] | None:
        """Take a message with the job that it is of, which must be ended; None if there is none in time.

        With `blocking` it sleeps until there is one, for `read_timeout` seconds.
        """
        self._settle()
        wait_s = self.read_timeout if self.blocking else 0.0
        if wait_s and is_green():
            # What sleeps in here would hold up all greenlets, so it sleeps in a thread.
            if not self.queues.has_ready(QUEUE):
                in_thread(partial(self._slept, lambda view: view.queues.has_ready(QUEUE), wait_s))
            wait_s = 0.0
        job = next(self.queues.consume(QUEUE, lease_s=self.lease_s, wait_s=wait_s), None)
        return None if job is None else (job, self._read(layout.data_in(job.payload)))

    def dequeue(self) -> bytes | None:
        """Remove the next message, and return it; None if there is none in time. See `take`."""
        while True:
            taken = self.take()
            if taken is None:
                return None
            job, data = taken

            def ended(txn: Any, job: Any = job) -> None:
                clear_parts(txn.kv, layout.data_in(job.payload))
                txn.queues.ack(job)

            try:
                self.transact(ended)
            except inmem.JobLostError:  # this process slept meanwhile, and another one has it
                continue
            return data

    def queue_size(self) -> int:
        """How many messages wait. Cost: about 0.3 µs for each."""
        self._settle()
        counts = self.queues.counts(QUEUE)
        return int(counts.ready + counts.delayed)

    def enqueued_items(self, limit: int | None = None) -> list[bytes]:
        """Messages that are next, in that order."""
        self._settle()
        count = self.queues.counts(QUEUE).ready if limit is None else limit
        infos = self.queues.peek(QUEUE, limit=count) if count else []
        return [self._read(layout.data_in(each.payload)) for each in infos]

    def flush_queue(self) -> None:
        """Remove the messages that wait, and dead jobs. What workers have taken they finish."""
        self._settle()
        queues = self.queues
        infos = [*queues.peek(QUEUE, limit=max(1, queues.counts(QUEUE).ready)), *queues.dead(QUEUE)]
        for state in ("ready", "delayed", "dead"):
            queues.purge(QUEUE, state=state)
        for each in infos:
            entry = layout.data_in(each.payload)
            if isinstance(entry, list) and queues.get(each.id) is None:
                clear_parts(self.run.kv, entry)

    # --- the schedule ---------------------------------------------------------------------

    def add_to_schedule(self, data: bytes, ts: datetime) -> None:
        """Keep a message until a time.

        Raises:
            InvalidInputError: `ts` is no datetime.
        """
        place = f"{layout.due_place(ts)}/{inmem.RunId.new()}"
        payload, parts = layout.payload_of(layout.SCHEDULE_PARTS, data)
        self._write(lambda txn: txn.kv.put(place, payload), parts=parts)

    def due(self, ts: datetime) -> list[tuple[str, bytes]]:
        """Messages whose time has come by `ts`, with where they are; they stay there."""
        return [(place, self._read(layout.data_in(stored))) for place, stored in self._scheduled(ts, None)]

    def drop_due(self, place: str) -> bool:
        """Remove a message from the schedule; whether it was there."""
        return self.transact(lambda txn: layout.take_due(txn, place))

    def read_schedule(self, ts: datetime) -> list[bytes]:
        """Remove the messages whose time has come by `ts`, and return them.

        No two callers get the same. Huey's consumer has another way: see `InmemHuey.create_consumer`.
        """
        self._settle()
        due = self._scheduled(ts, None)
        taken: list[bytes] = []
        for start in range(0, len(due), _BATCH):
            some = due[start : start + _BATCH]
            loaded = {place: self._read(layout.data_in(stored)) for place, stored in some}

            def removed(txn: Any, loaded: Any = loaded) -> list[str]:
                return [place for place in loaded if layout.take_due(txn, place)]

            taken += [loaded[place] for place in self.transact(removed)]
        return taken

    def _scheduled(self, ts: datetime | None, limit: int | None) -> list[tuple[str, Any]]:
        """What is in the schedule, up to a time; the soonest first."""
        end = None if ts is None else layout.due_place(ts) + "0"  # after "/"
        found: list[tuple[str, Any]] = []
        after: str | None = None
        while limit is None or len(found) < limit:
            size = _BATCH if limit is None else min(_BATCH, limit - len(found))
            some = self.run.kv.list_with_values(SCHEDULE, limit=size, start_after=after)
            soon = [each for each in some if end is None or each[0] < end]
            found += soon
            if len(soon) < size:
                break
            after = some[-1][0]
        return found

    def schedule_size(self) -> int:
        """How many messages wait for their time."""
        self._settle()
        return self.run.kv.count(SCHEDULE)

    def scheduled_items(self, limit: int | None = None) -> list[bytes]:
        """Messages that wait for their time, the soonest first."""
        self._settle()
        return [self._read(layout.data_in(stored)) for _, stored in self._scheduled(None, limit)]

    def flush_schedule(self) -> None:
        """Remove all of the schedule."""
        self._settle()
        self.run.kv.clear(SCHEDULE)
        self.run.kv.clear(f"p/{layout.SCHEDULE_PARTS}")

    # --- data by key ----------------------------------------------------------------------

    def put_data(self, key: Key, value: bytes, is_result: bool = False) -> None:
        """Store a value under a key, in place of another one. A key in bytes is that key as text."""
        name = layout.text_of(key)
        entry, parts = layout.packed(layout.DATA_PARTS, value, "value")
        place, stored = layout.place_of(DATA, name), layout.stored_data(name, entry)

        def put(txn: Any) -> None:
            clear_parts(txn.kv, layout.data_in(txn.kv.get(place)))
            txn.kv.put(place, stored)

        self._write(put, parts=parts)
        self._says(place, bytes(value))

    def peek_data(self, key: Key) -> Any:
        """The value under a key, or `EmptyData`."""
        place = layout.place_of(DATA, layout.text_of(key))
        gathering = gathering_for(self)
        if gathering is not None and place in gathering.data:
            value = gathering.data[place]
        else:
            value = self._value(self.run.kv.get(place), place)
        return EmptyData if value is None else value

    def peek_many(self, keys: list[Key]) -> dict[Key, bytes]:
        """The values under some keys, of those that are there."""
        gathering = gathering_for(self)
        if gathering is not None and gathering.data:
            found = {key: self.peek_data(key) for key in keys}
            return {key: value for key, value in found.items() if value is not EmptyData}
        places = {key: layout.place_of(DATA, layout.text_of(key)) for key in keys}
        stored = self.run.kv.get_many(places.values())
        values = {key: self._value(stored.get(place), place) for key, place in places.items()}
        return {key: value for key, value in values.items() if value is not None}

    def pop_data(self, key: Key) -> Any:
        """Remove the value under a key, and return it, or `EmptyData`. One caller gets it."""
        place = layout.place_of(DATA, layout.text_of(key))

        def popped(txn: Any) -> Any:
            stored = txn.kv.get(place)
            if stored is None:
                return None
            entry = layout.data_in(stored)
            value = layout.loaded(entry, txn.kv.get)
            txn.kv.discard(place)
            clear_parts(txn.kv, entry)
            return value

        gathering = gathering_for(self)
        if gathering is not None:  # the value goes in the commit that ends the task, or stays for the next
            value = self.peek_data(key)
            if value is not EmptyData:
                self.delete_data(key)
            return value
        # A look before: most keys that are popped are not there, and nothing need be sent for these.
        if not self.run.kv.exists(place):
            return EmptyData
        value = self.transact(popped)
        return EmptyData if value is None else value

    def delete_data(self, key: Key) -> bool:
        """Remove the value under a key; whether there was one."""
        place = layout.place_of(DATA, layout.text_of(key))
        gathering = gathering_for(self)
        if gathering is None:
            return self._deleted(place)
        is_there = self.has_data_for_key(key)
        if is_there:
            gathering.writes.append(partial(_drop, place))
            gathering.data[place] = None
        return is_there

    def _deleted(self, place: str) -> bool:
        def deleted(txn: Any) -> bool:
            stored = txn.kv.get(place)
            _drop(place, txn)
            return stored is not None

        return self.run.kv.exists(place) and self.transact(deleted)

    def has_data_for_key(self, key: Key) -> bool:
        """Whether there is a value under a key."""
        place = layout.place_of(DATA, layout.text_of(key))
        gathering = gathering_for(self)
        if gathering is not None and place in gathering.data:
            return gathering.data[place] is not None
        return bool(self.run.kv.exists(place))

    def put_if_empty(self, key: Key, value: bytes, ttl: float | None = None) -> bool:
        """Store a value if there is none under the key, for `ttl` seconds; whether it was stored."""
        name = layout.text_of(key)
        entry, parts = layout.packed(layout.DATA_PARTS, value, "value")
        place, stored = layout.place_of(DATA, name), layout.stored_data(name, entry)

        def put(txn: Any) -> bool:
            if txn.kv.exists(place):
                return False
            txn.kv.put(place, stored, ttl=ttl)
            return True

        for at, part in parts:
            self.run.kv.put(at, part)
        is_put = self._do(put)
        if parts and not is_put:
            clear_parts(self.run.kv, entry)
        return is_put

    def wait_result(
        self, key: Key, timeout: float | None = None, backoff: float = 1.15, max_delay: float = 1.0
    ) -> bool:
        """Sleep until there is a value under a key; False if there is none within `timeout` seconds.

        Nothing is polled: `backoff` and `max_delay` are for greenlets on a server alone.
        """
        self._settle()
        if timeout is not None and timeout <= 0:
            return self.has_data_for_key(key)
        if is_green() and self._handles.is_served:
            is_there: bool = super().wait_result(key, timeout, backoff, max_delay)
            return is_there
        place = layout.place_of(DATA, layout.text_of(key))
        waited = partial(self._slept, lambda view: view.kv.exists(place), timeout)
        return in_thread(waited) if is_green() else waited()

    def _slept(self, look: Callable[[Any], Any], timeout: float | None) -> bool:
        try:
            self.run.wait(look, timeout_s=timeout)
        except inmem.WaitTimeoutError:
            return False
        return True

    def result_store_size(self) -> int:
        """How many values there are by key."""
        self._settle()
        return self.run.kv.count(DATA)

    def result_items(self) -> dict[str, bytes]:
        """All values by key, of one moment."""
        self._settle()
        with self.run.snapshot() as view:
            found = view.kv.list_with_values(DATA)
            return {
                layout.key_at(place, stored): layout.loaded(layout.data_in(stored), view.kv.get)
                for place, stored in found
            }

    def flush_results(self) -> None:
        """Remove all values by key."""
        self._settle()
        self.run.kv.clear(DATA)
        self.run.kv.clear(f"p/{layout.DATA_PARTS}")

    # --- counters -------------------------------------------------------------------------

    def incr(self, key: Key, amount: int = 1) -> int:
        """Add to a counter, which starts at 0; what it is then."""
        place = layout.place_of(COUNTERS, layout.text_of(key))
        gathering = gathering_for(self)
        if gathering is None:
            return int(self.run.kv.add(place, amount))
        # As a list: a counter's value that only the commit knows is put into it.
        return int(gathering.flush(lambda txn: [gathering.counted(txn, place, amount)])[0])

    def delete_counter(self, key: Key) -> None:
        """Remove a counter."""
        place = layout.place_of(COUNTERS, layout.text_of(key))
        self._write(lambda txn: txn.kv.discard(place))

    def flush_counters(self) -> None:
        """Remove all counters."""
        self._settle()
        self.run.kv.clear(COUNTERS)

    # --- values ---------------------------------------------------------------------------

    def _says(self, place: str, value: bytes | None) -> None:
        """What a key has, as this thread sees it before the commit."""
        gathering = gathering_for(self)
        if gathering is not None:
            gathering.data[place] = value

    def _read(self, entry: Any) -> bytes:
        return layout.loaded(entry, self.run.kv.get)

    def _value(self, stored: Any, place: str) -> bytes | None:
        if stored is None:
            return None
        entry = layout.data_in(stored)
        if isinstance(entry, bytes):
            return entry
        with self.run.snapshot() as view:  # its parts go with it
            stored = view.kv.get(place)
            return None if stored is None else layout.loaded(layout.data_in(stored), view.kv.get)


def _drop(place: str, txn: Any) -> None:
    """Remove what is under a key, if something is."""
    stored = txn.kv.get(place)
    if stored is not None:
        txn.kv.discard(place)
        clear_parts(txn.kv, layout.data_in(stored))


def _seconds(value: object, argument: str, *, least: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < 1e9:
        return float(value)
    problem = f"{argument} must be a number of seconds from {least:g} on, not {value!r}"
    raise inmem.InvalidInputError(problem, argument=argument)
