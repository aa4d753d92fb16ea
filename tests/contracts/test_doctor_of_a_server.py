"""`inmem doctor` of a store on a server: what will hurt is found, with what to do, and nothing is changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from postgres_server import PostgresServer, binaries
from postgres_shared import MISSING
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.engines.postgres.schema import FORMAT

RUN = "r"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One whose settings and roles tests may change."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = PostgresServer("-N", "30", shared=False)
    yield server
    server.remove()


@pytest.fixture
def url(server: PostgresServer, request: pytest.FixtureRequest) -> str:
    """A store of the test's own."""
    url = server.url_of(f"d{abs(hash(request.node.name)) % 10**9}_{os.getpid()}")
    with inmem.open(url, timeout_s=20.0) as db:
        db.kv.put(RUN, "a", 1)
    return url


def asked(server: PostgresServer, *statements: str) -> None:
    options = "-c default_transaction_read_only=off"
    with psycopg.connect(server.conninfo, autocommit=True, options=options) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]


def told(url: str, code: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The document, and its findings by what they are about; each says what to do."""
    result = CliRunner().invoke(app, ["doctor", "-d", url, "--json"])
    assert result.exit_code == code, (result.output, result.exception)
    document = json.loads(result.output)
    assert document["ok"] is (code == 0) and document["directory"] is None
    assert all(len(finding["hint"]) > 10 for finding in document["findings"])
    return document, {finding["about"]: finding for finding in document["findings"]}


def problem(url: str, about: str) -> str:
    """The text of the only problem, and what to do."""
    document, _ = told(url, 1)
    [found] = [finding for finding in document["findings"] if finding["is_problem"]]
    assert found["about"] == about
    return f"{found['text']}: {found['hint']}"


def test_a_store_that_is_well(server: PostgresServer, url: str) -> None:
    document, findings = told(url, 0)
    found = document["server"]
    assert found["store"]["durability"] == "sync" and found["store"]["may_write"]
    assert found["version"] == found["settings"]["server_version"] and not found["is_behind_proxy"]
    assert abs(found["clock_ahead_s"]) < 5.0 and found["connections"] >= 1
    assert {about for about, one in findings.items() if one["is_problem"]} == set()
    assert "no standby is synchronous" in document["findings"][0]["text"]
    result = CliRunner().invoke(app, ["doctor", "-d", url])
    assert result.exit_code == 0 and "nothing that will hurt was found" in result.output
    assert "durability sync, may be written to" in result.output


def test_no_store(server: PostgresServer) -> None:
    text = problem(server.url_of("nothing_here"), "store")
    assert "holds no inmem database" in text and "inmem init" in text
    with psycopg.connect(server.conninfo) as connection:
        assert connection.execute("select to_regnamespace('nothing_here')").fetchone() == (None,)


def test_tables_of_another_program(server: PostgresServer) -> None:
    asked(server, "create schema taken", "create table taken.records (name text)")
    assert "another program: records" in problem(server.url_of("taken"), "store")


def test_another_format(server: PostgresServer, url: str) -> None:
    schema = url.rpartition("=")[2]
    asked(server, f"update {schema}.meta set format = format + 1")
    assert f"format {FORMAT + 1}, this inmem knows {FORMAT}" in problem(url, "store")


def test_a_server_that_is_not_there(server: PostgresServer) -> None:
    document, _ = told("postgresql://inmem@/postgres?host=/nowhere", 1)
    assert document["server"] is None and document["findings"][0]["about"] == "server"
    text = problem(server.url.replace("/postgres", "/missing"), "server")
    assert "does not exist" in text


def test_rights_that_are_missing(server: PostgresServer, url: str) -> None:
    schema = url.rpartition("=")[2]
    asked(server, "drop role if exists visitor", "create role visitor login")
    other = url.replace("inmem@", "visitor@")
    text = problem(other, "store")
    assert f"usage on schema {schema}" in text and f"grant usage on schema {schema} to visitor" in text
    asked(server, f"grant usage on schema {schema} to visitor")
    assert "select on all its tables" in problem(other, "store")
    asked(server, f"grant select on all tables in schema {schema} to visitor")
    document, findings = told(other, 0)
    assert "can read the store, and not write" in findings["rights"]["text"]
    assert not document["server"]["store"]["may_write"]
    asked(server, f"grant insert, update, delete on all tables in schema {schema} to visitor")
    document, findings = told(other, 0)
    assert document["server"]["store"]["may_write"] and "rights" not in findings
    with inmem.open(other) as db:
        db.kv.put(RUN, "a", 2)


SETTINGS = [
    ("full_page_writes = off", "durability", "full_page_writes is off"),
    ("synchronous_standby_names = 'x'", "durability", "none is connected"),
    ("autovacuum = off", "server", "autovacuum is off"),
]


@pytest.mark.parametrize(("setting", "about", "text"), SETTINGS, ids=[each[0] for each in SETTINGS])
def test_settings_that_hurt(server: PostgresServer, url: str, setting: str, about: str, text: str) -> None:
    name = setting.partition(" ")[0]
    asked(server, f"alter system set {setting}", "select pg_reload_conf()")
    try:
        for _ in range(100):
            document, findings = told_any(url)
            if any(text in finding["text"] for finding in document["findings"]):
                break
        assert text in findings[about]["text"] and findings[about]["is_problem"] and not document["ok"]
    finally:
        with psycopg.connect(server.conninfo, autocommit=True) as connection:
            connection.execute("set synchronous_commit = off")
            connection.execute(f"alter system reset {name}")  # type: ignore[call-overload]
            connection.execute("select pg_reload_conf()")


def told_any(url: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    result = CliRunner().invoke(app, ["doctor", "-d", url, "--json"])
    document = json.loads(result.output)
    return document, {each["about"]: each for each in reversed(document["findings"])}


def test_a_user_that_only_reads(server: PostgresServer, url: str) -> None:
    asked(server, "alter role inmem set default_transaction_read_only = on")
    try:
        assert "default_transaction_read_only = off" in problem(url, "server")
    finally:
        asked(server, "alter role inmem reset default_transaction_read_only")


def test_connections_that_are_used_up(server: PostgresServer, url: str) -> None:
    others = [psycopg.connect(server.conninfo) for _ in range(18)]
    try:
        _, findings = told(url, 0)
        assert "are left" in findings["connections"]["text"]
    finally:
        for other in others:
            other.close()


def test_a_store_that_is_ahead_of_the_clock(server: PostgresServer, url: str) -> None:
    schema = url.rpartition("=")[2]
    asked(server, f"update {schema}.buckets set version = version + 3600000000")
    assert "ahead of the server's clock" in problem(url, "clock")


def test_a_password_is_not_shown(server: PostgresServer, url: str) -> None:
    secret = url.replace("inmem@", f"inmem:{quote('correct horse')}@")
    for place in (secret, secret.replace("/postgres", "/missing")):
        for more in ([], ["--json"]):
            said = CliRunner().invoke(app, ["doctor", "-d", place, *more]).output
            assert "correct" not in said
