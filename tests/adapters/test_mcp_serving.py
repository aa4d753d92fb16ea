"""`inmem mcp` as a process: who may speak to it, who shares it, and what happens when something dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from homes import Fresh, Home
from support import kill_writer, writer_pid

import inmem

pytest.importorskip("mcp.server.mcpserver", reason="the extra `mcp` is not installed")

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_clients import Caller, arguments_of, http, http_server, inside, stdio
from typer.testing import CliRunner

import inmem.aio
from inmem.adapters.mcp import mcp_server, serve_http
from inmem.adapters.mcp.subscriptions import MAX_WATCHED
from inmem.cli.app import app

DEADLINE_S = 30.0
# Clients of 2025 are what most people have; the SDK's client warns of what the next protocol drops.
of_2025 = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}
    },
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    inmem.open(tmp_path / "d").close()
    return tmp_path / "d"


# --- who may speak to it --------------------------------------------------------------------------


def posted(url: str, **headers: str) -> int:
    """The status of a request that begins a session."""
    accept = {"Accept": "application/json, text/event-stream"}
    return httpx2.post(url, json=INITIALIZE, headers=accept | headers, timeout=DEADLINE_S).status_code


def test_requests_for_other_sites_are_refused_and_a_port_that_is_taken(directory: Path) -> None:
    with http_server(directory) as url:
        assert posted(url) == 200
        port = url.split(":")[2].split("/")[0]
        assert posted(url, Host=f"localhost:{port}", Origin=f"http://localhost:{port}") == 200
        evil = "evil.example.com"
        for host in (evil, f"{evil}:{port}", f"127.0.0.1.{evil}", f"evil.localhost:{port}", ""):
            assert posted(url, Host=host) == 421, host
        for origin in ("http://evil.example.com", f"http://evil.example.com:{port}", "null", "file://"):
            assert posted(url, Origin=origin) == 403, origin
        taken = CliRunner().invoke(app, ["mcp", "-d", str(directory), "--http", "--port", port])
        assert taken.exit_code == 1 and f"127.0.0.1 port {port} cannot be used" in taken.stderr
        assert taken.stderr.count("\n") == 1


def test_a_token_keeps_others_out(directory: Path) -> None:
    token = "t" * 15 + "\u007e"

    async def run(url: str) -> None:
        client = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"})
        async with client, Client(streamable_http_client(url, http_client=client)) as session:
            call = await Caller.of(session)
            assert (await call("store_info"))["can_write"] is False

    with http_server(directory, INMEM_MCP_TOKEN=token) as url:
        assert posted(url) == 401
        for wrong in (token, "Bearer", "Bearer " + token[:-1], f"bearer {token}x", "Basic abc"):
            assert posted(url, Authorization=wrong) == 401, wrong
        assert posted(url, Authorization=f"Bearer {token}") == 200
        assert posted(url, Authorization=f"Bearer {token}", Host="evil.example.com") == 421
        asyncio.run(run(url))


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"host": "0.0.0.0", "token": "x" * 16}, "host"),
        ({"host": "0.0.0.0", "allowed_hosts": ["me"]}, "host"),
        ({"token": "short"}, "token"),
        ({"token": "\u00e9" * 20}, "token"),
        ({"port": 1 << 20}, "port"),
        ({"host": "localhost", "port": -1}, "port"),
    ],
)
def test_what_would_not_be_safe_is_refused(options: dict[str, Any], argument: str) -> None:
    async def run() -> None:
        async with inmem.aio.open() as db:
            with pytest.raises(inmem.InvalidInputError) as caught:
                await serve_http(mcp_server(db), **options)
            assert caught.value.argument == argument

    asyncio.run(run())


def test_options_of_http_need_it(directory: Path, tmp_path: Path) -> None:
    for options in (["--port", "1"], ["--host", "::1"], ["--allow-host", "me"]):
        result = CliRunner().invoke(app, ["mcp", "-d", str(directory), *options])
        assert result.exit_code == 1 and "--http" in result.stderr
    result = CliRunner().invoke(app, ["mcp", "-d", str(tmp_path / "none")])
    assert result.exit_code == 1 and "holds no inmem database" in result.stderr


def test_what_to_install_is_said(directory: Path) -> None:
    program = "import sys; sys.modules['mcp'] = None; from inmem.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, "mcp", "-d", str(directory)], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "pip install 'inmem[mcp]'" in ran.stderr and ran.stderr.count("\n") == 1


# --- standard input and output --------------------------------------------------------------------


@pytest.fixture
def process(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that a client has started."""
    with subprocess.Popen(
        [sys.executable, *arguments_of(directory, "--write")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def asked(process: subprocess.Popen[bytes], request: dict[str, Any] | bytes, answer: object = ...) -> Any:
    """The answer to one message."""
    assert process.stdin is not None and process.stdout is not None
    line = request if isinstance(request, bytes) else json.dumps({"jsonrpc": "2.0", **request}).encode()
    process.stdin.write(line + b"\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline()) if answer else None


def begin(process: subprocess.Popen[bytes]) -> None:
    assert asked(process, INITIALIZE)["result"]["serverInfo"]["name"] == "inmem"
    asked(process, {"method": "notifications/initialized"}, None)


def put(number: int, value: bytes) -> bytes:
    head = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"kv_put","arguments":' % number
    return head + b'{"run":"r","key":"k","value":%b}}}' % value


def test_hostile_messages_do_no_harm_and_it_ends_with_its_client(
    process: subprocess.Popen[bytes], directory: Path
) -> None:
    begin(process)
    deep, wide = b"[" * 20_000 + b"]" * 20_000, b'"' + b"x" * (1 << 20) + b'"'
    no_messages = (b"", b"{", b"null", b"[]", b"\xff\xfe\x00", b'{"jsonrpc":"2.0"}', b'{"id":1}', deep)
    no_values = (deep, b'"\\ud800"', b"1e999", b"NaN", b"9" * 5000)
    for line in (*no_messages, *(put(10 + number, value) for number, value in enumerate(no_values))):
        asked(process, line, None)
    answers = {}
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(put(7, wide) + b"\n" + json.dumps(
        {"jsonrpc": "2.0", "id": 8, "method": "tools/call",
         "params": {"name": "kv_get", "arguments": {"run": "r", "key": "k"}}}
    ).encode() + b"\n")  # fmt: skip
    process.stdin.flush()
    while not {7, 8} <= answers.keys():
        answer = json.loads(process.stdout.readline())
        answers[answer.get("id")] = answer
    assert not answers[7]["result"].get("isError")
    with inmem.open(directory) as db:
        assert len(db.kv.get("r", "k")) == 1 << 20
        assert db.kv.list("r") == ["k"]
    out, _ = process.communicate(timeout=DEADLINE_S)  # its client leaves
    assert (process.returncode, out) == (0, b"")


SIGNALS = [signal.SIGTERM]
if os.environ.get("INMEM_EXHAUSTIVE"):
    SIGNALS += [signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda one: one.name)
def test_a_signal_ends_it_while_its_client_is_there(process: subprocess.Popen[bytes], number: int) -> None:
    begin(process)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 128 + number
    assert process.stderr is not None and b"Traceback" not in process.stderr.read()


# --- deaths, and others ---------------------------------------------------------------------------


def test_the_writer_is_killed_between_calls(directory: Path) -> None:
    async def run() -> None:
        async with stdio(directory, "--write") as call:
            for number in range(1, 4):
                assert (await call("kv_add", run="r", key="n"))["value"] == number
                killed = kill_writer(directory)
                assert (await call("kv_get", run="r", key="n"))["value"] == number
                appended = await call("events_append", run="r", events=[{"event_type": "e"}])
                assert appended["first_sequence"] == number - 1
                assert writer_pid(directory) not in (0, killed)

    asyncio.run(run())


def test_a_killed_server_loses_nothing_and_its_claims_go_on(directory: Path) -> None:
    async def first() -> tuple[str, str]:
        async with inmem.aio.open(directory) as db:
            await db.queues.put("r", "q", {"n": 1})
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments_of(directory, "--write"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None

        async def ask(number: int, tool: str, **arguments: Any) -> Any:
            call = {"name": tool, "arguments": arguments}
            request = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call}
            process.stdin.write(json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
            return json.loads(await process.stdout.readline())["result"]["structuredContent"]  # type: ignore[union-attr]

        process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
        await process.stdout.readline()
        process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        claim = (await ask(2, "queues_claim", run="r", queue="q", lease_s=600))["job"]["claim"]
        lease = (await ask(3, "leases_acquire", run="r", name="l", ttl_s=600))["claim"]
        process.kill()
        await process.wait()
        return claim, lease

    async def second(claim: str, lease: str) -> None:
        async with inside({"path": directory}) as call:
            assert (await call("queues_claim", run="r", queue="q"))["job"] is None
            assert await call("queues_ack", run="r", claim=claim, result="done") == {"done": True}
            assert (await call("leases_release", run="r", name="l", claim=lease)) == {"released": True}

    asyncio.run(second(*asyncio.run(first())))


def test_two_clients_at_once(home: Home) -> None:
    """Each adds to one cell by comparing its version, and to one number; nothing is lost."""

    async def work(call: Caller, count: int) -> int:
        refused = 0
        for _ in range(count):
            await call("kv_add", run="r", key="sum")
            while True:
                cell = await call("cells_get", run="r", name="c")
                said = await call.client.call_tool(
                    "cells_set", {"run": "r", "name": "c", "value": cell["value"] + 1,
                                  "expected_version": cell["version"]}
                )  # fmt: skip
                if not said.is_error:
                    break
                assert "version_mismatch" in said.content[0].text  # type: ignore[union-attr]
                refused += 1
        return refused

    async def run(url: str) -> None:
        of_its_own = inside({"path": home.place, "agent": "two"})
        async with http(url) as one, http(url, "legacy") as other, of_its_own as third:
            await one("cells_set", run="r", name="c", value=0, expected_version=0)
            async with asyncio.TaskGroup() as group:
                for call in (one, other, third):
                    group.create_task(work(call, 10))
            assert (await one("cells_get", run="r", name="c"))["value"] == 30
            assert (await one("kv_get", run="r", key="sum"))["value"] == 30

    home.open().close()
    with http_server(home.place, "--write", "--agent", "two") as url:
        asyncio.run(run(url))


# --- subscriptions --------------------------------------------------------------------------------


class Heard:
    """What a client of 2025 was told."""

    def __init__(self) -> None:
        self.uris: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, message: Any) -> None:
        if getattr(message, "method", "") == "notifications/resources/updated":
            self.uris.put_nowait(str(message.params.uri))

    async def next(self) -> str:
        return await asyncio.wait_for(self.uris.get(), DEADLINE_S)


ROOT = "inmem://runs/r"


async def change(db: inmem.aio.AsyncDatabase, uri: str) -> None:
    """Change what a resource shows."""
    kind = uri.removeprefix(ROOT).partition("/")[2]
    if kind == "":
        await db.runs.update_metadata("r", {uri: os.urandom(4).hex()})
    elif kind.startswith("kv"):
        await db.kv.add("r", "k")
    elif kind.startswith("events"):
        await db.events.append("r", "e")
    elif kind.startswith("cells"):
        await db.cells.set("r", "c", os.urandom(4))
    elif kind == "traces":
        await db.traces.record("r", inmem.Thought("t"))
    elif kind == "queues":
        await db.queues.put("r", "q", 1)
    else:
        await db.leases.acquire("r", os.urandom(4).hex(), ttl_s=60)


KINDS = ("kv", "kv/k", "events", "events/1", "cells", "cells/c", "traces", "queues", "leases")
URIS = [ROOT, *(f"{ROOT}/{kind}" for kind in KINDS)]


def test_changes_are_told_to_those_who_listen(fresh: Fresh) -> None:
    async def run(place: dict[str, Any]) -> None:
        async with inside(place) as call:
            await call.db.runs.create_run(run_id="r")
            for uri in URIS:
                async with call.client.listen(resource_subscriptions=[uri]) as listening:
                    await change(call.db, uri)
                    async with asyncio.timeout(DEADLINE_S):
                        assert (await anext(aiter(listening))).uri == uri
            async with call.client.listen(resource_subscriptions=["inmem://runs"]) as listening:
                await call("runs_create", run="later")
                async with asyncio.timeout(DEADLINE_S):
                    assert (await anext(aiter(listening))).uri == "inmem://runs"
            async with call.client.listen(resource_subscriptions=[f"{ROOT}/kv", ROOT]) as listening:
                await call("runs_delete", run="r")
                async with asyncio.timeout(DEADLINE_S):
                    stream = aiter(listening)
                    assert {(await anext(stream)).uri, (await anext(stream)).uri} == {f"{ROOT}/kv", ROOT}
            for uri in ("file:///etc/passwd", "inmem://runs/a%20b"):
                with pytest.raises(MCPError):
                    async with call.client.listen(resource_subscriptions=[uri]):
                        pass
            many = [f"{ROOT}-1/kv/{number}" for number in range(MAX_WATCHED + 1)]
            with pytest.raises(MCPError, match="the limit"):
                async with call.client.listen(resource_subscriptions=many):
                    pass
            async with call.client.listen(resource_subscriptions=many[1:]):
                pass

    asyncio.run(run(fresh()))


@asynccontextmanager
async def subscriber(url: str) -> AsyncIterator[tuple[Client, Heard]]:
    heard = Heard()
    async with Client(url, mode="legacy", message_handler=heard) as client:
        yield client, heard


@of_2025
def test_clients_of_2025_subscribe_by_request(home: Home) -> None:
    async def run(url: str) -> None:
        async with (
            inmem.aio.open(home.place, agent="old") as db,
            subscriber(url) as (one, heard),
            subscriber(url) as (other, also),
        ):
            assert one.server_capabilities.resources is not None
            assert one.server_capabilities.resources.subscribe
            for uri in (f"{ROOT}/kv", f"{ROOT}/events", f"{ROOT}/kv"):
                await one.session.subscribe_resource(uri)
            await other.session.subscribe_resource(f"{ROOT}/kv")
            await change(db, f"{ROOT}/kv")
            assert await heard.next() == await also.next() == f"{ROOT}/kv"
            await change(db, f"{ROOT}/events")
            assert await heard.next() == f"{ROOT}/events"
            await other.session.unsubscribe_resource(f"{ROOT}/kv")
            await other.session.unsubscribe_resource(f"{ROOT}/cells")
            await change(db, f"{ROOT}/kv")
            assert await heard.next() == f"{ROOT}/kv"
            with pytest.raises(MCPError):
                await one.session.subscribe_resource("test://elsewhere")
            await other.session.subscribe_resource(f"{ROOT}/cells")
            await change(db, f"{ROOT}/cells")
            assert await also.next() == f"{ROOT}/cells"  # and not what it had given up before
            assert heard.uris.empty() and also.uris.empty()

    home.open().close()
    with http_server(home.place, "--agent", "old") as url:
        asyncio.run(run(url))


@of_2025
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_nothing_is_watched_for_clients_that_are_gone(fresh: Fresh, mode: Any) -> None:
    async def run(place: dict[str, Any]) -> None:
        async with inmem.aio.open(**place) as db:
            server = mcp_server(db)
            before = len(asyncio.all_tasks())
            for _ in range(3):
                async with Client(server, mode=mode) as client:
                    if mode == "legacy":
                        await client.session.subscribe_resource(f"{ROOT}/kv")
                        await client.session.subscribe_resource(f"{ROOT}/cells")
                    else:
                        async with client.listen(resource_subscriptions=[f"{ROOT}/kv"]):
                            pass
            async with asyncio.timeout(DEADLINE_S):
                while len(asyncio.all_tasks()) > before:
                    await asyncio.sleep(0.01)

    asyncio.run(run(fresh()))
