"""Import: an export read back, each run whole or not at all.

Nothing is sent before the whole file has been checked. A run that fits one
commit is there at once. A larger one comes in many commits; until the last of
them nobody else can write into it, list it, or export it. If the import is
killed, importing the file again begins such a run anew, and leaves finished
runs alone.

The writer checks the rules that an imported run has to keep, see
`inmem.primitives.importing`. The file is checked too, so that an error names
its line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from inmem.changes import Table
from inmem.client.direct import commit_call
from inmem.client.pipeline import Submits
from inmem.database import Database
from inmem.errors import InmemError, InvalidInputError, RunDeletedError, RunExistsError, RunNotFoundError
from inmem.exchange.counted import Counted
from inmem.exchange.export import checksum_of
from inmem.exchange.given import GivenFile, given_file
from inmem.exchange.line_reader import LineReader, LineRecord, Part, RunEnd, RunStart
from inmem.exchange.reading import run_id_of, source_of
from inmem.keys import check_run_id, fence_of
from inmem.primitives import import_mark
from inmem.primitives.counts import pack
from inmem.primitives.import_mark import TOKEN_BYTES
from inmem.reading.runs import is_whole, unfinished
from inmem.scopes import RunScope
from inmem.writeset import OP_CALL, WriteSet

_GROUP: Final = 1000  # records in one commit: others wait no longer than some ten milliseconds
_GROUP_ENTRIES: Final = 4000  # that they come to, with those of their tags
_GROUP_BYTES: Final = 1024 * 1024  # of their lines; one line may be larger
_WINDOW: Final = 4  # commits on their way: the writer works while the next is parsed
_TIMEOUT_S: Final = 120.0  # of one commit: a writer that was killed may have much to recover
_TELL_EVERY: Final = 2000  # records between two words of progress


@dataclass(slots=True)
class Imported(Counted):
    """What was imported.

    `unchanged` are runs that were there already just as the file has them,
    `skipped` those that were passed over though they differ, and `cleared`
    those of which a killed import had left something.
    """

    unchanged: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)


Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes of the file


def silent(_what: str, _done: int, _total: int) -> None:
    """A progress that nobody follows."""


def import_runs(
    database: Database, file: Path | str | BinaryIO, *, skip_existing: bool = False,
    rename: Mapping[str, str | RunScope] | None = None, progress: Progress = silent,
) -> Imported:
    """Import the runs of an export into the database's namespace.

    The whole file is proved first: counts, checksums, hash chains. A run that
    is there already exactly as in the file is left alone, so an import that
    was interrupted is simply repeated. `rename` gives runs other ids, also
    where they are named as parents. The file may be compressed (gzip, bzip2,
    xz), a pipe, or a stream that is open. What is imported is durable when
    this returns. Cost: about 60 µs a record; memory does not grow with a
    run, but for the names of its queues.

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
        InvalidInputError: it is a file of another kind, or a directory.
        RunExistsError: a run exists and is not as in the file. Nothing was imported.
        RunDeletedError: a run of this id was deleted. Nothing was imported.
        BusyError: another import of the same run began later.
        InmemError: whatever the writer refuses; the run at which that was is not imported.
    """
    names = {check_run_id(old): run_id_of(database, new) for old, new in (rename or {}).items()}
    with given_file(file) as given:
        report = Imported(given.name)
        plan = _prove(database, given, names, skip_existing, progress)
        report.unchanged, report.skipped = sorted(plan.unchanged), sorted(plan.skipped)
        _load(database, given, names, plan, report, progress)
    database.sync()
    return report


def discard_import(database: Database, run_id: str | RunScope) -> None:
    """Give up an import that was killed, and remove what has come of its run. Cost: that of `delete_run`.

    An import that is still alive fails. The id of the run stays free.

    Raises:
        RunNotFoundError: no import of this run is unfinished.
    """
    namespace = database.namespace.prefix()
    run_id = run_id_of(database, run_id)
    arguments = [namespace, run_id, b""]
    if not commit_call(database.engine, "import.abort", arguments, database.settings.timeout_s)[0]:
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
    database: Database, given: GivenFile, names: Mapping[str, str], skip_existing: bool, progress: Progress
) -> _Plan:
    """Read all of the file, and compare it with what is stored."""
    source, namespace = source_of(database), database.namespace
    with source.moment() as moment:
        deleted = {bytes(d) for d, v in moment.rows(Table.FENCES) if not import_mark.is_mark(v)}
    plan = _Plan()
    there = False
    targets: set[str] = set()
    absent = set(names)
    for part in _parts(given, "verifying", progress):
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
                there = is_whole(moment, namespace, target)
        elif isinstance(part, RunEnd) and there:
            target = names.get(part.run_id, part.run_id)
            if checksum_of(source, namespace, target, part.run_id) == part.checksum:
                plan.unchanged.add(target)
            elif skip_existing:
                plan.skipped.add(target)
            else:
                raise RunExistsError(
                    f"run {target} exists, and is not what {given.name} holds", run_id=target,
                    hint="Pass over it with --skip-existing, or import it as another: --rename OLD=NEW.",
                )
    if absent:
        raise InvalidInputError(f"{given.name} has no run {min(absent)} to rename", argument="rename")
    return plan


def _parts(given: GivenFile, doing: str, progress: Progress) -> Iterator[Part]:
    """The parts of a file; tells now and then how far it is."""
    with given.reading() as stream:
        for number, part in enumerate(LineReader(stream, given.name)):
            if number % _TELL_EVERY == 0:
                progress(doing, given.position(), given.size)
            yield part


def _load(
    database: Database, given: GivenFile, names: Mapping[str, str], plan: _Plan, report: Imported,
    progress: Progress,
) -> None:
    sessions = database.engine.session()
    session = sessions.take()  # for all runs; given back when all went well
    loader: RunLoader | None = None
    passed = False
    try:
        for part in _parts(given, "importing", progress):
            if isinstance(part, RunStart):
                target = names.get(part.run_id, part.run_id)
                passed = target in plan.unchanged or target in plan.skipped
                loader = None if passed else RunLoader(database, session, target, part, names)
            elif loader is not None and isinstance(part, LineRecord):
                loader.take(part)
            elif loader is not None and isinstance(part, RunEnd):
                if loader.finish(part):
                    report.cleared.append(loader.run_id)
                loader = None
                report.runs += 1
                for name, count in part.counts.items():
                    report.counts[name] += count
    except BaseException as error:
        if loader is not None:
            loader.abort(error)
        raise
    sessions.give_back(session)
    report.bytes = given.size
    progress("importing", given.size, given.size)


class RunLoader:
    """One run on its way."""

    def __init__(
        self, database: Database, session: Submits, run_id: str, start: RunStart, names: Mapping[str, str]
    ) -> None:
        self.run_id = run_id
        self._engine = database.engine
        self._session = session
        self._namespace = database.namespace.prefix()
        self._prefix = database.namespace.run_prefix(run_id)
        self._token = os.urandom(TOKEN_BYTES)
        self._chain = start.chain
        self._record = start.record
        if self._record is not None:
            self._record[1] = names.get(self._record[1], self._record[1])
        self._taken: dict[str, int] = {}  # records of each kind
        self._ops: list[Any] = []
        self._items: list[Any] = []  # of the last call in these
        self._kind = ""
        self._count = self._entries = self._bytes = 0
        self._sent: list[int] = []
        self._first: int | None = None  # the commit that began the run
        self._cleared = False
        self._call("import.begin", self._namespace, run_id, self._token, start.cell_mark)

    def _call(self, procedure: str, *arguments: Any) -> None:
        self._ops.append([OP_CALL, procedure, list(arguments)])

    def take(self, record: LineRecord) -> None:
        """Send a record, with others."""
        entries = 4 + sum(len(part) for part in record.item if isinstance(part, list))
        if self._count >= _GROUP or (
            self._count
            and (self._entries + entries > _GROUP_ENTRIES or self._bytes + record.bytes > _GROUP_BYTES)
        ):
            self._send()
        kind = record.form.kind
        if kind != self._kind:
            self._kind, self._items = kind, []
            place = record.form.place(self._chain, self._taken.get(kind, 0))
            self._call(record.form.procedure, self._prefix, self._token, *place, self._items)
        self._items.append(record.item)
        self._taken[kind] = self._taken.get(kind, 0) + 1
        self._count += 1
        self._entries += entries
        self._bytes += record.bytes

    def finish(self, end: RunEnd) -> bool:
        """Send the rest, and wait for all; whether something of an earlier import was removed."""
        self._call(
            "import.finish", self._namespace, self.run_id, self._token, pack(end.counts), self._record
        )
        self._send()
        while self._sent:
            self._settle()
        return self._cleared

    def _send(self) -> None:
        body = WriteSet(ops=self._ops).encode()
        self._ops, self._kind, self._count, self._entries, self._bytes = [], "", 0, 0, 0
        while self._sent and (len(self._sent) >= _WINDOW or not self._session.has_room(body)):
            self._settle()
        sequence = self._session.submit(body, sync=False, timeout_s=_TIMEOUT_S)
        self._first = self._first or sequence
        self._sent.append(sequence)

    def _settle(self) -> None:
        sequence = self._sent.pop(0)
        results = self._session.outcome(sequence, _TIMEOUT_S).results
        self._session.forget(sequence)
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
                commit_call(self._engine, "import.abort", arguments, _TIMEOUT_S)
        except InmemError as later:
            error.add_note(f"what has come of run {self.run_id} could not be removed: {later}")
