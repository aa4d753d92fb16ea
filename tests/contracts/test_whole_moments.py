"""What reads whole runs of a server goes over to newer snapshots, and shows one version all the same."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from exporting import exported
from homes import PostgresHome

import inmem
from inmem.exchange import count_runs, export_runs


@pytest.fixture
def db(request: pytest.FixtureRequest) -> Iterator[inmem.Database]:
    home = PostgresHome(request.getfixturevalue("postgres_server"))
    with home.open() as db:
        db.kv.put_many("r", {f"{n:04}": n for n in range(500)})
        yield db
    home.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement looks whether it may go over."""
    monkeypatch.setattr("inmem.engines.postgres.whole._RENEW_S", 0.0)
    monkeypatch.setattr("inmem.engines.postgres.whole._FIRST_PAGE", 10)
    monkeypatch.setattr("inmem.engines.postgres.whole._MAX_PAGE", 40)


def numbers_of(items: Any) -> list[int]:
    return [int(key[-4:]) for key, _ in items]


def range_of(db: inmem.Database, run: str) -> tuple[bytes, bytes]:
    prefix = db.namespace.run_prefix(run)
    return prefix + b"\0", prefix + b"\1"


def test_it_goes_over_while_nobody_writes_what_it_reads(db: inmem.Database, impatient: None) -> None:
    moment: Any = db.engine.stored()
    try:
        begun: list[Any] = []
        for number, _ in enumerate(moment.scan(*range_of(db, "r"))):
            if number % 50 == 0:
                db.kv.put("another", "k", number)
            if moment._snapshot not in begun:
                begun.append(moment._snapshot)
        assert number == 499 and len(begun) > 2
    finally:
        moment.close()


def test_it_stays_when_what_it_has_read_is_written(db: inmem.Database, impatient: None) -> None:
    moment: Any = db.engine.stored()
    try:
        items = moment.scan(*range_of(db, "r"))
        first = [next(items) for _ in range(10)]
        db.kv.put("r", "0499", "else")
        db.kv.put("r", "0600", "more")
        db.kv.delete("r", "0400")
        rest = list(items)
        assert numbers_of([*first, *rest]) == list(range(500))
        assert moment.get(range_of(db, "r")[0] + b"\x01" + b"0400") is not None
    finally:
        moment.close()


def test_an_export_beside_writers_is_of_one_moment(db: inmem.Database, impatient: None) -> None:
    over = threading.Event()

    def step(txn: Any) -> None:
        number = txn.kv.get("a", 0) + 1
        txn.kv.put("a", number)
        txn.events.append("e", number)

    def write() -> None:
        while not over.is_set():
            db.transact("r", step)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            lines = exported(db, "r").splitlines()
            events = sum(b'"kind":"event"' in line for line in lines)
            last = next(line for line in lines if b'"key":"a"' in line) if events else b'"value":0'
            assert f'"value":{events}'.encode() in last
    finally:
        over.set()
        thread.join()


def test_a_url_is_exported_as_a_path_is(db: inmem.Database, request: pytest.FixtureRequest) -> None:
    assert exported(db.name) == exported(db) and count_runs(db.name) == 1
    with pytest.raises(inmem.InvalidInputError, match="holds no inmem database"):
        exported(db.name + "_not")


def test_nobody_s_snapshot_grows_old(db: inmem.Database, impatient: None) -> None:
    """Of a consumer that is slow: between two statements the snapshot is another one."""

    class Slow(io.BytesIO):
        written = 0

        def write(self, data: Any) -> int:
            self.written += 1
            if self.written % 100 == 0:
                ages.append(db.status().oldest_snapshot_age_s or 0.0)
            return super().write(data)

    ages: list[float] = []
    export_runs(db, Slow())
    assert len(ages) >= 4 and max(ages) < 30


def test_prefixes_are_told_in_order_whatever_their_number(db: inmem.Database) -> None:
    with db.pipeline() as p:
        for number in range(1100):
            p.kv.put(f"many-{number:04}", "k", 1)
    found = [prefix.rpartition(b"/")[2].decode() for prefix in db.engine.prefixes()]
    assert found == sorted(found) and {f"many-{n:04}" for n in range(1100)} < set(found)
    assert db.repair_indices().repaired == [] and db.check().problems == []


def test_large_values_make_small_pages(db: inmem.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inmem.engines.postgres.whole._FIRST_PAGE", 4096)
    values = {f"{n:02}": bytes([n]) * 1_000_000 for n in range(12)}
    for key, value in values.items():
        db.kv.put("large", key, value)
    moment: Any = db.engine.stored()
    sizes = []
    ask = moment.ask

    def asked(query: str, *arguments: Any) -> Any:
        found = ask(query, *arguments)
        sizes.append(len(found))
        return found

    moment.ask = asked
    try:
        for reverse in (False, True):
            found = moment.scan(*range_of(db, "large"), reverse=reverse)
            assert [int(key[-2:]) for key, _ in found] == sorted(range(12), reverse=reverse)
    finally:
        moment.close()
    assert max(sizes) <= 5
