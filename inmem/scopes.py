"""What the facades are bound to: a run, a snapshot, a transaction, a pipeline.

Invariant: the same names mean the same thing in each of them; only when
writes happen differs. A scope commits each write by itself, a transaction all
at its end, a pipeline as it goes without waiting; a snapshot has no writes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from inmem.client import transaction as engine
from inmem.client.transaction import AutoReader, SnapshotReader, check_timeout, resolved_as, retrying
from inmem.config import DURABILITIES
from inmem.errors import (
    ClosedError,
    CommitUnknownError,
    ConfigMismatchError,
    InmemError,
    InvalidInputError,
)
from inmem.keys import shorten
from inmem.primitives._common import Autocommit
from inmem.primitives.event_log import EventReads, ScopedEvents, TransactionEvents
from inmem.primitives.kv import KVReads, ScopedKV, TransactionKV
from inmem.primitives.run_index import RunReads, ScopedRuns, TransactionRuns
from inmem.primitives.state_cell import CellReads, ScopedCells, TransactionCells
from inmem.primitives.trace_store import ScopedTraces, TraceReads, TransactionTraces
from inmem.storage.snapshot import Snapshot as StoredSnapshot

if TYPE_CHECKING:
    from inmem.database import Database

T = TypeVar("T")
P = ParamSpec("P")

_RANK = {name: rank for rank, name in enumerate(DURABILITIES)}
MAX_ATTEMPTS = 64
TRANSACT_TIMEOUT_S = 30.0


class RunScope:
    """The facades bound to one run, or to what the runs of a level share.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     scope = db.run("run-1")
    ...     version = scope.kv.put("color", "green")
    ...     scope.kv.get("color")
    'green'
    """

    __slots__ = ("_database", "cells", "events", "kv", "name", "prefix", "runs", "traces")

    def __init__(self, database: Database, prefix: bytes, name: str) -> None:
        self._database = database
        self.prefix = prefix
        self.name = name
        attachment, settings = database._attachment, database.settings
        reader = AutoReader(attachment, settings.snapshot_max_age_s)
        commit = Autocommit(attachment, settings.timeout_s)
        self.kv = ScopedKV(reader, commit, prefix, self.transact)
        self.events = ScopedEvents(reader, commit, prefix)
        self.cells = ScopedCells(reader, commit, prefix)
        self.traces = ScopedTraces(reader, commit, prefix)
        self.runs = ScopedRuns(reader, commit, database.namespace.prefix(), name)

    def __repr__(self) -> str:
        return f"RunScope({self.prefix.decode()!r})"

    @property
    def run_id(self) -> str:
        """The run's id; for a shared scope its level."""
        return self.name

    def transaction(self, *, durability: str | None = None, timeout_s: float | None = None) -> Transaction:
        """One attempt at a transaction in this run. See `Database.transaction`."""
        sync = wants_sync(durability, self._database)
        if timeout_s is not None:
            timeout_s = check_timeout(timeout_s)
        return Transaction.begin(self._database, self, sync, timeout_s)

    def transact(
        self, fn: Callable[[Transaction], T], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSACT_TIMEOUT_S, durability: str | None = None,
    ) -> T:
        """Run `fn(txn)` with retries in this run. See `Database.transact`."""
        sync = wants_sync(durability, self._database)
        if not callable(fn):
            raise InvalidInputError("fn must be callable", argument="fn")

        def attempt(left_s: float) -> T:
            txn = Transaction.begin(self._database, self, sync, left_s)
            with txn:
                result = fn(txn)
                if not txn._core.is_over:
                    try:
                        txn.commit()
                    except CommitUnknownError as error:
                        raise resolved_as(error, lambda _: result) from None
            return result

        return retrying(attempt, max_attempts=max_attempts, timeout_s=timeout_s)

    def snapshot(self) -> Snapshot:
        """One consistent moment of this run. See `Database.snapshot`."""
        return Snapshot.begin(self._database, self)


