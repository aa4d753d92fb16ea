"""Functions that users give: which can be called here, and what they may return.

Invariant: what such a function does is done when it returns. One that gives
its result later would be called, and nothing that it says would happen.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import Any, Final

from inmem.errors import InvalidInputError

_KINDS: Final = {
    inspect.CO_COROUTINE: "a coroutine function",
    inspect.CO_ITERABLE_COROUTINE: "a coroutine function",
    inspect.CO_ASYNC_GENERATOR: "an asynchronous generator function",
    inspect.CO_GENERATOR: "a generator function",
}
_LATER: Final = sum(_KINDS)
_AT_ONCE: Final = (str, int, float, bytes, list, tuple, dict, type(None))  # bool is an int


def check_callable(fn: object, argument: str = "fn") -> None:
    """Refuse what cannot be called, or would not be done when the call returns. Cost: about 0.1 µs.

    Raises:
        InvalidInputError: not callable; or a coroutine or generator function, a method or partial of
            one, or an object that is called so.
    """
    if type(fn) is FunctionType:
        flags = fn.__code__.co_flags
    elif callable(fn):
        flags = _flags(fn)
    else:
        raise InvalidInputError(f"{argument} must be callable", argument=argument)
    if flags & _LATER:
        kind = next(name for flag, name in _KINDS.items() if flags & flag)
        raise InvalidInputError(
            f"{argument} must be a plain function, not {kind}", argument=argument,
            hint="Write it with def, without await or yield; do what takes time before or after it.",
        )


def _flags(fn: Any) -> int:
    """What kind of function a callable ends in."""
    if inspect.iscoroutinefunction(fn):  # also what is marked as one, or a mock of one
        return inspect.CO_COROUTINE
    while not isinstance(fn, FunctionType):
        if isinstance(fn, partial):
            fn = fn.func
        elif isinstance(fn, MethodType | staticmethod):
            fn = fn.__func__
        else:
            fn = type(fn).__call__
            if not isinstance(fn, FunctionType):
                return 0  # a class, or written in C
    return int(fn.__code__.co_flags)


def check_result(result: object, argument: str = "fn") -> None:
    """Refuse what a function has returned if its work is still to be done; it is closed, and never runs.

    Raises:
        InvalidInputError: a coroutine, a generator, or anything else that can be awaited.
    """
    if type(result) in _AT_ONCE:
        return
    later = isinstance(result, GeneratorType | CoroutineType | AsyncGeneratorType)
    if not later and not hasattr(type(result), "__await__"):
        return
    end = getattr(result, "close", None) or getattr(result, "cancel", None)
    if end is not None:
        end()
    raise InvalidInputError(
        f"{argument} must return a result, and not {type(result).__name__}, which gives it later",
        argument=argument, hint="Await or exhaust it before, or write the function without it.",
    )
