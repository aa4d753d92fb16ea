"""Who subscribes to resources is told when they change, by the store's own waiting.

Clients of 2025 call `resources/subscribe` and `resources/unsubscribe`. Those of 2026 hold a request
`subscriptions/listen` open. `MCPServer` serves the second only, and has no events of its own. So this
stands before it as middleware: it serves the first, and watches what either names.

Invariant: a subscription that was confirmed misses no change: what the resource shows is read before. One
task watches a resource, however many have subscribed, and ends with the last of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from hashlib import blake2b
from typing import Any, Final

from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated, ServerEvent
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, SubscribeRequestParams, SubscriptionsListenRequestParams
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError

import inmem
import inmem.aio
from inmem.adapters.mcp.arguments import text_of
from inmem.adapters.mcp.pages import View
from inmem.adapters.mcp.resources import StoreResource, resource_at

MAX_WATCHED: Final = 256  # resources of one server
_REST_S: Final = 0.1  # after a change: those that come meanwhile are told as one
_KEY: Final = "inmem.subscriptions"  # of what a connection has subscribed to
_CONNECTION: Final = "_connection"  # of a session: the SDK has no public name for what ends with the client

_OF_2025: Final = ("resources/subscribe", "resources/unsubscribe")

_log = logging.getLogger(__name__)


class ResourceWatches:
    """The resources that somebody has subscribed to."""

    def __init__(self, db: inmem.aio.AsyncDatabase, bus: InMemorySubscriptionBus) -> None:
        self._db = db
        self._bus = bus
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._counts: dict[str, int] = {}

    async def add(self, uri: str) -> None:
        """Watch a resource until `drop` was called as often.

        Raises:
            MCPError: it is no resource of this store, or there are too many.
        """
        found = resource_or_refuse(self._db, uri)
        if uri not in self._counts and len(self._counts) >= MAX_WATCHED:
            raise MCPError(INVALID_PARAMS, f"{MAX_WATCHED} resources are watched already, the limit")
        self._counts[uri] = self._counts.get(uri, 0) + 1
        try:
            if not self._is_watched(uri):
                first = await found.scope.wait(lambda view: (_digest(found, view),))
                if not self._is_watched(uri):  # nobody else has begun meanwhile
                    self._tasks[uri] = asyncio.create_task(self._watch(found, first[0]))
        except inmem.InmemError as error:
            self.drop(uri)
            raise MCPError(INVALID_PARAMS, text_of(error), {"uri": uri}) from error
        except BaseException:
            self.drop(uri)
            raise

    def _is_watched(self, uri: str) -> bool:
        return uri in self._tasks and not self._tasks[uri].done()  # one that has failed is begun anew

    def drop(self, uri: str) -> None:
        """One of those who have subscribed goes."""
        self._counts[uri] -= 1
        if not self._counts[uri]:
            del self._counts[uri]
            task = self._tasks.pop(uri, None)
            if task is not None:
                task.cancel()

    async def _watch(self, resource: StoreResource, seen: bytes) -> None:
        def changed(view: View) -> tuple[bytes] | None:
            digest = _digest(resource, view)
            return None if digest == seen else (digest,)

        while True:
            try:
                seen = (await resource.scope.wait(changed))[0]
            except inmem.InmemError as error:  # a deleted run shows that when it is read
                _log.info("%s is not watched any more: %s", resource.uri, error)
                await self._bus.publish(ResourceUpdated(uri=resource.uri))
                return
            await self._bus.publish(ResourceUpdated(uri=resource.uri))
            await asyncio.sleep(_REST_S)


def _digest(resource: StoreResource, view: View) -> bytes:
    """What a resource shows, or why it shows nothing: that may change too."""
    try:
        text = resource.text(view)
    except inmem.NotFoundError as error:
        text = error.code
    return blake2b(text.encode(), digest_size=16).digest()


def resource_or_refuse(db: inmem.aio.AsyncDatabase, uri: str) -> StoreResource:
    """The resource that a URI names.

    Raises:
        MCPError: there is none.
    """
    try:
        found = resource_at(db, uri)
    except inmem.InmemError as error:
        raise MCPError(INVALID_PARAMS, text_of(error), {"uri": uri}) from error
    if found is None:
        raise MCPError(INVALID_PARAMS, f"Unknown resource: {uri[:200]}", {"uri": uri[:200]})
    return found


class _Subscribed:
    """What one connection of a client of 2025 has subscribed to."""

    def __init__(self, watches: ResourceWatches, notify: Callable[[str], Awaitable[None]]) -> None:
        self._watches = watches
        self._notify = notify
        self._uris: set[str] = set()
        self._waiting: set[str] = set()  # of updates that are to be sent
        self._has_some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def add(self, uri: str) -> None:
        if uri not in self._uris:
            await self._watches.add(uri)
            if uri in self._uris:  # two requests for one at the same time
                self._watches.drop(uri)
            self._uris.add(uri)
            if self._task is None:
                self._task = asyncio.create_task(self._send())

    def discard(self, uri: str) -> None:
        if uri in self._uris:
            self._uris.remove(uri)
            self._watches.drop(uri)

    def close(self) -> None:
        for uri in [*self._uris]:
            self.discard(uri)
        if self._task is not None:
            self._task.cancel()

    def heard(self, event: ServerEvent) -> None:
        """Something has changed. One who reads slowly is told once of several changes."""
        if isinstance(event, ResourceUpdated) and event.uri in self._uris:
            self._waiting.add(event.uri)
            self._has_some.set()

    async def _send(self) -> None:
        while True:
            await self._has_some.wait()
            self._has_some.clear()
            while self._waiting:
                await self._notify(self._waiting.pop())


class SubscriptionMiddleware:
    """Serves subscriptions in front of an `MCPServer` with the same bus."""

    def __init__(self, db: inmem.aio.AsyncDatabase, bus: InMemorySubscriptionBus) -> None:
        self._bus = bus
        self._watches = ResourceWatches(db, bus)

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Serve a request that is about subscriptions; let others pass."""
        if ctx.request_id is None:
            return await call_next(ctx)
        if ctx.method == "subscriptions/listen":
            return await self._listen(ctx, call_next)
        if ctx.method in _OF_2025 and ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            await self._subscribe(ctx, is_new=ctx.method == _OF_2025[0])
            return {}
        result = await call_next(ctx)
        if ctx.method == "initialize" and isinstance(result, dict):
            result["capabilities"].setdefault("resources", {})["subscribe"] = True
        return result

    async def _listen(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        try:
            wanted = SubscriptionsListenRequestParams.model_validate(ctx.params or {}, by_name=False)
        except ValidationError:
            return await call_next(ctx)  # which refuses it
        async with AsyncExitStack() as stack:
            for uri in dict.fromkeys(wanted.notifications.resource_subscriptions or ()):
                await self._watches.add(uri)
                stack.callback(self._watches.drop, uri)
            return await call_next(ctx)

    async def _subscribe(self, ctx: ServerRequestContext[Any, Any], *, is_new: bool) -> None:
        try:
            uri = SubscribeRequestParams.model_validate(ctx.params or {}, by_name=False).uri
        except ValidationError:
            raise MCPError(INVALID_PARAMS, "uri must be given, and a text") from None
        connection: Connection = getattr(ctx.session, _CONNECTION)
        subscribed: _Subscribed | None = connection.state.get(_KEY)
        if subscribed is None:
            if not is_new:
                return
            subscribed = _Subscribed(self._watches, connection.send_resource_updated)
            connection.state[_KEY] = subscribed
            connection.exit_stack.callback(subscribed.close)
            connection.exit_stack.callback(self._bus.subscribe(subscribed.heard))
        if is_new:
            await subscribed.add(str(uri))
        else:
            subscribed.discard(str(uri))
