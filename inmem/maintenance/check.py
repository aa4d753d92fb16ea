"""Check: is what is stored what the rules say it must be?

Invariant: a check changes nothing and runs in a process of its own, so a
damaged store cannot take the caller with it. It reads the live image if there
is one that recovery would adopt, else it replays the log into a private one.

What is looked at, and how it stays right while commits go on:

- The checkpoint, whole, and the log, from end to end: checksums, chain,
  order, operations, and that the one goes on from the other. The log grows
  while it is read, a write under way looks like a torn tail, and a new
  checkpoint takes the place of both; so where a writer serves, what is wrong
  is read again before that is believed.
- The records, run by run: keys, versions, values, hash chains, indices. Each
  run is read from one snapshot. Between runs the snapshot is renewed, because
  an open one pins the memory that commits have replaced.
- The order of expiry, the sessions, the fences and the position of the image.

A backup is checked in the same way: the file, whole, then what is in it.

    python -m inmem.maintenance check PATH    one JSON document
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import xxhash

from inmem import values
from inmem.commit.outcomes import Sessions
from inmem.commit.workspace import fence_of
from inmem.config import check_stored
from inmem.control import DURABLE, PID, Control
from inmem.directory import DataDirectory, Identity
from inmem.errors import CorruptionError, InmemError, InvalidInputError
from inmem.keys import MAX_NAME_BYTES, Key, TypeTag
from inmem.maintenance.process import DiedOfDamage, answer, run_helper
from inmem.model import cell, event_log, run, trace
from inmem.model.indices import INDEX_TAGS, entries_of
from inmem.reading.live_image import is_served, live_image
from inmem.reading.moment import Moment
from inmem.reading.source import Source, loaded, replayed, shared
from inmem.record import expires_at, payload_of, version_of
from inmem.storage.checkpoint import Stand, newest_checkpoint, verify_checkpoint
from inmem.storage.environment import LOGGED, Table
from inmem.storage.recovery import (
    begin_of,
    end_version,
    owner_of,
    stand_of_ours,
)
from inmem.storage.snapshot import VERSION_KEY, Image
from inmem.storage.store import Position
from inmem.storage.wal_files import segment_files
from inmem.storage.wal_scan import scan

_MAX_PROBLEMS: Final = 1000  # a damaged store has more than anybody reads
_RENEW_S: Final = 0.5  # a snapshot is given back at the first new run after this
_CHUNK: Final = 50_000  # keys, or runs, that are in memory at a time
_LOG_READINGS: Final = 3  # of a live log before its problem is believed, and
_ALL_READINGS: Final = 50  # with those during which a checkpoint replaced it
_PAUSE_S: Final = 0.01  # between two of them
_PROGRAM: Final = ["-m", "inmem.maintenance", "check"]
_ALL_KEYS: Final = (b"", b"\xff" * 512)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found; an empty `problems` is a pass.

    `records` of the image, `events` in `logs`, `wal_records` in the log, the
    version of the `checkpoint` that the log goes on from (0 without one) and
    the last commit `version` that was looked at. `notes` are no problems: what
    could not be looked at, and what the next writer will put right.
    """

    problems: list[str] = field(default_factory=list)
    version: int = 0
    records: int = 0
    logs: int = 0
    events: int = 0
    wal_records: int = 0
    wal_bytes: int = 0
    checkpoint: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def check_in_process(path: Path) -> CheckReport:
    """Check a database, or a backup, from a fresh process and return what it found.

    Raises:
        InmemError: the check could not be done.
    """
    try:
        return CheckReport(**run_helper([*_PROGRAM, str(path)], "check"))
    except DiedOfDamage as signal_name:
        return CheckReport(problems=[f"the check died of {signal_name}: the image cannot be read"])


def check(path: Path) -> CheckReport:
    """Check a database, or a backup, here. Cost: about 10 µs a record; memory is bounded.

    Raises:
        InvalidInputError: there is neither.
        InmemError: identity or control file cannot be used.
    """
    if path.is_file():
        return _BackupCheck(path).run()
    directory = DataDirectory(path)
    if not directory.exists():
        raise InvalidInputError(f"{directory.path} holds no inmem database", argument="path")
    identity = directory.identity()
    control = directory.control()
    try:
        control.check_machine()
        return _Check(directory, identity, control).run()
    finally:
        control.close()


