"""`inmem ui`: what it shows, what it tells, what it changes. Real processes, both engines."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from homes import Home
from page_server import MAIN, PageServer
from support import wait_until

import inmem

pytest.importorskip("starlette", reason="the extra `ui` is not installed")
pytest.importorskip("uvicorn", reason="the extra `ui` is not installed")

from inmem.web.changes import NewestWords, tell_changes

HOSTILE = "<img src=x onerror=alert(1)> \u202e \x1b[2J"


@pytest.fixture(scope="module")
def db(home: Home) -> Iterator[inmem.Database]:
    with home.open() as database:
        runs = database.runs
        runs.create_run(run_id="trip", tags=["oslo"], metadata={"goal": "a train"})
        runs.create_run(run_id="child", parent_run="trip")
        runs.create_run(run_id="ended")
        runs.fail_run("ended", HOSTILE)
        run = database.run("trip")
        run.events.append_many([("message", {"content": f"event {n}"}) for n in range(1200)])
        run.events.append("odd", HOSTILE)
        root = run.traces.record(inmem.Thought("which way?"))
        run.traces.record_child(root, inmem.ToolCall("search", {"to": "Oslo"}, "found", 12.5))
        for n in range(450):
            run.kv.put(f"key/{n:03}", n)
        run.kv.put(HOSTILE, HOSTILE)
        run.cells.init("phase", "searching")
        run.leases.acquire("owner", ttl_s=100, holder="worker 1")
        run.queues.put_many("work", [1, 2, 3])
        run.queues.put("work", 4, delay_s=100)
        run.queues.claim("work", worker="worker 2")
        database.kv.put("not-created", "key", 1)
        database.shared("agent").kv.put("config", {"a": 1})
        yield database


@pytest.fixture(scope="module")
def server(home: Home, db: inmem.Database) -> Iterator[PageServer]:
    with PageServer(home.place) as one:
        yield one


class TestWhatItShows:
    def test_the_store(self, server: PageServer) -> None:
        store = server.get("store")
        assert store["stats"] == {"active": 2, "failed": 1} and store["write"] is False

    def test_runs(self, server: PageServer) -> None:
        found = server.get("runs")
        assert [run["id"] for run in found["runs"]] == ["ended", "child", "trip"]
        assert found["uncreated"] == ["not-created"] and found["shared"] == ["@agent"]
        assert "\x1b" not in found["runs"][0]["error"] and "\u202e" not in found["runs"][0]["error"]

    @pytest.mark.parametrize(
        ("query", "ids"),
        [({"words": "TRI"}, ["trip"]), ({"words": "oslo"}, ["trip"]), ({"status": "failed"}, ["ended"]),
         ({"tag": "oslo"}, ["trip"]), ({"parent": "trip"}, ["child"]), ({"words": "nothing"}, []),
         ({"limit": 2}, ["ended", "child"]), ({"after": "child"}, ["trip"])],
    )  # fmt: skip
    def test_runs_that_are_found(self, server: PageServer, query: dict[str, Any], ids: list[str]) -> None:
        found = server.get("runs", **query)
        assert [run["id"] for run in found["runs"]] == ids
        assert found["next"] == ("child" if query == {"limit": 2} else "")

    def test_a_run(self, server: PageServer) -> None:
        found = server.get("run", run="trip")
        assert (found["status"], found["tags"]) == ("active", ["oslo"])
        assert found["children"] == [["child", "active"]]
        assert found["counts"] | {"jobs": 0} == {
            "kv": 451, "cells": 1, "events": 1201, "traces": 2, "leases": 1, "queues": 1, "jobs": 0,
        }
        assert found["first"] <= found["last"] <= found["now"] and found["about"] == [["goal", "a train"]]

    @pytest.mark.parametrize("name", ["@agent", "not-created"])
    def test_what_has_no_record(self, server: PageServer, name: str) -> None:
        found = server.get("run", run=name)
        assert found["status"] == "" and found["counts"]["kv"] == 1

    def test_events_in_pages(self, server: PageServer) -> None:
        rows: list[Any] = []
        start = 0
        while start >= 0:
            page = server.get("events", run="trip", start=start, limit=500)
            rows += page["rows"]
            start = page["next"]
        assert [row[0] for row in rows] == list(range(1201))
        assert rows[7][2:] == ["message", "event 7"] and page["count"] == 1201
        found = server.get("events", run="trip", words="EVENT 119")
        assert [row[0] for row in found["rows"]] == [119, 1119, *range(1190, 1200)] and found["next"] == -1

    def test_details(self, server: PageServer) -> None:
        event = dict(server.get("event", run="trip", sequence=3)["details"])
        assert event["payload"] == '{\n  "content": "event 3"\n}'
        rows = server.get("traces", run="trip")["rows"]
        told = [(row[4], row[5], row[3]) for row in rows]
        assert told == [("thought", "Thought", None), ("tool", "search", 12500)]
        assert rows[1][1] == rows[0][0]
        details = dict(server.get("trace", run="trip", id=rows[1][0])["details"])
        assert details["tool name"] == "search" and details["below"] == rows[0][0]
        assert dict(server.get("entry", run="trip", key="key/007")["details"])["value"] == "7"
        assert server.get("cell?run=trip&name=phase&")["version"] == 1

    def test_entries_in_pages(self, server: PageServer) -> None:
        first = server.get("kv", run="trip", limit=450, prefix="key/")
        assert len(first["rows"]) == 450 and first["next"] == ""
        page = server.get("kv", run="trip", after="key/440", limit=5)
        assert [row[0] for row in page["rows"]] == [f"key/{n}" for n in range(441, 446)]
        assert page["next"] == "key/445"
        assert server.get("cells", run="trip")["rows"][0][::3] == ["phase", "searching"]

    def test_leases_and_queues(self, server: PageServer) -> None:
        (lease,) = server.get("leases", run="trip")["rows"]
        assert lease[:2] == ["owner", "worker 1"] and lease[3] - lease[2] == 100_000_000
        assert server.get("queues", run="trip")["rows"] == [
            ["work", {"ready": 2, "delayed": 1, "claimed": 1, "dead": 0}]
        ]
        (claimed,) = server.get("jobs", run="trip", queue="work", state="claimed")["rows"]
        assert claimed["worker"] == "worker 2" and claimed["line"] == "1"
        assert len(server.get("jobs", run="trip", queue="work", state="ready")["rows"]) == 2

    @pytest.mark.parametrize(
        ("path", "status", "said"),
        [("run?run=none", 404, "no run none"), ("run?run=", 400, "run"), ("run?run=a/b", 400, "run"),
         ("runs?status=odd", 400, "status must be"), ("runs?after=none", 400, "gone"),
         ("runs?limit=x", 400, "limit"),
         ("events?run=trip&start=-1", 400, "start"), ("events?run=trip&limit=5001", 400, "5,000"),
         ("event?run=trip&sequence=99999", 404, "event 99999"), ("trace?run=trip&id=none", 404, "trace none"),
         ("entry?run=trip&key=none", 404, "key none"), ("cell?run=trip&name=none", 404, "cell none"),
         ("jobs?run=trip&queue=work&state=odd", 400, "state must be"),
         ("jobs?run=trip&queue=&state=ready", 400, "queue"),
         ("kv?run=trip&after=" + "x" * 2000, 400, "start_after"), ("run?run=@none", 400, "none"),
         ("events?run=trip&start=" + "9" * 30, 400, "start"),
         ("kv?run=trip&limit=" + "0" * 5000, 400, "limit"),
         ("kv?run=trip&limit=" + "0" * 20 + "99999", 400, "5,000")],
    )  # fmt: skip
    def test_what_is_asked_for_wrongly(self, server: PageServer, path: str, status: int, said: str) -> None:
        found, _, body = server.ask(f"/api/{path}")
        assert found == status, body
        assert said in json.loads(body)["error"]


    def test_a_queue_of_any_name(self, db: inmem.Database, server: PageServer) -> None:
        db.run("odd").queues.put(HOSTILE, "job")
        ((name, counts),) = server.get("queues", run="odd")["rows"]
        assert (name, counts["ready"]) == (HOSTILE, 1)
        assert server.get("jobs", run="odd", queue=name, state="ready")["rows"][0]["line"] == "job"

    def test_pages_of_no_rows_and_of_exactly_all(self, server: PageServer) -> None:
        assert server.get("kv", run="trip", limit=0) == {"rows": [], "next": ""}
        assert server.get("kv", run="trip", limit=451)["next"] == ""
        assert server.get("traces", run="trip", limit=2)["next"] == ""
        first = server.get("traces", run="trip", limit=1)
        assert first["next"] == first["rows"][0][0]


class TestWhatItTells:
    def test_each_kind_of_change(self, home: Home, db: inmem.Database, server: PageServer) -> None:
        told: list[tuple[str, Any]] = []
        changed = threading.Event()

        def listen() -> None:
            for each in server.told("told"):
                told.append(each)
                changed.set()
                if each == ("changed", "gone"):
                    return

        db.runs.create_run(run_id="told")
        run = db.run("told")
        listener = threading.Thread(target=listen)
        listener.start()
        try:
            kinds = {"run", "events", "traces", "kv", "cells", "leases", "queues"}
            wait_until(lambda: {kind for _, kind in told} == kinds, "a first word of each kind")
            writes = {
                "kv": lambda: run.kv.put("a", 1), "events": lambda: run.events.append("e", 1),
                "cells": lambda: run.cells.set("c", 1),
                "traces": lambda: run.traces.record(inmem.Thought("t")),
                "leases": lambda: run.leases.acquire("l", ttl_s=9), "queues": lambda: run.queues.put("q", 1),
                "run": lambda: db.runs.update_metadata("told", {"a": 1}),
            }
            for _ in range(2):  # the second time most of them overwrite
                for kind, write in writes.items():
                    if kind != "leases" or not run.leases.get("l"):
                        del told[:]
                        write()
                        wait_until(lambda kind=kind: ("changed", kind) in told, f"word of {kind}")
            del told[:]
            run.queues.claim("q")
            wait_until(lambda: ("changed", "queues") in told, "word of a claim")
        finally:
            db.runs.delete_run("told")
            listener.join(30)
        assert not listener.is_alive() and told[-1] == ("changed", "gone")

    def test_many_commits_are_told_of_at_a_bounded_rate_and_the_last_is_seen(
        self, db: inmem.Database, server: PageServer
    ) -> None:
        run = db.run("busy")
        seen: list[int] = []
        last = 400

        def listen() -> None:
            for _, kind in server.told("busy"):
                if kind == "events":
                    seen.append(server.get("events", run="busy", limit=0)["count"])
                    if seen[-1] == last:
                        return

        listener = threading.Thread(target=listen)
        listener.start()
        wait_until(lambda: seen, "the first word")
        for n in range(last):
            run.events.append("n", n)
        listener.join(30)
        assert not listener.is_alive() and seen[-1] == last and len(seen) < last / 2

    def test_runs_that_come_and_end(self, db: inmem.Database, server: PageServer) -> None:
        told = server.told()
        assert next(told) == ("changed", "runs")
        db.runs.create_run(run_id="coming")
        assert next(told) == ("changed", "runs")
        assert server.get("runs")["runs"][0]["id"] == "coming"
        db.runs.delete_run("coming")
        assert next(told) == ("changed", "runs")
        told.close()

    def test_pages_that_come_together_are_counted(self, server: PageServer) -> None:
        def statuses(pages: int) -> list[int]:
            found: list[http.client.HTTPResponse] = []
            connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(pages)]
            try:
                for one in connections:
                    one.request("GET", "/api/stream", headers={"Cookie": server.cookie})
                found = [one.getresponse() for one in connections]
                return sorted(one.status for one in found)
            finally:
                for each in (*found, *connections):
                    each.close()

        # A page of an earlier test may still be leaving.
        wait_until(lambda: statuses(80) == [200] * 64 + [503] * 16, "64 of 80 pages are told")
        wait_until(lambda: statuses(1) == [200], "room for another page")

    def test_a_page_that_does_not_read_is_told_the_newest_only(self) -> None:
        async def tell() -> list[tuple[str, Any]]:
            told = NewestWords()
            for n in range(10_000):
                told.put("status", n)
                told.put("changed", "kv")
                told.put("changed", "events")
            told.put("bye", "end")
            return [await told.take() for _ in range(4)]

        words = [("status", 9999), ("changed", "kv"), ("changed", "events"), ("bye", "end")]
        assert asyncio.run(tell()) == words

    def test_what_nobody_has_foreseen_ends_the_stream(self) -> None:
        async def follow() -> tuple[str, Any]:
            told = NewestWords()
            await tell_changes(None, "trip", told)  # type: ignore[arg-type]
            return await told.take()

        assert asyncio.run(follow()) == ("bye", "the page cannot follow any more: its server says why")

    def test_a_stream_of_no_run_at_all(self, server: PageServer) -> None:
        assert [name for name, _ in server.told("a/b")] == ["bye"]


class TestWhatItChanges:
    def test_nothing_unless_it_may(self, db: inmem.Database, server: PageServer) -> None:
        status, said = server.do(do="delete", run="trip")
        assert status == 403 and "--write" in said["error"] and db.run("trip").events.count() == 1201

    def test_what_it_may(self, home: Home, db: inmem.Database) -> None:
        db.runs.create_run(run_id="mine")
        run = db.run("mine")
        job = run.queues.put("work", 1, max_attempts=1)
        claimed = run.queues.claim("work")
        assert claimed is not None
        run.queues.nack(claimed, error="no")
        with PageServer(home.place, "--write") as server:
            assert server.get("store")["write"] is True
            assert server.do(do="put", run="mine", key="k", value='{"a": [1, null]}') == (200, {})
            assert run.kv.get("k") == {"a": [1, None]}
            assert server.do(do="requeue", run="mine", job=str(job))[0] == 200
            assert run.queues.counts("work").ready == 1
            assert server.do(do="remove", run="mine", key="k")[0] == 200 and run.kv.get("k") is None
            assert server.do(do="pause", run="mine")[0] == 200
            assert server.do(do="complete", run="mine")[0] in (200, 400, 409)
            assert server.do(do="put", run="@agent", key="k", value="1")[0] == 200
            assert db.shared("agent").kv.get("k") == 1
            for wrong, said in [
                ({"do": "drop"}, "do must be"), ({}, "do must be"), ({"do": "put", "run": 1}, "run must be"),
                ({"do": "put", "run": "mine", "key": "k", "value": "{"}, "JSON"),
                ({"do": "put", "run": "mine", "key": "", "value": "1"}, "key"),
                ({"do": "requeue", "run": "mine", "job": "x"}, "job"),
                ({"do": "put", "run": "mine", "key": "k", "value": '{"$bytes": "!"}'}, "JSON"),
                ({"do": "put", "run": "mine", "key": "k", "value": "9" * 5000}, "JSON"),
                ({"do": "put", "run": "mine", "key": "k", "value": "9" * 30}, "int"),
            ]:
                status, found = server.do(**wrong)
                assert status == 400 and said in found["error"], (wrong, found)
            assert server.do(do="delete", run="mine")[0] == 200
            assert server.do(do="complete", run="mine")[0] in (404, 409)
            with pytest.raises(inmem.RunDeletedError):
                run.kv.put("k", 1)

    def test_a_value_comes_back_as_it_was(self, home: Home, db: inmem.Database) -> None:
        run = db.run("edited")
        values = ["123", 123, 1.0, True, b"\xff", HOSTILE, {"$a": [None, float("inf")]}, 1 << 62]
        run.kv.put_many({f"key/{n}": value for n, value in enumerate(values)}, ttl=1000)
        run.kv.put("large", "x" * 2_000_000)
        with PageServer(home.place, "--write") as server:
            for n, value in enumerate(values):
                key = f"key/{n}"
                found = server.get("entry", run="edited", key=key)
                put = {"do": "put", "run": "edited", "key": key, "value": found["json"]}
                assert server.do(**put, version=found["version"]) == (200, {})
                again = run.kv.get(key)
                assert again == value and type(again) is type(value)
                assert (run.kv.ttl(key) or 0) > 900  # it lives as long as before
                status, said = server.do(**put, version=found["version"])
                assert status == 409 and "has changed" in said["error"]
            run.kv.delete("key/0")
            gone = {"do": "put", "run": "edited", "key": "key/0", "value": "1", "version": 1}
            assert server.do(**gone)[0] == 409 and run.kv.get("key/0") is None
            assert "json" not in server.get("entry", run="edited", key="large")  # too large to change here

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000])
    def test_what_is_no_request(self, home: Home, db: inmem.Database, body: bytes) -> None:
        with PageServer(home.place, "--write") as server:
            assert server.ask("/api/do", method="POST", body=body)[0] == 400


def test_ctrl_c_ends_it_while_pages_are_open(home: Home, db: inmem.Database) -> None:
    with PageServer(home.place) as server:
        told = server.told("trip")
        next(told)
        assert server.stop() == 130
        assert list(told)[-1] == ("bye", "the page's server has ended")


def test_a_port_that_is_taken(home: Home, db: inmem.Database, server: PageServer) -> None:
    command = [sys.executable, "-c", MAIN, "ui", "-d", str(home.place), "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "cannot be used" in done.stderr and "--port" in done.stderr
