"""Code that waits as threads do, run by coroutines: where it would block, its loop goes on with others.

A coroutine that is `spawned` runs on a stack of its own, a greenlet. What it
calls may call `awaited` however deep, which leaves that stack until something
is there. So the engine is written once, and a connection asks where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

import psycopg
from greenlet import getcurrent, greenlet
from psycopg.waiting import Ready, Wait

from inmem.engines.postgres.patience import PatientConnection

T = TypeVar("T")

END_S: Final = 1.0  # for the answer to a statement whose caller was cancelled; then its connection goes
_LONG_S: Final = 1e6  # a loop takes no infinite time
_R: Final = int(Wait.R)
_W: Final = int(Wait.W)


class _Green(greenlet):  # type: ignore[misc]  # it has no types
    """A stack of a coroutine's own."""


def is_green() -> bool:
    """Whether this may wait for a loop."""
    return type(getcurrent()) is _Green


class Spawned(Generic[T]):
    """A coroutine that runs on a stack of its own."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def close(self) -> None:
        """If nobody has awaited it, nobody will."""
        self._coroutine.close()

    __del__ = close

    def __await__(self) -> Generator[Any, Any, T]:
        here = getcurrent()
        if type(here) is _Green:
            return (yield from self._coroutine.__await__())
        green = _Green(_drive)
        green.gr_context = here.gr_context
        step = green.switch(self._coroutine)
        while not green.dead:
            try:
                yield step
            except BaseException as error:
                step = green.throw(error)
            else:
                step = green.switch()
        result: T = step
        return result


def awaited(awaitable: Awaitable[T]) -> T:
    """Wait, in what was spawned."""
    result: T = _drive(awaitable.__await__())
    return result


def _drive(steps: Any) -> Any:
    """Take the steps of a coroutine; each is handed to the loop."""
    switch = getcurrent().parent.switch
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        error = None
        try:
            switch(step)
        except BaseException as thrown:
            error = thrown


def pause(seconds: float) -> None:
    """Do nothing for a while."""
    if is_green():
        awaited(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def in_thread(call: Callable[[], T], drop: Callable[[T], None]) -> T:
    """Make a call in a thread of its own, if this may wait for a loop. What comes too late is dropped."""
    return awaited(_in_thread(call, drop)) if is_green() else call()


async def _in_thread(call: Callable[[], T], drop: Callable[[T], None]) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def end(result: Any, error: BaseException | None) -> None:
        if future.done():
            if error is None:
                drop(result)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        result = error = None
        try:
            result = call()
        except BaseException as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(end, result, error)
        except RuntimeError:  # the loop is closed
            if error is None:
                drop(result)  # type: ignore[arg-type]

    threading.Thread(target=run, name="inmem-connect", daemon=True).start()
    return await future


class Connection(PatientConnection):
    """A connection that waits as whoever uses it does. One call at a time."""

    turn: Any = None  # of who uses it: see `turns`
    free_since = 0.0
    waiter: asyncio.Future[int] | None = None
    blocked = 0  # how often a loop's thread had to wait: for tests

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Wait for the server."""
        if type(getcurrent()) is _Green:
            found = awaited(self._until_done(gen))
            self.check_doubt()
            return found
        if asyncio._get_running_loop() is not None:
            Connection.blocked += 1
        return super().wait(gen, *arguments, **options)

    def close(self) -> None:
        """Close it; who waits for it is told."""
        waiter = self.waiter
        if waiter is not None:
            with contextlib.suppress(RuntimeError):  # of a loop that is closed
                _told(waiter, None)
                waiter.get_loop().call_soon_threadsafe(_told, waiter, None)
        super().close()

    async def _until_done(self, gen: Any) -> Any:
        state: list[int] = []
        try:
            return await self._go_on(gen, state)
        except asyncio.CancelledError:
            # The connection is whole only once the answer is there.
            try:
                async with asyncio.timeout(END_S):
                    await self._go_on(gen, state)
            except psycopg.Error:
                pass
            except BaseException:
                self.close()
            raise
        except GeneratorExit:  # nobody goes on with this
            self.close()
            raise

    async def ready(self, also_to_write: bool) -> bool:
        """Wait until something has come, or may be sent; whether something has come.

        Raises:
            OperationalError: the connection was closed, or nothing has come until its deadline.
        """
        number = self.pgconn.socket
        ready = _at_once(number) if also_to_write else 0
        if not ready:
            ready = await self._until_ready(number, int(Wait.RW) if also_to_write else _R)
        return bool(ready & int(Ready.R))

    async def _until_ready(self, number: int, wanted: int) -> int:
        loop = asyncio.get_running_loop()
        future = self.waiter = loop.create_future()
        if wanted & _R:
            loop.add_reader(number, _told, future, int(Ready.R))
        if wanted & _W:
            loop.add_writer(number, _told, future, int(Ready.W))
        try:
            async with asyncio.timeout(min(self.left_s(), self.patience_s, _LONG_S)):
                ready = await future
        except TimeoutError:
            self.close()
            raise psycopg.OperationalError("the server did not answer in time") from None
        finally:
            self.waiter = None
            if wanted & _R:
                loop.remove_reader(number)
            if wanted & _W:
                loop.remove_writer(number)
        if ready is None or self.closed:
            raise psycopg.OperationalError("the connection was closed")
        found: int = ready
        return found

    async def _go_on(self, gen: Any, state: list[int]) -> Any:
        number = self.pgconn.socket
        try:
            if not state:
                state.append(next(gen))
            while True:
                wanted = state[0]
                ready = _at_once(number) if wanted & _W else 0
                state[0] = gen.send(ready or await self._until_ready(number, wanted))
        except StopIteration as end:
            return end.value
        except OSError as error:
            raise psycopg.OperationalError(str(error)) from None


def _at_once(number: int) -> int:
    """What a socket is ready for; one that is to be written to nearly always is."""
    polled = select.poll()
    polled.register(number, select.POLLIN | select.POLLOUT)
    found = polled.poll(0)
    if not found:
        return 0
    came = found[0][1]
    return int(Ready.R) * bool(came & ~select.POLLOUT) | int(Ready.W) * bool(came & select.POLLOUT)


def _told(future: asyncio.Future[Any], ready: int | None) -> None:
    if not future.done():
        future.set_result(ready)
