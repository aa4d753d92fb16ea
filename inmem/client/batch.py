"""A batch: the operations of one commit in their order, and who waits for the result of each call.

Invariant: an operation and what waits for it are one entry of one list, so an
interrupt between two lines leaves a batch that can still be sent.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from inmem.errors import InvariantError
from inmem.pending import Pending
from inmem.writeset import OP_CALL

PART_BYTES: Final = 128  # of a key or value beside its own: each may be an entry, which has its price
_MOST_JOINED: Final = 10_000  # items of one call: some calls may each be legal, and as one too large


class Call:
    """One procedure call, and who gets its result."""

    __slots__ = ("_arguments", "_early", "procedure", "shows_time")

    def __init__(self, procedure: str, arguments: list[Any], *, shows_time: bool = True) -> None:
        self.procedure = procedure
        self.shows_time = shows_time  # whether its result shows when it was made
        self._arguments = arguments
        self._early: tuple[int, Any] | None = None  # when a transaction ran it, and what came of it

    def arguments(self) -> list[Any]:
        """What the procedure gets."""
        return self._arguments

    def join(
        self, procedure: str, items: list[Any], pending: type[Pending[Any]]
    ) -> list[Pending[Any]] | None:
        """Take in the items of a later call; what waits for each. None: this call takes no others."""
        return None

    def resolve(self, result: Any) -> None:
        """Hand out the result."""

    def forget(self) -> None:
        """Take back the result: the commit does not happen."""

    def ran(self, at_us: int, result: Any) -> None:
        """A transaction has run it: hand out the result, to which the writer has to come as well."""
        self._early = at_us, result
        self.resolve(result)

    def leave_time(self) -> None:
        """Nobody has seen when it ran: the commit gives it its time, and the result is another one then."""
        self._early = None

    def operation(self) -> list[Any]:
        """The call as a write set has it."""
        op = [OP_CALL, self.procedure, self.arguments()]
        if self._early is not None:
            op.append(self._early[0])
        return op

    def differs(self, result: Any) -> bool:
        """Whether the writer came to another result than the transaction."""
        return self._early is not None and bool(msgpack.packb(self._early[1]) != msgpack.packb(result))


class AwaitedCall(Call):
    """A call whose result somebody waits for."""

    __slots__ = ("pending",)

    def __init__(self, procedure: str, arguments: list[Any], pending: Pending[Any]) -> None:
        super().__init__(procedure, arguments)
        self.pending = pending

    def resolve(self, result: Any) -> None:
        """Hand out the result."""
        self.pending.resolve(result)

    def forget(self) -> None:
        """Take back the result."""
        self.pending.forget()


class JoinedCall(Call):
    """A call on a list of items, each with somebody who waits for its part of the result."""

    __slots__ = ("_head", "_parts")

    def __init__(self, procedure: str, head: Any) -> None:
        super().__init__(procedure, [])
        self._head = head
        self._parts: list[Any] = []  # an item, who waits for it, the next item, ...: one list, see above

    def arguments(self) -> list[Any]:
        """The head and the items."""
        return [self._head, self._parts[::2]]

    def join(
        self, procedure: str, items: list[Any], pending: type[Pending[Any]]
    ) -> list[Pending[Any]] | None:
        """Take in items; what waits for each. None for those of another procedure, and for too many."""
        parts, more = self._parts, len(items)
        if procedure != self.procedure or (parts and len(parts) // 2 + more > _MOST_JOINED):
            return None
        self._early = None  # what a run that was taken back came to
        if more == 1:
            one = pending()
            parts += items[0], one
            return [one]
        added = [pending() for _ in items]
        self._parts += [part for both in zip(items, added, strict=True) for part in both]
        return added

    def resolve(self, result: Any) -> None:
        """Hand out to each its part."""
        for position, pending in enumerate(self._parts[1::2]):
            pending.resolve_part(result, position)

    def forget(self) -> None:
        """Take back the result of each."""
        for pending in self._parts[1::2]:
            pending.forget()


Entry = Call | list[Any]  # a list is a plain operation


def size_of(parts: list[Any]) -> int:
    """About what parts of a commit come to: the bytes of keys and values, and `PART_BYTES` for each."""
    size = 0
    for part in parts:
        kind = type(part)
        if kind is bytes or kind is str:
            size += len(part) + PART_BYTES
        elif kind is list:  # most are lists of bytes: those cost no call each
            for inner in part:
                kind = type(inner)
                if kind is bytes or kind is str:
                    size += len(inner) + PART_BYTES
                elif kind is list:
                    size += size_of(inner)
    return size


def operations(entries: list[Entry]) -> list[list[Any]]:
    """The entries as a write set has them."""
    return [entry.operation() if isinstance(entry, Call) else entry for entry in entries]


def resolve_all(entries: list[Entry], results: list[Any]) -> None:
    """The commit took effect: give everybody what they wait for.

    Raises:
        InvariantError: the writer came to another result than the transaction had.
    """
    wrong = None
    calls = [entry for entry in entries if isinstance(entry, Call)]
    for call, result in zip(calls, results, strict=True):
        call.resolve(result)
        if wrong is None and call._early is not None and call.differs(result):
            wrong = call
    if wrong is not None:
        raise InvariantError(
            f"{wrong.procedure} gave the writer another result than it gave this transaction: what the "
            "transaction has shown is not what is stored. It is committed",
            hint="Look whether this program and the writer are of different releases, and report this.",
        )