class Snapshot:
    """Read-only facades that all see one commit version.

    Use it as a context manager: an open snapshot keeps memory from being
    reused, and ends by itself after `snapshot_max_age_s`. `at` looks at other
    runs at the same moment. Not to be shared between threads.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     version = db.kv.put("run-1", "color", "green")
    ...     with db.snapshot("run-1") as view:
    ...         version = db.kv.put("run-1", "color", "blue")
    ...         view.kv.get("color")
    'green'
    """

    __slots__ = ("_database", "_reader", "cells", "events", "kv", "run_id", "runs", "traces")

    def __init__(self, database: Database, reader: SnapshotReader, scope: RunScope) -> None:
        self._database = database
        self._reader = reader
        self.run_id = scope.run_id
        self.kv = KVReads(reader, scope.prefix)
        self.events = EventReads(reader, scope.prefix)
        self.cells = CellReads(reader, scope.prefix)
        self.traces = TraceReads(reader, scope.prefix)
        self.runs = RunReads(reader, database.namespace.prefix(), scope.name)

    @classmethod
    def begin(cls, database: Database, scope: RunScope) -> Snapshot:
        """A snapshot of now."""
        image = database._attachment.image
        stored: StoredSnapshot = image.snapshot(database.settings.snapshot_max_age_s)
        return cls(database, SnapshotReader(stored, image.now_us), scope)

    def __repr__(self) -> str:
        return f"Snapshot({self.run_id!r})"

    @property
    def version(self) -> int:
        """The commit version that is seen."""
        return self._reader.version

    def at(self, run: str | RunScope) -> Snapshot:
        """Another run, or a shared scope, at the same moment."""
        return Snapshot(self._database, self._reader, self._database.scope(run))

    def close(self) -> None:
        """End it. May be called twice."""
        self._reader.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transaction:
    """Facades whose reads are of one version and whose writes happen together, or not at all.

    Reads see the transaction's own writes. Leaving the `with` block commits;
    an exception inside leaves nothing behind. Not to be shared between threads.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     with db.transaction("run-1") as txn:
    ...         txn.kv.put("steps", txn.kv.get("steps", 0) + 1)
    ...         appended = txn.events.append("step")
    ...     appended.sequence, db.kv.get("run-1", "steps")
    (0, 1)
    """

    __slots__ = ("_core", "_database", "cells", "events", "kv", "run_id", "runs", "traces")

    def __init__(self, database: Database, core: engine.Transaction, scope: RunScope) -> None:
        self._database = database
        self._core = core
        self.run_id = scope.run_id
        self.kv = TransactionKV(core, scope.prefix)
        self.events = TransactionEvents(core, scope.prefix, database._attachment.identity.settings.chain)
        self.cells = TransactionCells(core, scope.prefix)
        self.traces = TransactionTraces(core, scope.prefix)
        self.runs = TransactionRuns(core, database.namespace.prefix(), scope.name)

    @classmethod
    def begin(
        cls, database: Database, scope: RunScope, sync: bool, timeout_s: float | None
    ) -> Transaction:
        """A transaction that reads from now on."""
        settings = database.settings
        core = engine.Transaction(
            database._attachment, max_age_s=settings.snapshot_max_age_s,
            timeout_s=settings.timeout_s if timeout_s is None else timeout_s, sync=sync,
        )
        return cls(database, core, scope)

    def __repr__(self) -> str:
        return f"Transaction({self.run_id!r})"

    @property
    def version(self) -> int | None:
        """The commit version; None before the commit, and if nothing was written."""
        return self._core.version

    def at(self, run: str | RunScope) -> Transaction:
        """Another run, or a shared scope, in the same transaction."""
        return Transaction(self._database, self._core, self._database.scope(run))

    def commit(self) -> None:
        """Commit now instead of at the end of the block.

        Raises:
            ConflictError: something that was read has changed; nothing was applied.
            CommitUnknownError: no answer before the deadline.
        """
        try:
            self._core.commit()
        except CommitUnknownError as error:
            raise resolved_as(error, self._core.applied) from None

    def abort(self) -> None:
        """Drop everything. May be called twice."""
        self._core.abort()

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._core.abort()
        elif not self._core.is_over:
            self.commit()


