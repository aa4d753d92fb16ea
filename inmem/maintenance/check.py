"""Check: is what is stored what the rules say it must be?

Invariant: a check changes nothing and runs in a process of its own, so a
damaged store cannot take the caller with it. It reads the live image if there
is one, else it replays the log into a private one.

    python -m inmem.maintenance.check DIRECTORY    one JSON document
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from inmem import values
from inmem.control import DURABLE, Control
from inmem.directory import DataDirectory, Identity
from inmem.errors import InmemError, from_wire, to_wire
from inmem.files import FileLock, python_environment
from inmem.keys import Key, TypeTag
from inmem.model import event_log
from inmem.record import expires_at, payload_of, version_of
from inmem.storage.environment import Table
from inmem.storage.recovery import replay_privately
from inmem.storage.snapshot import Image, Snapshot
from inmem.storage.store import POSITION_KEY, unpack_position
from inmem.storage.wal import scan

_MAX_PROBLEMS = 1000  # a damaged store has more than anybody reads
_CHECK_AGE_S = 3600.0  # how long a check may hold its snapshot


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found; an empty `problems` is a pass.

    `records` of the image, `events` in `logs`, `wal_records` in the log and
    the commit `version` that was looked at.
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
    done = subprocess.run(
        [sys.executable, "-m", "inmem.maintenance.check", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, env=python_environment(), check=False,
    )
    try:
        document = json.loads(done.stdout)
    except ValueError:
        raise InmemError(
            f"the check ended with status {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}"
        ) from None
    if "error" in document:
        raise from_wire(document["error"])
    return CheckReport(**document)


def check(path: Path) -> CheckReport:
    """Check a database here. Cost: about 5 µs a record; memory is bounded."""
    directory = DataDirectory(path)
    identity = directory.identity()
    control = directory.control()
    try:
        return _Check(directory, identity, control).run()
    finally:
        control.close()


class _Check:
    def __init__(self, directory: DataDirectory, identity: Identity, control: Control) -> None:
        self.directory = directory
        self.identity = identity
        self.control = control
        self.counts = dict.fromkeys(("version", "records", "logs", "events", "wal_records", "wal_bytes"), 0)
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.expiring = 0

    def run(self) -> CheckReport:
        state = self.control.read()
        has_image = state is not None and state.image and Path(state.image).is_dir()
        if has_image:
            image = Image(self.control, self.identity.database_id)
            try:
                self._image(image.snapshot(_CHECK_AGE_S))
            finally:
                image.close()
        elif self.identity.stored["durability"] == "memory":
            self.notes.append("no image in memory, and a memory database keeps no log: nothing to check")
        else:
            self.notes.append("no image in memory: the log was replayed into a private one")
            self._log(None)
            scratch = Path(tempfile.mkdtemp(prefix="inmem-check-", dir=self.directory.path))
            try:
                with replay_privately(self.directory, self.identity, scratch) as store:
                    self._tables(
                        store.items(Table.DATA), {bytes(k) for k, _ in store.items(Table.EXPIRY)},
                        store.position.version if store.position else 0,
                    )
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return CheckReport(problems=self.problems[:_MAX_PROBLEMS], notes=self.notes, **self.counts)

    def _problem(self, text: str) -> None:
        self.problems.append(text)

    def _image(self, snapshot: Snapshot) -> None:
        position = unpack_position(
            dict(snapshot.table(Table.META)).get(POSITION_KEY), self.directory.path
        )
        if position is None:
            self._problem("the image has no position")
            return
        if position.owner[0] != self.identity.database_id:
            self._problem("the image belongs to another database")
        self._tables(
            snapshot.table(Table.DATA), {key for key, _ in snapshot.table(Table.EXPIRY)}, position.version
        )
        if self.identity.stored["durability"] != "memory":
            self._log((position.version, position.checksum))
        snapshot.close()

    def _log(self, position: tuple[int, int] | None) -> None:
        try:
            found = scan(self.directory.wal, self.identity.database_id)
            self.counts["wal_records"] = sum(1 for _ in found.iter_records())
        except InmemError as error:
            self._problem(f"log: {error}")
            return
        self.counts["wal_bytes"] = sum(segment.end for segment in found.segments)
        if found.torn is not None:
            text = f"log: torn tail, {found.torn.file} at {found.torn.offset}: {found.torn.reason}"
            (self.notes if self._is_served() else self.problems).append(text)
        if position is not None and found.find(*position) is None:
            self._problem(f"the log does not hold version {position[0]}, at which the image stands")
        if position is None and found.end and found.end.version < self.control.words[DURABLE]:
            self._problem(
                f"the log ends at version {found.end.version}, "
                f"but version {self.control.words[DURABLE]} was durable"
            )

    def _is_served(self) -> bool:
        lock = FileLock(self.directory.writer_lock)
        try:
            return not lock.try_shared()
        finally:
            lock.close()

    def _tables(
        self, data: Iterator[tuple[bytes, bytes]], expiry: set[bytes], version: int
    ) -> None:
        self.counts["version"] = version
        log = _LogCheck()
        for key, record in data:
            self.counts["records"] += 1
            try:
                prefix, tag, rest = Key(key).split_key()
                TypeTag(tag)
            except (ValueError, IndexError):
                self._problem(f"{key!r} is no key")
                continue
            if prefix != log.prefix:
                self._close(log)
                log = _LogCheck(prefix)
            problem = self._record(key, record, version, expiry) or log.take(tag, rest, record)
            if problem:
                self._problem(f"{Key(key)!r}: {problem}")
        self._close(log)

    def _record(self, key: bytes, record: bytes, version: int, expiry: set[bytes]) -> str | None:
        if len(record) < 16 or not 0 < version_of(record) <= version:
            return "has no plausible commit version"
        when = expires_at(record)
        if when and when.to_bytes(8, "big") + key not in expiry:
            return "expires, but is not in the order of expiry"
        return None

    def _close(self, log: _LogCheck) -> None:
        if log.length:
            self.counts["logs"] += 1
            self.counts["events"] += log.length
        for problem in log.finish():
            self._problem(f"run {log.prefix.decode(errors='replace')}: {problem}")


class _LogCheck:
    """One run's records, as they pass: values decode, the chain holds, the type index matches."""

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.length = 0
        self._previous: event_log.StoredEvent | None = None
        self._events = 0  # sums of digests: equal sets have equal sums
        self._index = 0
        self._indexed = 0

    def take(self, tag: int, rest: bytes, record: bytes) -> str | None:
        payload = payload_of(record)
        try:
            if tag == TypeTag.KV:
                values.decode(payload)
            elif tag == TypeTag.EVENT:
                return self._event(int.from_bytes(rest, "big"), payload)
            elif tag == TypeTag.EVENT_BY_TYPE:
                self._indexed += 1
                self._index += xxhash.xxh3_64_intdigest(rest)
        except ValueError as error:
            return str(error)
        return None

    def _event(self, sequence: int, payload: bytes) -> str | None:
        expected, self.length = self.length, self.length + 1
        event = event_log.unpack(sequence, payload)
        problem = event_log.problem_with(self._previous, event)
        if sequence != expected:
            problem = f"event {expected} is missing"
        self._previous = event
        values.decode(event.payload)
        self._events += xxhash.xxh3_64_intdigest(event.event_type + b"\0" + sequence.to_bytes(8, "big"))
        return problem

    def finish(self) -> list[str]:
        if (self._indexed, self._index) != (self.length, self._events):
            return [f"the index by type has {self._indexed} entries for {self.length} events, or wrong ones"]
        return []


def main(arguments: list[str]) -> int:
    """Print the report, or the error, as JSON."""
    try:
        document: dict[str, Any] = asdict(check(Path(arguments[0])))
    except InmemError as error:
        code, message, fields = to_wire(error)
        document = {"error": [code, message, {k: str(v) for k, v in fields.items() if v is not None}]}
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
