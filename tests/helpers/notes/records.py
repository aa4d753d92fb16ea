"""Notes, as the server table describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import Document, LineForm, RecordsOfRun, RecordType, check_each
from inmem.record import payload_of

from . import rules


def _check(name: bytes, payload: bytes) -> str | None:
    text, color = rules.unpack(payload)
    return None if name and type(text) is str and color in rules.COLORS else "is no note"


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    for name, record in run.records(rules.NOTE):
        text, color = rules.unpack(payload_of(record))
        yield {"name": name.decode(), "text": text, "color": color}


def _parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    last = b""

    def parse(document: Document) -> list[Any]:
        nonlocal last
        fields.exactly(document, "kind", "name", "text", "color")
        last = fields.name_after(last, document["name"])
        if document["color"] not in rules.COLORS:
            fields.fail("there is no such color")
        return [last, fields.text(document["text"], "text"), document["color"]]

    return parse


NOTES: Final = RecordType(
    tag=rules.NOTE, name="note", counted="notes", check=check_each(_check),
    index_tags=frozenset({rules.NOTE_BY_COLOR}), index_keys=rules.index_keys,
    lines=LineForm("note", "import.notes", _documents, _parser, since=3),
)
RECORD_TYPES: Final = (NOTES,)
