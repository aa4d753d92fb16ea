"""Changes to tables: what a commit comes to, as log, image and every engine take it.

A change is one of

    (PUT, table, key, value)
    (DELETE, table, key)
    (DELETE_RANGE, table, start, end)      half-open

The numbers are written to the log. One is never used again for another purpose.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias, Union

PUT: Final = 0
DELETE: Final = 1
DELETE_RANGE: Final = 2

Op: TypeAlias = Union[tuple[int, int, bytes, bytes], tuple[int, int, bytes]]


class Table(IntEnum):
    """The tables of a store."""

    DATA = 0
    SESSIONS = 1
    FENCES = 2
    EXPIRY = 3  # derived from DATA; not in the log
    META = 4  # position of the image; not in the log
