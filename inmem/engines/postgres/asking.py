"""A connection that asks several things in one round trip, by prepared statements in a pipeline.

What psycopg offers for that costs two or three times as much on this side, and it
cancels what is under way at Ctrl-C, which a commit must never be.
"""

from __future__ import annotations

import asyncio
import math
import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from inmem.engines.postgres.green import END_S, Connection, awaited, is_green

_WAIT_MS: Final = 100  # of one look: another thread may close the connection meanwhile
_INT: Final = struct.Struct(">q")
_SIZE: Final = struct.Struct(">i")
_HEAD: Final = struct.Struct(">iIIii")  # of an array: dimensions, has nulls, type, length, first index
_EMPTY: Final = struct.Struct(">iiI")
_BYTEA: Final = 17
_INT8: Final = 20
_OIDS: Final = {"b": _BYTEA, "i": _INT8, "t": 25, "B": 1001, "I": 1016}
_ONE: Final = pq.ExecStatus.TUPLES_OK
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC
_FINE: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)

Row = tuple[Any, ...]


def _bytes(value: bytes) -> bytes:
    return value


def _array(of: int, dump: Callable[[Any], bytes], values: Sequence[Any]) -> bytes:
    if not values:
        return _EMPTY.pack(0, 0, of)
    parts = [_HEAD.pack(1, None in values, of, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            data = dump(value)
            parts += _SIZE.pack(len(data)), data
    return b"".join(parts)


_DUMPS: Final[dict[str, Callable[[Any], bytes]]] = {
    "b": _bytes,
    "i": _INT.pack,
    "t": str.encode,
    "B": lambda values: _array(_BYTEA, _bytes, values),
    "I": lambda values: _array(_INT8, _INT.pack, values),
}


class Statement:
    """A statement: `b` stands for bytes, `i` for a number, `t` for text, a capital for a list of such."""

    __slots__ = ("begins", "dumps", "formats", "is_bound", "is_number", "oids", "text")

    def __init__(self, text: str, takes: str = "", gives: str = "") -> None:
        """`takes` are the types of `$1` and so on, `gives` those of its columns."""
        self.text = text.encode()
        self.dumps = [_DUMPS[each] for each in takes]
        self.oids = [_OIDS[each] for each in takes]
        self.formats = [pq.Format.BINARY] * len(takes)
        self.is_number = [each == "i" for each in gives]
        self.begins = text.startswith("begin")  # a transaction
        self.is_bound = self.begins or text in ("commit", "rollback")


Ask = tuple[Statement, tuple[Any, ...]]
BEGIN: Final = Statement("begin isolation level read committed")
COMMIT: Final = Statement("commit")
ROLLBACK: Final = Statement("rollback")


class AskedConnection(Connection):
    """A connection that is asked by `ask`, or by what psycopg has."""

    is_direct = True  # else nothing lasts longer than a transaction: a proxy gives others what is behind it
    _names: dict[bytes, bytes]
    _poll: select.poll | None = None
    _polled = 0  # what that looks for
    _owed = 0  # answers that nobody has waited for
    _cancelled: asyncio.CancelledError | None = None  # while its call takes in its answers
    round_trips = 0  # how often somebody has waited for an answer of `ask`, by all connections of a process
    in_transaction = False  # one that `ask` has begun

    def ask(self, *asked: Ask) -> list[list[Row]]:
        """The rows of each statement. What follows on `begin` is a transaction until `commit`.

        Otherwise all of them are one.

        Raises:
            psycopg.Error: of the first statement that failed; those after it were not run. Or the connection
                is lost.
        """
        AskedConnection.round_trips += 1
        was_begun = self.in_transaction
        try:
            new = self._send(asked)
            if self._owed:
                self._drain()
            answers, error = self._answers(new, asked)
            if self.is_in_doubt:
                self.check_doubt()
        except BaseException:
            self.close()  # in the middle of answers
            raise
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            raise cancelled
        if error is not None:
            # It may be a failed one, to be rolled back.
            self.in_transaction = was_begun or any(query.begins for query, _ in asked)
            raise error
        return answers

    def tell(self, query: Statement, *values: Any) -> None:
        """A statement whose answer nobody waits for: who asks next takes it in before."""
        try:
            self._send(((query, values),))
        except psycopg.Error:
            self.close()
        except BaseException:
            self.close()
            raise
        else:
            self._owed += 1

    def settle(self) -> None:
        """Take in what nobody has waited for: then psycopg's own methods can be used."""
        pgconn = self.pgconn
        if pgconn.status == pq.ConnStatus.OK and pgconn.pipeline_status != pq.PipelineStatus.OFF:
            try:
                self._drain()
                pgconn.exit_pipeline_mode()
            except BaseException:
                self.close()
                raise

    @property
    def is_free(self) -> bool:
        """Whether it is in no transaction, and not lost."""
        pgconn = self.pgconn
        if pgconn.status != pq.ConnStatus.OK:
            return False
        if pgconn.pipeline_status == pq.PipelineStatus.OFF:
            return pgconn.transaction_status == pq.TransactionStatus.IDLE
        return not self.in_transaction

    def _send(self, asked: Sequence[Ask]) -> list[bytes | None]:
        """Send statements; the names of those that were prepared with them."""
        pgconn = self.pgconn
        if pgconn.pipeline_status == pq.PipelineStatus.OFF:
            pgconn.enter_pipeline_mode()
        try:
            names = self._names
        except AttributeError:
            names = self._names = {}
        new: list[bytes | None] = []
        for query, values in asked:
            if query.is_bound:
                self.in_transaction = query.begins
            data = [dump(value) for dump, value in zip(query.dumps, values, strict=True)]
            if not self.is_direct:
                pgconn.send_query_params(query.text, data, query.oids, query.formats, pq.Format.BINARY)
                new.append(None)
                continue
            name = names.get(query.text)
            if name is None:
                name = names[query.text] = b"q%d" % len(names)
                pgconn.send_prepare(name, query.text, query.oids)
                new.append(query.text)
            new.append(None)
            pgconn.send_query_prepared(name, data, query.formats, pq.Format.BINARY)
        pgconn.pipeline_sync()
        while pgconn.flush():
            self._wait(select.POLLIN | select.POLLOUT)
        return new

    def _wait(self, events: int = select.POLLIN) -> None:
        """Until something has come, or can be sent."""
        if is_green():
            self._wait_in_loop(events)
            return
        pgconn = self.pgconn
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
        if events != self._polled:
            poll.register(pgconn.socket, events)
            self._polled = events
        since = time.monotonic() if self.patience_s < math.inf else 0.0
        while not (ready := poll.poll(_WAIT_MS)):
            if self.closed:
                raise psycopg.OperationalError("the connection was closed")
            now = time.monotonic()
            if now >= self.deadline or now - since >= self.patience_s:
                raise psycopg.OperationalError("the server did not answer in time")
        if ready[0][1] & ~select.POLLOUT:
            pgconn.consume_input()

    def _wait_in_loop(self, events: int) -> None:
        """The same, while the loop goes on. A call that is cancelled takes in its answers first."""
        try:
            ready = awaited(self.ready(bool(events & select.POLLOUT)))
        except asyncio.CancelledError as error:
            if self._cancelled is not None:
                raise
            self._cancelled = error
            self.deadline = min(self.deadline, time.monotonic() + END_S)
            return
        if ready:
            self.pgconn.consume_input()

    def _result(self) -> Any:
        pgconn = self.pgconn
        while pgconn.is_busy():
            self._wait()
        return pgconn.get_result()

    def _drain(self) -> None:
        """Take in the answers that nobody has waited for."""
        while self._owed:
            result = self._result()
            if result is not None and result.status == _SYNC:
                self._owed -= 1

    def _answers(
        self, new: list[bytes | None], asked: Sequence[Ask]
    ) -> tuple[list[list[Row]], psycopg.Error | None]:
        answers: list[list[Row]] = []
        error: psycopg.Error | None = None
        at = 0
        is_busy, get_result = self.pgconn.is_busy, self.pgconn.get_result
        while True:
            while is_busy():
                self._wait()
            result = get_result()
            if result is None:  # the end of one statement's
                continue
            status = result.status
            if status == _SYNC:
                return answers, error
            prepared = new[at] if at < len(new) else None
            at += 1
            if status in _FINE:
                if prepared is None:
                    answers.append(_rows(result, asked[len(answers)][0].is_number) if status == _ONE else [])
                continue
            if prepared is not None:
                # It has no such name; a name is not used again.
                self._names[b"-%d" % len(self._names)] = self._names.pop(prepared)
            if error is None:
                if status != pq.ExecStatus.FATAL_ERROR:
                    error = psycopg.OperationalError(f"the server gave {pq.ExecStatus(status).name}")
                else:
                    error = error_from_result(result)


def _rows(result: Any, is_number: list[bool]) -> list[Row]:
    get = result.get_value
    if is_number == [False]:
        return [(get(row, 0),) for row in range(result.ntuples)]
    return [
        tuple([
            value if value is None or not number else int.from_bytes(value, "big", signed=True)
            for column, number in enumerate(is_number) for value in (get(row, column),)
        ])
        for row in range(result.ntuples)
    ]
