"""Queue rules: the states of a job, its records, and the orders in which jobs are found.

Invariant: a job is in one state, and each order has it that its state says:
so an order can be rebuilt from the states. A claim holds as long as its token
does, whatever the time: when it has run out the job can be taken, and only
that ends it. The number of a job is never used twice in its queue.

A job is two records, so that a claim rewrites few bytes, and a full store can
still end jobs:

    JOB        queue, NUL, number: when it was put (8 bytes), then the encoded
               payload; of a done job its result
    JOB_STATE  queue, NUL, number: the fields of `JobState`, as `JobState.pack` says

A queue is one record, JOB_QUEUE: the number of its next job, 8 bytes. Numbers
and times are big-endian.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Final, NamedTuple

import msgpack

from inmem.errors import InvalidInputError, JobLostError
from inmem.keys import TypeTag, shorten
from inmem.primitives.queues.job import READY, STATES, JobId
from inmem.values import DamagedValueError, decode

DELAYED: Final = STATES.index("delayed")
CLAIMED: Final = STATES.index("claimed")
DEAD: Final = STATES.index("dead")
DONE: Final = STATES.index("done")

MAX_QUEUE_BYTES: Final = 100  # with a prefix, a key of a job and its number that makes a key of the store
MAX_KEY_BYTES: Final = 200  # of a job's own key
MAX_ATTEMPTS: Final = 5  # by default
MOST_ATTEMPTS: Final = (1 << 16) - 1  # that can be given, and stored
MAX_ERRORS: Final = 8  # the last ones of a job are kept
MAX_ERROR_CHARS: Final = 500
MAX_PRIORITY: Final = (1 << 31) - 1
MAX_RANK: Final = 2 * MAX_PRIORITY
MAX_WORKER_BYTES: Final = 100
NUMBERS: Final = 1 << 63  # all numbers of jobs are below
MAX_NEXT: Final = 1 << 62  # of a queue that is imported: as many again are left to it
MOVED: Final = 16  # jobs whose time has come that one claim moves: what it costs has a bound
_tuple: Final = tuple.__new__  # that of a NamedTuple is a function of Python, twice as slow
_BACKOFF_US: Final = 1_000_000  # after the first attempt; doubles
_BACKOFF_MAX_US: Final = 300_000_000

_ORDERS: Final = (TypeTag.JOB_READY, TypeTag.JOB_DUE, TypeTag.JOB_CLAIMED, TypeTag.JOB_DEAD)  # as in STATES
_HEAD: Final = struct.Struct(">BIHHQQQ")
_NUMBER_BYTES: Final = 8
_STAMPED: Final = struct.Struct(">Q")


class JobState(NamedTuple):
    """What there is to a job besides its payload.

    `rank` is its priority, the highest first as a number that sorts; `token`
    the version of the commit that claimed it; `time_us` when a delayed job is
    due, a claim runs out, or a job has ended; `mark` what a claim says of
    itself, so that one nobody has got the answer of can be given back, and
    that none of another database is taken for it. The token of a job that
    nobody holds is 0.
    """

    state: int
    rank: int
    attempt: int
    max_attempts: int
    token: int
    time_us: int
    mark: int
    key: bytes
    worker: str
    errors: list[str]

    def pack(self) -> bytes:
        """The payload of a JOB_STATE record: 33 bytes, then MessagePack `[key, worker, errors]`.

        Raises:
            ValueError: a field does not fit.
        """
        rest = _packed(self.key, self.worker) if self.errors == [] else msgpack.packb(self[7:])
        try:
            return _HEAD.pack(*self[:7]) + rest
        except struct.error as error:  # nothing else would refuse the commit, and it would end the writer
            raise DamagedValueError(f"no state of a job: {error}") from None

    @property
    def priority(self) -> int:
        """As the user gave it."""
        return MAX_PRIORITY - self.rank

    @property
    def is_live(self) -> bool:
        """Whether it is not done and not dead."""
        return self.state in (READY, DELAYED, CLAIMED)


def unpack(payload: bytes) -> JobState:
    """What `JobState.pack` packed.

    Raises:
        ValueError: it did not pack this.
    """
    try:
        state: JobState = _tuple(JobState, _HEAD.unpack_from(payload) + _unpacked(payload[_HEAD.size :]))
    except (struct.error, TypeError) as error:
        raise DamagedValueError(f"no state of a job: {error}") from None
    if state[0] >= len(STATES):
        raise DamagedValueError("no state of a job")
    return state


def problem_of(state: JobState) -> str | None:
    """What a state says that no job of this store can come to; None if it is sound."""
    attempt, most = state.attempt, state.max_attempts
    if not 1 <= most <= MOST_ATTEMPTS:
        return f"max_attempts is not from 1 to {MOST_ATTEMPTS:,}"
    if (attempt >= most and state.state in (READY, DELAYED)) or (attempt > most and state.state == CLAIMED):
        return f"it is {STATES[state.state]} after attempt {attempt}, and has {most} at most"
    if state.state == CLAIMED and not (attempt and state.token):
        return "it is claimed, and has no attempt or no token"
    if state.rank > MAX_RANK:
        return f"priority is below {-MAX_PRIORITY}"
    if len(state.key) > MAX_KEY_BYTES or 0 in state.key:
        return f"key is longer than {MAX_KEY_BYTES} bytes, or has NUL"
    if len(state.worker.encode()) > MAX_WORKER_BYTES:
        return f"worker is longer than {MAX_WORKER_BYTES} bytes"
    if len(state.errors) > MAX_ERRORS or any(len(each) > MAX_ERROR_CHARS for each in state.errors):
        return f"errors are more than {MAX_ERRORS}, or one is longer than {MAX_ERROR_CHARS} characters"
    return None


# Jobs of one queue have few different ones of these, so each is kept for a while. Nobody changes the list.


@functools.lru_cache(maxsize=512)
def _packed(key: bytes, worker: str) -> bytes:
    rest: bytes = msgpack.packb((key, worker, []))
    return rest


@functools.lru_cache(maxsize=512)
def _unpacked(rest: bytes) -> tuple[bytes, str, list[str]]:
    key, worker, errors = decode(rest)
    if not (
        type(key) is bytes and type(worker) is str and type(errors) is list
        and all(type(each) is str for each in errors)
    ):
        raise DamagedValueError("no state of a job")
    return key, worker, errors


def rank_of(priority: int) -> int:
    """A priority as a number of 4 bytes, the highest first."""
    return MAX_PRIORITY - priority


# --- keys -----------------------------------------------------------------------------------------


def rank_bytes(rank: int) -> bytes:
    """The rank of a job in a key."""
    return rank.to_bytes(4, "big")


def number_bytes(number: int) -> bytes:
    """The number of a job in a key.

    Raises:
        OverflowError: it has more than 8 bytes.
    """
    return number.to_bytes(8, "big")


def head_of(prefix: bytes, tag: int, queue: bytes) -> bytes:
    """What the keys of one queue under a tag start with."""
    return b"%b\0%c%b\0" % (prefix, tag, queue)


def span_of(prefix: bytes, tag: int, queue: bytes) -> tuple[bytes, bytes]:
    """The half-open range of the keys of one queue under a tag."""
    start = b"%b\0%c%b" % (prefix, tag, queue)
    return start + b"\0", start + b"\1"


def queue_key(prefix: bytes, queue: bytes) -> bytes:
    """Where a queue's record is."""
    return b"%b\0%c%b" % (prefix, TypeTag.JOB_QUEUE, queue)


