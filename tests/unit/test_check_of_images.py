"""What `check` finds in a damaged image, and what it says of each."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest
from checking import problem_of
from damaging import BRIEF, HOME, KEY, RUN, damage, image_of, replace_position, stored
from support import control_state

from inmem.keys import Key
from inmem.maintenance import table_check as tables
from inmem.maintenance.check import check
from inmem.maintenance.check_report import check_in_process
from inmem.storage.environment import Table
from inmem.storage.position import POSITION_KEY
from inmem.storage.wal.format import DELETE, PUT


class TestDamagedImage:
    def test_a_damage_that_is_none_leaves_no_problem(self, killed: Path) -> None:
        """The tool of these tests itself: rewriting what is there is not noticed."""
        damage(killed, (PUT, Table.DATA, KEY, stored(killed, KEY)))
        assert check(killed).problems == []

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

    def test_an_image_that_lmdb_cannot_read(self, killed: Path) -> None:
        data = Path(control_state(killed).image) / "data.mdb"
        with data.open("r+b") as f:  # every page but the two with the roots
            f.seek(2 * 4096)
            f.write(b"\xff" * (data.stat().st_size - 2 * 4096))
        report = check_in_process(killed)
        assert "MDB_CORRUPTED" in problem_of(report) and str(data.parent) in problem_of(report)
