"""Leases, as users see them. The writer does not load this."""

from __future__ import annotations

from dataclasses import dataclass, field

from inmem.errors import InvalidInputError
from inmem.keys import encode_name
from inmem.primitives._common import check_number
from inmem.primitives.leases.rules import LeaseRecord
from inmem.values import text_of


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as it was acquired or renewed. Times in microseconds since the epoch, by the store's clock.

    `token` is above those of all earlier holders of this name. Send it to what
    the lease protects, so that late holders can be refused there.
    """

    name: str
    holder: str
    token: int
    acquired_at: int
    expires_at: int
    run_id: str
    prefix: bytes = field(repr=False)


def check_lease(lease: Lease) -> None:
    """Refuse a lease that was made by hand, and that no store can have given.

    Raises:
        InvalidInputError: says what is wrong.
    """
    encode_name(lease.name, "lease")
    if type(lease.run_id) is not str or type(lease.prefix) is not bytes or not lease.prefix.isascii():
        raise InvalidInputError(f"lease {lease.name!r} names no run: acquire it", argument="lease")
    check_number(lease.token, "lease", "its token")
    check_number(lease.acquired_at, "lease", "its acquired_at")


def lease_of(prefix: bytes, run_id: str, name: str, record: LeaseRecord) -> Lease:
    """What users get."""
    return Lease(
        name, text_of(record.holder), record.token, record.acquired_at, record.expires_at, run_id, prefix
    )
