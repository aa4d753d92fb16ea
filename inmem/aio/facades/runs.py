"""The facades of runs for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from inmem.aio.wrapping import AsyncFacade, Each, documented
from inmem.primitives.byrun import ByRun, Host, OfRun, by_run
from inmem.primitives.leases.shown import Lease
from inmem.primitives.runs.facade import TERMINAL, CreateRunOptions, RunIndex, RunRuns, Runs
from inmem.primitives.runs.reads import RunQuery, RunReads
from inmem.primitives.runs.rules import DeletedRun, RunMetadata, RunStats, RunStatus


@documented(RunReads)
class AsyncRunReads(AsyncFacade):
    __slots__ = ()

    async def get_run(self, run_id: str | OfRun | None = None) -> RunMetadata | None:
        result: RunMetadata | None = self._sync.get_run(run_id)
        return result

    async def query_runs(
        self, query: RunQuery | None = None, **conditions: Any
    ) -> builtins.list[RunMetadata]:
        result: builtins.list[RunMetadata] = self._sync.query_runs(query, **conditions)
        return result

    def iter_runs(self, query: RunQuery | None = None, **conditions: Any) -> AsyncIterator[RunMetadata]:
        return Each(self._sync.iter_runs(query, **conditions))

    async def list_runs(
        self, *, limit: int | None = None, start_after: str | OfRun | RunMetadata | None = None,
        reverse: bool = False, include_archived: bool = False, include_uncreated: bool = False,
    ) -> builtins.list[str]:
        result: builtins.list[str] = self._sync.list_runs(
            limit=limit, start_after=start_after, reverse=reverse, include_archived=include_archived,
            include_uncreated=include_uncreated,
        )
        return result

    async def get_child_runs(
        self, run_id: str | OfRun | None = None, *, limit: int | None = None,
        start_after: str | OfRun | RunMetadata | None = None, reverse: bool = False,
    ) -> builtins.list[RunMetadata]:
        result: builtins.list[RunMetadata] = self._sync.get_child_runs(
            run_id, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def get_stats(self) -> RunStats:
        result: RunStats = self._sync.get_stats()
        return result


@documented(Runs)
class AsyncRuns(AsyncRunReads):
    __slots__ = ()

    async def create_run(
        self, *, parent_run: str | OfRun | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, exist_ok: bool = False,
    ) -> RunMetadata:
        result: RunMetadata = await self._sync.create_run(
            parent_run=parent_run, tags=tags, metadata=metadata, exist_ok=exist_ok
        )
        return result

    async def update_status(self, status: RunStatus, *, error: str | None = None) -> RunMetadata:
        result: RunMetadata = await self._sync.update_status(status, error=error)
        return result

    async def complete_run(self) -> RunMetadata:
        result: RunMetadata = await self._sync.complete_run()
        return result

    async def fail_run(self, error: str) -> RunMetadata:
        result: RunMetadata = await self._sync.fail_run(error)
        return result

    async def cancel_run(self) -> RunMetadata:
        result: RunMetadata = await self._sync.cancel_run()
        return result

    async def pause_run(self) -> RunMetadata:
        result: RunMetadata = await self._sync.pause_run()
        return result

    async def resume_run(self) -> RunMetadata:
        result: RunMetadata = await self._sync.resume_run()
        return result

    async def archive_run(self) -> RunMetadata:
        result: RunMetadata = await self._sync.archive_run()
        return result

    async def add_tags(self, tags: Sequence[str]) -> RunMetadata:
        result: RunMetadata = await self._sync.add_tags(tags)
        return result

    async def update_metadata(self, metadata: Mapping[str, Any]) -> RunMetadata:
        result: RunMetadata = await self._sync.update_metadata(metadata)
        return result

    async def delete_run(self) -> DeletedRun:
        result: DeletedRun = await self._sync.delete_run()
        return result


@documented(RunRuns)
class AsyncRunRuns(AsyncRuns):
    __slots__ = ()

    async def wait(
        self, *, until: RunStatus | Iterable[RunStatus] = TERMINAL, timeout_s: float | None = None
    ) -> RunMetadata:
        result: RunMetadata = await self._sync.wait(until=until, timeout_s=timeout_s)
        return result

    async def claim(
        self, *, ttl_s: float | timedelta, holder: str | None = None, wait_s: float | timedelta | None = 0.0
    ) -> Lease:
        result: Lease = await self._sync.claim(ttl_s=ttl_s, holder=holder, wait_s=wait_s)
        return result

    async def stale(self, older_than_s: float | timedelta = 0) -> builtins.list[Lease]:
        result: builtins.list[Lease] = await self._sync.stale(older_than_s)
        return result

    async def fail_stale(
        self, *, error: str = "its owner has left", older_than_s: float | timedelta = 0
    ) -> builtins.list[str]:
        result: builtins.list[str] = await self._sync.fail_stale(error=error, older_than_s=older_than_s)
        return result


@documented(RunIndex)
class AsyncRunIndex(ByRun[AsyncRunRuns]):
    __slots__ = ("_sync",)

    KIND = "runs"

    def __init__(self, database: Host) -> None:
        super().__init__(database)
        self._sync: Any = RunIndex(database)

    update_status = by_run(AsyncRuns.update_status)
    complete_run = by_run(AsyncRuns.complete_run)
    fail_run = by_run(AsyncRuns.fail_run)
    cancel_run = by_run(AsyncRuns.cancel_run)
    pause_run = by_run(AsyncRuns.pause_run)
    resume_run = by_run(AsyncRuns.resume_run)
    archive_run = by_run(AsyncRuns.archive_run)
    add_tags = by_run(AsyncRuns.add_tags)
    update_metadata = by_run(AsyncRuns.update_metadata)
    delete_run = by_run(AsyncRuns.delete_run)
    wait = by_run(AsyncRunRuns.wait)
    claim = by_run(AsyncRunRuns.claim)

    async def create_run(
        self, *, run_id: str | OfRun | None = None, parent_run: str | OfRun | None = None,
        tags: Sequence[str] = (), metadata: Mapping[str, Any] | None = None, exist_ok: bool = False,
    ) -> RunMetadata:
        result: RunMetadata = await self._sync.create_run(
            run_id=run_id, parent_run=parent_run, tags=tags, metadata=metadata, exist_ok=exist_ok
        )
        return result

    async def create_run_with_options(self, options: CreateRunOptions) -> RunMetadata:
        result: RunMetadata = await self._sync.create_run_with_options(options)
        return result

    async def get_run(self, run_id: str | OfRun) -> RunMetadata | None:
        result: RunMetadata | None = await self._sync.get_run(run_id)
        return result

    async def get_child_runs(
        self, run_id: str | OfRun, *, limit: int | None = None,
        start_after: str | OfRun | RunMetadata | None = None, reverse: bool = False,
    ) -> builtins.list[RunMetadata]:
        result: builtins.list[RunMetadata] = await self._sync.get_child_runs(
            run_id, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def query_runs(
        self, query: RunQuery | None = None, **conditions: Any
    ) -> builtins.list[RunMetadata]:
        result: builtins.list[RunMetadata] = await self._sync.query_runs(query, **conditions)
        return result

    def iter_runs(self, query: RunQuery | None = None, **conditions: Any) -> AsyncIterator[RunMetadata]:
        result: AsyncIterator[RunMetadata] = self._sync.iter_runs(query, **conditions)
        return result

    async def list_runs(
        self, *, limit: int | None = None, start_after: str | OfRun | RunMetadata | None = None,
        reverse: bool = False, include_archived: bool = False, include_uncreated: bool = False,
    ) -> builtins.list[str]:
        result: builtins.list[str] = await self._sync.list_runs(
            limit=limit, start_after=start_after, reverse=reverse, include_archived=include_archived,
            include_uncreated=include_uncreated,
        )
        return result

    async def get_stats(self) -> RunStats:
        result: RunStats = await self._sync.get_stats()
        return result

    async def stale(self, older_than_s: float | timedelta = 0) -> builtins.list[Lease]:
        result: builtins.list[Lease] = await self._sync.stale(older_than_s)
        return result

    async def fail_stale(
        self, *, error: str = "its owner has left", older_than_s: float | timedelta = 0
    ) -> builtins.list[str]:
        result: builtins.list[str] = await self._sync.fail_stale(error=error, older_than_s=older_than_s)
        return result
