"""Where the writes of coroutines go: each call gives something to await."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

from inmem.aio.driving import driven
from inmem.client.applied import Applied
from inmem.client.direct import SingleCommits, version_of
from inmem.engines.base import Sink
from inmem.pending import Pending
from inmem.stepping import Steps
from inmem.writeset import OP_PUT, encode_single

T = TypeVar("T")


class LoopCommits(Protocol):
    """Commits of an event loop; what `commit` gives is to be awaited."""

    loop: Any

    def commit(
        self, body: bytes, convert: Callable[[Applied], T], *, sync: bool, timeout_s: float
    ) -> Awaitable[T]: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...

    async def closed(self) -> None: ...


class Done(Generic[T]):
    """A result that is there: to await it costs nothing and suspends nobody."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def __await__(self) -> Generator[None, None, T]:
        return self._value
        yield  # which makes it a generator


class AwaitedSink(SingleCommits):
    """Commits of their own, of the event loop."""

    __slots__ = ("_session", "_timeout_s")

    def __init__(
        self, session: LoopCommits, timeout_s: float, default: Callable[[Any], Any] | None
    ) -> None:
        self.default = default
        self._session = session
        self._timeout_s = timeout_s

    def put(self, key: bytes, payload: bytes, expires: int) -> Awaitable[int]:
        """Write one record; its version."""
        return self._made(encode_single([OP_PUT, key, payload, expires]), version_of)

    def _made(self, body: bytes, convert: Callable[[Applied], T]) -> Awaitable[T]:
        return self._session.commit(body, convert, sync=False, timeout_s=self._timeout_s)

    def _nothing(self, result: Any) -> Done[Any]:
        return Done(result)

    def drive(self, steps: Steps[T]) -> Awaitable[T]:
        """See `Sink`."""
        return driven(steps)


class AwaitedWrites:
    """The sink of a transaction or pipeline: what it gives at once can be awaited too."""

    __slots__ = ("_room", "_sink")

    def __init__(self, sink: Sink, room: Callable[[Any], Awaitable[Any]] = Done) -> None:
        self._sink = sink
        self._room = room

    @property
    def default(self) -> Callable[[Any], Any] | None:
        """See `Sink`."""
        return self._sink.default

    def put(self, key: bytes, payload: bytes, expires: int) -> Awaitable[Any]:
        """See `Sink`."""
        return self._room(self._sink.put(key, payload, expires))

    def write(self, ops: list[list[Any]]) -> Awaitable[Any]:
        """See `Sink`."""
        return self._room(self._sink.write(ops))

    def call(self, procedure: str, arguments: list[Any], pending: type[Pending[Any]]) -> Awaitable[Any]:
        """See `Sink`."""
        return self._room(self._sink.call(procedure, arguments, pending))

    def join(
        self, procedure: str, head: Any, items: list[Any], part: Callable[[Any, int], Any],
        pending: type[Pending[Any]], *, is_one: bool = False,
    ) -> Awaitable[Any]:
        """See `Sink`."""
        return self._room(self._sink.join(procedure, head, items, part, pending, is_one=is_one))

    def ask(
        self, procedure: str, arguments: list[Any], convert: Callable[[Any], Any], *, alone: str = "",
        shows_time: bool = True, is_sure: bool = False,
    ) -> Awaitable[Any]:
        """See `Sink`."""
        return self._room(self._sink.ask(
            procedure, arguments, convert, alone=alone, shows_time=shows_time, is_sure=is_sure
        ))

    def drive(self, steps: Steps[T]) -> Awaitable[T]:
        """See `Sink`."""
        return driven(steps)
