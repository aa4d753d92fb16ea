"""What a user of a server needs: to make a store, to write it, and to read it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from homes import PostgresHome

import inmem
from inmem.exchange import export_runs, import_runs

GRANTS = (  # as docs/guide/more-than-one-machine.md has them
    "grant usage on schema {schema} to {user}",
    "grant select, insert, update, delete on all tables in schema {schema} to {user}",
)


class Shop:
    """A store, and users of its server."""

    def __init__(self, server: Any) -> None:
        self.home = PostgresHome(server)
        self.users: list[str] = []

    def sql(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.home.conninfo, autocommit=True) as connection:
            connection.execute(statement.format(schema=self.home.schema, user=self.users[-1]))

    def user(self, *grants: str) -> str:
        """The URL of a new user who has these rights."""
        self.users.append(f"user_{self.home.schema}_{len(self.users)}")
        self.sql("create role {user} login")
        for grant in grants:
            self.sql(grant)
        return self.home.url.replace("inmem@", f"{self.users[-1]}@")

    def close(self) -> None:
        self.home.close()
        while self.users:
            self.sql("drop owned by {user}; drop role {user}")
            self.users.pop()


@pytest.fixture
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(request.getfixturevalue("postgres_server"))
    yield shop
    shop.close()


def test_whoever_may_change_rows_can_do_all_but_make_the_store(shop: Shop) -> None:
    shop.home.open().close()
    with inmem.open(shop.user(*GRANTS)) as db:
        db.runs.create_run(run_id="r", tags=["t"])
        db.kv.put("r", "k", 1)
        db.events.append("r", "e", 1)
        db.transact("r", lambda txn: txn.kv.add("k"))
        with db.pipeline() as batch:
            batch.kv.put("r", "more", 2)
        db.queues.put("r", "q", 1)
        job = db.queues.claim("r", "q", worker="w")
        assert isinstance(job, inmem.Job)
        assert db.leases.acquire("r", "door", ttl_s=30).token
        db.runs.delete_run("r")
        db.kv.put("s", "k", 1)
        out = io.BytesIO()
        export_runs(db, out)
        out.seek(0)
        assert import_runs(db, out, rename={"s": "t"}).runs == 1
        assert db.repair_indices().repaired == [] and db.check().problems == []
        status = db.status()
        assert status.clients >= 1 and status.image_bytes > 0 and status.sessions >= 1
        assert db.sync() == status.version


def test_whoever_may_only_read_reads(shop: Shop) -> None:
    with shop.home.open() as db:
        db.kv.put("r", "k", 1)
    reader = shop.user(GRANTS[0], "grant select on all tables in schema {schema} to {user}")
    with inmem.open(reader) as db:
        assert db.kv.get("r", "k") == 1
        with db.snapshot("r") as seen:
            assert seen.kv.list() == ["k"]
        assert db.check().problems == []
        assert db.status().version > 0


def test_whoever_may_not_make_a_store_is_told_who_may(shop: Shop) -> None:
    with pytest.raises(inmem.PermissionDeniedError) as caught:
        inmem.open(shop.user())
    assert "inmem init" in caught.value.hint


def test_a_schema_that_is_there_needs_no_right_to_make_one(shop: Shop) -> None:
    """Whoever owns a schema makes a store in it, in a database in which nobody may make schemas."""
    shop.users.append("nobody")
    shop.sql("create schema {schema}")
    shop.users.pop()
    owner = shop.user("alter schema {schema} owner to {user}")
    with inmem.open(owner) as db:
        db.kv.put("r", "k", 1)
        assert db.check().problems == []


@pytest.mark.parametrize("create", [True, False])
def test_a_user_who_may_not_look_into_the_schema(shop: Shop, create: bool) -> None:
    """Nothing is seen there: neither is there no store, nor is it another program's."""
    shop.home.open().close()
    for grants in ([], GRANTS[1:]):
        with pytest.raises(inmem.PermissionDeniedError, match="usage on schema") as caught:
            inmem.open(shop.user(*grants), create=create)
        assert f"grant usage on schema {shop.home.schema} to {shop.users[-1]}" in caught.value.hint
