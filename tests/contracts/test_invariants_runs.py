"""The invariants of runs: statuses, the end of a run, indices."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forms import new_run
from invariants import Stop, contents, fill, rows
from support import kill_writer

import inmem
from inmem import Custom, RunStatus, Thought
from inmem.keys import Key, owner_of
from inmem.primitives.server import INDEX_TAGS, entries_of
from inmem.record import payload_of

A, C, F, X, P, Z = RunStatus
ALLOWED = {(A, C), (A, F), (A, X), (A, P), (A, Z), (P, A), (P, X), (P, Z), (C, Z), (F, Z), (X, Z)}
NEIGHBOURS = ["a.b", "a-", "ab", "a:", "A", "aa", "a0"]


@pytest.fixture
def db(home: Any) -> Iterator[inmem.Database]:
    """A namespace of its own."""
    with home.open(agent=new_run()) as database:
        yield database


def test_invariant_16_the_status_table_all_36_pairs(db: inmem.Database) -> None:
    assert [A, C, F, X, P, Z] == [
        RunStatus.ACTIVE, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PAUSED,
        RunStatus.ARCHIVED,
    ]
    allowed = set()
    for before in RunStatus:
        for after in RunStatus:
            for how in ("commit", "transaction"):
                run_id = f"{before}-{after}-{how}"
                db.runs.create_run(run_id=run_id)
                if before is not A:
                    db.runs.update_status(run_id, before)
                old = db.runs.get_run(run_id)
                try:
                    if how == "commit":
                        db.runs.update_status(run_id, after)
                    else:
                        with db.transaction(run_id) as txn:
                            txn.runs.update_status(after)
                    allowed.add((before, after))
                    assert db.runs.get_run(run_id).status is after  # type: ignore[union-attr]
                except inmem.InvalidTransitionError as error:
                    assert (error.from_status, error.to_status) == (before, after)
                    assert db.runs.get_run(run_id) == old
    assert allowed == ALLOWED
    assert {(b, a) for b in RunStatus for a in RunStatus if inmem.is_valid_transition(b, a)} == ALLOWED


def test_invariant_17_what_has_ended_never_comes_back(db: inmem.Database) -> None:
    for ended in (C, F, X, Z):
        run_id = ended.value
        db.runs.create_run(run_id=run_id)
        db.runs.update_status(run_id, ended)
        old = db.runs.get_run(run_id)
        for back in (A, P):
            with pytest.raises(inmem.InvalidTransitionError):
                db.runs.update_status(run_id, back)
            with pytest.raises(inmem.InvalidTransitionError), db.transaction(run_id) as txn:
                txn.runs.update_status(back)
        with pytest.raises(inmem.RunExistsError):
            db.runs.create_run(run_id=run_id)
        assert db.runs.get_run(run_id) == old
        db.runs.delete_run(run_id)
        with pytest.raises(inmem.RunDeletedError):
            db.runs.create_run(run_id=run_id)
        assert db.runs.get_run(run_id) is None


def test_invariant_18_archived_is_terminal_and_its_data_readable(db: inmem.Database) -> None:
    fill(db, "r")
    before = contents(db, "r")
    db.runs.archive_run("r")
    for status in RunStatus:
        with pytest.raises(inmem.InvalidTransitionError):
            db.runs.update_status("r", status)
    assert contents(db, "r")[:4] == before[:4]
    assert db.runs.get_run("r").status is Z  # type: ignore[union-attr]
    assert (db.runs.query_runs(), db.runs.list_runs()) == ([], [])
    assert [run.run_id for run in db.runs.query_runs(include_archived=True)] == ["r"]


def test_invariant_19_delete_cascades_spares_others_and_fences(db: inmem.Database) -> None:
    for run_id in ("a", *NEIGHBOURS):
        fill(db, run_id)
    db.shared("agent").kv.put("shared", 1)
    before = rows(db)
    assert db.runs.delete_run("a") == inmem.DeletedRun("a", 1, 1, 1, 1, True)
    owner = db.namespace.run_prefix("a")
    gone = {key for key in before if owner_of(key) == owner}
    gone |= {k for k in before if Key(k).split_key()[0] == db.namespace.prefix()
             and Key(k).split_key()[1] in INDEX_TAGS and Key(k).split_key()[2].split(b"\0", 1)[1][8:] == b"a"}
    assert rows(db) == {key: record for key, record in before.items() if key not in gone}
    txn = db.transaction("ab")
    txn.kv.put("k", 1)
    txn.at("a").events.append("late")
    for call in (txn.commit, lambda: db.cells.set("a", "c", 1), lambda: db.runs.create_run(run_id="a")):
        with pytest.raises(inmem.RunDeletedError):
            call()
    assert not db.kv.exists("ab", "k")


def test_invariant_19_also_after_recovery(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        fill(db, "a")
        fill(db, "ab")
        db.runs.delete_run("a")
        kill_writer(store_path)
        for call in (lambda: db.kv.put("a", "k", 1), lambda: db.runs.create_run(run_id="a")):
            with pytest.raises(inmem.RunDeletedError):
                call()
        assert len(db.kv.list("ab")) == 1
        assert db.check().problems == []


def test_invariant_20_status_changes_commit_or_roll_back_with_the_rest(db: inmem.Database) -> None:
    fill(db, "r")
    with pytest.raises(Stop), db.transaction("r") as txn:
        txn.runs.complete_run()
        txn.kv.put("done", True)
        raise Stop
    assert (db.runs.get_run("r").status, db.kv.exists("r", "done")) == (A, False)  # type: ignore[union-attr]
    txn = db.transaction("r")
    txn.runs.complete_run()
    txn.kv.put("done", txn.kv.get("same"))
    db.kv.put("r", "same", "changed")
    with pytest.raises(inmem.ConflictError):
        txn.commit()
    assert (db.runs.get_run("r").status, db.kv.exists("r", "done")) == (A, False)  # type: ignore[union-attr]
    with db.transaction("r") as txn:
        txn.runs.complete_run()
        txn.kv.put("done", True)
    assert (db.runs.get_run("r").status, db.kv.exists("r", "done")) == (C, True)  # type: ignore[union-attr]
    assert [run.run_id for run in db.runs.query_runs(status=C)] == ["r"]


def test_invariant_21_every_index_equals_what_the_records_ask_for(db: inmem.Database) -> None:
    rng = random.Random(21)
    runs = ["a", "a.b", "ab", "b"]
    db.runs.create_run(run_id="a")
    db.runs.create_run(run_id="a.b", parent_run="a")
    for i in range(300):
        run_id = rng.choice(runs)
        step = rng.randrange(9)
        try:
            if step == 0:
                parent_run = rng.choice([None, *runs])
                db.runs.create_run(run_id=run_id, tags=rng.sample("xyz", 2), parent_run=parent_run)
            elif step == 1:
                db.runs.update_status(run_id, rng.choice(list(RunStatus)))
            elif step == 2:
                db.runs.add_tags(run_id, [rng.choice("xyz")])
            elif step == 3:
                db.events.append(run_id, rng.choice("xyz"), i)
            elif step == 4:
                parents = [t.id for t in db.traces.list(run_id)]
                body = rng.choice([Thought("x"), Custom("y", 1)])
                db.traces.record(run_id, body, tags=rng.sample("xyz", 2), timestamp=rng.choice([None, 1, 2]),
                                 parent_id=rng.choice([None, *parents]))
            elif step == 5:
                with db.transaction(run_id) as txn:
                    root = txn.traces.record(Thought("x"), tags=["t"])
                    txn.traces.record_child(root, Thought("y"))
                    txn.runs.add_tags(["t"])
                    txn.events.append("t")
            elif step == 6:
                db.queues.put(run_id, "q", i, delay_s=rng.choice([0, 0, 99]), key=rng.choice([None, *"xyz"]))
            elif step == 7:
                job = db.queues.claim(run_id, "q")
                if job is not None and rng.random() < 0.5:
                    db.queues.nack(job, retry=False)
            elif run_id == "ab" and i > 150:
                db.runs.delete_run(run_id)
        except (inmem.AlreadyExistsError, inmem.NotFoundError, inmem.InvariantError, inmem.InvalidRunIdError):
            continue
    stored, expected = set(), set()
    for key, record in rows(db).items():
        prefix, tag, rest = Key(key).split_key()
        if tag in INDEX_TAGS:
            stored.add(key)
        else:
            expected.update(entries_of(prefix, tag, rest, payload_of(record)))
    assert stored == expected
    assert {Key(key).split_key()[1] for key in stored} == INDEX_TAGS, "every index took part"
    assert dataclasses.astuple(db.repair_indices()) == (0, 0, [])
    assert db.check().problems == []
