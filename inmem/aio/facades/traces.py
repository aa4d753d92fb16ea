"""The facades of traces for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from inmem.aio.wrapping import AsyncFacade, Each, documented
from inmem.primitives.byrun import ByRun, by_run
from inmem.primitives.traces.facade import NewTrace, Place, RunTraces, TraceReads, Traces, TraceStore
from inmem.primitives.traces.rules import Body, Trace, TraceTree


@documented(TraceReads)
class AsyncTraceReads(AsyncFacade):
    __slots__ = ()

    async def get(self, trace_id: str) -> Trace | None:
        result: Trace | None = self._sync.get(trace_id)
        return result

    async def query_by_type(
        self, name: str, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        result: builtins.list[Trace] = self._sync.query_by_type(
            name, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def query_by_tag(
        self, tag: str, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        result: builtins.list[Trace] = self._sync.query_by_tag(
            tag, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def query_by_time(
        self, start: int, end: int, *, limit: int | None = None, start_after: Place = None,
        reverse: bool = False,
    ) -> builtins.list[Trace]:
        result: builtins.list[Trace] = self._sync.query_by_time(
            start, end, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def get_children(
        self, parent_id: str, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        result: builtins.list[Trace] = self._sync.get_children(
            parent_id, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def roots(
        self, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        result: builtins.list[Trace] = self._sync.roots(limit=limit, start_after=start_after, reverse=reverse)
        return result

    async def list(
        self, *, limit: int | None = None, start_after: Place = None, reverse: bool = False
    ) -> builtins.list[Trace]:
        result: builtins.list[Trace] = self._sync.list(limit=limit, start_after=start_after, reverse=reverse)
        return result

    def iter(
        self, *, type_name: str | None = None, tag: str | None = None, parent_id: str | None = None,
        start: int = 0, end: int | None = None, start_after: Place = None, reverse: bool = False,
    ) -> AsyncIterator[Trace]:
        return Each(self._sync.iter(
            type_name=type_name, tag=tag, parent_id=parent_id, start=start, end=end, start_after=start_after,
            reverse=reverse,
        ))

    async def recorded_after(self, version: int) -> builtins.list[tuple[int, str]]:
        result: builtins.list[tuple[int, str]] = self._sync.recorded_after(version)
        return result

    async def count(self) -> int:
        result: int = self._sync.count()
        return result

    async def get_tree(self, root_id: str) -> TraceTree:
        result: TraceTree = self._sync.get_tree(root_id)
        return result


@documented(Traces)
class AsyncTraces(AsyncTraceReads):
    __slots__ = ()

    async def record(
        self, body: Body, *, id: str | None = None, parent_id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        result: str = await self._sync.record(
            body, id=id, parent_id=parent_id, tags=tags, metadata=metadata, timestamp=timestamp
        )
        return result

    async def record_child(
        self, parent_id: str, body: Body, *, id: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, timestamp: int | None = None,
    ) -> str:
        result: str = await self._sync.record_child(
            parent_id, body, id=id, tags=tags, metadata=metadata, timestamp=timestamp
        )
        return result

    async def record_many(self, traces: Iterable[NewTrace]) -> builtins.list[str]:
        result: builtins.list[str] = await self._sync.record_many(traces)
        return result


@documented(RunTraces)
class AsyncRunTraces(AsyncTraces):
    __slots__ = ()

    def follow(
        self, *, start_after: str | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Trace]:
        result: AsyncIterator[Trace] = self._sync.follow(start_after=start_after, timeout_s=timeout_s)
        return result


@documented(TraceStore)
class AsyncTraceStore(ByRun[AsyncRunTraces]):
    __slots__ = ()

    KIND = "traces"

    record = by_run(AsyncRunTraces.record)
    record_child = by_run(AsyncRunTraces.record_child)
    record_many = by_run(AsyncRunTraces.record_many)
    get = by_run(AsyncRunTraces.get)
    query_by_type = by_run(AsyncRunTraces.query_by_type)
    query_by_tag = by_run(AsyncRunTraces.query_by_tag)
    query_by_time = by_run(AsyncRunTraces.query_by_time)
    get_children = by_run(AsyncRunTraces.get_children)
    get_tree = by_run(AsyncRunTraces.get_tree)
    roots = by_run(AsyncRunTraces.roots)
    list = by_run(AsyncRunTraces.list)
    iter = by_run(AsyncRunTraces.iter)
    count = by_run(AsyncRunTraces.count)
    recorded_after = by_run(AsyncRunTraces.recorded_after)
    follow = by_run(AsyncRunTraces.follow)
