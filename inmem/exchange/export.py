"""Export: runs as lines of JSON, each run of one moment.

Invariant: what is exported depends on what is stored and on nothing else, not
on time, place, or commit versions: equal runs give equal bytes. A file takes
its name when it is whole and durable; what fails or is interrupted leaves
none.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from inmem.database import Database
from inmem.errors import BusyError, CorruptionError, RunNotFoundError, SnapshotTooOldError
from inmem.exchange import lines
from inmem.exchange.lines import Checksum
from inmem.exchange.reading import source_at, source_of
from inmem.files import open_private, sync_directory
from inmem.keys import Namespace, TypeTag, check_run_id, range_of
from inmem.model import cell, event_log
from inmem.model.importing import Counts
from inmem.reading.moment import Moment
from inmem.reading.run import StoredRun
from inmem.reading.runs import Unfinished, exists, run_ids
from inmem.reading.source import Source
from inmem.record import payload_of

_ATTEMPTS: Final = 3  # at a run whose image is replaced while it is read
_TELL_EVERY: Final = 2000  # records between two words of progress
UNFINISHED: Final = (
    "Wait for the import. One that was killed is finished by importing the file again, "
    "and given up with: inmem import PATH --discard RUN."
)
_DAMAGED: Final = "Find out with `inmem check`; damaged indices are repaired by Database.repair_indices()."


@dataclass(slots=True)
class Exported:
    """What was exported; `skipped` are runs whose import is not finished. `source` is "image" or "replay"."""

    file: str
    source: str = ""
    runs: int = 0
    kv: int = 0
    cells: int = 0
    events: int = 0
    traces: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        """All of them."""
        return self.kv + self.cells + self.events + self.traces


Progress = Callable[[Exported], None]


def silent(_: Exported) -> None:
    """A progress that nobody follows."""


def export_runs(
    database: Database | Path | str, file: Path | str | BinaryIO, run_ids: Sequence[str] | None = None, *,
    namespace: Namespace | None = None, progress: Progress = silent,
) -> Exported:
    """Write runs, by default all of a namespace, to a new file (or a binary stream) as JSON Lines.

    Given a path instead of an open database it neither starts a writer nor
    disturbs one; a `Database` brings its own namespace along. Each run is
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
    wanted = None if run_ids is None else sorted({check_run_id(run_id) for run_id in run_ids})
    if isinstance(database, Database):
        return _export(source_of(database), database.namespace, wanted, file, progress)
    with source_at(Path(database)) as source:
        return _export(source, namespace or Namespace(), wanted, file, progress)


def count_runs(database: Database | Path | str, namespace: Namespace | None = None) -> int:
    """How many runs have a record or data. Cost: about 5 µs a run."""
    if isinstance(database, Database):
        return sum(1 for _ in run_ids(source_of(database), database.namespace))
    with source_at(Path(database)) as source:
        return sum(1 for _ in run_ids(source, namespace or Namespace()))


def checksum_of(source: Source, namespace: Namespace, run_id: str, shown: str) -> str | None:
    """The checksum that an export of a run under the id `shown` would tell; None if there is no such run.

    A run that is being imported is not one yet. Cost: that of exporting it.
    """
    with source.moment() as moment:
        try:
            if not exists(moment, namespace, run_id):
                return None
        except Unfinished:
            return None
        checksum = Checksum()
        for line in _RunWriter(moment, namespace, run_id, silent, Exported(""), shown).lines():
            checksum.update(line)
        return checksum.text()


def _export(
    source: Source, namespace: Namespace, wanted: list[str] | None, file: Path | str | BinaryIO,
    progress: Progress,
) -> Exported:
    name = str(file) if isinstance(file, Path | str) else getattr(file, "name", "stream")
    report = Exported(str(name), source.name)
    with _opened(file) as out:
        writer = _Writer(out, report)
        writer.write(lines.header_line())
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


