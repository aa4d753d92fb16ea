"""The server for clients of the Model Context Protocol, by the SDK's own client: tools, pages, resources."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from homes import Fresh, Home

import inmem

pytest.importorskip("mcp.server.mcpserver", reason="the extra `mcp` is not installed")

from mcp.shared.exceptions import MCPError
from mcp_clients import Caller, http, http_server, inside, stdio, use_every_tool

import inmem.aio
from inmem.adapters.mcp import mcp_server
from inmem.adapters.mcp.shown import PAGE_CHARS, VALUE_CHARS

READING = {
    "store_info", "runs_list", "runs_ids", "runs_get", "runs_wait", "kv_list", "kv_get", "kv_wait",
    "events_list", "events_get", "cells_list", "cells_get", "traces_list", "traces_get", "queues_list",
    "queues_jobs", "queues_job", "leases_list",
}  # fmt: skip


def in_a_loop(test: Callable[[Caller], Any], place: dict[str, Any], **options: Any) -> None:
    """Run a test with a client of a server in this process."""

    async def run() -> None:
        async with inside(place, **options) as call:
            await test(call)

    asyncio.run(run())


# --- every tool, by real processes ----------------------------------------------------------------


def test_every_tool_over_stdio(home: Home) -> None:
    async def run() -> None:
        async with stdio(home.place, "--write", "--agent", "stdio") as call:
            await use_every_tool(call)

    home.open().close()
    asyncio.run(run())


def test_every_tool_over_http(home: Home) -> None:
    async def run(url: str) -> None:
        async with http(url, "auto" if home.name == "local" else "legacy") as call:  # one of each is enough
            await use_every_tool(call)

    home.open().close()
    with http_server(home.place, "--write", "--agent", "http") as url:
        asyncio.run(run(url))


# --- what is allowed ------------------------------------------------------------------------------


def test_without_write_nothing_can_be_changed(fresh: Fresh) -> None:
    place = fresh()
    with inmem.open(**place) as db:
        db.kv.put("run-1", "key", "value")

    async def test(call: Caller) -> None:
        assert set(call.schemas) == READING
        for tool in (await call.client.list_tools()).tools:
            assert tool.annotations is not None and tool.annotations.read_only_hint, tool.name
        assert (await call("store_info"))["can_write"] is False
        for tool, arguments in {
            "kv_put": {"run": "run-1", "key": "key", "value": 1}, "runs_delete": {"run": "run-1"},
            "queues_claim": {"run": "run-1", "queue": "q"},
        }.items():
            assert "Unknown tool" in await call.refusal(tool, **arguments)
        assert (await call("kv_get", run="run-1", key="key"))["value"] == "value"

    in_a_loop(test, place, write=False)


def test_hints_tell_what_changes_the_store(fresh: Fresh) -> None:
    async def test(call: Caller) -> None:
        tools = (await call.client.list_tools()).tools
        hints = {tool.name: tool.annotations for tool in tools}
        assert {name for name, found in hints.items() if found and found.read_only_hint} == READING
        destructive = {name for name, found in hints.items() if found and found.destructive_hint}
        assert destructive >= {"runs_delete", "kv_put", "kv_clear", "cells_set", "queues_purge"}
        assert not destructive & {"events_append", "traces_record", "kv_add", "queues_put"}
        for tool in tools:
            assert tool.description and tool.description[-1] == "." and tool.title, tool.name
            assert tool.input_schema["additionalProperties"] is False
            for name, argument in tool.input_schema["properties"].items():
                assert argument["description"], (tool.name, name)

    in_a_loop(test, fresh())


# --- pages ----------------------------------------------------------------------------------------


async def all_of(call: Caller, tool: str, field: str, **arguments: Any) -> list[Any]:
    """All items of a list, page by page."""
    found: list[Any] = []
    page = await call(tool, **arguments)
    while True:
        assert len(page[field]) <= arguments.get("limit", 50)
        assert len(json.dumps(page)) < 2 * (PAGE_CHARS + 3 * VALUE_CHARS)
        found += page[field]
        if page["next_cursor"] is None:
            return found
        assert page[field]
        page = await call(tool, **arguments, cursor=page["next_cursor"])


def test_lists_come_in_pages(fresh: Fresh) -> None:
    place = fresh()
    numbers = [f"{number:02}" for number in range(11)]
    with inmem.open(**place) as db:
        run = db.run("run-00")
        for name in numbers:
            db.runs.create_run(run_id=f"run-{name}", tags=["odd"] if int(name) % 2 else [])
            run.cells.set(name, name)
            run.traces.record(inmem.Thought(name), id=f"t-{name}", tags=["odd"] if int(name) % 2 else [])
            run.queues.put(name, 1)
            run.leases.acquire(name, ttl_s=600)
            run.events.append("odd" if int(name) % 2 else "even", name)
        run.kv.put_many({name: name for name in numbers})
        db.kv.put("uncreated", "a", 1)

    async def test(call: Caller) -> None:
        where: dict[str, Any] = {"run": "run-00"}
        for limit in (3, 11, 50):
            for tool, field, name in (
                ("kv_list", "entries", "key"), ("cells_list", "cells", "name"),
                ("queues_list", "queues", "queue"), ("leases_list", "leases", "name"),
                ("events_list", "events", "payload"),
            ):  # fmt: skip
                found = await all_of(call, tool, field, limit=limit, **where)
                assert [each[name] for each in found] == numbers, tool
            for back in (False, True):
                order = numbers[::-1] if back else numbers
                odd = [name for name in order if int(name) % 2]
                options: dict[str, Any] = {"limit": limit, "newest_first": back}
                found = await all_of(call, "runs_list", "runs", **options)
                assert [each["run"] for each in found] == [f"run-{name}" for name in order]
                found = await all_of(call, "runs_list", "runs", tag="odd", **options)
                assert [each["run"] for each in found] == [f"run-{name}" for name in odd]
                found = await all_of(call, "events_list", "events", **options, **where)
                assert [each["payload"] for each in found] == order
                found = await all_of(call, "events_list", "events", event_type="odd", **options, **where)
                assert [each["payload"] for each in found] == odd
                found = await all_of(call, "traces_list", "traces", **options, **where)
                assert [each["id"] for each in found] == [f"t-{name}" for name in order]
                found = await all_of(call, "traces_list", "traces", tag="odd", **options, **where)
                assert [each["id"] for each in found] == [f"t-{name}" for name in odd]
            ids = await all_of(call, "runs_ids", "runs", limit=limit)
            assert ids == [*(f"run-{name}" for name in numbers), "uncreated"]
        page = await call("runs_list", limit=2, newest_first=False)
        await call("runs_delete", run=page["runs"][-1]["run"])
        following = await call("runs_list", limit=2, newest_first=False, cursor=page["next_cursor"])
        assert [each["run"] for each in following["runs"]] == ["run-02", "run-03"]

    in_a_loop(test, place)


def test_long_values_are_given_in_parts(fresh: Fresh) -> None:
    place = fresh()
    long = {"text": "\u00e9\n" * 60_000, "raw": b"\x00\xff"}
    with inmem.open(**place) as db:
        run = db.run("run-1")
        db.runs.create_run(run_id="run-1", metadata=long)
        run.kv.put_many({f"key-{number}": long for number in range(9)})
        run.cells.set("cell", long)
        for _ in range(9):
            run.events.append("event", long)
            run.traces.record(inmem.Custom("note", long))
            job = run.queues.put("queue", long)
        trace = run.traces.list(limit=1)[0].id

    async def read(call: Caller, tool: str, inner: str | None = None, **arguments: Any) -> Any:
        text, offset = "", 0
        while True:
            item = await call(tool, run="run-1", offset=offset, **arguments)
            cut = (item[inner] if inner else item)["cut"]
            assert cut["offset"] == offset == len(text) and len(cut["text"]) <= VALUE_CHARS
            text += cut["text"]
            if cut["next_offset"] is None:
                assert len(text) == cut["size"]
                return json.loads(text)
            offset = cut["next_offset"]

    async def test(call: Caller) -> None:
        as_json = {"text": long["text"], "raw": {"$bytes": "AP8="}}
        assert await read(call, "kv_get", key="key-3") == as_json
        assert await read(call, "cells_get", name="cell") == as_json
        assert await read(call, "events_get", sequence=8) == as_json
        assert (await read(call, "traces_get", id=trace))["body"] == {"trace_type": "note", "data": as_json}
        assert (await read(call, "queues_job", id=job))["payload"] == as_json
        assert (await read(call, "runs_get", "record"))["metadata"] == as_json
        for tool, field in (("kv_list", "entries"), ("events_list", "events"), ("traces_list", "traces")):
            assert len(await all_of(call, tool, field, run="run-1")) == 9
        page = await call("queues_jobs", run="run-1", queue="queue")
        assert 1 < len(page["jobs"]) < 9
        assert len(await all_of(call, "queues_jobs", "jobs", run="run-1", queue="queue")) == 9
        claimed = (await call("queues_claim", run="run-1", queue="queue"))["job"]
        assert claimed["payload"] is None and claimed["cut"]["size"] > 60_000

    in_a_loop(test, place)


# --- values and arguments -------------------------------------------------------------------------


TEXTS = ["null", "[1]", '{"a": 1}', "true", "1", '"quoted"', "\u2028\x01", ""]


def test_a_text_that_is_json_stays_a_text(fresh: Fresh) -> None:
    async def test(call: Caller) -> None:
        for text in TEXTS:
            await call("kv_put", run="run-1", key="key", value=text)
            assert await call.db.kv.get("run-1", "key") == text
            assert (await call("kv_get", run="run-1", key="key"))["value"] == text
            if text:
                await call("kv_put", run="run-1", key=text, value=1)
                assert (await call("kv_list", run="run-1", prefix=text))["entries"][0]["key"] == text

    in_a_loop(test, fresh())


VALUES = [
    0, -1, 1.0, 1.5, True, None, [], {}, [[{}]], {"$": 1}, {"$$a": {}}, (1 << 63) - 1, -(1 << 63),
    b"\x00\xff", float("inf"), {"$bytes": 1, "b": 2}, 1e300, "\U0001f600",
]  # fmt: skip


def test_values_keep_their_types(fresh: Fresh) -> None:
    async def test(call: Caller) -> None:
        from inmem.exchange import from_json, to_json

        for value in VALUES:
            await call("kv_put", run="run-1", key="key", value=to_json(value))
            stored = await call.db.kv.get("run-1", "key")
            assert repr(stored) == repr(value)
            given = (await call("kv_get", run="run-1", key="key"))["value"]
            assert repr(from_json(given)) == repr(value)

    in_a_loop(test, fresh())


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


THOUGHT = {"type": "Thought", "content": "c"}
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("kv_get", {"run": "../../etc", "key": "k"}, "invalid_run_id"),
    ("kv_get", {"run": "", "key": "k"}, "invalid_run_id"),
    ("kv_get", {"run": "x" * 65, "key": "k"}, "invalid_run_id"),
    ("kv_get", {"run": "@root", "key": "k"}, "invalid_input"),
    ("kv_get", {"run": "@", "key": "k"}, "invalid_input"),
    ("kv_get", {"run": "r", "key": ""}, "invalid_key"),
    ("kv_get", {"run": "r", "key": "a\x00b"}, "invalid_key"),
    ("kv_get", {"run": "r", "key": "x" * 100_000}, "invalid_key"),
    ("kv_get", {"run": "r", "key": 5}, "Input should be a valid string"),
    ("kv_get", {"run": ["r"], "key": "k"}, "Input should be a valid string"),
    ("kv_get", {"run": "r"}, "Field required"),
    ("kv_get", {"run": "r", "key": "k", "kye": 1}, "Extra inputs are not permitted"),
    ("kv_get", {"run": "r", "key": "k", "offset": -1}, "greater than or equal to 0"),
    ("kv_list", {"run": "r", "limit": 0}, "greater than or equal to 1"),
    ("kv_list", {"run": "r", "limit": 10**9}, "less than or equal to 500"),
    ("kv_list", {"run": "r", "cursor": "x" * 1000}, "invalid_key"),
    ("events_list", {"run": "r", "cursor": "-1"}, "next_cursor"),
    ("events_list", {"run": "r", "cursor": "\u0665"}, "next_cursor"),
    ("events_list", {"run": "r", "cursor": "9" * 5000}, "next_cursor"),
    ("events_list", {"run": "r", "event_type": "x" * 500}, "invalid_key"),
    ("events_get", {"run": "r", "sequence": 1 << 70}, "less than"),
    ("runs_list", {"cursor": "run-1"}, "next_cursor"),
    ("runs_list", {"cursor": "5:a b"}, "invalid_run_id"),
    ("runs_list", {"status": "great"}, "Input should be"),
    ("traces_list", {"run": "r", "tag": "a", "type": "b"}, "invalid_input"),
    ("traces_list", {"run": "r", "cursor": "nothing"}, "trace_not_found"),
    ("queues_job", {"run": "r", "id": "no number"}, "invalid_input"),
    ("runs_wait", {"run": "r", "timeout_s": 1e9}, "less than or equal to 60"),
    ("runs_wait", {"run": "r", "timeout_s": 0.01}, "wait_timeout"),
    ("kv_put", {"run": "r", "key": "k", "value": 1 << 64}, "invalid_value"),
    ("kv_put", {"run": "r", "key": "k", "value": {"$bytes": "%"}}, "invalid_input"),
    ("kv_put", {"run": "r", "key": "k", "value": {"$other": 1}}, "no mark"),
    ("kv_put", {"run": "r", "key": "k", "value": nested(140)}, "invalid_value"),
    ("kv_put", {"run": "r", "key": "k", "value": 1, "ttl_s": -1}, "greater than 0"),
    ("kv_put", {"run": "r", "key": "k", "value": 1, "ttl_s": 1e300}, "invalid_input"),
    ("kv_put_many", {"run": "r", "entries": {"": 1}}, "invalid_key"),
    ("kv_add", {"run": "r", "key": "k", "delta": 1 << 64}, "invalid"),
    ("events_append", {"run": "r", "events": []}, "at least 1 item"),
    ("events_append", {"run": "r", "events": [{"event_type": "a"}, {"event_type": ""}]}, "invalid_key"),
    ("events_append", {"run": "r", "events": [{"event_type": "a", "sequence": 0}]}, "Extra inputs"),
    ("cells_set", {"run": "r", "name": "c", "value": 1, "expected_version": 3}, "cell_not_found"),
    ("traces_record", {"run": "r", "body": {"type": "Thought"}}, "Field required"),
    ("traces_record", {"run": "r", "body": {"type": "Magic"}}, "does not match any of the expected tags"),
    ("traces_record", {"run": "r", "body": THOUGHT, "parent_id": "x"}, "trace_not_found"),
    ("traces_record", {"run": "r", "body": THOUGHT, "metadata": {"$bytes": "YQ=="}}, "must be an object"),
    ("runs_create", {"run": "r", "tags": ["x"] * 3 + ["y" * 1000]}, "invalid_key"),
    ("queues_ack", {"run": "r", "claim": "nonsense"}, "claim must be"),
    ("queues_ack", {"run": "r", "claim": "mail/x#1.2"}, "claim must be"),
    ("queues_ack", {"run": "r", "claim": "mail/0#1.2"}, "job_lost"),
    ("queues_ack", {"run": "r", "claim": "mail/99999999999999999999#1.2"}, "claim must be"),
    ("queues_nack", {"run": "r", "claim": "a\x00b/0#1.2"}, "claim must be"),
    ("queues_extend", {"run": "r", "claim": "q" * 500 + "/0#1.2"}, "claim must be"),
    ("queues_put", {"run": "r", "queue": "", "payload": 1}, "invalid_key"),
    ("queues_put", {"run": "r", "queue": "q", "payload": 1, "priority": 1 << 70}, "invalid_input"),
    ("queues_put", {"run": "r", "queue": "q", "payload": 1, "delay_s": 1e300}, "invalid_input"),
    ("queues_put", {"run": "r", "queue": "q", "payload": 1, "max_attempts": 1 << 70}, "invalid_input"),
    ("queues_jobs", {"run": "r", "queue": "a\x00b"}, "invalid_key"),
    *(
        ("queues_jobs", {"run": "r", "queue": "q", "cursor": wrong}, expected) for wrong, expected in (
            ("q/0", "next_cursor"), ("--1:q/0", "next_cursor"), ("1:", "a queue, a slash"),
            ("1:other/0", "of another queue"), ("9" * 18 + ":q/0", "no job can have"),
        )
    ),
    ("leases_acquire", {"run": "r", "name": "", "ttl_s": 1}, "invalid_key"),
    ("leases_acquire", {"run": "r", "name": "n", "ttl_s": 1, "holder": "x" * 9999}, "invalid"),
    ("leases_release", {"run": "r", "name": "", "claim": "1.1"}, "invalid_key"),
    ("leases_release", {"run": "r", "name": "\ud800", "claim": "1.1"}, "invalid_key"),
    ("leases_renew", {"run": "r", "name": "a\x00b", "claim": "1.1", "ttl_s": 5}, "invalid_key"),
    ("kv_get", {"run": "r", "key": "\ud800"}, "code: "),
    ("kv_put", {"run": "r", "key": "k", "value": "\ud800"}, "invalid_value"),
    ("events_get", {"run": "@agent", "sequence": 5}, "not_found"),
    ("runs_create", {"run": "r", "parent_run": "none"}, "code: "),
    ("runs_update", {"run": "r"}, "run_not_found"),
    ("runs_update", {"run": "@app", "add_tags": ["x"]}, "invalid_run_id"),
    ("kv_wait", {"run": "r", "key": "k", "timeout_s": 0.01}, "wait_timeout"),
    ("queues_claim", {"run": "r", "queue": "q", "wait_s": 1e9}, "less than or equal to 60"),
    ("leases_release", {"run": "r", "name": "n", "claim": "1"}, "claim must be"),
    ("leases_renew", {"run": "r", "name": "n", "claim": "1.1", "ttl_s": 5}, "lease_lost"),
    ("runs_delete", {"run": "@agent"}, "invalid_run_id"),
    ("runs_set_status", {"run": "r", "status": "failed"}, "run_not_found"),
]  # fmt: skip


def test_hostile_arguments_are_refused_and_explained(fresh: Fresh) -> None:
    async def test(call: Caller) -> None:
        wrong = []
        for tool, arguments, part in HOSTILE:
            try:
                said = await call.refusal(tool, **arguments)
            except AssertionError as error:
                said = str(error)
            if part not in said or len(said) > 3000:
                wrong.append((tool, str(arguments)[:200], part, said[:500]))
        assert wrong == []
        assert (await call("runs_ids"))["runs"] == []

    in_a_loop(test, fresh())


# --- resources ------------------------------------------------------------------------------------


def test_resources_show_what_tools_answer(fresh: Fresh) -> None:
    place = fresh()
    odd = "../a/\u00e9 ?#{x}%2F"
    with inmem.open(**place) as db:
        db.runs.create_run(run_id="run-1", tags=["t"])
        run = db.run("run-1")
        run.kv.put_many({odd: [1], "b": 2})
        run.events.append("a", 1)
        run.events.append("b", 2)
        run.cells.set("c", 1)
        trace = run.traces.record(inmem.Thought("so"))
        run.queues.put("q", 1)
        run.leases.acquire("l", ttl_s=60)

    async def test(call: Caller) -> None:
        run = "inmem://runs/run-1"
        listed = (await call.client.list_resources()).resources
        assert [each.uri for each in listed] == ["inmem://runs", run]
        templates = (await call.client.list_resource_templates()).resource_templates
        assert [each.uri_template for each in templates][:3] == [
            "inmem://runs{?cursor}", "inmem://runs/{run}", "inmem://runs/{run}/kv{?cursor}"
        ]  # fmt: skip
        assert len({each.name for each in templates}) == len(templates) == 12
        assert await call.shown("inmem://runs") == await call("runs_list")
        assert await call.shown(run) == await call("runs_get", run="run-1")
        assert await call.shown(f"{run}/kv") == await call("kv_list", run="run-1")
        assert await call.shown(f"{run}/kv?cursor=..%2Fa%2F%C3%A9%20%3F%23%7Bx%7D%252F") == await call(
            "kv_list", run="run-1", cursor=odd
        )
        assert await call.shown(f"{run}/kv/..%2Fa%2F%C3%A9%20%3F%23%7Bx%7D%252F") == await call(
            "kv_get", run="run-1", key=odd
        )
        assert await call.shown(f"{run}/events") == await call("events_list", run="run-1", newest_first=True)
        assert await call.shown(f"{run}/events/1") == await call("events_get", run="run-1", sequence=1)
        assert await call.shown(f"{run}/cells") == await call("cells_list", run="run-1")
        assert await call.shown(f"{run}/cells/c") == await call("cells_get", run="run-1", name="c")
        assert await call.shown(f"{run}/traces") == await call("traces_list", run="run-1", newest_first=True)
        assert await call.shown(f"{run}/traces/{trace}") == await call("traces_get", run="run-1", id=trace)
        assert await call.shown(f"{run}/queues") == await call("queues_list", run="run-1")
        assert await call.shown(f"{run}/leases") == await call("leases_list", run="run-1")
        for uri in (
            "inmem://runs/none", "inmem://runs/run-1/kv/none", "inmem://runs/a%20b", "inmem://runs/@root/kv",
            "inmem://runs/run-1/events/x", "inmem://runs/run-1/nothing", "file:///etc/passwd", "", "inmem://runs/",
            "inmem://runs/run-1/kv/" + "x" * 9000, "inmem://runs/%00", "inmem://runs/run-1/kv/%ff",
        ):  # fmt: skip
            with pytest.raises(MCPError) as caught:
                await call.client.read_resource(uri)
            assert caught.value.code == -32602, uri

    in_a_loop(test, place)


def test_ids_of_runs_are_completed(fresh: Fresh) -> None:
    from mcp_types import PromptReference, ResourceTemplateReference

    place = fresh()
    with inmem.open(**place) as db:
        for name in ("trip", "trip-1", "trip-2", "tool"):
            db.runs.create_run(run_id=name)

    async def test(call: Caller) -> None:
        template = ResourceTemplateReference(uri="inmem://runs/{run}")
        trips = ["trip", "trip-1", "trip-2"]
        for typed, wanted in {"trip": trips, "to": ["tool"], "": 4, "a b": [], "z": []}.items():
            found = (await call.client.complete(template, {"name": "run", "value": typed})).completion.values
            assert found == wanted or len(found) == wanted
        other = await call.client.complete(PromptReference(name="any"), {"name": "run", "value": "t"})
        assert other.completion.values == []

    in_a_loop(test, place)


def test_only_a_handle_of_a_loop_is_served() -> None:
    with inmem.open() as db, pytest.raises(inmem.InvalidInputError) as caught:
        mcp_server(db)  # type: ignore[arg-type]
    assert caught.value.argument == "db"
