"""What the facades are bound to: a run, a snapshot, a transaction, a pipeline.

Invariant: the same names mean the same thing in each of them; only when
writes happen differs. A scope commits each write by itself, a transaction all
at its end, a pipeline as it goes without waiting; a snapshot has no writes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from inmem.callables import check_callable, check_result
from inmem.client.retry import check_timeout, deadline_in, resolved_as, retrying
from inmem.client.waiting import Looked
from inmem.config import DURABILITIES
from inmem.engines.base import Draft, Engine, MomentView, WatchedReads
from inmem.errors import (
    ClosedError,
    CommitUnknownError,
    ConfigMismatchError,
    InmemError,
    InvalidInputError,
    InvariantError,
)
from inmem.host.interrupts import called
from inmem.keys import shorten
from inmem.pending import Pending, filled
from inmem.primitives import holding
from inmem.primitives.facades import (
    PipelinedFacades,
    PipelineFacades,
    ScopeFacades,
    SnapshotFacades,
    TransactionFacades,
)
from inmem.primitives.leases.calls import LeaseHolder, checks_of
from inmem.primitives.leases.shown import Lease
from inmem.stepping import ThreadWaits

if TYPE_CHECKING:
    from inmem.database import Database

T = TypeVar("T")

_RANK = {name: rank for rank, name in enumerate(DURABILITIES)}
MAX_ATTEMPTS = 64
TRANSACT_TIMEOUT_S = 30.0
_MAX_RUNS = 8192  # of one pipeline, kept for reuse


class RunScope(ScopeFacades):
    """The facades bound to one run, or to what the runs of a level share.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     scope = db.run("run-1")
    ...     version = scope.kv.put("color", "green")
    ...     scope.kv.get("color")
    'green'
    """

    __slots__ = ("_database", "name", "namespace", "prefix")

    def __init__(self, database: Database, prefix: bytes, name: str) -> None:
        self._database = database
        self.prefix = prefix
        self.name = name
        self.namespace = database.namespace_prefix  # what is reached through this scope is of its namespace
        engine = database.engine
        super().__init__(
            database, engine.latest(), engine.direct(), prefix, self.namespace, name, self.transact,
            ThreadWaits(
                self.wait, self._pass_on, engine.leaving, holding.keep, holding.drop, holding.Loss
            ),
        )

    def __repr__(self) -> str:
        return f"RunScope({self.prefix.decode()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _scope_of, (self._database, self.name)

    @property
    def run_id(self) -> str:
        """The run's id; for a shared scope its level."""
        return self.name

    def is_of(self, engine: Engine) -> bool:
        """Whether this is a scope of the store that an engine serves."""
        return self._database.engine.is_same_store(engine)

    def transaction(self, *, durability: str | None = None, timeout_s: float | None = None) -> Transaction:
        """One attempt at a transaction in this run. See `Database.transaction`."""
        sync = wants_sync(durability, self._database)
        if timeout_s is not None:
            timeout_s = check_timeout(timeout_s)
        return Transaction.begin(self._database, self, sync, timeout_s)

    @overload
    def transact(
        self, fn: Callable[[Transaction], Pending[T]], *, max_attempts: int = ..., timeout_s: float = ...,
        durability: str | None = None, wait_s: float | None = None, lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    def transact(
        self, fn: Callable[[Transaction], T], *, max_attempts: int = ..., timeout_s: float = ...,
        durability: str | None = None, wait_s: float | None = None, lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    def transact(
        self, fn: Callable[[Transaction], Any], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSACT_TIMEOUT_S, durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> Any:
        """Run `fn(txn)` with retries in this run. See `Database.transact`."""
        sync = wants_sync(durability, self._database)
        check_callable(fn)
        under = checks_of(lease)
        wait_until = deadline_in(wait_s, "wait_s")

        def attempt(left_s: float) -> Any:
            txn = Transaction.begin(self._database, self, sync, left_s, may_wait=True)
            with txn:
                if under:
                    txn._draft.write(under)
                result = called(fn, txn)
                check_result(result)
                if not txn._draft.is_over:
                    try:
                        txn.commit()
                    except CommitUnknownError as error:
                        raise resolved_as(error, lambda _: filled(result)) from None
            return result if txn.version is None else filled(result)

        while True:
            try:
                return retrying(attempt, max_attempts=max_attempts, timeout_s=timeout_s)
            except NotYet as not_yet:
                not_yet.watched.wait(wait_until)

    def wait(self, fn: Callable[[Snapshot], T | None], *, timeout_s: float | None = None) -> T:
        """Sleep until `fn(view)` returns something true, and return that. See `Database.wait`."""
        check_callable(fn)
        deadline = deadline_in(timeout_s)

        def look(_: float) -> tuple[T | None, Any]:
            draft = self._database.engine.transaction(timeout_s=None, sync=False)
            try:
                result = called(fn, Snapshot(Looked(draft), self))
                check_result(result)
                return result, None if result else draft.watched(self.prefix)
            finally:
                draft.abort()

        while True:
            # Again if its snapshot is lost, with the connection to a server for example.
            result, watched = retrying(look, max_attempts=MAX_ATTEMPTS, timeout_s=TRANSACT_TIMEOUT_S)
            if result:
                return result
            watched.wait(deadline)

    def _pass_on(self, name: bytes) -> None:
        """See `FacadeWaits`. The engine's own method would keep what a closed database had."""
        self._database.engine.pass_on(name)

    def snapshot(self) -> Snapshot:
        """One consistent moment of this run. See `Database.snapshot`."""
        return Snapshot.begin(self._database, self)


def _scope_of(database: Database, name: str) -> RunScope:
    return database.shared(name[1:]) if name.startswith("@") else database.run(name)


def _stays_here(what: str) -> NoReturn:
    raise InvalidInputError(
        f"a {what} cannot be pickled or copied: it is of this process", argument=what,
        hint="Hand over the Database, or a RunScope, and begin another one there.",
    )


class Snapshot(SnapshotFacades):
    """Read-only facades that all see one commit version.

    Use it as a context manager: an open snapshot keeps memory from being
    reused, and ends by itself after `snapshot_max_age_s`. `at` looks at other
    runs at the same moment. For one thread at a time.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     version = db.kv.put("run-1", "color", "green")
    ...     with db.snapshot("run-1") as view:
    ...         version = db.kv.put("run-1", "color", "blue")
    ...         view.kv.get("color")
    'green'
    """

    __slots__ = ("_database", "_is_nested", "_view", "_was_entered", "run_id")

    def __init__(self, view: MomentView, scope: RunScope, *, is_nested: bool = False) -> None:
        self._database = scope._database
        self._view = view
        self._is_nested = is_nested
        self._was_entered = False
        self.run_id = scope.run_id
        super().__init__(scope._database, view, scope.prefix, scope.namespace, scope.name)

    @classmethod
    def begin(cls, database: Database, scope: RunScope) -> Snapshot:
        """A snapshot of now."""
        return cls(database.engine.snapshot(), scope)

    def __reduce__(self) -> NoReturn:
        _stays_here("snapshot")

    def __repr__(self) -> str:
        return f"Snapshot({self.run_id!r})"

    @property
    def version(self) -> int:
        """The commit version that is seen."""
        return self._view.version

    def at(self, run: str | RunScope) -> Snapshot:
        """Another run, or a shared scope, at the same moment; the snapshot is not its to end.

        A scope of another namespace stays of that; a name is one of the
        namespace of what it is given to.
        """
        return Snapshot(self._view, self._database.scope(run), is_nested=True)

    def close(self) -> None:
        """End it, if it was not made by `at`. May be called twice."""
        if not self._is_nested:
            self._view.close()

    def __enter__(self) -> Snapshot:
        _ = self._view.version  # it is open
        if not self._is_nested:
            self._was_entered = _entered(self._was_entered, "snapshot")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NotYet(BaseException):
    """A transaction's function wants to run again when something has changed. It is no `Exception`."""

    def __init__(self, watched: WatchedReads) -> None:
        super().__init__("txn.wait() ends an attempt: let it through")
        self.watched = watched


class Transaction(TransactionFacades):
    """Facades whose reads are of one version and whose writes happen together, or not at all.

    Reads see the transaction's own writes. Leaving the `with` block commits;
    an exception inside leaves nothing behind. For one thread at a time.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     with db.transaction("run-1") as txn:
    ...         txn.kv.put("steps", txn.kv.get("steps", 0) + 1)
    ...         appended = txn.events.append("step")
    ...     appended.sequence, db.kv.get("run-1", "steps")
    (0, 1)
    """

    __slots__ = ("_database", "_draft", "_is_nested", "_may_wait", "_prefix", "_was_entered", "run_id")

    def __init__(
        self, draft: Draft, scope: RunScope, *, is_nested: bool = False, may_wait: bool = False
    ) -> None:
        self._database = scope._database
        self._draft = draft
        self._may_wait = may_wait
        self._prefix = scope.prefix
        self._is_nested = is_nested
        self._was_entered = False
        self.run_id = scope.run_id
        super().__init__(scope._database, draft, draft, scope.prefix, scope.namespace, scope.name)

    @classmethod
    def begin(
        cls, database: Database, scope: RunScope, sync: bool, timeout_s: float | None, *,
        may_wait: bool = False,
    ) -> Transaction:
        """A transaction that reads from now on; one that `may_wait` is run again by whoever began it."""
        return cls(database.engine.transaction(timeout_s=timeout_s, sync=sync), scope, may_wait=may_wait)

    def __reduce__(self) -> NoReturn:
        _stays_here("transaction")

    def __repr__(self) -> str:
        return f"Transaction({self.run_id!r})"

    @property
    def version(self) -> int | None:
        """The commit version; None before the commit, and if nothing was written."""
        return self._draft.version

    def at(self, run: str | RunScope) -> Transaction:
        """Another run, or a shared scope, in the same transaction.

        A scope of another namespace keeps that namespace. A name belongs to
        the namespace of the object that `at` is called on. It can be used with
        `with`: leaving that block ends nothing, and what was written in it is
        part of the transaction.
        """
        return Transaction(
            self._draft, self._database.scope(run), is_nested=True, may_wait=self._may_wait
        )

    def wait(self) -> NoReturn:
        """"Not yet": drop this attempt, and run the function again when something that it read has changed.

        For functions that `transact` runs; `wait_s` of that bounds the wait.
        This ends the function by an exception that is no `Exception`, so
        `except Exception` does not catch it. It does not count as an attempt.

        >>> import inmem
        >>> def take(txn):
        ...     found = txn.kv.list(limit=1)
        ...     if not found:
        ...         txn.wait()
        ...     txn.kv.delete(found[0])
        ...     return found[0]
        >>> with inmem.open() as db:
        ...     version = db.kv.put("run-1", "job-1", "translate")
        ...     db.transact("run-1", take, wait_s=5)
        'job-1'

        Raises:
            InvariantError: nothing was read; or `transact` does not run this.
        """
        if not self._may_wait:
            raise InvariantError(
                "only a function that transact runs can wait", hint="Use db.transact(run, fn, wait_s=...)."
            )
        raise NotYet(self._draft.watched(self._prefix))

    def commit(self) -> None:
        """Commit now instead of at the end of the block.

        Raises:
            ConflictError: something that was read has changed; nothing was applied.
            CommitUnknownError: no answer before the deadline.
        """
        self._draft.commit()

    def abort(self) -> None:
        """Drop everything. May be called twice."""
        self._draft.abort()

    def __enter__(self) -> Transaction:
        if self._draft.is_over:
            raise ClosedError("the transaction is over")
        if not self._is_nested:
            self._was_entered = _entered(self._was_entered, "transaction")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_nested:
            return
        if kind is not None:
            self._draft.abort()
        elif not self._draft.is_over:
            self.commit()


class Pipeline(PipelineFacades):
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
        self.namespace_prefix = database.namespace_prefix
        self._batches = database.engine.pipeline(sync=sync)
        self._runs: dict[str | RunScope, PipelinedFacades] = {}
        self._was_entered = False
        super().__init__(self)

    def __reduce__(self) -> NoReturn:
        _stays_here("pipeline")

    def __repr__(self) -> str:
        return f"Pipeline({self._database!r}, in_flight={self._batches.in_flight()})"

    def run(self, run_id: str | RunScope) -> PipelinedFacades:
        """The writes of one run, or of a shared scope."""
        try:
            return self._runs[run_id]
        except (KeyError, TypeError):
            scope = self._database.scope(run_id)
        if len(self._runs) >= _MAX_RUNS:
            self._runs.clear()
        run = self._runs[run_id] = PipelinedFacades(self._batches.sink(), scope.prefix)
        return run

    def shared(self, level: str) -> PipelinedFacades:
        """The writes of what all runs of this `"agent"`, `"app"` or `"tenant"` share."""
        return self.run(self._database.shared(level))

    def flush(self) -> None:
        """Send what is buffered, wait for all answers and raise the first error.

        Raises:
            InmemError: the first error of a write; later writes may have been applied.
        """
        self._batches.flush()

    def __enter__(self) -> Pipeline:
        self._was_entered = _entered(self._was_entered, "pipeline")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all; an exception inside the block is not replaced by one of a write."""
        try:
            self._batches.flush()
        except InmemError as first:
            if error is None:
                raise
            error.add_note(f"a pipelined write failed too: {first}")
        finally:
            self._batches.close()


def _entered(was_entered: bool, what: str) -> bool:
    """Leaving the block ends what was entered: so there is one block.

    Raises:
        InvariantError: a block was entered before.
    """
    if was_entered:
        raise InvariantError(
            f"a block of this {what} was entered before",
            hint=f"Use the {what} as it is inside its block, or begin another one.",
        )
    return True


def wants_sync(durability: str | None, database: Database) -> bool:
    """Whether one commit must be durable at once.

    Raises:
        InvalidInputError: not a durability.
        ConfigMismatchError: weaker than the database's, or `sync` in a
            database that keeps no log.
    """
    stored = database.engine.durability
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
