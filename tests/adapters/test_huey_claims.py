"""Tasks of Huey that a worker has taken: who dies, is late or is interrupted loses and doubles nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from homes import Fresh
from support import wait_until

import inmem

pytest.importorskip("huey", reason="the extra `huey` is not installed")

from huey import crontab, signals
from huey.api import chord
from huey.constants import EmptyData
from huey.exceptions import TaskException, TaskLockedException

from inmem.adapters.huey import InmemHuey, InmemStorage
from inmem.adapters.huey.claim import TaskClaim
from inmem.adapters.huey.layout import QUEUE

NOW = datetime(2030, 1, 2, 3, 4, 5)


@pytest.fixture
def db(fresh: Fresh) -> Iterator[inmem.Database]:
    with inmem.open(**fresh()) as database:
        yield database


@pytest.fixture
def kept(db: inmem.Database) -> InmemHuey:
    """One that redelivers."""
    return InmemHuey("app", db, blocking=False, redeliver=True)


def take(huey: InmemHuey) -> Any:
    task = huey.take()
    assert task is not None
    return task


def killed(huey: InmemHuey) -> None:
    """A worker takes a task, and is never seen again."""
    task = take(huey)
    job = task.__dict__.pop("inmem_job")
    huey.storage.queues.extend(job, 0.001)


def test_a_worker_that_is_killed_before_the_function_begins_loses_nothing(db: inmem.Database) -> None:
    huey, ran = InmemHuey("app", db), []

    @huey.task()
    def note() -> None:
        ran.append(1)

    note()
    killed(huey)
    huey.execute(take(huey))
    assert ran == [1] and huey.storage.queue_size() == 0
    assert huey.storage.queues.counts(QUEUE).claimed == 0


def test_by_default_a_function_begins_once_at_most(db: inmem.Database) -> None:
    huey = InmemHuey("app", db)
    counts = []

    @huey.task()
    def look() -> None:
        counts.append(huey.storage.queues.counts(QUEUE))

    look()
    huey.execute(take(huey))
    assert [(each.ready, each.claimed) for each in counts] == [(0, 0)]


def test_a_task_can_ask_to_be_redelivered(db: inmem.Database) -> None:
    huey = InmemHuey("app", db)
    counts = []

    @huey.task(redeliver=True)
    def look() -> None:
        counts.append(huey.storage.queues.counts(QUEUE))

    look()
    huey.execute(take(huey))
    assert [each.claimed for each in counts] == [1]
    assert huey.storage.queues.counts(QUEUE).claimed == 0


def test_result_next_task_and_end_are_one_commit(kept: InmemHuey, db: inmem.Database) -> None:
    @kept.task()
    def one(n: int) -> int:
        return n + 1

    @kept.task()
    def two(n: int) -> int:
        return n * 10

    seen: list[tuple[int, int, int]] = []

    def state(view: Any) -> tuple[int, int, int]:
        counts = view.queues.counts(QUEUE)
        return view.kv.count("d"), counts.ready, counts.claimed

    @kept.post_execute()
    def look(*_: Any) -> None:  # huey has stored the result when it calls this, by its own account
        with kept.storage.run.snapshot() as view:
            seen.append(state(view))

    result = kept.enqueue(one.s(1).then(two))
    kept.execute(take(kept))
    with kept.storage.run.snapshot() as view:
        seen.append(state(view))
    assert seen == [(0, 0, 1), (1, 1, 0)]
    kept.execute(take(kept))
    assert result.get() == [2, 20]


def test_who_has_lost_a_task_stores_nothing_of_it(kept: InmemHuey, caplog: pytest.LogCaptureFixture) -> None:
    others: list[Any] = []

    @kept.task(retries=3)
    def lose(fails: bool) -> str:
        if not others:
            job = next(iter(kept._claims.values())).job
            kept.storage.queues.extend(job, 0.001)
            others.append(wait_until(kept.take, "another one has it"))
            kept.storage.put_data("own", b"what a function stores itself is stored")
            if fails:
                raise ValueError
            return "late"
        return "other"

    for fails in (False, True):
        others.clear()
        result = lose(fails)
        assert kept.execute(take(kept)) is None
        assert "another worker's" in caplog.text
        assert kept.pending_count() == 0 and not kept.storage.has_data_for_key(result.id)
        assert kept.execute(others[0]) == "other" and result() == "other"
        assert kept.storage.pop_data("own") is not EmptyData
    assert kept.storage.run.kv.list() == []


def test_a_task_that_is_lost_before_its_function_begins_does_not_run(kept: InmemHuey) -> None:
    ran = []

    @kept.task()
    def note() -> None:
        ran.append(1)

    for redeliver in (True, False):
        kept.storage.redeliver = redeliver
        note()
        first = take(kept)
        kept.storage.queues.extend(first.inmem_job, 0.001)
        second = wait_until(kept.take, "another one has it")
        kept.execute(first)
        assert ran == []
        kept.execute(second)
        assert ran == [1]
        ran.clear()


def test_a_task_that_kills_each_worker_is_dead_in_the_end(db: inmem.Database) -> None:
    huey = InmemHuey("app", db, redeliver=True, max_attempts=3)

    @huey.task()
    def poison() -> None:
        raise AssertionError("it is never executed here")

    bad = poison()
    for _ in range(3):
        wait_until(lambda: huey.storage.queues.counts(QUEUE).ready, "it is ready again")
        killed(huey)
    wait_until(lambda: huey.storage.queues.counts(QUEUE).ready == 1, "the last claim has run out")
    assert InmemStorage("app", db, blocking=False).take() is None
    (dead,) = huey.storage.queues.dead(QUEUE)
    assert dead.payload["id"] == bad.id and dead.attempt == 3


def test_a_message_that_cannot_be_read_is_dead_with_its_reason(db: inmem.Database) -> None:
    huey = InmemHuey("app", db, max_attempts=1)
    huey.storage.enqueue(b"no pickle")
    with pytest.raises(Exception, match=r"pickle|load"):
        huey.take()
    (dead,) = huey.storage.queues.dead(QUEUE)
    assert dead.errors and dead.payload["data"] == b"no pickle"


def test_a_task_that_is_interrupted_goes_to_another_worker(kept: InmemHuey) -> None:
    told = []

    @kept.task()
    def stop() -> str:
        if kept.storage.incr("times") == 1:
            raise KeyboardInterrupt
        return "done"

    @kept.signal()
    def note(signal: str, task: Any, *_: Any) -> None:
        told.append(signal)

    result = stop()
    kept.execute(take(kept))
    assert told[-1] == signals.SIGNAL_INTERRUPTED and kept.pending_count() == 1
    kept.execute(take(kept))
    assert result() == "done" and told[-1] == signals.SIGNAL_COMPLETE


def test_a_member_of_a_chord_that_is_redelivered_counts_once(kept: InmemHuey) -> None:
    @kept.task()
    def member(n: int) -> int:
        return n

    @kept.task()
    def total(ns: list[int]) -> int:
        return sum(ns)

    result = kept.enqueue(chord([member.s(n) for n in (1, 2, 4)], total))

    def gone(self: TaskClaim) -> None:
        self.storage.queues.nack(self.job, delay_s=0)
        self.is_over = True

    for died in (True, False, True, False, True, False):
        task = take(kept)
        with pytest.MonkeyPatch.context() as patch:
            if died:  # after it has counted, and before its job has ended
                patch.setattr(TaskClaim, "finish", gone)
            kept.execute(task)
    assert kept.pending_count() == 1
    kept.execute(take(kept))
    assert result() == 7
    left = kept.storage.run.kv.list()
    assert [each for each in left if each.startswith(("m/", "c"))] == []


def test_a_scheduled_task_is_in_one_place_at_any_time(db: inmem.Database) -> None:
    huey = InmemHuey("app", db, utc=False)

    @huey.task()
    def note() -> None:
        pass

    note.schedule(delay=-1)
    huey.execute(take(huey), NOW - timedelta(days=9999))  # before its time: the worker schedules it
    assert (huey.scheduled_count(), huey.pending_count()) == (1, 0)
    assert huey.storage.queues.counts(QUEUE).claimed == 0

    both = [huey.due_tasks(NOW), huey.due_tasks(NOW)]
    assert (huey.scheduled_count(), huey.pending_count()) == (1, 0)  # read, and not yet queued
    for ((place, task),) in both:
        huey.queue_due(place, task)
        assert (huey.scheduled_count(), huey.pending_count()) == (0, 1)  # once, by whichever was first


def test_a_subclass_with_messages_of_its_own_moves_them_too(db: inmem.Database) -> None:
    class Own(InmemHuey):
        def serialize_task(self, task: Any) -> bytes:
            return bytes(super().serialize_task(task))

    huey = Own("app", db, utc=False)

    @huey.task()
    def note() -> None:
        pass

    huey.add_schedule(note.s(eta=NOW))
    ((place, task),) = huey.due_tasks(NOW)
    huey.queue_due(place, task)
    assert (huey.scheduled_count(), huey.pending_count()) == (0, 1)


def test_locks_limits_errors_and_periodic_tasks_of_taken_tasks(kept: InmemHuey) -> None:
    @kept.task()
    @kept.lock_task("one")
    def locked() -> str:
        with pytest.raises(TaskLockedException):
            kept.lock_task("one").acquire()
        return "had it"

    @kept.task(retries=1)
    def fails() -> None:
        raise ValueError("no")

    @kept.periodic_task(crontab())
    def tick() -> None:
        pass

    result = locked()
    kept.execute(take(kept))
    assert result() == "had it" and not kept.is_locked("one")
    result = fails()
    for _ in range(2):
        kept.execute(take(kept))
    with pytest.raises(TaskException, match="no"):
        result()
    for task in kept.read_periodic(NOW):
        kept.enqueue(task)
    kept.execute(take(kept))
    assert kept.storage.run.kv.list() == [] and kept.pending_count() == 0


def test_in_immediate_mode_nothing_is_stored(db: inmem.Database) -> None:
    huey = InmemHuey("app", db, immediate=True)

    @huey.task()
    def add(a: int, b: int) -> int:
        return a + b

    assert add(1, 2)() == 3
    assert db.runs.query_runs(tags=["huey"]) == []
    huey.immediate = False
    add(1, 2)
    assert huey.pending_count() == 1
