"""JobQueues: work that processes hand to each other, in the transactions of everything else.

Invariant: who gets which job is decided by the writer, at commit, so claims
never conflict; and the effect of a job that is acked in a transaction happens
with the ack, once. The rules are in `rules`.
"""

from __future__ import annotations

import builtins
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, Literal, NamedTuple, NoReturn

from inmem.client.retry import resolved_as
from inmem.config import MAX_TRANSACTION_OPS
from inmem.engines.base import Sink, View
from inmem.errors import (
    CommitUnknownError,
    InmemError,
    InvalidInputError,
    JobLostError,
    RunDeletedError,
    WaitTimeoutError,
)
from inmem.host.interrupts import let_through
from inmem.keys import encode_name, shorten
from inmem.pending import Pending
from inmem.primitives._common import check_flag, encoded, microseconds
from inmem.primitives.byrun import ByRun, by_its_run, by_run
from inmem.primitives.queues import rules
from inmem.primitives.queues.calls import deadline_of, place_of, storable
from inmem.primitives.queues.held import HeldJob
from inmem.primitives.queues.job import JobId, check_job_id
from inmem.primitives.queues.putting import I, PendingJobId, QueuePuts
from inmem.primitives.queues.reads import (
    QueueReads,
    check_state,
    encode_queue,
    has_ready_for_one,
    stored_many,
    takers_name,
)
from inmem.primitives.queues.shown import Job
from inmem.stepping import FacadeWaits, Inner, Steps, Streamed, Until
from inmem.values import decode, text_of

LEASE_S: Final = 30.0
_HOST: Final = socket.gethostname()[:60]
_FOR_EVER_S: Final = 1e9  # more than any wait
_POISON: Final = "the payload does not decode: {}"