def split_rest(rest: bytes) -> tuple[bytes, int]:
    """Queue and number in what follows the tag of JOB and JOB_STATE.

    Raises:
        ValueError: they are not there.
    """
    queue, found, number = rest.partition(b"\0")
    if not queue or not found or len(number) != _NUMBER_BYTES:
        raise DamagedValueError("not the place of a job")
    return queue, int.from_bytes(number, "big")


def orders_of(prefix: bytes, queue: bytes) -> tuple[bytes, ...]:
    """What the keys of each order of a queue start with, by the state that it is of."""
    return tuple(head_of(prefix, tag, queue) for tag in _ORDERS)


def place_in_order(orders: tuple[bytes, ...], number: bytes, state: JobState) -> bytes | None:
    """Where the order that a state says has the job; None for a done one, which is in no order."""
    which = state.state
    if which == READY:
        return orders[READY] + rank_bytes(state.rank) + number
    if which in (DELAYED, CLAIMED):
        return orders[which] + state.time_us.to_bytes(8, "big") + number
    return orders[DEAD] + number if which == DEAD else None


def key_head(prefix: bytes, queue: bytes, key: bytes) -> bytes:
    """What the entry for a job's own key starts with; its number follows."""
    return head_of(prefix, TypeTag.JOB_BY_KEY, queue) + key + b"\0"


