"""`inmem mcp`: a store for clients of the Model Context Protocol.

Over standard input and output nothing else is written there. It ends when its client does.
"""

from __future__ import annotations

import json
import os
from typing import Annotated, Final

import typer

from inmem.cli.common import WRONG_USAGE, Where, command, console, fail
from inmem.errors import InmemError, InvalidInputError

TOKEN: Final = "INMEM_MCP_TOKEN"


@command(about_runs=True, old="none")
def mcp(
    where: Where,
    write: Annotated[bool, typer.Option("--write", help="Offer the tools that change it, too.")] = False,
    http: Annotated[bool, typer.Option("--http", help="Serve over HTTP instead of standard input.")] = False,
    host: Annotated[str, typer.Option(metavar="HOST", help="Where to listen, with --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="0: any that is free.")] = 8765,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which clients may call this machine; more than once."),
    ] = None,
) -> None:
    """Serve the store to clients of the Model Context Protocol (MCP).

    It reads only, unless --write is given. Clients start it themselves and
    speak to it through standard input and output. With --http it listens on
    this machine alone. If INMEM_MCP_TOKEN is set, clients must send it as a
    bearer token.

    Example: inmem mcp -d ./data
    """
    if not http and (host != "127.0.0.1" or port != 8765 or allow_host):
        raise InvalidInputError("--host, --port and --allow-host need --http", argument="http")
    place = where.named if where.is_server else where.directory().path
    try:  # here: no other command has to wait for these
        import asyncio

        import inmem.adapters.mcp as adapter
        import inmem.aio
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "inmem":
            raise
        missing = InmemError(
            "this command needs more than the library", hint="Install it: pip install 'inmem[mcp]'"
        )
        fail(missing, as_json=where.as_json, code=WRONG_USAGE)

    def ready(url: str) -> None:
        if where.as_json:
            print(json.dumps({"url": url, "write": write}), flush=True)
        else:
            kind = "reading and writing" if write else "reading"
            console().print(f"serving {where.shown} at {url} for {kind}; Ctrl-C stops it", soft_wrap=True)

    async def serve() -> None:
        number = 0
        async with inmem.aio.open(
            place, create=False, tenant=where.tenant, app=where.app, agent=where.agent
        ) as db:
            server = adapter.mcp_server(db, write=write)
            if http:
                await adapter.serve_http(
                    server, host=host, port=port, token=os.environ.get(TOKEN), ready=ready,
                    allowed_hosts=allow_host or (),
                )
            else:
                number = await adapter.serve_stdio(server)
        if number:
            os._exit(128 + number)  # see serve_stdio

    asyncio.run(serve())