class Queues(QueueReads, QueuePuts[I]):
    """One run's queues."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, prefix: bytes) -> None:
        super().__init__(view, prefix)
        self._sink = sink

    def ack(self, job: Job, result: Any = None) -> None:
        """End a job that is done. Cost: one round trip.

        A `result` other than None is kept, in place of the payload: `get`
        has it until `purge`. In a transaction the ack happens with all else
        in it, or not at all.

        Raises:
            JobLostError: the claim ran out and another worker has the job, or it has ended. A claim that
                ran out and was not taken still holds.
        """
        kept = None if result is None else encoded(self._sink, result, "result")
        arguments = [*place_of(self._prefix, job), kept]
        done: None = self._sink.ask("queue.ack", arguments, _none, is_sure=True)
        return done

    def nack(
        self, job: Job, *, delay_s: float | None = None, error: str | None = None, retry: bool = True
    ) -> None:
        """Give a job back whose attempt has failed. Cost: one round trip.

        It is ready again after `delay_s` seconds; without one after a second,
        doubled with each attempt, up to five minutes. `error` is kept with
        the job, its first 500 characters; those that are none of Unicode (lone
        surrogates) as escapes. After its last attempt, or without `retry`, it
        is dead.

        Raises:
            JobLostError: as of `ack`.
        """
        if error is not None and type(error) is not str:
            raise InvalidInputError(f"error must be a str, not {shorten(error)}", argument="error")
        arguments = [
            *place_of(self._prefix, job), None if delay_s is None else microseconds(delay_s, "delay_s"),
            storable(error or ""), check_flag(retry, "retry"),
        ]
        done: None = self._sink.ask("queue.nack", arguments, _none, is_sure=True)
        return done

    def extend(self, job: Job, lease_s: float = LEASE_S) -> Job:
        """Keep a job for `lease_s` seconds from now on; the job with its new time. Cost: one round trip.

        Raises:
            JobLostError: as of `ack`.
        """
        lease_us = microseconds(lease_s, "lease_s", is_above=True)
        arguments = [*place_of(self._prefix, job, is_end=False), lease_us]
        extended: Job = self._sink.ask("queue.extend", arguments, job.extended)
        return extended

    def requeue(self, job_id: str) -> None:
        """Put a dead job back; its attempts count from 1 again. Cost: one round trip.

        Raises:
            JobNotFoundError: there is no such job.
            InvalidInputError: it is not dead.
            InvariantError: another job with its key is there.
        """
        arguments = [self._prefix, *check_job_id(job_id, rules.MAX_QUEUE_BYTES)]
        done: None = self._sink.ask("queue.requeue", arguments, _none)
        return done


class _Found(NamedTuple):
    """What a claim has taken: its answer, the jobs, and the nacks of those whose payload does not decode."""

    answer: builtins.list[Any]
    jobs: builtins.list[Job]
    poison: builtins.list[builtins.list[Any]]


class RunQueues(Queues[JobId]):
    """One run's queues outside a transaction: each change is a commit of its own."""

    __slots__ = ("_full", "_run_id", "_waits")

    def __init__(self, view: View, sink: Sink, prefix: bytes, run_id: str, waits: FacadeWaits) -> None:
        super().__init__(view, sink, prefix)
        self._run_id = run_id
        self._waits = waits
        self._full: set[bytes] = set()  # queues of which the last claim has left something: no look before

    def claim(
        self, queue: str, *, lease_s: float = LEASE_S, wait_s: float | None = 0.0, limit: Literal[1] = 1,
        worker: str | None = None,
    ) -> Job | None:
        """Take the best ready job; None if there is none within `wait_s` seconds.

        The job is the caller's for `lease_s` seconds: ack it, nack it, or
        extend the claim. If none of these happens, the claim runs out. That
        counts as an attempt, and the job is ready again. Waiting is sleeping;
        `wait_s=None` waits for ever. `worker` says who has the job, by default
        host and process. `limit` is 1: `claim_many` takes more. Cost: a read,
        one round trip, two reads.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     job_id = db.queues.put("run-1", "mail", {"to": "ada"})
        ...     job = db.queues.claim("run-1", "mail")
        ...     db.queues.ack(job)
        ...     job.payload, job.attempt
        ({'to': 'ada'}, 1)

        Raises:
            RunDeletedError: the run was deleted.
        """
        found: Job | None = self._waits.drive(
            self._claims(queue, lease_s, wait_s, limit, worker, is_one=limit == 1)
        )
        return found

    def claim_many(
        self, queue: str, limit: int, *, lease_s: float = LEASE_S, wait_s: float | None = 0.0,
        worker: str | None = None,
    ) -> builtins.list[Job]:
        """Take up to `limit` of the best ready jobs, in one commit; waits for the first only. See `claim`.

        It takes fewer if more do not fit into a commit, which has room for some 3,500.
        """
        found: builtins.list[Job] = self._waits.drive(
            self._claims(queue, lease_s, wait_s, limit, worker, is_one=False)
        )
        return found

    def consume(
        self, queue: str, *, lease_s: float = LEASE_S, stop: Any = None, worker: str | None = None,
        wait_s: float | None = None,
    ) -> Iterator[HeldJob]:
        """Take one job after the other, for ever, or until none comes for `wait_s` seconds.

        Use each job with `with`: leaving the block acks it. An exception in
        the block nacks it, with its text, and then leaves the loop as well. If
        the worker is to go on, catch it around the block. The claim is extended
        meanwhile. The iterator ends when `stop`, an event, is set. It looks at
        `stop` before each claim, and once a second while it waits.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     job_ids = db.queues.put_many("run-1", "mail", ["ada", "alan"])
        ...     for job in db.queues.consume("run-1", "mail", wait_s=0):
        ...         with job:
        ...             print(job.payload)
        ada
        alan
        """
        arguments = self._checked(queue, lease_s, 1, worker)
        deadline_of(wait_s)
        if stop is not None and not callable(getattr(stop, "is_set", None)):
            raise InvalidInputError("stop must be an event, with `is_set`", argument="stop")
        jobs: Iterator[HeldJob] = self._waits.stream(self._consumed(arguments, stop, wait_s))
        return jobs

    def purge(self, queue: str, *, state: str | None = None) -> int:
        """Remove the jobs of a queue, of one state or all; how many. Cost: one round trip for 1,000 jobs.

        States are those of `JobInfo`. Workers that have claimed such a job get `JobLostError`. Jobs that are
        put meanwhile stay.
        """
        removed: int = self._sink.drive(self._purged(encode_queue(queue), check_state(state)))
        return removed

    def _purged(self, queue: bytes, state: int) -> Steps[int]:
        head = self._view.read(rules.queue_key(self._prefix, queue))
        end = int.from_bytes(head[-8:], "big") if head is not None else 0
        removed = at = 0
        while at >= 0:
            arguments = [self._prefix, queue, state, at, end]
            more, at = yield self._sink.ask("queue.purge", arguments, _itself, alone="purge")
            removed += more
        return removed

    def _checked(self, queue: str, lease_s: float, limit: int, worker: str | None) -> builtins.list[Any]:
        """Arguments of `queue.claim`, but for its mark."""
        if type(limit) is not int or not 1 <= limit <= MAX_TRANSACTION_OPS:
            raise InvalidInputError(
                f"limit must be an int from 1 to {MAX_TRANSACTION_OPS}, not {shorten(limit)}",
                argument="limit",
            )
        if worker is not None:
            encode_name(worker, "worker", rules.MAX_QUEUE_BYTES)
        return [
            self._prefix, encode_queue(queue), worker or _this_process(),
            microseconds(lease_s, "lease_s", is_above=True), limit,
        ]

    def _claims(
        self, queue: str, lease_s: float, wait_s: float | None, limit: int, worker: str | None, *,
        is_one: bool,
    ) -> Steps[Any]:
        arguments = self._checked(queue, lease_s, limit, worker)
        try:
            found = yield from self._claimed(arguments, deadline_of(wait_s))
        except CommitUnknownError as error:
            raise resolved_as(error, _first_of if is_one else _itself) from None
        return _first_of(found) if is_one else found

    def _consumed(self, arguments: builtins.list[Any], stop: Any, wait_s: float | None) -> Streamed[HeldJob]:
        while True:
            deadline = deadline_of(wait_s)
            found: builtins.list[Job] = []
            while not found:
                if stop is not None and stop.is_set():
                    return
                until = deadline if stop is None else min(deadline, time.monotonic() + 1.0)
                found = yield Inner(self._claimed(arguments, until))
                if not found and time.monotonic() >= deadline:
                    return
            give_back = partial(self._given_back, arguments[1], found[0].mark, 1)
            try:
                held = HeldJob(
                    found[0], self, self._waits, give_back, arguments[3], self._view.now_us()
                )
            except BaseException:  # interrupted
                yield Inner(give_back())
                raise
            yield held

    def _claimed(self, arguments: builtins.list[Any], deadline: float) -> Steps[builtins.list[Job]]:
        """Claim jobs; wait for the first until the deadline."""
        queue = arguments[1].decode()
        name = takers_name(self._prefix, arguments[1])
        has_slept = has_looked = False

        def look(view: Any) -> bool:
            return has_ready_for_one(view.queues, queue)

        while True:
            if has_looked or arguments[1] in self._full or self.has_ready(queue):
                has_looked = False
                mark = int.from_bytes(os.urandom(7), "big")
                try:
                    found: _Found = yield self._sink.ask(
                        "queue.claim", [*arguments, mark], partial(self._found, arguments[1], mark=mark),
                        alone="claim",
                    )
                    yield from self._buried(found.poison)
                except CommitUnknownError as error:
                    raise resolved_as(error, _jobs_of) from None
                except (InmemError, GeneratorExit):
                    if has_slept:
                        self._waits.pass_on(name)
                    raise
                except BaseException:  # cancelled, or interrupted: nobody has got what it may have taken
                    yield from self._given_back(arguments[1], mark, arguments[4])
                    raise
                if found.answer[3]:
                    self._full.add(arguments[1])
                else:
                    self._full.discard(arguments[1])
                if has_slept and found.answer[3]:
                    self._waits.pass_on(name)  # this one was woken, and others sleep who do not know
                if found.jobs:
                    return found.jobs
                if found.answer[2] or found.answer[3]:
                    continue  # what it got was lost meanwhile, or did not decode; or more jobs' time has come
            elif self._view.is_deleted(self._prefix):
                raise RunDeletedError(f"run {self._run_id} was deleted", run_id=self._run_id)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return []
            try:
                yield Until(look, None if left_s > _FOR_EVER_S else left_s)
            except WaitTimeoutError as error:
                let_through(error)
                return []
            has_slept = has_looked = True

    def _given_back(self, queue: bytes, mark: int, limit: int) -> Steps[None]:
        try:
            while limit > 0:
                given: int = yield self._sink.ask("queue.give_back", [self._prefix, queue, mark], _itself)
                if not given:
                    break
                limit -= given
        except InmemError as error:  # then it runs out
            let_through(error)

    def _found(self, queue: bytes, answer: builtins.list[Any], mark: int) -> _Found:
        """What a claim has taken, as far as it still holds."""
        token, until_us, numbers, _ = answer
        found = _Found(answer, [], [])
        places = [rules.number_bytes(number) for number in numbers]
        for number, one in zip(numbers, stored_many(self._view, self._prefix, queue, places), strict=True):
            if one is None or not rules.is_held(one[1], token, mark):
                continue  # it ran out meanwhile, and another has it
            body, state = one
            name = queue.decode()
            try:
                payload, key = decode(rules.value_in(body)), text_of(state.key)
            except ValueError as error:
                reason = _POISON.format(error)[:200]
                found.poison.append([self._prefix, queue, number, token, mark, 0, reason, False])
                continue
            found.jobs.append(Job(
                JobId.of(name, number), name, payload, state.attempt, token, until_us,
                rules.enqueued_in(body), tuple(state.errors), self._run_id, state.priority,
                state.max_attempts, key or None, self._prefix, mark,
            ))
        return found

    def _buried(self, poison: builtins.list[builtins.list[Any]]) -> Steps[None]:
        """Jobs whose payload does not decode are dead from here on."""
        for arguments in poison:
            try:
                yield self._sink.ask("queue.nack", arguments, _none)
            except (JobLostError, CommitUnknownError) as error:  # or else it runs out, and is met again
                let_through(error)


