"""Indices that were damaged on purpose: seen by the check, shown by queries, mended by the repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from primitive_workers import Rows, rows_of
from support import control_state, kill_writer, stop_writer

import inmem
from inmem.config import REPAIR_LIMIT
from inmem.keys import Key, Namespace, TypeTag
from inmem.record import pack
from inmem.storage.environment import Table
from inmem.storage.store import Store
from inmem.storage.wal.format import DELETE, PUT

DATA = int(Table.DATA)
EXTRA = pack(1, 1, 0, b"")
KINDS = ("removed", "added", "altered")
EVENT_TAGS = (TypeTag.EVENT_BY_TYPE,)
TRACE_TAGS = (
    TypeTag.TRACE_BY_TYPE, TypeTag.TRACE_BY_TAG, TypeTag.TRACE_BY_PARENT, TypeTag.TRACE_BY_TIME
)
RUN_TAGS = (TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG, TypeTag.RUN_BY_PARENT)
LATE = 5_000_000  # after all timestamps of traces


@dataclass(frozen=True)
class Case:
    """One kind of damage to one index, each in a namespace of its own."""

    tag: TypeTag
    kind: str

    @property
    def agent(self) -> str:
        return f"{self.tag.name}-{self.kind}".lower().replace("_", "-")

    @property
    def home(self) -> Namespace:
        return Namespace(agent=self.agent)

    @property
    def prefix(self) -> bytes:
        """Whose index it is: a run's, or the namespace's."""
        return self.home.prefix() if self.tag in RUN_TAGS else self.home.run_prefix("run")


CASES = [Case(tag, kind) for tag in (*EVENT_TAGS, *TRACE_TAGS, *RUN_TAGS) for kind in KINDS]


# A query of runs looks at the records that it finds: they deny what only the index says.
DENIED = {Case(TypeTag.RUN_BY_TAG, "added"), Case(TypeTag.RUN_BY_PARENT, "added")}


def fill(path: Path, agent: str) -> None:
    with inmem.open(path, agent=agent) as db:
        db.runs.create_run(run_id="top")
        for run in ("run", "other"):
            db.runs.create_run(run_id=run, parent_run="top", tags=["red"], metadata={"of": run})
            db.events.append_many(run, [("odd" if n % 2 else "even", n) for n in range(6)])
            db.kv.put_many(run, {f"k{n}": n for n in range(3)})
            db.cells.init(run, "cell", 1)
            db.traces.record(run, inmem.Thought("a"), id="a", tags=["blue"], timestamp=1_000_000)
            db.traces.record_child(run, "a", inmem.Thought("b"), id="b", tags=["blue"], timestamp=2_000_000)
            db.traces.record_child(run, "a", inmem.Custom("step", 1), id="c", timestamp=3_000_000)


def asked(db: inmem.Database, tag: TypeTag) -> Any:
    """What the queries of one index answer."""
    if tag == TypeTag.EVENT_BY_TYPE:
        return [e.sequence for e in db.events.query_by_type("run", "odd")], [
            e.sequence for e in db.events.query_by_type("run", "even")
        ]
    if tag == TypeTag.TRACE_BY_TYPE:
        return [[t.id for t in db.traces.query_by_type("run", name)] for name in ("Thought", "step")]
    if tag == TypeTag.TRACE_BY_TAG:
        return [[t.id for t in db.traces.query_by_tag("run", name)] for name in ("blue", "green")]
    if tag == TypeTag.TRACE_BY_PARENT:
        children = [[t.id for t in db.traces.get_children("run", name)] for name in ("a", "b")]
        walked = [(n, t.id) for n, t in db.traces.get_tree("run", "a").walk()]
        return children, walked, [t.id for t in db.traces.roots("run")]
    if tag == TypeTag.TRACE_BY_TIME:
        return [t.id for t in db.traces.query_by_time("run", 0, LATE + 1)], [
            t.id for t in db.traces.list("run")
        ]
    if tag == TypeTag.RUN_BY_STATUS:
        found = [[r.run_id for r in db.runs.query_runs(status=s)] for s in inmem.RunStatus]
        return found, db.runs.get_stats()
    if tag == TypeTag.RUN_BY_TAG:
        return [[r.run_id for r in db.runs.query_runs(tags=[name])] for name in ("red", "yellow")]
    return [[r.run_id for r in db.runs.get_child_runs(name)] for name in ("top", "other")]


def wrong_entry(case: Case, entry: bytes) -> bytes:
    """An entry that no record asks for, of a record that exists."""
    head = case.prefix + bytes([0, case.tag])
    if case.tag == TypeTag.TRACE_BY_TIME:
        return head + LATE.to_bytes(8, "big") + entry[len(head) + 8 :]
    name, _, place = entry[len(head) :].partition(b"\0")
    wrong = {
        TypeTag.EVENT_BY_TYPE: b"even" if name == b"odd" else b"odd",
        TypeTag.TRACE_BY_TYPE: b"step" if name == b"Thought" else b"Thought",
        TypeTag.TRACE_BY_TAG: b"green", TypeTag.TRACE_BY_PARENT: b"b",
        TypeTag.RUN_BY_STATUS: b"failed", TypeTag.RUN_BY_TAG: b"yellow", TypeTag.RUN_BY_PARENT: b"other",
    }[case.tag]
    return head + wrong + b"\0" + place


def chosen_entry(case: Case, rows: Rows) -> bytes:
    """The entry that is damaged: the last of a trace, of the run, or of an event."""
    head = case.prefix + bytes([0, case.tag])
    suffix = {**dict.fromkeys(EVENT_TAGS, b""), **dict.fromkeys(TRACE_TAGS, b"b"),
              **dict.fromkeys(RUN_TAGS, b"run")}[case.tag]
    return max(key for key in rows if key.startswith(head) and key.endswith(suffix))


def damage_of(case: Case, rows: Rows) -> list[tuple[Any, ...]]:
    entry = chosen_entry(case, rows)
    wrong = wrong_entry(case, entry)
    assert entry in rows and wrong not in rows
    removed, added = (DELETE, DATA, entry), (PUT, DATA, wrong, EXTRA)
    return {"removed": [removed], "added": [added], "altered": [removed, added]}[case.kind]


def damage(path: Path, ops: list[tuple[Any, ...]]) -> None:
    """Change the image of a killed writer behind everybody's back; it says that it stands where it stood."""
    store = Store(Path(control_state(path).image), max_readers=1024, quota_bytes=1 << 30)
    try:
        assert store.position is not None
        txn = store.begin()
        txn.apply(ops)
        txn.publish(store.position)
    finally:
        store.close()


