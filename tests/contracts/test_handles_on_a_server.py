"""Handles of a store on a server: closed, pickled, forked and shared as those of any store.

What is imported here are tests of local stores, which run a second time.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults.test_36_handles_that_travel import (
    load,
    test_what_is_of_one_process_does_not_travel,
    use,
)
from faults.test_68_threads_and_closing import (
    often,
    test_a_pipeline_of_several_threads_at_once,
    test_a_snapshot_of_several_threads_at_once,
    test_a_snapshot_that_another_thread_closes,
    test_a_transaction_of_several_threads_at_once,
    test_a_transaction_that_ends_while_another_thread_is_inside,
    test_closing_under_threads,
    test_handles_are_handed_over,
    test_what_belongs_to_a_closed_handle,
)
from forks import in_child
from homes import PostgresHome

import inmem
from inmem.engines.postgres import store as store_module

__all__ = [
    "often",
    "test_a_pipeline_of_several_threads_at_once",
    "test_a_snapshot_of_several_threads_at_once",
    "test_a_snapshot_that_another_thread_closes",
    "test_a_transaction_of_several_threads_at_once",
    "test_a_transaction_that_ends_while_another_thread_is_inside",
    "test_closing_under_threads",
    "test_handles_are_handed_over",
    "test_what_belongs_to_a_closed_handle",
    "test_what_is_of_one_process_does_not_travel",
]

SECRET = "geheim"
loads = pickle.loads


@pytest.fixture
def home_on_server(request: pytest.FixtureRequest) -> Iterator[PostgresHome]:
    home = PostgresHome(request.getfixturevalue("postgres_server"))
    yield home
    home.close()


@pytest.fixture
def store_path(home_on_server: PostgresHome) -> str:
    """What local stores have a path for."""
    return home_on_server.url


@pytest.fixture
def db(store_path: str) -> Iterator[inmem.Database]:
    with inmem.open(store_path) as db:
        yield db


class TestPickle:
    def test_it_finds_its_store_and_has_no_password(self, store_path: str) -> None:
        url = store_path.replace("inmem@", f"inmem:{SECRET}@")
        with inmem.open(url) as db, inmem.open(url, tenant="b") as other:
            for one in (db, other):
                scope, shared = one.run("r"), one.shared("agent")
                scope.kv.put("k", str(one.namespace))
                shared.kv.put("k", "shared")
                for make in (lambda thing: loads(pickle.dumps(thing)), copy.copy, copy.deepcopy):
                    assert make(scope).kv.get("k") == str(one.namespace)
                    assert make(shared).kv.get("k") == "shared"
                    assert make(one).engine.is_same_store(one.engine)
            travels = pickle.dumps({"db": db, "scope": db.run("r"), "kv": db.kv})
            assert SECRET.encode() not in travels
            assert SECRET not in repr(db) + str(db.engine.__dict__) + repr(db.run("r")) + db.name

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_in_another_process(self, home_on_server: PostgresHome, method: str) -> None:
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        with inmem.open(home_on_server.url) as db:
            db.kv.put("r", "k", 1)
            for thing in (db, db.kv):
                child = context.Process(target=use, args=(thing, queue))
                child.start()
                assert queue.get(timeout=60) == 1
                child.join()
            travels = pickle.dumps(db)
        home_on_server.close()
        for _ in range(2):  # gone, and made anew
            child = context.Process(target=load, args=(travels, queue))
            child.start()
            assert queue.get(timeout=60) == "DatabaseGoneError"
            child.join()
            inmem.open(home_on_server.url).close()
        queue.close()
        queue.join_thread()


def snapshot(db: inmem.Database) -> None:
    with db.snapshot("r") as view:
        view.kv.list()


USES: dict[str, Callable[[inmem.Database], Any]] = {
    "get": lambda db: db.kv.get("r", "k"),
    "put": lambda db: db.kv.put("r", "child", 1),
    "add": lambda db: db.run("r").kv.add("n"),
    "check": lambda db: db.check(),
    "transact": lambda db: db.transact("r", lambda txn: txn.kv.put("child", txn.kv.get("k"))),
    "snapshot": snapshot,
    "status": lambda db: db.status(),
    "open again": lambda db: inmem.open(db.name).kv.put("r", "child", 1),
}


class TestFork:
    @pytest.mark.parametrize("name", USES)
    def test_both_go_on(self, db: inmem.Database, name: str) -> None:
        db.kv.put("r", "k", 1)
        db.kv.get("r", "k")
        assert in_child(lambda: USES[name](db)) == "ok"
        USES[name](db)
        assert in_child(db.close) == "ok"
        assert db.kv.get("r", "k") == 1 and db.check().problems == []

    def test_each_commit_counts_once(self, db: inmem.Database) -> None:
        db.kv.put("r", "n", 0)
        over = threading.Event()

        def add() -> None:
            while not over.is_set():
                db.kv.add("r", "mine")

        threads = [threading.Thread(target=add) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            assert in_child(lambda: [db.kv.add("r", "n") for _ in range(5)]) == "ok"
            db.kv.add("r", "n")
        over.set()
        for thread in threads:
            thread.join()
        assert db.kv.get("r", "n") == 60 and db.check().problems == []

    @pytest.mark.parametrize("inside", ["snapshot", "transaction"])
    def test_what_is_open_is_the_parent_s(self, db: inmem.Database, inside: str) -> None:
        db.kv.put("r", "k", 1)
        with getattr(db, inside)("r") as thing:
            assert thing.kv.get("k") == 1
            for _ in range(2):
                assert in_child(lambda: thing.kv.get("k")) == "ForkError"
                assert in_child(lambda: thing.kv.list()) == "ForkError"
            assert in_child(lambda: db.kv.put("r", "child", 1)) == "ok"
            assert thing.kv.get("k") == 1 and thing.kv.list() == ["k"]


def test_one_handle_of_several_is_closed(store_path: str, db: inmem.Database) -> None:
    with inmem.open(store_path) as other:
        other.kv.put("r", "k", 1)
    assert db.kv.get("r", "k") == 1
    with pytest.raises(inmem.ClosedError):
        other.kv.get("r", "k")


def test_nothing_is_left_on_the_server(home_on_server: PostgresHome) -> None:
    import psycopg

    with inmem.open(home_on_server.url) as db:
        threads = [threading.Thread(target=db.kv.put, args=("r", f"{n}", n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert db.status().clients == 1
    with psycopg.connect(home_on_server.conninfo) as connection:
        for _ in range(100):
            found = connection.execute(
                "select count(*) from pg_stat_activity where application_name like %s",
                (f"inmem {home_on_server.schema} %",),
            ).fetchone()
            if found == (0,):
                break
            connection.rollback()
        assert found == (0,)


def opened_in_the_middle(
    url: str, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]
) -> tuple[list[Any], list[BaseException]]:
    """What a call gives, or raises, in the middle of the opening of a store, by the same thread."""
    gave: list[Any] = []
    raised: list[BaseException] = []
    make = store_module._found_or_made

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(store_module, "_found_or_made", make)
        try:
            gave.append(call())
        except BaseException as error:
            raised.append(error)
        return make(*arguments)

    monkeypatch.setattr(store_module, "_found_or_made", interrupted)
    thread = threading.Thread(target=lambda: inmem.open(url).close(), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for itself"
    return gave, raised


def test_a_handle_that_is_collected_while_a_store_is_opened(
    store_path: str, db: inmem.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer runs in the middle of anything."""
    other = inmem.open(store_path + "&application_name=other")
    store = other.engine.store  # type: ignore[attr-defined]
    left = other.engine
    del other

    def collect() -> bool:
        store.let_go()  # as the finalizer of a handle does
        return bool(store.connections.is_closed)

    gave, raised = opened_in_the_middle(store_path + "&application_name=third", monkeypatch, collect)
    assert (gave, raised) == ([False], [])
    assert store.connections.is_closed, "whoever opened has closed it"
    assert left is not None and db.kv.list("r") == []


def test_a_signal_handler_that_opens_while_a_store_is_opened(
    store_path: str, db: inmem.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gave, raised = opened_in_the_middle(
        store_path + "&application_name=third", monkeypatch, lambda: inmem.open(store_path)
    )
    assert gave == []
    assert [type(error) for error in raised] == [inmem.BusyError]
    inmem.open(store_path).close()
    assert db.kv.list("r") == []