class TransactionQueues(Queues[PendingJobId]):
    """One run's queues inside a transaction: what changes waits for the commit. A claim is none of it."""

    __slots__ = ()

    def claim(self, *_: object, **__: object) -> NoReturn:
        """Not in a transaction: else two workers would run for one job until one of them lost.

        Raises:
            InvariantError: always.
        """
        self._refused("claim")

    def claim_many(self, *_: object, **__: object) -> NoReturn:
        """Not in a transaction, see `claim`."""
        self._refused("claim_many")

    def consume(self, *_: object, **__: object) -> Iterator[HeldJob]:
        """Not in a transaction, see `claim`."""
        self._refused("consume")

    def purge(self, *_: object, **__: object) -> NoReturn:
        """Not in a transaction: it may take several commits."""
        self._refused("purge")

    def _refused(self, name: str) -> NoReturn:
        self._sink.ask("queue.claim", [], bool, alone=name)
        raise AssertionError("the sink of a transaction refuses it")


class PipedQueues(QueuePuts[PendingJobId]):
    """One run's queues in a pipeline: jobs are put, and acked."""

    __slots__ = ("_prefix", "_sink")

    def __init__(self, sink: Sink, prefix: bytes) -> None:
        self._sink = sink
        self._prefix = prefix

    def ack(self, job: Job, result: Any = None) -> Pending[None]:
        """End a job that is done. See `JobQueues`."""
        kept = None if result is None else encoded(self._sink, result, "result")
        arguments = [*place_of(self._prefix, job), kept]
        pending: Pending[None] = self._sink.call("queue.ack", arguments, Pending)
        return pending


