"""What a commit came to, as its answer says."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from inmem.client.protocol import Answered
from inmem.errors import InmemError
from inmem.wire import APPLIED, REFUSED, from_wire

_NO_RESULTS: Final = msgpack.packb([])


class Applied(NamedTuple):
    """A commit that took effect: its version, and the results of its procedure calls."""

    version: int
    results: list[Any]


class Shown(Applied):
    """One of which it is known what some records were when it was made."""

    records: dict[bytes, bytes | None]


def applied(answered: Answered) -> Applied:
    """What an answer says.

    Raises:
        InmemError: the commit was decided against.
    """
    status, version, result = answered
    if status == APPLIED:
        return Applied(version, [] if result == _NO_RESULTS else msgpack.unpackb(result))
    if status != REFUSED:
        raise from_wire(msgpack.unpackb(result))
    message = msgpack.unpackb(result)[1]
    raise InmemError(f"the writer refused a commit: {message}", hint="Report this: it should not happen.")
