"""Procedures of queues: who gets which job is decided here, so claims never conflict.

Invariant: a commit looks at a bounded part of a queue, however much is in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from inmem.commit.arguments import check_name, check_prefix, check_time, check_type
from inmem.commit.footprint import Footprint
from inmem.commit.workspace import Workspace
from inmem.config import ENTRY_BYTES, MAX_COMMIT_BYTES, MAX_TRANSACTION_OPS
from inmem.errors import InvalidInputError, InvariantError, JobNotFoundError, LimitError
from inmem.keys import TypeTag
from inmem.primitives.importing import importing_records, parts, past
from inmem.primitives.queues import rules as job
from inmem.primitives.queues.job import READY, JobId
from inmem.primitives.queues.looks import LOOKS as LOOKS
from inmem.values import DamagedValueError

_TAGS: Final = (
    TypeTag.JOB, TypeTag.JOB_STATE, TypeTag.JOB_READY, TypeTag.JOB_DUE, TypeTag.JOB_CLAIMED,
    TypeTag.JOB_DEAD, TypeTag.JOB_BY_KEY,
)
_LOOKED_AT: Final = 1000  # jobs that one call of `purge` or `give_back` looks at
_STATE_BYTES: Final = 20_000  # of a state with the longest errors, and of the keys of its entries, at most


@functools.lru_cache(maxsize=256)
def _names(prefix: bytes, queue: bytes) -> tuple[str, bytes, bytes, bytes, tuple[bytes, ...]]:
    """Of a queue: its name as text, the key of its record, heads of keys: of jobs, of orders."""
    check_prefix(prefix)
    return (
        check_name(queue, job.MAX_QUEUE_BYTES, "queue"), job.queue_key(prefix, queue),
        job.head_of(prefix, TypeTag.JOB, queue), job.head_of(prefix, TypeTag.JOB_STATE, queue),
        job.orders_of(prefix, queue),
    )


class _Queue:
    """One queue, as it is now."""

    __slots__ = (
        "_bodies", "_orders", "_states", "head_key", "name", "prefix", "text", "workspace"
    )

    def __init__(self, workspace: Workspace, prefix: Any, queue: Any) -> None:
        check_type("prefix", prefix, bytes)
        check_type("queue", queue, bytes)
        self.prefix, self.name = prefix, queue
        self.text, self.head_key, self._bodies, self._states, self._orders = _names(prefix, queue)
        self.workspace = workspace
        workspace.check_open(self.head_key)

    def body_key(self, number: bytes) -> bytes:
        return self._bodies + number

    def state(self, number: bytes) -> job.JobState | None:
        payload = self.workspace.get(self._states + number)
        return None if payload is None else job.unpack(payload)

    def write(self, number: bytes, before: job.JobState | None, after: job.JobState) -> None:
        """Write a job's state, and its places in the orders."""
        workspace = self.workspace
        old = None if before is None else job.place_in_order(self._orders, number, before)
        new = job.place_in_order(self._orders, number, after)
        if old is not None and old != new:
            workspace.delete(old)
        workspace.put(self._states + number, after.pack())
        added = [] if new is None or new == old else [new]
        if after.key:
            was_live = before is not None and before.is_live
            if after.is_live and not was_live:
                added.append(job.key_head(self.prefix, self.name, after.key) + number)
            elif was_live and not after.is_live:
                workspace.delete(job.key_head(self.prefix, self.name, after.key) + number)
        if added:
            workspace.put_index(added)

    def remove(self, number: bytes, state: job.JobState) -> None:
        """Remove a job."""
        for key in (
            self._bodies + number, self._states + number,
            *job.entries(self.prefix, self.name, self._orders, number, state),
        ):
            self.workspace.delete(key)

    def has_room(self, jobs: int) -> bool:
        """Whether this commit can change so many more jobs."""
        try:
            self.workspace.expect(3 * jobs, jobs * _STATE_BYTES)
        except LimitError:
            return False
        return True

    def following(self) -> int:
        """The number of the next job."""
        stored = self.workspace.get(self.head_key)
        return 0 if stored is None else int.from_bytes(stored, "big")

    def last(self) -> int:
        """The highest number of a job that is there, -1 for none."""
        found = self.workspace.last(self._states, self._states[:-1] + b"\1")
        return -1 if found is None else int.from_bytes(found[0][-8:], "big")

    def first(self, order: int, limit: int, until_us: int | None = None) -> list[bytes]:
        """The first keys of the order of a state, for a timed one up to a time."""
        head = self._orders[order]
        end = head[:-1] + b"\1" if until_us is None else head + job.number_bytes(until_us + 1)
        return self.workspace.first_keys(head, end, limit)

    def with_states(self, keys: list[bytes]) -> list[tuple[bytes, job.JobState]]:
        """The keys of an order, with the states of the jobs.

        An entry that its job denies is damage. It goes, or it would be met by every claim.
        """
        found = []
        for key in keys:
            place = key[-8:]
            state = self.state(place)
            if state is not None and job.place_in_order(self._orders, place, state) == key:
                found.append((key, state))
            else:
                self.workspace.delete(key)
        return found

    def held(self, number: int, token: int, mark: int) -> tuple[bytes, job.JobState]:
        """A job that a claim holds.

        Raises:
            JobLostError: the claim does not hold any more.
        """
        place = job.number_bytes(check_time(number, "number"))
        check_time(token, "token")
        check_time(mark, "mark")
        return place, job.held(self.text, number, self.state(place), token, mark)


