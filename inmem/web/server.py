"""The page's server: a Starlette app over one store, and the socket that it is served at.

Invariant: it listens on 127.0.0.1 alone, and `Guard` sees every request first.
Reads are made in threads, since a page may be large; the loop waits for commits.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from inmem.aio import AsyncDatabase
from inmem.aio import open as open_waiting
from inmem.cli.top import rates
from inmem.database import Database, Status
from inmem.errors import InmemError, InvalidInputError, NotFoundError
from inmem.web.changes import NewestWords, tell_changes
from inmem.web.guard import NAMES, Guard, Message, Receive, Send
from inmem.web.reader import MOST, PageReader
from inmem.web.writing import change

PORT: Final = 8477  # unless it is taken
_STREAMS: Final = 64  # pages that are told of commits at once
_MAX_BODY: Final = 16 * 1024 * 1024
_SAMPLE_S: Final = 1.0
_LEAVE_S: Final = 2  # in which requests may end when the server stops
_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_ASSETS: Final = files("inmem.web").joinpath("assets")


def assets() -> dict[str, tuple[bytes, str]]:
    """The files of the page by name, with their types."""
    return {
        each.name: (each.read_bytes(), f"{_TYPES[each.name.rpartition('.')[2]]}; charset=utf-8")
        for each in _ASSETS.iterdir()
        if each.name.rpartition(".")[2] in _TYPES
    }


class WebPage:
    """The app over one store. `token` is what a request has to have; see `Guard`."""

    def __init__(
        self, database: Database, *, may_write: bool, port: int, token: str, place: str | None = None,
        once: str = "",
    ) -> None:
        """`place` is what opens the same store once more: its name has no password of a URL."""
        self._db = database
        self._place = database.name if place is None else place
        self._may_write = may_write
        self._reader = PageReader(database, may_write)
        self._assets = assets()
        self._waiting: AsyncDatabase | None = None
        self._closing = asyncio.Event()
        self._streams = 0
        routes = [
            Route("/", self._index), Route("/run/{rest:path}", self._index),
            Route("/assets/{name}", self._asset),
            Route("/api/stream", self._stream),
            Route("/api/do", self._do, methods=["POST"]),
            *[Route(f"/api/{name}", self._read(read)) for name, read in self._reads().items()],
        ]
        app = Starlette(routes=routes, lifespan=self._lifespan)
        self.app = Guard(app, token, port, once)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        space = self._db.namespace
        opened = open_waiting(self._place, tenant=space.tenant, app=space.app, agent=space.agent)
        async with opened as db:
            self._waiting = db
            yield
            self._closing.set()

    def leave(self) -> None:
        """End the streams: a server that stops waits for them."""
        self._closing.set()

    # --- files --------------------------------------------------------------------------

    async def _index(self, _: Request) -> Response:
        data, kind = self._assets["index.html"]
        return Response(data, media_type=kind)

    async def _asset(self, request: Request) -> Response:
        found = self._assets.get(request.path_params["name"])
        return Response("not found", 404) if found is None else Response(found[0], media_type=found[1])

    # --- documents ----------------------------------------------------------------------

    def _reads(self) -> dict[str, Callable[[Mapping[str, str]], Any]]:
        reader = self._reader
        return {
            "store": lambda _: reader.store() | {"stats": reader.stats()},
            "runs": lambda q: reader.runs(
                words=_text(q, "words"), status=_text(q, "status"), tag=_text(q, "tag"),
                parent=_text(q, "parent"), after=_text(q, "after"), limit=_number(q, "limit", 200, MOST),
            ) | {"stats": reader.stats()},
            "run": lambda q: reader.run(_text(q, "run")),
            "events": lambda q: reader.events(
                _text(q, "run"), start=_number(q, "start", 0), limit=_number(q, "limit", 500, MOST),
                words=_text(q, "words"),
            ),
            "event": lambda q: reader.event(_text(q, "run"), _number(q, "sequence", 0)),
            "traces": lambda q: reader.traces(
                _text(q, "run"), after=_text(q, "after"), limit=_number(q, "limit", MOST, MOST)
            ),
            "trace": lambda q: reader.trace(_text(q, "run"), _text(q, "id")),
            "kv": lambda q: reader.entries(
                _text(q, "run"), prefix=_text(q, "prefix"), after=_text(q, "after"),
                limit=_number(q, "limit", 200, MOST),
            ),
            "entry": lambda q: reader.entry(_text(q, "run"), _text(q, "key")),
            "cells": lambda q: reader.cells(
                _text(q, "run"), after=_text(q, "after"), limit=_number(q, "limit", 200, MOST)
            ),
            "cell": lambda q: reader.cell(_text(q, "run"), _text(q, "name")),
            "leases": lambda q: reader.leases(_text(q, "run")),
            "queues": lambda q: reader.queues(_text(q, "run")),
            "jobs": lambda q: reader.jobs(_text(q, "run"), _text(q, "queue"), _text(q, "state")),
        }

    def _read(self, read: Callable[[Mapping[str, str]], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            return await _answered(lambda: read(request.query_params))

        return answer

    async def _do(self, request: Request) -> Response:
        if not self._may_write:
            return JSONResponse({"error": "this page only looks: inmem ui --write"}, 403)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BODY:
                return JSONResponse({"error": f"at most {_MAX_BODY:,} bytes"}, 413)
        try:
            given = json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            return JSONResponse({"error": f"no JSON: {error}"}, 400)

        def done() -> dict[str, Any]:
            change(self._db, given)
            return {}

        return await _answered(done)

    # --- what happens -------------------------------------------------------------------

    async def _stream(self, request: Request) -> Response:
        if self._streams >= _STREAMS:
            return JSONResponse({"error": f"{_STREAMS} pages are open already"}, 503)
        self._streams += 1  # before anything is waited for: requests that come together are counted
        return _ToldStream(self._tell(request.query_params.get("run")), self._has_ended)

    def _has_ended(self) -> None:
        self._streams -= 1

    async def _tell(self, run: str | None) -> AsyncIterator[bytes]:
        waiting = self._waiting
        assert waiting is not None  # requests come after the start
        told = NewestWords()
        works = (self._sample(told), tell_changes(waiting, run, told), self._close(told))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            while True:
                name, data = await told.take()
                yield f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
                if name == "bye":
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self, told: NewestWords) -> None:
        await self._closing.wait()
        told.put("bye", "the page's server has ended")

    async def _sample(self, told: NewestWords) -> None:
        """The writer's counters are no stored thing that could be waited for: they are asked for."""
        before: tuple[Status, float] | None = None
        loop = asyncio.get_running_loop()
        while True:
            try:
                status = await run_in_threadpool(self._reader.status)
                now = loop.time()
                rate = rates(before[0], status, now - before[1]) if before else None
                before = (status, now)
                document = asdict(status) | {"hot": dict(status.hot)}
                told.put("status", {"status": document, "rates": rate and asdict(rate)})
            except InmemError as error:
                before = None
                told.put("status", {"problem": error.message})
            await asyncio.sleep(_SAMPLE_S)


