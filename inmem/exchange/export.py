"""Export: runs as lines of JSON, each run of one moment.

What is exported depends only on what is stored, not on time, place or commit
versions: equal runs give equal bytes. A file takes its name when it is whole
and durable. An export that fails or is interrupted leaves no file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, cast

from inmem.database import Database
from inmem.errors import (
    BusyError,
    CorruptionError,
    InvalidInputError,
    RunNotFoundError,
    SnapshotTooOldError,
)
from inmem.exchange import lines
from inmem.exchange.counted import Counted, no_records
from inmem.exchange.given import path_of
from inmem.exchange.lines import Checksum
from inmem.exchange.reading import run_id_of, source_at, source_of
from inmem.host.files import output
from inmem.jsonvalues import dumps
from inmem.keys import Namespace, TypeTag, range_of
from inmem.primitives import server
from inmem.primitives.cells import rules as cell
from inmem.primitives.events import rules as event_log
from inmem.primitives.record_type import LineForm
from inmem.reading.moment import Moment
from inmem.reading.run import StoredRun
from inmem.reading.runs import Unfinished, exists, is_whole, run_ids
from inmem.reading.source import Source
from inmem.record import payload_of
from inmem.scopes import RunScope

_ATTEMPTS: Final = 3  # at a run whose image is replaced while it is read
_TELL_EVERY: Final = 2000  # records between two words of progress
UNFINISHED: Final = (
    "Wait for the import. One that was killed is finished by importing the file again, "
    "and given up with: inmem import --discard RUN."
)
_DAMAGED: Final = "Find out with `inmem check`; damaged indices are repaired by Database.repair_indices()."


@dataclass(slots=True)
class Exported(Counted):
    """What was exported; `skipped` are runs whose import is not finished. `source` is "image" or "replay"."""

    source: str = ""
    skipped: list[str] = field(default_factory=list)


Progress = Callable[[Exported], None]


def silent(_: Exported) -> None:
    """A progress that nobody follows."""


def export_runs(
    database: Database | Path | str, file: Path | str | BinaryIO,
    run_ids: Sequence[str | RunScope] | None = None, *, namespace: Namespace | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write runs, by default all of a namespace, to a new file (or a binary stream) as JSON Lines.

    Given a path (or URL) instead of an open database it neither starts a writer
    nor disturbs one; a `Database` brings its own namespace along. Each run is
    read from one snapshot, and runs are in order of their ids. An existing
    file is replaced when the new one is whole. docs/EXPORT.md describes what
    is written. Cost: about 15 µs a record; memory does not grow with a run.

    >>> import inmem, inmem.exchange, io
    >>> with inmem.open() as db:
    ...     version = db.kv.put("run-1", "color", "green")
    ...     out = io.BytesIO()
    ...     inmem.exchange.export_runs(db, out).kv
    1

    Raises:
        RunNotFoundError: a run that was named has neither record nor data.
        BusyError: a run that was named is being imported.
        CorruptionError: a log or an index is damaged; the message names the run.
        SnapshotTooOldError: the image was replaced again and again under a large run.
    """
    wanted = None if run_ids is None else sorted({run_id_of(database, run) for run in run_ids})
    if isinstance(database, Database):
        return _export(source_of(database), _own(database, namespace), wanted, file, progress)
    with source_at(database) as source:
        return _export(source, namespace or Namespace(), wanted, file, progress)


def count_runs(database: Database | Path | str, namespace: Namespace | None = None) -> int:
    """How many runs have a record or data. Cost: about 5 µs a run."""
    if isinstance(database, Database):
        return sum(1 for _ in run_ids(source_of(database), _own(database, namespace)))
    with source_at(database) as source:
        return sum(1 for _ in run_ids(source, namespace or Namespace()))


def _own(database: Database, namespace: Namespace | None) -> Namespace:
    """The namespace of an open database.

    Raises:
        InvalidInputError: another one was asked for.
    """
    if namespace not in (None, database.namespace):
        raise InvalidInputError(
            f"namespace is {namespace}, and the database is open in {database.namespace}",
            argument="namespace", hint="Open it in the namespace that you mean, or give its path.",
        )
    return database.namespace


def checksum_of(source: Source, namespace: Namespace, run_id: str, shown: str) -> str | None:
    """The checksum that an export of a run under the id `shown` would tell; None if there is no such run.

    A run that is being imported is not one yet. Cost: that of exporting it.
    """
    with source.moment() as moment:
        if not is_whole(moment, namespace, run_id):
            return None
        checksum = Checksum()
        written = _RunWriter(moment, namespace, run_id, lines.newest_version(), silent, Exported(""), shown)
        for line in written.lines():
            checksum.update(line)
        return checksum.text()


