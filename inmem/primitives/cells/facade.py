"""StateCell: versioned values that change by compare-and-swap.

Invariant: a version names one value of one cell for ever; of concurrent
changes from one version exactly one happens. The rules are in `rules`.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

from inmem.callables import check_callable, check_result
from inmem.client.retry import Patience, resolved_as
from inmem.engines.base import Sink, View
from inmem.errors import (
    CommitUnknownError,
    ConflictError,
    InvalidInputError,
    RetryableError,
    VersionMismatchError,
)
from inmem.host.interrupts import called, let_through
from inmem.keys import MAX_NAME_BYTES, TypeTag, encode_name, encode_prefix, range_of, shorten
from inmem.pending import PendingReal
from inmem.primitives._common import check_flag, check_limit, encoded
from inmem.primitives._paging import past, stream
from inmem.primitives._waiting import check_version, differs_from
from inmem.primitives.byrun import ByRun, by_run
from inmem.primitives.cells import rules
from inmem.primitives.cells.rules import State
from inmem.record import payload_of, timestamp_of
from inmem.stepping import FacadeWaits, Pause, Raised, Steps
from inmem.values import decode, text_of

T = TypeVar("T")
V = TypeVar("V")  # the version that `set` gives, or what will have it

MAX_ATTEMPTS: Final = 10_000  # of one transition: that is seconds of lost races
TRANSITION_TIMEOUT_S: Final = 30.0
# About a round trip. Pauses that grow would leave a cell to whoever won last: the winner does not
# pause, and a transition is over before one that has lost a few times wakes up.
_PAUSE_S: Final = 0.0001


class PendingVersion(PendingReal[int]):
    """The result of `cells.set` in a transaction: a number after the commit, see `version`.

    In a transaction that reads the cell it is there at once.
    """

    __slots__ = ()

    @property
    def version(self) -> int:
        """The cell's new version."""
        return self.result()


