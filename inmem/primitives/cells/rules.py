"""Cell rules: a value with a version that only ever grows.

Invariant: within a run no cell version is ever used twice for one name, also
across deletion and re-creation, so an old version can never match again. A
per-run mark holds the highest version that any deleted cell had; new cells
begin above it. One mark a run is enough, and leaves no tombstones.

Payload of a cell record: version, 8 bytes big-endian, then the encoded value.
Payload of the mark: version, 8 bytes big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from inmem.errors import CellExistsError, CellNotFoundError, VersionMismatchError
from inmem.keys import TypeTag


@dataclass(frozen=True, slots=True)
class State:
    """A cell's value, its version, and when it was written (microseconds)."""

    value: Any
    version: int
    updated_at: int


def cell_key(prefix: bytes, name: bytes) -> bytes:
    """Where a cell is."""
    return b"%b\0%c%b" % (prefix, TypeTag.STATE, name)


MARK: Final = b"mark"  # the name of a run's mark


def mark_key(prefix: bytes) -> bytes:
    """Where a run's mark is."""
    return b"%b\0%c%b" % (prefix, TypeTag.STATE_MARK, MARK)


def pack(version: int, value: bytes) -> bytes:
    """The payload of a cell."""
    return version.to_bytes(8, "big") + value


def version_in(payload: bytes | None) -> int:
    """The version that a cell or a mark holds; 0 for none."""
    return 0 if payload is None else int.from_bytes(payload[:8], "big")


def value_in(payload: bytes) -> bytes:
    """The encoded value of a cell."""
    return payload[8:]


def initialized(name: str, cell: bytes | None, mark: bytes | None) -> int:
    """The version that `init` gives.

    Raises:
        CellExistsError: the cell exists.
    """
    if cell is not None:
        raise CellExistsError(
            f"cell {name!r} exists at version {version_in(cell)}", name=name, version=version_in(cell)
        )
    return version_in(mark) + 1


def overwritten(cell: bytes | None, mark: bytes | None) -> int:
    """The version that `set` gives."""
    return version_in(mark if cell is None else cell) + 1


def exchanged(name: str, cell: bytes | None, expected: int) -> int:
    """The version that `cas` gives.

    Raises:
        CellNotFoundError: there is no cell.
        VersionMismatchError: it has another version.
    """
    if cell is None:
        raise CellNotFoundError(f"there is no cell {name!r}", name=name)
    actual = version_in(cell)
    if actual != expected:
        raise VersionMismatchError(
            f"cell {name!r} is at version {actual}, expected {expected}", expected=expected, actual=actual
        )
    return actual + 1