def put(workspace: Workspace, head: list[Any], items: list[Any]) -> list[Any]:
    """Put `[payload, delay_us, rank, key, max_attempts]` items into `[prefix, queue]`: `[queue, numbers]`.

    One with the key of a live job is not put: its number is that one's.
    """
    queue = _Queue(workspace, *parts(head, 2))
    check_type("items", items, list)
    if len(items) > MAX_TRANSACTION_OPS:
        raise LimitError(
            f"{len(items)} jobs of one call, the limit is {MAX_TRANSACTION_OPS}",
            what="jobs of one call", size=len(items), limit=MAX_TRANSACTION_OPS,
        )
    checked = [_checked(item) for item in items]
    try:
        workspace.expect(3 * len(items), sum(len(item[0]) for item in items))
        return [queue.text, _put(queue, checked)]
    except LimitError as error:
        fit = _how_many_fit(queue, checked)
        if not 0 < fit < len(items):  # but for what else the commit writes
            raise
        raise LimitError(
            f"{len(items)} jobs do not fit into one commit, {fit} of this size would",
            what="jobs of one commit", size=len(items), limit=fit, hint="Put them in several calls.",
        ) from error


_NewJob = tuple[bytes, int, job.JobState]  # payload, delay, state


def _put(queue: _Queue, jobs: list[_NewJob]) -> list[int]:
    workspace = queue.workspace
    first = following = queue.following()
    now_us = workspace.stamp_us
    numbers = []
    for payload, delay_us, state in jobs:
        if state.key and (live := _by_key(queue, state.key)) is not None:
            numbers.append(int.from_bytes(live, "big"))
            continue
        number = job.number_bytes(following)
        if queue.state(number) is not None:  # damage: whose number it is keeps it
            following = queue.last() + 1
            number = job.number_bytes(following)
        if following >= job.NUMBERS - 1:
            raise InvariantError(f"queue {queue.text} has no numbers left", hint="Use another queue.")
        workspace.put(queue.body_key(number), job.stamped(now_us, payload))
        if delay_us:
            state = state._replace(state=job.DELAYED, time_us=now_us + delay_us)
        queue.write(number, None, state)
        numbers.append(following)
        following += 1
    if following != first:
        workspace.put(queue.head_key, job.number_bytes(following))
    return numbers


def _how_many_fit(queue: _Queue, jobs: list[_NewJob]) -> int:
    """How many jobs like these a commit has room for, rather too few."""
    beside = 3 * (len(queue.body_key(b"")) + 12) + 100  # keys, and what is stored besides payload and key
    size = sum(len(payload) + beside + 2 * len(state.key) for payload, _, state in jobs)
    entries = sum(3 + bool(state.key) for _, _, state in jobs)
    return len(jobs) * MAX_COMMIT_BYTES // (size + entries * ENTRY_BYTES)


