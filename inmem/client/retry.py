"""Trying again: how long, how often, and what an unknown outcome resolves to."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Coroutine
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
            return _awaited(result, convert) if isinstance(result, Coroutine) else convert(result)

        error.resender = resend
    return error


async def _awaited(result: Coroutine[Any, Any, Any], convert: Callable[[Any], Any]) -> Any:
    """What `convert` makes of a result that a loop's session gives."""
    try:
        return convert(await result)
    except CommitUnknownError as later:
        raise resolved_as(later, convert) from None


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


class Patience:
    """How often something is tried again, for how long, and with which pauses; these are jittered.

    Raises:
        InvalidInputError: `max_attempts` is no int of at least 1, or `timeout_s` no time.
    """

    def __init__(self, *, max_attempts: int, timeout_s: float, pause_max_s: float = _BACKOFF_MAX_S) -> None:
        if type(max_attempts) is not int or max_attempts < 1:
            raise InvalidInputError(
                f"max_attempts must be an int of at least 1, not {shorten(max_attempts)}",
                argument="max_attempts",
            )
        timeout_s = check_timeout(timeout_s)
        self._left = max_attempts
        self._deadline = time.monotonic() + timeout_s
        self._pause_max_s = pause_max_s
        self._ceiling = min(_BACKOFF_S, pause_max_s)

    def left_s(self) -> float:
        """The seconds that the next attempt may take."""
        return max(self._deadline - time.monotonic(), 0.001)

    def pause_after(self, error: RetryableError) -> float | None:
        """How long to pause before the next attempt, when one was refused; None: the refusal stands."""
        if is_foreign(error):
            return None  # a signal handler's: what was attempted may have happened
        self._left -= 1
        is_next = isinstance(error, ConflictError) and error.is_next
        pause = 0.0 if is_next else random.uniform(0, self._ceiling)
        if not self._left or time.monotonic() + pause >= self._deadline:
            return None
        self._ceiling = min(self._ceiling * 2, self._pause_max_s)
        return pause


def retrying(attempt: Callable[[float], T], *, max_attempts: int, timeout_s: float) -> T:
    """Run an attempt until it is not refused, within bounds.

    `attempt` gets the seconds that are left. Functions of the user's are `called` by it.

    Raises:
        RetryableError: the last refusal, when attempts or time are used up.
    """
    patience = Patience(max_attempts=max_attempts, timeout_s=timeout_s)
    while True:
        try:
            return attempt(patience.left_s())
        except RetryableError as error:
            pause_s = patience.pause_after(error)
            if pause_s is None:
                raise
        time.sleep(pause_s)
