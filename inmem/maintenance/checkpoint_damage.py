"""What a damaged checkpoint has lost, and which runs that may concern.

The frames of a checkpoint are chained, so those behind a damaged one can be
proved too, and entries are in the order of their keys. So it is known between
which keys something is missing. A run that may have had a key there is left
out altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from inmem.storage.checkpoint import CheckpointReader, Lost
from inmem.storage.environment import Table

_LAST_KEY: Final = b"\xff" * 512


class Hole(NamedTuple):
    """Keys of the table DATA between two, which a damaged checkpoint may have held."""

    after: bytes
    before: bytes

    def may_hold(self, prefix: bytes) -> bool:
        """Whether a key of this prefix may have been there."""
        return prefix + b"\0" < self.before and prefix + b"\1" > self.after


@dataclass(frozen=True, slots=True)
class CheckpointDamage:
    """The bytes that are lost, the holes between keys, and whether all fences are there."""

    file: str
    lost: list[Lost]
    holes: tuple[Hole, ...]
    fences_whole: bool

    def may_hold(self, key: bytes) -> bool:
        """Whether a key's run may have had keys in what is lost."""
        prefix = key.partition(b"\0")[0]
        return any(hole.may_hold(prefix) for hole in self.holes)

    def described(self) -> Iterator[str]:
        """For people."""
        for hole in self.holes:
            first, last = (key.partition(b"\0")[0].decode(errors="replace") for key in hole)
            until = "the last" if hole.before == _LAST_KEY else repr(last)
            yield f"runs that lie from {first or 'the first'!r} to {until} in {self.file} are left out"
        if not self.fences_whole:
            yield "which runs were deleted is not known of all: programs that still work in one may revive it"


def damage_of(file: Path) -> CheckpointDamage:
    """Read all whole frames of a checkpoint, and say what is between them.

    Raises:
        CorruptionError: not even the first frame can be read.
    """
    lost: list[Lost] = []
    holes: list[Hole] = []
    fences_whole = True
    last, table = b"", Table.DATA  # of the whole frame before
    is_open = False  # something was lost since that frame

    def close(following: Table | None, key: bytes) -> None:
        nonlocal fences_whole
        if table == Table.DATA:
            holes.append(Hole(last, key if following == Table.DATA else _LAST_KEY))
        if table <= Table.FENCES and following not in (Table.DATA, Table.SESSIONS):
            fences_whole = False

    with CheckpointReader(file) as reader:
        for part in reader.whole_frames():
            if isinstance(part, Lost):
                lost.append(part)
                is_open = True
                continue
            if is_open:
                close(part[0], part[1][0][0])
                is_open = False
            table, last = part[0], part[1][-1][0]
    if is_open:
        close(None, b"")
    return CheckpointDamage(str(file), lost, tuple(holes), fences_whole)
