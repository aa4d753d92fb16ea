"""Clients of the Model Context Protocol, and servers of stores as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import jsonschema
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

import inmem
from inmem.adapters.mcp import mcp_server

PROGRAM = ["-c", "from inmem.cli import main; main()", "mcp"]


def arguments_of(place: Any, *more: str) -> list[str]:
    """Of the interpreter, to serve a store."""
    return [*PROGRAM, "-d", str(place), *more]


@contextmanager
def http_server(place: Any, *more: str, **environment: str) -> Iterator[str]:
    """A store is served over HTTP meanwhile, under this URL."""
    command = [sys.executable, *arguments_of(place, "--http", "--port", "0", "--json", *more)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert told == {"url": told["url"], "write": "--write" in more}
            yield told["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        assert code == 128 + signal.SIGTERM


@asynccontextmanager
async def stdio(place: Any, *more: str, mode: Any = "auto") -> AsyncIterator[Caller]:
    """A client of a server that it has started."""
    parameters = StdioServerParameters(
        command=sys.executable, args=arguments_of(place, *more), env=dict(os.environ)
    )
    async with Client(stdio_client(parameters), mode=mode) as client:
        yield await Caller.of(client)


@asynccontextmanager
async def http(url: str, mode: Any = "auto", **options: Any) -> AsyncIterator[Caller]:
    """A client of a server that listens."""
    async with Client(url, mode=mode, **options) as client:
        yield await Caller.of(client)


@asynccontextmanager
async def inside(place: dict[str, Any], *, write: bool = True, mode: Any = "auto") -> AsyncIterator[Caller]:
    """A client of a server in this process, which `db` is the handle of."""
    async with inmem.aio.open(**place) as db, Client(mcp_server(db, write=write), mode=mode) as client:
        caller = await Caller.of(client)
        caller.db = db
        yield caller


class Refused(Exception):
    """A tool has said that it failed."""


class Caller:
    """Calls tools, and holds each answer against the schema that the server has told."""

    db: inmem.aio.AsyncDatabase

    def __init__(self, client: Client, schemas: dict[str, Any]) -> None:
        self.client = client
        self.schemas = schemas
        self.called: set[str] = set()

    @classmethod
    async def of(cls, client: Client) -> Caller:
        listed = (await client.list_tools()).tools
        return cls(client, {tool.name: tool.output_schema for tool in listed})

    async def __call__(self, tool: str, **arguments: Any) -> Any:
        self.called.add(tool)
        result = await self.client.call_tool(tool, arguments)
        [text] = result.content
        if result.is_error:
            raise Refused(text.text)
        jsonschema.validate(result.structured_content, self.schemas[tool])
        assert json.loads(text.text) == result.structured_content
        return result.structured_content

    async def refusal(self, tool: str, **arguments: Any) -> str:
        """What a tool says when it refuses."""
        try:
            answer = await self(tool, **arguments)
        except Refused as refused:
            return str(refused)
        raise AssertionError(f"{tool} answered {answer}")

    async def shown(self, uri: str) -> Any:
        """What a resource shows."""
        [content] = (await self.client.read_resource(uri)).contents
        assert (content.uri, content.mime_type) == (uri, "application/json")
        return json.loads(content.text)


async def use_every_tool(call: Caller) -> None:
    """A story in which each tool is used once at least, and what it says is compared."""
    assert (await call("store_info"))["can_write"] is True
    made = await call("runs_create", run="trip", tags=["oslo"], metadata={"days": 3})
    assert (made["run"], made["status"], made["tags"]) == ("trip", "active", ["oslo"])
    assert made["metadata"] == {"days": 3}
    child = (await call("runs_create", parent_run="trip"))["run"]
    assert [run["run"] for run in (await call("runs_list", parent_run="trip"))["runs"]] == [child]
    assert [run["run"] for run in (await call("runs_list", tag="oslo", status="active"))["runs"]] == ["trip"]
    changed = await call("runs_update", run="trip", add_tags=["new"], metadata={"days": 4})
    assert (set(changed["tags"]), changed["metadata"]) == ({"new", "oslo"}, {"days": 4})

    first = await call("kv_put", run="trip", key="plan/a", value={"raw": {"$bytes": "YWJj"}, "n": 1})
    assert await call("kv_put_many", run="trip", entries={"plan/b": None, "c": [1.5]}, ttl_s=600) is not None
    listed = await call("kv_list", run="trip", prefix="plan/")
    assert [(each["key"], each["value"]) for each in listed["entries"]] == [
        ("plan/a", {"raw": {"$bytes": "YWJj"}, "n": 1}), ("plan/b", None)
    ]  # fmt: skip
    assert (await call("kv_get", run="trip", key="plan/a"))["version"] == first["version"]
    assert (await call("kv_wait", run="trip", key="plan/a", after=0))["version"] == first["version"]
    assert (await call("kv_add", run="trip", key="steps", delta=2, initial=40))["value"] == 42
    assert await call("kv_delete", run="trip", key="c") == {"removed": 1}
    assert await call("kv_clear", run="trip", prefix="plan/") == {"removed": 2}

    events = [{"event_type": "step", "payload": {"n": 1}}, {"event_type": "done"}]
    assert await call("events_append", run="trip", events=events) == {"first_sequence": 0, "count": 2}
    assert [each["payload"] for each in (await call("events_list", run="trip"))["events"]] == [{"n": 1}, None]
    assert (await call("events_get", run="trip", sequence=1))["event_type"] == "done"

    cell = {"run": "trip", "name": "phase"}
    version = (await call("cells_set", **cell, value="plan", expected_version=0))["version"]
    assert (await call("cells_set", **cell, value="act", expected_version=version))["version"] > version
    late = await call.refusal("cells_set", **cell, value="late", expected_version=version)
    assert "version_mismatch" in late
    assert (await call("cells_get", run="trip", name="phase"))["value"] == "act"
    assert [each["name"] for each in (await call("cells_list", run="trip"))["cells"]] == ["phase"]
    assert await call("cells_delete", run="trip", name="phase") == {"removed": 1}

    bodies = [
        {"type": "ToolCall", "tool_name": "search", "arguments": {"q": "a"}, "result": 1, "duration_ms": 1.5},
        {"type": "Decision", "question": "how?", "options": ["train", "bus"], "chosen": "train"},
        {"type": "Query", "query_type": "sql", "query": "select", "results_count": 3},
        {"type": "Thought", "content": "so", "confidence": 0.5},
        {"type": "Error", "error_type": "Timeout", "message": "late", "recoverable": True},
        {"type": "Custom", "trace_type": "note", "data": {"$bytes": "YQ=="}},
    ]
    root = None
    for body in bodies:
        root = (await call("traces_record", run="trip", body=body, parent_id=root, tags=["t"]))["id"]
    traces = (await call("traces_list", run="trip", tag="t"))["traces"]
    assert [each["type"] for each in traces] == [*(body["type"] for body in bodies[:-1]), "note"]
    for body, trace in zip(bodies, traces, strict=True):
        assert {name: trace["body"][name] for name in body if name in trace["body"]}.items() <= body.items()
    assert (await call("traces_get", run="trip", id=root))["parent_id"] == traces[-2]["id"]

    job_id = (await call("queues_put", run="trip", queue="mail", payload={"to": "ada"}))["id"]
    assert (await call("queues_jobs", run="trip", queue="mail"))["jobs"][0]["payload"] == {"to": "ada"}
    job = (await call("queues_claim", run="trip", queue="mail", worker="w"))["job"]
    await call("queues_nack", run="trip", claim=job["claim"], error="no route", retry=False)
    [dead] = (await call("queues_jobs", run="trip", queue="mail", state="dead"))["jobs"]
    assert (dead["id"], dead["errors"]) == (job_id, ["no route"])
    await call("queues_requeue", run="trip", id=job_id)
    job = (await call("queues_claim", run="trip", queue="mail", wait_s=1))["job"]
    await call("queues_extend", run="trip", claim=job["claim"], lease_s=30)
    await call("queues_ack", run="trip", claim=job["claim"], result="sent")
    assert (await call("queues_job", run="trip", id=job_id))["result"] == "sent"
    assert "job_lost" in await call.refusal("queues_ack", run="trip", claim=job["claim"])
    await call("queues_put", run="trip", queue="mail", payload=1, delay_s=60)
    assert (await call("queues_list", run="trip"))["queues"][0]["delayed"] == 1
    assert (await call("queues_purge", run="trip", queue="mail"))["removed"] >= 1

    door = {"run": "trip", "name": "door"}
    lease = await call("leases_acquire", **door, ttl_s=60, holder="ada")
    assert "lease_held" in await call.refusal("leases_acquire", **door, ttl_s=60, holder="bob")
    renewed = await call("leases_renew", **door, claim=lease["claim"], ttl_s=90)
    assert renewed["expires_at"] > lease["expires_at"] and renewed["holder"] == "ada"
    assert (await call("leases_list", run="trip"))["leases"] == [renewed]
    assert await call("leases_release", **door, claim=lease["claim"]) == {"released": True}
    assert await call("leases_release", **door, claim=lease["claim"]) == {"released": False}

    contents = await call("runs_get", run="trip")
    assert (contents["events"], contents["first_keys"], contents["has_traces"]) == (2, ["steps"], True)
    assert (await call("runs_set_status", run="trip", status="failed", error="rain"))["error"] == "rain"
    assert (await call("runs_wait", run="trip"))["status"] == "failed"
    assert set((await call("runs_ids"))["runs"]) == {"trip", child}
    assert (await call("runs_delete", run="trip"))["records"] > 10
    assert "run_deleted" in await call.refusal("kv_put", run="trip", key="late", value=1)
    assert call.called == set(call.schemas)
