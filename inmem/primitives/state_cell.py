"""StateCell: versioned values that change by compare-and-swap.

Invariant: a version names one value of one cell for ever; of concurrent
changes from one version exactly one happens. The rules are `model.cell`; here
they are offered outside (a commit each) and inside transactions.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, Final, TypeVar

from inmem import values
from inmem.client.transaction import Deferred, Pending, Reader, Transaction, resolved_as, retrying
from inmem.errors import CommitUnknownError, ConflictError, InvalidInputError, VersionMismatchError
from inmem.keys import MAX_NAME_BYTES, TypeTag, encode_name, encode_prefix, range_of, shorten
from inmem.model import cell as rules
from inmem.model.cell import State
from inmem.primitives._common import Autocommit, Host, check_limit
from inmem.record import pack, payload_of, timestamp_of
from inmem.values import decode

T = TypeVar("T")

MAX_ATTEMPTS: Final = 10_000  # of one transition: that is seconds of lost races
TRANSITION_TIMEOUT_S: Final = 30.0
# About a round trip. Pauses that grow would leave a cell to whoever won last: the winner does not
# pause, and a transition is over before one that has lost a few times wakes up.
_PAUSE_S: Final = 0.0001


class CellReads:
    """Reads of one run's cells, through any kind of reader."""

    __slots__ = ("_head", "_prefix", "_reader")

    def __init__(self, reader: Reader, prefix: bytes) -> None:
        self._reader = reader
        self._prefix = prefix
        self._head = b"%b\0%c" % (prefix, TypeTag.STATE)

    def read(self, name: str) -> State | None:
        """The cell's state. See `StateCell.read`."""
        record = self._reader.read(self._head + encode_name(name, "name"))
        if record is None:
            return None
        payload = payload_of(record)
        return State(decode(rules.value_in(payload)), rules.version_in(payload), timestamp_of(record))

    def exists(self, name: str) -> bool:
        """Whether there is a cell. See `StateCell.exists`."""
        return self._reader.read(self._head + encode_name(name, "name")) is not None

    def list(
        self, prefix: str | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[str]:
        """Names in order. See `StateCell.list`."""
        start, end = range_of(self._prefix, TypeTag.STATE, encode_prefix(prefix))
        skip = len(self._head)
        found = self._reader.scan(start, end, limit=check_limit(limit), reverse=bool(reverse))
        return [key[skip:].decode() for key, _ in found]


class ScopedCells(CellReads):
    """One run's cells outside a transaction: each change is a commit of its own."""

    __slots__ = ("_commit",)

    def __init__(self, reader: Reader, commit: Autocommit, prefix: bytes) -> None:
        super().__init__(reader, prefix)
        self._commit = commit

    def init(self, name: str, value: Any) -> int:
        """Create a cell. See `StateCell.init`."""
        return self._call("cell.init", name, values.encode(value))

    def set(self, name: str, value: Any) -> int:
        """Create or overwrite a cell. See `StateCell.set`."""
        return self._call("cell.set", name, values.encode(value))

    def cas(self, name: str, expected_version: int, value: Any) -> int:
        """Change a cell from a known version. See `StateCell.cas`."""
        return self._call("cell.cas", name, _version(expected_version), values.encode(value))

    def delete(self, name: str) -> bool:
        """Remove a cell. See `StateCell.delete`."""
        return bool(self._call("cell.delete", name))

    def transition(
        self, name: str, fn: Callable[[State], tuple[Any, T]], *, max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TRANSITION_TIMEOUT_S,
    ) -> T:
        """Change a cell by a pure function, with retries. See `StateCell.transition`."""
        _callable(fn)

        def attempt(_: float) -> T:
            state = self.read(name)
            if state is None:
                # No cell is at version 0: the writer refuses, and knows why. There is none, its run
                # was deleted, or it was created just now.
                self._exchange(name, 0, None)
            state = _required(state, name)
            value, result = _outcome(fn(state))
            try:
                self._exchange(name, state.version, value)
            except CommitUnknownError as error:
                raise resolved_as(error, lambda _: result) from None
            return result

        return retrying(attempt, max_attempts=max_attempts, timeout_s=timeout_s, pause_max_s=_PAUSE_S)

    def _exchange(self, name: str, version: int, value: Any) -> None:
        """`cas`, with the lost race as a conflict."""
        try:
            self.cas(name, version, value)
        except VersionMismatchError as error:
            raise ConflictError(
                f"cell {name!r} was changed meanwhile", read_version=version, committed_version=error.actual
            ) from None

    def _call(self, procedure: str, name: str, *arguments: Any) -> int:
        encoded = encode_name(name, "name", MAX_NAME_BYTES)
        result: int = self._commit.call(procedure, self._prefix, encoded, *arguments)
        return result


class PendingVersion(Pending):
    """The result of `txn.cells.set`: `version` is there after the commit."""

    __slots__ = ()

    @property
    def version(self) -> int:
        """The cell's new version."""
        version: int = self.result()
        return version

    def __repr__(self) -> str:
        return f"PendingVersion({self._result!r})"


class TransactionCells(CellReads):
    """One run's cells inside a transaction: changes wait for the commit."""

    __slots__ = ("_txn",)

    def __init__(self, txn: Transaction, prefix: bytes) -> None:
        super().__init__(txn, prefix)
        self._txn = txn

    def init(self, name: str, value: Any) -> int:
        """Create a cell at commit; its version. See `StateCell.init`."""
        key, payload = self._head + encode_name(name, "name"), values.encode(value)
        version = rules.initialized(name, self._payload(key), self._payload(rules.mark_key(self._prefix)))
        return self._write("cell.init", name, key, version, payload)

    def cas(self, name: str, expected_version: int, value: Any) -> int:
        """Change a cell at commit; its new version. See `StateCell.cas`."""
        key, payload = self._head + encode_name(name, "name"), values.encode(value)
        version = rules.exchanged(name, self._payload(key), _version(expected_version))
        return self._write("cell.cas", name, key, version, payload, expected_version)

    def set(self, name: str, value: Any) -> PendingVersion:
        """Create or overwrite a cell at commit; no conflict unless it is also read. See `StateCell.set`."""
        key, payload = self._head + encode_name(name, "name"), values.encode(value)
        txn, mark_key = self._txn, rules.mark_key(self._prefix)
        own_mark = txn.own(mark_key)  # as it is when this takes effect: later deletions come too late

        def after(record: bytes | None) -> bytes:
            if record is not None:
                return self._record(rules.overwritten(payload_of(record), None), payload)
            mark = own_mark if isinstance(own_mark, bytes) else txn.read_stored(mark_key)
            return self._record(rules.overwritten(None, None if mark is None else payload_of(mark)), payload)

        earlier = txn.own(key)
        shown: bytes | Deferred
        if isinstance(earlier, Deferred):
            before = earlier.apply
            shown = Deferred(lambda record: after(before(record)))
        else:
            shown = after(txn.read(key)) if txn.was_read(key) else Deferred(after)
        pending = PendingVersion()
        txn.call("cell.set", [self._prefix, name.encode(), payload], pending.resolve)
        txn.show(key, shown)
        return pending

    def delete(self, name: str) -> bool:
        """Remove a cell at commit; whether there is one. See `StateCell.delete`."""
        key = self._head + encode_name(name, "name")
        payload = self._payload(key)
        if payload is None:
            return False
        mark_key = rules.mark_key(self._prefix)
        mark = max(rules.version_in(payload), rules.version_in(self._payload(mark_key)))
        self._txn.call("cell.delete", [self._prefix, name.encode()], _ignore)
        self._txn.show(key, None)
        self._txn.show(mark_key, pack(0, 0, 0, mark.to_bytes(8, "big")))
        return True

    def transition(self, name: str, fn: Callable[[State], tuple[Any, T]]) -> T:
        """Change a cell by a pure function; a conflict is the transaction's. See `StateCell.transition`."""
        _callable(fn)
        state = _required(self.read(name), name)
        value, result = _outcome(fn(state))
        self.cas(name, state.version, value)
        return result

    def _payload(self, key: bytes) -> bytes | None:
        record = self._txn.read(key)
        return None if record is None else payload_of(record)

    def _record(self, version: int, payload: bytes) -> bytes:
        return pack(0, self._txn.now_us(), 0, rules.pack(version, payload))

    def _write(
        self, procedure: str, name: str, key: bytes, version: int, payload: bytes, *more: Any
    ) -> int:
        self._txn.call(procedure, [self._prefix, name.encode(), *more, payload], _ignore)
        self._txn.show(key, self._record(version, payload))
        return version


class StateCell:
    """Named values per run with a version, changed by compare-and-swap.

    A version only ever grows, also across deletion and re-creation, so a
    version once read never matches another value.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     version = db.cells.init("run-1", "phase", "planning")
    ...     db.cells.cas("run-1", "phase", version, "working")
    2
    """

    __slots__ = ("_database",)

    def __init__(self, database: Host) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"StateCell({self._database!r})"

    def _scope(self, run_id: str) -> ScopedCells:
        scope: ScopedCells = self._database.run(run_id).cells
        return scope

    def init(self, run_id: str, name: str, value: Any) -> int:
        """Create a cell and return its version, 1 for the first of a run. Cost: one round trip.

        Raises:
            CellExistsError: it exists; nothing is changed.
            InvalidKeyError, InvalidValueError, LimitError: name or value cannot be stored.
            RunDeletedError: the run was deleted.
        """
        return self._scope(run_id).init(name, value)

    def read(self, run_id: str, name: str) -> State | None:
        """Value, version and time of a cell, None if there is none. Cost: about 3 µs."""
        return self._scope(run_id).read(name)

    def cas(self, run_id: str, name: str, expected_version: int, value: Any) -> int:
        """Change a cell if it is still at a version; its new version. Cost: one round trip.

        Raises:
            VersionMismatchError: it is at another, see `expected` and `actual`.
            CellNotFoundError: there is no cell.
        """
        return self._scope(run_id).cas(name, expected_version, value)

    def set(self, run_id: str, name: str, value: Any) -> int:
        """Create or overwrite a cell; its new version. Never conflicts. Cost: one round trip."""
        return self._scope(run_id).set(name, value)

    def delete(self, run_id: str, name: str) -> bool:
        """Remove a cell; whether there was one. Its versions are not used again."""
        return self._scope(run_id).delete(name)

    def list(
        self, run_id: str, prefix: str | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[str]:
        """Names that start with `prefix`, in byte order."""
        return self._scope(run_id).list(prefix, limit=limit, reverse=reverse)

    def exists(self, run_id: str, name: str) -> bool:
        """Whether there is a cell."""
        return self._scope(run_id).exists(name)

    def transition(
        self, run_id: str, name: str, fn: Callable[[State], tuple[Any, T]], *,
        max_attempts: int = MAX_ATTEMPTS, timeout_s: float = TRANSITION_TIMEOUT_S,
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
        return self._scope(run_id).transition(name, fn, max_attempts=max_attempts, timeout_s=timeout_s)


def _version(expected: object) -> int:
    if type(expected) is not int or not 0 <= expected < 1 << 63:
        raise InvalidInputError(
            f"expected_version must be an int from 0 to 2**63-1, not {shorten(expected)}",
            argument="expected_version",
        )
    return expected


def _callable(fn: object) -> None:
    if not callable(fn):
        raise InvalidInputError("fn must be callable", argument="fn")


def _required(state: State | None, name: str) -> State:
    if state is None:
        rules.exchanged(name, None, 0)  # raises CellNotFoundError, in the rule's words
        raise AssertionError("unreachable")
    return state


def _outcome(returned: tuple[Any, T]) -> tuple[Any, T]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise InvalidInputError("fn must return (new value, result)", argument="fn")
    return returned


def _ignore(_: Any) -> None:
    """The version was known before."""