def _checked(item: Any) -> tuple[bytes, int, job.JobState]:
    payload, delay_us, rank, key, max_attempts = parts(item, 5)
    _check_encoded("payload", payload)
    check_time(delay_us, "delay")
    if check_time(rank, "rank") > job.MAX_RANK:
        raise InvalidInputError(f"rank is outside 0 to {job.MAX_RANK}", argument="rank")
    if key:
        check_name(key, job.MAX_KEY_BYTES, "key")
    check_type("key", key, bytes)
    if not 1 <= check_time(max_attempts, "max_attempts") <= job.MOST_ATTEMPTS:
        raise InvalidInputError("max_attempts is outside 1 to 65,535", argument="max_attempts")
    return payload, delay_us, job.JobState(READY, rank, 0, max_attempts, 0, 0, 0, key, "", [])


def _check_encoded(argument: str, value: object) -> None:
    """Refuse what is no encoded value: none of them is empty."""
    check_type(argument, value, bytes)
    if not value:
        raise InvalidInputError(f"{argument} is empty", argument=argument)


def _by_key(queue: _Queue, key: bytes) -> bytes | None:
    """The number of the live job with a key."""
    head = job.key_head(queue.prefix, queue.name, key)
    found = next(queue.workspace.scan(head, head[:-1] + b"\1"), None)
    return None if found is None else found[0][len(head) :]


def claim(
    workspace: Workspace, prefix: bytes, queue: bytes, worker: str, lease_us: int, limit: int, mark: int
) -> list[Any]:
    """Take the best ready jobs: `[token, claimed until, numbers, whether there may be more]`.

    Of the jobs whose time has come the first few are moved to the ready ones.
    It takes fewer if more do not fit into a commit.
    """
    found = _Queue(workspace, prefix, queue)
    check_type("worker", worker, str)
    if len(worker.encode()) > job.MAX_WORKER_BYTES:
        raise InvalidInputError(f"worker is longer than {job.MAX_WORKER_BYTES} bytes", argument="worker")
    check_time(lease_us, "lease")
    check_time(mark, "mark")
    if not 1 <= check_time(limit, "limit") <= MAX_TRANSACTION_OPS:
        raise InvalidInputError(f"limit is outside 1 to {MAX_TRANSACTION_OPS}", argument="limit")
    until_us = workspace.now_us + lease_us
    came, is_more = _whose_time_has_come(found)
    keys = found.first(READY, limit + 1)
    candidates = {key[-12:]: state for key, state in found.with_states(keys[:limit])}
    before = dict(came)
    came_ready = {place: job.ran_out(state) for place, state in came}
    moved = [
        job.rank_bytes(each.rank) + place for place, each in came_ready.items() if each.state == READY
    ]
    is_more = is_more or len(keys) + len(moved) > limit
    best = [*candidates]
    if moved:
        best = sorted(best + moved)[:limit]
    numbers: list[int] = []
    for each in best:
        if numbers and not found.has_room(1 + len(came_ready)):
            is_more = True
            break
        place = each[4:]
        state = before.get(place) or candidates[each]
        ready = came_ready.pop(place, state)
        if not job.has_attempts_left(ready):  # only damage has come to that
            now_us = workspace.now_us
            found.write(place, state, job.given_up(ready, now_us, now_us))
            is_more = True
            continue
        found.write(place, state, job.claimed(
            ready, version=workspace.version, until_us=until_us, mark=mark, worker=worker
        ))
        numbers.append(int.from_bytes(place, "big"))
    for place, state in came_ready.items():
        found.write(place, before[place], state)
    return [workspace.version, until_us, numbers, is_more]