def outside(rows: Rows, prefixes: set[bytes]) -> Rows:
    """The records that are under other prefixes, and the primary ones under these."""
    indices = {int(case.tag) for case in CASES}

    def is_damaged(key: bytes) -> bool:
        prefix, tag, _ = Key(key).split_key()
        return prefix in prefixes and tag in indices

    return {key: record for key, record in rows.items() if not is_damaged(key)}


def killed_store(path: Path, agents: list[str]) -> Rows:
    """A store whose writer was killed; what it holds."""
    for agent in agents:
        fill(path, agent)
    with inmem.open(path) as db:
        db.kv.put("-", "k", 1)
        assert db.check().problems == [] and db.repair_indices().repaired == []
        rows = rows_of(db)[Table.DATA]
    kill_writer(path)
    return rows


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[TypeTag, Any]:
    """What every query answers when nothing is damaged."""
    path = tmp_path_factory.mktemp("sound") / "store"
    try:
        fill(path, "sound")
        with inmem.open(path, agent="sound") as db:
            answers = {tag: asked(db, tag) for tag in (*EVENT_TAGS, *TRACE_TAGS, *RUN_TAGS)}
    finally:
        stop_writer(path)
    return answers


def repair_all(db: inmem.Database, _: list[Case]) -> tuple[int, int, list[str]]:
    report = db.repair_indices()
    return report.added, report.removed, sorted(report.repaired)


