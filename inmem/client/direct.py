"""Writes outside transactions: each is a commit of its own, and its caller waits for the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from inmem.client.applied import Applied
from inmem.client.attachment import Attachment
from inmem.client.retry import resolved_as
from inmem.client.views import closed
from inmem.errors import CommitUnknownError
from inmem.pending import Pending
from inmem.steps import Steps, driven
from inmem.writeset import OP_CALL, OP_PUT, WriteSet, encode_single

T = TypeVar("T")


class Commits(Protocol):
    """A session, as far as it commits and waits."""

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied: ...


class DirectSink:
    """Commits of their own, of the thread that calls."""

    __slots__ = ("_session", "_timeout_s", "default")

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
        try:
            return self._session().commit(body, sync=False, timeout_s=self._timeout_s).version
        except CommitUnknownError as error:
            raise resolved_as(error, lambda applied: applied.version) from None

    def write(self, ops: list[list[Any]]) -> int:
        """Some operations as one commit; its version."""
        body = encode_single(ops[0]) if len(ops) == 1 else WriteSet(ops=ops).encode()
        try:
            return self._session().commit(body, sync=False, timeout_s=self._timeout_s).version
        except CommitUnknownError as error:
            raise resolved_as(error, lambda applied: applied.version) from None

    def call(self, procedure: str, arguments: list[Any], pending: type[Pending[Any]]) -> Any:
        """Run one procedure; its result."""
        return self.ask(procedure, arguments, _same)

    def join(
        self, procedure: str, head: Any, items: list[Any], part: Callable[[Any, int], Any],
        pending: type[Pending[Any]], *, is_one: bool = False,
    ) -> Any:
        """Run one procedure on all the items; what it gave for each."""
        if is_one:
            return self.ask(procedure, [head, items], lambda result: part(result, 0))
        if not items:
            return []
        return self.ask(procedure, [head, items], lambda result: [part(result, i) for i in range(len(items))])

    def ask(
        self, procedure: str, arguments: list[Any], convert: Callable[[Any], T], *, alone: str = "",
        shows_time: bool = True, is_sure: bool = False,
    ) -> T:
        """Run one procedure; what `convert` makes of its result, also when that comes by a resend."""
        body = encode_single([OP_CALL, procedure, arguments])
        try:
            applied = self._session().commit(body, sync=False, timeout_s=self._timeout_s)
        except CommitUnknownError as error:
            raise resolved_as(error, lambda applied: convert(applied.results[0])) from None
        return convert(applied.results[0])

    def drive(self, steps: Steps[T]) -> T:
        """Take steps; what they return."""
        return driven(steps)


def _same(result: Any) -> Any:
    return result


def commit_call(
    attachment: Attachment, procedure: str, arguments: list[Any], timeout_s: float
) -> tuple[Any, int]:
    """One procedure call as a commit of its own: (result, version)."""
    applied = attachment.session().commit(
        encode_single([OP_CALL, procedure, arguments]), sync=False, timeout_s=timeout_s
    )
    return applied.results[0], applied.version
