"""Procedures that repair indices: in one walk, and what a client has found in a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from committing import NS
from procedures import BAD_PREFIXES, EMPTY, HOME, RUN, Stored, fill, made

from inmem.config import REPAIR_LIMIT
from inmem.errors import CorruptionError, InvalidInputError, RunDeletedError
from inmem.keys import Key, TypeTag
from inmem.primitives.events.procedures import append as event_append
from inmem.primitives.index_repair import mend, repair_indices
from inmem.primitives.runs.procedures import delete
from inmem.primitives.server import INDEX_TAGS, entries_of
from inmem.record import pack, payload_of


@pytest.fixture
def stored() -> Iterator[Stored]:
    some = Stored()
    yield some
    some.assert_indices()


class TestRepair:
    def test_what_is_right_is_left_alone(self, stored: Stored) -> None:
        fill(stored, "r")
        for prefix in (RUN, HOME, b"nothing/here"):
            some = stored.workspace()
            assert repair_indices(some, prefix) == [0, 0]
            assert (some.ops, some.buckets) == ([], set())

    @pytest.mark.parametrize("tag", sorted(INDEX_TAGS))
    def test_each_index_missing_and_too_much(self, stored: Stored, tag: int) -> None:
        fill(stored, "up")
        fill(stored, "r", record=False)
        made(stored, "r", "up", ("x",))
        good = dict(stored.records)
        prefix = HOME if tag in (TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG, TypeTag.RUN_BY_PARENT) else RUN
        entries = sorted(k for k in good if k.startswith(Key.of(prefix, tag)))
        assert entries
        del stored.records[entries[0]]
        for stray in (Key.of(prefix, tag, b"stray\0" + bytes(8) + b"x"), Key.of(prefix, tag)):
            stored.records[stray] = pack(1, 1, 0, b"")
        assert stored.run(repair_indices, prefix) == [1, 2]
        assert set(stored.records) == set(good)
        assert stored.run(repair_indices, prefix) == [0, 0]

    def test_nothing_but_the_prefix_is_touched(self, stored: Stored) -> None:
        for run_id in ("r", "r.", "rr"):
            fill(stored, run_id)
        lost = [key for key in stored.records if Key(key).split_key()[1] in INDEX_TAGS]
        good = dict(stored.records)
        for key in lost:
            del stored.records[key]
        stored.run(repair_indices, RUN)
        mine = {key for key in lost if Key(key).split_key()[0] == RUN}
        assert set(good) - set(stored.records) == set(lost) - mine
        for prefix in (HOME, NS.run_prefix("r."), NS.run_prefix("rr")):
            stored.run(repair_indices, prefix)

    def test_a_record_that_does_not_decode_is_named(self, stored: Stored) -> None:
        fill(stored, "r")
        for key in (Key.trace(NS, "r", "up"), Key.event(NS, "r", 0), Key.run(NS, "r")):
            kept = stored.records[key]
            stored.records[key] = pack(1, 1, 0, b"\xc1")
            prefix = Key(key).split_key()[0]
            error = stored.refused(CorruptionError, repair_indices, prefix)
            assert repr(key) in str(error)
            stored.records[key] = kept

    def test_one_call_repairs_so_many(self, stored: Stored) -> None:
        """What is left is for the next one: a repair has to fit a commit."""
        for _ in range(2):
            stored.run(event_append, RUN, [[b"t", EMPTY, 0]] * 2_100)
        gone = [key for key in stored.records if Key(key).split_key()[1] == TypeTag.EVENT_BY_TYPE]
        for key in gone:
            del stored.records[key]
        assert stored.run(repair_indices, RUN) == [REPAIR_LIMIT, 0]
        assert stored.run(repair_indices, RUN) == [len(gone) - REPAIR_LIMIT, 0]
        stored.assert_indices()

    def test_a_deleted_run_has_nothing_to_repair(self, stored: Stored) -> None:
        fill(stored, "r")
        stored.run(delete, HOME, "r")
        stray = Key.of(RUN, TypeTag.TRACE_BY_TIME, bytes(8) + b"x")
        stored.records[stray] = pack(1, 1, 0, b"")
        stored.refused(RunDeletedError, repair_indices, RUN)
        del stored.records[stray]

    def test_bad_arguments(self, stored: Stored) -> None:
        for bad in BAD_PREFIXES:
            stored.refused(InvalidInputError, repair_indices, bad, names="prefix")


class TestMend:
    """What a client has found in a snapshot, when others have written since."""

    @pytest.mark.parametrize("tag", sorted(INDEX_TAGS))
    def test_each_index(self, stored: Stored, tag: int) -> None:
        fill(stored, "up")
        fill(stored, "r", record=False)
        made(stored, "r", "up", ("x",))
        good = dict(stored.records)
        of_runs = tag in (TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG, TypeTag.RUN_BY_PARENT)
        prefix = HOME if of_runs else RUN
        entry = min(k for k in good if k.startswith(Key.of(prefix, tag)))
        stray = Key.of(prefix, tag, b"stray\0" + bytes(8) + b"x")
        record = next(
            key for key, value in sorted(good.items()) if key.startswith(prefix + b"\0")
            and entry in entries_of(prefix, *Key(key).split_key()[1:], payload_of(value))
        )
        del stored.records[entry]
        stored.records[stray] = pack(1, 1, 0, b"")
        assert stored.run(mend, prefix, stored.version, [record], [stray]) == [1, 1]
        assert set(stored.records) == set(good)
        assert stored.run(mend, prefix, stored.version, [record], [stray]) == [0, 0]

    def test_what_was_written_since_is_left_alone(self, stored: Stored) -> None:
        fill(stored, "r")
        found_at = stored.version
        stray = Key.of(RUN, TypeTag.TRACE_BY_TIME, bytes(8) + b"x")
        stored.records[stray] = pack(found_at + 1, 1, 0, b"")
        assert stored.run(mend, RUN, found_at, [], [stray]) == [0, 0]
        del stored.records[stray]  # which it is still there to be

    def test_a_record_that_has_gone_since_gets_no_entries(self, stored: Stored) -> None:
        fill(stored, "r")
        before = dict(stored.records)
        assert stored.run(mend, RUN, stored.version, [Key.trace(NS, "r", "never")], []) == [0, 0]
        assert stored.records == before

    def test_a_deleted_run_has_nothing_to_mend(self, stored: Stored) -> None:
        fill(stored, "r")
        stored.run(delete, HOME, "r")
        stored.refused(RunDeletedError, mend, RUN, 1, [], [])

    def test_bad_arguments(self, stored: Stored) -> None:
        fill(stored, "r")
        for bad in BAD_PREFIXES:
            stored.refused(InvalidInputError, mend, bad, 1, [], [], names="prefix")
        other, primary = Key.trace(NS, "rr", "up"), Key.trace(NS, "r", "up")
        for keys in ([other], ["x"], [RUN], [RUN + b"\0"], None):
            stored.refused(InvalidInputError, mend, RUN, 1, keys, [], names="records")
            stored.refused(InvalidInputError, mend, RUN, 1, [], keys, names="entries")
        stored.refused(InvalidInputError, mend, RUN, 1, [], [primary], names="entries")
        stored.refused(InvalidInputError, mend, RUN, None, [], [], names="version")