def repair_each(db: inmem.Database, cases: list[Case]) -> tuple[int, int, list[str]]:
    """One run after another, from its own namespace."""
    added = removed = 0
    repaired: list[str] = []
    for case in cases:
        with inmem.open(db.path, agent=case.agent) as own:
            report = own.repair_indices("run")
        expected = (int(case.kind != "added"), int(case.kind != "removed"), [case.prefix.decode()])
        assert (report.added, report.removed, report.repaired) == expected, case
        added, removed, repaired = added + report.added, removed + report.removed, repaired + report.repaired
    return added, removed, sorted(repaired)


@pytest.mark.parametrize("way", ["in a snapshot", "too much for a snapshot"])
def test_a_large_run_is_mended_in_slices(
    store_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who repairs looks for what is wrong; the writer is asked for what is to be done, if anything is."""
    events = 2 * REPAIR_LIMIT + 100
    with inmem.open(store_path) as db:
        for first in range(0, events, 2_000):
            db.events.append_many("large", [("t", None)] * min(2_000, events - first))
        sound = rows_of(db)[Table.DATA]
        if way == "too much for a snapshot":
            monkeypatch.setattr("inmem.database.differences", too_much)
        before = db.status().commits
        assert db.repair_indices().repaired == []
        if way == "in a snapshot":
            assert db.status().commits == before, "where all is well nobody waits"
        kill_writer(store_path)
    gone = [key for key in sound if Key(key).split_key()[1] == TypeTag.EVENT_BY_TYPE]
    damage(store_path, [(DELETE, DATA, key) for key in gone])
    with inmem.open(store_path) as db:
        assert db.events.query_by_type("large", "t") == [] and db.events.count("large") == events
        before = db.status().commits
        report = db.repair_indices("large")
        assert (report.added, report.removed) == (events, 0)
        assert db.status().commits - before >= 3
        assert rows_of(db)[Table.DATA].keys() == sound.keys()
        assert db.check().problems == []


def too_much(view: Any, prefix: bytes) -> Any:
    raise inmem.SnapshotTooOldError("the snapshot is too old")


@pytest.mark.parametrize("repair", [repair_all, repair_each])
def test_every_kind_of_damage_is_found_and_mended(
    store_path: Path, expected: dict[TypeTag, Any],
    repair: Callable[[inmem.Database, list[Case]], tuple[int, int, list[str]]],
) -> None:
    rows = killed_store(store_path, ["untouched", *(case.agent for case in CASES)])
    damage(store_path, [op for case in CASES for op in damage_of(case, rows)])
    prefixes = {case.prefix for case in CASES}
    with inmem.open(store_path) as db:
        db.kv.put("-", "k", 1)  # by a new writer, on the image as it is
        damaged = rows_of(db)[Table.DATA]
        assert damaged.keys() != rows.keys(), "the image was adopted"
        report = db.check()
        for case in CASES:
            found = [p for p in report.problems if p.startswith(case.prefix.decode() + ":")]
            assert len(found) == 1 and case.tag.name in found[0], (case, found)
        assert len(report.problems) == len(CASES), report.problems
        for case in CASES:
            with inmem.open(store_path, agent=case.agent) as own:
                shown = asked(own, case.tag) != expected[case.tag]
                assert shown is (case not in DENIED), case

        added, removed, repaired = repair(db, CASES)
        assert added == sum(case.kind != "added" for case in CASES)
        assert removed == sum(case.kind != "removed" for case in CASES)
        assert repaired == sorted(prefix.decode() for prefix in prefixes)

        assert db.check().problems == []
        mended = rows_of(db)[Table.DATA]
        assert mended.keys() == rows.keys()
        assert outside(mended, prefixes) == outside(damaged, prefixes), "nothing else was written"
        for case in CASES:
            with inmem.open(store_path, agent=case.agent) as own:
                for tag, answer in expected.items():
                    assert asked(own, tag) == answer, (case, tag)
        again = db.repair_indices()
        assert (again.added, again.removed, again.repaired) == (0, 0, [])
        stop_writer(store_path)  # the log has to lead to the same
        db.kv.put("-", "k", 1)
        assert db.check().problems == []
        assert rows_of(db)[Table.DATA].keys() == rows.keys()
    print(f"{len(CASES)} kinds of damage found and mended")


def test_an_entry_without_its_record(store_path: Path) -> None:
    """Entries of what does not exist: queries pass over them, the repair removes them."""
    home = Namespace(agent="one")
    killed_store(store_path, ["one"])
    run, top = home.run_prefix("run"), home.prefix()
    place = LATE.to_bytes(8, "big")
    entries = [
        Key.of(run, TypeTag.EVENT_BY_TYPE, b"odd\0" + (99).to_bytes(8, "big")),
        Key.of(run, TypeTag.TRACE_BY_TYPE, b"Thought\0" + place + b"ghost"),
        Key.of(run, TypeTag.TRACE_BY_TAG, b"blue\0" + place + b"ghost"),
        Key.of(run, TypeTag.TRACE_BY_PARENT, b"a\0" + place + b"ghost"),
        Key.of(run, TypeTag.TRACE_BY_TIME, place + b"ghost"),
        Key.of(top, TypeTag.RUN_BY_STATUS, b"active\0" + place + b"ghost"),
        Key.of(top, TypeTag.RUN_BY_TAG, b"red\0" + place + b"ghost"),
        Key.of(top, TypeTag.RUN_BY_PARENT, b"top\0" + place + b"ghost"),
    ]
    damage(store_path, [(PUT, DATA, bytes(entry), EXTRA) for entry in entries])
    with inmem.open(store_path, agent="one") as db:
        db.kv.put("-", "k", 1)
        assert len(db.check().problems) == len(entries)
        assert [e.sequence for e in db.events.query_by_type("run", "odd")] == [1, 3, 5]
        assert [t.id for t in db.traces.query_by_tag("run", "blue")] == ["a", "b"]
        assert [t.id for t in db.traces.list("run")] == ["a", "b", "c"]
        assert sum(1 for _ in db.traces.get_tree("run", "a").walk()) == 3
        assert [r.run_id for r in db.runs.query_runs(tags=["red"])] == ["run", "other"]
        report = db.repair_indices("run")
        assert (report.added, report.removed) == (0, len(entries))
        assert report.repaired == [run.decode(), top.decode()]
        assert db.check().problems == []
        assert db.runs.get_stats().total == 3


def test_a_record_that_does_not_decode_is_no_index_damage(store_path: Path) -> None:
    """A repair cannot help there: it says so, changes nothing, and the writer goes on."""
    home = Namespace(agent="one")
    killed_store(store_path, ["one"])
    key = Key.trace(home, "run", "b")
    damage(store_path, [(PUT, DATA, bytes(key), pack(1, 1, 0, b"no trace"))])
    with inmem.open(store_path, agent="one") as db:
        db.kv.put("-", "k", 1)
        before = rows_of(db)[Table.DATA]
        pid = db.status().writer_pid
        with pytest.raises(inmem.InmemError) as refused:
            db.repair_indices("run")
        assert refused.value.code != "commit_unknown", refused.value
        assert db.status().writer_pid == pid, "the writer goes on"
        assert rows_of(db)[Table.DATA] == before
        assert db.repair_indices("other").repaired == []


def test_a_deleted_run_has_no_indices_to_repair(db: inmem.Database) -> None:
    db.events.append("gone", "e", 1)
    db.runs.delete_run("gone")
    before = rows_of(db)[Table.DATA]
    with pytest.raises(inmem.RunDeletedError):
        db.repair_indices("gone")
    assert rows_of(db)[Table.DATA] == before
    assert db.repair_indices().repaired == []
