"""Signal handlers and finalizers, which run in the middle of our code.

A handler runs between any two steps of the main thread, a finalizer in any
thread. Both may call what they interrupt. A handler may also raise whatever it
likes: what a system call, or this package itself, would have raised there. Who
catches an exception to go on must not take such a one for its own.
"""

from __future__ import annotations

import itertools
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from threading import get_ident
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any, ClassVar, Final, Generic, NoReturn, TypeVar

from inmem.errors import BusyError

T = TypeVar("T")

_TURN_POLL_S: Final = 0.001
_GOES_BACK: Final = 0x20 | 0x80 | 0x200  # flags of generators, coroutines, and both; `inspect` loads much
_LOOKS: Final = 100  # at one stack
# The packages whose code this one calls; also what is compiled of them may leave frames. An engine from
# elsewhere adds its own.
OURS: Final = {
    *sys.stdlib_module_names, __name__.partition(".")[0],
    "lmdb", "msgpack", "sortedcontainers", "xxhash", "zmq",
}


def called(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of the user's. What comes out of here is not a signal handler's: see `is_foreign`."""
    return function(*arguments)


async def awaited(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """`called`, with a function whose result is awaited."""
    return await function(*arguments)


def is_foreign(error: BaseException) -> bool:
    """Whether code of somebody else raised it, in the middle of ours: not a function that we `called`.

    For the one who caught it; what we `awaited` counts as called. What the package calls is in itself, in the
    standard library or in C; a handler leaves a frame of another module.
    """
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code is called.__code__ or frame.f_code is awaited.__code__:
            return False
        if frame.f_globals.get("__name__", "").partition(".")[0] not in OURS:
            return True
        trace = trace.tb_next
    return False


def let_through(error: BaseException) -> None:
    """Raise it again if it is foreign. The first line of a block that goes on after an exception."""
    if is_foreign(error):
        raise error


class Exclusive:
    """What one call at a time uses, of all threads of this process.

    It is no lock: after `acquire` and before the block that releases it, a
    handler can raise, and the lock is never free again. Here a call takes its
    turn inside the block that ends it, and waits for others until its deadline.

    It relies on CPython with its global lock: neither handlers nor other threads
    run between two steps of which none is a call or a jump back.
    """

    def __init__(self) -> None:
        self.turns: dict[int, list[int]] = {}  # under 0, the call under way: its thread

    def alone(self, deadline: float, call: Callable[..., T], *arguments: Any) -> T:
        """Make the call when no other one is under way. `deadline` is of `time.monotonic`.

        Raises:
            BusyError: see `wait_for_turn`.
        """
        turns, turn = self.turns, [get_ident()]
        try:
            if turns.setdefault(0, turn) is not turn:  # one step, for all threads
                self.wait_for_turn(turn, deadline)
            return call(*arguments)
        finally:
            if 0 in turns and turns[0] is turn:
                del turns[0]  # nothing is called here, so no handler runs before it is done

    def wait_for_turn(self, turn: list[int], deadline: float) -> None:
        """Wait until the call under way has ended, and take the turn.

        Raises:
            BusyError: this one comes in the middle of another one of this thread, which cannot go on before
                this one ends; or another thread's does not end before the deadline.
        """
        while (taken := self.turns.setdefault(0, turn)) is not turn:
            if taken[0] == turn[0]:
                raise BusyError(
                    f"this thread is in the middle of {self.what()}", what="calls at once", limit=1,
                    hint="A signal handler or finalizer must not use what the code that it interrupts "
                    "is using: let it try again later.",
                )
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"another thread is in the middle of {self.what()}", what="calls at once", limit=1
                )
            time.sleep(_TURN_POLL_S)

    def what(self) -> str:
        """What a call is in the middle of, for messages."""
        return "another call"


class OneThread:
    """What threads use one after the other: handed over without a word, refused during a call.

    A call costs one comparison. Only the first call of another thread looks
    who is inside: whether a method of this is on the stack of any thread. It
    takes over before it looks, so of two that meet at least one is refused.
    """

    _codes: ClassVar[frozenset[CodeType]] = frozenset()  # of its methods

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        members = [each.fget if isinstance(each, property) else each for each in vars(cls).values()]
        methods = [getattr(each, "__wrapped__", each) for each in members if isinstance(each, FunctionType)]
        cls._codes = cls._codes.union(each.__code__ for each in methods)

    def __init__(self) -> None:
        self.thread = get_ident()  # that has used it last

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is of one process, and cannot be pickled or copied")

    def take_over(self) -> None:
        """The first line of a call, of another thread than the last one's.

        Raises:
            BusyError: another thread is in the middle of a call; this one has changed nothing.
        """
        self.thread = get_ident()
        is_mine = False
        try:
            is_mine = not self.is_inside()
        finally:
            if not is_mine:
                self.thread = 0  # whose it is now is for the next call of each to see
        if not is_mine:
            raise BusyError(
                "another thread is in the middle of a call with this transaction, snapshot or pipeline",
                what="threads at once", limit=1, hint="Give each thread one of its own, or let one wait.",
            )

    def is_inside(self) -> bool:
        """Whether another thread is in the middle of a call."""
        me = get_ident()
        for thread, frame in sys._current_frames().items():
            if thread != me and self._is_below(thread, frame):
                return True
        return False

    def _is_below(self, thread: int, leaf: FrameType) -> bool:
        """Whether a method of this is on the stack of a thread, which goes on meanwhile.

        Frames that have ended keep their callers, but a generator that has gone back to its caller is cut
        off from it: a stack that seems to end in one is looked at anew.

        Only frames of these methods are asked for their variables. One of another function may be about to
        end, its variables half gone, while a finalizer of one of them lets other threads run: CPython 3.11
        has ended with a segmentation fault.
        """
        codes = self._codes
        frame: FrameType | None = leaf
        looks = 0
        while frame is not None:
            if frame.f_code in codes and frame.f_locals.get("self") is self:
                return True
            last, frame = frame, frame.f_back
            # One that is found so each time is what the thread began with.
            if frame is None and last.f_code.co_flags & _GOES_BACK and looks < _LOOKS:
                looks += 1
                frame = sys._current_frames().get(thread)
        return False


class Living(Generic[T]):
    """Some objects, as long as others hold them. No code runs when one of them goes."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._found: dict[int, weakref.ref[Any]] = {}

    def add(self, one: T) -> T:
        """Note one, and give it back."""
        self._found[next(self._numbers)] = weakref.ref(one)  # one step each: others may add meanwhile
        for number, found in [*self._found.items()]:
            if found() is None:
                self._found.pop(number, None)
        return one

    def __iter__(self) -> Iterator[T]:
        return iter([one for each in [*self._found.values()] if (one := each()) is not None])