class CellReads:
    """Reads of one run's cells."""

    __slots__ = ("_head", "_prefix", "_view")

    def __init__(self, view: View, prefix: bytes) -> None:
        self._view = view
        self._prefix = prefix
        self._head = b"%b\0%c" % (prefix, TypeTag.STATE)

    def read(self, name: str) -> State | None:
        """Value, version and time of a cell, None if there is none. Cost: about 3 µs."""
        record = self._view.read(self._head + encode_name(name, "name"))
        return None if record is None else _state(record)

    def exists(self, name: str) -> bool:
        """Whether there is a cell."""
        return self._view.read(self._head + encode_name(name, "name")) is not None

    def list(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[str]:
        """Names that start with `prefix`, in byte order. Cost: about 1 µs a name.

        `start_after` continues after a name (before it, if `reverse`).
        """
        start, end = self._range(prefix, start_after, reverse)
        skip = len(self._head)
        found = self._view.scan(start, end, limit=check_limit(limit), reverse=bool(reverse))
        return [text_of(key[skip:]) for key, _ in found]

    def iter(
        self, prefix: str | None = None, *, start_after: str | None = None, reverse: bool = False
    ) -> Iterator[tuple[str, State]]:
        """Stream names and states, in bounded memory. Cost: about 2 µs a cell.

        Takes a new snapshot for each 512 cells or 4 MiB.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     version = db.cells.set("run-1", "phase", "planning")
        ...     [(name, state.value) for name, state in db.cells.iter("run-1")]
        [('phase', 'planning')]

        Raises:
            RunDeletedError: the run was deleted in the middle of it.
        """
        start, end = self._range(prefix, start_after, reverse)
        skip = len(self._head)
        return (
            (text_of(key[skip:]), _state(record))
            for key, record in stream(self._view, self._prefix, start, end, reverse=bool(reverse))
        )

    def _range(self, prefix: str | None, start_after: str | None, reverse: bool) -> tuple[bytes, bytes]:
        place = None if start_after is None else self._head + encode_name(start_after, "start_after")
        return past(*range_of(self._prefix, TypeTag.STATE, encode_prefix(prefix)), place, reverse)


class Cells(CellReads, Generic[V]):
    """One run's cells."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, prefix: bytes) -> None:
        super().__init__(view, prefix)
        self._sink = sink

    def init(self, name: str, value: Any, *, exist_ok: bool = False) -> int:
        """Create a cell and return its version, 1 for the first of a run. Cost: one round trip.

        With `exist_ok` a cell that exists is left as it is, and its version returned.

        Raises:
            CellExistsError: it exists; nothing is changed.
            InvalidKeyError, InvalidValueError, LimitError: name or value cannot be stored.
            RunDeletedError: the run was deleted.
        """
        procedure = "cell.ensure" if check_flag(exist_ok, "exist_ok") else "cell.init"
        arguments = [self._prefix, _name(name), encoded(self._sink, value)]
        version: int = self._sink.ask(procedure, arguments, int)
        return version

    def cas(self, name: str, expected_version: int, value: Any) -> int:
        """Change a cell if it is still at a version; its new version. Cost: one round trip.

        Raises:
            VersionMismatchError: it is at another, see `expected` and `actual`.
            CellNotFoundError: there is no cell.
        """
        arguments = [self._prefix, _name(name), _version(expected_version), encoded(self._sink, value)]
        version: int = self._sink.ask("cell.cas", arguments, int)
        return version

    def set(self, name: str, value: Any) -> V:
        """Create or overwrite a cell; its new version. Never conflicts. Cost: one round trip.

        In a transaction it conflicts only if the cell is also read.
        """
        arguments = [self._prefix, _name(name), encoded(self._sink, value)]
        version: V = self._sink.call("cell.set", arguments, PendingVersion)
        return version

    def delete(self, name: str) -> bool:
        """Remove a cell; whether there was one. Its versions are not used again."""
        existed: bool = self._sink.ask("cell.delete", [self._prefix, _name(name)], bool)
        return existed


class RunCells(Cells[int]):
    """One run's cells outside a transaction: each change is a commit of its own."""

    __slots__ = ("_waits",)

    def __init__(self, view: View, sink: Sink, prefix: bytes, waits: FacadeWaits) -> None:
        super().__init__(view, sink, prefix)
        self._waits = waits

    def wait(
        self, name: str, *, after: int | None = None, timeout_s: float | None = None
    ) -> State | None:
        """Sleep until the version of a cell is not `after`, and return its state; None if there is none.

        `after` is a version that was seen, or None: then it returns as soon
        as there is a cell. See `Database.wait`.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     seen = db.cells.init("run-1", "phase", "planning")
        ...     version = db.cells.set("run-1", "phase", "working")
        ...     db.cells.wait("run-1", "phase", after=seen, timeout_s=5).value
        'working'

        Raises:
            WaitTimeoutError: its version was `after` for `timeout_s` seconds.
            RunDeletedError: the run was deleted.
        """
        encode_name(name, "name")

        def look(view: Any) -> tuple[State | None, int | None]:
            state = view.cells.read(name)
            return state, None if state is None else state.version

        differs = differs_from(check_version(after, "after"), look)
        found: State | None = self._waits.wait(differs, timeout_s, operator.itemgetter(0))
        return found

    def transition(
        self, name: str, fn: Callable[[State], tuple[Any, T]], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSITION_TIMEOUT_S,
    ) -> T:
        """Change a cell by `fn(state) -> (new value, result)` and return the result.

        `fn` may run many times, so it must be pure; an exception from it
        changes nothing. Lost races are retried with jittered pauses, at most
        `max_attempts` times and for at most `timeout_s` seconds. Cost: a read
        and a round trip an attempt.

        Raises:
            CellNotFoundError: there is no cell.
            ConflictError: it lost every race.
            CommitUnknownError: no answer in time; `fn` is not run again.
        """
        check_callable(fn)
        patience = Patience(max_attempts=max_attempts, timeout_s=timeout_s, pause_max_s=_PAUSE_S)
        result: T = self._sink.drive(self._transition(name, fn, patience))
        return result

    def _transition(
        self, name: str, fn: Callable[[State], tuple[Any, T]], patience: Patience
    ) -> Steps[T | Raised]:
        while True:
            try:
                return (yield from self._attempt(name, fn))
            except RetryableError as error:
                pause_s = patience.pause_after(error)
                if pause_s is None:
                    raise
            yield Pause(pause_s)

    def _attempt(self, name: str, fn: Callable[[State], tuple[Any, T]]) -> Steps[T | Raised]:
        state = self.read(name)
        if state is None:
            # No cell is at version 0: the writer refuses, and knows why. There is none, its run
            # was deleted, or it was created just now.
            yield from self._exchange(name, 0, None)
        state = _required(state, name)
        try:
            value, result = _outcome(called(fn, state))
        except StopIteration as error:
            return Raised(error)
        try:
            yield from self._exchange(name, state.version, value)
        except CommitUnknownError as error:
            raise resolved_as(error, lambda _: result) from None
        return result

    def _exchange(self, name: str, version: int, value: Any) -> Steps[None]:
        """`cas`, with the lost race as a conflict."""
        try:
            yield self.cas(name, version, value)
        except VersionMismatchError as error:
            let_through(error)
            raise ConflictError(
                f"cell {name!r} was changed meanwhile", read_version=version, committed_version=error.actual
            ) from None


class TransactionCells(Cells[PendingVersion]):
    """One run's cells inside a transaction: changes wait for the commit."""

    __slots__ = ()

    def transition(self, name: str, fn: Callable[[State], tuple[Any, T]]) -> T:
        """Change a cell by `fn(state) -> (new value, result)`; a conflict is the transaction's."""
        check_callable(fn)
        result: T = self._sink.drive(self._transition(name, fn))
        return result

    def _transition(self, name: str, fn: Callable[[State], tuple[Any, T]]) -> Steps[T | Raised]:
        state = self.read(name)
        if state is None:
            yield self.cas(name, 0, None)  # it says why there is none, as outside of a transaction
        state = _required(state, name)
        try:
            value, result = _outcome(fn(state))
        except StopIteration as error:
            return Raised(error)
        yield self.cas(name, state.version, value)
        return result


class StateCell(ByRun[RunCells]):
    """Named values per run with a version, changed by compare-and-swap.

    Versions only grow, even if a cell is deleted and created again. So a
    version that you have read never matches another value.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     version = db.cells.init("run-1", "phase", "planning")
    ...     db.cells.cas("run-1", "phase", version, "working")
    2
    """

    __slots__ = ()

    KIND = "cells"

    init = by_run(RunCells.init)
    read = by_run(RunCells.read)
    cas = by_run(RunCells.cas)
    set = by_run(RunCells.set)
    delete = by_run(RunCells.delete)
    list = by_run(RunCells.list)
    iter = by_run(RunCells.iter)
    exists = by_run(RunCells.exists)
    transition = by_run(RunCells.transition)
    wait = by_run(RunCells.wait)


def _state(record: bytes) -> State:
    payload = payload_of(record)
    return State(decode(rules.value_in(payload)), rules.version_in(payload), timestamp_of(record))


def _name(name: str) -> bytes:
    return encode_name(name, "name", MAX_NAME_BYTES)


def _version(expected: object) -> int:
    if type(expected) is not int or not 0 <= expected < 1 << 63:
        raise InvalidInputError(
            f"expected_version must be an int from 0 to 2**63-1, not {shorten(expected)}",
            argument="expected_version",
        )
    return expected


def _required(state: State | None, name: str) -> State:
    if state is None:
        rules.exchanged(name, None, 0)  # raises CellNotFoundError, in the rule's words
        raise AssertionError("unreachable")
    return state


def _outcome(returned: tuple[Any, T]) -> tuple[Any, T]:
    check_result(returned)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise InvalidInputError("fn must return (new value, result)", argument="fn")
    for part in returned:
        check_result(part)
    return returned
