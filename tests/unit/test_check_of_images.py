"""What `check` finds in a damaged image, and what it says of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from checking import problem_of
from support import control_state

from inmem.keys import Key, Namespace, TypeTag
from inmem.maintenance import table_check as tables
from inmem.maintenance.check import check
from inmem.maintenance.check_report import check_in_process
from inmem.primitives.events import rules as event_log
from inmem.record import pack, payload_of
from inmem.storage.environment import Table
from inmem.storage.position import POSITION_KEY
from inmem.storage.store import Store
from inmem.storage.wal.format import DELETE, PUT

HOME = Namespace()
RUN = "run-1"
KEY = Key.kv(HOME, RUN, "key-1")
BRIEF = Key.kv(HOME, RUN, "brief-1")
EVENT = Key.event(HOME, RUN, 5)


@contextlib.contextmanager
def image_of(path: Path) -> Iterator[Store]:
    """The image that a killed writer left, opened for writing."""
    store = Store(Path(control_state(path).image), max_readers=1024, quota_bytes=1 << 30)
    try:
        yield store
    finally:
        store.close()


def damage(path: Path, *ops: tuple[Any, ...], **position: Any) -> None:
    """Change the image behind everybody's back; it still says that it stands where it stood."""
    with image_of(path) as store:
        assert store.position is not None
        txn = store.begin()
        txn.apply(ops)
        txn.publish(replace_position(store, position))


def replace_position(store: Store, changes: dict[str, Any]) -> Any:
    assert store.position is not None
    return store.position._replace(**changes)


def stored_position(path: Path) -> Any:
    with image_of(path) as store:
        return store.position


def stored(path: Path, key: bytes) -> bytes:
    with image_of(path) as store:
        txn = store.begin()
        try:
            record = txn.get(key)
        finally:
            txn.abort()
    assert record is not None
    return bytes(record)


