"""What procedures of queues most likely look at: see `Looks`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit.footprint import Looks
from inmem.keys import TypeTag
from inmem.primitives.queues import rules as job
from inmem.primitives.queues.job import READY


@functools.lru_cache(maxsize=256)
def _claim(prefix: bytes, queue: bytes) -> Looks:
    orders = job.orders_of(prefix, queue)
    heads = [orders[state] for state in (READY, job.DELAYED, job.CLAIMED)]
    starts = tuple((head, head[:-1] + b"\1") for head in heads)
    return Looks(starts=starts, named=((starts[0], job.head_of(prefix, TypeTag.JOB_STATE, queue)),))


def claim(prefix: bytes, queue: bytes, *_: Any) -> Looks:
    """Of `claim`: who comes first, whose time may have come, and the states of the first."""
    return _claim(prefix, queue)


def held(prefix: bytes, queue: bytes, number: int, *_: Any) -> Looks:
    """Of what the holder of a claim does: the state of the job."""
    return Looks(keys=(job.head_of(prefix, TypeTag.JOB_STATE, queue) + job.number_bytes(number),))


def put(head: list[Any], *_: Any) -> Looks:
    """Of `put`: the next number, and that no job has it."""
    prefix, queue = head
    states = job.span_of(prefix, TypeTag.JOB_STATE, queue)
    return Looks(keys=(job.queue_key(prefix, queue),), ends=(states,))


LOOKS: Final[Mapping[str, Callable[..., Looks]]] = {
    "queue.claim": claim,
    "queue.put": put,
    **dict.fromkeys(("queue.ack", "queue.extend", "queue.nack"), held),
}
