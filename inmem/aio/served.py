"""An engine on a server, for an event loop: what waits for the server is awaited.

Invariant: facades, transactions and the engine are those that threads use.
Each call of a coroutine is spawned (`inmem.engines.postgres.green`), so that
what blocks a thread there lets the loop go on with others here. Calls with one
transaction or snapshot take turns, as it has one connection.

A commit runs in a task of its own, which is never cancelled: it may have been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from types import FunctionType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from inmem.aio.session import check_loop
from inmem.aio.wrapping import AsyncFacade
from inmem.client.applied import Applied
from inmem.client.transaction import OptimisticTransaction
from inmem.client.views import SnapshotView
from inmem.client.waiting import Watched, timed_out
from inmem.engines.postgres.engine import PostgresEngine
from inmem.engines.postgres.green import Spawned
from inmem.engines.postgres.pipelined import MOST, MOST_BYTES
from inmem.errors import ClosedError, CommitUnknownError, ForkError, InmemError
from inmem.primitives.byrun import ByRun

T = TypeVar("T")
C = TypeVar("C", bound=type)


class _Turn:
    """Whose turn it is. A task that has it may take it again."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[Any] | None = None

    async def taken(self, spawned: Spawned[T]) -> T:
        """What it gives, run when it is its turn."""
        me = asyncio.current_task()
        if self._owner is me:
            return await spawned
        await self._lock.acquire()
        self._owner = me
        try:
            return await spawned
        finally:
            self._owner = None
            self._lock.release()


class _Stream(AsyncIterator[T]):
    """What an asynchronous iterator gives; each step is spawned."""

    __slots__ = ("_begun", "_items", "_turn")

    def __init__(self, items: Any, turn: _Turn | None, begun: _Begun | None = None) -> None:
        self._items = items
        self._turn = turn
        self._begun = begun

    async def __anext__(self) -> T:
        if self._begun is not None:
            begun, self._begun = self._begun, None
            self._items = await begun
        return await _spawned(_awaits(self._items.__anext__()), self._turn)

    async def aclose(self) -> None:
        """End it, as `contextlib.aclosing` does."""
        self._begun = None
        if self._items is not None:
            await _spawned(_awaits(self._items.aclose()), self._turn)


class _Begun:
    """A call that was begun outside of what can wait: the rest of it."""

    __slots__ = ("_step", "_steps")

    def __init__(self, step: Any, steps: Generator[Any, Any, Any]) -> None:
        self._step = step
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        step = self._step
        while True:
            try:
                yield step
            except BaseException as error:
                go_on = functools.partial(self._steps.throw, error)
            else:
                go_on = functools.partial(self._steps.send, None)
            try:
                step = go_on()
            except StopIteration as end:
                return end.value


async def _awaits(awaitable: Any) -> Any:
    return await awaitable


async def _given_later(spawned: Spawned[T], turn: _Turn | None) -> T:
    try:
        return await (spawned if turn is None else turn.taken(spawned))
    finally:
        spawned.close()


def _spawned(coroutine: Coroutine[Any, Any, T], turn: _Turn | None) -> Coroutine[Any, Any, T]:
    return _given_later(Spawned(coroutine), turn)


def _given(result: Any, turn: _Turn | None) -> Any:
    """What a method gave, so that what it does later is spawned."""
    if inspect.iscoroutine(result):
        return _spawned(result, turn)
    if isinstance(result, AsyncIterator):
        return _Stream(result, turn)
    if hasattr(result, "__aenter__") and type(result).__module__.startswith("inmem.aio."):
        result.__class__ = _twin(type(result))
    return result


def _wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    streams = str(method.__annotations__.get("return", "")).startswith("AsyncIterator")

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        turn = getattr(self, "_turn", None)
        if not streams:
            return _given(method(self, *args, **kwargs), turn)
        steps = Spawned(_called(functools.partial(method, self, *args, **kwargs))).__await__()
        try:
            step = steps.send(None)
        except StopIteration as end:  # as nearly always: it is the first item that is waited for
            return _given(end.value, turn)
        return _Stream(None, turn, _Begun(step, steps))

    return call


def _twin(cls: Any) -> Any:
    return _made_twin(cls)


