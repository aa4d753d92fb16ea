"""What the waits of the primitives share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, TypeVar

from inmem.errors import InvalidInputError
from inmem.keys import shorten

T = TypeVar("T")

_SHORT_S: Final = 0.002  # a look that takes no longer is made as often as something changes
_PAUSE: Final = 4  # times as long as a longer look took, before the next: a fifth of a core at most
_PAUSE_MAX_S: Final = 1.0


class Wait(Protocol):
    """`RunScope.wait`: what it returns is never None or otherwise false."""

    def __call__(self, fn: Callable[[Any], T | None], *, timeout_s: float | None = None) -> T: ...


def check_version(version: object, argument: str) -> int | None:
    """The value if it can be a version.

    Raises:
        InvalidInputError: neither None nor an int from 0 to 2**63-1.
    """
    if version is None or (type(version) is int and 0 <= version < 1 << 63):
        return version
    raise InvalidInputError(
        f"{argument} must be None or an int from 0 to 2**63-1, not {shorten(version)}", argument=argument
    )


def wait_until_differs(
    wait: Wait, look: Callable[[Any], tuple[T, int | None]], after: int | None, timeout_s: float | None
) -> T:
    """What `look(view)` gives as soon as the version with it is not `after`; None is that of nothing."""

    def differs(view: Any) -> tuple[T] | None:
        found, version = look(view)
        return (found,) if version != after else None

    return wait(differs, timeout_s=timeout_s)[0]


def each_look(wait: Wait, look: Callable[[Any], T], timeout_s: float | None) -> Iterator[T]:
    """What `look(view)` gives, each time that it is something true.

    A look that takes long is made less often, however often something changes.
    """
    took_s = 0.0

    def timed(view: Any) -> T:
        nonlocal took_s
        began = time.monotonic()
        found = look(view)
        took_s = time.monotonic() - began
        return found

    while True:
        yield wait(timed, timeout_s=timeout_s)
        if took_s > _SHORT_S:
            time.sleep(min(_PAUSE_MAX_S, _PAUSE * took_s))
