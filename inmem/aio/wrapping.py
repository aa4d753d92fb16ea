"""What the facades of asyncio are made with: `inmem.aio.generate` writes them.

Invariant: an asynchronous facade adds nothing. It calls the facade that it
holds, and awaits what its sink or its waits gave; a read it just returns.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from types import FunctionType
from typing import Any, TypeVar

T = TypeVar("T")
C = TypeVar("C", bound=type)


class AsyncFacade:
    """A facade whose sink and waits give what can be awaited."""

    __slots__ = ("_sync", "_turn")

    _turn: Any  # where reads wait: who has it may use what all calls of a transaction share

    def __init__(self, sync: Any) -> None:
        self._sync = sync


class Each(AsyncIterator[T]):
    """What an iterator of reads gives. It does not suspend."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items

    async def aclose(self) -> None:
        """End it, as `contextlib.aclosing` does."""
        if isinstance(self._items, Generator):
            self._items.close()

    async def __anext__(self) -> T:
        for item in self._items:
            return item
        raise StopAsyncIteration


def documented(sync: type) -> Callable[[C], C]:
    """Give a class and its methods the docstrings of a class, less the examples: these do not await."""

    def document(cls: C) -> C:
        cls.__doc__ = without_example(sync.__doc__)
        for name, function in vars(cls).items():
            if isinstance(function, FunctionType) and function.__doc__ is None:
                function.__doc__ = without_example(getattr(sync, name, function).__doc__)
        return cls

    return document


def without_example(text: str | None) -> str | None:
    """A docstring without the paragraphs that are examples."""
    if text is None:
        return None
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(each for each in paragraphs if not each.startswith(">>>"))