class JobQueues(ByRun[RunQueues]):
    """Named queues per run, whose jobs are taken, retried, and done with everything else in one commit.

    A claim gives a job to one worker for a while. If it is not acked in time,
    the claim runs out, and the job is ready again. So a job is done at least
    once. Its effects in the store happen exactly once, if they are in one
    transaction with its ack.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     job_id = db.queues.put("run-1", "add", [1, 2])
    ...     job = db.queues.claim("run-1", "add", lease_s=30)
    ...     def work(txn):
    ...         txn.kv.put("sum", sum(job.payload))
    ...         txn.queues.ack(job)
    ...     db.transact("run-1", work)
    ...     db.kv.get("run-1", "sum"), db.queues.counts("run-1", "add").ready
    (3, 0)
    """

    __slots__ = ()

    KIND = "queues"

    put = by_run(RunQueues.put)
    put_many = by_run(RunQueues.put_many)
    claim = by_run(RunQueues.claim)
    claim_many = by_run(RunQueues.claim_many)
    consume = by_run(RunQueues.consume)
    ack = by_its_run(RunQueues.ack)
    nack = by_its_run(RunQueues.nack)
    extend = by_its_run(RunQueues.extend)
    holds = by_its_run(RunQueues.holds)
    get = by_run(RunQueues.get)
    counts = by_run(RunQueues.counts)
    peek = by_run(RunQueues.peek)
    dead = by_run(RunQueues.dead)
    requeue = by_run(RunQueues.requeue)
    purge = by_run(RunQueues.purge)
    list = by_run(RunQueues.list)
    has_ready = by_run(RunQueues.has_ready)


class PipelineQueues(ByRun[PipedQueues]):
    """Jobs that a pipeline puts and acks; see `JobQueues`."""

    __slots__ = ()

    KIND = "queues"

    put = by_run(PipedQueues.put)
    put_many = by_run(PipedQueues.put_many)
    ack = by_its_run(PipedQueues.ack)


def _this_process() -> str:
    return f"{_HOST}:{os.getpid()}"


def _jobs_of(found: _Found) -> builtins.list[Job]:
    return found.jobs


def _first_of(jobs: builtins.list[Job]) -> Job | None:
    return jobs[0] if jobs else None


def _itself(result: Any) -> Any:
    return result


def _none(_: Any) -> None:
    return None
