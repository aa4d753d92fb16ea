"""Where an image stands: what is published in it with each group of commits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from inmem.errors import CorruptionError

POSITION_KEY: Final = b"position"


class Position(NamedTuple):
    """The version that an image holds, and whose image it is."""

    version: int
    checksum: int  # of the log record that led here
    clock_us: int
    epoch: int
    owner: tuple[Any, ...]  # database id, boot id, device and inode of the data directory


def unpack_position(data: bytes | None, path: Path) -> Position | None:
    """The position stored in an image; None if nothing was published in it."""
    if data is None:
        return None
    try:
        version, checksum, clock_us, epoch, owner = msgpack.unpackb(data)
        return Position(version, checksum, clock_us, epoch, tuple(owner))
    except ValueError as error:
        raise CorruptionError(f"{path}: position {error}", file=str(path), offset=0) from None
