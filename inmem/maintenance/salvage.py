"""Salvage: a new database from what can be proved good of a damaged one, and a list of the rest.

The damaged database is not changed. The new one is a state that the old one
had at one moment: every commit up to it whole, and none after it. If that
cannot be had, it is such a state without the runs that the report names.

A record of the log says what a commit wrote, given what was there before. So
a record behind a lost one is not used, although it can be read: it may change
an event log whose last event is missing, or complete a run that never began.
Of the log, only records are used that chain, one by one, to a state that is
whole. `salvage_start` has the states to begin with.

Of a damaged checkpoint the runs in its whole frames are used, see
`checkpoint_damage`. Every run that may have had a key in a lost frame is left
out, also from the log that is applied afterwards. What deleted runs had stays
deleted, but if fences are lost, a program that still works in a deleted run
could revive it.

The result is a database of its own, as a restored backup is: see `backup`.

    python -m inmem.maintenance salvage DIRECTORY NEW [noimage]    one JSON document
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from inmem.config import Settings
from inmem.errors import BusyError, CorruptionError, InmemError, InvalidInputError
from inmem.host.control import DURABLE, VERSION, Control
from inmem.host.directory import DataDirectory, Identity
from inmem.host.files import FileLock
from inmem.maintenance.appearing import appearing_directory, refuse_taken
from inmem.maintenance.check import check
from inmem.maintenance.checkpoint_damage import CheckpointDamage
from inmem.maintenance.process import (
    DiedOfDamage,
    Progress,
    answer,
    counted,
    from_os_error,
    run_helper,
    silent,
    tell,
)
from inmem.maintenance.restore import make_database
from inmem.maintenance.salvage_report import Dropped, Losses, SalvageReport
from inmem.maintenance.salvage_start import StartingState, StartingStates
from inmem.reading.source import private
from inmem.storage.checkpoint import COPIED, CheckpointReader, Lost
from inmem.storage.environment import Table
from inmem.storage.position import Position
from inmem.storage.rebuild import fill, owner_of, private_store, replay, too_small
from inmem.storage.store import PublishError, Store
from inmem.storage.wal.format import PUT, LogRecord
from inmem.storage.wal.salvage import Gap, Piece, scan_pieces

_PROGRAM: Final = ["-m", "inmem.maintenance", "salvage"]
_NO_IMAGE: Final = "noimage"
_TELL_EVERY: Final = 50_000  # records between two words of progress
_LOCK_PATIENCE_S: Final = 1.0  # for a program that looks whether a writer serves
_LOCK_POLL_S: Final = 0.002


def salvage_in_process(path: Path, target: Path, progress: Progress = silent) -> SalvageReport:
    """Salvage from a fresh process; without the image if reading that is what ends it.

    Raises:
        InmemError: as `salvage`.
    """
    arguments = [*_PROGRAM, str(path), str(target)]
    try:
        document = run_helper(arguments, "salvage", progress)
    except DiedOfDamage as signal_name:
        progress(f"the image cannot be read ({signal_name}): going on without it")
        try:
            document = run_helper([*arguments, _NO_IMAGE], "salvage", progress)
        except DiedOfDamage as again:
            raise CorruptionError(f"the salvage died of {again}") from None
    document["dropped"] = [Dropped(**fields) for fields in document["dropped"]]
    return SalvageReport(**document)


def salvage(
    path: Path, target: Path, progress: Progress = silent, *, use_image: bool = True
) -> SalvageReport:
    """Write what can be proved good of a database into a new directory.

    Cost: about that of a check and a backup; memory is bounded.

    Raises:
        BusyError: a writer serves it. Then it is not damaged: back it up.
        AlreadyExistsError: the target exists and is not an empty directory.
        InvalidInputError: no database.
        CorruptionError: nothing can be proved good; or its settings are damaged.
        StoreFullError: the disk of the target has no room.
    """
    directory = DataDirectory(path)
    if not directory.exists():
        raise InvalidInputError(f"{directory.path} holds no inmem database", argument="path")
    target = Path(os.path.abspath(target))
    refuse_taken(target)
    identity = directory.identity()
    try:
        with _unserved(directory), appearing_directory(target) as place:
            report = _Salvage(directory, identity, place, progress).run(target, use_image)
    except OSError as error:
        raise from_os_error("the salvage could not be done", error) from error
    progress("checking the result")
    return replace(report, problems=check(target).problems)


@contextmanager
def _unserved(directory: DataDirectory) -> Iterator[None]:
    """Keep writers away inside the block."""
    if not directory.writer_lock.exists():  # there never was one; a lock would create it
        yield
        return
    lock = FileLock(directory.writer_lock)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    try:
        while not lock.try_exclusive():
            if time.monotonic() > deadline:
                raise BusyError(
                    f"a writer serves {directory.path}", what="writer",
                    hint=f"Copy it while it is served: inmem backup FILE -d {directory.path}. "
                    f"Or end the writer: inmem stop -d {directory.path}",
                )
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        lock.close()


class _Salvage:
    def __init__(
        self, directory: DataDirectory, identity: Identity, place: Path, progress: Progress
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._owner = owner_of(directory, identity)
        self._place = place
        self._progress = progress
        self._losses = Losses()
        self._pieces: list[Piece] = []
        self._gaps: list[Gap] = []

    def run(self, target: Path, use_image: bool) -> SalvageReport:
        """Find the best state to begin with, follow the log from it, and write the result."""
        began = time.monotonic()
        losses = self._losses
        durable = published = 0
        control: Control | None = None
        try:
            control = self._directory.control()
            durable, published = control.words[DURABLE], control.words[VERSION]
        except (InmemError, OSError) as error:
            losses.notes.append(f"the control file cannot be read: {error}")
        if self._identity.stored["durability"] != "memory":
            self._pieces, self._gaps = scan_pieces(
                self._directory.wal, self._identity.database_id,
                begun=lambda file: self._progress(f"reading {file.name}"),
            )
        scratch = self._place / "scratch"
        scratch.mkdir(mode=0o700)
        try:
            start = self._start(scratch, control if use_image else None)
            if not use_image:
                losses.notes.append("the image in memory was not used: reading it ended the process")
            entries, replayed = self._build(start, max(published, start.reaches))
        finally:
            if control is not None:
                control.close()
            shutil.rmtree(scratch, ignore_errors=True)
        self._list_dropped(start, published, durable)
        if published > start.reaches:
            losses.notes.append(
                f"versions up to {published} were published; those after {start.reaches} are lost"
            )
        lost_runs = losses.runs()
        return SalvageReport(
            str(self._directory.path), str(target), start.source, start.reaches, durable, published,
            entries, replayed, time.monotonic() - began, losses.dropped, lost_runs, losses.notes,
        )

    def _start(self, scratch: Path, control: Control | None) -> StartingState:
        states = StartingStates(
            self._directory, self._identity, self._pieces, self._losses, self._progress
        )
        best = states.best(scratch, control)
        if best is None:
            problems = "; ".join(self._losses.notes) or "there is neither image nor checkpoint nor log"
            first = self._gaps[0] if self._gaps else None
            raise CorruptionError(
                f"nothing of {self._directory.path} can be proved good: {problems}",
                file=str(first.file if first else self._directory.path), offset=first.begin if first else 0,
                hint="Restore a backup: inmem restore FILE -d DIR",
            )
        return best

    # --- the new database ---------------------------------------------------------------------

    def _build(self, start: StartingState, version: int) -> tuple[int, int]:
        """Load, replay and write: (entries, records replayed). Versions go on above `version`."""
        with private_store() as store:
            if start.file is not None:
                self._load(store, start.file, start.damage)
            replayed = replay(store, self._records(start), self._owner)
            position = store.position
            assert position is None or position.version == start.reaches
            stand = start.stand
            if position is not None:
                stand = replace(
                    stand, checksum=position.checksum, epoch=position.epoch, clock_us=position.clock_us
                )
            stand = replace(stand, version=version)
            with private(store).moment() as moment:
                passing = counted("written", self._progress)
                tables = ((t, passing(moment.rows(t))) for t in COPIED if t != Table.SESSIONS)
                _, written = make_database(self._place, Settings(**self._settings()), stand, tables)
        return written.entries, replayed

    def _settings(self) -> dict[str, Any]:
        stored = dict(self._identity.stored)
        if stored["durability"] == "memory":
            stored["durability"] = "buffered"
            self._losses.notes.append("the old database was in memory only; the new one is 'buffered'")
        return stored

    def _records(self, start: StartingState) -> Iterator[LogRecord]:
        """The records of the log that follow, without writes to runs that are left out."""
        for number, record in enumerate(start.records(), 1):
            if number % _TELL_EVERY == 0:
                self._progress(f"replayed {number:,} records")
            if (damage := start.damage) is not None:
                kept = [op for op in record.ops if op[1] != Table.DATA or not self._is_lost(damage, op[2])]
                record = replace(record, ops=kept)
            yield record

    def _load(self, store: Store, file: Path, damage: CheckpointDamage | None) -> None:
        """Load a file; of a damaged one the whole runs, and what expires is found from them."""
        with CheckpointReader(file) as reader:
            if damage is None:
                fill(store, reader, self._owner)
                return
            stand = reader.header
            position = Position(stand.version, stand.checksum, stand.clock_us, stand.epoch, self._owner)
            try:
                for part in reader.whole_frames():
                    if isinstance(part, Lost) or part[0] not in (Table.DATA, Table.FENCES):
                        continue
                    table, items = part
                    txn = store.begin()
                    txn.apply([
                        (PUT, table, key, value)
                        for key, value in items
                        if table != Table.DATA or not self._is_lost(damage, key)
                    ])
                    txn.publish(position)
                store.begin().publish(position)
            except PublishError as error:
                raise too_small(store, error) from error

    def _is_lost(self, damage: CheckpointDamage, key: bytes) -> bool:
        if not damage.may_hold(key):
            return False
        self._losses.add_key(key)
        return True

    # --- the list -----------------------------------------------------------------------------

    def _list_dropped(self, start: StartingState, published: int, durable: int) -> None:
        """Say what is not in the result. What the starting state holds anyway is not lost."""
        losses = self._losses
        if start.damage is not None:
            losses.dropped = [Dropped(start.damage.file, *lost) for lost in start.damage.lost]
            losses.notes += start.damage.described()
        has_all = start.is_image and start.reaches >= published
        for gap in self._gaps:
            here = gap.file.name, gap.begin
            later = [piece for piece in self._pieces if _begin_of(piece) > here]
            if has_all or any(piece.first_version <= start.reaches for piece in later):
                losses.notes.append(f"{gap.file} at {gap.begin}: {gap.reason}; the result has what was there")
                continue
            what = gap.reason
            if not later and start.reaches >= durable:
                what += " (nothing says that it was durable: recovery would cut it, too)"
            losses.dropped.append(Dropped(str(gap.file), gap.begin, gap.end, what))
        for number, piece in enumerate(self._pieces):
            if number == start.piece or piece.last_version <= start.reaches:
                continue
            for index, (file, begin, end) in enumerate(piece.spans):
                losses.dropped.append(Dropped(
                    str(file), begin, end, "follows on a state that cannot be proved",
                    0 if index else piece.records, piece.first_version, piece.last_version,
                ))
            for record in piece.iter_records():
                losses.add_record(record, Table.DATA)
        losses.dropped.sort(key=lambda one: (one.file, one.offset))


def _begin_of(piece: Piece) -> tuple[str, int]:
    """Segment and offset of the first record of a piece."""
    file, begin, _ = piece.spans[0]
    return file.name, begin


def main(path: Path, target: Path, mode: Path = Path()) -> int:
    """Salvage, and print the report as JSON."""
    use_image = str(mode) != _NO_IMAGE
    return answer(lambda: asdict(salvage(path, target, tell, use_image=use_image)), "salvage")
