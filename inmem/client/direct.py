"""Writes outside transactions: each is a commit of its own, and its caller waits for the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from inmem.client.applied import Applied
from inmem.client.retry import resolved_as
from inmem.client.views import closed
from inmem.errors import CommitUnknownError
from inmem.pending import Pending
from inmem.stepping import Steps, driven
from inmem.writeset import OP_CALL, OP_PUT, WriteSet, encode_single

T = TypeVar("T")


class Commits(Protocol):
    """A session, as far as it commits and waits."""

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied: ...


class HasSessions(Protocol):
    """An attachment, or an engine."""

    def session(self) -> Commits: ...


class SingleCommits:
    """Writes of which each is a commit of its own: a Sink, but for `put`."""

    __slots__ = ("default",)

    default: Callable[[Any], Any] | None

    def _made(self, body: bytes, convert: Callable[[Applied], Any]) -> Any:
        """Make a commit; what `convert` makes of what it came to."""
        raise NotImplementedError

    def _nothing(self, result: Any) -> Any:
        """The result of what needs no commit."""
        raise NotImplementedError

    def write(self, ops: list[list[Any]]) -> Any:
        """Some operations as one commit; its version."""
        body = encode_single(ops[0]) if len(ops) == 1 else WriteSet(ops=ops).encode()
        return self._made(body, version_of)

    def call(self, procedure: str, arguments: list[Any], pending: type[Pending[Any]]) -> Any:
        """Run one procedure; its result."""
        return self._made(encode_single([OP_CALL, procedure, arguments]), first_result)

    def join(
        self, procedure: str, head: Any, items: list[Any], part: Callable[[Any, int], Any],
        pending: type[Pending[Any]], *, is_one: bool = False,
    ) -> Any:
        """Run one procedure on all the items; what it gave for each."""
        if is_one:
            return self.ask(procedure, [head, items], lambda result: part(result, 0))
        if not items:
            return self._nothing([])
        return self.ask(procedure, [head, items], lambda result: [part(result, i) for i in range(len(items))])

    def ask(
        self, procedure: str, arguments: list[Any], convert: Callable[[Any], Any], *, alone: str = "",
        shows_time: bool = True, is_sure: bool = False,
    ) -> Any:
        """Run one procedure; what `convert` makes of its result, also when that comes by a resend."""
        body = encode_single([OP_CALL, procedure, arguments])
        return self._made(body, lambda applied: convert(applied.results[0]))


class DirectSink(SingleCommits):
    """Commits of their own, of the thread that calls."""

    __slots__ = ("_session", "_timeout_s")

    def __init__(
        self, session: Callable[[], Commits], timeout_s: float,
        default: Callable[[Any], Any] | None = None,
    ) -> None:
        self.default = default
        self._session = session
        self._timeout_s = timeout_s

    def close(self) -> None:
        """The handle was closed: whatever is bound to this is refused from now on."""
        self._session = closed

    def put(self, key: bytes, payload: bytes, expires: int) -> int:
        """Write one record; its version."""
        body = encode_single([OP_PUT, key, payload, expires])
        try:  # as `_made`, without its call
            return self._session().commit(body, sync=False, timeout_s=self._timeout_s).version
        except CommitUnknownError as error:
            raise resolved_as(error, version_of) from None

    def _made(self, body: bytes, convert: Callable[[Applied], Any]) -> Any:
        try:
            applied = self._session().commit(body, sync=False, timeout_s=self._timeout_s)
        except CommitUnknownError as error:
            raise resolved_as(error, convert) from None
        return convert(applied)

    def _nothing(self, result: Any) -> Any:
        return result

    def drive(self, steps: Steps[T]) -> T:
        """Take steps; what they return."""
        return driven(steps)


def version_of(applied: Applied) -> int:
    """The version of a commit."""
    return applied.version


def first_result(applied: Applied) -> Any:
    """The result of the only call of a commit."""
    return applied.results[0]


def commit_call(
    commits: HasSessions, procedure: str, arguments: list[Any], timeout_s: float
) -> tuple[Any, int]:
    """One procedure call as a commit of its own: (result, version)."""
    applied = commits.session().commit(
        encode_single([OP_CALL, procedure, arguments]), sync=False, timeout_s=timeout_s
    )
    return applied.results[0], applied.version
