"""What a check finds in damaged records, whichever engine they are of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from checking import problem_of
from damaging import BRIEF, EVENT, HOME, KEY, RUN, DamagedImage, DamagedTables
from homes import HOMES, Home, LocalHome, PostgresHome

import inmem
from inmem.engines.postgres.buckets import buckets_of_range
from inmem.keys import Key, TypeTag
from inmem.primitives.events import rules as event_log
from inmem.primitives.server import INDEX_TAGS
from inmem.record import pack, payload_of
from inmem.storage.environment import Table
from inmem.storage.wal.format import DELETE, PUT

Damaged = DamagedImage | DamagedTables


@pytest.fixture
def tables(request: pytest.FixtureRequest) -> Iterator[DamagedTables]:
    """A store on a server, to be damaged."""
    psycopg: Any = pytest.importorskip("psycopg")
    home = PostgresHome(request.getfixturevalue("postgres_server"))
    options = f"-c search_path={home.schema}"
    with psycopg.connect(home.conninfo, autocommit=True, options=options) as connection:
        yield DamagedTables(home.url, connection)
    home.close()


@pytest.fixture(params=HOMES, ids=lambda home: str(home.name))
def damaged(request: pytest.FixtureRequest) -> Damaged:
    """A store on one of the engines, to be damaged."""
    if request.param is LocalHome:
        return DamagedImage(request.getfixturevalue("store_path"))
    tables: DamagedTables = request.getfixturevalue("tables")
    return tables


class TestRecords:
    def test_a_value_that_does_not_decode(self, damaged: Damaged) -> None:
        damaged.change((PUT, Table.DATA, KEY, pack(1, 1, 0, b"\xc1")))
        assert "key-1" in (problem := problem_of(damaged.check())) and "does not decode" in problem

    def test_a_version_from_the_future(self, damaged: Damaged) -> None:
        damaged.change((PUT, Table.DATA, KEY, pack(1 << 60, 1, 0, b"\x01")))
        assert f"commit version {1 << 60}" in problem_of(damaged.check())

    def test_a_record_that_is_too_short(self, damaged: Damaged) -> None:
        damaged.change((PUT, Table.DATA, KEY, b"\0" * 9))
        assert "too short" in problem_of(damaged.check())

    @pytest.mark.parametrize("key", [b"no key", b"a/b/c/run\0", b"a/b/c/run\0\x99rest"])
    def test_a_key_that_is_none(self, damaged: Damaged, key: bytes) -> None:
        damaged.change((PUT, Table.DATA, key, pack(1, 1, 0, b"\x01")))
        assert "is no key" in problem_of(damaged.check())

    def test_a_name_that_is_none(self, damaged: Damaged) -> None:
        damaged.change((PUT, Table.DATA, Key.of(HOME.run_prefix(RUN), TypeTag.KV), pack(1, 1, 0, b"\x01")))
        assert "is no name" in problem_of(damaged.check())

    def test_an_event_with_another_payload(self, damaged: Damaged) -> None:
        record = damaged.stored(EVENT)
        event = event_log.unpack(5, payload_of(record))
        changed = event_log.pack(event._replace(payload=msgpack.packb({"n": 6})))
        damaged.change((PUT, Table.DATA, EVENT, record[:16] + changed))
        assert "EVENT" in (problem := problem_of(damaged.check())) and "hash does not match" in problem

    def test_an_event_that_is_none(self, damaged: Damaged) -> None:
        damaged.change((PUT, Table.DATA, EVENT, damaged.stored(EVENT)[:20]))
        problems = damaged.check().problems
        assert "does not decode" in problems[0]
        assert "EVENT_BY_TYPE has 12 entries, the records ask for 11" in problems[-1]

    def test_a_missing_event_is_one_problem_and_its_index_another(self, damaged: Damaged) -> None:
        damaged.change((DELETE, Table.DATA, EVENT))
        first, second = damaged.check().problems
        assert "the events from 5 on are missing" in first
        assert "EVENT_BY_TYPE has 12 entries, the records ask for 11" in second

    @pytest.mark.parametrize("change", ["missing", "another", "added"])
    def test_the_index_by_type(self, damaged: Damaged, change: str) -> None:
        prefix = HOME.run_prefix(RUN)
        right = Key.of(prefix, TypeTag.EVENT_BY_TYPE, b"type-0\0" + bytes(8))
        wrong = Key.of(prefix, TypeTag.EVENT_BY_TYPE, b"type-1\0" + bytes(8))
        ops = {
            "missing": [(DELETE, Table.DATA, right)],
            "another": [(DELETE, Table.DATA, right), (PUT, Table.DATA, wrong, pack(1, 1, 0, b""))],
            "added": [(PUT, Table.DATA, wrong, pack(1, 1, 0, b""))],
        }[change]
        damaged.change(*ops)
        assert "the index EVENT_BY_TYPE" in problem_of(damaged.check())

    @pytest.mark.parametrize("key", [
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_TYPE, b"step\0" + bytes(8) + b"child"),
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_TAG, b"c\0" + bytes(8) + b"child"),
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_PARENT, b"\0" + bytes(8) + b"child"),
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_TIME, bytes(8) + b"child"),
        Key.of(HOME.prefix(), TypeTag.RUN_BY_STATUS, b"active\0" + bytes(8) + b"run-1"),
        Key.of(HOME.prefix(), TypeTag.RUN_BY_TAG, b"y\0" + bytes(8) + b"run-1"),
        Key.of(HOME.prefix(), TypeTag.RUN_BY_PARENT, b"run-1\0" + bytes(8) + b"run-3"),
    ], ids=lambda key: TypeTag(key.split_key()[1]).name)  # fmt: skip
    def test_an_entry_too_many_in_any_index(self, damaged: Damaged, key: Key) -> None:
        damaged.change((PUT, Table.DATA, key, pack(1, 1, 0, b"")))
        assert f"the index {TypeTag(key.split_key()[1]).name}" in problem_of(damaged.check())

    @pytest.mark.parametrize("key", [Key.trace(HOME, RUN, "child"), Key.run(HOME, RUN)], ids=repr)
    def test_a_missing_record_shows_in_all_its_indices(self, damaged: Damaged, key: Key) -> None:
        damaged.change((DELETE, Table.DATA, key))
        problems = damaged.check().problems
        assert len(problems) == (4 if b"child" in key else 2)
        assert all("the index " in problem for problem in problems)

    @pytest.mark.parametrize("key", [
        Key.state(HOME, RUN, "phase"), Key.trace(HOME, RUN, "top"), Key.run(HOME, RUN),
        Key.of(HOME.run_prefix("gone-1"), TypeTag.STATE_MARK, b"mark"),
    ], ids=repr)  # fmt: skip
    def test_a_record_of_any_primitive_that_is_none(self, damaged: Damaged, key: Key) -> None:
        damaged.change((PUT, Table.DATA, key, damaged.stored(key)[:16]))
        assert damaged.check().problems[0].startswith(f"{key!r}: ")

    def test_a_record_in_a_deleted_run(self, damaged: Damaged) -> None:
        key = Key.kv(HOME, "gone-2", "key")
        version = damaged.version()
        damaged.change((PUT, Table.DATA, key, pack(version, 1, 0, b"\x01")))
        assert problem_of(damaged.check()) == "default/default/default/gone-2: was deleted, but has records"

    def test_thousands_of_problems_are_counted_and_not_kept(self, damaged: Damaged) -> None:
        bad = pack(1, 1, 0, b"\xc1")
        damaged.change(*((PUT, Table.DATA, Key.kv(HOME, "run-3", f"k{n}"), bad) for n in range(1500)))
        report = damaged.check()
        assert len(report.problems) == 1001
        assert report.problems[-1] == "500 more problems"


class TestRepair:
    def test_what_is_missing_and_what_is_wrong(self, damaged: Damaged) -> None:
        indices = {key: Key(key).split_key()[1] for key in damaged.all_keys()}
        last = {tag: key for key, tag in indices.items() if tag in INDEX_TAGS}  # of each index
        strays = [Key.of(Key(key).split_key()[0], tag, b"stray\0" + bytes(8)) for tag, key in last.items()]
        damaged.change(
            *((DELETE, Table.DATA, key) for key in last.values()),
            *((PUT, Table.DATA, key, pack(1, 1, 0, b"")) for key in strays),
        )
        assert len(damaged.check().problems) == len(last) >= 8
        prefixes = {Key(key).split_key()[0].decode() for key in last.values()}
        with inmem.open(damaged.place) as db:
            report = db.repair_indices()
            assert (report.added, report.removed) == (len(last), len(strays))
            assert set(report.repaired) == prefixes
            assert db.check().problems == []
            assert db.repair_indices().repaired == []
            assert db.repair_indices(RUN).repaired == []

    def test_beside_writers(self, home: Home) -> None:
        """An entry that was wrong when it was seen, and was written anew since, is left."""
        over = threading.Event()
        with home.open() as db:

            def write(name: str) -> None:
                run, number = f"mended-{name}", 0
                db.runs.create_run(run_id=run)
                while not over.is_set():
                    number += 1
                    db.runs.pause_run(run)
                    db.events.append(run, name, 1)
                    db.runs.resume_run(run)
                    db.kv.put(f"{name}-{number}", "k", 1, ttl=3600)
                    db.traces.record(f"{name}-{number}", inmem.Thought("x"), tags=["a"])
                    if number % 2:
                        db.runs.delete_run(f"{name}-{number}")

            threads = [threading.Thread(target=write, args=[name]) for name in "xy"]
            for thread in threads:
                thread.start()
            try:
                for _ in range(10):
                    assert db.repair_indices().repaired == []
                    assert db.check().problems == []
            finally:
                over.set()
                for thread in threads:
                    thread.join()


class TestTables:
    """What only a server has."""

    def test_nothing_is_wrong(self, tables: DamagedTables) -> None:
        report = tables.check()
        assert report.problems == [] and report.notes == []
        assert (report.logs, report.events, report.wal_records, report.checkpoint) == (2, 24, 0, 0)
        assert report.version == tables.version()

    def test_a_record_that_is_newer_than_its_bucket(self, tables: DamagedTables) -> None:
        (bucket,) = buckets_of_range(EVENT, EVENT + b"\0")
        tables.ask("update buckets set version = 5 where bucket = %s", bucket)
        assert "the store is at 5" in tables.check().problems[0]

    def test_a_bucket_that_has_no_row(self, tables: DamagedTables) -> None:
        (bucket,) = buckets_of_range(EVENT, EVENT + b"\0")
        tables.ask("delete from buckets where bucket = %s", bucket)
        assert "has no row" in problem_of(tables.check())

    def test_a_column_that_says_otherwise(self, tables: DamagedTables) -> None:
        tables.ask("update records set expires = expires + 1 where key = %s", BRIEF)
        assert "brief-1" in (problem := problem_of(tables.check())) and "its row says" in problem
        tables.ask("update records set expires = null where key = %s", BRIEF)
        assert "its row says None" in problem_of(tables.check())

    def test_sessions_and_fences_that_do_not_decode(self, tables: DamagedTables) -> None:
        tables.ask("update sessions set result = %s", b"\xc1")
        tables.ask("insert into fences values (%s, %s)", b"d" * 16, b"123")
        tables.ask("insert into fences values (%s, %s)", b"e" * 16, b"123456789")
        problems = tables.check().problems
        assert any("session" in problem for problem in problems)
        assert sum("fence" in problem for problem in problems) == 2
