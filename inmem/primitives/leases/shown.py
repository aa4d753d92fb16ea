"""Leases, as users see them. The writer does not load this."""

from __future__ import annotations

from dataclasses import dataclass, field

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


def lease_of(prefix: bytes, run_id: str, name: str, record: LeaseRecord) -> Lease:
    """What users get."""
    return Lease(
        name, text_of(record.holder), record.token, record.acquired_at, record.expires_at, run_id, prefix
    )
