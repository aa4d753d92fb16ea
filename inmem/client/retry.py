"""Trying again: how long, how often, and what an unknown outcome resolves to."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from inmem.config import MAX_TIMEOUT_S
from inmem.errors import CommitUnknownError, ConflictError, InvalidInputError, RetryableError
from inmem.host.interrupts import is_foreign
from inmem.keys import shorten

T = TypeVar("T")

_BACKOFF_S: Final = 0.0005  # first pause after a conflict; doubles, with full jitter
_BACKOFF_MAX_S: Final = 0.01  # longer ones starve who has lost often


def resolved_as(error: CommitUnknownError, convert: Callable[[Any], Any]) -> CommitUnknownError:
    """The error, whose `resend` now returns what `convert` makes of its result.

    Each layer passes it on so, and in the end it returns what the call that
    raised it would have returned. One of another call, which a signal handler
    let through, stays as it is.
    """
    again = None if error.is_foreign else error.resender
    if again is not None:

        def resend(timeout_s: float | None) -> Any:
            try:
                result = again(timeout_s)
            except CommitUnknownError as later:
                raise resolved_as(later, convert) from None
            return convert(result)

        error.resender = resend
    return error


def check_timeout(timeout_s: object, argument: str = "timeout_s") -> float:
    """The seconds if they can be a deadline; a `timedelta` is taken too.

    Raises:
        InvalidInputError: not a number above 0 and at most MAX_TIMEOUT_S.
    """
    seconds = timeout_s.total_seconds() if isinstance(timeout_s, timedelta) else timeout_s
    if type(seconds) in (int, float) and 0 < seconds <= MAX_TIMEOUT_S:  # type: ignore[operator]
        return float(seconds)  # type: ignore[arg-type]
    raise InvalidInputError(
        f"{argument} must be above 0 and at most {MAX_TIMEOUT_S:.0f} seconds, not {shorten(timeout_s)}",
        argument=argument,
    )


def deadline_in(timeout_s: float | None, argument: str = "timeout_s") -> float:
    """When a wait ends that may take so long, by `time.monotonic`; infinite for None.

    Raises:
        InvalidInputError: see `check_timeout`.
    """
    return math.inf if timeout_s is None else time.monotonic() + check_timeout(timeout_s, argument)


def retrying(
    attempt: Callable[[float], T], *, max_attempts: int, timeout_s: float, pause_max_s: float = _BACKOFF_MAX_S
) -> T:
    """Run an attempt until it is not refused, within bounds; pauses are jittered.

    `attempt` gets the seconds that are left. Functions of the user's are `called` by it.

    Raises:
        RetryableError: the last refusal, when attempts or time are used up.
    """
    if type(max_attempts) is not int or max_attempts < 1:
        raise InvalidInputError(
            f"max_attempts must be an int of at least 1, not {shorten(max_attempts)}", argument="max_attempts"
        )
    timeout_s = check_timeout(timeout_s)
    deadline = time.monotonic() + timeout_s
    ceiling = min(_BACKOFF_S, pause_max_s)
    for left in range(max_attempts - 1, -1, -1):
        try:
            return attempt(max(deadline - time.monotonic(), 0.001))
        except RetryableError as error:
            if is_foreign(error):
                raise  # a signal handler's: what was attempted may have happened
            is_next = isinstance(error, ConflictError) and error.is_next
            pause = 0.0 if is_next else random.uniform(0, ceiling)
            if not left or time.monotonic() + pause >= deadline:
                raise
            time.sleep(pause)
            ceiling = min(ceiling * 2, pause_max_s)
    raise AssertionError("unreachable")