def entries(
    prefix: bytes, queue: bytes, orders: tuple[bytes, ...], number: bytes, state: JobState
) -> list[bytes]:
    """The index keys of one job."""
    place = place_in_order(orders, number, state)
    found = [] if place is None else [place]
    if state.key and state.is_live:
        found.append(key_head(prefix, queue, state.key) + number)
    return found


def index_keys(prefix: bytes, rest: bytes, payload: bytes) -> list[bytes]:
    """The index keys of one JOB_STATE record."""
    queue, number = split_rest(rest)
    return entries(prefix, queue, orders_of(prefix, queue), number_bytes(number), unpack(payload))


# --- the payload of JOB ---------------------------------------------------------------------------


def stamped(enqueued_us: int, value: bytes) -> bytes:
    """The payload of a JOB record."""
    return _STAMPED.pack(enqueued_us) + value


def enqueued_in(payload: bytes) -> int:
    """When a job was put, microseconds.

    Raises:
        ValueError: the payload is not of a job.
    """
    if len(payload) <= _STAMPED.size:
        raise DamagedValueError("no job")
    return int.from_bytes(payload[: _STAMPED.size], "big")


def value_in(payload: bytes) -> bytes:
    """The encoded payload or result of a job."""
    return payload[_STAMPED.size :]


# --- changes --------------------------------------------------------------------------------------


def held(queue: str, number: int, state: JobState | None, token: int, mark: int) -> JobState:
    """The state of a job if a claim still holds: it was not ended, nor the job taken again.

    Raises:
        JobLostError: it does not.
    """
    if state is None or not is_held(state, token, mark):
        raise lost(queue, number, token)
    return state


def is_held(state: JobState, token: int, mark: int) -> bool:
    """Whether a claim holds a job."""
    return token != 0 and (state.token, state.mark) == (token, mark)


def lost(queue: str, number: int, token: int) -> JobLostError:
    """The error of who does not hold a job any more."""
    job_id = JobId.of(queue, number)
    return JobLostError(
        f"job {job_id} is not held under token {token} any more", job_id=job_id, token=token
    )


def has_attempts_left(state: JobState) -> bool:
    """Whether a job that is to be taken may be."""
    return state.attempt < state.max_attempts


def claimed(state: JobState, *, version: int, until_us: int, mark: int, worker: str) -> JobState:
    """A job that is taken. It has attempts left."""
    _, rank, attempt, max_attempts, _, _, _, key, _, errors = state
    return JobState(CLAIMED, rank, attempt + 1, max_attempts, version, until_us, mark, key, worker, errors)


def with_error(state: JobState, error: str) -> JobState:
    """With one more error, of which the last few are kept; an empty one is none."""
    errors = [*state.errors, error[:MAX_ERROR_CHARS]][-MAX_ERRORS:] if error else state.errors
    return state._replace(errors=errors)


def given_up(state: JobState, now_us: int, due_us: int) -> JobState:
    """A job whose attempt has failed: ready at a time, or dead after its last attempt."""
    if state.attempt >= state.max_attempts:
        return state._replace(state=DEAD, time_us=now_us)
    return state._replace(state=DELAYED if due_us > now_us else READY, time_us=due_us)


def ran_out(state: JobState) -> JobState:
    """A job whose time has come: ready, or dead if a claim ran out that was its last attempt.

    Its token stays: until it is taken again, who has held it may still end it.
    """
    if state.state == CLAIMED:
        state = with_error(state, f"the claim of {state.worker or 'a worker'} ran out")
        return given_up(state, state.time_us, state.time_us)
    return state if state.state == READY else state._replace(state=READY)


def backoff_us(attempt: int) -> int:
    """How long a job rests after so many attempts, if nobody says."""
    return min(_BACKOFF_US << min(attempt - 1, 30), _BACKOFF_MAX_US)


def check_requeue(job_id: str, state: JobState) -> None:
    """Refuse to put a job back that is not dead.

    Raises:
        InvalidInputError: it is not.
    """
    if state.state != DEAD:
        raise InvalidInputError(
            f"job {shorten(job_id)} is {STATES[state.state]}: only a dead one is put back", argument="job_id"
        )


Item = list[Any]  # of a put: encoded payload, delay_us, rank, key, max_attempts
