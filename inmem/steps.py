"""What is done one step after the other, by whoever can wait: a thread here, a loop in `inmem.aio`.

Invariant: what a facade does between two steps neither blocks nor looks at
what a sink returned: that may be the result, or something to await. Whoever
drives the steps gives them the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Until:
    """Sleep until `fn(view)` returns something true, as `RunScope.wait` does, and give that back."""

    fn: Callable[[Any], Any]
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Raised:
    """What steps return if they end with an exception that a generator cannot raise: a `StopIteration`."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Inner:
    """Take these steps, and give back what they return."""

    steps: Steps[Any]


# Yields what a sink returned, and gets the result; or a `Pause`; or, where somebody can wait, an `Until`.
# Returns the result of all.
Steps = Generator[Any, Any, T]
# Yields items; or an `Until`, and gets what was waited for; or a `Pause`; or `Inner` steps.
Streamed = Generator[T | Until | Pause | Inner, Any, None]


class Renewed(Protocol):
    """What is held for a while, and renewed in time: see `inmem.primitives.holding`."""

    renew_at_us: int  # time since boot

    def renew(self) -> Steps[bool]:
        """Ask for more time; whether to go on with that."""


class FacadeWaits(Protocol):
    """Who waits for the facades of a run."""

    def wait(self, fn: Callable[[Any], T | None], timeout_s: float | None, convert: Callable[[T], R]) -> Any:
        """What `convert` makes of what `fn(view)` returns as soon as that is something true."""

    def stream(self, steps: Streamed[T]) -> Any:
        """The items that the steps yield."""

    @property
    def is_awaited(self) -> bool:
        """Whether what `drive` gives is to be awaited."""

    def loss(self, holding: Any) -> Any:
        """What says, in the form of an event, whether something that is held may be lost."""

    def keep(self, renewed: Any) -> None:
        """Renew something, a `Renewed`, from now on."""

    def drop(self, renewed: Any) -> None:
        """Renew it no more."""

    def pass_on(self, name: bytes) -> None:
        """Wake one more of those who wait for something that one alone can have: see `View.for_one`."""

    def drive(self, steps: Steps[T]) -> Any:
        """As `Sink.drive`, for steps that wait."""


class Wait(Protocol):
    """`RunScope.wait`: what it returns is never None or otherwise false."""

    def __call__(self, fn: Callable[[Any], T | None], *, timeout_s: float | None = None) -> T: ...


class ThreadWaits:
    """The thread that calls waits itself."""

    __slots__ = ("_wait", "drop", "keep", "loss", "pass_on")

    is_awaited = False

    def __init__(
        self, wait: Wait, pass_on: Callable[[bytes], None], keep: Callable[[Any], None],
        drop: Callable[[Any], None], loss: Callable[[Any], Any],
    ) -> None:
        self.loss = loss
        self._wait = wait
        self.pass_on = pass_on
        self.keep = keep
        self.drop = drop

    def wait(self, fn: Callable[[Any], T | None], timeout_s: float | None, convert: Callable[[T], R]) -> R:
        """See `FacadeWaits`; raises as `RunScope.wait`."""
        return convert(self._wait(fn, timeout_s=timeout_s))

    def drive(self, steps: Steps[T]) -> T:
        """See `FacadeWaits`."""
        return driven(steps, self._wait)

    def stream(self, steps: Streamed[T]) -> Iterator[T]:
        """See `FacadeWaits`."""
        found = None
        try:
            while True:
                try:
                    step = steps.send(found)
                except StopIteration:
                    return
                found = None
                if isinstance(step, Until):
                    found = self._wait(step.fn, timeout_s=step.timeout_s)
                elif isinstance(step, Pause):
                    time.sleep(step.seconds)
                elif isinstance(step, Inner):
                    found = driven(step.steps, self._wait)
                else:
                    yield step
        finally:
            steps.close()


def driven(steps: Steps[T], wait: Wait | None = None) -> T:
    """Take the steps where a sink returns results; what they return. `wait` is for those that wait."""
    result = None
    error: BaseException | None = None
    while True:
        try:
            result = steps.send(result) if error is None else steps.throw(error)
        except StopIteration as end:
            returned: T | Raised = end.value
            break
        finally:
            error = None  # an exception that goes on must not hold this frame by its own name
        if isinstance(result, Pause):
            time.sleep(result.seconds)
            result = None
        elif isinstance(result, Until):
            assert wait is not None, "these steps do not wait"
            try:
                result = wait(result.fn, timeout_s=result.timeout_s)
            except BaseException as caught:  # the steps end, or go on
                error = caught
    if isinstance(returned, Raised):
        raise returned.error
    return returned


def at_once(result: T) -> Steps[T]:
    """No step at all."""
    yield from ()
    return result
