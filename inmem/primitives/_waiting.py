"""What the waits of the primitives share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from inmem.errors import InvalidInputError
from inmem.keys import shorten
from inmem.stepping import Pause, Streamed, Until

T = TypeVar("T")
E = TypeVar("E")  # an item

_SHORT_S: Final = 0.002  # a look that takes no longer is made as often as something changes
_PAUSE: Final = 4  # times as long as a longer look took, before the next: a fifth of a core at most
_PAUSE_MAX_S: Final = 1.0


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


def differs_from(
    after: int | None, look: Callable[[Any], tuple[T, int | None]]
) -> Callable[[Any], tuple[T] | None]:
    """True is what `look(view)` gives if the version with it is not `after`; None is that of nothing."""

    def differs(view: Any) -> tuple[T] | None:
        found, version = look(view)
        return (found,) if version != after else None

    return differs


def each_look(
    look: Callable[[Any], T], timeout_s: float | None, items: Callable[[T], Iterable[E]]
) -> Streamed[E]:
    """The items in what `look(view)` gives, each time that it is something true.

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
        yield from items((yield Until(timed, timeout_s)))
        if took_s > _SHORT_S:
            yield Pause(min(_PAUSE_MAX_S, _PAUSE * took_s))