@functools.cache
def _made_twin(cls: Any) -> Any:
    if getattr(cls, "is_served", False):
        return cls
    own: dict[str, Any] = {"__slots__": (), "__module__": cls.__module__, "__doc__": cls.__doc__}
    own["is_served"] = True
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        is_public = not name.startswith("_") or name in ("__aenter__", "__aexit__")
        if is_public and isinstance(method, FunctionType):
            own[name] = _wrapped(method)
    return type(cls)(cls.__name__, (cls,), own)


class ServedSide:
    """What an event loop has of an engine on a server."""

    def __init__(self, engine: Any) -> None:
        assert isinstance(engine, PostgresEngine)
        self.engine = _LoopEngine(engine)
        self.session = ServedCommits(engine)
        self.waits = ServedWaits(engine)
        self._turns: WeakKeyDictionary[Any, _Turn] = WeakKeyDictionary()

    def twin(self, cls: C) -> C:
        """See `LoopSide`."""
        twin: C = _twin(cls)
        return twin

    def adopt(self, handle: Any, view: Any = None) -> None:
        """See `LoopSide`."""
        turn = None
        if view is not None:
            turn = self._turns.get(view)
            if turn is None:
                turn = self._turns[view] = _Turn()
            handle._turn = turn
        for name in {*getattr(handle, "__dict__", ()), *_slots_of(type(handle))}:
            facade = getattr(handle, name, None)
            if isinstance(facade, AsyncFacade):
                facade.__class__ = _twin(type(facade))
                facade._turn = turn
            elif isinstance(facade, ByRun):
                facade.__class__ = _twin(type(facade))

    async def commit(self, draft: OptimisticTransaction, *, sync: bool, timeout_s: float) -> None:
        """See `LoopSide`."""
        draft.check_open()
        try:
            await self.session.made(draft.commit, _itself)
        finally:
            if not draft.is_over:  # cancelled before it began
                draft.abort()

    def in_order(self) -> ServedCommits:
        """See `LoopSide`."""
        return _InOrder(self.session)


def _itself(result: T) -> T:
    return result


def _slots_of(cls: type) -> set[str]:
    return {name for each in cls.__mro__ for name in vars(each).get("__slots__", ())}


