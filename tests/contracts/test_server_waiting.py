"""Waiting for what is on a server: how many look, over how many connections, and who is woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from homes import PostgresHome
from postgres_server import PostgresServer

import inmem
from inmem.engines.postgres import hints, looking

RUN = "run"
LONG_S = 60.0


@pytest.fixture
def there(postgres_server: PostgresServer) -> Iterator[PostgresHome]:
    home = PostgresHome(postgres_server)
    yield home
    home.close()


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When somebody was told that something has changed."""
    times: list[float] = []
    real = looking.WaitersOfStore._end

    def end(self: Any, waiter: Any, error: Any = None) -> None:
        times.append(time.monotonic())
        real(self, waiter, error)

    monkeypatch.setattr(looking.WaitersOfStore, "_end", end)
    return times


def store_of(db: inmem.Database) -> Any:
    return db.engine.store  # type: ignore[attr-defined]


def until(condition: Any, what: str, timeout_s: float = LONG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def backends(home: PostgresHome) -> int:
    """Connections to the server, but for this one."""
    import psycopg

    with psycopg.connect(home.conninfo) as connection:
        found = connection.execute(
            "select count(*) from pg_stat_activity where backend_type = 'client backend'"
        ).fetchone()
        assert found is not None
        return int(found[0]) - 1


def test_a_thousand_threads_wait_over_few_connections(there: PostgresHome) -> None:
    with there.open() as db:
        db.kv.put(RUN, "k", 0)
        before = backends(there)
        came: list[int] = []

        def wait(number: int) -> None:
            came.append(db.wait(RUN, lambda view: view.kv.get(f"go-{number % 10}"), timeout_s=LONG_S))

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(1000)]
        for thread in threads:
            thread.start()
        polled = store_of(db).poller
        until(lambda: polled.waiting >= 1000, "all wait")
        store_of(db).connections.close_idle(0.0)
        until(lambda: backends(there) - before <= 3, "few connections are left")
        assert not came
        statements = polled.statements
        time.sleep(1.0)
        assert polled.statements - statements <= 60
        for number in range(10):
            db.kv.put(RUN, f"go-{number}", 1)
        for thread in threads:
            thread.join(LONG_S)
        assert len(came) == 1000


def test_of_64_takers_one_put_wakes_one(there: PostgresHome, woken: list[float]) -> None:
    with there.open() as db:
        db.queues.put(RUN, "q", "first")
        db.queues.ack(db.queues.claim(RUN, "q"))  # type: ignore[arg-type]
        got: list[Any] = []

        def take() -> None:
            while (job := db.queues.claim(RUN, "q", wait_s=LONG_S)) is not None and job.payload != "end":
                db.queues.ack(job)
                got.append(job.payload)

        threads = [threading.Thread(target=take) for _ in range(64)]
        for thread in threads:
            thread.start()
        until(lambda: store_of(db).poller.waiting >= 64, "all wait")
        woken.clear()
        for number in range(10):
            db.queues.put(RUN, "q", number)
            until(lambda n=number: len(got) > n, "it is taken")
            until(lambda: store_of(db).poller.waiting >= 64, "all wait again")
        assert got == [*range(10)]
        assert len(woken) <= 20, "one for each, or two where it looked in between"
        db.queues.put_many(RUN, "q", ["end"] * 64)
        for thread in threads:
            thread.join(LONG_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("listens", [True, False])
def test_a_change_wakes_soon_with_hints_and_without(there: PostgresHome, listens: bool) -> None:
    with there.open() as db, there.open(agent="other") as other:
        store = store_of(db)
        store.listens = listens
        assert store_of(other) is store
        db.kv.put(RUN, "k", 0)
        took: list[float] = []
        for number in range(5):
            begun = threading.Event()
            at: list[float] = []

            version = db.kv.get_versioned(RUN, "k").version  # type: ignore[union-attr]

            def wait(version: int = version, begun: Any = begun, at: Any = at) -> None:
                begun.set()
                db.kv.wait(RUN, "k", after=version, timeout_s=LONG_S)
                at.append(time.monotonic())

            thread = threading.Thread(target=wait)
            thread.start()
            begun.wait()
            time.sleep(0.4)  # it is said, or looked seldom
            began = time.monotonic()
            db.kv.put(RUN, "k", number + 1)
            thread.join(LONG_S)
            took.append(at[0] - began)
        assert (store.connections.hints.count > 0) is listens
        assert sorted(took)[2] < 1.0


def test_hints_that_never_come_are_not_missed(there: PostgresHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints.Hints, "give", lambda *_: None)
    with there.open() as db:
        db.kv.put(RUN, "k", 0)
        threading.Timer(0.5, lambda: db.kv.put(RUN, "go", 1)).start()
        assert db.wait(RUN, lambda view: view.kv.get("go"), timeout_s=LONG_S) == 1


def test_who_writes_elsewhere_wakes_nobody(there: PostgresHome, woken: list[float]) -> None:
    """A wait is looked at when its bucket was written, and ends when what it has read has changed."""
    with there.open() as db:
        db.kv.put(RUN, "k", 0)
        thread = threading.Thread(target=lambda: db.kv.wait(RUN, "mine", timeout_s=LONG_S))
        thread.start()
        until(lambda: store_of(db).poller.waiting == 1, "it waits")
        for number in range(20):
            db.kv.put(RUN, "theirs", number)
            db.kv.put("another", "mine", number)
            time.sleep(0.01)
        assert not woken
        db.kv.put(RUN, "mine", 1)
        thread.join(LONG_S)
        assert len(woken) == 1


def test_a_closed_handle_ends_its_waits_and_no_others(there: PostgresHome) -> None:
    db, other = there.open(), there.open()
    outcomes: dict[str, Any] = {}

    def wait(name: str, handle: inmem.Database) -> None:
        try:
            outcomes[name] = handle.kv.wait(RUN, "go", timeout_s=LONG_S)
        except inmem.ClosedError as error:
            outcomes[name] = error

    threads = [threading.Thread(target=wait, args=each) for each in (("db", db), ("other", other))]
    for thread in threads:
        thread.start()
    until(lambda: store_of(db).poller.waiting == 2, "both wait")
    db.close()
    threads[0].join(LONG_S)
    assert isinstance(outcomes["db"], inmem.ClosedError) and "other" not in outcomes
    other.kv.put(RUN, "go", 1)
    threads[1].join(LONG_S)
    assert outcomes["other"].value == 1
    other.close()
