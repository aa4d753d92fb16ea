"""The tools that read. They change nothing, and work while no writer runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field

import inmem
import inmem.aio
from inmem.adapters.mcp import pages
from inmem.adapters.mcp.arguments import (
    MAX_WAIT_S,
    Cursor,
    Limit,
    NewestFirst,
    Offset,
    Prefix,
    Run,
    chosen,
    is_tool,
)
from inmem.adapters.mcp.pages import LIMIT, View
from inmem.adapters.mcp.shown import (
    CellPage,
    CellShown,
    EntryPage,
    EntryShown,
    EventPage,
    EventShown,
    JobPage,
    JobShown,
    LeasePage,
    QueuePage,
    RunContents,
    RunIdPage,
    RunPage,
    RunShown,
    TracePage,
    TraceShown,
)

T = TypeVar("T")

RunState = Literal["active", "paused", "completed", "failed", "cancelled", "archived"]
Queue = Annotated[str, Field(description="The queue's name.")]


class StoreShown(BaseModel):
    """The store that this server serves."""

    namespace: str = Field(description="tenant/app/agent: all runs that this server sees are in it.")
    can_write: bool = Field(description="Whether this server has tools that change the store.")
    runs: int
    runs_by_status: dict[str, int]


class ReadingTools:
    """The tools that read a store."""

    def __init__(self, db: inmem.aio.AsyncDatabase, *, can_write: bool) -> None:
        self._db = db
        self._can_write = can_write

    async def _read(self, run: str, read: Callable[[View], T]) -> T:
        return await scope_of(self._db, run).transact(read)

    @is_tool("Describe the store")
    async def store_info(self) -> StoreShown:
        """Describe this store: where you are, how many runs there are, and whether you may change anything.

        The store keeps what agents share. A run is one task of an agent. Each run has:
        entries (keys with values), events (a log that only grows), cells (values that are changed by
        comparing a version), traces (what an agent did and why), queues of jobs, and leases (who owns what).
        Begin with runs_list, then runs_get.
        """
        stats = await self._db.runs.get_stats()
        by_status = {str(status.value): count for status, count in stats.by_status.items()}
        return StoreShown(
            namespace=str(self._db.namespace), can_write=self._can_write, runs=stats.total,
            runs_by_status=by_status,
        )

    @is_tool("List runs")
    async def runs_list(
        self,
        status: Annotated[RunState | None, Field(description="Only runs with this status.")] = None,
        tag: Annotated[str | None, Field(description="Only runs that have this tag.")] = None,
        parent_run: Annotated[str | None, Field(description="Only runs that were begun by this run.")] = None,
        include_archived: Annotated[bool, Field(description="Archived runs too.")] = False,
        newest_first: NewestFirst = True,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
    ) -> RunPage:
        """List runs with their status, tags and metadata, the newest first.

        Runs that hold data but were never created are not among them: runs_ids lists those too.
        """
        conditions: dict[str, Any] = chosen(
            status=None if status is None else inmem.RunStatus(status), parent_run=parent_run,
            tags=None if tag is None else [tag], include_archived=include_archived, reverse=newest_first,
        )
        return await self._read("@agent", lambda view: pages.runs(view, cursor, limit, **conditions))

    @is_tool("List run ids")
    async def runs_ids(self, cursor: Cursor = None, limit: Limit = LIMIT) -> RunIdPage:
        """List the ids of all runs in order: also of archived ones, and of those that were never created."""
        return await self._read("@agent", lambda view: pages.run_ids(view, cursor, limit))

    @is_tool("Look at a run")
    async def runs_get(self, run: Run, offset: Offset = 0) -> RunContents:
        """Show a run's record, and what it contains: how many events, the names of keys, cells and queues."""
        return await self._read(run, lambda view: pages.run(view, run, offset))

    @is_tool("Wait for a run to end")
    async def runs_wait(
        self,
        run: Run,
        timeout_s: Annotated[
            float, Field(gt=0, le=MAX_WAIT_S, description="Give up after so many seconds.")
        ] = 30.0,
    ) -> RunShown:
        """Wait until a run is completed, failed, cancelled or archived, and show its record.

        If it does not end in time the call fails with the code wait_timeout. Then call it again.
        """
        return RunShown.of(await scope_of(self._db, run).runs.wait(timeout_s=timeout_s))

    @is_tool("List keys with values")
    async def kv_list(
        self, run: Run, prefix: Prefix = None, cursor: Cursor = None, limit: Limit = LIMIT
    ) -> EntryPage:
        """List the keys of a run with their values, in order."""
        return await self._read(run, lambda view: pages.entries(view, prefix, cursor, limit))

    @is_tool("Read a key")
    async def kv_get(
        self, run: Run, key: Annotated[str, Field(description="The key.")], offset: Offset = 0
    ) -> EntryShown:
        """Read the value under a key of a run. It fails with the code not_found if there is none."""
        return await self._read(run, lambda view: pages.entry(view, key, offset))

    @is_tool("Wait for a key to change")
    async def kv_wait(
        self,
        run: Run,
        key: Annotated[str, Field(description="The key.")],
        after: Annotated[
            int | None, Field(description="The version that you have seen; none if there was no such key.")
        ] = None,
        timeout_s: Annotated[
            float, Field(gt=0, le=MAX_WAIT_S, description="Give up after so many seconds.")
        ] = 30.0,
    ) -> EntryShown:
        """Wait until a key has another version than `after`, and show its value.

        A change that came before the call counts, so none is missed. If the key was removed the call fails
        with the code not_found, if nothing changes in time with wait_timeout.
        """
        found = await scope_of(self._db, run).kv.wait(key, after=after, timeout_s=timeout_s)
        if found is None:
            problem = f"the run has no key {key!r} any more"
            raise inmem.NotFoundError(problem, hint="It was removed, or expired.")
        return EntryShown.of(key, found)

    @is_tool("List events")
    async def events_list(
        self,
        run: Run,
        event_type: Annotated[str | None, Field(description="Only events of this type.")] = None,
        newest_first: NewestFirst = False,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
    ) -> EventPage:
        """List the events of a run's log in the order in which they were appended, or the last ones first."""
        return await self._read(
            run, lambda view: pages.events(view, event_type, newest_first, cursor, limit)
        )

    @is_tool("Read an event")
    async def events_get(
        self,
        run: Run,
        sequence: Annotated[int, Field(ge=0, lt=1 << 62, description="Its place in the log, from 0 on.")],
        offset: Offset = 0,
    ) -> EventShown:
        """Read one event of a run's log."""
        return await self._read(run, lambda view: pages.event(view, sequence, offset))

    @is_tool("List cells")
    async def cells_list(
        self, run: Run, prefix: Prefix = None, cursor: Cursor = None, limit: Limit = LIMIT
    ) -> CellPage:
        """List the cells of a run with their values and versions."""
        return await self._read(run, lambda view: pages.cells(view, prefix, cursor, limit))

    @is_tool("Read a cell")
    async def cells_get(
        self, run: Run, name: Annotated[str, Field(description="The cell's name.")], offset: Offset = 0
    ) -> CellShown:
        """Read the value and version of a cell."""
        return await self._read(run, lambda view: pages.cell(view, name, offset))

    @is_tool("List traces")
    async def traces_list(
        self,
        run: Run,
        type: Annotated[
            str | None, Field(description="ToolCall, Decision, Query, Thought, Error, or a type of its own.")
        ] = None,
        tag: Annotated[str | None, Field(description="Only traces with this tag.")] = None,
        parent_id: Annotated[str | None, Field(description="Only those directly below this trace.")] = None,
        newest_first: NewestFirst = False,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
    ) -> TracePage:
        """List the traces of a run in order of time: what the agent did, decided and thought.

        Give at most one of `type`, `tag` and `parent_id`. A page ends early if its traces are long.
        """
        return await self._read(
            run, lambda view: pages.traces(view, type, tag, parent_id, newest_first, cursor, limit)
        )

    @is_tool("Read a trace")
    async def traces_get(
        self, run: Run, id: Annotated[str, Field(description="The trace's id.")], offset: Offset = 0
    ) -> TraceShown:
        """Read one trace of a run."""
        return await self._read(run, lambda view: pages.trace(view, id, offset))

    @is_tool("List queues")
    async def queues_list(self, run: Run, cursor: Cursor = None, limit: Limit = LIMIT) -> QueuePage:
        """List the queues of a run, with how many jobs are ready, delayed, claimed and dead."""
        return await self._read(run, lambda view: pages.queues(view, cursor, limit))

    @is_tool("List jobs of a queue")
    async def queues_jobs(
        self,
        run: Run,
        queue: Queue,
        state: Annotated[
            Literal["ready", "dead"], Field(description="ready: taken next; dead: all attempts have failed.")
        ] = "ready",
        cursor: Cursor = None,
        limit: Limit = LIMIT,
    ) -> JobPage:
        """Show the jobs of a queue without taking them."""
        return await self._read(run, lambda view: pages.jobs(view, queue, state, cursor, limit))

    @is_tool("Read a job")
    async def queues_job(
        self, run: Run, id: Annotated[str, Field(description="The job's id.")], offset: Offset = 0
    ) -> JobShown:
        """Read one job: its state, payload, errors and result."""
        return await self._read(run, lambda view: pages.job(view, id, offset))

    @is_tool("List leases")
    async def leases_list(
        self, run: Run, prefix: Prefix = None, cursor: Cursor = None, limit: Limit = LIMIT
    ) -> LeasePage:
        """List the leases of a run: who owns what, and until when."""
        return await self._read(run, lambda view: pages.leases(view, prefix, cursor, limit))


def scope_of(db: inmem.aio.AsyncDatabase, run: str) -> inmem.aio.AsyncRunScope:
    """A run, or what runs share.

    Raises:
        InvalidInputError: it is no id of a run.
    """
    return db.shared(run[1:]) if run.startswith("@") else db.run(run)
