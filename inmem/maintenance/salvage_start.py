"""The states that a salvage can begin with, and what of the log follows on each.

Best first:

1. The image in memory, if it is this database's, of this boot, and its tables
   pass the check: it is the state that was served last. There is one if the
   last writer was killed, as long as the machine has not been restarted.
2. A checkpoint that is whole, or the beginning of the log if it is still
   there. Damage in the log before the record that a checkpoint stands for
   does no harm.
3. The runs that lie in the whole frames of a damaged checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inmem.errors import CorruptionError, FormatVersionError
from inmem.host.control import Control
from inmem.host.directory import DataDirectory, Identity
from inmem.maintenance.checkpoint import COPY_MAX_AGE_S, copy_moment
from inmem.maintenance.checkpoint_damage import CheckpointDamage, damage_of
from inmem.maintenance.process import Progress
from inmem.maintenance.salvage_report import Losses
from inmem.maintenance.table_check import problems_in
from inmem.reading.live_image import live_image
from inmem.reading.source import Source, shared
from inmem.storage.checkpoint import CheckpointHeader, checkpoint_files, verify_checkpoint
from inmem.storage.rebuild import owner_of, read_header
from inmem.storage.wal.format import LogRecord
from inmem.storage.wal.salvage import Piece

_IMAGE: Final = "the image in memory"


@dataclass(frozen=True, slots=True)
class StartingState:
    """A state to begin with: a file with its entries (None: an empty store), and the log from there on.

    `piece` is the index of the piece of the log that the records are in, -1
    for none. `reaches` is the last version. `damage` is that of the file.
    """

    source: str
    stand: CheckpointHeader
    file: Path | None
    records: Callable[[], Iterator[LogRecord]]
    piece: int
    reaches: int
    damage: CheckpointDamage | None = None

    @property
    def is_image(self) -> bool:
        """Whether it is the state that was served last."""
        return self.source == _IMAGE


class StartingStates:
    """Finds them. What cannot be used is noted, with the reason."""

    def __init__(
        self, directory: DataDirectory, identity: Identity, pieces: list[Piece], losses: Losses,
        progress: Progress,
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._pieces = pieces
        self._losses = losses
        self._progress = progress

    def best(self, scratch: Path, control: Control | None) -> StartingState | None:
        """The state that leads furthest; the first of several. None if nothing can be proved good.

        A damaged checkpoint is only used if there is nothing whole. Without
        `control` the image is not looked at.
        """
        found = [state for state in self._all(scratch, control) if state is not None]
        return max(found, key=lambda state: (state.damage is None, state.reaches), default=None)

    def _all(self, scratch: Path, control: Control | None) -> Iterator[StartingState | None]:
        if control is not None:
            yield self._image(scratch, control)
        for file in reversed(checkpoint_files(self._directory.checkpoints)):
            yield self._checkpoint(file)
        if any(piece.previous == 0 for piece in self._pieces):
            empty = CheckpointHeader(self._identity.database_id, 0, 0, 0, 0, dict(self._identity.stored))
            yield self._with_log("the log", empty, None)

    def _image(self, scratch: Path, control: Control) -> StartingState | None:
        """The image in memory, copied to a file."""
        found = live_image(self._directory, self._identity, control)
        if found.image is None:
            self._losses.notes.append(f"not from memory: {found.problem or found.reason}")
            return None
        copy = scratch / "image.copy"
        try:
            stand = self._copied(shared(found.image, COPY_MAX_AGE_S), copy)
        except (CorruptionError, FileNotFoundError) as error:
            self._losses.notes.append(f"not from memory: {error}")
            return None
        finally:
            found.image.close()
        return self._with_log(_IMAGE, stand, copy)

    def _copied(self, image: Source, copy: Path) -> CheckpointHeader:
        """Copy the image to a file if it is ours and whole.

        Raises:
            CorruptionError: it is not.
        """
        self._progress("checking the image in memory")
        with image.moment() as moment:
            position = moment.position()
        # By what it says of itself: `live_image` takes the lock that a salvage holds for a writer's.
        if position is None or position.owner != owner_of(self._directory, self._identity):
            raise CorruptionError("the image is not of this database, boot and directory")
        problems = problems_in(image)
        if problems:
            raise CorruptionError(f"the image is damaged: {problems[0]}")
        self._progress("copying the image in memory")
        with image.moment() as moment:
            return copy_moment(moment, self._identity, copy)[0]

    def _checkpoint(self, file: Path) -> StartingState | None:
        self._progress(f"reading {file.name}")
        try:
            stand = read_header(file, self._identity)
        except (CorruptionError, FormatVersionError) as error:
            self._losses.notes.append(str(error))
            return None
        try:
            verify_checkpoint(file)
        except CorruptionError as error:
            self._losses.notes.append(str(error))
            return self._with_log(f"the whole frames of {file.name}", stand, file, damage_of(file))
        return self._with_log(f"the checkpoint {file.name}", stand, file)

    def _with_log(
        self, source: str, stand: CheckpointHeader, file: Path | None, damage: CheckpointDamage | None = None
    ) -> StartingState:
        """The state together with the piece of the log that goes on from it."""
        for number, piece in enumerate(self._pieces):
            if piece.previous == stand.checksum and piece.first_version > stand.version:
                return StartingState(
                    source, stand, file, piece.iter_records, number, piece.last_version, damage
                )
            if piece.first_version <= stand.version <= piece.last_version and any(
                (record.version, record.checksum) == (stand.version, stand.checksum)
                for record in piece.iter_records()
            ):

                def after(piece: Piece = piece) -> Iterator[LogRecord]:
                    return (record for record in piece.iter_records() if record.version > stand.version)

                return StartingState(source, stand, file, after, number, piece.last_version, damage)
        return StartingState(source, stand, file, lambda: iter(()), -1, stand.version, damage)
