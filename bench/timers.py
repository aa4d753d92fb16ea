"""Timers around functions of a program that runs: put on and taken off at run time, by name.

A function is named `module:name` or `module:Class.name`. A call of it that is
kept becomes a `Span`. What the timers themselves cost is measured, so that it
can be taken off.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

CLOCK = time.perf_counter_ns  # of the whole machine: the same in all processes
_CALLS, _CHUNKS = 500, 40  # of a measurement of the timers' own cost: the median chunk counts


class Span(NamedTuple):
    """A call: which function, when it began and ended, and what its target's `keep` made of it."""

    target: str
    begin_ns: int
    end_ns: int
    note: Any


class Target(NamedTuple):
    """A function to be timed. `keep(arguments, result)` gives the span's note; None: it is not kept."""

    name: str
    keep: Callable[[tuple[Any, ...], Any], Any] | None = None


class Cost(NamedTuple):
    """What a timer adds to a call, in nanoseconds: between its two looks at the clock, and around them."""

    inside: float
    around: float


class Timers:
    """Timers around some functions of this process. `missing` are those that are not there."""

    def __init__(self, targets: Iterable[Target], package: str) -> None:
        """Functions that modules of `package` have imported by name are found there as well."""
        self._spans: list[tuple[Any, ...]] = []
        self.missing: list[str] = []
        self._package = package
        self._places: list[tuple[Any, str, Any, Any, bool]] = []  # owner, name, before, timed, was its own
        for target in targets:
            try:
                owner, name, function = _found(target.name)
            except (ImportError, AttributeError):
                self.missing.append(target.name)
                continue
            timed = _timed(function, target, self._spans)
            for place in [owner, *self._importers(owner, name, function)]:
                self._places.append((place, name, function, timed, name in vars(place)))

    def _importers(self, owner: Any, name: str, function: Any) -> list[Any]:
        if isinstance(owner, type):
            return []
        return [
            module for module_name, module in sys.modules.items()
            if module is not owner and module_name.partition(".")[0] == self._package
            and vars(module).get(name) is function
        ]  # fmt: skip

    def kept(self) -> int:
        """How many calls `spans` would give."""
        return len(self._spans)

    def spans(self) -> list[Span]:
        """The calls that were kept since this was asked last, in the order in which they ended."""
        found = [Span(*span) for span in self._spans]
        self._spans.clear()
        return found

    def put_on(self) -> None:
        """Time calls from now on."""
        for owner, name, _, timed, _ in self._places:
            setattr(owner, name, timed)

    def take_off(self) -> None:
        """Leave the functions as they were."""
        for owner, name, before, _, was_its_own in self._places:
            if was_its_own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)


def _found(name: str) -> tuple[Any, str, Any]:
    """Who has a function, under which name, and the function."""
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, last, getattr(owner, last)


def _timed(
    function: Callable[..., Any], target: Target, spans: list[tuple[Any, ...]]
) -> Callable[..., Any]:
    """The function, telling of its calls. One that raises is not told of."""
    clock, append, (name, keep) = CLOCK, spans.append, target

    def timed(*arguments: Any, **named: Any) -> Any:
        begin = clock()
        result = function(*arguments, **named)
        end = clock()
        note = True if keep is None else keep(arguments, result)
        if note is not None:
            append((name, begin, end, note))  # plain tuples cost least, to make and to keep
        return result

    return timed


class _Idle:
    """A method as most are that are timed: it has arguments, some of them named."""

    def plain(self, one: object, *, two: object) -> None:
        pass


def cost() -> Cost:
    """What a timer costs in this process now, where it is called over and over: elsewhere it may be more."""
    spans: list[tuple[Any, ...]] = []

    class Timed(_Idle):
        timed = _timed(_Idle.plain, Target("nothing"), spans)

    idle = Timed()

    def plain() -> float:
        began = CLOCK()
        for _ in range(_CALLS):
            idle.plain(spans, two=spans)
        return (CLOCK() - began) / _CALLS

    def timed() -> float:
        began = CLOCK()
        for _ in range(_CALLS):
            idle.timed(spans, two=spans)
        return (CLOCK() - began) / _CALLS

    enabled = gc.isenabled()
    gc.disable()
    try:
        pairs = [(plain(), timed()) for _ in range(_CHUNKS)]
    finally:
        if enabled:
            gc.enable()
    call = statistics.median(without for without, _ in pairs)
    whole = max(0.0, statistics.median(having for _, having in pairs) - call)
    # The call itself is in both, so it does not count as what the timer adds.
    inside = statistics.median(end - begin for _, begin, end, _ in spans) - call
    inside = min(whole, max(0.0, inside))
    return Cost(inside, whole - inside)