class TestDamagedImage:
    def test_a_damage_that_is_none_leaves_no_problem(self, killed: Path) -> None:
        """The tool of these tests itself: rewriting what is there is not noticed."""
        damage(killed, (PUT, Table.DATA, KEY, stored(killed, KEY)))
        assert check(killed).problems == []

    def test_a_value_that_does_not_decode(self, killed: Path) -> None:
        damage(killed, (PUT, Table.DATA, KEY, pack(1, 1, 0, b"\xc1")))
        assert "key-1" in (problem := problem_of(check(killed))) and "does not decode" in problem

    def test_a_version_from_the_future(self, killed: Path) -> None:
        damage(killed, (PUT, Table.DATA, KEY, pack(1 << 40, 1, 0, b"\x01")))
        assert f"commit version {1 << 40}" in problem_of(check(killed))

    def test_a_record_that_is_too_short(self, killed: Path) -> None:
        damage(killed, (PUT, Table.DATA, KEY, b"\0" * 9))
        assert "too short" in problem_of(check(killed))

    @pytest.mark.parametrize("key", [b"no key", b"a/b/c/run\0", b"a/b/c/run\0\x99rest"])
    def test_a_key_that_is_none(self, killed: Path, key: bytes) -> None:
        damage(killed, (PUT, Table.DATA, key, pack(1, 1, 0, b"\x01")))
        assert "is no key" in problem_of(check(killed))

    def test_a_name_that_is_none(self, killed: Path) -> None:
        damage(killed, (PUT, Table.DATA, Key.of(HOME.run_prefix(RUN), TypeTag.KV), pack(1, 1, 0, b"\x01")))
        assert "is no name" in problem_of(check(killed))

    def test_an_event_with_another_payload(self, killed: Path) -> None:
        record = stored(killed, EVENT)
        event = event_log.unpack(5, payload_of(record))
        changed = event_log.pack(event._replace(payload=msgpack.packb({"n": 6})))
        damage(killed, (PUT, Table.DATA, EVENT, record[:16] + changed))
        assert "EVENT" in (problem := problem_of(check(killed))) and "hash does not match" in problem

    def test_an_event_that_is_none(self, killed: Path) -> None:
        damage(killed, (PUT, Table.DATA, EVENT, stored(killed, EVENT)[:20]))
        problems = check(killed).problems
        assert "does not decode" in problems[0]
        assert "EVENT_BY_TYPE has 12 entries, the records ask for 11" in problems[-1]

    def test_a_missing_event_is_one_problem_and_its_index_another(self, killed: Path) -> None:
        damage(killed, (DELETE, Table.DATA, EVENT))
        first, second = check(killed).problems
        assert "the events from 5 on are missing" in first
        assert "EVENT_BY_TYPE has 12 entries, the records ask for 11" in second

    @pytest.mark.parametrize("change", ["missing", "another", "added"])
    def test_the_index_by_type(self, killed: Path, change: str) -> None:
        prefix = HOME.run_prefix(RUN)
        right = Key.of(prefix, TypeTag.EVENT_BY_TYPE, b"type-0\0" + bytes(8))
        wrong = Key.of(prefix, TypeTag.EVENT_BY_TYPE, b"type-1\0" + bytes(8))
        ops = {
            "missing": [(DELETE, Table.DATA, right)],
            "another": [(DELETE, Table.DATA, right), (PUT, Table.DATA, wrong, pack(1, 1, 0, b""))],
            "added": [(PUT, Table.DATA, wrong, pack(1, 1, 0, b""))],
        }[change]
        damage(killed, *ops)
        assert "the index EVENT_BY_TYPE" in problem_of(check(killed))

    @pytest.mark.parametrize("key", [
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_TYPE, b"step\0" + bytes(8) + b"child"),
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_TAG, b"c\0" + bytes(8) + b"child"),
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_PARENT, b"\0" + bytes(8) + b"child"),
        Key.of(HOME.run_prefix(RUN), TypeTag.TRACE_BY_TIME, bytes(8) + b"child"),
        Key.of(HOME.prefix(), TypeTag.RUN_BY_STATUS, b"active\0" + bytes(8) + b"run-1"),
        Key.of(HOME.prefix(), TypeTag.RUN_BY_TAG, b"y\0" + bytes(8) + b"run-1"),
        Key.of(HOME.prefix(), TypeTag.RUN_BY_PARENT, b"run-1\0" + bytes(8) + b"run-3"),
    ], ids=lambda key: TypeTag(key.split_key()[1]).name)  # fmt: skip
    def test_an_entry_too_many_in_any_index(self, killed: Path, key: Key) -> None:
        damage(killed, (PUT, Table.DATA, key, pack(1, 1, 0, b"")))
        assert f"the index {TypeTag(key.split_key()[1]).name}" in problem_of(check(killed))

    @pytest.mark.parametrize("key", [Key.trace(HOME, RUN, "child"), Key.run(HOME, RUN)], ids=repr)
    def test_a_missing_record_shows_in_all_its_indices(self, killed: Path, key: Key) -> None:
        damage(killed, (DELETE, Table.DATA, key))
        problems = check(killed).problems
        assert len(problems) == (4 if b"child" in key else 2)
        assert all("the index " in problem for problem in problems)

    @pytest.mark.parametrize("key", [
        Key.state(HOME, RUN, "phase"), Key.trace(HOME, RUN, "top"), Key.run(HOME, RUN),
        Key.of(HOME.run_prefix("gone-1"), TypeTag.STATE_MARK, b"mark"),
    ], ids=repr)  # fmt: skip
    def test_a_record_of_any_primitive_that_is_none(self, killed: Path, key: Key) -> None:
        damage(killed, (PUT, Table.DATA, key, stored(killed, key)[:16]))
        assert check(killed).problems[0].startswith(f"{key!r}: ")

    def test_a_record_in_a_deleted_run(self, killed: Path) -> None:
        key = Key.kv(HOME, "gone-2", "key")
        version = stored_position(killed).version
        damage(killed, (PUT, Table.DATA, key, pack(version, 1, 0, b"\x01")))
        assert problem_of(check(killed)) == "default/default/default/gone-2: was deleted, but has records"

    def test_a_missing_entry_in_the_order_of_expiry(self, killed: Path) -> None:
        entry = stored(killed, BRIEF)[16:24] + BRIEF
        damage(killed, (DELETE, Table.EXPIRY, entry))
        problem = problem_of(check(killed))
        assert "brief-1" in problem and "order of expiry" in problem

    def test_an_entry_of_another_time_does_not_count(self, killed: Path) -> None:
        entry = stored(killed, BRIEF)[16:24] + BRIEF
        later = (int.from_bytes(entry[:8], "big") + 1).to_bytes(8, "big") + BRIEF
        damage(killed, (DELETE, Table.EXPIRY, entry), (PUT, Table.EXPIRY, later, b""))
        assert "brief-1" in problem_of(check(killed))

    def test_missing_entries_beyond_one_chunk_are_all_named(
        self, killed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tables, "_CHUNK", 3)
        keys = [Key.kv(HOME, run, f"brief-{n}") for run in (RUN, "run-2") for n in range(5)]
        gone = keys[::2]
        records = [(stored(killed, key)[16:24] + key) for key in gone]
        damage(killed, *((DELETE, Table.EXPIRY, entry) for entry in records))
        assert check(killed).problems == [
            f"{key!r}: expires, but is not in the order of expiry" for key in gone
        ]

    def test_sessions_that_do_not_decode(self, killed: Path) -> None:
        damage(killed, (PUT, Table.SESSIONS, b"s" * 16, b"\xc1"))
        assert "the sessions cannot be read" in problem_of(check(killed))

    def test_a_position_that_the_log_does_not_have(self, killed: Path) -> None:
        damage(killed, checksum=1)
        assert "at which the image stands" in problem_of(check(killed))

    def test_a_version_that_is_not_the_position_s(self, killed: Path) -> None:
        with image_of(killed) as store:
            position = msgpack.packb(store.position)
            txn = store.begin()
            txn.publish(replace_position(store, {"version": 7}))
            txn = store.begin()
            txn.apply([(PUT, Table.META, POSITION_KEY, position)])
            txn._txn.commit()
        assert any("the image shows version 7" in problem for problem in check(killed).problems)

    def test_thousands_of_problems_are_counted_and_not_kept(self, killed: Path) -> None:
        bad = pack(1, 1, 0, b"\xc1")
        damage(killed, *((PUT, Table.DATA, Key.kv(HOME, "run-3", f"k{n}"), bad) for n in range(1500)))
        report = check(killed)
        assert len(report.problems) == 1001
        assert report.problems[-1] == "500 more problems"

    def test_an_image_that_lmdb_cannot_read(self, killed: Path) -> None:
        data = Path(control_state(killed).image) / "data.mdb"
        with data.open("r+b") as f:  # every page but the two with the roots
            f.seek(2 * 4096)
            f.write(b"\xff" * (data.stat().st_size - 2 * 4096))
        report = check_in_process(killed)
        assert "MDB_CORRUPTED" in problem_of(report) and str(data.parent) in problem_of(report)
