"""Reads of queues: what is there, without taking it."""

from __future__ import annotations

import builtins
import functools
from itertools import islice
from typing import Any, Final

from inmem.engines.base import VersionView, View
from inmem.errors import CorruptionError, InvalidInputError
from inmem.keys import TypeTag, encode_name, range_of, shorten
from inmem.primitives._common import check_limit
from inmem.primitives._paging import past
from inmem.primitives.queues import rules
from inmem.primitives.queues.calls import check_job
from inmem.primitives.queues.job import STATES, JobId, check_job_id
from inmem.primitives.queues.shown import Job, JobInfo, QueueCounts
from inmem.record import payload_of
from inmem.values import decode, text_of

_TIMED: Final = (TypeTag.JOB_DUE, TypeTag.JOB_CLAIMED)
_LISTED: Final = {
    "ready": TypeTag.JOB_READY, "delayed": TypeTag.JOB_DUE, "claimed": TypeTag.JOB_CLAIMED,
    "dead": TypeTag.JOB_DEAD,
}


class QueueReads:
    """Reads of one run's queues."""

    __slots__ = ("_prefix", "_view")

    def __init__(self, view: View, prefix: bytes) -> None:
        self._view = view
        self._prefix = prefix

    def get(self, job_id: str) -> JobInfo | None:
        """A job as it is stored, None if there is none: it was never there, or is done without a result.

        Cost: two reads.
        """
        queue, number = check_job_id(job_id, rules.MAX_QUEUE_BYTES)
        with self._view.moment() as view:
            return info(view, self._prefix, queue, rules.number_bytes(number))

    def counts(self, queue: str) -> QueueCounts:
        """How many jobs a queue has in each state, by the clock. Cost: about 0.3 µs a job."""
        name = encode_queue(queue)
        with self._view.moment() as view:
            now_us = view.now_us()
            ready = view.count(*self._span(TypeTag.JOB_READY, name))
            later = []
            for tag in _TIMED:
                start, end = self._span(tag, name)
                split = start + rules.number_bytes(now_us + 1)
                ready += view.count(start, split)
                later.append(view.count(split, end))
                _note_time(view, view.scan(split, end, limit=1))
            return QueueCounts(ready, later[0], later[1], view.count(*self._span(TypeTag.JOB_DEAD, name)))

    def peek(
        self, queue: str, *, limit: int = 1, start_after: JobInfo | None = None
    ) -> builtins.list[JobInfo]:
        """The ready jobs that are taken next, in that order, without taking them.

        Those whose delay or claim has just run out are not among them before a claim has moved them.
        `start_after` continues after a job of an earlier list, which need not be ready any more.
        """
        return self._listed(TypeTag.JOB_READY, queue, limit, start_after)

    def dead(
        self, queue: str, *, limit: int | None = None, start_after: JobInfo | None = None
    ) -> builtins.list[JobInfo]:
        """The dead jobs of a queue, the first that was put first. See `peek` for `start_after`."""
        return self._listed(TypeTag.JOB_DEAD, queue, limit, start_after)

    def list(self) -> builtins.list[str]:
        """The names of the run's queues, in byte order; those that are empty now too."""
        start, end = range_of(self._prefix, TypeTag.JOB_QUEUE)
        return [text_of(key[len(start) :]) for key, _ in self._view.scan(start, end)]

    def has_ready(self, queue: str) -> bool:
        """Whether a claim would find a job now. Cost: about 4 µs.

        A new job wakes all who wait for this by `db.wait`, and one of those
        who wait in `claim` or `consume`.
        """
        ready, *timed = _looked_at(self._prefix, encode_queue(queue))[2:]
        if self._view.scan(*ready, limit=1):
            return True
        now_us = self._view.now_us()
        for span in timed:
            first = self._view.scan(*span, limit=1)
            if first and _time_in(first[0][0]) <= now_us:
                return True
            _note_time(self._view, first)
        return False

    def holds(self, job: Job) -> bool:
        """Whether the claim of a job holds: until it is acked, nacked or claimed again, whatever the time."""
        job, queue, number = check_job(job, self._prefix)
        with self._view.moment() as view:
            found = stored(view, self._prefix, queue, rules.number_bytes(number))
        return found is not None and rules.is_held(found[1], job.token, job.mark)

    def _span(self, tag: int, queue: bytes) -> tuple[bytes, bytes]:
        return rules.span_of(self._prefix, tag, queue)

    def _listed(
        self, tag: int, queue: str, limit: int | None, start_after: JobInfo | None = None
    ) -> builtins.list[JobInfo]:
        name = encode_queue(queue)
        check_limit(limit)
        start, end = self._span(tag, name)
        place = None if start_after is None else start + _place_of(tag, name, start_after)
        with self._view.moment() as view:
            keys = [key for key, _ in view.scan(*past(start, end, place, reverse=False), limit=limit)]
            found = (info(view, self._prefix, name, key[-8:]) for key in keys)
            return [each for each in found if each is not None]


