"""Check: is what is stored what the rules say it must be?

Invariant: a check changes nothing and runs in a process of its own, so a
damaged store cannot take the caller with it. It reads the live image if there
is one that recovery would adopt, else it replays the log into a private one.

What is looked at, and how it stays right while commits go on:

- The log, from end to end: checksums, chain, order, operations. It grows
  while it is read, and a write under way looks like a torn tail; so a live
  log in which something is wrong is read again before that is believed.
- The records, run by run: keys, versions, values, hash chains, indices. Each
  run is read from one snapshot. Between runs the snapshot is renewed, because
  an open one pins the memory that commits have replaced.
- The order of expiry, the sessions, the fences and the position of the image.

    python -m inmem.maintenance check DIRECTORY    one JSON document
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import xxhash

from inmem import values
from inmem.commit.outcomes import Sessions
from inmem.commit.workspace import fence_of
from inmem.control import DURABLE, PID, Control, ControlState, boot_id
from inmem.directory import DataDirectory, Identity
from inmem.errors import CorruptionError, InmemError, InvalidInputError, from_wire, to_wire
from inmem.files import FileLock, python_environment
from inmem.keys import MAX_NAME_BYTES, Key, TypeTag
from inmem.model import cell, event_log, run, trace
from inmem.model.indices import INDEX_TAGS, entries_of
from inmem.record import expires_at, payload_of, version_of
from inmem.storage.environment import LOGGED, Table
from inmem.storage.recovery import owner_of, replay_privately
from inmem.storage.snapshot import VERSION_KEY, Image, Snapshot
from inmem.storage.store import POSITION_KEY, Position, Store, unpack_position
from inmem.storage.wal_scan import scan

_FOREIGN: Final = "the image in memory belongs to another database, boot or directory"
_MAX_PROBLEMS: Final = 1000  # a damaged store has more than anybody reads
_MAX_AGE_S: Final = 3600.0  # of one snapshot: bounds the check of one run
_RENEW_S: Final = 0.5  # a snapshot is given back at the first new run after this
_CHUNK: Final = 50_000  # keys, or runs, that are in memory at a time
_LOG_READINGS: Final = 3  # of a live log before its problem is believed
_CONTROL_PATIENCE_S: Final = 1.0  # an update of the control file takes microseconds
_END_PATIENCE_S: Final = 5.0  # for a check that was asked to end
_PROGRAM: Final = ["-m", "inmem.maintenance", "check"]
_ALL_KEYS: Final = (b"", b"\xff" * 512)
# A damaged image can make reading it fatal; every other signal came from somebody.
_FATAL: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found; an empty `problems` is a pass.

    `records` of the image, `events` in `logs`, `wal_records` in the log and
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
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def check_in_process(path: Path) -> CheckReport:
    """Check a database from a fresh process and return what it found.

    Raises:
        InmemError: the check could not be done.
    """
    with subprocess.Popen(
        [sys.executable, *_PROGRAM, str(path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=python_environment(),
    ) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.terminate()
            try:
                process.wait(_END_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if -process.returncode in _FATAL:
        name = signal.Signals(-process.returncode).name
        return CheckReport(problems=[f"the check died of {name}: the image cannot be read"])
    try:
        document = json.loads(out)
    except ValueError:
        last = err.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise InmemError(f"the check ended with status {process.returncode}: {last[0][-500:]}") from None
    if "error" in document:
        raise from_wire(document["error"])
    return CheckReport(**document)


def check(path: Path) -> CheckReport:
    """Check a database here. Cost: about 10 µs a record; memory is bounded.

    Raises:
        InvalidInputError: there is no database.
        InmemError: identity or control file cannot be used.
    """
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


class _Source(Protocol):
    """Where the records are: the shared image, or a private one."""

    def records(self) -> Iterator[tuple[int, bytes, bytes]]:
        """(version that may not be exceeded, key, record), in key order, each run of one moment."""

    def moment(self) -> AbstractContextManager[_Moment]:
        """All tables as of one moment."""


class _Moment:
    """All tables, at one moment."""

    def __init__(
        self, get: Callable[[bytes], bytes | None], rows: Callable[[Table], Iterator[tuple[bytes, bytes]]]
    ) -> None:
        self.get = get  # of the table DATA
        self._rows = rows

    def rows(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """All of one table."""
        try:
            yield from self._rows(table)
        except InmemError:
            raise
        except Exception as error:  # whatever the engine says of a page that is none
            raise CorruptionError(f"the image cannot be read: {type(error).__name__}: {error}") from error

    def position(self) -> Position | None:
        """What the image says of itself."""
        return unpack_position(dict(self.rows(Table.META)).get(POSITION_KEY), Path("image"))


class _Shared:
    """The live image. It moves on, and may be replaced by the one of a new writer."""

    def __init__(self, image: Image) -> None:
        self._image = image

    @contextmanager
    def moment(self) -> Iterator[_Moment]:
        snapshot = self._image.snapshot(_MAX_AGE_S)
        try:
            yield _Moment(snapshot.get, snapshot.table)
        finally:
            snapshot.close()

    def records(self) -> Iterator[tuple[int, bytes, bytes]]:
        start: bytes | None = _ALL_KEYS[0]
        while start is not None:
            snapshot = self._image.snapshot(_MAX_AGE_S)
            try:
                start = yield from self._stretch(snapshot, start)
            finally:
                snapshot.close()

    @staticmethod
    def _stretch(
        snapshot: Snapshot, start: bytes
    ) -> Generator[tuple[int, bytes, bytes], None, bytes | None]:
        """The records of some whole runs; returns where the next run starts, None at the end."""
        renew_at = time.monotonic() + _RENEW_S
        version = snapshot.version
        run: bytes | None = None
        for key, record in snapshot.scan(start, _ALL_KEYS[1]):
            head = key.partition(b"\0")[0]
            if head != run:
                if run is not None and time.monotonic() >= renew_at:
                    return key
                run = head
            yield version, key, record
        return None


class _Private:
    """A store that nobody else has."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @contextmanager
    def moment(self) -> Iterator[_Moment]:
        txn = self._store.begin()
        try:
            yield _Moment(txn.get, self._store.items)
        finally:
            txn.abort()

    def records(self) -> Iterator[tuple[int, bytes, bytes]]:
        version = self._store.position.version if self._store.position else 0
        for key, record in self._store.items(Table.DATA):
            yield version, key, record


