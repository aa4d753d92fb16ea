"""The handle of an event loop: opening a database, and what belongs to it as a whole.

Invariant: a handle is of the loop that opened it. It has one session, through
which all coroutines commit, and at most one thread, which waits for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, overload

import inmem.database
from inmem.aio.facade_sets import AsyncDatabaseFacades
from inmem.aio.scopes import AsyncPipeline, AsyncRunScope, AsyncSnapshot, AsyncTransaction
from inmem.aio.session import check_loop
from inmem.aio.sides import side_of
from inmem.aio.sink import AwaitedSink
from inmem.database import CHECKPOINT_TIMEOUT_S, CheckpointReport, Database, RepairReport, Status
from inmem.errors import ClosedError, InvalidInputError
from inmem.pending import Pending
from inmem.primitives.leases.calls import LeaseHolder
from inmem.primitives.leases.shown import Lease
from inmem.reports import BackupReport, CheckReport
from inmem.scopes import MAX_ATTEMPTS, TRANSACT_TIMEOUT_S, Snapshot, Transaction, wants_sync

T = TypeVar("T")

_MAX_SCOPES = 8192  # bound scopes kept for reuse


class AsyncDatabase(AsyncDatabaseFacades):
    """One database, for the coroutines of one event loop. Made by `inmem.aio.open`.

    It has the names, arguments, results and errors of `Database`. Everything
    is awaited; a read never suspends. What streams is an asynchronous
    iterator. A commit that is cancelled before it was sent does not happen; one
    that was sent may take effect, exactly once. Not for other loops, threads
    or forked children: each opens its own.
    """

    def __init__(self, handle: Database) -> None:
        engine = handle.engine
        self.handle = handle
        side = self.side = side_of(engine)
        self._engine: Any = side.engine
        self.settings = handle.settings
        self.namespace = handle.namespace
        self.namespace_prefix = handle.namespace_prefix
        self.name = handle.name
        self.session = side.session
        self.waits = side.waits
        self.sink = AwaitedSink(self.session, self.settings.timeout_s, engine.direct().default)
        self._scopes: dict[str, AsyncRunScope] = {}
        self._levels: dict[bytes, AsyncRunScope] = {}  # by their prefixes: at most one for each level
        super().__init__(self)
        side.adopt(self)

    @property
    def path(self) -> Path:
        """The data directory. See `Database.path`."""
        return self.handle.path

    def __repr__(self) -> str:
        state = "" if self._engine is not None else ", closed"
        return f"AsyncDatabase({self.name!r}, {str(self.namespace)!r}{state})"

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError(
            "a database of an event loop cannot be pickled or copied", argument="database",
            hint="Hand over its path, and open it there.",
        )

    @property
    def engine(self) -> Any:
        """What serves this database.

        Raises:
            ClosedError: the handle was closed.
        """
        if self._engine is None:
            raise ClosedError("the database is closed")
        return self._engine

    def run(self, run_id: str | AsyncRunScope) -> AsyncRunScope:
        """The facades bound to one run; a scope of this handle is taken too. See `Database.run`."""
        try:
            return self._scopes[run_id]  # type: ignore[index]  # which has no scopes as keys
        except (KeyError, TypeError):
            pass
        if isinstance(run_id, AsyncRunScope):
            if run_id.database is not self:
                raise InvalidInputError("run_id is a scope of another database", argument="run_id")
            return run_id
        if len(self._scopes) >= _MAX_SCOPES:
            self._scopes.clear()
        scope = self._scopes[run_id] = self.side.twin(AsyncRunScope)(self, self.handle.run(run_id))
        return scope

    def shared(self, level: str) -> AsyncRunScope:
        """The scope that all runs of this `"agent"`, `"app"` or `"tenant"` share."""
        scope = self.handle.shared(level)
        found = self._levels.get(scope.prefix)
        if found is None:
            found = self._levels[scope.prefix] = self.side.twin(AsyncRunScope)(self, scope)
        return found

    # --- transactions -----------------------------------------------------------------

    @overload
    async def transact(
        self, run_id: str | AsyncRunScope, fn: Callable[[AsyncTransaction], Awaitable[Pending[T]]], *,
        max_attempts: int = ..., timeout_s: float = ..., durability: str | None = None,
        wait_s: float | None = None, lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    async def transact(
        self, run_id: str | AsyncRunScope, fn: Callable[[AsyncTransaction], Awaitable[T]], *,
        max_attempts: int = ..., timeout_s: float = ..., durability: str | None = None,
        wait_s: float | None = None, lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    async def transact(
        self, run_id: str | AsyncRunScope, fn: Callable[[Transaction], Pending[T]], *,
        max_attempts: int = ..., timeout_s: float = ..., durability: str | None = None,
        wait_s: float | None = None, lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    async def transact(
        self, run_id: str | AsyncRunScope, fn: Callable[[Transaction], T], *, max_attempts: int = ...,
        timeout_s: float = ..., durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    async def transact(
        self, run_id: str | AsyncRunScope, fn: Callable[..., Any], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSACT_TIMEOUT_S, durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> Any:
        """Run `fn(txn)`, a function or coroutine function, as a transaction. See `AsyncRunScope.transact`."""
        return await self.run(run_id).transact(
            fn, max_attempts=max_attempts, timeout_s=timeout_s, durability=durability, wait_s=wait_s,
            lease=lease,
        )

    async def wait(
        self, run_id: str | AsyncRunScope, fn: Callable[[Snapshot], T | None], *,
        timeout_s: float | None = None,
    ) -> T:
        """Sleep until `fn(view)`, a plain function, returns something true, and return that."""
        return await self.run(run_id).wait(fn, timeout_s=timeout_s)

    def transaction(
        self, run_id: str | AsyncRunScope, *, durability: str | None = None, timeout_s: float | None = None
    ) -> AsyncTransaction:
        """One attempt at a transaction, for `async with`; it commits at the end of the block."""
        return self.run(run_id).transaction(durability=durability, timeout_s=timeout_s)

    def snapshot(self, run_id: str | AsyncRunScope) -> AsyncSnapshot:
        """Read-only facades at one consistent moment, for `async with`."""
        return self.run(run_id).snapshot()

    def pipeline(self, *, durability: str | None = None) -> AsyncPipeline:
        """Blind writes without waiting for each, for `async with`."""
        return self.side.twin(AsyncPipeline)(self, wants_sync(durability, self.handle))

    # --- the database as a whole: rare and slow, in a thread ----------------------------

    async def status(self) -> Status:
        """What the writer says of itself. See `Database.status`."""
        return await asyncio.to_thread(self.handle.status)

    async def sync(self) -> int:
        """Make every commit so far durable. See `Database.sync`."""
        return await asyncio.to_thread(self.handle.sync)

    async def checkpoint(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> CheckpointReport:
        """Copy the store to one durable file and drop the log before it. See `Database.checkpoint`."""
        return await asyncio.to_thread(self.handle.checkpoint, timeout_s=timeout_s)

    async def backup(self, path: str | os.PathLike[str]) -> BackupReport:
        """Copy one moment of the store to one new file. See `Database.backup`."""
        return await asyncio.to_thread(self.handle.backup, path)

    async def check(self) -> CheckReport:
        """Verify image, log, chains and indices. See `Database.check`."""
        return await asyncio.to_thread(self.handle.check)

    async def repair_indices(self, run_id: str | AsyncRunScope | None = None) -> RepairReport:
        """Make the indices what the records say. See `Database.repair_indices`."""
        name = None if run_id is None else self.run(run_id).name
        return await asyncio.to_thread(self.handle.repair_indices, name)

    async def close(self) -> None:
        """Give the handle back. What is under way raises. May be called twice.

        Raises:
            InvariantError: called in another event loop, while its own is not closed.
        """
        if self._engine is None:
            return
        if self.session.loop.is_closed():
            self._engine = None
            self.waits.close()
            self.handle.close()
            with contextlib.suppress(RuntimeError):  # of a loop that is closed
                self.session.abandon()
            return
        check_loop(self.session.loop)
        engine, self._engine = self._engine, None
        if engine is not None:
            self.session.close()
            self.waits.close()
            self.handle.close()
            await self.session.closed()

    async def __aenter__(self) -> Self:
        _ = self.engine  # it is open
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Opening:
    """A database that is opened: `async with` it, or await it."""

    def __init__(self, path: str | os.PathLike[str] | None, arguments: dict[str, Any]) -> None:
        self._path = path
        self._arguments = arguments
        self._opened: AsyncDatabase | None = None

    async def _open(self) -> AsyncDatabase:
        handle = await asyncio.to_thread(inmem.database.open, self._path, **self._arguments)
        try:
            return AsyncDatabase(handle)
        except BaseException:
            handle.close()
            raise

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"the database is not open yet, so it has no {name!r}: "
            "use `async with inmem.aio.open(...) as db`, or `db = await inmem.aio.open(...)`"
        )

    def __await__(self) -> Generator[Any, None, AsyncDatabase]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncDatabase:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(self, *_: object) -> None:
        if self._opened is not None:
            await self._opened.close()


def open(
    path: str | os.PathLike[str] | None = None, *, durability: str | None = None, tenant: str = "default",
    app: str = "default", agent: str = "default", config: str | os.PathLike[str] | None = None,
    autostart: bool = True, create: bool = True, timeout_s: float | None = None,
    default: Callable[[Any], Any] | None = None,
) -> Opening:
    """Open a database for the event loop that runs: `async with inmem.aio.open(path) as db`, or await it.

    Arguments and errors are those of `inmem.open`.

    >>> import asyncio, inmem
    >>> async def main():
    ...     async with inmem.aio.open() as db:
    ...         await db.kv.put("run-1", "color", "green")
    ...         return await db.kv.get("run-1", "color")
    >>> asyncio.run(main())
    'green'
    """
    return Opening(path, {
        "durability": durability, "tenant": tenant, "app": app, "agent": agent, "config": config,
        "autostart": autostart, "create": create, "timeout_s": timeout_s, "default": default,
    })


