"""FastMCP keeps answers of tools and clients of OAuth in a store: another program finds them there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from homes import Fresh

import inmem.aio

pytest.importorskip("key_value.aio", reason="the extra `key_value` is not installed")
pytest.importorskip("fastmcp", reason="FastMCP is not installed")

from fastmcp import Client, FastMCP
from fastmcp.server.auth.oauth_proxy import OAuthProxy
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from fastmcp.server.middleware.caching import ResponseCachingMiddleware
from mcp.shared.auth import OAuthClientInformationFull

from inmem.adapters.key_value import InmemStore


def test_cached_answers_and_clients(fresh: Fresh) -> None:
    place = fresh()

    async def program(called: list[Any]) -> None:
        async with inmem.aio.open(**place) as db, InmemStore(db, name="fastmcp") as store:
            server = FastMCP("sums")
            server.add_middleware(ResponseCachingMiddleware(cache_storage=store))

            @server.tool
            def add(a: int, b: int) -> int:
                called.append((a, b))
                return a + b

            async with Client(server) as client:
                assert (await client.call_tool("add", {"a": 1, "b": 2})).data == 3

    async def proxy(client: OAuthClientInformationFull | None) -> Any:
        async with inmem.aio.open(**place) as db, InmemStore(db, name="fastmcp") as store:
            provider = OAuthProxy(
                upstream_authorization_endpoint="https://idp.example.com/authorize",
                upstream_token_endpoint="https://idp.example.com/token",
                upstream_client_id="id", upstream_client_secret="secret", jwt_signing_key="key",
                token_verifier=StaticTokenVerifier(tokens={}), base_url="https://server.example.com",
                client_storage=store,
            )
            if client is not None:
                await provider.register_client(client)
            return await provider.get_client("client-7")

    called: list[Any] = []
    asyncio.run(program(called))
    asyncio.run(program(called))
    assert called == [(1, 2)], "the second program found the answer"
    assert asyncio.run(proxy(None)) is None
    known = OAuthClientInformationFull(client_id="client-7", redirect_uris=["http://localhost:9/callback"])  # type: ignore[list-item]
    asyncio.run(proxy(known))
    assert asyncio.run(proxy(None)).client_id == "client-7"