class _Check:
    def __init__(self, directory: DataDirectory, identity: Identity, control: Control) -> None:
        self.directory = directory
        self.identity = identity
        self.control = control
        self.owner = owner_of(directory, identity)
        self.counts = dict.fromkeys(("version", "records", "logs", "events", "wal_records", "wal_bytes"), 0)
        self.problems: list[str] = []
        self.more = 0
        self.notes: list[str] = []

    def run(self) -> CheckReport:
        image = self._image()
        if image is not None:
            try:
                self._guarded(lambda: self._check_image(_Shared(image)))
            finally:
                image.close()
        elif self._keeps_log:
            self._check_log(None)
            self._guarded(self._replay)
        else:
            self.notes.append("no image in memory, and a memory database keeps no log: nothing to check")
        if self.more:
            self.problems.append(f"{self.more} more problems")
        return CheckReport(problems=self.problems, notes=self.notes, **self.counts)

    @property
    def _keeps_log(self) -> bool:
        return bool(self.identity.stored["durability"] != "memory")

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

    def _is_served(self) -> bool:
        if not self.directory.writer_lock.exists():  # a lock would create it
            return False
        lock = FileLock(self.directory.writer_lock)
        try:
            return not lock.try_shared()
        finally:
            lock.close()

    # --- the image ----------------------------------------------------------------------

    def _image(self) -> Image | None:
        """The image that recovery would adopt, or None."""
        state = self._control_state()
        if state is None:
            self.notes.append("a writer died while it changed the control file; the next one repairs that")
            return None
        stem = self.directory.stem(self.identity)
        path = Path(state.image)
        if not state.image or state.boot != boot_id() or not path.is_dir():
            self._say_replay("no image in memory")
            return None
        if not path.name.startswith(stem):
            self._say_replay(_FOREIGN)
            return None
        image = Image(self.control, stem)
        try:
            with _Shared(image).moment() as moment:
                position = moment.position()
        except CorruptionError:
            return image  # met again, and reported, when it is checked
        except InmemError as error:
            if Path(state.image).is_dir() and self._control_state() == state:
                self._problem(f"the image cannot be opened: {error}")
            self._say_replay("the image is gone or cannot be opened")
        else:
            if position is None or position.owner == self.owner or self._is_served():
                return image
            self._say_replay(_FOREIGN)
        image.close()
        return None

    def _control_state(self) -> ControlState | None:
        deadline = time.monotonic() + _CONTROL_PATIENCE_S
        while (state := self.control.read()) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        return state

    def _say_replay(self, reason: str) -> None:
        if self._keeps_log:
            self.notes.append(f"{reason}: the log was replayed into a private one")

    def _check_image(self, source: _Shared) -> None:
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
        for left in reversed(range(_LOG_READINGS)):
            problems, notes = self._read_log(position)
            if not problems or not left or not self._is_served():
                break
        for problem in problems:
            self._problem(problem)
        self.notes += notes

    def _read_log(self, position: Position | None) -> tuple[list[str], list[str]]:
        # Before the log: what is durable now must be in what is read from here on.
        durable, clean = self.control.words[DURABLE], self.control.words[PID] == 0
        problems: list[str] = []
        notes: list[str] = []
        self.counts["wal_records"] = self.counts["wal_bytes"] = 0
        try:
            found = scan(self.directory.wal, self.identity.database_id)
            self.counts["wal_bytes"] = sum(segment.end for segment in found.segments)
            for record in found.iter_records():
                self.counts["wal_records"] += 1
                if any(op[1] not in LOGGED for op in record.ops):
                    problems.append(f"{record.file} at {record.offset}: writes to a table that has no log")
            if position is not None and found.find(position.version, position.checksum) is None:
                problems.append(f"the log lacks version {position.version}, at which the image stands")
        except (InmemError, OSError) as error:
            return [*problems, str(error)], notes
        end = found.end.version if found.end else 0
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

    def _replay(self) -> None:
        with _scratch(self.directory) as scratch, replay_privately(
            self.directory, self.identity, scratch
        ) as store:
            self.counts["version"] = store.position.version if store.position else 0
            self._check_tables(_Private(store))

    # --- the tables ---------------------------------------------------------------------

    def _check_tables(self, source: _Source) -> None:
        for name in ("records", "logs", "events"):
            self.counts[name] = 0
        place = _RunCheck()
        seen: dict[bytes, tuple[int, bytes]] = {}  # digest of a run: the version at which it was there, name
        for version, key, record in source.records():
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
                    self._check_fences(source, seen)
                seen[fence_of(prefix)] = version, prefix
            problem = _header_problem(record, version) or place.take(tag, rest, record)
            if problem:
                self._problem(f"{Key(key)!r}: {problem}")
        self._close(place)
        self._check_fences(source, seen)
        with source.moment() as moment:
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

    def _check_fences(self, source: _Source, seen: dict[bytes, tuple[int, bytes]]) -> None:
        """What a deleted run has, it cannot have had when it was deleted."""
        with source.moment() as moment:
            for digest, deleted_at in moment.rows(Table.FENCES):
                version, prefix = seen.get(bytes(digest), (0, b""))
                if version >= int.from_bytes(deleted_at, "big") > 0:
                    self._problem(f"{prefix.decode(errors='replace')}: was deleted, but has records")
        seen.clear()

    def _check_expiry(self, moment: _Moment) -> None:
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

    def _name_missing(self, moment: _Moment) -> None:
        entries = _expiring(moment)
        while chunk := dict.fromkeys(islice(entries, _CHUNK)):
            for entry, _ in moment.rows(Table.EXPIRY):
                chunk.pop(bytes(entry), None)
            for entry in chunk:
                self._problem(f"{Key(entry[8:])!r}: expires, but is not in the order of expiry")
            if self.more:
                return


def _expiring(moment: _Moment) -> Iterator[bytes]:
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


@contextmanager
def _scratch(directory: DataDirectory) -> Iterator[Path]:
    """A private place for an image, removed afterwards; what killed checks have left goes too."""
    for old in directory.path.glob("check-*.scratch"):
        if not Path(f"/proc/{old.name[6:-8]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    path = directory.path / f"check-{os.getpid()}.scratch"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main(path: Path) -> int:
    """Print the report, or the error, as JSON."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        document: dict[str, Any] = asdict(check(path))
    except InmemError as error:
        document = _described(error)
    except OSError as error:
        document = _described(InmemError(f"the check could not be done: {error}"))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(json.dumps(document))
    return 0


def _described(error: InmemError) -> dict[str, Any]:
    code, message, fields = to_wire(error)
    plain = {name: value for name, value in fields.items() if isinstance(value, str | int | float)}
    return {"error": [code, message, plain]}
