"""The handle: opening a database, and what belongs to it as a whole.

Invariant: a `Database` is a namespace and a reference to what the process
shares; it holds no data and may be used by all threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from inmem.callables import check_callable
from inmem.client.retry import check_timeout
from inmem.config import REPAIR_LIMIT
from inmem.engines.base import Engine
from inmem.engines.opening import open_engine
from inmem.errors import ClosedError, InvalidInputError, RunDeletedError, SnapshotTooOldError
from inmem.host.paths import check_path
from inmem.keys import Namespace, check_run_id
from inmem.pending import Pending
from inmem.primitives.facades import DatabaseFacades
from inmem.primitives.index_repair import differences
from inmem.primitives.leases.calls import LeaseHolder
from inmem.primitives.leases.shown import Lease
from inmem.reports import BackupReport, CheckReport
from inmem.scopes import (
    MAX_ATTEMPTS,
    TRANSACT_TIMEOUT_S,
    Pipeline,
    RunScope,
    Snapshot,
    Transaction,
    wants_sync,
)
from inmem.wire import CHECKPOINT, STATUS, SYNC

T = TypeVar("T")

CHECKPOINT_TIMEOUT_S = 600.0  # a gigabyte takes seconds; a slow disk takes longer

_MAX_SCOPES = 8192  # bound scopes kept for reuse


@dataclass(frozen=True, slots=True)
class Status:
    """What a writer says of itself. Sizes in bytes, counters since it started.

    A store on a server has no writer: `writer_pid`, `epoch`, `generation`, `quota_bytes`, `wal_bytes`,
    `memory_free_bytes`, what was refused and what groups took are 0 there. `image_bytes` is then of its
    tables and `image_file_bytes` of these with their indices, `commits` as the server has counted them,
    `durable_version` 0 unless durability is "sync", and `clients` those processes whose connections the
    user may see.

    `memory_free_bytes` is what is left of the memory that the image is in: a
    switch of generation needs as much as the image holds.
    `oldest_snapshot_age_s` is for how long the oldest open snapshot has not
    been of the newest version (seconds), None without one. `repeated` counts requests that were
    answered from memory because they arrived again. `groups` of commits took `group_s` seconds
    together; `hot` has the runs that were written most of late with their share of the commits,
    as estimated from a few of them. `clock_ahead_s` is by how much store time is ahead of the wall
    clock, after that was set back: `inmem clock` tells more.
    """

    writer_pid: int
    epoch: int
    generation: int
    version: int
    durable_version: int
    durability: str
    image_bytes: int
    image_file_bytes: int
    quota_bytes: int
    wal_bytes: int
    memory_free_bytes: int
    clients: int
    sessions: int
    oldest_snapshot_age_s: float | None
    commits: int
    conflicts: int
    failures: int
    batches: int
    repeated: int
    expired: int
    groups: int = 0
    group_s: float = 0.0
    hot: Mapping[str, float] = field(default_factory=dict)
    clock_ahead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A checkpoint that is in place: its version, entries and bytes, how long it took, what it freed.

    `wal_bytes` is what is left of the log. A restart reads this file and that log.
    """

    version: int
    entries: int
    bytes: int
    seconds: float
    released_segments: int
    wal_bytes: int


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair of indices changed: entries, and the prefixes in which it found any."""

    added: int
    removed: int
    repaired: list[str]


class Database(DatabaseFacades):
    """One database, seen from one namespace. Made by `inmem.open`.

    Threads can share it. It can be pickled, as its path, the database's id and
    its settings: unpickled it finds the database, or raises `DatabaseGoneError`.
    After a fork it works, or raises `ForkError`. Close it with `close()` or `with`.
    """

    def __init__(self, engine: Engine, namespace: Namespace, reopen: dict[str, Any]) -> None:
        self._engine: Engine | None = engine
        self._reopen = reopen
        self._scopes: dict[str, RunScope] = {}
        self._levels: dict[str, RunScope] = {}
        self.settings = engine.settings
        self.namespace = namespace
        self.namespace_prefix = namespace.prefix()  # the facades of each transaction and snapshot have it
        self._path = engine.path
        self.name = engine.name  # its path, or its URL without secrets
        super().__init__(self)

    def __repr__(self) -> str:
        state = "" if self._engine is not None else ", closed"
        return f"Database({self.name!r}, {str(self.namespace)!r}{state})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.name, self._reopen)

    @property
    def engine(self) -> Engine:
        """What serves this database.

        Raises:
            ClosedError: the handle was closed.
        """
        engine = self._engine
        if engine is None:
            raise ClosedError("the database is closed")
        return engine

    @property
    def path(self) -> Path:
        """The data directory.

        Raises:
            InvalidInputError: the store is on a server.
        """
        if self._path is None:
            raise InvalidInputError(f"{self.name} is on a server, and has no path", argument="database")
        return self._path

    # --- scopes -----------------------------------------------------------------------

    def run(self, run_id: str | RunScope) -> RunScope:
        """The facades bound to one run. Cost: about 0.1 µs when used before.

        A scope of this store is accepted too, and keeps its namespace: so every
        call that takes a run's id takes a scope.

        Raises:
            InvalidInputError: a scope of another database.
            InvalidRunIdError: not 1-64 characters of `[A-Za-z0-9._:-]`.
        """
        try:
            return self._scopes[run_id]  # type: ignore[index]  # which has no scopes as keys
        except (KeyError, TypeError):
            if isinstance(run_id, RunScope):
                if not run_id.is_of(self.engine):
                    problem = "run_id is a scope of another database"
                    raise InvalidInputError(problem, argument="run_id") from None
                return run_id
            name = check_run_id(run_id)
            return self._new_scope(name, self.namespace.run_prefix(name))

    def shared(self, level: str) -> RunScope:
        """The scope that all runs of this `"agent"`, `"app"` or `"tenant"` share."""
        prefix = self.namespace.shared_prefix(level)
        # `run` looks names up before it checks them, so no name that it can be given may lead here.
        name = "@" + level
        return self._levels.get(name) or self._levels.setdefault(name, RunScope(self, prefix, name))

    def scope(self, run: str | RunScope) -> RunScope:
        """A run's scope, or the scope itself."""
        return self.run(run)

    def _new_scope(self, name: str, prefix: bytes) -> RunScope:
        if len(self._scopes) >= _MAX_SCOPES:
            self._scopes.clear()
        scope = self._scopes[name] = RunScope(self, prefix, name)
        return scope

    # --- transactions -----------------------------------------------------------------

    @overload
    def transact(
        self, run_id: str | RunScope, fn: Callable[[Transaction], Pending[T]], *, max_attempts: int = ...,
        timeout_s: float = ..., durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    def transact(
        self, run_id: str | RunScope, fn: Callable[[Transaction], T], *, max_attempts: int = ...,
        timeout_s: float = ..., durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    def transact(
        self, run_id: str | RunScope, fn: Callable[[Transaction], Any], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSACT_TIMEOUT_S, durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> Any:
        """Run `fn(txn)` as a serializable transaction and return its result.

        `fn` may run many times, so it must be pure: read and write through
        `txn` only. A refused attempt is repeated with jittered pauses, at
        most `max_attempts` times and for at most `timeout_s` seconds. Results
        that only the commit knows are replaced by their values, also within
        tuples, lists and dicts that `fn` returns. Cost: the reads, and one
        round trip if anything was written. A function that calls `txn.wait()`
        runs again when something that it read has changed, for `wait_s`
        seconds at most, None for ever; each time `timeout_s` begins anew. With
        a `lease`, of this run or another one, the commit is refused unless it
        is held then; a commit is sent also if nothing else is written.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     db.transact("run-1", lambda txn: {"count": txn.kv.add("steps"), "by": "planner"})
        {'count': 1, 'by': 'planner'}

        Raises:
            ConflictError: still refused after the last attempt; nothing was applied.
            CommitUnknownError: no answer in time; `fn` is not run again.
            WaitTimeoutError: it waited for `wait_s`; nothing was applied.
            LeaseLostError: the lease is not held any more; nothing was applied.
            Exception: whatever `fn` raises; nothing was applied.
        """
        return self.scope(run_id).transact(
            fn, max_attempts=max_attempts, timeout_s=timeout_s, durability=durability, wait_s=wait_s,
            lease=lease,
        )

    def wait(
        self, run_id: str | RunScope, fn: Callable[[Snapshot], T | None], *, timeout_s: float | None = None
    ) -> T:
        """Sleep until `fn(view)` returns something true, and return that.

        `fn` must read its `view`, a snapshot, and nothing else. It must be
        pure: it runs again when something that it has read was changed or has
        expired, and sometimes without need. While this sleeps, no snapshot is
        open and nothing is polled. It needs no writer; like any open database
        it keeps an idle writer from leaving. Cost: the reads, and once a
        second a look at what was read.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     version = db.kv.put("run-1", "answer", 42)
        ...     db.wait("run-1", lambda view: view.kv.get("answer"), timeout_s=5)
        42

        Raises:
            WaitTimeoutError: nothing true within `timeout_s` seconds.
            RunDeletedError: the run was deleted.
            ClosedError: the database was closed meanwhile.
            InvariantError: `fn` has read nothing.
            Exception: whatever `fn` raises.
        """
        return self.scope(run_id).wait(fn, timeout_s=timeout_s)

    def transaction(
        self, run_id: str | RunScope, *, durability: str | None = None, timeout_s: float | None = None
    ) -> Transaction:
        """One attempt at a transaction, as a context manager; commits at the end of the block.

        Raises:
            ConflictError: at the end, if something that was read has changed.
        """
        return self.scope(run_id).transaction(durability=durability, timeout_s=timeout_s)

    def snapshot(self, run_id: str | RunScope) -> Snapshot:
        """Read-only facades at one consistent moment, as a context manager."""
        return self.scope(run_id).snapshot()

    def pipeline(self, *, durability: str | None = None) -> Pipeline:
        """Blind writes without waiting for each, as a context manager."""
        return Pipeline(self, wants_sync(durability, self))

    # --- the database as a whole ----------------------------------------------------------

    def status(self) -> Status:
        """What the writer, or the server, says of the store. Starts a writer if none runs.

        Cost: one round trip.
        """
        _, fields = self.engine.request(STATUS, self.settings.timeout_s)
        return Status(**fields)

    def sync(self) -> int:
        """Make every commit so far durable; the version up to which that holds. Cost: one fdatasync."""
        version, _ = self.engine.request(SYNC, self.settings.timeout_s)
        return version

    def checkpoint(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> CheckpointReport:
        """Copy the store to one durable file and drop the log before it; commits go on meanwhile.

        The writer does this by itself when the log has grown
        (`checkpoint_wal_bytes`, `checkpoint_interval_s`). Everything
        committed before the call is in the file. Cost: about 1 µs an entry
        in a process of its own, the disk's time, and the memory of what is
        replaced meanwhile.

        >>> import inmem, tempfile
        >>> with tempfile.TemporaryDirectory() as place, inmem.open(place + "/data") as db:
        ...     version = db.kv.put("run-1", "key", "value")
        ...     db.checkpoint().version >= version
        True

        Raises:
            InvalidInputError: durability is "memory": there is no log; or the store is on a server.
            StoreFullError: the disk has no room; the old checkpoint and the log are as they were.
            WriterUnavailableError: not done within `timeout_s` (seconds); it may be done later.
        """
        _, fields = self.engine.request(CHECKPOINT, check_timeout(timeout_s))
        return CheckpointReport(**fields)

    def backup(self, path: str | os.PathLike[str]) -> BackupReport:
        """Copy one moment of the store to one new file, durable and read back.

        A helper process makes it. `inmem restore` makes a store from it, and `inmem check` verifies it.
        Commits go on meanwhile. Cost: about 2 µs an entry, the disk's time,
        and the memory of what is replaced meanwhile.

        >>> import inmem, tempfile
        >>> with tempfile.TemporaryDirectory() as place, inmem.open() as db:
        ...     version = db.kv.put("run-1", "key", "value")
        ...     db.backup(place + "/backup").version >= version
        True

        Raises:
            AlreadyExistsError: there is something of that name: a backup replaces nothing.
            InvalidInputError: the path cannot be one, or what it lies in is not there; or the store is on
                a server, which has its own means.
            CorruptionError: what is there is damaged.
            StoreFullError: the disk has no room.
        """
        return self.engine.backup(Path(check_path(path)))

    def check(self) -> CheckReport:
        """Verify image, log, chains and indices in a process of its own; changes nothing.

        Of a store on a server, records, chains, indices and tables: here, each run in a snapshot of its own.
        Cost: reads everything once, about 5 µs a record. Commits go on meanwhile.
        """
        return self.engine.check()

    def repair_indices(self, run_id: str | RunScope | None = None) -> RepairReport:
        """Make the indices of one run (default: of everything) what the records say.

        Each run is compared here, in a snapshot, and repaired by separate
        commits, one for each 4,000 entries that are missing or wrong. So others
        go on meanwhile. Cost: about 3 µs a record, and the memory of a run's index.

        Raises:
            RunDeletedError: the run was deleted; it has no indices.
        """
        if run_id is None:
            prefixes = list(self.engine.prefixes())
        else:
            scope = self.run(run_id)
            prefixes = [scope.prefix, scope.namespace]
        added = removed = 0
        repaired: list[str] = []
        for prefix in prefixes:
            try:
                more, fewer = self._repair(prefix)
            except RunDeletedError:
                if run_id is not None:
                    raise
                continue  # since the prefixes were listed
            if more or fewer:
                repaired.append(prefix.decode(errors="backslashreplace"))
            added += more
            removed += fewer
        return RepairReport(added, removed, repaired)

    def _repair(self, prefix: bytes) -> tuple[int, int]:
        """How many entries of a prefix were added and removed."""
        sink = self.engine.direct()
        try:
            slices = differences(self.engine.latest(), prefix)
        except SnapshotTooOldError:  # so large that others have to wait for it
            found = [sink.ask("index.repair", [prefix], tuple)]
            while sum(found[-1]) >= REPAIR_LIMIT:
                found.append(sink.ask("index.repair", [prefix], tuple))
        else:
            found = [sink.ask("index.mend", [prefix, *one], tuple) for one in slices]
        return sum(more for more, _ in found), sum(fewer for _, fewer in found)

    def close(self) -> None:
        """Give the handle back; the last one in a process closes everything. May be called twice."""
        engine, self._engine = self._engine, None
        self._scopes, self._levels = {}, {}
        if engine is not None:
            engine.close()

    def __enter__(self) -> Database:
        _ = self.engine  # it is open
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open(
    path: str | os.PathLike[str] | None = None, *, durability: str | None = None, tenant: str = "default",
    app: str = "default", agent: str = "default", config: str | os.PathLike[str] | None = None,
    autostart: bool = True, create: bool = True, timeout_s: float | None = None,
    default: Callable[[Any], Any] | None = None,
) -> Database:
    """Open a database, creating it and starting its writer if need be.

    The same call works in every process. Without a path it is a private,
    throw-away database in memory, removed when its last holder leaves. A
    `postgresql://` URL is a store on a server, for the processes of many
    machines; it needs the extra `postgres`.
    The parent of the directory must exist; with `create=False` the database too.
    `tenant`, `app` and `agent` are the namespace. `timeout_s` (seconds,
    default 10) bounds opening and is the default deadline of a commit.
    `config` names a TOML file; `INMEM_*` variables override it, arguments
    override both. `default` is called, as by `json.dumps`, with each part of a
    value that would be refused, and returns a value that can be stored. Cost:
    under a millisecond if a writer runs, else the start of a Python process.

    >>> import inmem
    >>> with inmem.open(default=str) as db:
    ...     version = db.kv.put("run-1", "key", 1 + 2j)
    ...     db.kv.get("run-1", "key"), db.kv.get("run-1", "missing")
    ('(1+2j)', None)

    Raises:
        ConfigMismatchError: a setting differs from the one stored at creation.
        PermissionDeniedError: the directory is not this user's alone.
        WriterUnavailableError: no writer before the deadline, or none runs
            and `autostart` is off.
        FormatVersionError, CorruptionError: what is there cannot be used.
        InvalidInputError: an argument is wrong; the path is another URL, or has `~`, a variable or spaces
            that nobody can have meant; or there is no database, and none may be created.
    """
    return _open(
        path, durability=durability, tenant=tenant, app=app, agent=agent, config=config, autostart=autostart,
        create=create, timeout_s=timeout_s, default=default,
    )


def _open(
    path: Any, *, durability: str | None = None, tenant: str, app: str, agent: str, config: Any,
    autostart: bool, create: bool, timeout_s: float | None, known: bytes | None = None,
    default: Callable[[Any], Any] | None = None,
) -> Database:
    namespace = Namespace(tenant, app, agent)
    if timeout_s is not None:
        timeout_s = check_timeout(timeout_s)
    if default is not None:
        check_callable(default, "default")
    arguments = {"durability": durability, "timeout_s": timeout_s}
    engine = open_engine(
        path, config=config, arguments=arguments, autostart=bool(autostart), create=bool(create), known=known,
        default=default,
    )
    reopen = {
        "tenant": tenant, "app": app, "agent": agent, "autostart": autostart,
        "timeout_s": engine.settings.timeout_s,
        "config": os.path.abspath(config) if config is not None else None,
        "known": engine.database_id,
        "default": default,
    }
    return Database(engine, namespace, reopen)


def _reopen(path: str, arguments: dict[str, Any]) -> Database:
    """A handle that has travelled: it finds its database, and creates none."""
    return _open(path, create=False, **arguments)