def _whose_time_has_come(queue: _Queue) -> tuple[list[tuple[bytes, job.JobState]], bool]:
    """Delayed and claimed jobs whose time has come, at most MOVED, and whether there may be more."""
    now_us = queue.workspace.now_us
    keys = queue.first(job.DELAYED, job.MOVED + 1, now_us)
    if len(keys) <= job.MOVED:
        keys += queue.first(job.CLAIMED, job.MOVED + 1 - len(keys), now_us)
    found = queue.with_states(keys[: job.MOVED])
    return [(key[-8:], state) for key, state in found], len(keys) > job.MOVED


def ack(
    workspace: Workspace, prefix: bytes, queue: bytes, number: int, token: int, mark: int,
    result: bytes | None,
) -> None:
    """End a job that is done; with a result it stays, for who asks for that."""
    found = _Queue(workspace, prefix, queue)
    place, state = found.held(number, token, mark)
    if result is None:
        found.remove(place, state)
        return
    _check_encoded("result", result)
    body = workspace.get(found.body_key(place)) or b""
    workspace.put(found.body_key(place), job.stamped(job.enqueued_in(body), result))
    found.write(place, state, state._replace(state=job.DONE, time_us=workspace.stamp_us, token=0))


def nack(
    workspace: Workspace, prefix: bytes, queue: bytes, number: int, token: int, mark: int,
    delay_us: int | None, error: str, may_retry: bool,
) -> None:
    """Give a job back whose attempt has failed. Without a delay it rests, longer after each attempt."""
    found = _Queue(workspace, prefix, queue)
    check_type("error", error, str)
    check_type("may_retry", may_retry, bool)
    place, state = found.held(number, token, mark)
    now_us = workspace.stamp_us
    rest_us = job.backoff_us(state.attempt) if delay_us is None else check_time(delay_us, "delay")
    if not may_retry:
        state_after = state._replace(state=job.DEAD, time_us=now_us)
    else:
        state_after = job.given_up(state, now_us, now_us + rest_us)
    found.write(place, state, job.with_error(state_after._replace(token=0), error))


def extend(
    workspace: Workspace, prefix: bytes, queue: bytes, number: int, token: int, mark: int, lease_us: int
) -> int:
    """Give a claim more time from now on; until when it lasts."""
    found = _Queue(workspace, prefix, queue)
    place, state = found.held(number, token, mark)
    if state.state == job.DEAD and state.key and _by_key(found, state.key) is not None:
        raise job.lost(found.text, number, token)  # it had run out, and its key was given to another job
    until_us = workspace.stamp_us + check_time(lease_us, "lease")
    found.write(place, state, state._replace(state=job.CLAIMED, time_us=until_us))
    return until_us


def give_back(workspace: Workspace, prefix: bytes, queue: bytes, mark: int) -> int:
    """Give back what a claim took whose caller has gone; how many jobs. It was no attempt.

    Looks at the claims that run out last, where a new one is among the first.
    """
    found = _Queue(workspace, prefix, queue)
    check_time(mark, "mark")
    span = job.span_of(found.prefix, TypeTag.JOB_CLAIMED, found.name)
    given = 0
    for place in [key[-8:] for key, _ in islice(workspace.scan(*span, reverse=True), _LOOKED_AT)]:
        state = found.state(place)
        if state is not None and state.mark == mark:
            attempt = max(state.attempt - 1, 0)
            found.write(place, state, state._replace(state=READY, attempt=attempt, token=0))
            given += 1
    return given


def requeue(workspace: Workspace, prefix: bytes, queue: bytes, number: int) -> None:
    """Put a dead job back; its attempts count anew."""
    found = _Queue(workspace, prefix, queue)
    job_id = JobId.of(found.text, number)
    place = job.number_bytes(check_time(number, "number"))
    state = found.state(place)
    if state is None:
        raise JobNotFoundError(f"there is no job {job_id}", job_id=job_id)
    job.check_requeue(job_id, state)
    if state.key and _by_key(found, state.key) is not None:
        raise InvariantError(
            f"job {job_id} cannot be put back: another job with its key is there",
            hint="Finish that one first.",
        )
    found.write(place, state, state._replace(state=READY, attempt=0, token=0))