def _export(
    source: Source, namespace: Namespace, wanted: list[str] | None, file: Path | str | BinaryIO,
    progress: Progress,
) -> Exported:
    name = os.fspath(file) if isinstance(file, str | os.PathLike) else getattr(file, "name", "stream")
    report = Exported(str(name), source=source.name)
    with _opened(file) as out:
        version = _version_for(source, namespace, wanted)
        writer = _Writer(out, report, version)
        writer.write(lines.header_line(version))
        for run_id in run_ids(source, namespace) if wanted is None else wanted:
            try:
                there = writer.run(source, namespace, run_id, progress)
            except Unfinished:
                if wanted is not None:
                    raise BusyError(
                        f"run {run_id} is being imported: it is not whole", what=f"run {run_id}",
                        hint=UNFINISHED,
                    ) from None
                report.skipped.append(run_id)
                continue
            report.runs += there
            if not there and wanted is not None:
                raise RunNotFoundError(f"there is no run {run_id}", run_id=run_id)
            progress(report)
        writer.write(lines.close_line(report.runs, writer.checksum.text()))
    return report


def _version_for(source: Source, namespace: Namespace, wanted: list[str] | None) -> int:
    """The oldest version of the schema that has all kinds of records which the runs hold."""
    later = [
        (one.tag, one.lines.since) for _, one in server.counted()
        if one.lines is not None and one.lines.since > lines.FIRST_VERSION
    ]
    found = [lines.FIRST_VERSION]
    if later:
        for run_id in run_ids(source, namespace) if wanted is None else wanted:
            prefix = namespace.run_prefix(run_id)
            found += [since for tag, since in later if source.first(*range_of(prefix, tag)) is not None]
    return max(found)


class _Writer:
    """The file, and what is in it so far."""

    def __init__(self, out: BinaryIO, report: Exported, version: int) -> None:
        self._out = out
        self._report = report
        self._version = version
        self.checksum = Checksum()
        self._can_go_back = out.seekable()

    def write(self, line: bytes) -> None:
        self._out.write(line)
        self.checksum.update(line)
        self._report.bytes += len(line)

    def run(self, source: Source, namespace: Namespace, run_id: str, progress: Progress) -> bool:
        """Write one run as of one moment; whether there is one.

        Raises:
            SnapshotTooOldError: the moment passed too soon, several times.
        """
        for left in reversed(range(_ATTEMPTS)):
            before = self._out.tell() if self._can_go_back else 0
            kept = self.checksum.copy(), self._report.bytes, self._report.counts.copy()
            try:
                return self._try(source, namespace, run_id, progress)
            except SnapshotTooOldError:
                if not left or not self._can_go_back:
                    raise
                self._out.seek(before)
                self._out.truncate()
                self.checksum, self._report.bytes, self._report.counts = kept
        raise AssertionError("unreachable")

    def _try(self, source: Source, namespace: Namespace, run_id: str, progress: Progress) -> bool:
        with source.moment() as moment:
            if not exists(moment, namespace, run_id):
                return False
            written = _RunWriter(moment, namespace, run_id, self._version, progress, self._report)
            checksum = Checksum()
            for line in written.lines():
                checksum.update(line)
                self.write(line)
            self.write(lines.end_line(run_id, written.counts, checksum.text()))
        return True


class _RunWriter:
    """The lines of one run at one moment, the last one left out."""

    def __init__(
        self, moment: Moment, namespace: Namespace, run_id: str, version: int, progress: Progress,
        report: Exported, shown: str = "",
    ) -> None:
        self._run = StoredRun(moment, namespace, run_id)
        self._version = version  # of the schema
        self._shown = shown or run_id  # in the file
        self._progress = progress
        self._report = report
        self.counts = no_records()

    def lines(self) -> Iterator[bytes]:
        """All of them, in order.

        Raises:
            CorruptionError: names the run and what is damaged in it.
            BusyError: the run has got records that the file's version cannot hold.
        """
        try:
            yield self._head()
            for name, form in server.line_forms():
                yield from self._of_kind(name, form)
        except (ValueError, TypeError) as error:  # whatever a decoder says; InmemErrors of input too
            raise CorruptionError(
                f"run {self._run.name} cannot be exported: {str(error)[:300]}", hint=_DAMAGED
            ) from None

    def _of_kind(self, name: str, form: LineForm) -> Iterator[bytes]:
        told, before = self._report.counts, self._report.counts[name]
        kind = {"kind": form.kind}
        for number, document in enumerate(form.documents(self._run), 1):
            if form.since > self._version:
                raise BusyError(
                    f"run {self._run.name} was given its first {form.kind} during the export",
                    what=f"run {self._run.name}", hint="Export again.",
                )
            yield dumps(kind | document)
            told[name] = before + number
            if number % _TELL_EVERY == 0:
                self._progress(self._report)
        self.counts[name] = told[name] - before

    def _head(self) -> bytes:
        first = next(self._run.records(TypeTag.EVENT), None)
        mark = self._run.record(TypeTag.STATE_MARK, cell.MARK)
        return lines.run_line(
            self._shown, self._run.metadata(),
            None if first is None else event_log.unpack(0, payload_of(first[1])).chain,
            cell.version_in(None if mark is None else payload_of(mark)),
        )


# --- the file -------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path | str | BinaryIO) -> Iterator[BinaryIO]:
    """The stream, or a new file that takes its name at the end; a device or a pipe is written to."""
    path = path_of(file, "write")
    if path is None:
        yield cast(BinaryIO, file)
        return
    with output(path) as out:
        yield out
