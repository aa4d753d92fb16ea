"""The backend of dogpile.cache: its wheel's suite, and what that does not look at."""

from __future__ import annotations

import importlib
import os
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import Fresh, Home
from recorded_runs import SUITE

import inmem

pytest.importorskip("dogpile.cache", reason="the extra `dogpile` is not installed")

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile_workers import MADE, make_for_ever, make_values, region_of
from suites import ROOT, run_suite
from support import Workers, wait_until

from inmem.adapters.dogpile import InmemBackend

LONG = b"x" * (20 << 20)
SLOW = "test_threaded_get_multi"  # it sleeps for ten seconds
COUNT = 56


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


def test_the_suite_of_its_wheel(
    home: Home, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    everything = bool(os.environ.get("INMEM_EXHAUSTIVE"))
    left_out = [] if everything else [f"TestSerializers and {SLOW}"]
    if home.name != "local" and not everything:
        left_out.append(SLOW)
    chosen = " or ".join(f"({each})" for each in left_out)
    counts = run_suite(
        "dogpile_suite.py", tmp_path, settings="markers = time_intensive: it sleeps\n",
        environment={"INMEM_TESTED": str(home.place)}, arguments=("-k", f"not ({chosen})") if chosen else (),
    )
    assert counts["passed"] + counts["deselected"] == COUNT
    assert counts["deselected"] == (0 if everything else 1 if home.name == "local" else 2)
    assert counts["skipped"] == counts["failed"] == 0
    record_property(SUITE, {"name": "dogpile.testing, in its wheel", "passed": counts["passed"], "of": COUNT})


def run_id_of(db: inmem.Database) -> str:
    [run] = db.runs.query_runs(tags=["dogpile"])
    return run.run_id


def test_keys_of_any_kind_and_regions(db: inmem.Database) -> None:
    one, other = InmemBackend({"store": db, "name": "one"}), InmemBackend({"store": db, "name": "two"})
    odd = ["", " ", "a/b", "é\U0001f600", "x" * 2000, "a\0b", "=", "#", "日" * 100]
    assert one.get_serialized("a") is NO_VALUE and one.get_serialized_multi(odd) == [NO_VALUE] * len(odd)
    one.set_serialized_multi({key: key.encode() for key in odd})
    assert one.get_serialized_multi([*odd, "none"]) == [*(key.encode() for key in odd), NO_VALUE]
    assert [one.get_serialized(key) for key in odd] == [key.encode() for key in odd]
    assert other.get_serialized_multi(odd) == [NO_VALUE] * len(odd)
    stored = [db.kv.get_versioned(run_id_of(db), key) for key in db.kv.list(run_id_of(db))]
    assert len({each.version for each in stored if each}) == 1, "one commit"
    for key in odd:
        mutex, same = one.get_mutex(key), InmemBackend({"store": db, "name": "one"}).get_mutex(key)
        assert mutex and same and mutex.acquire(False) and not same.acquire(False) and same.locked()
        mutex.release()
        assert not same.locked()
        with pytest.raises(inmem.InvariantError, match="was not acquired"):
            mutex.release()
    one.delete_multi(odd[1:])
    one.delete("none")
    assert one.get_serialized_multi(odd) == [b"", *[NO_VALUE] * (len(odd) - 1)]
    assert db.runs.get_run(run_id_of(db)).metadata == {"region": "one"}  # type: ignore[union-attr]
    with pytest.raises(inmem.InvalidInputError, match="lone surrogate"):
        one.set_serialized("\ud800", b"")


def test_values_of_any_size(db: inmem.Database) -> None:
    region = region_of(db)
    region.set_multi({"a": LONG, "b": [LONG, 1], "c": 2})
    assert region.get_multi(["a", "b", "c", "d"], ignore_expiration=True) == [LONG, [LONG, 1], 2, NO_VALUE]
    assert region.get("a", ignore_expiration=True) == LONG
    run_id = run_id_of(db)
    assert len({key.split("/")[1] for key in db.kv.list(run_id, "p/")}) == 2
    region.set("a", 3)
    region.delete("b")
    assert db.kv.list(run_id, "p/") == [] and db.kv.list(run_id, "l/") == []
    assert region.get_multi(["a", "b", "c"], ignore_expiration=True) == [3, NO_VALUE, 2]


def test_values_leave_the_store(db: inmem.Database) -> None:
    backend = InmemBackend({"store": db, "ttl_s": 0.3})
    backend.set_serialized("a", b"1")
    backend.set_serialized("b", LONG)
    assert backend.get_serialized("b") == LONG
    wait_until(lambda: db.kv.list(run_id_of(db), "e/") == [], "both are gone")
    assert backend.get_serialized_multi(["a", "b"]) == [NO_VALUE] * 2


def test_one_program_at_a_time_makes_a_value(fresh: Fresh, workers: Workers) -> None:
    place = fresh()
    place["path"] = str(place["path"])
    count, rounds = 3, 40
    for index in range(count):
        workers.start(make_values, index, place, rounds, "key " * 100)
    wait_until(lambda: workers.words.total(count) == count, "all are there", 60.0)
    workers.words.open_gate()
    results = workers.results()
    with inmem.open(**place) as db:
        events = [*db.events.iter(MADE)]
    assert all(seen == sorted(seen) and len(seen) == rounds for seen in results)
    assert len(events) > 2, "it grew old and was made again"
    for begun, done in zip(events[::2], events[1::2], strict=True):
        assert (begun.event_type, done.event_type) == ("begun", "done")
        assert begun.payload == done.payload, "nobody else made it meanwhile"


def test_a_program_dies_while_it_makes_a_value(fresh: Fresh, workers: Workers) -> None:
    place = fresh()
    place["path"] = str(place["path"])
    with inmem.open(**place) as db:
        region = region_of(db, lock_ttl_s=0.5)
        worker = workers.start(make_for_ever, 0, place, 0.5)
        wait_until(lambda: workers.words[0], "it makes the value", 60.0)
        assert region.key_is_locked("slow")
        mutex = InmemBackend({"store": db, "lock_wait_s": 0.8}).get_mutex("slow")
        assert mutex is not None and not mutex.acquire(False)
        assert not mutex.acquire(), "longer than the lease: it is renewed while its program lives"
        worker.process.kill()
        worker.process.wait()
        assert region.get_or_create("slow", lambda: "made here") == "made here"
        assert not region.key_is_locked("slow")


def test_another_thread_gives_a_mutex_back(db: inmem.Database) -> None:
    ended = threading.Event()

    def runner(cache: Any, key: str, creator: Any, mutex: Any) -> None:
        def make() -> None:
            cache.set(key, creator())
            mutex.release()
            ended.set()

        threading.Thread(target=make).start()

    region = make_region(async_creation_runner=runner)
    region.configure("inmem", expiration_time=0.05, arguments={"store": db})
    region.set("a", "old")
    time.sleep(0.06)
    assert region.get_or_create("a", lambda: "new") == "old"
    assert ended.wait(30)
    assert region.get("a", ignore_expiration=True) == "new" and not region.key_is_locked("a")


def test_a_run_that_was_deleted_behind_its_back(db: inmem.Database) -> None:
    backend = InmemBackend({"store": db})
    for use in (
        lambda: backend.set_serialized("a", b"2"), lambda: backend.get_serialized_multi(["a"]),
        lambda: backend.set_serialized("a", LONG), lambda: backend.delete("a"),
        lambda: backend.get_serialized("a"),
    ):
        backend.set_serialized("a", b"1")
        mutex = backend.get_mutex("a")
        assert mutex is not None
        db.runs.delete_run(run_id_of(db))
        assert mutex.acquire()
        mutex.release()
        db.runs.delete_run(run_id_of(db))
        use()
        backend.set_serialized("a", b"3")
        assert backend.get_serialized("a") == b"3" and len(db.runs.list_runs()) == 1


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INMEM_PATH", raising=False)
    for arguments, named in (
        ({}, "store"), ({"store": 7}, "store"), ({"store": "s", "name": ""}, "name"),
        ({"store": "s", "name": "\ud800"}, "name"), ({"store": "s", "ttl_s": 0}, "ttl_s"),
        ({"store": "s", "lock_ttl_s": "1"}, "lock_ttl_s"),
        ({"store": "s", "lock_wait_s": True}, "lock_wait_s"),
    ):
        with pytest.raises(inmem.InvalidInputError) as caught:
            InmemBackend(arguments)  # type: ignore[arg-type]
        assert caught.value.argument == named
    monkeypatch.setenv("INMEM_PATH", str(tmp_path / "store"))
    backend = InmemBackend({"distributed_lock": False, "url": "ignored"})
    assert backend.get_mutex("a") is None and "default" in repr(backend)
    backend.set_serialized("a", b"1")
    backend.close()
    backend.close()
    assert backend.get_serialized("a") == b"1"
    backend.close()


def test_it_is_found_by_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["dogpile.cache"]["inmem"].partition(":")
    assert getattr(importlib.import_module(module), name) is InmemBackend
