"""Huey in a store: its own tests on both engines, and what these do not look at."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from homes import Fresh, Home
from recorded_runs import SUITE
from support import in_threads, wait_until

import inmem

pytest.importorskip("huey", reason="the extra `huey` is not installed")

from huey.constants import EmptyData
from huey_suite import MODULES, close_flags, run, suite

from inmem.adapters.huey import InmemHuey, InmemStorage
from inmem.adapters.huey.layout import QUEUE, due_place

NOW = datetime(2030, 1, 2, 3, 4, 5)


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


@pytest.fixture
def storage(db: inmem.Database) -> InmemStorage:
    return InmemStorage("app", db, blocking=False)


@pytest.mark.parametrize("taken", ["removed", "begins", "ends"])
@pytest.mark.parametrize("name", MODULES)
def test_tests_of_huey(
    home: Home, name: str, taken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.chdir(tmp_path)  # one of them makes a file
    if home.name == "postgres" and taken != "ends" and not os.environ.get("INMEM_EXHAUSTIVE"):
        pytest.skip("a short form: with INMEM_EXHAUSTIVE=1 each way on each engine")
    close = close_flags(monkeypatch)
    with home.open(agent="suite") as db:
        ran, wrong, skipped = run(suite(name, taken, db, monkeypatch))
    close()
    assert wrong == [] and skipped == []
    assert ran >= MODULES[name]
    record_property(SUITE, {"name": f"huey.tests, a claim {taken}", "passed": ran - len(wrong), "of": ran})


# --- storage ----------------------------------------------------------------------------------

ODD = ["", " ", "a/b", "x" * 2000, "a\x00b", "\u00e9\U0001f600", "d#", "\ud800"]


@pytest.mark.parametrize("name", ODD, ids=lambda name: ascii(name)[1:20])
def test_keys_of_any_kind(storage: InmemStorage, name: str) -> None:
    storage.put_data(name, b"1")
    assert storage.peek_data(name) == b"1" and storage.result_items() == {name: b"1"}
    if name != "\ud800":  # which no bytes spell
        assert storage.peek_data(name.encode()) == b"1"
    assert (storage.incr(name, 2), storage.incr(name)) == (2, 3)
    assert storage.wait_result(name, 0) and not storage.put_if_empty(name, b"2")
    assert storage.peek_many([name]) == {name: b"1"}
    assert storage.delete_data(name) and not storage.delete_data(name)
    assert storage.result_store_size() == 0 and storage.incr(name, 0) == 3


def test_keys_in_bytes_that_are_no_text(storage: InmemStorage) -> None:
    storage.put_data(b"\xff\xfe", b"1")
    assert storage.pop_data(b"\xff\xfe") == b"1" and storage.pop_data(b"\xff\xfe") is EmptyData


def test_names_of_any_kind(db: inmem.Database) -> None:
    names = ["a", "A", "a-", "a\x00b", "\u00e9", "x" * 5000, "-"]
    for name in names:
        InmemStorage(name, db).put_data("key", name.encode())
    assert [InmemStorage(name, db).peek_data("key") for name in names] == [n.encode() for n in names]
    assert len({str(InmemStorage(name, db).run.run_id) for name in names}) == len(names)
    (record,) = [r for r in db.runs.query_runs(tags=["huey"]) if r.metadata["external_id"] == "huey/a"]
    assert record.run_id.startswith("huey-a-")


BAD: list[tuple[str, Callable[[InmemStorage], object]]] = [
    ("data", lambda s: s.enqueue("text")),
    ("priority", lambda s: s.enqueue(b"", 1.5)),
    ("priority", lambda s: s.enqueue(b"", float("nan"))),
    ("priority", lambda s: s.enqueue(b"", 1 << 31)),
    ("ts", lambda s: s.add_to_schedule(b"", 12.5)),
    ("data", lambda s: s.add_to_schedule(None, NOW)),
    ("key", lambda s: s.put_data(1, b"")),
    ("value", lambda s: s.put_data("key", "text")),
    ("key", lambda s: s.incr(None)),
    ("name", lambda _: InmemStorage("", "nowhere")),
    ("db", lambda _: InmemStorage("app")),
    ("db", lambda _: InmemHuey("app", 7)),
    ("lease_s", lambda _: InmemStorage("app", "nowhere", lease_s=0)),
    ("read_timeout", lambda _: InmemStorage("app", "nowhere", read_timeout=-1)),
    ("max_attempts", lambda _: InmemStorage("app", "nowhere", max_attempts=0)),
]


@pytest.mark.parametrize(("argument", "call"), BAD, ids=[f"{i}-{each[0]}" for i, each in enumerate(BAD)])
def test_wrong_arguments_are_named(storage: InmemStorage, argument: str, call: Any) -> None:
    with pytest.raises(inmem.InvalidInputError) as caught:
        call(storage)
    assert caught.value.argument == argument
    assert (storage.queue_size(), storage.schedule_size(), storage.result_items()) == (0, 0, {})


def test_large_messages_and_values_are_in_parts_that_go_with_them(storage: InmemStorage) -> None:
    large = bytes(range(256)) * (80 << 10)  # 20 MiB
    storage.enqueue(large, 1)
    storage.add_to_schedule(large[1:], NOW)
    storage.put_data("result", large[2:])
    assert storage.put_if_empty("lock", large[3:]) and not storage.put_if_empty("lock", large[4:])
    parts = storage.run.kv.count("p/")
    assert parts == 20
    assert storage.enqueued_items() == [large] == [storage.dequeue()]
    assert storage.scheduled_items() == [large[1:]] == storage.read_schedule(NOW)
    assert storage.peek_data("result") == large[2:] == storage.result_items()["result"]
    storage.put_data("result", b"small")
    assert storage.pop_data("lock") == large[3:] and storage.pop_data("result") == b"small"
    assert storage.run.kv.list("p/") == []
    storage.enqueue(large)
    storage.add_to_schedule(large, NOW)
    storage.put_data("result", large)
    storage.flush_all()
    assert storage.run.kv.list() == []


def test_the_schedule_is_in_the_order_of_times(storage: InmemStorage) -> None:
    micro, zone = timedelta(microseconds=1), timezone(timedelta(hours=5))
    times = [datetime.min, datetime(1969, 1, 1), NOW - micro, NOW, NOW + micro, datetime.max]
    for at in reversed(times):
        storage.add_to_schedule(str(at).encode(), at)
    storage.add_to_schedule(b"aware", NOW.astimezone(zone) + 2 * micro)
    wanted = [str(at).encode() for at in times]
    assert storage.scheduled_items(3) == wanted[:3]
    assert storage.read_schedule(NOW) == wanted[:4]
    assert storage.read_schedule(NOW) == [] and storage.schedule_size() == 3
    assert storage.read_schedule(NOW + 2 * micro) == [wanted[4], b"aware"]


def test_a_long_schedule_is_read_whole_and_once(storage: InmemStorage) -> None:
    messages = [b"%d" % number for number in range(1201)]

    def put(txn: inmem.Transaction) -> None:
        for number, message in enumerate(messages):
            place = due_place(NOW + timedelta(seconds=number))
            txn.kv.put(f"{place}/{inmem.RunId.new()}", {"data": message})

    storage.transact(put)
    assert storage.scheduled_items(2) == messages[:2] and storage.schedule_size() == len(messages)
    got: list[list[bytes]] = [[], []]

    def read(number: int) -> None:
        got[number] = storage.read_schedule(NOW + timedelta(days=1))

    in_threads(2, read)
    assert sorted(got[0] + got[1], key=int) == messages and storage.schedule_size() == 0


def test_one_of_many_gets_a_key_a_value_and_a_message(storage: InmemStorage) -> None:
    for number in range(40):
        storage.put_data(f"key-{number}", b"")
        storage.enqueue(b"%d" % number)
    taken: list[Any] = []

    def work(me: int) -> None:
        for number in range(40):
            if storage.put_if_empty(f"lock-{number}", b""):
                taken.append(("lock", number))
            if storage.pop_data(f"key-{number}") is not EmptyData:
                taken.append(("key", number))
            if (message := storage.dequeue()) is not None:
                taken.append(("message", int(message)))
            storage.incr("all")

    in_threads(4, work)
    kinds = ("lock", "key", "message")
    assert sorted(taken) == sorted((kind, number) for kind in kinds for number in range(40))
    assert storage.incr("all", 0) == 160


def test_a_worker_without_work_sleeps_and_is_woken(db: inmem.Database) -> None:
    storage = InmemStorage("app", db, read_timeout=30)
    got: list[float] = []

    def wait(number: int) -> None:
        if number:
            assert storage.dequeue() == b"message"
        else:
            assert storage.wait_result("key", 30)
        got.append(time.monotonic())

    workers = [threading.Thread(target=wait, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    time.sleep(0.2)  # until they sleep; if not, they find it at once
    put = time.monotonic()
    storage.enqueue(b"message")
    storage.put_data("key", b"")
    for worker in workers:
        worker.join(30)
    assert len(got) == 2 and max(got) - put < 10


def test_locks_end_with_their_time(storage: InmemStorage) -> None:
    assert storage.put_if_empty("lock", b"", ttl=0.2) and not storage.put_if_empty("lock", b"")
    wait_until(lambda: not storage.has_data_for_key("lock"), "the lock has expired")
    assert storage.put_if_empty("lock", b"")


def test_flushing_spares_what_is_taken_and_other_hueys(db: inmem.Database) -> None:
    one, other = (InmemStorage(name, db, blocking=False) for name in ("one", "other"))
    for each in (one, other):
        each.enqueue(b"a")
        each.enqueue(b"b")
        each.put_data("key", b"")
        each.incr("count")
    taken = one.take()
    assert taken is not None
    one.flush_all()
    assert (one.queue_size(), one.result_items(), one.incr("count", 0)) == (0, {}, 0)
    assert (other.queue_size(), other.result_items(), other.incr("count", 0)) == (2, {"key": b""}, 1)
    one.queues.ack(taken[0])


def test_messages_can_be_read_by_who_looks(db: inmem.Database) -> None:
    huey = InmemHuey("app", db)

    @huey.task(priority=7)
    def add(a: int, b: int) -> int:
        return a + b

    first = add(1, 2)
    second = add.schedule((1, 2), delay=60)
    (job, later) = huey.storage.queues.peek(QUEUE, limit=2)
    assert (job.payload["id"], job.payload["task"].rpartition(".")[2], job.priority) == (first.id, "add", 7)
    assert later.payload["id"] == second.id
