"""Check: is what is stored what the rules say it must be?

A check changes nothing. It reads the live image if there is one that recovery
would adopt, else it replays the log into a private copy. It looks at

- the checkpoint and the log on disk, see `log_check`;
- the records and their indices, the order of expiry, the sessions and the
  fences, see `table_check`;
- the position of the image.

A backup is checked in the same way: the file, whole, then what is in it.

    python -m inmem.maintenance check PATH    one JSON document
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from inmem.config import check_stored
from inmem.errors import InvalidInputError
from inmem.host.clock import FAR_US, wall_us
from inmem.host.control import Control
from inmem.host.directory import DataDirectory, Identity
from inmem.maintenance.findings import Findings
from inmem.maintenance.log_check import LogCheck
from inmem.maintenance.process import answer
from inmem.maintenance.table_check import TableCheck
from inmem.reading.live_image import live_image
from inmem.reading.source import Source, loaded, replayed, shared
from inmem.reports import CheckReport
from inmem.storage.checkpoint import verify_checkpoint
from inmem.storage.environment import Table
from inmem.storage.purges import is_purge
from inmem.storage.rebuild import owner_of
from inmem.storage.snapshot import VERSION_KEY


def check(path: Path) -> CheckReport:
    """Check a database, or a backup, here. Cost: about 10 µs a record; memory is bounded.

    Raises:
        InvalidInputError: there is neither.
        InmemError: identity or control file cannot be used.
    """
    if path.is_file():
        return _check_backup(path)
    directory = DataDirectory(path)
    if not directory.exists():
        raise InvalidInputError(f"{directory.path} holds no inmem database", argument="path")
    identity = directory.identity()
    control = directory.control()
    try:
        control.check_machine()
        return _DatabaseCheck(directory, identity, control).run()
    finally:
        control.close()


class _DatabaseCheck:
    def __init__(self, directory: DataDirectory, identity: Identity, control: Control) -> None:
        self._directory = directory
        self._identity = identity
        self._control = control
        self._findings = Findings()
        self._log = LogCheck(directory, identity, control, self._findings)
        self._keeps_log = identity.stored["durability"] != "memory"

    def run(self) -> CheckReport:
        """Look at everything."""
        findings = self._findings
        found = live_image(self._directory, self._identity, self._control)
        if found.problem is not None:
            findings.problem(found.problem)
        if found.image is not None:
            try:
                with findings.damage():
                    self._check_image(shared(found.image))
            finally:
                found.image.close()
        elif self._keeps_log:
            findings.notes.append(f"{found.reason}: the log was replayed into a private one")
            self._log.run(None)
            with findings.damage(), replayed(self._directory, self._identity) as source:
                with source.moment() as moment:
                    findings.counts["version"] = moment.version
                TableCheck(source, findings).run()
        else:
            findings.notes.append("no image in memory, and a memory database keeps no log: nothing to check")
        return findings.report()

    def _check_image(self, source: Source) -> None:
        findings = self._findings
        with source.moment() as moment:
            position = moment.position()
            meta = dict(moment.rows(Table.META))
            stated = int.from_bytes(meta.get(VERSION_KEY, b""), "big")
        if position is None:
            findings.problem("the image has no position")
            return
        findings.counts["version"] = position.version
        if left := sum(map(is_purge, meta)):
            findings.notes.append(f"{left} deleted runs still take space, which their writer is freeing")
        if (ahead_us := source.now_us() - wall_us()) >= FAR_US:
            findings.notes.append(
                f"store time is {ahead_us / 1e6:,.0f} s ahead of the wall clock; see: inmem clock"
            )
        if position.owner != owner_of(self._directory, self._identity):
            findings.problem("the image belongs to another database, boot or directory")
        if stated != position.version:
            findings.problem(
                f"the image shows version {stated}, but stands at version {position.version}"
            )
        if self._keeps_log:
            self._log.run(position)
        TableCheck(source, findings).run()


def _check_backup(file: Path) -> CheckReport:
    """Read the whole file, then load it and look at its tables."""
    findings = Findings()
    with findings.damage():
        stand, written = verify_checkpoint(file)
        findings.counts["version"] = findings.counts["checkpoint"] = stand.version
        findings.notes.append(
            f"a copy of database {stand.database.hex()} as of version {stand.version}: "
            f"{written.entries} entries, {written.bytes} bytes"
        )
        try:
            check_stored(stand.settings, str(file))
        except InvalidInputError as error:
            findings.problem(str(error))
        with loaded(file) as source:
            TableCheck(source, findings).run()
    return findings.report()


def main(path: Path) -> int:
    """Print the report, or the error, as JSON."""
    return answer(lambda: asdict(check(path)), "check")
