"""Import: an export read back, each run whole or not at all.

Invariant: nothing is sent before all of the file has been proved; a run is
closed to everybody else until its last record has come, and only then gets
the record by which it is found. A run that fits one commit is there at once.
Of a larger one the records come in many commits, and until the last of them
nobody can write into it, list it, or export it. Whatever is killed, importing
the file again begins such a run anew, and leaves alone what is there already.

The rules that an imported run has to keep are checked by the writer, see
`inmem.commit.import_procedures`; the checks of the file are there to tell
what is wrong by its line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from inmem.client.direct import commit_call
from inmem.database import Database
from inmem.errors import InmemError, InvalidInputError, RunDeletedError, RunExistsError, RunNotFoundError
from inmem.exchange.export import checksum_of, exists
from inmem.exchange.lines import Reader, Record, RunEnd, RunStart
from inmem.exchange.reading import source_of, unfinished
from inmem.keys import check_run_id
from inmem.model import importing
from inmem.model.importing import TOKEN_BYTES, fence_of
from inmem.storage.environment import Table
from inmem.writeset import OP_CALL, WriteSet

_GROUP: Final = 1000  # records in one commit: others wait no longer than some ten milliseconds
_GROUP_BYTES: Final = 1024 * 1024  # of their lines; one line may be larger
_WINDOW: Final = 4  # commits on their way: the writer works while the next is parsed
_TIMEOUT_S: Final = 120.0  # of one commit: a writer that was killed may have much to recover
_TELL_EVERY: Final = 2000  # records between two words of progress

_PROCEDURES: Final = {
    "kv": "import.entries", "cell": "import.cells", "event": "import.events", "trace": "import.traces"
}


@dataclass(slots=True)
class Imported:
    """What was imported.

    `unchanged` are runs that were there already just as the file has them,
    `skipped` those that were passed over though they differ, and `cleared`
    those of which a killed import had left something.
    """

    file: str
    runs: int = 0
    kv: int = 0
    cells: int = 0
    events: int = 0
    traces: int = 0
    bytes: int = 0
    unchanged: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        """All of them."""
        return self.kv + self.cells + self.events + self.traces


Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes of the file


def silent(_what: str, _done: int, _total: int) -> None:
    """A progress that nobody follows."""


def import_runs(
    database: Database, file: Path | str, *, skip_existing: bool = False,
    rename: Mapping[str, str] | None = None, progress: Progress = silent,
) -> Imported:
    """Import the runs of an export into the database's namespace.

    The whole file is proved first: counts, checksums, hash chains. A run that
    is there already exactly as in the file is left alone, so an import that
    was interrupted is simply repeated. `rename` gives runs other ids, also
    where they are named as parents. What is imported is durable when this
    returns. Cost: about 60 µs a record; memory does not grow with a run.

    >>> import inmem, inmem.exchange, os, tempfile
    >>> with tempfile.TemporaryDirectory() as place, inmem.open() as db:
    ...     file = os.path.join(place, "runs.jsonl")
    ...     run = db.runs.create_run(run_id="run-1", tags=["nightly"])
    ...     exported = inmem.exchange.export_runs(db, file)
    ...     imported = inmem.exchange.import_runs(db, file, rename={"run-1": "run-2"})
    ...     db.runs.get_run("run-2").tags
    ('nightly',)

    Raises:
        CorruptionError: the file is damaged; names file, line and offset. Nothing was imported.
        FormatVersionError: another release wrote the file.
        RunExistsError: a run exists and is not as in the file. Nothing was imported.
        RunDeletedError: a run of this id was deleted. Nothing was imported.
        BusyError: another import of the same run began later.
        InmemError: whatever the writer refuses; the run at which that was is not imported.
    """
    names = {check_run_id(old): check_run_id(new) for old, new in (rename or {}).items()}
    path = Path(file)
    report = Imported(str(path))
    total = path.stat().st_size
    with path.open("rb", buffering=1 << 20) as stream:
        plan = _prove(database, stream, path, names, skip_existing, progress, total)
    report.unchanged, report.skipped = sorted(plan.unchanged), sorted(plan.skipped)
    with path.open("rb", buffering=1 << 20) as stream:
        _load(database, stream, path, names, plan, report, progress, total)
    database.sync()
    return report


def discard_import(database: Database, run_id: str) -> None:
    """Give up an import that was killed, and remove what has come of its run. Cost: that of `delete_run`.

    An import that is still alive fails. The id of the run stays free.

    Raises:
        RunNotFoundError: no import of this run is unfinished.
    """
    namespace = database.namespace.prefix()
    arguments = [namespace, check_run_id(run_id), b""]
    if not commit_call(database._attachment, "import.abort", arguments, database.settings.timeout_s)[0]:
        raise RunNotFoundError(f"no import of run {run_id} is unfinished", run_id=run_id)


def unfinished_imports(database: Database) -> list[str]:
    """The runs of the database's namespace whose import has begun and not ended."""
    with source_of(database).moment() as moment:
        return unfinished(moment, database.namespace)


@dataclass(slots=True)
class _Plan:
    """What need not be imported."""

    unchanged: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)