class Pipeline:
    """Blind writes that are sent without waiting for each answer.

    Writes take effect in the order in which they were made; consecutive
    writes to one run travel together as one commit. Leaving the block waits
    for all answers and raises the first error; the other writes stand. Reads
    are not possible here: use a transaction.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     with db.pipeline() as p:
    ...         for n in range(1000):
    ...             p.kv.put("run-1", f"item-{n:04}", n)
    ...     db.kv.count("run-1")
    1000
    """

    def __init__(self, database: Database, sync: bool) -> None:
        self._database = database
        self._attachment = database._attachment
        self._settings = database.settings
        self._sync = sync
        self._sessions = self._attachment.session()
        self._session = self._sessions.take()
        self._open: engine.Transaction | None = None
        self._scope: RunScope | None = None
        self._bound: tuple[TransactionKV, TransactionEvents] | None = None
        self._count = 0
        self._sent: list[tuple[int, engine.Transaction]] = []
        self._error: InmemError | None = None
        self._closed = False
        self.kv = PipelineKV(self)
        self.events = PipelineEvents(self)

    def __repr__(self) -> str:
        return f"Pipeline({self._database!r}, in_flight={len(self._sent)})"

    def _target(self, run: str | RunScope) -> tuple[TransactionKV, TransactionEvents]:
        """The buffer for the next write to a run."""
        if self._closed:
            raise ClosedError("the pipeline is closed")
        scope = self._database.scope(run)
        if self._bound is None or scope is not self._scope or self._count >= self._settings.pipeline_group:
            self._send()
            core = self._open = engine.Transaction(
                self._attachment, max_age_s=1.0, timeout_s=self._settings.timeout_s, sync=self._sync
            )
            self._scope = scope
            chain = self._attachment.identity.settings.chain
            self._bound = (TransactionKV(core, scope.prefix), TransactionEvents(core, scope.prefix, chain))
        self._count += 1
        return self._bound

    def _send(self) -> None:
        core, self._open, self._bound, self._count = self._open, None, None, 0
        if core is None:
            return
        try:
            body = core.encode()
            if body is None:
                return
            window = self._settings.pipeline_window
            while self._sent and (len(self._sent) >= window or not self._session.has_room(body)):
                self._settle()
            sequence = self._session.submit(body, sync=self._sync, timeout_s=self._settings.timeout_s)
            self._sent.append((sequence, core))
        except InmemError as error:  # of earlier writes: not to be raised by the one that comes next
            self._error = self._error or error

    def _settle(self) -> None:
        sequence, core = self._sent.pop(0)
        try:
            core.applied(self._session.outcome(sequence, self._settings.timeout_s))
        except InmemError as error:
            self._error = self._error or error

    def flush(self) -> None:
        """Send what is buffered, wait for all answers and raise the first error.

        Raises:
            InmemError: the first error of a write; later writes may have been applied.
        """
        self._send()
        while self._sent:
            self._settle()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all; an exception inside the block is not replaced by one of a write."""
        try:
            self.flush()
        except InmemError as first:
            if error is None:
                raise
            error.add_note(f"a pipelined write failed too: {first}")
        finally:
            self._closed = True
            # This object and its parts know each other, so it stays until it is collected: the
            # session must not, which closes its connection when its thread ends.
            session = self.__dict__.pop("_session", None)
            if session is not None:
                self._sessions.give_back(session)


class _Piped:
    __slots__ = ("_pipeline",)

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline


class PipelineKV(_Piped):
    """Blind KV writes of a pipeline; see `KVStore`."""

    __slots__ = ()

    def put(self, run_id: str, key: str, value: Any, *, ttl: Any = None) -> None:
        """Write an entry."""
        self._pipeline._target(run_id)[0].put(key, value, ttl=ttl)

    def put_with_ttl(self, run_id: str, key: str, value: Any, ttl: Any) -> None:
        """Write an entry that expires."""
        self._pipeline._target(run_id)[0].put_with_ttl(key, value, ttl)

    def put_many(self, run_id: str, mapping: Any, *, ttl: Any = None) -> None:
        """Write many entries."""
        self._pipeline._target(run_id)[0].put_many(mapping, ttl=ttl)

    def add(self, run_id: str, key: str, delta: Any = 1, *, initial: Any = 0) -> Any:
        """Add to a number; the result has its `value` after the flush."""
        return self._pipeline._target(run_id)[0].add(key, delta, initial=initial)

    def merge(self, run_id: str, key: str, fields: Any) -> None:
        """Set fields of a `dict`."""
        self._pipeline._target(run_id)[0].merge(key, fields)

    def delete(self, run_id: str, key: str) -> None:
        """Remove an entry, if there is one."""
        self._pipeline._target(run_id)[0].discard(key)


class PipelineEvents(_Piped):
    """Appends of a pipeline; see `EventLog`."""

    __slots__ = ()

    def append(self, run_id: str, event_type: str, payload: Any = None) -> Any:
        """Append an event; the result has `sequence` and `hash` after the flush."""
        return self._pipeline._target(run_id)[1].append(event_type, payload)

    def append_many(self, run_id: str, events: Any) -> Any:
        """Append many events."""
        return self._pipeline._target(run_id)[1].append_many(events)


def wants_sync(durability: str | None, database: Database) -> bool:
    """Whether one commit must be durable at once.

    Raises:
        InvalidInputError: not a durability.
        ConfigMismatchError: weaker than the database's, or `sync` in a
            database that keeps no log.
    """
    stored = database._attachment.identity.settings.durability
    if durability is None:
        return False
    if durability not in DURABILITIES:
        raise InvalidInputError(
            f"durability must be one of {', '.join(DURABILITIES)}, not {shorten(durability)}",
            argument="durability",
        )
    if _RANK[durability] < _RANK[stored] or (stored == "memory" != durability):
        raise ConfigMismatchError(
            f"durability={durability!r} was asked for one commit of a {stored!r} database",
            setting="durability", stored=stored, requested=durability,
            hint="A commit may be made stronger (sync in a buffered database), never weaker.",
        )
    return durability == "sync"


class _Transactional(Generic[P, T]):
    def __init__(self, fn: Callable[Concatenate[Any, P], T]) -> None:
        self._fn = fn
        functools.update_wrapper(self, fn)

    def __call__(self, target: RunScope | Transaction, *args: P.args, **kwargs: P.kwargs) -> T:
        if isinstance(target, Transaction):
            return self._fn(target, *args, **kwargs)
        if isinstance(target, RunScope):
            return target.transact(lambda txn: self._fn(txn, *args, **kwargs))
        raise InvalidInputError(
            f"the first argument must be a RunScope or a Transaction, not {type(target).__name__}",
            argument="target",
        )


def transactional(fn: Callable[Concatenate[Any, P], T]) -> _Transactional[P, T]:
    """Make `f(scope_or_txn, ...)`: retries when given a scope, composes when given a transaction.

    >>> import inmem
    >>> @inmem.transactional
    ... def count(txn, key):
    ...     txn.kv.put(key, txn.kv.get(key, 0) + 1)
    >>> with inmem.open() as db:
    ...     count(db.run("run-1"), "steps")
    ...     with db.transaction("run-1") as txn:
    ...         count(txn, "steps")
    ...     db.kv.get("run-1", "steps")
    2
    """
    return _Transactional(fn)
