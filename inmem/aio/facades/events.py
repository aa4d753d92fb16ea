"""The facades of events for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, NoReturn

from inmem.aio.wrapping import AsyncFacade, Each, documented
from inmem.primitives.byrun import ByRun, Host, by_run
from inmem.primitives.events.facade import (
    A,
    EventLog,
    EventReads,
    Events,
    EventWrites,
    PendingAppend,
    PipedEvents,
    PipelineEvents,
    RunEvents,
    TransactionEvents,
)
from inmem.primitives.events.rules import Appended, ChainVerification, Event


@documented(EventReads)
class AsyncEventReads(AsyncFacade):
    __slots__ = ()

    async def read(self, sequence: int) -> Event | None:
        result: Event | None = self._sync.read(sequence)
        return result

    async def read_range(
        self, start: int, end: int | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> list[Event]:
        result: list[Event] = self._sync.read_range(start, end, limit=limit, reverse=reverse)
        return result

    async def head(self) -> Event | None:
        result: Event | None = self._sync.head()
        return result

    async def count(self) -> int:
        result: int = self._sync.count()
        return result

    def iter(
        self, start: int = 0, *, event_type: str | None = None, reverse: bool = False
    ) -> AsyncIterator[Event]:
        return Each(self._sync.iter(start, event_type=event_type, reverse=reverse))

    async def len(self) -> int:
        result: int = self._sync.len()
        return result

    async def read_by_type(
        self, event_type: str, *, limit: int | None = None, start_after: int | None = None,
        reverse: bool = False,
    ) -> list[Event]:
        result: list[Event] = self._sync.read_by_type(
            event_type, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def query_by_type(
        self, event_type: str, *, limit: int | None = None, start_after: int | None = None,
        reverse: bool = False,
    ) -> list[Event]:
        result: list[Event] = self._sync.query_by_type(
            event_type, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def verify_chain(self, anchor: tuple[int, bytes] | None = None) -> ChainVerification:
        result: ChainVerification = self._sync.verify_chain(anchor)
        return result

    async def update(self, *_: object, **__: object) -> NoReturn:
        EventReads.update(self._sync, *_, **__)

    async def delete(self, *_: object, **__: object) -> NoReturn:
        EventReads.delete(self._sync, *_, **__)


@documented(EventWrites)
class AsyncEventWrites(AsyncFacade, Generic[A]):
    __slots__ = ()

    async def append(self, event_type: str, payload: Any = None) -> A:
        result: A = await self._sync.append(event_type, payload)
        return result

    async def append_many(self, events: Iterable[tuple[str, Any]]) -> list[A]:
        result: list[A] = await self._sync.append_many(events)
        return result


@documented(Events)
class AsyncEvents(AsyncEventReads, AsyncEventWrites[A]):
    __slots__ = ()


@documented(RunEvents)
class AsyncRunEvents(AsyncEvents[Appended]):
    __slots__ = ()

    def follow(
        self, start: int = 0, *, event_type: str | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        result: AsyncIterator[Event] = self._sync.follow(start, event_type=event_type, timeout_s=timeout_s)
        return result


@documented(TransactionEvents)
class AsyncTransactionEvents(AsyncEvents[PendingAppend]):
    __slots__ = ()


@documented(PipedEvents)
class AsyncPipedEvents(AsyncEventWrites[PendingAppend]):
    __slots__ = ()


@documented(EventLog)
class AsyncEventLog(ByRun[AsyncRunEvents]):
    __slots__ = ("_sync",)

    KIND = "events"

    def __init__(self, database: Host) -> None:
        super().__init__(database)
        self._sync: Any = EventLog(database)

    append = by_run(AsyncRunEvents.append)
    append_many = by_run(AsyncRunEvents.append_many)
    read = by_run(AsyncRunEvents.read)
    read_range = by_run(AsyncRunEvents.read_range)
    head = by_run(AsyncRunEvents.head)
    count = by_run(AsyncRunEvents.count)
    len = by_run(AsyncRunEvents.len)
    iter = by_run(AsyncRunEvents.iter)
    query_by_type = by_run(AsyncRunEvents.query_by_type)
    read_by_type = by_run(AsyncRunEvents.read_by_type)
    verify_chain = by_run(AsyncRunEvents.verify_chain)
    follow = by_run(AsyncRunEvents.follow)

    async def update(self, *_: object, **__: object) -> NoReturn:
        EventLog.update(self._sync, *_, **__)

    async def delete(self, *_: object, **__: object) -> NoReturn:
        EventLog.delete(self._sync, *_, **__)


@documented(PipelineEvents)
class AsyncPipelineEvents(ByRun[AsyncPipedEvents]):
    __slots__ = ()

    KIND = "events"

    append = by_run(AsyncPipedEvents.append)
    append_many = by_run(AsyncPipedEvents.append_many)