def _prove(
    database: Database, stream: BinaryIO, path: Path, names: Mapping[str, str], skip_existing: bool,
    progress: Progress, total: int,
) -> _Plan:
    """Read all of the file, and compare it with what is stored."""
    source, namespace = source_of(database), database.namespace
    with source.moment() as moment:
        deleted = {bytes(d) for d, v in moment.table(Table.FENCES) if not importing.is_mark(v)}
    plan = _Plan()
    reader = Reader(stream, str(path))
    there = False
    targets: set[str] = set()
    absent = set(names)
    for number, part in enumerate(reader):
        if number % _TELL_EVERY == 0:
            progress("verifying", reader.offset, total)
        if isinstance(part, RunStart):
            target = names.get(part.run_id, part.run_id)
            if names:  # without, the order of the file shows that ids are unique
                if target in targets:
                    raise InvalidInputError(f"two runs would get the id {target}", argument="rename")
                targets.add(target)
                absent.discard(part.run_id)
            if fence_of(namespace.run_prefix(target)) in deleted:
                raise RunDeletedError(
                    f"run {target} was deleted: its id is never used again", run_id=target,
                    hint="Import it under another id: --rename OLD=NEW.",
                )
            with source.moment() as moment:
                there = exists(moment, namespace, target)
        elif isinstance(part, RunEnd) and there:
            target = names.get(part.run_id, part.run_id)
            if checksum_of(source, namespace, target, part.run_id) == part.checksum:
                plan.unchanged.add(target)
            elif skip_existing:
                plan.skipped.add(target)
            else:
                raise RunExistsError(
                    f"run {target} exists, and is not what {path} holds", run_id=target,
                    hint="Pass over it with --skip-existing, or import it as another: --rename OLD=NEW.",
                )
    if absent:
        raise InvalidInputError(f"{path} has no run {min(absent)} to rename", argument="rename")
    return plan


def _load(
    database: Database, stream: BinaryIO, path: Path, names: Mapping[str, str], plan: _Plan,
    report: Imported, progress: Progress, total: int,
) -> None:
    reader = Reader(stream, str(path))
    loader: _Loader | None = None
    passed = False
    number = 0
    try:
        for number, part in enumerate(reader):
            if number % _TELL_EVERY == 0:
                progress("importing", reader.offset, total)
            if isinstance(part, RunStart):
                target = names.get(part.run_id, part.run_id)
                passed = target in plan.unchanged or target in plan.skipped
                loader = None if passed else _Loader(database, target, part, names)
            elif loader is not None and isinstance(part, Record):
                loader.take(part)
            elif loader is not None and isinstance(part, RunEnd):
                if loader.finish(part):
                    report.cleared.append(loader.run_id)
                loader = None
                report.runs += 1
                for kind, count in part.counts._asdict().items():
                    setattr(report, kind, getattr(report, kind) + count)
    except BaseException as error:
        if loader is not None:
            loader.abort(error)
        raise
    report.bytes = reader.offset
    progress("importing", total, total)


class _Loader:
    """One run on its way."""

    def __init__(self, database: Database, run_id: str, start: RunStart, names: Mapping[str, str]) -> None:
        self.run_id = run_id
        self._attachment = database._attachment
        self._session = database._attachment.session()
        self._namespace = database.namespace.prefix()
        self._prefix = database.namespace.run_prefix(run_id)
        self._token = os.urandom(TOKEN_BYTES)
        self._chain = start.chain
        self._record = start.record
        if self._record is not None:
            self._record[1] = names.get(self._record[1], self._record[1])
        self._events = 0
        self._ops: list[Any] = []
        self._items: list[Any] = []  # of the last call in these
        self._kind = ""
        self._count = self._bytes = 0
        self._sent: list[int] = []
        self._first: int | None = None  # the commit that began the run
        self._cleared = False
        self._call("import.begin", self._namespace, run_id, self._token, start.cell_mark)

    def _call(self, procedure: str, *arguments: Any) -> None:
        self._ops.append([OP_CALL, procedure, list(arguments)])

    def take(self, record: Record) -> None:
        """Send a record, with others."""
        if self._count >= _GROUP or (self._count and self._bytes + record.bytes > _GROUP_BYTES):
            self._send()
        if record.kind != self._kind:
            self._kind, self._items = record.kind, []
            place = [self._chain, self._events] if record.kind == "event" else []
            self._call(_PROCEDURES[record.kind], self._prefix, self._token, *place, self._items)
        self._items.append(record.item)
        self._events += record.kind == "event"
        self._count += 1
        self._bytes += record.bytes

    def finish(self, end: RunEnd) -> bool:
        """Send the rest, and wait for all; whether something of an earlier import was removed."""
        self._call(
            "import.finish", self._namespace, self.run_id, self._token, list(end.counts), self._record
        )
        self._send()
        while self._sent:
            self._settle()
        return self._cleared

    def _send(self) -> None:
        body = WriteSet(ops=self._ops).encode()
        self._ops, self._kind, self._count, self._bytes = [], "", 0, 0
        while self._sent and (len(self._sent) >= _WINDOW or not self._session.has_room(body)):
            self._settle()
        sequence = self._session.submit(body, sync=False, timeout_s=_TIMEOUT_S)
        self._first = self._first or sequence
        self._sent.append(sequence)

    def _settle(self) -> None:
        sequence = self._sent.pop(0)
        results = self._session.outcome(sequence, _TIMEOUT_S).results
        if sequence == self._first:
            self._cleared = results[0]

    def abort(self, error: BaseException) -> None:
        """Remove what has come, as far as that is possible: if not, the run stays closed."""
        try:
            while self._sent:
                try:
                    self._settle()
                except InmemError:
                    continue  # the first of them is why we are here
            if self._first is not None:
                arguments = [self._namespace, self.run_id, self._token]
                commit_call(self._attachment, "import.abort", arguments, _TIMEOUT_S)
        except InmemError as later:
            error.add_note(f"what has come of run {self.run_id} could not be removed: {later}")
