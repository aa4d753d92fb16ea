"""What many entries or runs at once lose: `kv.clear` and `runs.prune`, on each engine."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from forms import WRITERS, Form, new_run

import inmem
from inmem import RunStatus
from inmem.config import CLEAR_LIMIT


@pytest.fixture(params=WRITERS, ids=lambda form: form.name)
def writer(request: pytest.FixtureRequest, shared_db: inmem.Database) -> Form:
    form: Form = request.param(shared_db, new_run(), "kv")
    return form


def test_the_number_that_went(writer: Form) -> None:
    writer(lambda kv: kv.put_many({"a": 1, "a/b": 2, "b": 3}))
    found = writer(lambda kv: [kv.clear("a"), kv.clear("a"), kv.clear()])
    assert [each.value if writer.waits else each for each in found] == [2, 0, 1]


def test_what_has_expired_is_not_counted(shared_db: inmem.Database) -> None:
    kv = shared_db.run(new_run()).kv
    version = kv.put("gone", 1, ttl=0.001)
    kv.put("stays", 1, ttl=100)
    kv.wait("gone", after=version, timeout_s=5)
    assert (kv.clear(), kv.list()) == (1, [])


def test_more_than_one_commit_takes(shared_db: inmem.Database) -> None:
    kv = shared_db.run(new_run()).kv
    for part in range(3):
        kv.put_many({f"{part}/{i}": i for i in range(CLEAR_LIMIT // 2)})
    kv.put("0", 1)
    with pytest.raises(inmem.LimitError, match="4000"):
        kv.transaction(lambda txn: (txn.kv.put("new", 1), txn.kv.clear()))
    assert kv.count() == 3 * CLEAR_LIMIT // 2 + 1
    assert kv.transaction(lambda txn: txn.kv.clear("1/")) == CLEAR_LIMIT // 2
    assert (kv.clear("2/"), kv.count()) == (CLEAR_LIMIT // 2, CLEAR_LIMIT // 2 + 1)
    kv.put_many({f"3/{i}": i for i in range(CLEAR_LIMIT - 1)})
    kv.put_many({f"4/{i}": i for i in range(CLEAR_LIMIT - 1)})
    assert kv.clear() == 5 * CLEAR_LIMIT // 2 - 1
    assert kv.list() == []


def test_it_conflicts_with_what_is_put_there_only_if_that_was_read(shared_db: inmem.Database) -> None:
    run = shared_db.run(new_run())
    run.kv.put("a/1", 1)
    with run.transaction() as txn:
        removed = txn.kv.clear("a/")
        run.kv.put("a/2", 1)
    assert (removed.value, run.kv.list()) == (2, [])
    run.kv.put("a/1", 1)
    with pytest.raises(inmem.ConflictError), run.transaction() as txn:
        assert txn.kv.list("a/") == ["a/1"]
        txn.kv.clear("a/")
        assert txn.kv.list("a/") == []
        run.kv.put("a/2", 1)
    assert run.kv.list() == ["a/1", "a/2"]


@pytest.fixture
def ended(db: inmem.Database) -> inmem.Database:
    """Runs of each status, created one after the other."""
    for status in RunStatus:
        for number in (1, 2):
            run = db.run(f"{status.value}-{number}")
            run.runs.create_run()
            run.kv.put("key", 1)
            if status is not RunStatus.ACTIVE:
                run.runs.update_status(status, error="broke" if status is RunStatus.FAILED else None)
    return db


def left(db: inmem.Database) -> set[str]:
    return set(db.runs.list_runs(include_archived=True, include_uncreated=True))


def test_pruning_takes_all_that_have_ended(ended: inmem.Database) -> None:
    gone = ended.runs.prune()
    assert left(ended) == {"active-1", "active-2", "paused-1", "paused-2"}
    assert all((one.kv, one.had_record) == (1, True) for one in gone) and len(gone) == 8
    assert ended.runs.prune() == []
    with pytest.raises(inmem.RunDeletedError):
        ended.kv.put("failed-1", "key", 1)


def test_pruning_by_status_and_number(ended: inmem.Database) -> None:
    everything = left(ended)
    gone = ended.runs.prune(status=RunStatus.FAILED, keep_last=1)
    assert [one.run_id for one in gone] == ["failed-1"]
    gone = ended.runs.prune(status=[RunStatus.COMPLETED, "cancelled"], keep_last=1)
    assert len(gone) == 3 and left(ended) == everything - {"failed-1", *(one.run_id for one in gone)}
    assert ended.run("active-1").runs.prune(keep_last=99) == []


def test_pruning_by_age(ended: inmem.Database) -> None:
    assert ended.runs.prune(older_than_s=timedelta(hours=1)) == []
    time.sleep(0.02)
    ended.runs.create_run(run_id="new")
    ended.runs.complete_run("new")
    assert len(ended.runs.prune(older_than_s=0.015)) == 8
    assert left(ended) == {"active-1", "active-2", "paused-1", "paused-2", "new"}


def test_two_who_prune_at_once_delete_each_run_once(db: inmem.Database) -> None:
    names = [f"run-{number:02}" for number in range(40)]
    for name in names:
        db.runs.create_run(run_id=name)
        db.runs.complete_run(name)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(db.runs.prune) for _ in range(2)]
    assert sorted(one.run_id for each in found for one in each.result()) == names
