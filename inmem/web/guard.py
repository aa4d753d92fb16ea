"""Who may ask the page: a browser that came by the link, from this page alone.

Invariant: without the token nothing that is stored leaves, and no page of
another site can read or change anything. The token is in the link once; then
it is in a cookie that scripts cannot read and other sites do not send. `Host`
is checked against names that resolve elsewhere (DNS rebinding), `Origin` and
`Sec-Fetch-Site` against requests that other sites cause.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

NAMES: Final = ("127.0.0.1", "localhost")  # of the machine, to which the page answers
_HTTP: Final = 80  # the port that browsers do not name
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = [
    (b"content-security-policy", _POLICY.encode()),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_NO_TOKEN: Final = "Open the link that `inmem ui` has printed: nothing is shown without its token.\n"


class Guard:
    """Asks every request for its token and where it comes from, before the app sees it."""

    def __init__(self, app: App, token: str, port: int, once: str = "") -> None:
        """`once` opens the page too, for the first that comes with it."""
        self._app = app
        self._once = once
        self._token = token
        self._hosts = frozenset(name if port == _HTTP else f"{name}:{port}" for name in NAMES)
        self._cookie = f"inmem-ui-{port}"  # cookies do not tell ports from each other

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the page has no {scope['type']}")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope["method"], headers)
        if problem:
            await _answer(guarded, 403, f"{problem}\n")
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        if given and scope["method"] == "GET" and (self._is_token(given) or self._is_first(given)):
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(guarded, 303, "", [(b"location", _place(scope)), (b"set-cookie", cookie.encode())])
            return
        if not self._has_cookie(headers.get("cookie", "")):
            await _answer(guarded, 403, _NO_TOKEN)
            return
        await self._app(scope, receive, guarded)

    def _problem(self, method: str, headers: dict[str, str]) -> str:
        host = headers.get("host", "")
        if host not in self._hosts:
            return f"This page answers to {' and '.join(sorted(self._hosts))} only."
        origin = headers.get("origin")
        if origin is not None and origin.removeprefix("http://") != host:
            return "Requests of other pages are refused."
        if origin is None and method not in ("GET", "HEAD"):
            return "Changes come from the page only, with its Origin."
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "Requests of other sites are refused. Put the link of `inmem ui` into the address bar."
        return ""

    def _has_cookie(self, header: str) -> bool:
        """Whether the token is in a header `Cookie`, with whatever other programs of this machine set."""
        named = (pair.strip().partition("=") for pair in header.split(";"))
        return any(name == self._cookie and self._is_token(value) for name, _, value in named)

    def _is_first(self, given: str) -> bool:
        is_right = bool(self._once) and hmac.compare_digest(given.encode(), self._once.encode())
        if is_right:
            self._once = ""
        return is_right

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _place(scope: Message) -> bytes:
    """The same address without the token; always one of this page."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return b"/" + path.lstrip(b"/\\")  # browsers take both for the same


async def _answer(
    send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = text.encode()
    length = (b"content-length", str(len(body)).encode())
    start = [(b"content-type", b"text/plain; charset=utf-8"), length, *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
