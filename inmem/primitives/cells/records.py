"""Cells, and the mark of deleted ones, as the server table describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from inmem import values
from inmem.jsonvalues import encoded_to_json
from inmem.keys import TypeTag
from inmem.primitives.cells import rules as cell
from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import (
    Document,
    LineForm,
    RecordsOfRun,
    RecordType,
    check_each,
    name_problem,
)
from inmem.record import payload_of, timestamp_of


def _check_mark(rest: bytes, payload: bytes) -> str | None:
    return name_problem(rest) or (None if cell.version_in(payload) > 0 else "has no version")


def _check(rest: bytes, payload: bytes) -> str | None:
    problem = _check_mark(rest, payload)
    values.decode(cell.value_in(payload))
    return problem


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    for name, record in run.records(TypeTag.STATE):
        payload = payload_of(record)
        yield {
            "name": name.decode(), "value": encoded_to_json(cell.value_in(payload)),
            "version": cell.version_in(payload), "updated_at": timestamp_of(record),
        }


def _parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    last = b""

    def parse(document: Document) -> list[Any]:
        nonlocal last
        fields.exactly(document, "kind", "name", "value", "version", "updated_at")
        last = fields.name_after(last, document["name"])
        return [
            last, fields.integer(document, "version"), fields.integer(document, "updated_at"),
            fields.encoded(document["value"], "value"),
        ]

    return parse


CELL: Final = RecordType(
    tag=TypeTag.STATE, name="state", counted="cells", check=check_each(_check),
    lines=LineForm("cell", "import.cells", _documents, _parser, since=1),
)
CELL_MARK: Final = RecordType(tag=TypeTag.STATE_MARK, name="state", check=check_each(_check_mark))
RECORD_TYPES: Final = (CELL, CELL_MARK)
