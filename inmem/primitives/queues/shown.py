"""Jobs and queues, as users see them. The writer does not load this."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from inmem.primitives.queues.job import JobId


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job: the holder does it, until `claimed_until` at least.

    `attempt` counts claims, from 1 on. `token` is of this claim alone. `errors`
    are the last ones of earlier attempts. Times in microseconds. It can be
    pickled: another process that has it can do the job.
    """

    id: JobId
    queue: str
    payload: Any
    attempt: int
    token: int
    claimed_until: int
    enqueued_at: int
    errors: tuple[str, ...]
    run_id: str
    priority: int = 0
    max_attempts: int = 0
    key: str | None = None
    prefix: bytes = field(default=b"", repr=False)
    mark: int = field(default=0, repr=False)  # of the claim, drawn at random

    def extended(self, claimed_until: int) -> Job:
        """The same claim, with more time."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(Job)}
        return Job(**values | {"claimed_until": claimed_until})  # a plain one, also of one that is held


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as it is stored.

    `state` is one of `ready`, `delayed`, `claimed`, `dead` and `done`, as it
    was written: the time of a delayed or claimed one may have come since.
    `result` is that of a done job, which has no payload any more; `time` is
    when a delayed one is due, a claim runs out, or the job has ended. A payload
    that cannot be decoded is None here; the next claim makes the job dead, with
    the reason.
    """

    id: JobId
    queue: str
    state: str
    payload: Any
    result: Any
    priority: int
    attempt: int
    max_attempts: int
    key: str | None
    time: int
    worker: str
    enqueued_at: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """How many jobs a queue has in each state, by the clock.

    A delayed job whose time has come, and one whose claim ran out, are ready.
    """

    ready: int
    delayed: int
    claimed: int
    dead: int