class _LoopEngine:
    """An engine whose snapshots and transactions begin when something is read."""

    def __init__(self, engine: PostgresEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def snapshot(self) -> SnapshotView:
        """One version, as of its first read."""
        store = self._engine.store
        return SnapshotView(_LateMoment(store.moment), store.connections.now_us)


class _LateMoment:
    """A snapshot that begins with its first read: a `StoredVersion`."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._moment: Any = None
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        if self._is_over:
            raise ClosedError("the snapshot is closed")
        if self._moment is None:
            self._moment = self._begin()
        return getattr(self._moment, name)

    def close(self) -> None:
        """End it."""
        self._is_over = True
        if self._moment is not None:
            self._moment.close()

    leave = close


class ServedCommits:
    """The commits of one event loop."""

    def __init__(self, engine: PostgresEngine) -> None:
        self._engine = engine
        self.loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkError("this database belongs to the event loop of the parent process")
        check_loop(self.loop)
        if self._is_closed:
            raise ClosedError("the database is closed")

    def commit(
        self, body: bytes, convert: Callable[[Applied], Any], *, sync: bool, timeout_s: float
    ) -> asyncio.Future[Any]:
        """Make a commit; a future of what `convert` makes of what it came to. See `LoopSession.commit`."""
        sessions = self._engine.store.sessions
        return self.made(lambda: convert(sessions.commit(body, sync=sync, timeout_s=timeout_s)), convert)

    def made(self, call: Callable[[], Any], convert: Callable[[Any], Any]) -> asyncio.Future[Any]:
        """Make a call that is never cancelled; a future of what it gives."""
        self._check()
        future = self.loop.create_future()
        task = self.loop.create_task(self._make(call, convert, future))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _make(
        self, call: Callable[[], Any], convert: Callable[[Any], Any], future: asyncio.Future[Any]
    ) -> None:
        if future.done():
            return  # cancelled before anything was sent
        try:
            result = await Spawned(_called(call))
        except BaseException as error:
            self._fail(future, error, convert)
        else:
            if not future.done():
                future.set_result(result)

    def _fail(
        self, future: asyncio.Future[Any], failed: BaseException, convert: Callable[[Any], Any]
    ) -> None:
        if isinstance(failed, CommitUnknownError) and (again := failed.resender) is not None:
            failed.resender = lambda timeout_s: self._again(again, convert, timeout_s)
        if not future.done():
            is_end = isinstance(failed, StopIteration)  # which a future does not take
            future.set_exception(RuntimeError(repr(failed)) if is_end else failed)

    async def _again(
        self, resend: Callable[[float | None], Any], convert: Callable[[Any], Any], timeout_s: float | None
    ) -> Any:
        return await self.made(lambda: convert(resend(timeout_s)), convert)

    def close(self) -> None:
        """Take no more."""
        self._is_closed = True

    def abandon(self) -> None:
        """End without the loop, which is closed already."""
        self._is_closed = True

    async def closed(self) -> None:
        """Until nothing is under way: its connections were closed."""
        if self._tasks:
            await asyncio.wait([*self._tasks])


async def _called(call: Callable[[], T]) -> T:
    return call()


class _Queued(NamedTuple):
    body: bytes
    sync: bool
    timeout_s: float
    convert: Callable[[Applied], Any]
    future: asyncio.Future[Any]


class _InOrder(ServedCommits):
    """Commits that are made one after the other. Those that wait for each other travel together."""

    def __init__(self, commits: ServedCommits) -> None:
        self._commits = commits
        self.loop = commits.loop
        self._queue: deque[_Queued] = deque()
        self._is_running = False

    def commit(
        self, body: bytes, convert: Callable[[Applied], Any], *, sync: bool, timeout_s: float
    ) -> asyncio.Future[Any]:
        """See `ServedCommits`."""
        future = self.loop.create_future()
        self._queue.append(_Queued(body, sync, timeout_s, convert, future))
        if not self._is_running:
            self._is_running = True
            task = self.loop.create_task(self._run())
            self._commits._tasks.add(task)
            task.add_done_callback(self._commits._tasks.discard)
        return future

    async def _run(self) -> None:
        while self._queue:
            await self._make_together(self._taken())
        self._is_running = False

    def _taken(self) -> list[_Queued]:
        """The next ones, as far as they fit one transaction; without those that were cancelled."""
        queue = self._queue
        taken = [queue.popleft()]
        size = len(taken[0].body)
        while queue and len(taken) < MOST and queue[0].sync == taken[0].sync:
            size += len(queue[0].body)
            if size > MOST_BYTES:
                break
            taken.append(queue.popleft())
        return [each for each in taken if not each.future.done()]

    async def _make_together(self, group: list[_Queued]) -> None:
        if not group:
            return
        sessions, first = self._commits._engine.store.sessions, group[0]
        if len(group) == 1:
            body, sync, timeout_s, convert, future = first
            call = functools.partial(sessions.commit, body, sync=sync, timeout_s=timeout_s)
            await self._commits._make(lambda: convert(call()), convert, future)
            return
        bodies = [each.body for each in group]
        call_all = functools.partial(
            sessions.commit_all, bodies, sync=first.sync, timeout_s=first.timeout_s
        )
        outcomes: list[Any]
        try:
            outcomes = await Spawned(_called(call_all))
        except BaseException as error:
            outcomes = [error] * len(group)
        for each, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._commits._fail(each.future, outcome, each.convert)
                continue
            try:
                result = each.convert(outcome)
            except BaseException as error:
                self._commits._fail(each.future, error, each.convert)
            else:
                if not each.future.done():
                    each.future.set_result(result)


class ServedWaits:
    """The waits of one event loop: the thread that looks for the whole process tells it."""

    def __init__(self, engine: PostgresEngine) -> None:
        self._waits = engine.waits
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    async def wait(self, watched: Watched, deadline: float) -> None:
        """Return when something has changed. See `LoopWaiting.wait`."""
        if self._pid != os.getpid():
            raise ForkError("this database belongs to the event loop of the parent process")
        check_loop(self._loop)
        loop, future = self._loop, self._loop.create_future()

        def tell(error: InmemError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_end, future, error)

        waiter = self._waits.begin(watched, tell)
        was_interrupted = True
        try:
            left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            async with asyncio.timeout(left_s) as limit:
                await future
            was_interrupted = False
        except TimeoutError:
            if limit.expired():
                raise timed_out() from None
            raise
        finally:
            with contextlib.suppress(ClosedError):  # the handle was closed, and with it all that waited
                self._waits.end(waiter, was_interrupted=was_interrupted)

    def close(self) -> None:
        """Closing the handle ends them."""


def _end(future: asyncio.Future[None], error: InmemError | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
