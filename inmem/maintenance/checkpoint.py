"""The checkpoint helper: copies one snapshot of the live image into a file, for the writer.

Invariant: it writes the file that it was told to write and nothing else; the
writer, which started it, gives that file its name when it is durable and
verified. It ends when its writer does.

    python -m inmem.maintenance checkpoint DIRECTORY FILE WRITER    one JSON document
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from inmem.engines.base import Item
from inmem.errors import CorruptionError, InmemError, WriterUnavailableError
from inmem.host import failpoints
from inmem.host.directory import DataDirectory, Identity
from inmem.maintenance.process import from_os_error
from inmem.reading.moment import Moment
from inmem.reading.source import shared
from inmem.storage.checkpoint import COPIED, CheckpointHeader, Written, verify_checkpoint, write_checkpoint
from inmem.storage.environment import Table
from inmem.storage.position import Position
from inmem.storage.snapshot import Image
from inmem.wire import to_wire

COPY_MAX_AGE_S: Final = 86_400.0  # of the snapshot; what it pins is bounded by a generation switch
_LOOK_EVERY: Final = 10_000  # entries between two looks whether the writer lives


def copy_moment(
    moment: Moment, identity: Identity, file: Path | io.FileIO,
    passing: Callable[[Iterator[Item]], Iterator[Item]] = lambda items: items, *, may_be_empty: bool = False,
) -> tuple[CheckpointHeader, Written]:
    """Write one version to a new, verified, durable file; each table goes through `passing`.

    With `may_be_empty` an image in which nothing was ever published is a copy of version 0.

    Raises:
        CorruptionError: the image has no position, or the file does not read back.
        OSError: the disk.
    """
    position = moment.position() or (Position(0, 0, 0, 0, ()) if may_be_empty else None)
    if position is None:
        raise CorruptionError("the image has no position: nothing was ever published in it")
    stand = stand_of(position, identity)
    tables = ((table, passing(moment.rows(table))) for table in COPIED)
    return stand, write_verified(file, stand, tables)


def write_verified(
    file: Path | io.FileIO, stand: CheckpointHeader, tables: Iterable[tuple[Table, Iterable[Item]]]
) -> Written:
    """Write a new, durable file and read it back: something will be removed because it is there.

    Raises:
        CorruptionError: the file does not read back.
        OSError: the disk.
    """
    written = write_checkpoint(file, stand, tables)
    if verify_checkpoint(file) != (stand, written):
        name = str(file) if isinstance(file, Path) else "the new file"
        raise CorruptionError(f"{name} does not read back as it was written", file=name, offset=0)
    return written


def stand_of(position: Position, identity: Identity) -> CheckpointHeader:
    """What a copy of an image at a position stands for."""
    return CheckpointHeader(
        identity.database_id, position.version, position.checksum, position.epoch, position.clock_us,
        dict(identity.stored),
    )


def _while_alive(items: Iterator[Item], parent: int) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % _LOOK_EVERY == 0:
            _look_after(parent)
        yield item


def _look_after(parent: int) -> None:
    if os.getppid() != parent:
        raise WriterUnavailableError("the writer that wanted this copy has ended")


def main(path: Path, file: Path, writer: Path) -> int:
    """Copy the live image of a directory for the writer that started this one."""
    parent = int(str(writer))  # and not who the parent is now: the writer may have ended already
    os.umask(0o077)
    document: dict[str, Any]
    try:
        directory = DataDirectory(path)
        identity = directory.identity()
        control = directory.control()
        image = Image(control, directory.stem(identity))
        try:
            with shared(image, COPY_MAX_AGE_S).moment() as moment:
                failpoints.reached("copying")
                _look_after(parent)  # the next writer's helper makes a file of the same name
                stand, written = copy_moment(
                    moment, identity, file, lambda items: _while_alive(items, parent)
                )
        finally:
            image.close()
            control.close()
        document = {
            "version": stand.version, "checksum": stand.checksum, "entries": written.entries,
            "bytes": written.bytes,
        }
    except OSError as error:
        document = {"error": to_wire(from_os_error("the checkpoint cannot be written", error))}
    except InmemError as error:
        document = {"error": to_wire(error)}
    json.dump(document, sys.stdout)
    return 1 if "error" in document else 0
