"""How many connections a process uses at once: its threads together, and the coroutines of each loop.

Who has one gets more without waiting for a turn: he would wait for himself. So
does who has waited a while in which nobody gave one back: those who have them
may be waiting for him. Then there are more connections for a while, and no deadlock.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, Final
from weakref import WeakKeyDictionary

from inmem.engines.postgres.green import awaited, is_green
from inmem.errors import BusyError, InvariantError

_PATIENCE_S: Final = 0.5


class ConnectionTurn:
    """Who has connections, and how many; whether he had to wait for the first one as others do."""

    __slots__ = ("count", "of", "whose")

    def __init__(self, whose: object, of: _Turns | None) -> None:
        self.whose = whose
        self.of = of
        self.count = 1


class ConnectionTurns:
    """The turns of one process for one store."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._threads = _ThreadTurns(limit)
        self._loops: WeakKeyDictionary[Any, _LoopTurns] = WeakKeyDictionary()
        self._had: dict[object, ConnectionTurn] = {}

    def take(self, deadline: float) -> ConnectionTurn:
        """Wait for a turn.

        Raises:
            BusyError: all connections are in use until the deadline.
        """
        green = is_green()
        whose = asyncio.current_task() if green else threading.get_ident()
        turn = self._had.get(whose)
        if turn is not None:
            turn.count += 1
            return turn
        if green:
            loop = asyncio.get_running_loop()
            turns = self._loops.get(loop)
            if turns is None:
                turns = self._loops[loop] = _LoopTurns(self.limit)
            of: _Turns | None = turns if turns.is_free() or awaited(turns.take(deadline)) else None
        else:
            of = self._threads if self._threads.take(deadline) else None
        turn = self._had[whose] = ConnectionTurn(whose, of)
        return turn

    def give_back(self, turn: ConnectionTurn) -> None:
        """A connection is free again."""
        turn.count -= 1
        if not turn.count:
            self._had.pop(turn.whose, None)
            if turn.of is not None:
                turn.of.give_back()


class _Turns:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._moved_at = 0.0  # when one was given back, or somebody went on without

    def give_back(self) -> None:
        raise NotImplementedError

    def _busy(self) -> BusyError:
        return BusyError(
            f"all {self.limit} connections of this process are in use", what="connections",
            limit=self.limit, hint="A larger limit: ?connections=N in the URL.",
        )

    def _stands_still(self) -> bool:
        """Whether nothing has moved for a while, so that one may go on without a turn."""
        now = time.monotonic()
        if now - self._moved_at < _PATIENCE_S:
            return False
        self._moved_at = now
        return True


class _ThreadTurns(_Turns):
    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._greenlets_of = _thread_of_greenlets()
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(limit):
            self._free.put(None)

    def take(self, deadline: float) -> bool:
        """Whether it is a turn, or going on without.

        Raises:
            InvariantError: gevent has patched the program, and this is another of the system's threads.
        """
        if self._greenlets_of is not None and self._greenlets_of != _thread_of_greenlets():
            raise InvariantError(
                "gevent has patched this program, and this is another thread than the one of its greenlets",
                hint="Use a store on a server in greenlets of the thread that opened it first.",
            )
        while True:
            try:
                self._free.get(timeout=max(0.0, min(_PATIENCE_S, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    raise self._busy() from None
                if self._stands_still():
                    return False
            else:
                return True

    def give_back(self) -> None:
        """It is another's turn."""
        self._moved_at = time.monotonic()
        self._free.put(None)


def _thread_of_greenlets() -> int | None:
    """The thread of the system that this runs in, if gevent has replaced what waits: it serves one."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("queue"):
        return None
    ident: int = monkey.get_original("_thread", "get_ident")()
    return ident


class _LoopTurns(_Turns):
    """All of it runs in the thread of its loop."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._left = limit
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._watch: asyncio.TimerHandle | None = None

    def is_free(self) -> bool:
        """Whether there was a turn at once."""
        if self._left and not self._waiting:
            self._left -= 1
            return True
        return False

    async def take(self, deadline: float) -> bool:
        """Whether it is a turn, or going on without."""
        future = self._loop.create_future()
        self._waiting.append(future)
        if self._watch is None:
            self._watch = self._loop.call_later(_PATIENCE_S, self._look)
        try:
            left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            await asyncio.wait((future,), timeout=left_s)
        except BaseException:
            if future.done() and future.result():
                self._next()
            future.cancel()
            raise
        if not future.done():
            future.cancel()
            raise self._busy()
        is_turn: bool = future.result()
        return is_turn

    def _look(self) -> None:
        """If nothing moves, let one go on."""
        self._watch = None
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        if self._waiting:
            if self._stands_still():
                self._waiting.popleft().set_result(False)
            self._watch = self._loop.call_later(_PATIENCE_S, self._look)

    def give_back(self) -> None:
        """It is another's turn."""
        if asyncio._get_running_loop() is self._loop:
            self._next()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._next)

    def _next(self) -> None:
        self._moved_at = time.monotonic()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(True)
                return
        self._left += 1
