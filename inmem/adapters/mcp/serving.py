"""A store served to clients of the Model Context Protocol: over standard input and output, or HTTP.

Over HTTP whoever reaches the port has what the server's user has. So it listens on this machine alone,
and refuses requests that a browser sends for another site. A token keeps other users of the machine out.
"""

from __future__ import annotations

import asyncio
import hmac
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

import inmem

PATH: Final = "/mcp"
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
MIN_TOKEN_CHARS: Final = 16


async def serve_stdio(server: MCPServer[Any]) -> int:
    """Serve one client over standard input and output; 0 once it has left, or the signal that came first.

    After a signal the process has to leave by `os._exit`: a thread of the SDK still reads standard input,
    and Python would wait for it until the client has left.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def tell(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, tell, int(number))
    serving = asyncio.create_task(server.run_stdio_async())
    either: set[asyncio.Future[Any]] = {serving, told}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
        return 0
    return told.result()


class TokenGate:
    """Lets requests pass that have the token. Invariant: the answer takes as long whatever is wrong in it."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._wanted):
                refused = PlainTextResponse(
                    "A token is needed", status_code=401, headers={"WWW-Authenticate": "Bearer"}
                )
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


class QuietServer(uvicorn.Server):
    """Tells when it serves, and where."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As its base does."""
        await super().startup(sockets)
        self._tell()


async def serve_http(
    server: MCPServer[Any], *, host: str = "127.0.0.1", port: int = 8765, token: str | None = None,
    allowed_hosts: Sequence[str] = (), ready: Callable[[str], None] | None = None,
) -> None:
    """Serve over streamable HTTP until a signal ends it; `ready` is called with the URL once it serves.

    With `port` 0 the system chooses one. Requests must name this machine, or one of `allowed_hosts`, in
    their `Host` and, if a browser sent them, in their `Origin`. With a `token` each request must have it as
    `Authorization: Bearer`.

    Raises:
        InvalidInputError: the host is not of this machine alone, and there is no token or no allowed
            host; or the token is too short; or the port cannot be used.
    """
    if type(port) is not int or not 0 <= port <= 65535:
        raise inmem.InvalidInputError(f"port must be 0 to 65535, not {port!r:.40}", argument="port")
    if token is not None and (len(token) < MIN_TOKEN_CHARS or not token.isascii()):
        raise inmem.InvalidInputError(
            f"token must be ASCII of {MIN_TOKEN_CHARS} characters at least", argument="token"
        )
    if host not in LOOPBACK and (token is None or not allowed_hosts):
        raise inmem.InvalidInputError(
            f"on {host} other machines could reach the store", argument="host",
            hint="Set a token (INMEM_MCP_TOKEN), and name with --allow-host how they call this machine.",
        )
    names = ["127.0.0.1", "localhost", "[::1]", *allowed_hosts]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[each for name in names for each in (name, f"{name}:*")],
        allowed_origins=[
            f"{scheme}://{each}" for scheme in ("http", "https") for name in names
            for each in (name, f"{name}:*")
        ],
    )  # fmt: skip
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=PATH, host=host, transport_security=security
    )
    if token is not None:
        app = TokenGate(app, token)
    with _listening(host, port) as listener:
        where = f"[{host}]" if ":" in host else host
        url = f"http://{where}:{listener.getsockname()[1]}{PATH}"
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="on"
        )
        told = ready or _nothing
        await QuietServer(config, lambda: told(url)).serve(sockets=[listener])


def _nothing(_: str) -> None:
    """Nobody wants to know."""


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise inmem.InvalidInputError(
            f"{host} port {port} cannot be used: {error.strerror or error}", argument="port"
        ) from error
