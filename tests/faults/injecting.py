"""Calls and exceptions at every place where Python lets them come.

A nested call comes from a trace function: before every instruction of the
package's code. Real ones come at fewer places (a signal handler runs after
calls and at backward jumps), or at any of them (a finalizer).

An exception comes where the interpreter runs signal handlers: after a call has
returned. A profile function that raises there does exactly what a handler that
raises does: the call has happened, its result is lost, and the exception is
raised at the call. (It runs them where a function begins, too. To raise there
from a profile function is beyond CPython 3.11, and nothing has happened yet.)
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import inmem

PACKAGE = str(Path(inmem.__file__).parent)
_LIBRARIES = re.compile("/(lmdb|hypothesis)/")  # the second has the collector call it
# What Python calls as an object goes: any `__del__`, and what a WeakSet (of threads, say) has it call.
_AT_ITS_END = re.compile(r"(.*\.)?__del__|WeakSet\.__init__\.<locals>\._remove")

_LATER_S = 0.00005


class _Injection:
    """Count the places that a call goes through, and do something at one of them."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        self.seen = 0
        self.where = "nowhere"
        self.is_ours = False  # else a library's code was reached, which the package's has called
        self._at = at
        self._action = action

    def _reached(self, frame: FrameType) -> bool:
        self.seen += 1
        if self.seen - 1 != self._at:
            return False
        code = frame.f_code
        self.is_ours = code.co_filename.startswith(PACKAGE)
        self.where = f"{code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {code.co_name}"
        return True


class NestedCall(_Injection):
    """Run `action` before the instruction (or line) number `at` of the package's code."""

    def __init__(self, at: int, action: Callable[[], None], *, opcodes: bool) -> None:
        super().__init__(at, action)
        self._event = "opcode" if opcodes else "line"

    def run(self, call: Callable[[], Any]) -> Any:
        """Make the call with the action in its middle."""
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        frame.f_trace_lines = self._event == "line"
        return self._inside

    def _inside(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == self._event and self._reached(frame):
            self._action()  # nothing is traced in here
        return self._inside


class Interrupt(_Injection):
    """Raise at the place number `at` where the interpreter would run a signal handler."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        super().__init__(at, action)
        self._returning: FrameType | None = None

    def run(self, call: Callable[[], Any]) -> Any:
        """Make the call, which may raise what the action raises."""
        # Without the collector. Python drops what is raised as it closes a generator; and CPython 3.11, which
        # may collect on its way into a profile function, frees one that raises meanwhile, and then calls it.
        is_collecting = gc.isenabled()
        gc.disable()
        sys.setprofile(self._event)
        try:
            return call()
        finally:
            sys.setprofile(None)
            if is_collecting:
                gc.enable()
            if self._returning is not None:
                # A handler would have raised in the caller: the traceback would not hold what this one had.
                self._returning.clear()
                self._returning = None

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        del arg  # a result: the traceback would hold it
        if self.seen > self._at or event not in ("return", "c_return") or not _is_inside(frame):
            return
        if self._reached(frame):
            self._returning = frame if event == "return" else None
            self._action()


def _is_inside(frame: FrameType | None) -> bool:
    """Whether the package's code is at work, or what it has called.

    Python drops what a finalizer raises, or what the collector calls. py-lmdb crashes if its own Python
    code raises while it opens an environment; signals are held back there.
    """
    is_inside = False
    while frame is not None:
        ours, drops = _kind(frame.f_code)
        if drops:
            return False
        is_inside |= ours
        frame = frame.f_back
    return is_inside


@functools.cache  # it is asked of each frame of the stack, whenever anything returns
def _kind(code: CodeType) -> tuple[bool, bool]:
    """Whether code is the package's, and whether Python would drop what is raised in it."""
    drops = _AT_ITS_END.fullmatch(code.co_qualname) or _LIBRARIES.search(code.co_filename)
    return code.co_filename.startswith(PACKAGE), bool(drops)


@contextlib.contextmanager
def alarms(error: Callable[[], BaseException]) -> Iterator[Callable[[float], None]]:
    """Yields what has an exception raised out of this thread's code after some seconds; 0 for not at all.

    Python drops what is raised inside a finalizer, or inside what the collector
    or a weak reference calls: there it comes a little later. An interrupt
    between the making of a socket and its keeping drops the socket: Python
    closes it, and says so.
    """

    wanted = False

    def handler(number: int, frame: FrameType | None) -> None:
        del number
        if not wanted:  # the timer had fired as it was stopped
            return
        if not _is_dropped(frame):
            raise error()
        signal.setitimer(signal.ITIMER_REAL, _LATER_S)

    def after(seconds: float) -> None:
        nonlocal wanted
        wanted = seconds > 0
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield after
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
            gc.collect()


def _is_dropped(frame: FrameType | None) -> bool:
    """Whether Python would drop what is raised here."""
    while frame is not None:
        if _kind(frame.f_code)[1]:
            return True
        frame = frame.f_back
    return False


def descriptors() -> int:
    """How many files this process has open."""
    gc.collect()
    gc.collect()  # what a finalizer has let go of
    return len(os.listdir("/proc/self/fd"))
