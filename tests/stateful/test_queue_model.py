"""Queues through the public API against lists of Python, with a clock that the test sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from contracts.sqlite_engine import SqliteEngine, SqliteStore
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import inmem
from inmem import InvalidInputError, InvariantError, JobLostError, JobNotFoundError
from inmem.primitives.queues.rules import MAX_ERRORS, MOVED
from inmem.primitives.queues.shown import QueueCounts

QUEUES = ("q", "q2")
STATES = ("ready", "delayed", "claimed", "dead", "done")
SECOND = 1_000_000
START_US = 1_800_000_000 * SECOND
RESTS = (1, 2, 4, 8, 16)  # seconds, after each attempt

queue_names = st.sampled_from(QUEUES)
seconds = st.sampled_from([0, 5, 10, 20])
leases = st.sampled_from([5, 10, 20])


class ClockedStore(SqliteStore):
    """A store whose time the test sets."""

    time_us = START_US

    def now_us(self) -> int:
        return self.time_us


@dataclass
class ModelJob:
    number: int
    payload: Any
    priority: int
    key: str | None
    most: int
    put_at: int
    state: str = "ready"
    time: int = 0
    attempt: int = 0
    holder: Any = None  # the claim that holds it: queue, token
    result: Any = None
    errors: list[str] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        return self.state in ("ready", "delayed", "claimed")

    def fail(self, now: int, rest_s: float, error: str | None) -> None:
        """An attempt has failed."""
        if self.attempt >= self.most:
            self.state, self.time = "dead", now
        else:
            self.state, self.time = ("delayed" if rest_s else "ready"), now + round(rest_s * SECOND)
        if error:
            self.errors = [*self.errors, error][-MAX_ERRORS:]


class ModelQueue:
    """One queue: its jobs by number."""

    def __init__(self) -> None:
        self.jobs: dict[int, ModelJob] = {}
        self.following = 0

    def keyed(self, key: str | None) -> ModelJob | None:
        return next((j for j in self.jobs.values() if key and j.key == key and j.is_live), None)

    def of(self, state: str) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state == state]

    def ready(self) -> list[ModelJob]:
        return sorted(self.of("ready"), key=lambda job: (-job.priority, job.number))

    def due(self, now: int) -> list[ModelJob]:
        """Those whose time has come, in the order in which claims move them."""
        return [
            job for state in ("delayed", "claimed")
            for job in sorted(self.of(state), key=lambda job: (job.time, job.number)) if job.time <= now
        ]

    def put(self, now: int, payload: Any, delay_s: int, priority: int, key: str | None, most: int) -> int:
        live = self.keyed(key)
        if live is not None:
            return live.number
        job = ModelJob(self.following, payload, priority, key, most, now)
        if delay_s:
            job.state, job.time = "delayed", now + delay_s * SECOND
        self.jobs[job.number] = job
        self.following += 1
        return job.number

    def claim(self, now: int, limit: int, worker: str) -> list[ModelJob]:
        while True:
            came = self.due(now)[:MOVED]
            for job in came:
                if job.state == "claimed":
                    job.fail(job.time, 0, f"the claim of {worker} ran out")
                else:
                    job.state = "ready"
            taken = self.ready()[:limit]
            if taken or not self.due(now):
                return taken


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = ClockedStore()
        self.db = inmem.Database(SqliteEngine(self.store), inmem.Namespace(), {})
        self.run = self.db.run("run")
        self.model = {name: ModelQueue() for name in QUEUES}
        self.claims: list[inmem.JobQueues | Any] = []  # each job as it was claimed
        self.used: set[str] = set()

    def teardown(self) -> None:
        self.db.close()
        self.store.remove()

    @property
    def now(self) -> int:
        return self.store.time_us

    @rule(by_s=st.integers(0, 12), more_us=st.sampled_from([0, 1, -1]))
    def time_passes(self, by_s: int, more_us: int) -> None:
        self.store.time_us += max(0, by_s * SECOND + more_us)

    @rule(
        queue=queue_names, payload=st.integers(0, 9) | st.none(), delay_s=seconds,
        priority=st.integers(-1, 1), key=st.sampled_from([None, None, "a", "ab"]), most=st.integers(1, 3),
    )
    def put(
        self, queue: str, payload: Any, delay_s: int, priority: int, key: str | None, most: int
    ) -> None:
        job_id = self.run.queues.put(
            queue, payload, delay_s=delay_s, priority=priority, key=key, max_attempts=most
        )
        self.used.add(queue)
        number = self.model[queue].put(self.now, payload, delay_s, priority, key, most)
        assert job_id == f"{queue}/{number}"

    @rule(queue=queue_names, count=st.integers(0, 30), delay_s=seconds)
    def put_many(self, queue: str, count: int, delay_s: int) -> None:
        found = self.run.queues.put_many(queue, range(count), delay_s=delay_s, max_attempts=2)
        self.used |= {queue} if count else set()
        numbers = [self.model[queue].put(self.now, n, delay_s, 0, None, 2) for n in range(count)]
        assert found == [f"{queue}/{n}" for n in numbers]

    @rule(queue=queue_names, limit=st.sampled_from([1, 1, 2, 20]), lease_s=leases)
    def claim(self, queue: str, limit: int, lease_s: int) -> None:
        found = self.run.queues.claim_many(queue, limit, lease_s=lease_s, worker="w")
        expected = self.model[queue].claim(self.now, limit, "w")
        for job in expected:
            job.state, job.time = "claimed", self.now + lease_s * SECOND
            job.attempt += 1
        assert [(j.id.number, j.payload, j.attempt, j.priority, list(j.errors)) for j in found] == [
            (j.number, j.payload, j.attempt, j.priority, j.errors) for j in expected
        ]
        for mine, job in zip(found, expected, strict=True):
            job.holder = (queue, mine.token)
            assert (mine.key, mine.max_attempts, mine.enqueued_at) == (job.key, job.most, job.put_at)
            assert mine.claimed_until == job.time
            self.claims.append(mine)

    def picked(self, which: int) -> tuple[Any, ModelJob | None]:
        """A job that was claimed at some time, and what the model has of it if that claim holds."""
        mine = self.claims[which % len(self.claims)]
        job = self.model[mine.queue].jobs.get(mine.id.number)
        holds = job is not None and job.holder == (mine.queue, mine.token)
        return mine, job if holds else None

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(-3, 99), result=st.sampled_from([None, None, "r"]), inside=st.booleans())
    def ack(self, which: int, result: Any, inside: bool) -> None:
        mine, job = self.picked(which)

        def end() -> None:
            if not inside:
                self.db.queues.ack(mine, result)
                return
            with self.run.transaction() as txn:
                txn.queues.ack(mine, result)
                txn.kv.put("last", str(mine.id))

        if job is None:
            with pytest.raises(JobLostError):
                end()
            return
        end()
        job.holder = None
        if result is None:
            del self.model[mine.queue].jobs[job.number]
        else:
            job.state, job.time, job.result, job.payload = "done", self.now, result, None

    @precondition(lambda self: self.claims)
    @rule(
        which=st.integers(-3, 99), delay_s=st.sampled_from([None, 0, 5]),
        error=st.sampled_from([None, "e1", "e2"]), retry=st.sampled_from([True, True, False]),
    )
    def nack(self, which: int, delay_s: int | None, error: str | None, retry: bool) -> None:
        mine, job = self.picked(which)
        if job is None:
            with pytest.raises(JobLostError):
                self.db.queues.nack(mine, delay_s=delay_s, error=error, retry=retry)
            return
        self.db.queues.nack(mine, delay_s=delay_s, error=error, retry=retry)
        job.holder = None
        if not retry:
            job.most, most = 0, job.most
            job.fail(self.now, 0, error)
            job.most = most
        else:
            job.fail(self.now, RESTS[job.attempt - 1] if delay_s is None else delay_s, error)

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(-3, 99), lease_s=leases)
    def extend(self, which: int, lease_s: int) -> None:
        mine, job = self.picked(which)
        if job is not None and job.state == "dead" and self.model[mine.queue].keyed(job.key) is not None:
            job = None
        if job is None:
            with pytest.raises(JobLostError):
                self.db.queues.extend(mine, lease_s)
            return
        longer = self.db.queues.extend(mine, lease_s)
        job.state, job.time = "claimed", self.now + lease_s * SECOND
        assert longer == replace(mine, claimed_until=job.time)

    @rule(queue=queue_names, number=st.integers(0, 20))
    def requeue(self, queue: str, number: int) -> None:
        job = self.model[queue].jobs.get(number)
        error: Any = JobNotFoundError if job is None else None if job.state == "dead" else InvalidInputError
        if error is None and job is not None and self.model[queue].keyed(job.key) is not None:
            error = InvariantError
        if error is not None:
            with pytest.raises(error):
                self.run.queues.requeue(f"{queue}/{number}")
            return
        assert job is not None
        self.run.queues.requeue(f"{queue}/{number}")
        job.state, job.attempt, job.holder = "ready", 0, None

    @rule(queue=queue_names, state=st.sampled_from([*STATES, None]))
    def purge(self, queue: str, state: str | None) -> None:
        gone = [number for number, job in self.model[queue].jobs.items() if state in (None, job.state)]
        assert self.run.queues.purge(queue, state=state) == len(gone)
        for number in gone:
            del self.model[queue].jobs[number]

    @invariant()
    def what_is_seen_is_what_is_expected(self) -> None:
        now = self.now
        with self.run.snapshot() as view:
            assert view.queues.list() == sorted(self.used)
            for name, queue in self.model.items():
                waiting = [sum(j.time > now for j in queue.of(state)) for state in ("delayed", "claimed")]
                ready = len(queue.ready()) + len(queue.due(now))
                assert view.queues.counts(name) == QueueCounts(ready, *waiting, len(queue.of("dead")))
                assert view.queues.has_ready(name) is (ready > 0)
                assert [info.id.number for info in view.queues.peek(name, limit=3)] == [
                    job.number for job in queue.ready()[:3]
                ]
                assert [info.id.number for info in view.queues.dead(name)] == sorted(
                    job.number for job in queue.of("dead")
                )
                for number in range(max(0, queue.following - 12), queue.following + 1):
                    info, job = view.queues.get(f"{name}/{number}"), queue.jobs.get(number)
                    assert (info is None) is (job is None)
                    if info is None or job is None:
                        continue
                    assert (info.state, info.payload, info.result, info.priority, info.attempt) == (
                        job.state, job.payload, job.result, job.priority, job.attempt
                    )
                    assert (info.max_attempts, info.key) == (job.most, job.key)
                    assert info.errors == tuple(job.errors)
                    if job.state in ("delayed", "claimed", "dead", "done"):
                        assert info.time == job.time


TestQueueModel = QueueMachine.TestCase
TestQueueModel.settings = settings(max_examples=60, stateful_step_count=40)