def purge(
    workspace: Workspace, prefix: bytes, queue: bytes, state: int, first: int, end: int
) -> list[int]:
    """Remove jobs of a state (-1: of any) from a number on and before another: `[removed, go on from]`.

    Where to go on is -1 after the last.
    """
    found = _Queue(workspace, prefix, queue)
    check_type("state", state, int)
    start, stop = (job.number_bytes(check_time(each, "number")) for each in (first, end))
    head = job.head_of(found.prefix, TypeTag.JOB_STATE, found.name)
    removed = 0
    stored = [*islice(workspace.scan(head + start, head + stop), _LOOKED_AT)]
    for looked, (key, payload) in enumerate(stored, 1):
        one = job.unpack(payload)
        if state in (-1, one.state):
            found.remove(key[-8:], one)
            removed += 1
        if looked == _LOOKED_AT:
            return [removed, int.from_bytes(key[-8:], "big") + 1]
    return [removed, -1]


def import_jobs(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Jobs: queue, number, when it was put, payload, and the fields of a `JobState` but for its mark.

    Their queues have come before.
    """
    with importing_records(workspace, prefix, token, "jobs", items):
        for item in items:
            queue, number, enqueued_us, payload, *fields = parts(item, 13)
            found = _Queue(workspace, prefix, queue)
            place = job.number_bytes(check_time(number, "number"))
            job_id = JobId.of(found.text, number)
            _check_encoded("payload", payload)
            check_time(fields[4], "token")
            check_time(fields[5], "time")
            try:
                state = job.unpack(job.JobState._make([*fields[:6], 0, *fields[6:]]).pack())
            except DamagedValueError as error:
                raise InvalidInputError(f"job {job_id}: {error}", argument="items") from None
            if (problem := job.problem_of(state)) is not None:
                raise InvalidInputError(f"job {job_id}: {problem}", argument="items")
            if number >= found.following():
                raise InvalidInputError(
                    f"job {job_id} is not below the next number of its queue", argument="number"
                )
            if found.state(place) is not None:
                raise InvalidInputError(f"job {job_id} comes twice", argument="number")
            if state.key:
                check_name(state.key, job.MAX_KEY_BYTES, "key")
                if state.is_live and _by_key(found, state.key) is not None:
                    raise InvalidInputError(
                        f"job {job_id} has the key of another one that is neither done nor dead",
                        argument="key",
                    )
            workspace.put(found.body_key(place), job.stamped(past(enqueued_us), payload))
            found.write(place, None, state)


def import_queues(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Queues: `[name, next number]`."""
    with importing_records(workspace, prefix, token, "queues", items):
        for item in items:
            name, following = parts(item, 2)
            found = _Queue(workspace, prefix, name)
            if check_time(following, "next") > job.MAX_NEXT:
                raise InvalidInputError(f"next is above {job.MAX_NEXT}", argument="next")
            if workspace.get(found.head_key) is not None:
                raise InvalidInputError(f"queue {found.text} comes twice", argument="name")
            workspace.put(found.head_key, job.number_bytes(following))


@functools.lru_cache(maxsize=256)
def _footprint(prefix: bytes, queue: bytes) -> Footprint:
    head = job.queue_key(prefix, queue)
    return Footprint.of((head, head + b"\0"), *(job.span_of(prefix, tag, queue) for tag in _TAGS))


def footprint(prefix: bytes, queue: bytes, *_: Any) -> Footprint:
    """Of all that concerns a queue: the queue."""
    return _footprint(prefix, queue)


def put_footprint(head: list[Any], *_: Any) -> Footprint:
    """Of `put`: the queue."""
    prefix, queue = head
    return _footprint(prefix, queue)


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "import.jobs": import_jobs,
    "import.queues": import_queues,
    "queue.ack": ack,
    "queue.claim": claim,
    "queue.extend": extend,
    "queue.give_back": give_back,
    "queue.nack": nack,
    "queue.purge": purge,
    "queue.put": put,
    "queue.requeue": requeue,
}

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {
    "queue.put": put_footprint,
    **dict.fromkeys(("queue.ack", "queue.extend", "queue.nack", "queue.requeue"), footprint),
}
