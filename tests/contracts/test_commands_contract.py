"""Commands on a store of each engine: the same words, and the same answers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from homes import HOMES, Home, PostgresHome
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.exchange import export_runs

SECRET = "geheim"
ONLY_HERE = [
    ("serve",), ("start",), ("stop",), ("backup", "file"), ("restore", "file"), ("checkpoint",), ("clock",),
    ("salvage", "new"), ("config",), ("config", "set", "durability", "sync"),
]  # fmt: skip
PROGRAM = [sys.executable, "-W", "error", "-c", "from inmem.cli import main; main()"]


class Place:
    """A store as commands name it."""

    def __init__(self, home: Any, folder: Path) -> None:
        self.home = home
        self.is_server = isinstance(home, PostgresHome)
        self.name = home.url if self.is_server else str(folder / "store")

    def said(self, *words: object, code: int = 0, name: str | None = None) -> str:
        """What a command prints."""
        result = CliRunner().invoke(app, [*map(str, words), "-d", name or self.name])
        assert result.exit_code == code, (words, result.output, result.exception)
        assert SECRET not in result.output, words
        return result.output

    def told(self, *words: object, code: int = 0) -> Any:
        """What it prints for programs."""
        return json.loads(self.said(*words, "--json", code=code))


@pytest.fixture(params=HOMES, ids=lambda home: str(home.name))
def place(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Place]:
    """Where there is no store yet."""
    with ExitStack() as stack:
        is_server = request.param is PostgresHome
        home: Any = PostgresHome(request.getfixturevalue("postgres_server")) if is_server else None
        if home is not None:
            stack.callback(home.close)
        yield Place(home, scratch)


def fill(place: Place) -> None:
    with inmem.open(place.name) as db:
        db.runs.create_run(run_id="trip", tags=["red"])
        db.runs.create_run(run_id="leg", parent_run="trip")
        db.kv.put_many("trip", {"a": 1, "b": [True, None]})
        db.events.append_many("trip", [("moved", {"n": n}) for n in range(12)])
        db.cells.init("trip", "phase", "on the way")
        db.traces.record("trip", inmem.Thought("where to"), id="t1", tags=["x"])
        db.leases.acquire("trip", "door", ttl_s=60, holder="me")
        db.queues.put_many("trip", "todo", [1, 2, 3])


def test_a_store_is_made_and_looked_at(place: Place) -> None:
    said, told = place.said, place.told
    assert "holds no inmem database" in said("runs", code=1)
    assert "holds a database" in said("init")
    made = told("init")
    assert made["durability"] and SECRET not in made["path"]
    fill(place)
    assert [run["run_id"] for run in map(json.loads, said("runs", "--json").splitlines())] == ["leg", "trip"]
    assert "trip" in said("runs", "--tag", "red", "--tree")
    summary = told("run", "trip")
    counts = {name: count for name, count in summary["counts"].items() if count}
    assert counts == {
        "kv": 2, "events": 12, "cells": 1, "traces": 1, "leases": 1, "queues": 1, "jobs": 3
    }
    assert summary["children"] == 1 and "on the way" in said("run", "trip")
    assert "there is no run nope" in said("run", "nope", code=1)
    assert len(said("events", "trip", "--last", 3, "--json").splitlines()) == 3
    assert "on the way" in said("cells", "trip")
    assert "where to" in said("traces", "trip", "--tag", "x")
    assert "door" in said("leases", "trip")
    assert "whole: 12 events" in said("verify", "trip")
    assert told("kv", "get", "trip", "a")["value"] == 1
    assert len(said("kv", "ls", "trip", "--json").splitlines()) == 2
    assert "todo" in said("queue", "list", "trip")
    assert told("queue", "counts", "trip", "todo")["ready"] == 3
    assert told("check")["ok"] and "12 events in 1 event logs" in said("check")


def test_a_store_is_written(place: Place) -> None:
    said, told = place.said, place.told
    said("init")
    said("kv", "put", "r", "k", "5")
    assert told("kv", "get", "r", "k")["value"] == 5
    said("kv", "put", "r", "other", "6")
    said("kv", "del", "r", "k")
    assert "no key" in said("kv", "get", "r", "k", code=1)
    said("queue", "put", "r", "q", "7")
    with inmem.open(place.name) as db:
        job = db.queues.claim("r", "q", worker="w")
        assert isinstance(job, inmem.Job) and job.payload == 7
        db.leases.acquire("r", "door", ttl_s=60, holder="me")
    said("lease", "release", "r", "door")
    assert "nobody has lease" in said("lease", "release", "r", "door", code=1)
    assert told("check")["ok"]


def test_runs_go_from_store_to_store(place: Place, scratch: Path) -> None:
    fill(place)
    file = scratch / "runs.jsonl"
    report = place.told("export", "-o", file)
    assert report["runs"] == 2 and report["events"] == 12
    with inmem.open(place.name) as db:
        out = io.BytesIO()
        export_runs(db, out)
    assert file.read_bytes() == out.getvalue()
    (again,) = place.told("import", file)
    assert again["unchanged"] == ["leg", "trip"]
    assert "1 runs" in place.said("export", "trip", "-o", scratch / "one.jsonl")
    assert "elsewhere" in place.said("import", file, "--rename", "trip=elsewhere") + "elsewhere"
    assert "no import of run" in place.said("import", "--discard", "trip", code=1)
    page = scratch / "trip.html"
    place.said("report", "trip", "-o", page)
    assert "on the way" in page.read_text()


def test_status_and_top(place: Place) -> None:
    fill(place)
    with inmem.open(place.name) as db:
        status = place.told("status")
        assert status["serving"] and status["version"] == db.status().version
        assert status["clients"] >= 1 and status["image_bytes"] > 0
        assert "version" in place.said("status")
        (line,) = place.said("top", "--count", 1, "-i", 0.1, "--json").splitlines()
        assert json.loads(line)["version"] == status["version"]
        assert "clients" in place.said("top", "--count", 1, "-i", 0.1)


def test_events_are_followed(place: Place) -> None:
    fill(place)
    words = ["events", "trip", "--follow", "--from", "11", "--limit", "3", "--json", "-d", place.name]
    with (
        subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, text=True) as program,
        inmem.open(place.name) as db,
    ):
        assert program.stdout is not None
        assert json.loads(program.stdout.readline())["sequence"] == 11
        for number in (12, 13):
            db.events.append("trip", "later", number)
            began = time.monotonic()
            assert json.loads(program.stdout.readline())["payload"] == number
            assert time.monotonic() - began < 5
        assert program.wait(10) == 0


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Home]:
    home = PostgresHome(request.getfixturevalue("postgres_server"))
    yield home
    home.close()


@pytest.mark.parametrize("words", ONLY_HERE, ids=" ".join)
def test_what_is_of_one_machine_says_what_to_use_instead(server: Any, words: tuple[str, ...]) -> None:
    place = Place(server, Path())
    told = place.told(*words, code=1)["error"]
    assert told["code"] == inmem.InvalidInputError.code and "this one is on a server" in told["message"]
    assert len(told["hint"]) > 20


def test_no_password_is_shown(server: Any, scratch: Path) -> None:
    place = Place(server, scratch)
    place.name = name = server.url.replace("inmem@", f"inmem:{SECRET}@")
    place.said("kv", "get", "r", "k", code=1)
    place.said("init")
    for words in (
        ("status",), ("status", "--json"), ("check",), ("kv", "put", "r", "k", "1"), ("runs",),
        ("top", "--count", 1), ("export", "-o", scratch / "f"), ("import", scratch / "f"), ("run", "r"),
        ("init", "--json"),
    ):  # fmt: skip
        place.said(*words)
    place.said("runs", name, code=2)  # an argument too many
    place.said("status", name="postgresql://inmem:geheim@/x?port=1&host=/nowhere", code=1)
    place.said("status", name="postgresql://inmem:geheim@/x?nonsense=geheim", code=1)
    place.said("status", name="postgresql://inmem:geheim@[/x", code=1)
    old = CliRunner().invoke(app, ["runs", name])  # the older form
    assert old.exit_code == 0 and SECRET not in old.output and SECRET not in old.stderr


def test_without_psycopg_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['psycopg'] = None; from inmem.cli import main; main()"
    words = [sys.executable, "-c", code, "status", "-d", f"postgresql://a:{SECRET}@b/c"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "pip install 'inmem[postgres]'" in done.stderr
    assert SECRET not in done.stderr and "Traceback" not in done.stderr
