"""What calls of queues are given, as procedures have it."""

from __future__ import annotations

import time
from typing import Any

from inmem.client.retry import deadline_in
from inmem.primitives._common import microseconds
from inmem.primitives.queues import rules
from inmem.primitives.queues.held import HeldJob
from inmem.primitives.queues.shown import check_job


def storable(error: str) -> str:
    """What is kept of an error."""
    head = error[: rules.MAX_ERROR_CHARS]
    return head.encode(errors="backslashreplace").decode()[: rules.MAX_ERROR_CHARS]


def deadline_of(wait_s: float | None) -> float:
    """When a wait ends that may take so long, by `time.monotonic`; None is for ever, and 0 now."""
    if wait_s is None:
        return deadline_in(None)
    return time.monotonic() + microseconds(wait_s, "wait_s") / 1e6


def place_of(prefix: bytes, job: object, *, is_end: bool = True) -> list[Any]:
    """Prefix, queue and number of a claimed job, token and mark of the claim, as procedures have them.

    Raises:
        InvalidInputError: it is none, or is of another run.
    """
    held, queue, number = check_job(job, prefix)
    if is_end and isinstance(held, HeldJob):
        held.end()
    return [prefix, queue, number, held.token, held.mark]