class _Writer:
    """The file, and what is in it so far."""

    def __init__(self, out: BinaryIO, report: Exported) -> None:
        self._out = out
        self._report = report
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
            kept = self.checksum.copy(), {name: getattr(self._report, name) for name in _COUNTED}
            try:
                return self._try(source, namespace, run_id, progress)
            except SnapshotTooOldError:
                if not left or not self._can_go_back:
                    raise
                self._out.seek(before)
                self._out.truncate()
                self.checksum = kept[0]
                for name, value in kept[1].items():
                    setattr(self._report, name, value)
        raise AssertionError("unreachable")

    def _try(self, source: Source, namespace: Namespace, run_id: str, progress: Progress) -> bool:
        with source.moment() as moment:
            if not exists(moment, namespace, run_id):
                return False
            written = _RunWriter(moment, namespace, run_id, progress, self._report)
            checksum = Checksum()
            for line in written.lines():
                checksum.update(line)
                self.write(line)
            self.write(lines.end_line(run_id, written.counts(), checksum.text()))
        return True


_COUNTED: Final = ("kv", "cells", "events", "traces", "bytes")


class _RunWriter:
    """The lines of one run at one moment, the last one left out."""

    def __init__(
        self, moment: Moment, namespace: Namespace, run_id: str, progress: Progress, report: Exported,
        shown: str = "",
    ) -> None:
        self._moment = moment
        self._run = StoredRun(moment, namespace, run_id)
        self._run_id = run_id
        self._shown = shown or run_id  # in the file
        self._progress = progress
        self._report = report
        self._counts = dict.fromkeys(Counts._fields, 0)

    def counts(self) -> Counts:
        """Of the records that were written."""
        return Counts(**self._counts)

    def lines(self) -> Iterator[bytes]:
        """All of them, in order.

        Raises:
            CorruptionError: names the run and what is damaged in it.
        """
        try:
            yield self._head()
            for name, record in self._run.records(TypeTag.KV):
                yield self._counted("kv", lines.kv_line(name, record))
            for name, record in self._run.records(TypeTag.STATE):
                yield self._counted("cells", lines.cell_line(name, record))
            for event in self._events():
                yield self._counted("events", lines.event_line(event))
            for one in self._run.trace_tree():
                yield self._counted("traces", lines.trace_line(one))
        except (ValueError, TypeError) as error:  # whatever a decoder says; InmemErrors of input too
            raise self._damaged(str(error)[:300]) from None
        in_order = sum(1 for _ in self._run.records(TypeTag.TRACE))
        if in_order != self._counts["traces"]:
            raise self._damaged(f"the indices lead to {self._counts['traces']} of {in_order} traces")

    def _counted(self, kind: str, line: bytes) -> bytes:
        self._counts[kind] += 1
        setattr(self._report, kind, getattr(self._report, kind) + 1)
        if self._report.records % _TELL_EVERY == 0:
            self._progress(self._report)
        return line

    def _damaged(self, problem: str) -> CorruptionError:
        return CorruptionError(f"run {self._run_id} cannot be exported: {problem}", hint=_DAMAGED)

    def _head(self) -> bytes:
        prefix = self._run.prefix
        first = self._moment.first(*range_of(prefix, TypeTag.EVENT))
        mark = self._moment.get(cell.mark_key(prefix))
        return lines.run_line(
            self._shown, self._run.metadata(),
            None if first is None else event_log.unpack(0, payload_of(first[1])).chain,
            cell.version_in(None if mark is None else payload_of(mark)),
        )

    def _events(self) -> Iterator[event_log.StoredEvent]:
        previous: event_log.StoredEvent | None = None
        for number, (name, record) in enumerate(self._run.records(TypeTag.EVENT)):
            event = event_log.unpack(int.from_bytes(name, "big"), payload_of(record))
            if event.sequence != number:
                raise self._damaged(f"event {number} is missing")
            problem = event_log.problem_with(previous, event)
            if problem is not None:
                raise self._damaged(f"event {number}: {problem}")
            yield event
            previous = event


# --- the file -------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path | str | BinaryIO) -> Iterator[BinaryIO]:
    """The stream, or a new file that takes its name at the end; a device or a pipe is written to."""
    if not isinstance(file, Path | str):
        yield file
        return
    target = Path(os.path.realpath(file))
    if target.exists() and not target.is_file():
        with target.open("wb") as out:
            yield out
        return
    name = target.parent / f".{target.name}.{secrets.token_hex(8)}.part"
    try:  # before there is a file: an interrupt may come as soon as there is one
        fd = open_private(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with os.fdopen(fd, "w+b", buffering=1 << 20) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, target)
        sync_directory(target.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