class _ToldStream(StreamingResponse):
    """What is told as it happens, and what is to be called when nobody listens any more."""

    def __init__(self, body: AsyncIterator[bytes], has_ended: Callable[[], None]) -> None:
        super().__init__(body, media_type="text/event-stream")
        self._has_ended = has_ended

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._has_ended()


async def _answered(work: Callable[[], Any]) -> Response:
    try:
        return JSONResponse(await run_in_threadpool(work))
    except NotFoundError as error:
        return JSONResponse({"error": error.message}, 404)
    except InvalidInputError as error:
        return JSONResponse({"error": error.message}, 400)
    except InmemError as error:
        return JSONResponse({"error": error.message, "code": error.code}, 409)


def _text(given: Mapping[str, str], name: str) -> str:
    return given.get(name, "")


def _number(given: Mapping[str, str], name: str, default: int, most: int = (1 << 63) - 1) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise InvalidInputError(f"{name} must be a number from 0 to {most:,}", argument=name)
    return int(text)


# --- the socket ---------------------------------------------------------------------------------


def listening(port: int | None) -> socket.socket:
    """A socket on 127.0.0.1; without a port, on the usual one or else any that is free.

    Raises:
        InvalidInputError: the port is taken.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            found.bind((NAMES[0], PORT if port is None else port))
        except OSError as error:
            if port is not None:
                problem = f"port {port} cannot be used: {error.strerror}"
                hint = "Leave --port out: any is taken."
                raise InvalidInputError(problem, argument="port", hint=hint) from None
            found.bind((NAMES[0], 0))
        found.listen(128)
    except BaseException:
        found.close()
        raise
    return found


class _Served(uvicorn.Server):
    """A server that ends the streams of its page when it is asked to stop."""

    def __init__(self, config: uvicorn.Config, page: WebPage) -> None:
        super().__init__(config)
        self._page = page

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._page.leave()
        await super().shutdown(sockets)


def link_of(sock: socket.socket, token: str, place: str = "/") -> str:
    """The link of the page at a socket, or of a place in it."""
    return f"http://{NAMES[0]}:{sock.getsockname()[1]}{place}?token={token}"


def new_token() -> str:
    """What nobody can guess: 24 random bytes."""
    return secrets.token_urlsafe(24)


def serve(
    database: Database, sock: socket.socket, token: str, *, may_write: bool, place: str | None = None,
    once: str = "",
) -> None:
    """Serve the page until SIGINT or SIGTERM. See `WebPage`."""

    async def main() -> None:
        port = sock.getsockname()[1]
        page = WebPage(
            database, may_write=may_write, port=port, token=token, place=place, once=once
        )
        config = uvicorn.Config(
            page.app, log_level="warning", access_log=False, server_header=False, date_header=False,
            timeout_graceful_shutdown=_LEAVE_S, http="h11", ws="none", lifespan="on", proxy_headers=False,
        )
        await _Served(config, page).serve(sockets=[sock])

    asyncio.run(main())
