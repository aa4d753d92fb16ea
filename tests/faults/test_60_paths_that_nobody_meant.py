"""A URL, a typo or an unexpanded path is refused, with the reason, and makes no store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app

URLS = [
    "redis://localhost:6379/0", "Postgresql://user:secret@host/db", "postgres:/h/d", "file:///tmp/x",
    "file://x", "file:x", "FILE:/x", "http://h/", "https://h/x", "sqlite:///x.db", "sqlite:x.db", "s3://b/k",
    "unix:///run/x", "tcp://h:1", "inmem://x", "memory://", "memory:", ":memory:", "postgresql+psycopg://h/d",
    "mongodb+srv://u:secret@h/d", "a://", Path("redis://localhost/0"), Path("postgresql://u:secret@h/db"),
]  # fmt: skip
UNEXPANDED = [
    "~", "~/data", "~root/data", "./~/data", "$HOME/data", "${HOME}/data", "./$HOME/data", "a/${X}",
    "%TEMP%/x", Path("~/data"), Path("$HOME") / "data",
]  # fmt: skip
AROUND = [
    " data", "data ", "\tdata", "data\n", "data\r\n", "\u00a0data", "data\u2003", '"data"', "'data'", "   ",
    " postgresql://u:secret@h/d", "'postgresql://u:secret@h/d'", "postgresql ://u:secret@h/d ",
    "da\nta", "da\x07ta", "da\x1b[0mta", "da\x7fta", "\ufeffdata", "data\u2028", Path(" data"), "C:\\data",
]  # fmt: skip
CONNECTIONS = [
    "host=localhost dbname=d password=secret", "dbname=d", " user = u password='secret'", "service=work",
    "password=secret host=h", "port=5432 host=/tmp", Path("host=h password=secret"),
]
MEANT = [
    "./user=5", "hosts=1",
    "data", "./data", "a b", "a:b", "redis:6379", "10:30", "a~b", "b~", "./~data", "price$5", "100%",
    "50%off", "caf\u00e9", "\u6570\u636e", "-x", "a'b", "data.db", "it's", "#1", "a=b", "a&b", "a;b",
    "a*b", "a?b", "[a]",
]  # fmt: skip


@pytest.fixture
def place(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(scratch)
    return scratch


def len_of(path: Any) -> str:
    return f"{type(path).__name__}-{len(str(path))}"


def message_of(error: inmem.InmemError) -> str:
    return f"{error} {error.hint}"


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("path", [*URLS, *UNEXPANDED, *AROUND, *CONNECTIONS], ids=ascii)
def test_what_nobody_meant_is_refused(place: Path, path: Any, create: bool) -> None:
    with pytest.raises(inmem.InvalidInputError) as caught:
        inmem.open(path, create=create)
    assert caught.value.argument == "path" and "secret" not in message_of(caught.value)
    said = str(caught.value)
    assert said.isprintable() and caught.value.hint.isprintable()
    if path in URLS:
        assert "URL" in said or ":memory:" in said
    elif path in UNEXPANDED:
        assert "expanded" in said
    elif path in CONNECTIONS:
        assert "connection string" in said and "postgresql://" in caught.value.hint
    assert not os.listdir(place)


@pytest.mark.parametrize("path", ["x" * 256, "\u00e9" * 128, "a/" * 2100 + "x", Path("x" * 256)], ids=len_of)
@pytest.mark.parametrize("create", [True, False])
def test_longer_than_the_system_allows(place: Path, path: Any, create: bool) -> None:
    with pytest.raises(inmem.InvalidInputError, match="too long for this system") as caught:
        inmem.open(path, create=create)
    assert caught.value.argument == "path" and "shorter" in caught.value.hint
    assert not os.listdir(place)


@pytest.mark.parametrize("path", MEANT)
def test_unusual_names_are_not(place: Path, path: str) -> None:
    with inmem.open(path) as db:
        db.kv.put("r", "k", 1)
        assert db.path == place / path.removeprefix("./")
    with inmem.open(path, create=False) as db:
        assert db.kv.get("r", "k") == 1


def test_a_directory_with_the_name_of_a_scheme_can_be_used(place: Path) -> None:
    (place / "redis:").mkdir()
    inmem.open(Path("redis:/data")).close()
    (place / "$X").mkdir()
    os.chdir(place / "$X")  # what is meant by a relative path is not doubted
    inmem.open("data").close()
    assert (place / "$X" / "data" / "settings.json").exists()


@pytest.mark.parametrize("path", ["missing/data", "a/b/c/data", "./x/../y/data", "file/data", "file/x/data"])
def test_what_it_lies_in_must_be_there(place: Path, path: str) -> None:
    (place / "file").write_text("a file")
    for arguments in ({}, {"autostart": True, "timeout_s": 1}, {"durability": "sync"}):
        with pytest.raises(inmem.InvalidInputError, match=r"no directory") as caught:
            inmem.open(path, **arguments)
        first = os.path.normpath(path).split("/")[0]
        assert str(place / first) in str(caught.value) and caught.value.argument == "path"
    assert os.listdir(place) == ["file"]


def test_create_off_opens_only_what_is_there(place: Path) -> None:
    for path in ("data", "a/b"):
        with pytest.raises(inmem.InvalidInputError, match="holds no inmem database") as caught:
            inmem.open(path, create=False)
        assert str(place / path) in str(caught.value)
    with pytest.raises(inmem.InvalidInputError):
        inmem.open(create=False)
    (place / "empty").mkdir(mode=0o700)
    with pytest.raises(inmem.InvalidInputError, match="holds no inmem database"):
        inmem.open("empty", create=False)
    assert os.listdir(place) == ["empty"] and not os.listdir("empty")
    inmem.open("data").close()
    with inmem.open("data", create=False) as db, inmem.open("data", create=False, tenant="b") as other:
        db.kv.put("r", "k", 1)
        assert other.kv.get("r", "k") is None


COMMANDS = [
    ["serve", "PATH"], ["start", "PATH"], ["status", "PATH"], ["check", "PATH"],
    ["kv", "get", "r", "k", "PATH"], ["kv", "put", "r", "k", "1", "PATH"], ["runs", "PATH"],
    ["checkpoint", "PATH"],
    ["restore", "backup", "PATH"], ["salvage", "store", "PATH"], ["backup", "PATH", "copy"],
    ["import", "PATH", "lines"], ["export", "PATH", "-o", "lines2"], ["stop", "PATH"],
    ["config", "show", "PATH"],
]  # fmt: skip


def run(command: list[str]) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "INMEM_PATH": None}).invoke(app, command)
    return done.exit_code, done.output


def test_commands_refuse_them_too(place: Path) -> None:
    with inmem.open("store") as db:
        db.kv.put("r", "k", 1)
        assert run(["backup", "store", "backup"])[0] == 0
    assert run(["export", "store", "-o", "lines"])[0] == 0
    assert run(["stop", "store"])[0] == 0  # a writer that lingers is a reason of its own to refuse
    before = sorted(os.listdir(place))
    for command in COMMANDS:
        for path, word in (("redis://h/0", "URL"), ("~/data", "expanded"), ("data ", "space")):
            code, said = run([*(path if part == "PATH" else part for part in command), "--json"])
            assert code == 1, (command, path, said)
            error = json.loads(said.splitlines()[-1])["error"]
            assert error["code"] == "invalid_input" and word in error["message"], (command, said)
    for command in COMMANDS:
        if command[0] in ("serve", "start", "restore", "salvage", "import"):
            code, said = run(["missing/data" if part == "PATH" else part for part in command])
            assert code == 1 and "no directory" in said, (command, said)
    assert sorted(os.listdir(place)) == before
