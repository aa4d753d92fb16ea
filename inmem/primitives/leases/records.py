"""Leases, and who waits for them, as the server table describes them.

An export has the leases, with their tokens and times, and not those who wait.
An import keeps them as they were: a lease that has run out by then is there to
be taken, with a token above the one that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from inmem.keys import TypeTag
from inmem.primitives.leases import rules
from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import (
    Document,
    LineForm,
    RecordsOfRun,
    RecordType,
    check_each,
    name_problem,
)
from inmem.record import payload_of


def _holder_problem(holder: bytes) -> str | None:
    holder.decode()
    return "has a holder that is too long" if len(holder) > rules.MAX_HOLDER_BYTES else None


def _check(rest: bytes, payload: bytes) -> str | None:
    record = rules.unpack(payload)
    problem = name_problem(rest) or _holder_problem(record.holder)
    if problem is None and not (record.token and record.ttl_us):
        problem = "has no token" if record.ttl_us else "has no time"
    return problem


def _check_waiter(rest: bytes, payload: bytes) -> str | None:
    waiter = rules.unpack_waiter(payload)
    name, nul = rest[: -rules.TICKET_BYTES - 1], rest[-rules.TICKET_BYTES - 1 : -rules.TICKET_BYTES]
    if nul != b"\0":
        return "has no ticket"
    return name_problem(name) or _holder_problem(waiter.holder) or (None if waiter.holder else "is nobody")


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    for name, record in run.records(TypeTag.LEASE):
        found = rules.unpack(payload_of(record))
        yield {
            "name": name.decode(), "holder": found.holder.decode(), "token": found.token,
            "acquired_at": found.acquired_at, "expires_at": found.expires_at, "ttl_us": found.ttl_us,
        }


def _parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    last = b""

    def parse(document: Document) -> list[Any]:
        nonlocal last
        fields.exactly(document, "kind", "name", "holder", "token", "acquired_at", "expires_at", "ttl_us")
        last = fields.name_after(last, document["name"])
        holder = fields.text(document["holder"], "holder")
        if problem := _holder_problem(holder.encode()):
            fields.fail(f"the lease {problem}")
        token = fields.integer(document, "token")
        if token > rules.MAX_TOKEN:
            fields.fail(f"token is above {rules.MAX_TOKEN}")
        return [
            last, holder, token, fields.integer(document, "acquired_at"),
            fields.integer(document, "expires_at", 0), fields.integer(document, "ttl_us"),
        ]

    return parse


LEASE: Final = RecordType(
    tag=TypeTag.LEASE, name="lease", counted="leases", check=check_each(_check),
    lines=LineForm("lease", "import.leases", _documents, _parser, since=2), is_upkeep=True,
)
LEASE_WAITER: Final = RecordType(
    tag=TypeTag.LEASE_WAITER, name="lease", check=check_each(_check_waiter), is_upkeep=True
)
RECORD_TYPES: Final = (LEASE, LEASE_WAITER)
