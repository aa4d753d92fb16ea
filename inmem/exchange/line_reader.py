"""Reading an export: line by line, each proved before it is passed on.

What a reader yields has been proved as far as a file can prove it: each line
has the form of its kind and holds what the store could hold, lines come in
the order in which they are written, and counts and checksums agree.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from inmem.errors import CorruptionError, FormatVersionError
from inmem.exchange.lines import (
    FIRST_VERSION,
    RECORD_FIELDS,
    SCHEMA,
    Checksum,
    newest_version,
    shown_counts,
)
from inmem.jsonvalues import loads
from inmem.keys import check_run_id
from inmem.primitives import server
from inmem.primitives.events import rules as event_log
from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import LineForm
from inmem.primitives.runs import rules as run

MAX_LINE_BYTES: Final = 256 * 1024 * 1024  # a trace may hold two values, and text grows sixfold in ASCII

_HINT: Final = "The file is damaged, or was changed after its export: export again."


@dataclass(frozen=True, slots=True)
class RunStart:
    """A run begins; `record` as the commit procedure takes it."""

    run_id: str
    record: list[Any] | None
    chain: int
    cell_mark: int


class LineRecord(NamedTuple):
    """One record, as the import procedure of its kind takes it; `bytes` of its line."""

    form: LineForm
    item: list[Any]
    bytes: int


@dataclass(frozen=True, slots=True)
class RunEnd:
    """A run was whole; `checksum` is of its lines."""

    run_id: str
    counts: dict[str, int]
    checksum: str


Part = RunStart | LineRecord | RunEnd


class LineReader:
    """Reads an export, line by line, in bounded memory.

    A trace keeps the ids above it in memory, nothing else grows with the file.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name
        self.line = 0  # number of the line that was read last
        self.offset = 0  # of its end
        self.runs = 0
        self._start = 0  # of its beginning
        self._all = Checksum()  # of all lines before it
        self._of_run = Checksum()  # of the records' lines of the run, up to it
        self._current = b""
        self._fields = LineFields(self.fail)
        self._kinds: list[tuple[str, LineForm]] = []  # what is counted, and the lines, in their order

    def __iter__(self) -> Iterator[Part]:
        """The parts in order.

        Raises:
            CorruptionError: names file, line and offset.
            FormatVersionError: another release wrote the file.
        """
        self._header()
        previous = ""
        while (document := self._next())["kind"] == "run":
            run_id: str = self._fields.checked(lambda: check_run_id(document.get("run_id")))
            if run_id <= previous:
                self.fail(f"run {run_id} does not come after run {previous}")
            previous = run_id
            yield from self._run(run_id, document)
            self.runs += 1
        self._close(document)

    def _header(self) -> None:
        document = self._parse(self._read())
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            self.fail(f"this is not the first line of a file of schema {SCHEMA}")
        version = document.get("version")
        newest = newest_version()
        if type(version) is not int or not FIRST_VERSION <= version <= newest:
            raise FormatVersionError(
                f"{self.name}, line 1: an export of version {version!r:.20}, this release reads {newest}",
                found=version, supported=newest, hint="Use the inmem release that exported it.",
            )
        self._fields.exactly(document, "schema", "version")
        self._kinds = [(name, form) for name, form in server.line_forms() if form.since <= version]

    def _run(self, run_id: str, document: dict[str, Any]) -> Iterator[Part]:
        self._fields.exactly(document, "kind", "run_id", "record", "chain", "deleted_cell_version")
        name = document["chain"]
        if name is not None and name not in event_log.CHAIN_IDS:
            self.fail(f"there is no chain {name!r:.40}")
        chain = event_log.CHAIN_IDS[name or "xxh3"]
        begun = self.line
        cell_mark = self._fields.integer(document, "deleted_cell_version", 0)
        yield RunStart(run_id, self._record(document["record"]), chain, cell_mark)
        self._fields.of_run = {}
        parsers = {form.kind: form.parser(self._fields, chain) for _, form in self._kinds}
        order = [form.kind for _, form in self._kinds]
        counts = {name: 0 for name, _ in self._kinds}
        at = 0  # in the order of kinds
        while (kind := (document := self._next())["kind"]) in parsers:
            if order.index(kind) < at:
                self.fail(f"a record of kind {kind} after one of kind {order[at]}")
            at = order.index(kind)
            counted, form = self._kinds[at]
            counts[counted] += 1
            yield LineRecord(form, parsers[kind](document), self.offset - self._start)
        if kind != "end" or document.get("run_id") != run_id:
            self.fail(f"run {run_id} has no end before this")
        told = shown_counts(counts)
        self._fields.exactly(document, "kind", "run_id", *told, "checksum")
        if any(document[name] != count for name, count in told.items()):
            self.fail(f"run {run_id} has {told}: other numbers are told here")
        checksum = self._of_run.text()
        if document["checksum"] != checksum:
            self.fail(f"lines {begun} to {self.line - 1}, run {run_id}, do not have the checksum told here")
        if (name is None) is not (counts["events"] == 0):
            self.fail(f"run {run_id} has {counts['events']} events and the chain {name}")
        yield RunEnd(run_id, counts, checksum)

    def _close(self, document: dict[str, Any]) -> None:
        if document["kind"] != "close":
            self.fail(f"a line of kind {document['kind']!r:.40} outside of a run")
        self._fields.exactly(document, "kind", "runs", "checksum")
        if document["runs"] != self.runs or type(document["runs"]) is not int:
            self.fail(f"there are {self.runs} runs before this, and not {document['runs']!r:.40}")
        if document["checksum"] != self._all.text():
            self.fail(f"lines 1 to {self.line - 1} do not have the checksum told here")
        if self._readline(1):
            self._start = self.offset
            self.line += 1
            self.fail("there is more after the last line")

    # --- one line ---------------------------------------------------------------------

    def fail(self, problem: str, hint: str = _HINT) -> NoReturn:
        """What is wrong with the line that was read last.

        Raises:
            CorruptionError: always.
        """
        raise CorruptionError(
            f"{self.name}, line {self.line}: {problem}", file=self.name, offset=self._start, hint=hint
        )

    def _next(self) -> dict[str, Any]:
        line = self._read()
        document = self._parse(line)
        if type(document) is not dict or type(document.get("kind")) is not str:
            self.fail("no object with a kind")
        if document["kind"] == "run":
            self._of_run = Checksum()
        if document["kind"] not in ("end", "close"):
            self._of_run.update(line)
        return document

    def _read(self) -> bytes:
        self._start = self.offset
        self._all.update(self._current)
        line = self._current = self._readline(MAX_LINE_BYTES)
        self.line += 1
        self.offset += len(line)
        if not line:
            self.fail("the file ends here, before its last line" if self._start else "the file is empty")
        if line[-1:] != b"\n":
            whole = len(line) < MAX_LINE_BYTES
            self.fail("the file ends within this line" if whole else "the line is too long")
        if line[-2:] == b"\r\n":
            self.fail("the line ends with CR LF", "A program has changed it: undo that with `dos2unix FILE`.")
        return line

    def _readline(self, limit: int) -> bytes:
        try:
            return self._file.readline(limit)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self.line += 1
            self.fail(f"it cannot be decompressed from here on: {error}")

    def _parse(self, line: bytes) -> Any:
        try:
            return loads(line)
        except ValueError as error:
            self.fail(str(error))

    def _record(self, record: Any) -> list[Any] | None:
        """The record of a run. Whether its fields agree is for the commit procedure to say."""
        fields = self._fields
        if record is None:
            return None
        if type(record) is not dict:
            self.fail("record is no object")
        fields.exactly(record, *RECORD_FIELDS)
        parent, error, metadata = record["parent_run"], record["error"], record["metadata"]
        return [
            fields.checked(lambda: run.check_status(record["status"], "status").value),
            "" if parent is None else fields.checked(lambda: check_run_id(parent, "parent_run")),
            fields.integer(record, "created_at"), fields.integer(record, "updated_at"),
            0 if record["completed_at"] is None else fields.integer(record, "completed_at"),
            fields.labels(record["tags"]), fields.mapping(metadata, "metadata"),
            None if error is None else fields.text(error, "error"), fields.integer(record, "version"),
        ]  # fmt: skip
