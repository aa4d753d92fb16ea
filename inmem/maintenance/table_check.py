"""The check of the tables, wherever they are: in a shared image, or in a private copy.

The records are read run by run, each run of one moment. Between runs the
moment is renewed, because an open one keeps in memory what commits replace.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from inmem.keys import Key, fence_of
from inmem.maintenance.findings import Findings
from inmem.maintenance.records_check import RecordsCheck
from inmem.reading.moment import Moment
from inmem.reading.source import Source
from inmem.record import expires_at
from inmem.storage.environment import Table
from inmem.writer.outcomes import Sessions

_CHUNK: Final = 50_000  # keys, or runs, that are in memory at a time


def problems_in(source: Source) -> list[str]:
    """What is wrong with the tables, whatever log the store has."""
    findings = Findings()
    with findings.damage():
        TableCheck(source, findings).run()
    return findings.report().problems


class TableCheck:
    """Checks the records, the fences, the order of expiry and the sessions."""

    def __init__(self, source: Source, findings: Findings) -> None:
        self._source = source
        self._findings = findings

    def run(self) -> None:
        """Look at everything.

        Raises:
            CorruptionError: the tables cannot be read.
        """
        self._records()
        with self._source.moment() as moment:
            self._expiry(moment)
            try:
                Sessions(moment.rows(Table.SESSIONS), ttl_s=1.0, max_in_flight=1)
            except Exception as error:  # whatever a decoder says of bytes that are not its own
                self._findings.problem(f"the sessions cannot be read: {error}")

    def _records(self) -> None:
        records = RecordsCheck(self._findings)
        seen: dict[bytes, tuple[int, bytes]] = {}  # digest of a run: the version at which it was there, name
        newest: Moment | None = None
        version = 0
        for moment, key, record in self._source.records():
            if moment is not newest:
                newest, version = moment, moment.version
                self._findings.counts["version"] = version
            begun = records.take(key, record, version)
            if begun is not None:
                if len(seen) >= _CHUNK:
                    self._fences(moment, seen)
                seen[fence_of(begun)] = version, begun
        records.finish()
        with self._source.moment() as moment:
            self._fences(moment, seen)

    def _fences(self, moment: Moment, seen: dict[bytes, tuple[int, bytes]]) -> None:
        """A run that was deleted must have no records at the version of its deletion or later."""
        for digest, deleted_at in moment.rows(Table.FENCES):
            version, prefix = seen.get(bytes(digest), (0, b""))
            if version >= int.from_bytes(deleted_at, "big") > 0:
                self._findings.problem(f"{prefix.decode(errors='replace')}: was deleted, but has records")
        seen.clear()

    def _expiry(self, moment: Moment) -> None:
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
                self._findings.problem(f"{Key(entry[8:])!r}: expires, but is not in the order of expiry")
            if self._findings.is_full:
                return


def _expiring(moment: Moment) -> Iterator[bytes]:
    """For each record that expires the entry that it must have in the order of expiry."""
    for key, record in moment.rows(Table.DATA):
        if len(record) >= 24 and record[0] & 0x80:
            yield record[16:24] + key
