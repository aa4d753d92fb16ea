"""What calls of queues are given, as procedures have it."""

from __future__ import annotations

import time
from typing import Any

from inmem.client.retry import deadline_in
from inmem.errors import InvalidInputError
from inmem.keys import shorten
from inmem.primitives._common import check_number, check_prefix_of, microseconds
from inmem.primitives.queues import rules
from inmem.primitives.queues.held import HeldJob
from inmem.primitives.queues.job import check_job_id
from inmem.primitives.queues.shown import Job


def storable(error: str) -> str:
    """What is kept of an error."""
    head = error[: rules.MAX_ERROR_CHARS]
    return head.encode(errors="backslashreplace").decode()[: rules.MAX_ERROR_CHARS]


def deadline_of(wait_s: float | None) -> float:
    """When a wait ends that may take so long, by `time.monotonic`; None is for ever, and 0 now."""
    if wait_s is None:
        return deadline_in(None)
    return time.monotonic() + microseconds(wait_s, "wait_s") / 1e6


def check_job(job: object, prefix: bytes) -> tuple[Job, bytes, int]:
    """The job if it is one that was claimed, of the run with this prefix; its queue and number.

    Raises:
        InvalidInputError: it is none, is of another run, or was made by hand and no store can have given it.
    """
    if not isinstance(job, Job):
        raise InvalidInputError(f"job must be a Job that was claimed, not {shorten(job)}", argument="job")
    queue, number = check_job_id(job.id, rules.MAX_QUEUE_BYTES, "job")
    if job.queue != queue.decode():
        raise InvalidInputError(f"job {job.id} is of another queue than it says", argument="job")
    check_prefix_of(f"job {job.id}", "job", job.prefix, prefix)
    check_number(job.token, "job", "its token")
    check_number(job.mark, "job", "its mark")
    return job, queue, number


def place_of(prefix: bytes, job: object, *, is_end: bool = True) -> list[Any]:
    """Prefix, queue and number of a claimed job, token and mark of the claim, as procedures have them.

    Raises:
        InvalidInputError: it is none, or is of another run.
    """
    held, queue, number = check_job(job, prefix)
    if is_end and isinstance(held, HeldJob):
        held.end()
    return [prefix, queue, number, held.token, held.mark]
