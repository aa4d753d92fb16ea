"""Salvage: what can be proved good of a damaged database, as a new one, and a list of the rest.

Invariant: the damaged database is not changed, and the new one is a state
that the old one had at one moment, every commit up to it whole and none after
it; where that cannot be had, it is such a state without the runs that the
report names. Nothing in it is a guess.

Why the state of a moment, and not whatever can still be read: a record of the
log says what a commit wrote, given what was there before it. Behind a record
that is lost, a later one may change a log of events whose last event is
missing, count a counter on, or complete a run that never began. Each could be
read, and together they would be a state that nobody ever committed. So of the
log only what is chained, record by record, to a state that is whole is taken.

Where the state to begin with may come from, best first:

1. The image in memory, if it is this database's, of this boot, and passes the
   checks of its tables: it is the very state that was last served. There is
   one if the last writer was killed, as long as the machine has not been
   restarted. Records that follow on it in the log are applied.
2. The newest checkpoint that is whole, or the beginning of the log if that is
   still there, whichever leads further; then the log from there on. Damage in
   the log before the record that a checkpoint stands for does no harm.
3. If the only checkpoint is damaged: the runs that lie in its whole frames.
   Frames are chained, so that those behind a damaged one can be proved too
   (see `CheckpointReader.whole_frames`), and entries are in the order of
   their keys; so it is known between which keys something is missing. Every
   run that may have had a key there is left out, altogether, also from the log
   that is applied afterwards. What deleted runs had stays deleted, but if
   fences are lost, a program that still works in one could revive it.

The result is a database of its own, as a restored backup is: see `backup`.

    python -m inmem.maintenance salvage DIRECTORY NEW [noimage]    one JSON document
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from inmem.config import Settings
from inmem.control import DURABLE, VERSION, Control
from inmem.directory import DataDirectory, Identity
from inmem.errors import BusyError, CorruptionError, FormatVersionError, InmemError, InvalidInputError
from inmem.files import FileLock
from inmem.maintenance.backup import appearing_directory, counted, make_database, refuse_taken
from inmem.maintenance.check import check
from inmem.maintenance.checkpoint import COPY_MAX_AGE_S, copy_moment
from inmem.maintenance.process import DiedOfDamage, Progress, answer, from_os_error, run_helper, silent, tell
from inmem.maintenance.table_check import problems_in
from inmem.primitives import server
from inmem.reading.live_image import live_image
from inmem.reading.source import private, shared
from inmem.storage.checkpoint import (
    COPIED,
    CheckpointReader,
    Lost,
    Stand,
    checkpoint_files,
    verify_checkpoint,
)
from inmem.storage.environment import Table
from inmem.storage.recovery import fill, owner_of, private_store, replay, stand_of_ours, too_small
from inmem.storage.store import Position, PublishError, Store
from inmem.storage.wal_format import PUT, Record
from inmem.storage.wal_salvage import Gap, Piece, scan_pieces

_PROGRAM: Final = ["-m", "inmem.maintenance", "salvage"]
_NO_IMAGE: Final = "noimage"
_IMAGE: Final = "the image in memory"
_TELL_EVERY: Final = 50_000  # records between two words of progress
_MAX_NAMED: Final = 1000  # runs of which something is lost: more than anybody reads
_LOCK_PATIENCE_S: Final = 1.0  # for a program that looks whether a writer serves
_LOCK_POLL_S: Final = 0.002
_LAST_KEY: Final = b"\xff" * 512


@dataclass(frozen=True, slots=True)
class Dropped:
    """Bytes `offset` to `end` of a file that are not in the new database, and what they are.

    `first_version` and `last_version` are of the records in them; 0 where
    none could be read. What was lost lies between the versions around it.
    """

    file: str
    offset: int
    end: int
    what: str
    records: int = 0
    first_version: int = 0
    last_version: int = 0


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """What a salvage made, and all that it had to leave.

    The state is that of the old `version`; `published` is the last version
    that the old database is known to have shown, `durable` the last that it
    promised to keep. `lost_runs` names the runs of which something that could
    still be read was left out, with the kinds of records; of bytes that could
    not be read no run is known. `problems` are those of a check of the result.
    """

    path: str
    target: str
    source: str
    version: int
    durable: int
    published: int
    entries: int
    replayed: int
    seconds: float
    dropped: list[Dropped] = field(default_factory=list)
    lost_runs: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


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
    """Keep writers away meanwhile."""
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
                    hint=f"Copy it while it is served: inmem backup {directory.path} FILE. "
                    f"Or end the writer: inmem stop {directory.path}",
                )
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        lock.close()


# --- where to begin ------------------------------------------------------------------------------


class _Hole(NamedTuple):
    """Keys of the table DATA between two, which a damaged checkpoint may have held."""

    after: bytes
    before: bytes

    def may_hold(self, prefix: bytes) -> bool:
        """Whether a key of this prefix may have been there."""
        return prefix + b"\0" < self.before and prefix + b"\1" > self.after


@dataclass(frozen=True, slots=True)
class _Damage:
    """What a damaged checkpoint has lost."""

    file: str
    lost: list[Lost]
    holes: tuple[_Hole, ...]
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


@dataclass(frozen=True, slots=True)
class _Base:
    """A state to begin with, and what of the log can be proved to follow on it."""

    source: str
    stand: Stand
    load: Callable[[Store], None]
    records: Callable[[], Iterator[Record]]
    piece: int  # the index of the piece that they are in, -1 for none
    reaches: int  # the last version
    damage: _Damage | None = None

    @property
    def is_image(self) -> bool:
        """Whether it is the state that was served last."""
        return self.source == _IMAGE


class _Salvage:
    def __init__(
        self, directory: DataDirectory, identity: Identity, place: Path, progress: Progress
    ) -> None:
        self.directory = directory
        self.identity = identity
        self.owner = owner_of(directory, identity)
        self.place = place
        self.progress = progress
        self.dropped: list[Dropped] = []
        self.notes: list[str] = []
        self.lost_runs: dict[str, set[str]] = {}
        self.more_runs = 0

    def run(self, target: Path, use_image: bool) -> SalvageReport:
        """Find the best base, follow the log from it, and write the result into the new place."""
        began = time.monotonic()
        durable = published = 0
        control: Control | None = None
        try:
            control = self.directory.control()
            durable, published = control.words[DURABLE], control.words[VERSION]
        except (InmemError, OSError) as error:
            self.notes.append(f"the control file cannot be read: {error}")
        self.pieces: list[Piece] = []
        self.gaps: list[Gap] = []
        if self.identity.stored["durability"] != "memory":
            self.pieces, self.gaps = scan_pieces(
                self.directory.wal, self.identity.database_id,
                begun=lambda file: self.progress(f"reading {file.name}"),
            )
        scratch = self.place / "scratch"
        scratch.mkdir(mode=0o700)
        try:
            base = self._best(scratch, control if use_image else None)
            if not use_image:
                self.notes.append("the image in memory was not used: reading it ended the process")
            entries, replayed = self._build(base, scratch, max(published, base.reaches))
        finally:
            if control is not None:
                control.close()
            shutil.rmtree(scratch, ignore_errors=True)
        self._list_dropped(base, published, durable)
        if published > base.reaches:
            self.notes.append(
                f"versions up to {published} were published; those after {base.reaches} are lost"
            )
        lost = {run: sorted(kinds) for run, kinds in sorted(self.lost_runs.items())}
        if self.more_runs:
            self.notes.append(f"more runs than the {_MAX_NAMED} that are named have lost something")
        return SalvageReport(
            str(self.directory.path), str(target), base.source, base.reaches, durable, published,
            entries, replayed, time.monotonic() - began, self.dropped, lost, self.notes,
        )

    def _best(self, scratch: Path, control: Control | None) -> _Base:
        bases = [base for base in self._bases(scratch, control) if base is not None]
        if not bases:
            problems = "; ".join(self.notes) or "there is neither image nor checkpoint nor log"
            first = self.gaps[0] if self.gaps else None
            raise CorruptionError(
                f"nothing of {self.directory.path} can be proved good: {problems}",
                file=str(first.file if first else self.directory.path), offset=first.begin if first else 0,
                hint="Restore a backup: inmem restore FILE DIRECTORY",
            )
        # Of two that lead equally far the first; one with holes only for want of a whole one.
        return max(bases, key=lambda base: (base.damage is None, base.reaches))

    def _bases(self, scratch: Path, control: Control | None) -> Iterator[_Base | None]:
        if control is not None:
            yield self._from_image(scratch, control)
        for file in reversed(checkpoint_files(self.directory.checkpoints)):
            yield self._from_checkpoint(file)
        if any(piece.previous == 0 for piece in self.pieces):
            empty = Stand(self.identity.database_id, 0, 0, 0, 0, dict(self.identity.stored))
            yield self._base("the log", empty, lambda store: None)

    def _from_image(self, scratch: Path, control: Control) -> _Base | None:
        found = live_image(self.directory, self.identity, control)
        if found.image is None:
            self.notes.append(f"not from memory: {found.problem or found.reason}")
            return None
        self.progress("checking the image in memory")
        try:
            # Of ours by what it says, whoever holds the lock: here that is this process.
            with shared(found.image).moment() as moment:
                position = moment.position()
            if position is None or position.owner != self.owner:
                self.notes.append("not from memory: the image is not of this database, boot and directory")
                return None
            problems = problems_in(shared(found.image))
            if problems:
                self.notes.append(f"not from memory: the image is damaged: {problems[0]}")
                return None
            self.progress("copying the image in memory")
            copy = scratch / "image.copy"
            with shared(found.image, COPY_MAX_AGE_S).moment() as moment:
                stand, _ = copy_moment(moment, self.identity, copy)
        except (CorruptionError, FileNotFoundError) as error:
            self.notes.append(f"not from memory: {error}")
            return None
        finally:
            found.image.close()
        return self._base(_IMAGE, stand, lambda store: self._fill(store, copy))

    def _from_checkpoint(self, file: Path) -> _Base | None:
        self.progress(f"reading {file.name}")
        try:
            stand = stand_of_ours(file, self.identity)
        except (CorruptionError, FormatVersionError) as error:
            self.notes.append(str(error))
            return None
        try:
            verify_checkpoint(file)
        except CorruptionError as error:
            self.notes.append(str(error))
            damage = _damage_of(file)
            source = f"the whole frames of {file.name}"
            return self._base(source, stand, lambda store: self._fill_around(store, file, damage), damage)
        return self._base(f"the checkpoint {file.name}", stand, lambda store: self._fill(store, file))

    def _base(
        self, source: str, stand: Stand, load: Callable[[Store], None], damage: _Damage | None = None
    ) -> _Base:
        """With what the log holds after it."""
        for number, piece in enumerate(self.pieces):
            if piece.previous == stand.checksum and piece.first_version > stand.version:
                return _Base(source, stand, load, piece.iter_records, number, piece.last_version, damage)
            if piece.first_version <= stand.version <= piece.last_version and any(
                (record.version, record.checksum) == (stand.version, stand.checksum)
                for record in piece.iter_records()
            ):

                def after(piece: Piece = piece) -> Iterator[Record]:
                    return (r for r in piece.iter_records() if r.version > stand.version)

                return _Base(source, stand, load, after, number, piece.last_version, damage)
        return _Base(source, stand, load, lambda: iter(()), -1, stand.version, damage)

    # --- the new database ---------------------------------------------------------------------

    def _build(self, base: _Base, scratch: Path, version: int) -> tuple[int, int]:
        """Load, replay and write: (entries, records replayed). Versions go on above `version`."""
        image = scratch / "image"
        image.mkdir(mode=0o700)
        with private_store(image) as store:
            base.load(store)
            replayed = replay(store, self._passing(base), self.owner)
            position = store.position
            assert position is None or position.version == base.reaches
            stand = base.stand
            if position is not None:
                stand = replace(
                    stand, checksum=position.checksum, epoch=position.epoch, clock_us=position.clock_us
                )
            stand = replace(stand, version=version)
            with private(store).moment() as moment:
                passing = counted("written", self.progress)
                tables = ((t, passing(moment.rows(t))) for t in COPIED if t != Table.SESSIONS)
                _, written = make_database(self.place, Settings(**self._settings()), stand, tables)
        return written.entries, replayed

    def _settings(self) -> dict[str, Any]:
        stored = dict(self.identity.stored)
        if stored["durability"] == "memory":
            stored["durability"] = "buffered"
            self.notes.append("the old database was in memory only; the new one is 'buffered'")
        return stored

    def _passing(self, base: _Base) -> Iterator[Record]:
        for number, record in enumerate(base.records(), 1):
            if number % _TELL_EVERY == 0:
                self.progress(f"replayed {number:,} records")
            if (damage := base.damage) is not None:
                kept = [op for op in record.ops if op[1] != Table.DATA or not self._lose(damage, op[2])]
                record = replace(record, ops=kept)
            yield record

    def _fill(self, store: Store, file: Path) -> None:
        with CheckpointReader(file) as reader:
            fill(store, reader, self.owner)

    def _fill_around(self, store: Store, file: Path, damage: _Damage) -> None:
        """Load the whole runs of a damaged checkpoint; what expires is found from them."""
        with CheckpointReader(file) as reader:
            stand = reader.stand
            position = Position(stand.version, stand.checksum, stand.clock_us, stand.epoch, self.owner)
            try:
                for part in reader.whole_frames():
                    if isinstance(part, Lost) or part[0] not in (Table.DATA, Table.FENCES):
                        continue
                    table, items = part
                    txn = store.begin()
                    txn.apply(
                        (PUT, table, key, value)
                        for key, value in items
                        if table != Table.DATA or not self._lose(damage, key)
                    )
                    txn.publish(position)
                store.begin().publish(position)
            except PublishError as error:
                raise too_small(store, error) from error

    def _lose(self, damage: _Damage, key: bytes) -> bool:
        if not damage.may_hold(key):
            return False
        self._note_loss(key)
        return True

    # --- the list -----------------------------------------------------------------------------

    def _list_dropped(self, base: _Base, published: int, durable: int) -> None:
        """Say what is not in the result. What the base holds anyway is not lost."""
        if base.damage is not None:
            self.dropped = [Dropped(base.damage.file, *lost) for lost in base.damage.lost]
            self.notes += base.damage.described()
        has_all = base.is_image and base.reaches >= published
        for gap in self.gaps:
            here = gap.file.name, gap.begin
            later = [p for p in self.pieces if (p.spans[0][0].name, p.spans[0][1]) > here]
            if has_all or any(piece.first_version <= base.reaches for piece in later):
                self.notes.append(f"{gap.file} at {gap.begin}: {gap.reason}; the result has what was there")
                continue
            what = gap.reason
            if not later and base.reaches >= durable:
                what += " (nothing says that it was durable: recovery would cut it, too)"
            self.dropped.append(Dropped(str(gap.file), gap.begin, gap.end, what))
        for number, piece in enumerate(self.pieces):
            if number == base.piece or piece.last_version <= base.reaches:
                continue
            for index, (file, begin, end) in enumerate(piece.spans):
                self.dropped.append(Dropped(
                    str(file), begin, end, "follows on a state that cannot be proved",
                    0 if index else piece.records, piece.first_version, piece.last_version,
                ))
            for record in piece.iter_records():
                for op in record.ops:
                    if op[1] == Table.DATA:
                        self._note_loss(op[2])
        self.dropped.sort(key=lambda one: (one.file, one.offset))

    def _note_loss(self, key: bytes) -> None:
        prefix, _, rest = key.partition(b"\0")
        run = prefix.decode(errors="replace")
        if run not in self.lost_runs and len(self.lost_runs) >= _MAX_NAMED:
            self.more_runs += 1
            return
        self.lost_runs.setdefault(run, set()).add(_kind(rest))


def _kind(rest: bytes) -> str:
    """Which primitive a key is of, by its tag; an index is told of by its records."""
    found = server.record_type_of(rest[0]) if rest else None
    return "unknown" if found is None else found.name


def _damage_of(file: Path) -> _Damage:
    """What a checkpoint has lost, and between which keys of DATA something may be missing."""
    lost: list[Lost] = []
    holes: list[_Hole] = []
    fences_whole = True
    last, table = b"", Table.DATA  # of the whole frame before
    pending = False

    def close(following: Table | None, key: bytes) -> None:
        nonlocal fences_whole
        if table == Table.DATA:
            holes.append(_Hole(last, key if following == Table.DATA else _LAST_KEY))
        if table <= Table.FENCES and following not in (Table.DATA, Table.SESSIONS):
            fences_whole = False

    with CheckpointReader(file) as reader:
        for part in reader.whole_frames():
            if isinstance(part, Lost):
                lost.append(part)
                pending = True
                continue
            if pending:
                close(part[0], part[1][0][0])
                pending = False
            table, last = part[0], part[1][-1][0]
    if pending:
        close(None, b"")
    return _Damage(str(file), lost, tuple(holes), fences_whole)


def main(path: Path, target: Path, mode: Path = Path()) -> int:
    """Salvage, and print the report as JSON."""
    use_image = str(mode) != _NO_IMAGE
    return answer(lambda: asdict(salvage(path, target, tell, use_image=use_image)), "salvage")
