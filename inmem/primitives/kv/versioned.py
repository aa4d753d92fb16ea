"""An entry with what is known of its commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inmem.record import payload_of, timestamp_of, version_of
from inmem.values import decode


@dataclass(frozen=True, slots=True)
class Versioned:
    """A value with the commit version and time (microseconds) at which it was written.

    Both are 0 for an entry that the transaction has put itself.
    """

    value: Any
    version: int
    timestamp: int


def versioned(record: bytes) -> Versioned:
    """What a record holds."""
    return Versioned(decode(payload_of(record)), version_of(record), timestamp_of(record))
