"""What the asynchronous facades are bound to: a run, a snapshot, a transaction, a pipeline.

They mean what those of `inmem.scopes` mean, and stand on them. What waits is
awaited; what only reads is awaited too, and never suspends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol, Self, TypeVar, overload

from inmem.aio.driving import retrying
from inmem.aio.facade_sets import (
    AsyncPipelinedFacades,
    AsyncPipelineFacades,
    AsyncScopeFacades,
    AsyncSnapshotFacades,
    AsyncTransactionFacades,
)
from inmem.aio.facade_waits import LoopWaits
from inmem.aio.sides import LoopSide, LoopWaiters
from inmem.aio.sink import AwaitedSink, AwaitedWrites, Done, LoopCommits
from inmem.callables import check_callable, check_result
from inmem.client.applied import Applied
from inmem.client.pipeline import PipelinedWrites
from inmem.client.retry import check_timeout, deadline_in, resolved_as
from inmem.client.transaction import OptimisticTransaction
from inmem.client.views import SnapshotView
from inmem.client.waiting import Looked, Watched
from inmem.config import MAX_IN_FLIGHT, Settings
from inmem.database import Database
from inmem.errors import ClosedError, CommitUnknownError, InmemError, InvariantError
from inmem.host.interrupts import awaited, called
from inmem.pending import Pending, filled
from inmem.primitives.leases.calls import LeaseHolder, checks_of
from inmem.primitives.leases.shown import Lease
from inmem.scopes import (
    MAX_ATTEMPTS,
    TRANSACT_TIMEOUT_S,
    NotYet,
    RunScope,
    Snapshot,
    Transaction,
    wants_sync,
)

T = TypeVar("T")
R = TypeVar("R")

_GROUPS: Final = 64  # of a pipeline that are not answered: then a write waits


class Handle(Protocol):
    """What scopes need of the database that they are of: see `inmem.aio.database`."""

    handle: Database
    settings: Settings
    namespace_prefix: bytes
    session: LoopCommits
    waits: LoopWaiters
    side: LoopSide
    sink: AwaitedSink

    @property
    def engine(self) -> Any: ...

    def run(self, run_id: Any) -> AsyncRunScope: ...

    def shared(self, level: str) -> AsyncRunScope: ...


class AsyncRunScope(AsyncScopeFacades):
    """The asynchronous facades bound to one run, or to what the runs of a level share. See `RunScope`."""

    def __init__(self, database: Handle, scope: RunScope) -> None:
        self.database = database
        self._scope = scope
        self.name = scope.name
        self.prefix = scope.prefix
        self.namespace = scope.namespace
        engine = database.engine
        super().__init__(
            database, engine.latest(), database.sink, scope.prefix, scope.namespace, scope.name,
            self.transact, LoopWaits(self.wait, self._pass_on, engine.leaving),
        )
        database.side.adopt(self)

    def __repr__(self) -> str:
        return f"AsyncRunScope({self.prefix.decode()!r})"

    @property
    def run_id(self) -> str:
        """The run's id; for a shared scope its level."""
        return self.name

    def transaction(
        self, *, durability: str | None = None, timeout_s: float | None = None
    ) -> AsyncTransaction:
        """One attempt at a transaction in this run, for `async with`. See `Database.transaction`."""
        sync = wants_sync(durability, self.database.handle)
        if timeout_s is not None:
            timeout_s = check_timeout(timeout_s)
        return self.database.side.twin(AsyncTransaction)(self._begin(sync, timeout_s), self)

    def _begin(self, sync: bool, timeout_s: float | None) -> AwaitedDraft:
        database = self.database
        timeout_s = database.engine.settings.timeout_s if timeout_s is None else timeout_s
        draft = database.engine.transaction(timeout_s=timeout_s, sync=sync)
        return database.side.twin(AwaitedDraft)(draft, database, sync, timeout_s)

    @overload
    async def transact(
        self, fn: Callable[[AsyncTransaction], Awaitable[Pending[T]]], *, max_attempts: int = ...,
        timeout_s: float = ..., durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    async def transact(
        self, fn: Callable[[AsyncTransaction], Awaitable[T]], *, max_attempts: int = ...,
        timeout_s: float = ..., durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    async def transact(
        self, fn: Callable[[Transaction], Pending[T]], *, max_attempts: int = ..., timeout_s: float = ...,
        durability: str | None = None, wait_s: float | None = None, lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    @overload
    async def transact(
        self, fn: Callable[[Transaction], T], *, max_attempts: int = ..., timeout_s: float = ...,
        durability: str | None = None, wait_s: float | None = None, lease: Lease | LeaseHolder | None = None,
    ) -> T: ...
    async def transact(
        self, fn: Callable[..., Any], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSACT_TIMEOUT_S, durability: str | None = None, wait_s: float | None = None,
        lease: Lease | LeaseHolder | None = None,
    ) -> Any:
        """Run `fn(txn)` with retries in this run: a plain function, or a coroutine function.

        A plain one gets a `Transaction`, whose calls are not awaited, a
        coroutine function an `AsyncTransaction`. It may run many times, so it
        must be pure. While it awaits something else its snapshot stays open:
        do slow work before or after it. See `Database.transact`.
        """
        sync = wants_sync(durability, self.database.handle)
        is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
        if not is_async:
            check_callable(fn)
        wait_until = deadline_in(wait_s, "wait_s")
        under = checks_of(lease)

        async def attempt(left_s: float) -> Any:
            draft = self._begin(sync, left_s)
            try:
                if under:
                    draft.draft.write(under)
                if is_async:
                    txn = self.database.side.twin(AsyncTransaction)(draft, self, may_wait=True)
                    result = await awaited(fn, txn)
                else:
                    result = called(fn, Transaction(draft.draft, self._scope, may_wait=True))
                check_result(result)
                if not draft.draft.is_over:
                    try:
                        await draft.commit()
                    except CommitUnknownError as error:
                        raise resolved_as(error, lambda _: filled(result)) from None
            finally:
                await draft.abort()
            return result if draft.draft.version is None else filled(result)

        while True:
            try:
                return await retrying(attempt, max_attempts=max_attempts, timeout_s=timeout_s)
            except NotYet as not_yet:
                await self.database.waits.wait(_here(not_yet.watched), wait_until)
            except BaseExceptionGroup as group:  # of a TaskGroup in the function
                await self.database.waits.wait(_here(_only_not_yet(group).watched), wait_until)

    async def wait(self, fn: Callable[[Snapshot], T | None], *, timeout_s: float | None = None) -> T:
        """Sleep until `fn(view)`, a plain function, returns something true, and return that.

        See `Database.wait`. One thread sleeps for all coroutines of a loop.
        """
        check_callable(fn)
        deadline = deadline_in(timeout_s)

        async def look(_: float) -> tuple[T | None, Any]:
            draft = self.database.engine.transaction(timeout_s=None, sync=False)
            try:
                result = called(fn, Snapshot(Looked(draft), self._scope))
                check_result(result)
                return result, None if result else draft.watched(self.prefix)
            finally:
                draft.abort()

        while True:
            result, watched = await retrying(look, max_attempts=MAX_ATTEMPTS, timeout_s=TRANSACT_TIMEOUT_S)
            if result:
                return result
            await self.database.waits.wait(watched, deadline)

    def _pass_on(self, name: bytes) -> None:
        """See `FacadeWaits`."""
        self.database.engine.pass_on(name)

    def snapshot(self) -> AsyncSnapshot:
        """One consistent moment of this run, for `async with`. See `Database.snapshot`."""
        return self.database.side.twin(AsyncSnapshot)(self.database.engine.snapshot(), self)


def _only_not_yet(group: BaseExceptionGroup[Any]) -> NotYet:
    """The one thing that a group says; a group that says anything else is raised."""
    not_yet, rest = group.split(NotYet)
    if rest is not None:
        _, rest = rest.split(ClosedError)  # of other tasks, which found the attempt ended
    if rest is not None or not_yet is None:
        raise group
    found: Any = not_yet
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, NotYet)
    return found


def _here(watched: Any) -> Watched:
    assert isinstance(watched, Watched)
    return watched


class AwaitedDraft:
    """A transaction that is committed through a loop's session."""

    __slots__ = ("_database", "_sync", "_timeout_s", "_turn", "draft")

    def __init__(
        self, draft: OptimisticTransaction, database: Handle, sync: bool, timeout_s: float
    ) -> None:
        self.draft = draft
        self._database = database
        self._sync = sync
        self._timeout_s = timeout_s
        database.side.adopt(self, draft)

    async def abort(self) -> None:
        """See `Draft.abort`."""
        self.draft.abort()

    async def commit(self) -> None:
        """See `Draft.commit`. If this is cancelled, it may or may not take effect."""
        await self._database.side.commit(self.draft, sync=self._sync, timeout_s=self._timeout_s)


def _itself(applied: Applied) -> Applied:
    return applied


class AsyncSnapshot(AsyncSnapshotFacades):
    """Asynchronous facades that all see one commit version. See `Snapshot`."""

    def __init__(self, view: SnapshotView, scope: AsyncRunScope, *, is_nested: bool = False) -> None:
        self._view = view
        self._scope = scope
        self._is_nested = is_nested
        self.run_id = scope.run_id
        super().__init__(scope.database, view, scope.prefix, scope.namespace, scope.name)
        scope.database.side.adopt(self, view)

    def __repr__(self) -> str:
        return f"AsyncSnapshot({self.run_id!r})"

    @property
    def version(self) -> int:
        """The commit version that is seen."""
        return self._view.version

    def at(self, run: str | AsyncRunScope) -> AsyncSnapshot:
        """Another run at the same moment; the snapshot is not its to end."""
        twin = self._scope.database.side.twin(AsyncSnapshot)
        return twin(self._view, self._scope.database.run(run), is_nested=True)

    async def close(self) -> None:
        """End it, if it was not made by `at`. May be called twice."""
        if not self._is_nested:
            self._view.close()

    async def __aenter__(self) -> Self:
        _ = self._view.version  # it is open
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncTransaction(AsyncTransactionFacades):
    """Asynchronous facades: reads of one version, writes that happen together. See `Transaction`."""

    def __init__(
        self, draft: AwaitedDraft, scope: AsyncRunScope, *, is_nested: bool = False, may_wait: bool = False
    ) -> None:
        self._draft = draft
        self._scope = scope
        self._is_nested = is_nested
        self._may_wait = may_wait
        self.run_id = scope.run_id
        super().__init__(
            scope.database, draft.draft, AwaitedWrites(draft.draft), scope.prefix,
            scope.namespace, scope.name,
        )
        scope.database.side.adopt(self, draft.draft)

    def __repr__(self) -> str:
        return f"AsyncTransaction({self.run_id!r})"

    @property
    def version(self) -> int | None:
        """The commit version; None before the commit, and if nothing was written."""
        return self._draft.draft.version

    def at(self, run: str | AsyncRunScope) -> AsyncTransaction:
        """Another run in the same transaction."""
        scope = self._scope.database.run(run)
        twin = self._scope.database.side.twin(AsyncTransaction)
        return twin(self._draft, scope, is_nested=True, may_wait=self._may_wait)

    def wait(self) -> NoReturn:
        """"Not yet": see `Transaction.wait`. It is not awaited, as it ends this attempt at once."""
        if not self._may_wait:
            raise InvariantError(
                "only a function that transact runs can wait", hint="Use db.transact(run, fn, wait_s=...)."
            )
        raise NotYet(self._draft.draft.watched(self._scope.prefix))

    async def commit(self) -> None:
        """Commit now instead of at the end of the block. See `Transaction.commit`."""
        await self._draft.commit()

    async def abort(self) -> None:
        """Drop everything. May be called twice."""
        await self._draft.abort()

    async def __aenter__(self) -> Self:
        self._draft.draft.check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_nested:
            return
        if kind is not None:
            await self._draft.abort()
        elif not self._draft.draft.is_over:
            await self._draft.commit()


class LoopSubmits:
    """What a pipeline submits to: a loop's session, whose answers are awaited elsewhere."""

    def __init__(self, session: LoopCommits) -> None:
        self._session = session
        self._futures: list[Any] = []
        self.next_sequence = 1
        self._first = 1

    def take(self) -> LoopSubmits:
        """It is its pipeline's alone."""
        return self

    def give_back(self, session: object) -> None:
        """It goes with its pipeline."""

    def has_room(self, body: bytes) -> bool:
        """There is always room: who writes too fast waits before that."""
        return True

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int:
        """Send a commit."""
        self._futures.append(self._session.commit(body, _itself, sync=sync, timeout_s=timeout_s))
        self.next_sequence += 1
        return self.next_sequence - 1

    def outcome(self, sequence: int, timeout_s: float) -> Applied:
        """What became of one; it is there."""
        applied: Applied = self._futures[sequence - self._first].result()
        return applied

    def forget(self, sequence: int) -> None:
        """Its outcome was noted."""
        self._futures.pop(0)
        self._first = sequence + 1

    def oldest(self) -> asyncio.Future[Any] | None:
        """That of the first commit whose outcome was not noted."""
        return self._futures[0] if self._futures else None


class AsyncPipeline(AsyncPipelineFacades):
    """Blind writes that are sent without waiting for each answer. See `Pipeline`.

    A write waits only while very many are under way. Leaving the block waits
    for all answers and raises the first error; the other writes stand.
    """

    def __init__(self, database: Handle, sync: bool) -> None:
        self._database = database
        self.namespace_prefix = database.namespace_prefix
        self._submits = LoopSubmits(database.side.in_order())
        settings = dataclasses.replace(database.settings, pipeline_window=MAX_IN_FLIGHT)
        self._writes = PipelinedWrites(self._submits, settings, sync=sync)
        self._writes.default = database.sink.default
        self._runs: dict[Any, AsyncPipelinedFacades] = {}
        super().__init__(self)

    def __repr__(self) -> str:
        return f"AsyncPipeline({self._database!r}, in_flight={self._writes.in_flight()})"

    def run(self, run_id: str | AsyncRunScope) -> AsyncPipelinedFacades:
        """The writes of one run, or of a shared scope."""
        try:
            return self._runs[run_id]
        except (KeyError, TypeError):
            scope = self._database.run(run_id)
        sink = AwaitedWrites(self._writes.sink(), self._room)
        found = self._runs[run_id] = AsyncPipelinedFacades(sink, scope.prefix)
        return found

    def shared(self, level: str) -> AsyncPipelinedFacades:
        """The writes of what all runs of this `"agent"`, `"app"` or `"tenant"` share."""
        return self.run(self._database.shared(level))

    def _room(self, result: T) -> Awaitable[T]:
        return Done(result) if self._writes.in_flight() < _GROUPS else self._waited(result)

    async def _waited(self, result: T) -> T:
        await self._settle(_GROUPS // 2)
        return result

    async def _settle(self, left: int) -> None:
        """Wait until so few groups are under way."""
        while self._writes.in_flight() > left and (oldest := self._submits.oldest()) is not None:
            await asyncio.wait((oldest,))
            if self._submits.oldest() is oldest:  # another coroutine may have waited for it too
                self._writes.settle_oldest()

    async def flush(self) -> None:
        """Send what is buffered, wait for all answers and raise the first error. See `Pipeline.flush`."""
        self._writes.send()
        await self._settle(0)
        self._writes.flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all; an exception inside the block is not replaced by one of a write.

        A task that is cancelled does not wait: what was written is sent, and takes effect or not.
        """
        try:
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                self._writes.send()
            else:
                await self.flush()
        except InmemError as first:
            if error is None:
                raise
            error.add_note(f"a pipelined write failed too: {first}")
        finally:
            self._writes.close()