def _place_of(tag: int, queue: bytes, job: object) -> bytes:
    """Where a job is, or was, in the order of its queue's ready or dead jobs."""
    if not isinstance(job, JobInfo):
        raise InvalidInputError(
            f"start_after must be a JobInfo of an earlier list, not {shorten(job)}", argument="start_after"
        )
    owner, number = check_job_id(job.id, rules.MAX_QUEUE_BYTES, "start_after")
    if owner != queue:
        raise InvalidInputError(
            f"start_after is job {job.id}, which is of another queue", argument="start_after"
        )
    place = rules.number_bytes(number)
    if tag == TypeTag.JOB_DEAD:
        return place
    given = job.priority
    if type(given) is not int or not 0 <= rules.rank_of(given) < 1 << 32:
        raise InvalidInputError(
            f"start_after has a priority that no job can have: {shorten(given)}", argument="start_after"
        )
    return rules.rank_bytes(rules.rank_of(given)) + place


def in_state(queues: QueueReads, queue: str, state: str, limit: int) -> builtins.list[JobInfo]:
    """The first jobs of a queue in a state, as it was written: in order of their turn, or of their time.

    Raises:
        InvalidInputError: there is no such state, or nothing lists the jobs in it.
    """
    if state not in _LISTED:
        problem = f"state must be one of {', '.join(_LISTED)}, not {shorten(state)}"
        raise InvalidInputError(problem, argument="state")
    return queues._listed(_LISTED[state], queue, limit)


def encode_queue(queue: object) -> bytes:
    """The name of a queue as bytes.

    Raises:
        InvalidKeyError: not 1-100 bytes of UTF-8 without NUL.
    """
    return encode_name(queue, "queue", rules.MAX_QUEUE_BYTES)


def has_ready_for_one(queues: QueueReads, queue: str) -> bool:
    """As `has_ready`, for one who takes what is there: of those who wait for it few are woken."""
    takers, starts, *_ = _looked_at(queues._prefix, encode_queue(queue))
    queues._view.for_one(takers, starts)
    return queues.has_ready(queue)


@functools.lru_cache(maxsize=256)
def _looked_at(prefix: bytes, queue: bytes) -> tuple[Any, ...]:
    """What `has_ready` looks at: what takers wait for, where these ranges start, and each of them."""
    spans = [rules.span_of(prefix, tag, queue) for tag in (TypeTag.JOB_READY, *_TIMED)]
    return takers_name(prefix, queue), frozenset(start for start, _ in spans), *spans


@functools.lru_cache(maxsize=256)
def _heads(prefix: bytes, queue: bytes) -> tuple[bytes, bytes]:
    """What the keys of the two records of each job start with."""
    return rules.head_of(prefix, TypeTag.JOB, queue), rules.head_of(prefix, TypeTag.JOB_STATE, queue)


def takers_name(prefix: bytes, queue: bytes) -> bytes:
    """What those who wait for a job of a queue wait for: see `View.for_one`."""
    return b"%b\0%b" % (prefix, queue)


def _time_in(key: bytes) -> int:
    """The time in the key of a timed order."""
    return int.from_bytes(key[-16:-8], "big")


def _note_time(view: View, first: builtins.list[tuple[bytes, bytes]]) -> None:
    for key, _ in islice(first, 1):
        view.until(_time_in(key))


Stored = tuple[bytes, rules.JobState]


def stored(view: View, prefix: bytes, queue: bytes, number: bytes) -> Stored | None:
    """The payload of JOB and the state of a job."""
    return stored_many(view, prefix, queue, [number])[0]


def stored_many(view: View, prefix: bytes, queue: bytes, numbers: list[bytes]) -> list[Stored | None]:
    """The same of some jobs, by one look."""
    bodies, states = _heads(prefix, queue)
    records = view.read_many([head + number for number in numbers for head in (bodies, states)])
    found: list[Stored | None] = []
    for number, body, state in zip(numbers, records[::2], records[1::2], strict=True):
        if body is None or state is None:
            found.append(None)
            continue
        try:
            found.append((payload_of(body), rules.unpack(payload_of(state))))
        except ValueError as error:
            job_id = JobId.of(queue.decode(), int.from_bytes(number, "big"))
            raise CorruptionError(f"job {job_id}: {error}") from None
    return found


def info(view: VersionView, prefix: bytes, queue: bytes, number: bytes) -> JobInfo | None:
    """A job as it is stored."""
    found = stored(view, prefix, queue, number)
    if found is None:
        return None
    body, state = found
    name = queue.decode()
    try:
        value: Any = decode(rules.value_in(body))
    except ValueError:  # a claim finds that out, and says why: who looks at dead jobs must see this one too
        value = None
    is_done = state.state == rules.DONE
    key = state.key.decode(errors="backslashreplace")
    return JobInfo(
        id=JobId.of(name, int.from_bytes(number, "big")), queue=name, state=STATES[state.state],
        payload=None if is_done else value, result=value if is_done else None, priority=state.priority,
        attempt=state.attempt, max_attempts=state.max_attempts, key=key or None,
        time=state.time_us, worker=state.worker, enqueued_at=rules.enqueued_in(body),
        errors=tuple(state.errors),
    )


def check_state(state: object) -> int:
    """The number of a state by its name, -1 for None.

    Raises:
        InvalidInputError: there is no such state.
    """
    if state is None:
        return -1
    if type(state) is str and state in STATES:
        return STATES.index(state)
    raise InvalidInputError(
        f"state must be None or one of {', '.join(STATES)}, not {shorten(state)}", argument="state"
    )
