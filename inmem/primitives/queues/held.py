"""A claimed job that is ended by leaving a block."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from inmem.primitives.queues.job import Job


@dataclass(frozen=True, slots=True)
class HeldJob(Job):
    """A job from `consume`, for `with` (or `async with`): see there.

    Within the block it can be acked with a result, nacked, or acked in a
    transaction: then leaving the block does nothing more.
    """

    _queues: Any = field(default=None, repr=False, compare=False)
    _lease_s: float = field(default=0.0, repr=False, compare=False)

    @classmethod
    def of(cls, job: Job, queues: Any, lease_s: float) -> HeldJob:
        """A claimed job, of the facade that has claimed it."""
        values = {each.name: getattr(job, each.name) for each in fields(Job)}
        return cls(**values | {"_queues": queues, "_lease_s": lease_s})
