"""Events, as the server table describes them: one log in each run, each event chained to the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from inmem import values
from inmem.jsonvalues import needs_marks, to_json
from inmem.keys import TypeTag, encode_label
from inmem.primitives.events import rules as event_log
from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import Document, LineForm, RecordCheck, RecordsOfRun, RecordType
from inmem.record import payload_of


def _check() -> RecordCheck:
    previous: event_log.StoredEvent | None = None
    following = 0

    def check(rest: bytes, payload: bytes) -> str | None:
        nonlocal previous, following
        if len(rest) != 8:
            return "is no sequence"
        sequence = int.from_bytes(rest, "big")
        expected, following = following, sequence + 1
        event = event_log.unpack(sequence, payload)
        problem = event_log.problem_with(previous, event)
        if sequence != expected:
            problem = f"the events from {expected} on are missing"
        previous = event
        if problem is None:
            event.to_event()  # type and payload decode
        return problem

    return check


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    previous: event_log.StoredEvent | None = None
    for number, (name, record) in enumerate(run.records(TypeTag.EVENT)):
        event = event_log.unpack(int.from_bytes(name, "big"), payload_of(record))
        if event.sequence != number:
            raise ValueError(f"event {number} is missing")
        problem = event_log.problem_with(previous, event)
        if problem is not None:
            raise ValueError(f"event {number}: {problem}")
        yield _document(event)
        previous = event


def _document(event: event_log.StoredEvent) -> Document:
    """A payload that is not as the codec writes it goes as it is: its hash covers the bytes."""
    value = values.decode(event.payload)
    document = {
        "sequence": event.sequence, "event_type": event.event_type.decode(), "timestamp": event.timestamp,
        "prev_hash": event.prev_hash.hex(), "hash": event.hash.hex(),
    }
    if values.encode(value) == event.payload:
        document["payload"] = to_json(value) if needs_marks(event.payload) else value
    else:
        document["encoded_payload"] = to_json(event.payload)
    return document


def _parser(fields: LineFields, chain: int) -> Callable[[Document], list[Any]]:
    previous: event_log.StoredEvent | None = None

    def parse(document: Document) -> list[Any]:
        nonlocal previous
        body = "encoded_payload" if "encoded_payload" in document else "payload"
        fields.exactly(
            document, "kind", "sequence", "event_type", "timestamp", "prev_hash", "hash", body
        )
        sequence = 0 if previous is None else previous.sequence + 1
        if document["sequence"] != sequence or type(document["sequence"]) is not int:
            fields.fail(f"event {document['sequence']!r:.40} is here, and event {sequence} is next")
        if body == "payload":
            payload = fields.encoded(document[body], body)
        else:
            payload = document[body]
            if type(payload) is not bytes:
                fields.fail(f"{body} is no bytes")
            fields.checked(lambda: values.decode(payload))
        event = event_log.StoredEvent(
            sequence, chain, fields.integer(document, "timestamp", 0),
            fields.checked(lambda: encode_label(document["event_type"], "event_type")),
            _hash(fields, document["prev_hash"]), _hash(fields, document["hash"]), payload,
        )
        problem = event_log.problem_with(previous, event)
        if problem is not None:
            fields.fail(f"event {sequence} breaks the chain: {problem}")
        previous = event
        return [event.event_type, payload, event.timestamp, event.hash]

    return parse


def _hash(fields: LineFields, text: Any) -> bytes:
    try:
        data = bytes.fromhex(text) if type(text) is str else b""
    except ValueError:
        data = b""
    if len(data) != event_log.HASH_BYTES or data.hex() != text:
        fields.fail(f"a hash is not {2 * event_log.HASH_BYTES} hexadecimal digits")
    return data


EVENT: Final = RecordType(
    tag=TypeTag.EVENT, name="event", counted="events", check=_check, is_log=True,
    index_tags=frozenset({TypeTag.EVENT_BY_TYPE}), index_keys=event_log.index_keys,
    lines=LineForm(
        "event", "import.events", _documents, _parser, since=1, place=lambda chain, before: [chain, before]
    ),
)
RECORD_TYPES: Final = (EVENT,)