class TableCheck:
    """Problems as they are found, and the tables, whose rules are the same wherever they lie."""

    def __init__(self) -> None:
        names = ("version", "records", "logs", "events", "wal_records", "wal_bytes", "checkpoint")
        self.counts = dict.fromkeys(names, 0)
        self.problems: list[str] = []
        self.more = 0
        self.notes: list[str] = []

    def report(self) -> CheckReport:
        """What was found until now."""
        problems = [*self.problems, *([f"{self.more} more problems"] if self.more else [])]
        return CheckReport(problems=problems, notes=self.notes, **self.counts)

    def _problem(self, text: str) -> None:
        if len(self.problems) >= _MAX_PROBLEMS:
            self.more += 1
        elif text not in self.problems:  # the log is read twice where it is replayed
            self.problems.append(text)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Damage is what a check is for: a problem, and not an error of the check."""
        try:
            step()
        except (CorruptionError, FileNotFoundError) as error:
            self._problem(str(error))

    def _check_tables(self, source: Source) -> None:
        for name in ("records", "logs", "events"):
            self.counts[name] = 0
        place = _RunCheck()
        seen: dict[bytes, tuple[int, bytes]] = {}  # digest of a run: the version at which it was there, name
        newest, version = None, 0
        for moment, key, record in source.records():
            if moment is not newest:
                newest, version = moment, moment.version
                self.counts["version"] = version
            self.counts["records"] += 1
            try:
                prefix, tag, rest = Key(key).split_key()
                TypeTag(tag)
            except (ValueError, IndexError):
                self._problem(f"{key!r} is no key")
                continue
            if prefix != place.prefix:
                self._close(place)
                place = _RunCheck(prefix)
                if len(seen) >= _CHUNK:
                    self._check_fences(moment, seen)
                seen[fence_of(prefix)] = version, prefix
            problem = _header_problem(record, version) or place.take(tag, rest, record)
            if problem:
                self._problem(f"{Key(key)!r}: {problem}")
        self._close(place)
        with source.moment() as moment:
            self._check_fences(moment, seen)
            self._check_expiry(moment)
            try:
                Sessions(moment.rows(Table.SESSIONS), ttl_s=1.0, max_in_flight=1)
            except Exception as error:  # whatever a decoder says of bytes that are not its own
                self._problem(f"the sessions cannot be read: {error}")

    def _close(self, place: _RunCheck) -> None:
        if place.length:
            self.counts["logs"] += 1
            self.counts["events"] += place.length
        for problem in place.finish():
            self._problem(f"{place.prefix.decode(errors='replace')}: {problem}")

    def _check_fences(self, moment: Moment, seen: dict[bytes, tuple[int, bytes]]) -> None:
        """A run that was deleted must have no records at the version of its deletion or later."""
        for digest, deleted_at in moment.rows(Table.FENCES):
            version, prefix = seen.get(bytes(digest), (0, b""))
            if version >= int.from_bytes(deleted_at, "big") > 0:
                self._problem(f"{prefix.decode(errors='replace')}: was deleted, but has records")
        seen.clear()

    def _check_expiry(self, moment: Moment) -> None:
        """Every record that expires has its entry in the order of expiry.

        An entry of an earlier value of a key may be left over. But each record
        matches at most one entry, so counting the matches is enough to know
        that none is missing, without keeping any.
        """
        expiring = sum(1 for _ in _expiring(moment))
        for entry, _ in moment.rows(Table.EXPIRY):
            record = moment.get(bytes(entry[8:])) if len(entry) > 8 else None
            if record is not None and expires_at(record) == int.from_bytes(entry[:8], "big"):
                expiring -= 1
        if expiring:
            self._name_missing(moment)

    def _name_missing(self, moment: Moment) -> None:
        entries = _expiring(moment)
        while chunk := dict.fromkeys(islice(entries, _CHUNK)):
            for entry, _ in moment.rows(Table.EXPIRY):
                chunk.pop(bytes(entry), None)
            for entry in chunk:
                self._problem(f"{Key(entry[8:])!r}: expires, but is not in the order of expiry")
            if self.more:
                return


class _Check(TableCheck):
    def __init__(self, directory: DataDirectory, identity: Identity, control: Control) -> None:
        super().__init__()
        self.directory = directory
        self.identity = identity
        self.control = control
        self.owner = owner_of(directory, identity)
        self._whole: tuple[Path, Stand] | None = None  # a checkpoint that was read to its end

    def run(self) -> CheckReport:
        """Look at everything."""
        image = self._image()
        if image is not None:
            try:
                self._guarded(lambda: self._check_image(shared(image)))
            finally:
                image.close()
        elif self._keeps_log:
            self._check_log(None)
            self._guarded(self._replay)
        else:
            self.notes.append("no image in memory, and a memory database keeps no log: nothing to check")
        return self.report()

    @property
    def _keeps_log(self) -> bool:
        return bool(self.identity.stored["durability"] != "memory")

    # --- the image ----------------------------------------------------------------------

    def _image(self) -> Image | None:
        """The image that recovery would adopt, or None."""
        found = live_image(self.directory, self.identity, self.control)
        if found.problem is not None:
            self._problem(found.problem)
        if found.image is None:
            self._say_replay(found.reason)
        return found.image

    def _say_replay(self, reason: str) -> None:
        if self._keeps_log:
            self.notes.append(f"{reason}: the log was replayed into a private one")

    def _check_image(self, source: Source) -> None:
        with source.moment() as moment:
            position = moment.position()
            stated = dict(moment.rows(Table.META)).get(VERSION_KEY, b"")
        if position is None:
            self._problem("the image has no position")
            return
        self.counts["version"] = position.version
        if position.owner != self.owner:
            self._problem("the image belongs to another database, boot or directory")
        if int.from_bytes(stated, "big") != position.version:
            self._problem(
                f"the image shows version {int.from_bytes(stated, 'big')}, "
                f"but stands at version {position.version}"
            )
        if self._keeps_log:
            self._check_log(position)
        self._check_tables(source)

    # --- the log ------------------------------------------------------------------------

    def _check_log(self, position: Position | None) -> None:
        counted = 0
        for _ in range(_ALL_READINGS):
            before = self._begin()
            problems, notes = self._read_log(position)
            if not problems or not is_served(self.directory):
                break
            # What a new checkpoint took away while it was read says nothing.
            counted += before == self._begin()
            if counted == _LOG_READINGS:
                break
            time.sleep(_PAUSE_S)
        else:
            notes = [f"checkpoints replaced the log faster than it could be read: {problems[0]}"]
            problems = []
        for problem in problems:
            self._problem(problem)
        self.notes += notes

    def _begin(self) -> tuple[Path | None, Path | None]:
        """Where what is kept begins: the newest checkpoint and the oldest segment."""
        segments = segment_files(self.directory.wal) if self.directory.wal.is_dir() else []
        return newest_checkpoint(self.directory.checkpoints), segments[0][1] if segments else None

    def _read_log(self, position: Position | None) -> tuple[list[str], list[str]]:
        # Before the log: what is durable now must be in what is read from here on.
        durable, clean = self.control.words[DURABLE], self.control.words[PID] == 0
        problems: list[str] = []
        notes: list[str] = []
        self.counts["wal_records"] = self.counts["wal_bytes"] = self.counts["checkpoint"] = 0
        try:
            stand = self._checkpoint()
        except (InmemError, OSError) as error:
            problems.append(str(error))
            stand = None
        try:
            found = scan(self.directory.wal, self.identity.database_id)
            self.counts["wal_bytes"] = sum(segment.end for segment in found.segments)
            for record in found.iter_records():
                self.counts["wal_records"] += 1
                if any(op[1] not in LOGGED for op in record.ops):
                    problems.append(f"{record.file} at {record.offset}: writes to a table that has no log")
            # A checkpoint that was taken since the image was read may have freed its record.
            passed = stand is not None and position is not None and position.version <= stand.version
            known = position is None or found.find(position.version, position.checksum) is not None
            if not known and not (passed and is_served(self.directory)):
                assert position is not None
                problems.append(f"the log lacks version {position.version}, at which the image stands")
            if not problems:
                begin_of(found, self._whole[0] if stand and self._whole else None, stand)
        except (InmemError, OSError) as error:
            return [*problems, str(error)], notes
        end = end_version(found, stand)
        if end < durable:
            problems.append(f"the log ends at version {end}, but version {durable} was durable")
        if found.torn is not None:
            torn = found.torn
            text = f"{torn.file} at {torn.offset}: torn tail of {torn.dropped_bytes} bytes, {torn.reason}"
            if clean:
                problems.insert(0, f"{text}, though its writer left cleanly")
            elif problems:
                problems.insert(0, text)
            else:
                notes.append(f"{text}; the next writer cuts it off")
        return problems, notes

    def _checkpoint(self) -> Stand | None:
        """What the newest checkpoint stands for, after reading all of it, once."""
        path = newest_checkpoint(self.directory.checkpoints)
        if path is None:
            return None
        if self._whole is None or self._whole[0] != path:
            stand_of_ours(path, self.identity)
            self._whole = path, verify_checkpoint(path)[0]
        stand = self._whole[1]
        self.counts["checkpoint"] = stand.version
        return stand

    def _replay(self) -> None:
        with replayed(self.directory, self.identity, "check") as source:
            with source.moment() as moment:
                self.counts["version"] = moment.version
            self._check_tables(source)


def image_problems(image: Image) -> list[str]:
    """What is wrong with the tables of an image, whatever log it has."""
    found = TableCheck()
    found._guarded(lambda: found._check_tables(shared(image)))
    return found.report().problems


class _BackupCheck(TableCheck):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def run(self) -> CheckReport:
        """Read the whole file, then load it and look at its tables."""
        self._guarded(self._check_file)
        return self.report()

    def _check_file(self) -> None:
        stand, written = verify_checkpoint(self.path)
        self.counts["version"] = self.counts["checkpoint"] = stand.version
        self.notes.append(
            f"a copy of database {stand.database.hex()} as of version {stand.version}: "
            f"{written.entries} entries, {written.bytes} bytes"
        )
        try:
            check_stored(stand.settings, str(self.path))
        except InvalidInputError as error:
            self._problem(str(error))
        with loaded(self.path) as source:
            self._check_tables(source)


def _expiring(moment: Moment) -> Iterator[bytes]:
    """For each record that expires the entry that it must have in the order of expiry."""
    for key, record in moment.rows(Table.DATA):
        if len(record) >= 24 and record[0] & 0x80:
            yield record[16:24] + key


def _header_problem(record: bytes, version: int) -> str | None:
    if len(record) < 16 or (record[0] & 0x80 and len(record) < 24):
        return "is too short for a record"
    if not 0 < version_of(record) <= version:
        return f"has commit version {version_of(record)}, the store is at {version}"
    return None


class _RunCheck:
    """One prefix's records, as they pass: each decodes, the chain holds, the indices match.

    Indices are compared without keeping them: equal sets of entries have
    equal counts and equal sums of digests.
    """

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.length = 0
        self._next = 0
        self._previous: event_log.StoredEvent | None = None
        self._expected: dict[int, list[int]] = {tag: [0, 0] for tag in INDEX_TAGS}  # count and sum
        self._stored: dict[int, list[int]] = {tag: [0, 0] for tag in INDEX_TAGS}

    def take(self, tag: int, rest: bytes, record: bytes) -> str | None:
        """Look at one record; what is wrong with it."""
        payload = payload_of(record)
        if tag in INDEX_TAGS:
            _add(self._stored[tag], Key.of(self.prefix, tag, rest))
            return None
        try:
            for entry in set(entries_of(self.prefix, tag, rest, payload)):
                _add(self._expected[Key(entry).split_key()[1]], entry)
            if tag == TypeTag.EVENT:
                return self._event(rest, payload)
            return _record_problem(tag, rest, payload)
        except Exception as error:  # whatever a decoder says of bytes that are not its own
            return f"does not decode: {type(error).__name__}: {error}"

    def _event(self, rest: bytes, payload: bytes) -> str | None:
        if len(rest) != 8:
            return "is no sequence"
        sequence = int.from_bytes(rest, "big")
        expected, self._next = self._next, sequence + 1
        self.length += 1
        event = event_log.unpack(sequence, payload)
        problem = event_log.problem_with(self._previous, event)
        if sequence != expected:
            problem = f"the events from {expected} on are missing"
        self._previous = event
        if problem is None:
            event.to_event()  # type and payload decode
        return problem

    def finish(self) -> list[str]:
        """What is wrong with the indices."""
        return [
            f"the index {TypeTag(tag).name} has {self._stored[tag][0]} entries, "
            f"the records ask for {self._expected[tag][0]}, or for others"
            for tag in sorted(INDEX_TAGS)
            if self._stored[tag] != self._expected[tag]
        ]


def _add(total: list[int], entry: bytes) -> None:
    total[0] += 1
    total[1] += xxhash.xxh3_64_intdigest(entry)


def _record_problem(tag: int, rest: bytes, payload: bytes) -> str | None:
    """What is wrong with one record of a primitive, events excepted; raises if it does not decode."""
    name = rest.decode()
    if not 0 < len(rest) <= MAX_NAME_BYTES or b"\0" in rest:
        return "is no name"
    if tag == TypeTag.KV:
        values.decode(payload)
    elif tag == TypeTag.STATE:
        values.decode(cell.value_in(payload))
    elif tag == TypeTag.TRACE:
        trace.unpack(name, payload)
    elif tag == TypeTag.RUN:
        run.unpack(name, payload)
    if tag in (TypeTag.STATE, TypeTag.STATE_MARK) and not cell.version_in(payload) > 0:
        return "has no version"
    return None


def main(path: Path) -> int:
    """Print the report, or the error, as JSON."""
    return answer(lambda: asdict(check(path)), "check")
