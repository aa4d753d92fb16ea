"""On PostgreSQL: each statement goes by an index, also with a plan that was made when the store was small.

The server keeps the plans of prepared statements. One that reads all of an index is as good as any
while there are few rows, and it is kept while they become many.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from postgres_server import PostgresServer

import inmem
from inmem.engines import postgres
from inmem.engines.postgres import settings, taking
from inmem.engines.postgres.asking import Statement
from inmem.engines.postgres.statements import WriteStatement

PLANNED: Final = ("select", "with", "insert", "update", "delete")
SHAPES: Final = [(1, 0), (4, 3), (0, 1), (-1, -1)]  # records that a statement puts, and deletes
ONE_ROW: Final = "on meta"
BY_INDEX: Final = ("Index Scan", "Index Only Scan")
NOT_BY_INDEX: Final = ("Seq Scan", "Bitmap", "Hash Join", "Merge Join", "Hash Semi Join", "Merge Semi Join")


def statements() -> dict[str, Statement]:
    """All that the engine prepares."""
    found = {}
    for info in pkgutil.iter_modules(postgres.__path__, f"{postgres.__name__}."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            some = value.values() if isinstance(value, dict) else value
            for number, each in enumerate(some if isinstance(value, dict | list) else [value]):
                if isinstance(each, Statement):
                    found[f"{name} {number}"] = each
                elif isinstance(each, WriteStatement):
                    found |= {f"{name} {number} {shape}": each._made(*shape) for shape in SHAPES}
    found |= {f"take {by}": taking._statement(2, 2, by) for by in (False, True)}
    return {name: each for name, each in found.items() if each.text.decode().startswith(PLANNED)}


def unindexed(plan: list[str]) -> list[str]:
    """What of a plan costs more, the larger a table is."""
    found = []
    for at, line in enumerate(plan):
        is_whole = any(each in line for each in BY_INDEX) and not any(
            "Index Cond" in each for each in plan[at + 1 : at + 2]
        )
        if (is_whole or any(each in line for each in NOT_BY_INDEX)) and ONE_ROW not in line:
            found.append(line.strip())
    return found


def problems(url: str) -> dict[str, list[str]]:
    """Of all statements, by name."""
    found = {}
    with inmem.open(url) as db, db.engine.store.connections.one() as connection:
        names = {oid: str(type_name) for oid, type_name in connection.execute(
            "select oid::bigint, oid::regtype::text from pg_type"
        ).fetchall()}  # fmt: skip
        for name, statement in statements().items():
            takes = ", ".join(names[oid] for oid in statement.oids)
            nulls = ", ".join("null" for _ in statement.oids)
            connection.execute(f"prepare it {f'({takes})' if takes else ''} as {statement.text.decode()}")
            plan = connection.execute(f"explain execute it {f'({nulls})' if nulls else ''}").fetchall()
            connection.execute("deallocate it")
            if wrong := unindexed([line for line, in plan]):
                found[name] = wrong
    return found


@pytest.fixture(scope="module", params=["new", "small"])
def url(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[str]:
    """A store of which the server knows nothing, or that it is small."""
    schema = f"plans_{request.param}"
    url = postgres_server.url_of(schema)
    with inmem.open(url) as db:
        if request.param == "small":
            db.kv.put("r", "a", 1)
            db.queues.put("r", "q", 1)
            db.events.append("r", "e")
    if request.param == "small":
        with psycopg.connect(postgres_server.conninfo, autocommit=True) as connection:
            for table in ("records", "buckets", "sessions", "fences", "meta"):
                connection.execute(f"analyze {schema}.{table}")  # type: ignore[arg-type]
    yield url


def test_each_statement_goes_by_an_index(url: str) -> None:
    assert len(statements()) > 50
    assert problems(url) == {}


@pytest.mark.parametrize("url", ["small"], indirect=True)
def test_planted_plans_of_a_small_table(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = settings.prepare

    def prepare(connection: Any, *arguments: Any) -> None:
        real(connection, *arguments)
        for name in ("enable_mergejoin", "enable_hashjoin"):
            connection.execute(f"set {name} = on")

    monkeypatch.setattr("inmem.engines.postgres.connections.prepare", prepare)
    assert any("WRITE_IF_SO" in name for name in problems(url)), "the test above would not notice it"
