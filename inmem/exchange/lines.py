"""The lines of an export: how records become lines, and how lines are taken at their word.

Invariant: what `Reader` yields has been proved as far as a file can prove it:
each line has the form of its kind and holds what the store could hold, lines
come in the order in which they are written, every event follows from the one
before, and counts and checksums agree. docs/EXPORT.md describes the schema
for readers and writers in other languages. Knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal, NamedTuple, NoReturn

import xxhash

from inmem import values
from inmem.errors import CorruptionError, FormatVersionError, InmemError
from inmem.exchange.jsonvalues import dumps, loads, needs_marks, to_json
from inmem.keys import MAX_NAME_BYTES, check_run_id, check_tag_count, encode_id, encode_label, encode_name
from inmem.model import cell, event_log, run, trace
from inmem.model.importing import Counts
from inmem.record import expires_at, payload_of, timestamp_of

SCHEMA: Final = "inmem-export"
VERSION: Final = 1
MAX_LINE_BYTES: Final = 256 * 1024 * 1024  # a trace may hold two values, and text grows sixfold in ASCII

CHAIN_NAMES: Final = {number: name for name, number in event_log.CHAIN_IDS.items()}
ORDER: Final = ("kv", "cell", "event", "trace")  # of the records of a run

_MAX: Final = (1 << 63) - 1
_RECORD: Final = (
    "parent_run", "status", "created_at", "updated_at", "completed_at", "tags", "metadata", "error", "version"
)  # fmt: skip
_NAMED_BODIES: Final = {cls: name for name, cls in trace.BODY_NAMES.items()}
_HINT: Final = "The file is damaged, or was changed after its export: export again."


class Checksum:
    """xxh3-128 over lines, as 32 hexadecimal digits."""

    def __init__(self, state: xxhash.xxh3_128 | None = None) -> None:
        self._state = xxhash.xxh3_128() if state is None else state
        self.update = self._state.update

    def copy(self) -> Checksum:
        """One that goes on by itself from here."""
        return Checksum(self._state.copy())

    def text(self) -> str:
        """Of what has come so far."""
        return self._state.hexdigest()


# --- records to lines -----------------------------------------------------------------------------


def header_line() -> bytes:
    """The first line. It says nothing of when and where: equal stores give equal files."""
    return dumps({"schema": SCHEMA, "version": VERSION})


def run_line(run_id: str, record: run.RunMetadata | None, chain: int | None, cell_mark: int) -> bytes:
    """The first line of a run."""
    described = None
    if record is not None:
        described = {name: getattr(record, name) for name in _RECORD}
        described |= {
            "status": record.status.value, "tags": list(record.tags), "metadata": to_json(record.metadata)
        }
    return dumps({
        "kind": "run", "run_id": run_id, "record": described,
        "chain": None if chain is None else CHAIN_NAMES[chain], "deleted_cell_version": cell_mark,
    })


def kv_line(key: bytes, record: bytes) -> bytes:
    """A KV entry."""
    return dumps({
        "kind": "kv", "key": key.decode(), "value": _value(payload_of(record)),
        "timestamp": timestamp_of(record), "expires_at": expires_at(record) or None,
    })


def cell_line(name: bytes, record: bytes) -> bytes:
    """A cell."""
    payload = payload_of(record)
    return dumps({
        "kind": "cell", "name": name.decode(), "value": _value(cell.value_in(payload)),
        "version": cell.version_in(payload), "updated_at": timestamp_of(record),
    })


def event_line(event: event_log.StoredEvent) -> bytes:
    """An event. A payload that is not as the codec writes it goes as it is: its hash covers the bytes."""
    value = values.decode(event.payload)
    plain = values.encode(value) == event.payload
    document = {
        "kind": "event", "sequence": event.sequence, "event_type": event.event_type.decode(),
        "timestamp": event.timestamp, "prev_hash": event.prev_hash.hex(), "hash": event.hash.hex(),
    }
    if plain:
        document["payload"] = to_json(value) if needs_marks(event.payload) else value
    else:
        document["encoded_payload"] = to_json(event.payload)
    return dumps(document)


def trace_line(one: trace.Trace) -> bytes:
    """A trace."""
    body = {name: getattr(one.body, name) for name in type(one.body).__dataclass_fields__}
    return dumps({
        "kind": "trace", "id": one.id, "parent_id": one.parent_id,
        "body_type": _NAMED_BODIES[type(one.body)], "body": to_json(body), "tags": list(one.tags),
        "metadata": to_json(one.metadata), "timestamp": one.timestamp,
    })


def end_line(run_id: str, counts: Counts, checksum: str) -> bytes:
    """The last line of a run; the checksum is of all its lines before this one."""
    return dumps({"kind": "end", "run_id": run_id, **counts._asdict(), "checksum": checksum})


def close_line(runs: int, checksum: str) -> bytes:
    """The last line; the checksum is of all lines before it."""
    return dumps({"kind": "close", "runs": runs, "checksum": checksum})


def _value(payload: bytes) -> Any:
    value = values.decode(payload)
    return to_json(value) if needs_marks(payload) else value


# --- lines to records -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunStart:
    """A run begins; `record` as the commit procedure takes it."""

    run_id: str
    record: list[Any] | None
    chain: int
    cell_mark: int


class Record(NamedTuple):
    """One record, as the import procedure of its kind takes it; `bytes` of its line."""

    kind: Literal["kv", "cell", "event", "trace"]
    item: list[Any]
    bytes: int


@dataclass(frozen=True, slots=True)
class RunEnd:
    """A run was whole; `checksum` is of its lines."""

    run_id: str
    counts: Counts
    checksum: str


Part = RunStart | Record | RunEnd


class Reader:
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

    def __iter__(self) -> Iterator[Part]:
        """The parts in order.

        Raises:
            CorruptionError: names file, line and offset.
            FormatVersionError: another release wrote the file.
        """
        self._header()
        previous = ""
        while (document := self._next())["kind"] == "run":
            run_id: str = self._checked(lambda: check_run_id(document.get("run_id")))
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
        if version != VERSION or type(version) is not int:
            raise FormatVersionError(
                f"{self.name}, line 1: an export of version {version!r:.20}, this release reads {VERSION}",
                found=version, supported=VERSION, hint="Use the inmem release that exported it.",
            )
        self._fields(document, "schema", "version")

    def _run(self, run_id: str, document: dict[str, Any]) -> Iterator[Part]:
        self._fields(document, "kind", "run_id", "record", "chain", "deleted_cell_version")
        name = document["chain"]
        if name is not None and name not in event_log.CHAIN_IDS:
            self.fail(f"there is no chain {name!r:.40}")
        chain = event_log.CHAIN_IDS[name or "xxh3"]
        begun = self.line
        cell_mark = self._int(document, "deleted_cell_version", 0)
        yield RunStart(run_id, self._record(document["record"]), chain, cell_mark)
        of_run = _RunReader(self, chain)
        at = 0  # in the order of kinds
        counts = dict.fromkeys(ORDER, 0)
        while True:
            document = self._next()
            kind = document["kind"]
            if kind not in ORDER:
                break
            if ORDER.index(kind) < at:
                self.fail(f"a record of kind {kind} after one of kind {ORDER[at]}")
            at = ORDER.index(kind)
            counts[kind] += 1
            yield Record(kind, of_run.take[kind](document), self.offset - self._start)
        if kind != "end" or document.get("run_id") != run_id:
            self.fail(f"run {run_id} has no end before this")
        self._fields(document, "kind", "run_id", *Counts._fields, "checksum")
        found = Counts(*counts.values())
        if any(document[name] != count for name, count in found._asdict().items()):
            self.fail(f"run {run_id} has {found._asdict()}: other numbers are told here")
        checksum = self._of_run.text()
        if document["checksum"] != checksum:
            self.fail(f"lines {begun} to {self.line - 1}, run {run_id}, do not have the checksum told here")
        if (name is None) is not (found.events == 0):
            self.fail(f"run {run_id} has {found.events} events and the chain {name}")
        yield RunEnd(run_id, found, checksum)

    def _close(self, document: dict[str, Any]) -> None:
        if document["kind"] != "close":
            self.fail(f"a line of kind {document['kind']!r:.40} outside of a run")
        self._fields(document, "kind", "runs", "checksum")
        if document["runs"] != self.runs or type(document["runs"]) is not int:
            self.fail(f"there are {self.runs} runs before this, and not {document['runs']!r:.40}")
        if document["checksum"] != self._all.text():
            self.fail(f"lines 1 to {self.line - 1} do not have the checksum told here")
        if self._file.readline(1):
            self._start = self.offset
            self.line += 1
            self.fail("there is more after the last line")

    # --- one line ---------------------------------------------------------------------

    def fail(self, problem: str) -> NoReturn:
        """What is wrong with the line that was read last.

        Raises:
            CorruptionError: always.
        """
        raise CorruptionError(
            f"{self.name}, line {self.line}: {problem}", file=self.name, offset=self._start, hint=_HINT
        )

    def _next(self) -> dict[str, Any]:
        line = self._read()
        document = self._parse(line)
        if type(document) is not dict or type(document.get("kind")) is not str:
            self.fail("no object with a kind")
        if document["kind"] == "run":
            self._of_run = Checksum()
        if document["kind"] in ("run", *ORDER):
            self._of_run.update(line)
        return document

    def _read(self) -> bytes:
        self._start = self.offset
        self._all.update(self._current)
        line = self._current = self._file.readline(MAX_LINE_BYTES)
        self.line += 1
        self.offset += len(line)
        if not line:
            self.fail("the file ends here, before its last line" if self._start else "the file is empty")
        if line[-1:] != b"\n":
            whole = len(line) < MAX_LINE_BYTES
            self.fail("the file ends within this line" if whole else "the line is too long")
        return line

    def _parse(self, line: bytes) -> Any:
        try:
            return loads(line)
        except ValueError as error:
            self.fail(str(error))

    # --- fields -----------------------------------------------------------------------

    def _checked(self, check: Callable[[], Any]) -> Any:
        """What a check of the store returns; what it refuses is wrong with the line."""
        try:
            return check()
        except (InmemError, ValueError, TypeError, OverflowError) as error:
            self.fail(str(error)[:500])

    def _fields(self, document: dict[str, Any], *names: str) -> None:
        if document.keys() != set(names):
            wrong = sorted(document.keys() ^ set(names))
            self.fail(f"the fields are not {', '.join(names)}: see {wrong[0]!r:.40}")

    def _int(self, document: dict[str, Any], name: str, lowest: int = 1) -> int:
        value = document[name]
        if type(value) is not int or not lowest <= value <= _MAX:
            self.fail(f"{name} is not an integer from {lowest} to 2**63-1")
        return value

    def _record(self, record: Any) -> list[Any] | None:
        """The record of a run. Whether its fields agree is for the commit procedure to say."""
        if record is None:
            return None
        if type(record) is not dict:
            self.fail("record is no object")
        self._fields(record, *_RECORD)
        parent, error, metadata = record["parent_run"], record["error"], record["metadata"]
        return [
            self._checked(lambda: run.check_status(record["status"], "status").value),
            "" if parent is None else self._checked(lambda: check_run_id(parent, "parent_run")),
            self._int(record, "created_at"), self._int(record, "updated_at"),
            0 if record["completed_at"] is None else self._int(record, "completed_at"),
            self._labels(record["tags"]), self._map(metadata, "metadata"),
            None if error is None else self._text(error, "error"), self._int(record, "version"),
        ]  # fmt: skip

    def _labels(self, tags: Any) -> list[str]:
        if type(tags) is not list:
            self.fail("tags is no array")
        self._checked(lambda: [encode_label(tag, "tags") for tag in tags])
        self._checked(lambda: check_tag_count(len(tags)))
        if len(set(tags)) != len(tags):
            self.fail("a tag is there twice")
        return tags

    def _map(self, value: Any, name: str) -> bytes:
        if type(value) is not dict:
            self.fail(f"{name} is no object")
        return self._encoded(value, name)

    def _text(self, value: Any, name: str) -> str:
        if type(value) is not str:
            self.fail(f"{name} is no text")
        self._encoded(value, name)
        return value

    def _encoded(self, value: Any, name: str) -> bytes:
        try:
            return values.encode(value, name)
        except InmemError as error:
            self.fail(error.message[:500])


class _RunReader:
    """The records of one run, as they pass."""

    def __init__(self, reader: Reader, chain: int) -> None:
        self._reader = reader
        self._chain = chain
        self._last = {"kv": b"", "cell": b""}
        self._event: event_log.StoredEvent | None = None
        self._above: list[str] = []  # ids from a root down to the last trace
        self._place: list[tuple[int, str]] = []  # of each of these among its siblings
        self.take: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
            "kv": self._kv, "cell": self._cell, "event": self._next_event, "trace": self._trace,
        }

    def _kv(self, document: dict[str, Any]) -> list[Any]:
        reader = self._reader
        reader._fields(document, "kind", "key", "value", "timestamp", "expires_at")
        expires = document["expires_at"]
        return [
            self._name("kv", document["key"]), reader._encoded(document["value"], "value"),
            0 if expires is None else reader._int(document, "expires_at"), reader._int(document, "timestamp"),
        ]

    def _cell(self, document: dict[str, Any]) -> list[Any]:
        reader = self._reader
        reader._fields(document, "kind", "name", "value", "version", "updated_at")
        return [
            self._name("cell", document["name"]), reader._int(document, "version"),
            reader._int(document, "updated_at"), reader._encoded(document["value"], "value"),
        ]

    def _name(self, kind: str, name: Any) -> bytes:
        data: bytes = self._reader._checked(lambda: encode_name(name, "the name", MAX_NAME_BYTES))
        if data <= self._last[kind]:
            self._reader.fail(f"{name!r:.80} does not come after the name before it")
        self._last[kind] = data
        return data

    def _next_event(self, document: dict[str, Any]) -> list[Any]:
        reader = self._reader
        body = "encoded_payload" if "encoded_payload" in document else "payload"
        reader._fields(document, "kind", "sequence", "event_type", "timestamp", "prev_hash", "hash", body)
        previous = self._event
        sequence = 0 if previous is None else previous.sequence + 1
        if document["sequence"] != sequence or type(document["sequence"]) is not int:
            reader.fail(f"event {document['sequence']!r:.40} is here, and event {sequence} is next")
        if body == "payload":
            payload = reader._encoded(document[body], body)
        else:
            payload = document[body]
            if type(payload) is not bytes:
                reader.fail(f"{body} is no bytes")
            reader._checked(lambda: values.decode(payload))
        event_type = document["event_type"]
        event = event_log.StoredEvent(
            sequence, self._chain, reader._int(document, "timestamp", 0),
            reader._checked(lambda: encode_label(event_type, "event_type")),
            self._hash(document["prev_hash"]), self._hash(document["hash"]), payload,
        )
        problem = event_log.problem_with(previous, event)
        if problem is not None:
            reader.fail(f"event {sequence} breaks the chain: {problem}")
        self._event = event
        return [event.event_type, payload, event.timestamp, event.hash]

    def _hash(self, text: Any) -> bytes:
        try:
            data = bytes.fromhex(text) if type(text) is str else b""
        except ValueError:
            data = b""
        if len(data) != event_log.HASH_BYTES or data.hex() != text:
            self._reader.fail(f"a hash is not {2 * event_log.HASH_BYTES} hexadecimal digits")
        return data

    def _trace(self, document: dict[str, Any]) -> list[Any]:
        reader = self._reader
        reader._fields(
            document, "kind", "id", "parent_id", "body_type", "body", "tags", "metadata", "timestamp"
        )
        trace_id: str = reader._checked(lambda: encode_id(document["id"], "id").decode())
        timestamp = reader._int(document, "timestamp")
        parent = document["parent_id"]
        self._descend(parent, (timestamp, trace_id))
        body = reader._checked(lambda: _body(document["body_type"], document["body"]))
        kind, encoded = reader._checked(lambda: trace.pack_body(body))
        return [
            trace_id, parent or "", timestamp, kind, trace.type_name_of(body),
            reader._labels(document["tags"]), encoded, reader._map(document["metadata"], "metadata"),
        ]

    def _descend(self, parent: Any, place: tuple[int, str]) -> None:
        """Go to where the trace is: depth first, siblings in order of time, then id."""
        depth = 0
        if parent is not None:
            while self._above and self._above[-1] != parent:
                self._above.pop()
            depth = len(self._above)
            if not depth:
                self._reader.fail(f"the parent of trace {place[1]} is not above it")
        del self._above[depth:]
        if len(self._place) > depth and self._place[depth] >= place:
            self._reader.fail(f"trace {place[1]} does not come after its sibling before it")
        self._place[depth:] = [place]
        self._above.append(place[1])


def _body(name: Any, fields: Any) -> trace.Body:
    """The body of a trace, as its facade would take it."""
    kind = trace.BODY_NAMES.get(name) if type(name) is str else None
    if kind is None:
        raise ValueError(f"there is no body_type {name!r:.40}")
    if type(fields) is not dict or fields.keys() != kind.__dataclass_fields__.keys():
        raise ValueError(f"the fields of body are not those of a {name}")
    return trace.check_body(kind(**fields))
