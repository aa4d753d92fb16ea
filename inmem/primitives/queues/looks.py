"""What procedures of queues most likely look at: see `Looks`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit.footprint import Looks, Takes
from inmem.keys import TypeTag
from inmem.primitives.queues import rules as job
from inmem.primitives.queues.job import READY


@functools.lru_cache(maxsize=256)
def _claim(prefix: bytes, queue: bytes) -> Looks:
    orders = job.orders_of(prefix, queue)
    heads = [orders[state] for state in (READY, job.DELAYED, job.CLAIMED)]
    starts = tuple((head, head[:-1] + b"\1") for head in heads)
    states = job.head_of(prefix, TypeTag.JOB_STATE, queue)
    return Looks(starts=starts, named=((starts[0], states),))


@functools.lru_cache(maxsize=256)
def _claim_of_one(prefix: bytes, queue: bytes) -> Looks:
    looks = _claim(prefix, queue)
    heads = looks.named[0][1], job.head_of(prefix, TypeTag.JOB, queue)
    return looks._replace(takes=Takes(looks.starts[0], heads, looks.starts[1:]))


def claim(prefix: bytes, queue: bytes, worker: str, lease_us: int, limit: int, *_: Any) -> Looks:
    """Of `claim`: who comes first, whose time may have come, and the states of the first."""
    return (_claim_of_one if limit == 1 else _claim)(prefix, queue)


def held(prefix: bytes, queue: bytes, number: int, *_: Any) -> Looks:
    """Of what the holder of a claim does: the state of the job."""
    return Looks(keys=(job.head_of(prefix, TypeTag.JOB_STATE, queue) + job.number_bytes(number),))


def ends(prefix: bytes, queue: bytes, number: int, *_: Any) -> Looks:
    """Of what gives a job away: the same, and it changes nothing of others."""
    looks = held(prefix, queue, number)
    return looks._replace(place=looks.keys[0], is_of_place=True)


def put(head: list[Any], items: list[Any], *_: Any) -> Looks:
    """Of `put`: the next number, and that no job has it. It changes whenever a job is put.

    One with a key looks at others with that key.
    """
    prefix, queue = head
    states = job.span_of(prefix, TypeTag.JOB_STATE, queue)
    place = job.queue_key(prefix, queue)
    return Looks(keys=(place,), ends=(states,), place=None if any(item[3] for item in items) else place)


LOOKS: Final[Mapping[str, Callable[..., Looks]]] = {
    "queue.claim": claim,
    "queue.put": put,
    "queue.extend": held,
    **dict.fromkeys(("queue.ack", "queue.nack"), ends),
}
