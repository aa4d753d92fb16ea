"""Steps, taken by a loop: what `inmem.steps` and `inmem.client.retry` do with a thread.

Invariant: steps are told of whatever ends them, a cancellation too, where they wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from inmem.client.retry import Patience
from inmem.errors import RetryableError
from inmem.stepping import Inner, Pause, Raised, Steps, Streamed, Until

T = TypeVar("T")
Waits = Callable[[Callable[[Any], Any], float | None], Awaitable[Any]]  # `RunScope.wait`, awaited


async def driven(steps: Steps[T], wait: Waits | None = None) -> T:
    """Take the steps where a sink returns what can be awaited; what they return. `wait`: if they wait."""
    result: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(result) if error is None else steps.throw(error)
        except StopIteration as end:
            returned: T | Raised = end.value
            break
        finally:
            result = error = None  # an exception that goes on must not hold this frame by its own name
        try:
            if isinstance(step, Until):
                assert wait is not None, "these steps do not wait"
                result = await wait(step.fn, step.timeout_s)
            else:
                result = await (asyncio.sleep(step.seconds) if isinstance(step, Pause) else step)
        except BaseException as caught:
            error = caught
    if isinstance(returned, Raised):
        raise returned.error
    return returned


async def streamed(steps: Streamed[T], wait: Waits) -> AsyncIterator[T]:
    """The items that the steps yield; `wait(fn, timeout_s)` is `RunScope.wait`, awaited."""
    found: Any = None
    try:
        while True:
            try:
                step = steps.send(found)
            except StopIteration:
                return
            found = None
            if isinstance(step, Until):
                found = await wait(step.fn, step.timeout_s)
            elif isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Inner):
                found = await driven(step.steps, wait)
            else:
                yield step
    finally:
        steps.close()


async def retrying(attempt: Callable[[float], Awaitable[T]], *, max_attempts: int, timeout_s: float) -> T:
    """Run an attempt until it is not refused, within bounds: see `inmem.client.retry.retrying`.

    Functions of the user's are `awaited` by it, or `called`.

    Raises:
        RetryableError: the last refusal, when attempts or time are used up.
    """
    patience = Patience(max_attempts=max_attempts, timeout_s=timeout_s)
    while True:
        try:
            return await attempt(patience.left_s())
        except RetryableError as error:
            pause_s = patience.pause_after(error)
            if pause_s is None:
                raise
        await asyncio.sleep(pause_s)
