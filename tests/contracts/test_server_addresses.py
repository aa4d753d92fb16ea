"""On PostgreSQL: a store is found however libpq may be told where its server is."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from postgres_server import PostgresServer

import inmem

SCHEMA = "addresses"


@pytest.fixture(autouse=True)
def told(postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server by a service file, and by libpq's variables."""
    service = tmp_path / "services"
    service.write_text(f"[work]\nhost={postgres_server.place}\nport=5432\nuser=inmem\ndbname=postgres\n")
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    for name, value in {"PGHOST": str(postgres_server.place), "PGPORT": "5432", "PGUSER": "inmem"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("address", [
    "postgresql:///postgres", "postgres:///postgres", "postgresql:///?dbname=postgres",
    "postgresql:///?service=work", "postgresql://?service=work", "postgresql://inmem@/postgres",
    "postgresql://:5432/postgres", "postgresql:///postgres?sslmode=prefer&connect_timeout=3",
])  # fmt: skip
def test_where_a_server_is(address: str) -> None:
    with inmem.open(f"{address}{'&' if '?' in address else '?'}schema={SCHEMA}") as db:
        db.kv.put("r", address, 1)
        for other in (inmem.open(str(db.name)), pickle.loads(pickle.dumps(db))):  # noqa: S301
            with other:
                assert other.kv.get("r", address) == 1
                assert other.name == db.name


def test_a_default_database_of_the_user(postgres_server: PostgresServer) -> None:
    with pytest.raises(inmem.InmemError, match='database "inmem" does not exist'):
        inmem.open(f"postgresql://?schema={SCHEMA}", timeout_s=20.0)
