"""The server of a store: its tools and resources, put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import mcp_types
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.server.subscriptions import InMemorySubscriptionBus
from pydantic import AnyUrl

import inmem
import inmem.aio
from inmem.adapters.mcp import pages
from inmem.adapters.mcp.arguments import text_of, tools_of
from inmem.adapters.mcp.reading import ReadingTools, scope_of
from inmem.adapters.mcp.resources import KINDS, MIME_TYPE, ROOT, resource_at, uri_of
from inmem.adapters.mcp.subscriptions import SubscriptionMiddleware
from inmem.adapters.mcp.working import WorkingTools
from inmem.adapters.mcp.writing import WritingTools

_LISTED: Final = 100  # runs among the resources; the others are in what `inmem://runs` shows

_ABOUT: Final = (
    "inmem is a store that agents share. A run is one task of an agent. Each run has entries (keys with "
    "values), an event log, cells (values changed by comparing a version), traces (what was done and why), "
    "queues of jobs, and leases. Begin with store_info or runs_list. Long answers come in pages: pass "
    "next_cursor on as cursor. "
)
_READ_ONLY: Final = "This server only reads."
_WRITES: Final = "This server may change the store. Each call that changes something is one commit."


def mcp_server(db: inmem.aio.AsyncDatabase, *, write: bool = False) -> MCPServer[Any]:
    """A server of the Model Context Protocol for a store: for `run_stdio_async()`, or as an ASGI application.

    It has tools that read, resources for each run, and subscriptions to them. With `write` it also has the
    tools that change the store. It uses the handle in its event loop, and does not close it. Each
    tool call is one transaction. Cost: that of what is read, and about 1 ms for the protocol.

    >>> import asyncio, inmem.aio
    >>> from inmem.adapters.mcp import mcp_server
    >>> async def main():
    ...     async with inmem.aio.open() as db:
    ...         return [tool.name for tool in await mcp_server(db).list_tools()]
    >>> asyncio.run(main())[:3]
    ['store_info', 'runs_list', 'runs_ids']

    Raises:
        InvalidInputError: `db` is no handle of `inmem.aio`.
    """
    if not isinstance(db, inmem.aio.AsyncDatabase):
        raise inmem.InvalidInputError(
            f"db must be an AsyncDatabase, not {type(db).__name__}", argument="db",
            hint="Open it with `async with inmem.aio.open(path) as db`.",
        )
    return StoreServer(db, write=write)


class StoreServer(MCPServer[Any]):
    """An `MCPServer` whose tools and resources are those of a store."""

    def __init__(self, db: inmem.aio.AsyncDatabase, *, write: bool) -> None:
        tools = tools_of(ReadingTools(db, can_write=write))
        if write:
            tools += tools_of(WritingTools(db)) + tools_of(WorkingTools(db))
        bus = InMemorySubscriptionBus()
        super().__init__(
            "inmem", title="inmem: what agents share", version=inmem.__version__, tools=tools,
            instructions=_ABOUT + (_WRITES if write else _READ_ONLY), subscriptions=bus,
            middleware=[SubscriptionMiddleware(db, bus)], log_level="WARNING",
        )
        self._db = db
        self.completion()(self._complete)  # type: ignore[no-untyped-call]

    async def _complete(
        self, ref: mcp_types.PromptReference | mcp_types.ResourceTemplateReference,
        argument: mcp_types.CompletionArgument, context: mcp_types.CompletionContext | None,
    ) -> mcp_types.Completion:
        """Ids of runs that begin with what was typed, for the resources of a run."""
        if not isinstance(ref, mcp_types.ResourceTemplateReference) or argument.name != "run":
            return mcp_types.Completion(values=[])
        found = await scope_of(self._db, "@agent").transact(
            lambda view: pages.run_ids_with(view, argument.value, _LISTED)
        )
        return mcp_types.Completion(values=found.runs, has_more=found.next_cursor is not None)

    async def list_resources(self) -> list[mcp_types.Resource]:
        """All runs as one resource, then the newest ones."""
        found = await scope_of(self._db, "@agent").transact(
            lambda view: pages.runs(view, limit=_LISTED, reverse=True)
        )
        every = mcp_types.Resource(
            uri=ROOT, name="runs", title="All runs", description="All runs, the newest first.",
            mime_type=MIME_TYPE,
        )
        return [every] + [
            mcp_types.Resource(
                uri=uri_of(run.run), name=run.run, title=f"Run {run.run}, {run.status}", mime_type=MIME_TYPE
            )
            for run in found.runs
        ]

    async def list_resource_templates(self) -> list[mcp_types.ResourceTemplate]:
        """What the URIs of resources look like."""
        return [
            mcp_types.ResourceTemplate(
                uri_template=str(kind.template), name=kind.name, description=kind.description,
                mime_type=MIME_TYPE,
            )
            for kind in KINDS
        ]

    async def read_resource(
        self, uri: AnyUrl | str, context: object = None
    ) -> Iterable[ReadResourceContents]:
        """What a resource shows now, as JSON.

        Raises:
            ResourceNotFoundError: it is not there.
            ResourceError: it cannot be read.
        """
        try:
            found = resource_at(self._db, str(uri))
            if found is None:
                raise ResourceNotFoundError(f"Unknown resource: {str(uri)[:200]}")
            return [ReadResourceContents(content=await found.read(), mime_type=MIME_TYPE)]
        except (inmem.NotFoundError, inmem.InvalidInputError, inmem.RunDeletedError) as error:
            raise ResourceNotFoundError(text_of(error)) from error
        except inmem.InmemError as error:
            raise ResourceError(text_of(error)) from error
